//! The connections of clients: accepted, counted, bounded, and closed when nobody uses them.
//!
//! | state | it is closed when |
//! | --- | --- |
//! | handshake (TLS) | it takes longer than [`HANDSHAKE`](crate::limits::HANDSHAKE) |
//! | opened | its first bytes have not come within [`FIRST_BYTES`](crate::limits::FIRST_BYTES) |
//! | in use | nothing was read or written for [`SILENCE`](crate::limits::SILENCE): HTTP/2 pings keep a living one from that |
//! | any, without a call under way | there are as many as the node takes, and another one comes: first those that never made a call, then the one that is silent for longest |
//!
//! A connection with calls under way is never closed for another: the newcomer is refused then.

mod accept;
mod calls;
mod descriptors;
mod stream;

use std::{
    collections::HashMap,
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

pub use accept::{Listener, incoming};
pub use calls::CountCalls;
pub use descriptors::{Descriptors, raise_limit};
pub use stream::{Accepted, Tracked};

use crate::memory::{ClientMemory, Memory};

/// One client's connection. Every gRPC request carries it in its extensions, as `Arc<Connection>`.
#[derive(Debug)]
pub struct Connection {
    peer: SocketAddr,
    opened: Instant,
    /// Calls under way: requests whose answers have not ended.
    calls: AtomicUsize,
    has_called: AtomicBool,
    /// When bytes were last read or written, milliseconds since it was opened.
    active_ms: AtomicU64,
    is_evicted: AtomicBool,
    reader: AtomicWaker,
    /// What it may take of the node's memory, from its first call on.
    client: OnceLock<Arc<ClientMemory>>,
}

impl Connection {
    fn new(peer: SocketAddr) -> Self {
        Self {
            peer,
            opened: Instant::now(),
            calls: AtomicUsize::new(0),
            has_called: AtomicBool::new(false),
            active_ms: AtomicU64::new(0),
            is_evicted: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            client: OnceLock::new(),
        }
    }

    /// The client's address.
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// What it may take of the node's memory.
    pub fn client(&self, memory: &Memory) -> Arc<ClientMemory> {
        Arc::clone(self.client.get_or_init(|| Arc::new(memory.client())))
    }

    /// Notes that bytes were read or written.
    fn record_activity(&self) {
        let elapsed = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.active_ms.store(elapsed, Ordering::Relaxed);
    }

    /// When bytes were last read or written.
    fn last_active(&self) -> Instant {
        self.opened + Duration::from_millis(self.active_ms.load(Ordering::Relaxed))
    }

    fn is_evicted(&self) -> bool {
        self.is_evicted.load(Ordering::Acquire)
    }

    fn evict(&self) {
        self.is_evicted.store(true, Ordering::Release);
        self.reader.wake();
    }

    /// Completes when the connection is to be closed for another.
    async fn evicted(&self) {
        poll_fn(|cx| {
            self.reader.register(cx.waker());
            if self.is_evicted() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// What decides who is closed first; `None` while calls are under way.
    fn eviction_rank(&self) -> Option<(bool, Instant)> {
        (self.calls.load(Ordering::Acquire) == 0)
            .then(|| (self.has_called.load(Ordering::Relaxed), self.last_active()))
    }
}

/// The open connections of one listener, at most so many.
#[derive(Debug)]
pub struct Connections {
    most: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_number: HashMap<u64, Arc<Connection>>,
}

/// An open connection's place among [`Connections`], given back when it is dropped.
#[derive(Debug)]
pub struct Admitted {
    connections: Arc<Connections>,
    connection: Arc<Connection>,
    number: u64,
}

/// Whether a newcomer was let in.
#[derive(Debug)]
enum ConnectionAdmission {
    Free(Admitted),
    /// Another connection is closed for it.
    InPlaceOfAnother(Admitted),
    /// All connections have calls under way.
    Refused,
}

impl Connections {
    /// At most `most` connections at the same time, one at least.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), open: Mutex::default() })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.lock().by_number.len()
    }

    /// How many there may be.
    pub const fn most(&self) -> usize {
        self.most
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock()
    }

    fn admit(self: &Arc<Self>, peer: SocketAddr) -> ConnectionAdmission {
        let mut open = self.lock();
        let is_full = open.by_number.len() >= self.most;
        if is_full && !open.evict_one() {
            return ConnectionAdmission::Refused;
        }
        open.next += 1;
        let number = open.next;
        let connection = Arc::new(Connection::new(peer));
        open.by_number.insert(number, Arc::clone(&connection));
        drop(open);
        let admitted = Admitted { connections: Arc::clone(self), connection, number };
        if is_full {
            ConnectionAdmission::InPlaceOfAnother(admitted)
        } else {
            ConnectionAdmission::Free(admitted)
        }
    }

    /// Closes one connection that no call uses; false if there is none.
    fn evict_one(&self) -> bool {
        self.lock().evict_one()
    }
}

impl Open {
    fn evict_one(&mut self) -> bool {
        let ranked = self.by_number.iter().filter_map(|(number, connection)| {
            let rank = connection.eviction_rank()?;
            Some((rank, *number))
        });
        let Some((_, number)) = ranked.min() else { return false };
        if let Some(connection) = self.by_number.remove(&number) {
            connection.evict();
        }
        true
    }
}

impl Admitted {
    /// The connection.
    pub const fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.connections.lock().by_number.remove(&self.number);
    }
}

#[cfg(test)]
mod tests;
