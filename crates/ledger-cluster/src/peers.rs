//! The other nodes: their numbers, their addresses, the connection to each, and the queue of its stream.
//!
//! There are [`MAX_PEERS`] numbers, and a process may meet more members than that in its life: every wiped volume is another
//! member. So a number is given back when its peer is gone for good ([`Peers::release`]), and then it is another's.
//!
//! What waits in all queues is bounded by bytes: a commit counts once, for as many peers as it waits. Beyond, the queue whose
//! oldest message has waited longest is cut: that peer is the slowest, and catches up. Appends that wait for copies hold
//! no more than the bound, so a peer that is needed for them alone is never the one.

pub mod call_auth;
pub mod service;
pub(crate) mod wire;

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use ledger_core::{
    node::{Member, NodeId},
    replication::{MAX_PEERS, Peer},
};
use ledger_cork::Corked;
use ledger_store::{
    budget::{Permit, Share},
    limited,
    replicate::replica::Outgoing,
};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Uri};
use tower::{Service, service_fn};

use crate::{
    config::PeerTls,
    peers::call_auth::{Credentials, client::AuthenticatedChannel},
};

/// What a message takes beside its records.
pub(crate) const MESSAGE_OVERHEAD: usize = 256;
/// What it takes for a slot.
const SLOT: usize = 32;
/// How long it may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What another node may send ahead on the stream of a request that was sent on to it, bytes: whoever sends it on holds them.
pub const REQUEST_WINDOW: u32 = 32 << 10;

/// What a connection to another node is for. There is one for each use: who reads slowly holds up no replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChannelUse {
    /// What nodes say to each other.
    Nodes,
    /// Requests of clients that are sent on.
    Requests,
}

impl ChannelUse {
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

/// The nodes that this one speaks to.
#[derive(Debug)]
pub(crate) struct Peers {
    tls: Option<PeerTls>,
    credentials: Arc<Credentials>,
    /// By number; `None`: the number is free.
    numbered: RwLock<[Option<Arc<PeerHandle>>; MAX_PEERS as usize]>,
    /// How many were met.
    met: AtomicU64,
    /// Memory for what waits in the queues.
    share: Arc<Share>,
    /// How much was put into queues.
    turn: AtomicU64,
    cutting: Mutex<()>,
}

/// Another node with its data directory.
pub(crate) struct PeerHandle {
    /// Its number here.
    pub(crate) number: Peer,
    /// Who it is.
    pub(crate) member: Member,
    /// Which of all that were met.
    met: u64,
    /// When it was last seen alive, by the driver's clock, milliseconds.
    seen: AtomicU64,
    channels: [Mutex<Option<(String, Channel)>>; 2],
    /// The one for what nodes say to each other, with its address, and the session on it.
    proven: Mutex<Option<(String, AuthenticatedChannel)>>,
    greets: Arc<AtomicBool>,
    address: RwLock<String>,
    queue: Mutex<Option<Arc<StreamQueue>>>,
}

/// What waits for a stream.
#[derive(Debug, Default)]
struct StreamQueue {
    waiting: Mutex<VecDeque<Waiting>>,
    changed: Notify,
    /// Cancelled when nothing more comes.
    lost: CancellationToken,
}

/// A message that waits for a stream.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) what: Outgoing,
    /// What it takes; a commit holds that itself.
    _held: Option<Permit>,
    /// Its place among all that was put into queues.
    turn: u64,
}

/// The other end of a stream's queue.
#[derive(Debug)]
pub(crate) struct StreamReceiver(Arc<StreamQueue>);

impl fmt::Debug for PeerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerState({})", self.member)
    }
}

impl Peers {
    /// None yet; what waits for them may take so much of the memory.
    pub(crate) fn new(tls: Option<PeerTls>, credentials: Arc<Credentials>, share: Arc<Share>) -> Self {
        Self {
            tls,
            credentials,
            numbered: RwLock::new([const { None }; MAX_PEERS as usize]),
            met: AtomicU64::new(0),
            share,
            turn: AtomicU64::new(0),
            cutting: Mutex::default(),
        }
    }

    /// Memory for what waits for them.
    pub(crate) const fn share(&self) -> &Arc<Share> {
        &self.share
    }

    /// Puts something into the queue of a peer, if it has one. Does not wait.
    pub(crate) fn send(&self, to: Peer, what: Outgoing) {
        let Some(queue) = self.numbered(to).and_then(|peer| peer.queue.lock().clone()) else { return };
        let weight = cost_bytes(&what);
        let held = match &what {
            Outgoing::Commit(commit) => {
                commit.held.get_or_init(|| self.share.charge(weight));
                None
            }
            _ => Some(self.share.charge(weight)),
        };
        queue.put(Waiting { what, _held: held, turn: self.turn.fetch_add(1, Ordering::Relaxed) });
        if self.share.used() > self.share.capacity() {
            self.cut();
        }
    }

    /// Cuts queues until what waits is within its bytes, or nobody is behind by more than one message.
    fn cut(&self) {
        let _one = self.cutting.lock();
        while self.share.used() > self.share.capacity() {
            let list = self.numbered.read();
            let behind = list.iter().flatten().filter_map(|peer| Some((peer.behind_since()?, peer)));
            let Some((_, slowest)) = behind.min_by_key(|(since, _)| *since) else { return };
            limited!(warn, peer = %slowest.member, "too much waits for a peer: it has to catch up");
            slowest.restart();
        }
    }

    /// The peer that a member is. `None`: it has no number yet, and none is free.
    pub(crate) fn of(&self, member: &Member) -> Option<Arc<PeerHandle>> {
        if let Some(known) = self.get(member) {
            return Some(known);
        }
        let mut numbered = self.numbered.write();
        if let Some(known) = numbered.iter().flatten().find(|peer| peer.member == *member) {
            return Some(Arc::clone(known));
        }
        let (number, free) = (0..).zip(numbered.iter_mut()).find(|(_, peer)| peer.is_none())?;
        let peer = Arc::new(PeerHandle {
            number: Peer::new(number)?,
            member: member.clone(),
            met: self.met.fetch_add(1, Ordering::Relaxed),
            seen: AtomicU64::new(0),
            channels: Default::default(),
            proven: Mutex::default(),
            greets: Arc::default(),
            address: RwLock::default(),
            queue: Mutex::default(),
        });
        *free = Some(Arc::clone(&peer));
        Some(peer)
    }

    /// Gives a peer's number back. Lanes must not know the number any more, and no stream to the peer may be kept: from now on
    /// the number may be another's.
    pub(crate) fn release(&self, member: &Member) {
        let mut numbered = self.numbered.write();
        for known in numbered.iter_mut() {
            if known.as_ref().is_some_and(|peer| peer.member == *member) {
                *known = None;
            }
        }
    }

    /// A peer that is known.
    pub(crate) fn get(&self, member: &Member) -> Option<Arc<PeerHandle>> {
        self.numbered.read().iter().flatten().find(|peer| peer.member == *member).cloned()
    }

    /// A peer by number.
    pub(crate) fn numbered(&self, number: Peer) -> Option<Arc<PeerHandle>> {
        self.numbered.read().get(usize::from(number.number()))?.clone()
    }

    /// The peers that are known, those first that were not seen alive for the longest time.
    pub(crate) fn longest_away(&self) -> Vec<Arc<PeerHandle>> {
        let mut all: Vec<_> = self.numbered.read().iter().flatten().cloned().collect();
        all.sort_by_key(|peer| peer.seen.load(Ordering::Relaxed));
        all
    }

    /// The peers whose streams are up.
    pub(crate) fn alive(&self) -> Vec<Arc<PeerHandle>> {
        self.numbered.read().iter().flatten().filter(|peer| peer.is_alive()).cloned().collect()
    }

    /// The addresses that are known, by node: of its data directories that which was met last.
    pub(crate) fn addresses(&self) -> HashMap<NodeId, String> {
        let mut peers: Vec<_> = self.numbered.read().iter().flatten().cloned().collect();
        peers.sort_by_key(|peer| peer.met);
        peers.iter().map(|peer| (peer.member.node.clone(), peer.address.read().clone())).collect()
    }

    /// The connection to a peer for what nodes say to each other.
    pub(crate) fn channel(&self, peer: &PeerHandle) -> Result<AuthenticatedChannel, String> {
        let channel = self.channel_for(peer, ChannelUse::Nodes)?;
        let address = peer.address.read().clone();
        let mut proven = peer.proven.lock();
        if let Some((of, proven)) = &*proven
            && *of == address
        {
            return Ok(proven.clone());
        }
        let (credentials, greets) = (Arc::clone(&self.credentials), Arc::clone(&peer.greets));
        let made = AuthenticatedChannel::new(channel, credentials, peer.member.clone(), greets);
        *proven = Some((address, made.clone()));
        Ok(made)
    }

    /// The connection to a peer for a use, which is made when first used and again whenever it breaks.
    pub(crate) fn channel_for(&self, peer: &PeerHandle, purpose: ChannelUse) -> Result<Channel, String> {
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

impl PeerHandle {
    /// Notes where the peer is; whether that is new.
    pub(crate) fn set_address(&self, address: &str) -> bool {
        let mut known = self.address.write();
        let is_new = *known != address;
        if is_new {
            address.clone_into(&mut known);
        }
        is_new
    }

    /// Notes that it is seen alive at a time of the driver's clock, milliseconds.
    pub(crate) fn set_seen(&self, now: u64) {
        self.seen.store(now, Ordering::Relaxed);
    }

    /// Notes whether the peer takes part in sessions.
    pub(crate) fn set_greets(&self, greets: bool) {
        self.greets.store(greets, Ordering::Relaxed);
    }

    /// Opens the queue of a stream: what lanes send from now on is in it.
    pub(crate) fn open(&self) -> StreamReceiver {
        let queue = Arc::<StreamQueue>::default();
        let before = self.queue.lock().replace(Arc::clone(&queue));
        if let Some(before) = before {
            before.end();
        }
        StreamReceiver(queue)
    }

    /// Whether the stream to it is up.
    pub(crate) fn is_alive(&self) -> bool {
        self.queue.lock().is_some()
    }

    /// Closes the queue, and ends the stream if there is one: another begins at once.
    pub(crate) fn restart(&self) {
        let before = self.queue.lock().take();
        if let Some(before) = before {
            before.end();
        }
    }

    /// Where the oldest message is among all that were put into queues, if others wait behind it.
    fn behind_since(&self) -> Option<u64> {
        let queue = self.queue.lock();
        let waiting = queue.as_ref()?.waiting.lock();
        waiting.front().filter(|_| waiting.len() > 1).map(|oldest| oldest.turn)
    }
}

impl StreamQueue {
    fn put(&self, what: Waiting) {
        let mut waiting = self.waiting.lock();
        // Looked at with the lock: who ends it empties it after this, or before.
        if !self.lost.is_cancelled() {
            waiting.push_back(what);
            drop(waiting);
            self.changed.notify_one();
        }
    }

    /// Nothing more comes, and what waits is let go of.
    fn end(&self) {
        self.lost.cancel();
        let waiting = std::mem::take(&mut *self.waiting.lock());
        drop(waiting);
        self.changed.notify_one();
    }
}

impl StreamReceiver {
    /// Cancelled when the queue was ended: it was too long, or the stream is to begin anew.
    pub(crate) fn lost(&self) -> CancellationToken {
        self.0.lost.clone()
    }

    /// What is next, which is counted until this is dropped; `None` when the queue was ended.
    pub(crate) async fn next(&mut self) -> Option<Waiting> {
        loop {
            if self.0.lost.is_cancelled() {
                return None;
            }
            if let Some(next) = self.0.waiting.lock().pop_front() {
                return Some(next);
            }
            self.0.changed.notified().await;
        }
    }
}

/// A connection to a node's gRPC services, which is made when first used.
pub(crate) fn connect(tls: Option<&PeerTls>, address: &str, purpose: ChannelUse) -> Result<Channel, String> {
    let (stream_window, connection_window) = purpose.windows();
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(|error| format!("the address {address} makes no sense: {error}"))?
        .connect_timeout(CONNECT_TIMEOUT)
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
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connection = http.call(uri).await?.into_inner();
        Ok::<_, <HttpConnector as Service<Uri>>::Error>(TokioIo::new(Corked::new(connection)))
    })))
}

fn cost_bytes(what: &Outgoing) -> usize {
    let slots = match what {
        Outgoing::Commit(commit) => {
            return commit.parts.iter().map(|part| part.range.records.len() + MESSAGE_OVERHEAD).sum();
        }
        Outgoing::CommitIndex(slots) => slots.len(),
        Outgoing::DigestCheckpoint(mark) => 2 * mark.digests.len(),
        Outgoing::LeaseRenewal(slots) => 2 * slots.len(),
        Outgoing::SyncOffer(_) => 8,
    };
    MESSAGE_OVERHEAD + slots * SLOT
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use futures::FutureExt as _;
    use ledger_core::{
        ContextId, Epoch, Hash, HashSuite, Lineage, Size, digest::TreeHead, node::StorageId,
        ownership::Claim, slot::Slot,
    };
    use ledger_store::{
        EntryRange,
        replicate::replica::{Commit, Part},
    };

    use super::*;
    use crate::membership::Incarnation;

    fn peers(capacity: usize, count: u8) -> (Peers, Vec<Arc<PeerHandle>>) {
        let member =
            |n: u8| Member { node: NodeId::new(format!("n{n}")).unwrap(), storage: StorageId([n; 16]) };
        let sealer = crate::membership::seal::Sealer::new("c", crate::membership::seal::Keyring::none());
        let credentials = Arc::new(Credentials::new(member(255), Incarnation(1), sealer));
        let peers = Peers::new(None, credentials, Share::new("replication", capacity));
        let all = (0..count).map(|n| peers.of(&member(n)).unwrap()).collect();
        (peers, all)
    }

    /// A commit that counts so many bytes.
    fn commit(number: u64, bytes: usize) -> Outgoing {
        let context = ContextId::new("c").unwrap();
        let range = EntryRange {
            lineage: Lineage([0; 16]),
            suite: HashSuite::Blake3,
            created_at_ns: 0,
            after: TreeHead { size: Size(0), root: Hash([0; 32]) },
            count: 1,
            root: Hash([0; 32]),
            records: Bytes::from(vec![0; bytes - MESSAGE_OVERHEAD]),
        };
        let claim = Claim { epoch: Epoch(1), claimant: NodeId::new("n9").unwrap(), storage: None };
        let part = Part { slot: Slot::of(&context), claim, context, range, is_load: false };
        Outgoing::Commit(Arc::new(Commit::new(0, number, vec![part])))
    }

    fn taken(outgoings: &mut StreamReceiver) -> Option<u64> {
        match outgoings.next().now_or_never()??.what {
            Outgoing::Commit(commit) => Some(commit.number),
            _ => None,
        }
    }

    #[test]
    fn what_waits_for_several_counts_once_and_the_slowest_is_cut() {
        let (peers, all) = peers(100_000, 3);
        let mut queues: Vec<_> = all.iter().map(|peer| peer.open()).collect();
        // The first takes nothing, the others all but the newest.
        for number in 0..20 {
            let commit = commit(number, 10_000);
            for peer in &all {
                peers.send(peer.number, commit.clone());
            }
            drop(commit);
            assert!(peers.share.used() <= 100_000, "{}", peers.share.used());
            if number > 0 {
                assert_eq!(taken(&mut queues[1]), Some(number - 1));
                assert_eq!(taken(&mut queues[2]), Some(number - 1));
            }
            assert_eq!(all[0].is_alive(), number < 10, "{number}");
        }
        assert!(queues[0].lost().is_cancelled() && all[1].is_alive() && all[2].is_alive());
        assert!(queues[0].next().now_or_never().unwrap().is_none(), "nothing of it is sent any more");
        assert_eq!((taken(&mut queues[1]), taken(&mut queues[2])), (Some(19), Some(19)));
        assert_eq!(peers.share.used(), 0);
        // It begins anew.
        let mut anew = all[0].open();
        peers.send(all[0].number, commit(20, 10_000));
        assert_eq!(taken(&mut anew), Some(20));
    }

    #[test]
    fn a_commit_larger_than_all_there_is_may_wait_alone() {
        let (peers, all) = peers(100_000, 2);
        let mut queues: Vec<_> = all.iter().map(|peer| peer.open()).collect();
        let large = commit(1, 1_000_000);
        for peer in &all {
            peers.send(peer.number, large.clone());
        }
        drop(large);
        assert!(all.iter().all(|peer| peer.is_alive()));
        // Who has not taken it when the next one comes is too slow.
        assert_eq!(taken(&mut queues[1]), Some(1));
        let next = commit(2, 1_000);
        for peer in &all {
            peers.send(peer.number, next.clone());
        }
        assert!(!all[0].is_alive() && all[1].is_alive());
        assert_eq!(taken(&mut queues[1]), Some(2));
    }

    #[test]
    fn a_number_that_was_given_back_is_the_next_ones() {
        let (peers, all) = peers(100_000, MAX_PEERS);
        let member = |n: u8| Member { node: all[1].member.node.clone(), storage: StorageId([n; 16]) };
        assert!(peers.of(&member(100)).is_none(), "no number is free");
        for peer in &all {
            peer.set_seen(u64::from(MAX_PEERS - peer.number.number()));
        }
        let last = all.last().unwrap();
        assert_eq!(peers.longest_away()[0].member, last.member);
        all[1].set_address("old:1");
        last.set_address("other:1");
        peers.release(&all[7].member);
        assert!(peers.get(&all[7].member).is_none() && peers.numbered(all[7].number).is_none());
        assert_eq!(peers.of(&all[1].member).unwrap().number, all[1].number, "who is known stays");
        // The volume of the second was wiped: its new one is another member, and was met later.
        let wiped = peers.of(&member(100)).unwrap();
        wiped.set_address("new:1");
        assert_eq!(wiped.number, all[7].number);
        assert_eq!(peers.addresses()[&wiped.member.node], "new:1");
        peers.release(&all[0].member);
        assert_eq!(peers.of(&member(101)).unwrap().number, all[0].number);
        for again in 0..1000_u32 {
            let storage = StorageId([&again.to_be_bytes()[..], &[9; 12]].concat().try_into().unwrap());
            let member = Member { storage, ..all[1].member.clone() };
            peers.release(&peers.longest_away()[0].member);
            assert!(peers.of(&member).is_some());
        }
    }

    #[test]
    fn a_queue_that_was_ended_holds_nothing() {
        let (peers, all) = peers(100_000, 1);
        let queue = all[0].open();
        peers.send(all[0].number, commit(1, 10_000));
        assert_eq!(peers.share.used(), 10_000);
        all[0].restart();
        assert!(queue.lost().is_cancelled());
        peers.send(all[0].number, commit(2, 10_000));
        assert_eq!(peers.share.used(), 0);
    }
}
