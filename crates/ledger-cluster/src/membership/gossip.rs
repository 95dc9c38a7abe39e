//! chitchat over sealed UDP: a `Transport` that seals what goes out, and counts and drops what doesn't open.
//!
//! chitchat fills a message up to 65 507 bytes, which leaves no room for the seal in one UDP datagram, and
//! networks like to lose the fragments of large ones. So a message travels in [parts] of at most
//! [`MAX_DATAGRAM`] bytes, each sealed by itself; a lost part loses its message, and the next round of
//! gossip says it again.
//!
//! Without keys whoever reaches the port is believed: keep it to loopback or to a network trusted as a whole.
//!
//! chitchat stays at 0.11, the last release whose messages a transport outside the crate can turn into bytes
//! (0.12 and 0.13 keep that to themselves). Its wire format is version 0 of the later ones.

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
        View,
        identity::{DatagramOrigin, Identity},
    },
};

pub(crate) mod identity_message;
pub mod parts;
#[cfg(test)]
mod tests;

use identity_message::IdentityMessage;
use parts::{Assembler, PartOutcome};

pub use identity_message::RunningNode;

/// Largest datagram sent or accepted, in bytes: what fits unfragmented into the smallest MTU of IPv6 (1280,
/// RFC 8200 §5) after its header and that of UDP.
pub const MAX_DATAGRAM: usize = 1280 - 40 - 8;

/// What became of gossip's datagrams since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GossipCounts {
    /// Datagrams that came in, whatever became of them.
    pub received: u64,
    /// Datagrams that went out.
    pub sent: u64,
    /// Dropped: in plain, though this node has keys.
    pub dropped_unsealed: u64,
    /// Dropped: of another cluster, or sealed with a key this node doesn't have.
    pub dropped_foreign: u64,
    /// Dropped: of a cluster of the same name and key that has another identity.
    pub dropped_other: u64,
    /// Dropped: too long, or not gossip after opening.
    pub dropped_malformed: u64,
    /// Messages given up because parts of them never came.
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

/// What the socket shares with its owner: the keys, which may be exchanged, and the counters.
#[derive(Debug, Clone)]
pub struct GossipControl {
    sealer: Arc<RwLock<Sealer>>,
    counters: Arc<DatagramCounters>,
    identity: Arc<Identity>,
    storage: StorageId,
    /// The nodes as this one sees them, once it does: for those who ask who runs under a name.
    view: Arc<OnceLock<watch::Receiver<Arc<View>>>>,
}

impl GossipControl {
    /// Control of a socket that seals with this.
    pub fn new(sealer: &Sealer) -> Self {
        Self::of(sealer, Arc::default(), StorageId([0; 16]))
    }

    /// The same, of a node that belongs to a cluster, or will; with its data directory.
    pub(crate) fn of(sealer: &Sealer, identity: Arc<Identity>, storage: StorageId) -> Self {
        let sealer = Arc::new(RwLock::new(sealer.with_identity(identity.cluster())));
        Self { sealer, counters: Arc::default(), identity, storage, view: Arc::default() }
    }

    /// The node belongs to a cluster, from the next datagram on.
    pub(crate) fn belongs(&self, id: ClusterId) {
        self.identity.set_cluster(id);
        let mut sealer = self.sealer.write();
        *sealer = sealer.with_identity(Some(id));
    }

    /// The nodes as this one sees them, from now on.
    pub(crate) fn sees(&self, view: watch::Receiver<Arc<View>>) {
        // There is one membership for each socket.
        let _ = self.view.set(view);
    }

    /// A datagram that carries a part, or a word.
    fn seal(&self, payload: &[u8]) -> Result<Vec<u8>, SealError> {
        let sealer = self.sealer.read();
        if sealer.has_identity() {
            sealer.seal(&[&self.storage.0, payload].concat())
        } else {
            sealer.seal(payload)
        }
    }

    /// Who runs under a name.
    fn who(&self, node: &NodeId) -> Option<RunningNode> {
        let view = self.view.get()?.borrow();
        let is_itself = view.is_me(node);
        // Of one that was replaced there is nothing to say, and one that leaves keeps nobody out.
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

    /// Exchanges the keys from the next datagram on.
    pub fn set_keyring(&self, keyring: Keyring) {
        let mut sealer = self.sealer.write();
        *sealer = sealer.with_keyring(keyring);
    }

    /// What became of the datagrams so far.
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

/// A transport over one socket, bound beforehand so that its address is known before gossip starts.
#[derive(Debug)]
pub struct SealedTransport {
    socket: Mutex<Option<UdpSocket>>,
    control: GossipControl,
}

impl SealedTransport {
    /// A transport over this socket.
    pub fn new(socket: UdpSocket, control: GossipControl) -> Self {
        Self { socket: Mutex::new(Some(socket)), control }
    }
}

#[async_trait]
impl Transport for SealedTransport {
    /// Hands out the socket, once. It is bound already, so the address is not looked at.
    async fn open(&self, _: SocketAddr) -> anyhow::Result<Box<dyn Socket>> {
        let socket = self.socket.lock().take();
        let socket = socket.ok_or_else(|| anyhow::anyhow!("the gossip socket is open already"))?;
        Ok(Box::new(SealedSocket::new(socket, self.control.clone())?))
    }
}

/// The socket of gossip: seals, splits, joins and opens.
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
        // A random start: a node that restarts at the same address must not continue a message it had begun.
        let next_id = getrandom::u32().map_err(|error| anyhow::anyhow!("no random numbers: {error}"))?;
        let buffer = Box::new([0; MAX_DATAGRAM + 1]);
        Ok(Self { socket, control, assembler: Assembler::default(), next_id, buffer })
    }

    /// Takes one datagram in; a message, if it completes one.
    fn take_in(&mut self, len: usize, from: SocketAddr) -> Option<ChitchatMessage> {
        let control = self.control.clone();
        let counters = &control.counters;
        add(&counters.received, 1);
        // The buffer is one byte longer than the limit, so a datagram that was cut off shows.
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
                // It is to know, too. What tells it is not answered.
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
        let mut rest = message.as_slice();
        match ChitchatMessage::deserialize(&mut rest) {
            Ok(message) if rest.is_empty() => Some(message),
            _ => {
                add(&counters.dropped_malformed, 1);
                None
            }
        }
    }

    /// Says a word, if the socket has room for it: whoever waits for it asks again.
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
    /// Sends a message. A peer that can't be reached is counted, and is no error: only a broken socket would
    /// be, and that shows when receiving.
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

    /// The next message. Nothing is lost when the future is dropped: the only wait is for a datagram.
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

/// Errors that one peer or one moment causes, after which a UDP socket goes on receiving.
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
