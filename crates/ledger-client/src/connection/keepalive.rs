//! Finds dead connections while calls are in flight on them.
//!
//! A node that is paused, or partitioned, or behind a proxy that lost it, keeps its connection open: the client receives
//! nothing, and nothing fails. HTTP/2 pings would show it, but servers and proxies close connections with more than one
//! of them in five minutes (`too_many_pings`). So when a connection is silent while calls are in flight, the client probes
//! the node with a small call: any response, even a refusal, shows that the node is alive. If the probe meets silence
//! too, the client closes the connection, and the calls fail and are retried elsewhere. Without calls in flight the client
//! sends no probes.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures::task::AtomicWaker;
use ledger_core::slot::Slot;
use ledger_proto::ledger::v1::{LocateRequest, cluster_service_client::ClusterServiceClient};
use tonic::{Code, Status, transport::Channel};

use crate::options::Options;

/// How often the client doubles the interval of probes at most, because a server complains of too many: from seconds
/// to minutes.
const MAX_DOUBLINGS: u32 = 7;

/// The connections to a node, one after the other, and the number of calls in flight.
#[derive(Debug, Clone, Default)]
pub(crate) struct Keepalive(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many connections have closed.
    closed: AtomicU64,
    calls: AtomicUsize,
    /// A task probes the connection.
    is_probed: AtomicBool,
    /// How often the interval of probes was doubled.
    doublings: AtomicU32,
    newest: Mutex<Weak<Activity>>,
}

/// What happens on one connection.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    /// Number of reads that returned bytes.
    reads: AtomicU64,
    /// Number of writes.
    writes: AtomicU64,
    /// The last write did not complete: the peer takes no more bytes for now.
    is_blocked: AtomicBool,
    /// The client gave the connection up.
    is_dead: AtomicBool,
    reader: AtomicWaker,
}

/// A call in flight: the client probes the connection until this is dropped.
#[derive(Debug)]
pub(crate) struct CallGuard(Keepalive);

impl Keepalive {
    /// How many connections have ended.
    pub(crate) fn closed_connections(&self) -> u64 {
        self.0.closed.load(Ordering::Acquire)
    }

    /// Counts a connection that closed.
    pub(crate) fn connection_closed(&self) {
        self.0.closed.fetch_add(1, Ordering::Release);
    }

    /// Records a new connection, and returns where it reports its activity.
    pub(crate) fn connected(&self) -> Arc<Activity> {
        let activity = Arc::new(Activity::default());
        *self.0.newest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&activity);
        activity
    }

    /// Probes the connection until the guard is dropped.
    pub(crate) fn track_call(&self, channel: &Channel, options: &Options) -> CallGuard {
        self.0.calls.fetch_add(1, Ordering::AcqRel);
        if !self.0.is_probed.swap(true, Ordering::AcqRel) {
            let (interval, timeout) = (options.keep_alive, options.keep_alive_timeout);
            tokio::spawn(self.clone().probe_while_in_flight(channel.clone(), interval, timeout));
        }
        CallGuard(self.clone())
    }

    async fn probe_while_in_flight(self, channel: Channel, interval: Duration, timeout: Duration) {
        let _task = ProbeTask(self.clone());
        loop {
            let activity = self.newest();
            let reads = activity.as_ref().map(|activity| activity.reads());
            tokio::time::sleep(interval.saturating_mul(1 << self.0.doublings.load(Ordering::Relaxed))).await;
            if self.0.calls.load(Ordering::Acquire) == 0 {
                self.0.is_probed.store(false, Ordering::Release);
                // A call may have begun since, and seen that this task probes.
                let is_needed = self.0.calls.load(Ordering::Acquire) > 0;
                if !is_needed || self.0.is_probed.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
            // Without a connection there is nothing to probe: connecting has a timeout of its own.
            let Some(activity) = activity.filter(|activity| Some(activity.reads()) == reads) else {
                continue;
            };
            let writes = activity.writes.load(Ordering::Acquire);
            match tokio::time::timeout(timeout, probe(channel.clone())).await {
                Ok(Err(status)) if is_too_many_pings(&status) => {
                    let more = |doublings| (doublings < MAX_DOUBLINGS).then_some(doublings + 1);
                    let _ = self.0.doublings.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
                }
                Err(_) if Some(activity.reads()) == reads && activity.probe_was_sent(writes) => {
                    activity.give_up();
                }
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn newest(&self) -> Option<Arc<Activity>> {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }
}

/// A call that costs the node next to nothing. Any response will do.
async fn probe(channel: Channel) -> Result<(), Status> {
    let slots = Slot::new(0).into_iter().map(|slot| slot.number().into()).collect();
    let request = LocateRequest { slots, ..LocateRequest::default() };
    ClusterServiceClient::new(channel).locate(request).await.map(drop)
}

/// Whether a server complains of too many probes.
fn is_too_many_pings(status: &Status) -> bool {
    let text = crate::error::failure::message_with_causes(status);
    // h2 has a text for ENHANCE_YOUR_CALM, and shows the debug data of a GOAWAY.
    status.code() == Code::ResourceExhausted
        || ["too_many_pings", "ENHANCE_YOUR_CALM", "excessive load"].iter().any(|sign| text.contains(sign))
}

impl Activity {
    fn reads(&self) -> u64 {
        self.reads.load(Ordering::Acquire)
    }

    /// Whether the probe left, or cannot leave because the peer takes no bytes. Where a server limits the calls at once,
    /// the probe waits for its turn: then silence says nothing.
    fn probe_was_sent(&self, writes: u64) -> bool {
        self.writes.load(Ordering::Acquire) != writes || self.is_blocked.load(Ordering::Acquire)
    }

    /// Records a write, complete or blocked.
    pub(crate) fn record_write(&self, wrote: &Poll<io::Result<usize>>) {
        self.is_blocked.store(wrote.is_pending(), Ordering::Release);
        if wrote.is_ready() {
            self.writes.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Records a read that returned bytes.
    pub(crate) fn record_read(&self) {
        self.reads.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the client gave the connection up; if not, it wakes the reader when it does.
    pub(crate) fn is_dead(&self, reader: &std::task::Waker) -> bool {
        self.reader.register(reader);
        self.is_dead.load(Ordering::Acquire)
    }

    fn give_up(&self) {
        self.is_dead.store(true, Ordering::Release);
        self.reader.wake();
    }
}

/// The task that probes. The runtime may end before the client does: then the next call starts another task.
struct ProbeTask(Keepalive);

impl Drop for ProbeTask {
    fn drop(&mut self) {
        self.0.0.is_probed.store(false, Ordering::Release);
    }
}

impl Drop for CallGuard {
    fn drop(&mut self) {
        self.0.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_of_too_many_pings_is_recognized() {
        for status in [
            Status::resource_exhausted("calm down"),
            Status::from_error(Box::new(std::io::Error::other(
                "GoAway(b\"too_many_pings\", ENHANCE_YOUR_CALM)",
            ))),
        ] {
            assert!(is_too_many_pings(&status), "{status}");
        }
        assert!(!is_too_many_pings(&Status::unimplemented("no such method")));
        assert!(!is_too_many_pings(&Status::from_error(Box::new(std::io::Error::other("reset by peer")))));
    }
}
