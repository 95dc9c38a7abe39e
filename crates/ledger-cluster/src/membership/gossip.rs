//! Runs chitchat over sealed UDP: a `Transport` that seals outgoing datagrams, and counts and drops incoming ones
//! that do not open.
//!
//! chitchat fills a message up to 65 507 bytes. That leaves no space for the seal in one UDP datagram, and networks
//! often lose fragments of large datagrams. So a message travels in [parts] of at most [`MAX_DATAGRAM`] bytes, each
//! sealed separately. A lost part loses its message, and the next round of gossip repeats the content.
//!
//! Without keys every sender that reaches the port is trusted: use a loopback interface or a fully trusted network
//! then.
//!
//! chitchat stays at 0.11, the last release that lets an external transport encode its messages (0.12 and 0.13 keep
//! the encoding private). Its wire format is version 0 of the later ones.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use chitchat::{
    ChitchatMessage, Deserializable, Serializable,
    transport::{Socket, Transport},
};
use ledger_core::node::{ClusterId, NodeId, StorageId};
use parking_lot::{Mutex, RwLock};
use tokio::{net::UdpSocket, sync::watch};

use crate::{
    membership::seal::{Keyring, OpenError, SealError, Sealer},
    membership::{
        identity::{DatagramOrigin, Identity},
        view::View,
    },
};

mod check;
pub(crate) mod identity_message;
pub(in crate::membership) mod incarnations;
pub mod parts;
#[cfg(test)]
mod tests;

use identity_message::IdentityMessage;
use incarnations::KnownIncarnations;
use ledger_store::limited;
use parts::{Assembler, PartOutcome};

pub use crate::membership::limits::MAX_DATAGRAM;
pub use identity_message::RunningNode;

/// What happened to gossip's datagrams since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GossipCounts {
    /// Datagrams that arrived, whatever happened to them.
    pub received: u64,
    /// Datagrams that were sent.
    pub sent: u64,
    /// Dropped: not sealed, although this node has keys.
    pub dropped_unsealed: u64,
    /// Dropped: of another cluster, or sealed with a key that this node lacks.
    pub dropped_foreign: u64,
    /// Dropped: of a cluster with the same name and key and another identity.
    pub dropped_other: u64,
    /// Dropped: too long, or not gossip after opening, or gossip that contradicts itself or that no node would send.
    pub dropped_malformed: u64,
    /// Messages that were discarded because parts of them never arrived.
    pub incomplete: u64,
    /// Datagrams that could not be sent (no route, no buffer).
    pub send_failed: u64,
}

#[derive(Debug, Default)]
struct DatagramCounters {
    received: AtomicU64,
    sent: AtomicU64,
    dropped_unsealed: AtomicU64,
    dropped_foreign: AtomicU64,
    dropped_other: AtomicU64,
    dropped_malformed: AtomicU64,
    incomplete: AtomicU64,
    send_failed: AtomicU64,
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// What the socket shares with its owner: the replaceable keys, and the counters.
#[derive(Debug, Clone)]
pub struct GossipControl {
    sealer: Arc<RwLock<Sealer>>,
    counters: Arc<DatagramCounters>,
    identity: Arc<Identity>,
    storage: StorageId,
    /// The view of this node, once there is one: it answers who runs under a name.
    view: Arc<OnceLock<watch::Receiver<Arc<View>>>>,
    incarnations: Arc<Mutex<KnownIncarnations>>,
}

impl GossipControl {
    /// Creates the control of a socket that uses this sealer.
    pub fn new(sealer: &Sealer) -> Self {
        Self::of(sealer, Arc::default(), StorageId([0; 16]))
    }

    /// Does the same for a node that belongs to a cluster, or will, with its data directory.
    pub(crate) fn of(sealer: &Sealer, identity: Arc<Identity>, storage: StorageId) -> Self {
        let sealer = Arc::new(RwLock::new(sealer.with_identity(identity.cluster())));
        Self {
            sealer,
            counters: Arc::default(),
            identity,
            storage,
            view: Arc::default(),
            incarnations: Arc::default(),
        }
    }

    /// Sets the cluster that the node belongs to, from the next datagram on.
    pub(crate) fn belongs(&self, id: ClusterId) {
        self.identity.set_cluster(id);
        let mut sealer = self.sealer.write();
        *sealer = sealer.with_identity(Some(id));
    }

    /// Returns the incarnations that chitchat may know.
    pub(in crate::membership) fn incarnations(&self) -> &Mutex<KnownIncarnations> {
        &self.incarnations
    }

    /// Sets the source of this node's view.
    pub(crate) fn sees(&self, view: watch::Receiver<Arc<View>>) {
        // Each socket has one membership, so the cell is empty.
        let _ = self.view.set(view);
    }

    /// Seals a datagram that carries a part of a message or an identity message.
    fn seal(&self, payload: &[u8]) -> Result<Vec<u8>, SealError> {
        let sealer = self.sealer.read();
        if sealer.has_identity() {
            sealer.seal(&[&self.storage.0, payload].concat())
        } else {
            sealer.seal(payload)
        }
    }

    /// Returns which process runs under a name.
    fn who(&self, node: &NodeId) -> Option<RunningNode> {
        let view = self.view.get()?.borrow();
        let is_itself = view.is_me(node);
        // Do not report a replaced process, and do not let a leaving one keep anybody out.
        let member = if is_itself { view.me() } else { view.get(node) };
        let member = member.filter(|member| member.alive)?;
        Some(RunningNode {
            storage: member.storage_id,
            incarnation: member.incarnation,
            gossip: member.gossip_address,
            grpc: member.grpc_address.clone(),
            is_itself,
        })
    }

    /// Replaces the keys from the next datagram on.
    pub fn set_keyring(&self, keyring: Keyring) {
        let mut sealer = self.sealer.write();
        *sealer = sealer.with_keyring(keyring);
    }

    /// Returns what happened to the datagrams so far.
    pub fn counts(&self) -> GossipCounts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        GossipCounts {
            received: read(&counters.received),
            sent: read(&counters.sent),
            dropped_unsealed: read(&counters.dropped_unsealed),
            dropped_foreign: read(&counters.dropped_foreign),
            dropped_other: read(&counters.dropped_other),
            dropped_malformed: read(&counters.dropped_malformed),
            incomplete: read(&counters.incomplete),
            send_failed: read(&counters.send_failed),
        }
    }
}

/// A transport over one socket. The socket is bound beforehand, so its address is known before gossip starts.
#[derive(Debug)]
pub struct SealedTransport {
    socket: Mutex<Option<UdpSocket>>,
    control: GossipControl,
}

impl SealedTransport {
    /// Creates a transport over this socket.
    pub fn new(socket: UdpSocket, control: GossipControl) -> Self {
        Self { socket: Mutex::new(Some(socket)), control }
    }
}

#[async_trait]
impl Transport for SealedTransport {
    /// Hands out the socket, once. It is already bound, so the address is ignored.
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.socket.lock().take();
        let socket = socket.ok_or_else(|| anyhow::anyhow!("the gossip socket is open already"))?;
        Ok(Box::new(SealedSocket::new(socket, self.control.clone())?))
    }
}

/// Gossip's socket: splits and seals outgoing messages, opens and joins incoming ones.
#[derive(Debug)]
pub struct SealedSocket {
    socket: UdpSocket,
    control: GossipControl,
    assembler: Assembler,
    next_id: u32,
    buffer: Box<[u8; MAX_DATAGRAM + 1]>,
}

impl SealedSocket {
    fn new(socket: UdpSocket, control: GossipControl) -> anyhow::Result<Self> {
        // Start at a random id: a node that restarts at the same address must not continue an unfinished message.
        let next_id = getrandom::u32().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
        let buffer = Box::new([0; MAX_DATAGRAM + 1]);
        Ok(Self { socket, control, assembler: Assembler::default(), next_id, buffer })
    }

    /// Processes one datagram. Returns a message if the datagram completes one.
    fn take_in(&mut self, len: usize, from: SocketAddr) -> Option<ChitchatMessage> {
        let control = self.control.clone();
        let counters = &control.counters;
        add(&counters.received, 1);
        // The buffer is one byte longer than the limit, so a truncated datagram is recognizable.
        let Some(datagram) = self.buffer.get(..len).filter(|_| len <= MAX_DATAGRAM) else {
            add(&counters.dropped_malformed, 1);
            return None;
        };
        let opened = control.sealer.read().open_of(datagram);
        let (theirs, payload) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                tracing::debug!(%from, %error, "dropped a gossip datagram");
                add(
                    match error {
                        OpenError::NotSealed => &counters.dropped_unsealed,
                        OpenError::UnknownKey | OpenError::AnotherCluster => &counters.dropped_foreign,
                        OpenError::Malformed => &counters.dropped_malformed,
                    },
                    1,
                );
                return None;
            }
        };
        let (said_by, payload) = match payload.split_first_chunk() {
            Some((storage, rest)) if theirs.is_some() => (StorageId(*storage), rest),
            None if theirs.is_some() => {
                add(&counters.dropped_malformed, 1);
                return None;
            }
            _ => (StorageId([0; 16]), &payload[..]),
        };
        let word = IdentityMessage::decode(payload);
        match control.identity.classify(theirs, said_by, from) {
            DatagramOrigin::This => {}
            DatagramOrigin::Joining => return None,
            DatagramOrigin::Other { say } => {
                add(&counters.dropped_other, 1);
                if say {
                    let (ours, theirs) = (control.identity.cluster(), theirs);
                    let known = |id: Option<ClusterId>| id.map_or("none yet".to_owned(), |id| id.to_string());
                    tracing::error!(
                        ours = known(ours), theirs = known(theirs), at = ?self.socket.local_addr().ok(), %from,
                        "a node of another cluster, which has the same name and keys as this one, is heard: nothing is taken from it. Look at \
                         the seeds of both; a node that is to change over needs an empty data directory"
                    );
                }
                // Notify the sender too, unless the datagram itself is such a notice.
                if word != Some(IdentityMessage::Refused) && control.identity.cluster().is_some() {
                    self.say(&IdentityMessage::Refused, from);
                }
                return None;
            }
        }
        match word {
            Some(IdentityMessage::WhoIs { number, node }) => {
                let found = control.who(&node);
                self.say(&IdentityMessage::Is { number, found }, from);
                return None;
            }
            Some(IdentityMessage::Is { .. } | IdentityMessage::Refused) => return None,
            None => {}
        }
        let message = match self.assembler.take(from, payload) {
            PartOutcome::Message(message) => message,
            PartOutcome::Incomplete { dropped: given_up } => {
                add(&counters.incomplete, given_up);
                return None;
            }
            PartOutcome::Malformed => {
                add(&counters.dropped_malformed, 1);
                return None;
            }
        };
        let checked = match check::check(&message, &mut control.incarnations.lock()) {
            Ok(checked) => checked,
            Err(error) => {
                limited!(warn, %from, %error, "a gossip message is dropped: no node of this build would send it");
                add(&counters.dropped_malformed, 1);
                return None;
            }
        };
        let mut rest = &*checked;
        match ChitchatMessage::deserialize(&mut rest) {
            Ok(message) if rest.is_empty() => Some(message),
            _ => {
                add(&counters.dropped_malformed, 1);
                None
            }
        }
    }

    /// Sends an identity message if the socket can take it now: the receiver of a lost one retries.
    fn say(&self, word: &IdentityMessage, to: SocketAddr) {
        if let Ok(datagram) = self.control.seal(&word.encode())
            && self.socket.try_send_to(&datagram, to).is_ok()
        {
            add(&self.control.counters.sent, 1);
        }
    }
}

#[async_trait]
impl Socket for SealedSocket {
    /// Sends a message. A peer that cannot be reached is counted and is no error. Only a broken socket would be one,
    /// and receiving reports that.
    async fn send(&mut self, to: SocketAddr, message: ChitchatMessage) -> anyhow::Result<()> {
        let counters = Arc::clone(&self.control.counters);
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let Some(parts) = parts::split(id, &message.serialize_to_vec()) else {
            add(&counters.send_failed, 1);
            return Ok(());
        };
        let sealed: Result<Vec<_>, _> = parts.iter().map(|part| self.control.seal(part)).collect();
        for datagram in sealed? {
            if let Err(error) = self.socket.send_to(&datagram, to).await {
                tracing::debug!(%to, %error, "a gossip datagram could not be sent");
                add(&counters.send_failed, 1);
                return Ok(());
            }
            add(&counters.sent, 1);
        }
        Ok(())
    }

    /// Receives the next message. Cancellation-safe: the only wait is for a datagram.
    async fn recv(&mut self) -> anyhow::Result<(SocketAddr, ChitchatMessage)> {
        loop {
            match self.socket.recv_from(&mut self.buffer[..]).await {
                Ok((len, from)) => {
                    if let Some(message) = self.take_in(len, from) {
                        return Ok((from, message));
                    }
                }
                Err(error) if is_passing(&error) => {
                    tracing::debug!(%error, "receiving gossip failed and goes on");
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Returns whether one peer or one moment caused the error, so that the UDP socket remains usable.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::OutOfMemory
            | io::ErrorKind::Interrupted
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}
