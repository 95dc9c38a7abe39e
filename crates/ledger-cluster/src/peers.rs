//! The other nodes: their numbers, their addresses, the connection to each, and the queue of its stream.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use ledger_core::{
    node::{Member, NodeId},
    replication::Peer,
};
use ledger_cork::Corked;
use ledger_store::{limited, replica::Outgoing};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tower::{Service, service_fn};

use crate::{
    config::PeerTls,
    door::{Credentials, calling::Proven},
};

/// Most bytes that wait for a stream: more than there can be appends in flight, so that a replica that is needed
/// for them is never dropped for being behind by that much.
const MOST_WAITING: usize = 320 << 20;
/// What a message takes beside its records.
const MESSAGE: usize = 256;
/// How long it may take to connect.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// What another node may send ahead on the stream of a request that was sent on to it, bytes: whoever sends it on holds them.
pub const REQUEST_WINDOW: u32 = 32 << 10;

/// What a connection to another node is for. There is one for each use: who reads slowly holds up no replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// What nodes say to each other.
    Nodes,
    /// Requests of clients that are sent on.
    Requests,
}

impl Use {
    /// HTTP/2 windows for what comes back, of a stream and of the connection, bytes.
    const fn windows(self) -> (u32, u32) {
        match self {
            Self::Nodes => (8 << 20, 32 << 20),
            // Who reads slowly fills its own window, and never that of the connection, which others share: it has room for
            // all streams that a node may have open.
            Self::Requests => (REQUEST_WINDOW, 512 << 20),
        }
    }
}

/// All nodes that this one ever spoke to.
#[derive(Debug)]
pub(crate) struct Peers {
    tls: Option<PeerTls>,
    credentials: Arc<Credentials>,
    list: RwLock<Vec<Arc<PeerState>>>,
}

/// Another node with its data directory.
pub(crate) struct PeerState {
    /// Its number here.
    pub(crate) number: Peer,
    /// Who it is.
    pub(crate) member: Member,
    channels: [Mutex<Option<(String, Channel)>>; 2],
    /// The one for what nodes say to each other, with its address, and the session on it.
    proven: Mutex<Option<(String, Proven)>>,
    greets: Arc<AtomicBool>,
    address: RwLock<String>,
    queue: Mutex<Option<Queue>>,
}

/// What waits for a stream.
#[derive(Debug, Clone)]
struct Queue {
    sender: mpsc::UnboundedSender<Outgoing>,
    bytes: Arc<AtomicUsize>,
    lost: CancellationToken,
}

/// The other end of a stream's queue.
#[derive(Debug)]
pub(crate) struct Outgoings {
    receiver: mpsc::UnboundedReceiver<Outgoing>,
    bytes: Arc<AtomicUsize>,
    /// Cancelled when the queue is too long.
    pub(crate) lost: CancellationToken,
}

impl fmt::Debug for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerState({})", self.member)
    }
}

impl Peers {
    pub(crate) fn new(tls: Option<PeerTls>, credentials: Arc<Credentials>) -> Self {
        Self { tls, credentials, list: RwLock::default() }
    }

    /// The peer that a member is. `None`: there were too many of them already.
    pub(crate) fn of(&self, member: &Member) -> Option<Arc<PeerState>> {
        if let Some(known) = self.get(member) {
            return Some(known);
        }
        let mut list = self.list.write();
        if let Some(known) = list.iter().find(|peer| peer.member == *member) {
            return Some(Arc::clone(known));
        }
        let Some(number) = u8::try_from(list.len()).ok().and_then(Peer::new) else {
            limited!(error, %member, "too many nodes were met since this one started: start it anew to meet more");
            return None;
        };
        let peer = Arc::new(PeerState {
            number,
            member: member.clone(),
            channels: Default::default(),
            proven: Mutex::default(),
            greets: Arc::default(),
            address: RwLock::default(),
            queue: Mutex::default(),
        });
        list.push(Arc::clone(&peer));
        Some(peer)
    }

    /// A peer that is known.
    pub(crate) fn get(&self, member: &Member) -> Option<Arc<PeerState>> {
        self.list.read().iter().find(|peer| peer.member == *member).cloned()
    }

    /// A peer by number.
    pub(crate) fn numbered(&self, number: Peer) -> Option<Arc<PeerState>> {
        self.list.read().get(usize::from(number.number())).cloned()
    }

    /// The peers whose streams are up.
    pub(crate) fn alive(&self) -> Vec<Arc<PeerState>> {
        self.list.read().iter().filter(|peer| peer.is_alive()).cloned().collect()
    }

    /// The addresses that are known, by node.
    pub(crate) fn addresses(&self) -> HashMap<NodeId, String> {
        let list = self.list.read();
        list.iter().map(|peer| (peer.member.node.clone(), peer.address.read().clone())).collect()
    }

    /// The connection to a peer for what nodes say to each other.
    pub(crate) fn channel(&self, peer: &PeerState) -> Result<Proven, String> {
        let channel = self.channel_for(peer, Use::Nodes)?;
        let address = peer.address.read().clone();
        let mut proven = peer.proven.lock();
        if let Some((of, proven)) = &*proven
            && *of == address
        {
            return Ok(proven.clone());
        }
        let (credentials, greets) = (Arc::clone(&self.credentials), Arc::clone(&peer.greets));
        let made = Proven::new(channel, credentials, peer.member.clone(), greets);
        *proven = Some((address, made.clone()));
        Ok(made)
    }

    /// The connection to a peer for a use, which is made when first used and again whenever it breaks.
    pub(crate) fn channel_for(&self, peer: &PeerState, purpose: Use) -> Result<Channel, String> {
        let address = peer.address.read().clone();
        if address.is_empty() {
            return Err(format!("the address of node {} is not known", peer.member.node));
        }
        let mut channel = peer.channels[purpose as usize].lock();
        if let Some((of, channel)) = &*channel
            && *of == address
        {
            return Ok(channel.clone());
        }
        let made = connect(self.tls.as_ref(), &address, purpose)?;
        *channel = Some((address, made.clone()));
        Ok(made)
    }
}

impl PeerState {
    /// Notes where the peer is; whether that is new.
    pub(crate) fn set_address(&self, address: &str) -> bool {
        let mut known = self.address.write();
        let is_new = *known != address;
        if is_new {
            address.clone_into(&mut known);
        }
        is_new
    }

    /// Notes whether the peer takes part in sessions.
    pub(crate) fn set_greets(&self, greets: bool) {
        self.greets.store(greets, Ordering::Relaxed);
    }

    /// Opens the queue of a stream: what lanes send from now on is in it.
    pub(crate) fn open(&self) -> Outgoings {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (bytes, lost) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
        *self.queue.lock() = Some(Queue { sender, bytes: Arc::clone(&bytes), lost: lost.clone() });
        Outgoings { receiver, bytes, lost }
    }

    /// Whether the stream to it is up.
    pub(crate) fn is_alive(&self) -> bool {
        self.queue.lock().is_some()
    }

    /// Closes the queue.
    pub(crate) fn close(&self) {
        *self.queue.lock() = None;
    }

    /// Ends the stream, if there is one: another begins at once.
    pub(crate) fn restart(&self) {
        if let Some(open) = self.queue.lock().take() {
            open.lost.cancel();
        }
    }

    /// Puts something into the queue, if there is one.
    pub(crate) fn send(&self, what: Outgoing) {
        let mut queue = self.queue.lock();
        let Some(open) = &*queue else { return };
        let waiting = open.bytes.fetch_add(weight(&what), Ordering::Relaxed);
        if waiting > MOST_WAITING || open.sender.send(what).is_err() {
            open.lost.cancel();
            *queue = None;
        }
    }
}

impl Outgoings {
    /// What is next; `None` when the queue was closed.
    pub(crate) async fn next(&mut self) -> Option<Outgoing> {
        let next = self.receiver.recv().await?;
        self.bytes.fetch_sub(weight(&next), Ordering::Relaxed);
        Some(next)
    }
}

/// A connection to a node's gRPC services, which is made when first used.
pub(crate) fn connect(tls: Option<&PeerTls>, address: &str, purpose: Use) -> Result<Channel, String> {
    let (stream_window, connection_window) = purpose.windows();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|error| format!("the address {address} makes no sense: {error}"))?
        .connect_timeout(CONNECT_WITHIN)
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window);
    if let Some(tls) = tls {
        let mut config = ClientTlsConfig::new().identity(Identity::from_pem(&tls.cert, &tls.key));
        config = match &tls.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(ca)),
            None => config.with_native_roots(),
        };
        endpoint = endpoint.tls_config(config).map_err(|error| error.to_string())?;
    }
    Ok(endpoint.connect_with_connector_lazy(service_fn(|uri: Uri| async {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT_WITHIN));
        let connection = http.call(uri).await?.into_inner();
        Ok::<_, <HttpConnector as Service<Uri>>::Error>(TokioIo::new(Corked::new(connection)))
    })))
}

fn weight(what: &Outgoing) -> usize {
    match what {
        Outgoing::Commit(commit) => commit.parts.iter().map(|part| part.range.records.len() + MESSAGE).sum(),
        _ => MESSAGE,
    }
}
