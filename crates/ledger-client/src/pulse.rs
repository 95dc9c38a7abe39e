//! Whether the other side of a connection is there, while calls are under way on it.
//!
//! A node that is paused, or cut off, or behind a proxy that lost it, keeps its connection: nothing is heard on it, and
//! nothing fails. HTTP/2 pings would tell, but servers and proxies end connections with more of them than one in five
//! minutes (`too_many_pings`). So what is silent while somebody waits for it is asked a small question, as a call like
//! any other: whatever is heard then, be it a refusal, shows that somebody is there. Silence ends the connection, and
//! with that the calls, which go on elsewhere. Nothing is asked while nobody waits.

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

use crate::Options;

/// How often the time between two questions is doubled at most, because a server finds them too many: from seconds to
/// minutes.
const DOUBLED: u32 = 7;

/// The connections to a node, one after the other, and the calls that are under way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pulse(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many connections have ended.
    ends: AtomicU64,
    calls: AtomicUsize,
    is_watched: AtomicBool,
    doubled: AtomicU32,
    newest: Mutex<Weak<Line>>,
}

/// One connection.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// How often something was heard.
    heard: AtomicU64,
    /// How often something was written.
    written: AtomicU64,
    /// Nothing more can be written for now.
    is_blocked: AtomicBool,
    is_cut: AtomicBool,
    reader: AtomicWaker,
}

/// A call that is under way: its connection is watched as long as this is there.
#[derive(Debug)]
pub(crate) struct UnderWay(Pulse);

impl Pulse {
    /// How many connections have ended.
    pub(crate) fn ends(&self) -> u64 {
        self.0.ends.load(Ordering::Acquire)
    }

    pub(crate) fn ended(&self) {
        self.0.ends.fetch_add(1, Ordering::Release);
    }

    /// A new connection.
    pub(crate) fn connected(&self) -> Arc<Line> {
        let line = Arc::new(Line::default());
        *self.0.newest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&line);
        line
    }

    /// Watches the connection while a call is under way.
    pub(crate) fn under_way(&self, channel: &Channel, options: &Options) -> UnderWay {
        self.0.calls.fetch_add(1, Ordering::AcqRel);
        if !self.0.is_watched.swap(true, Ordering::AcqRel) {
            let (every, within) = (options.keep_alive, options.keep_alive_timeout);
            tokio::spawn(self.clone().watch(channel.clone(), every, within));
        }
        UnderWay(self.clone())
    }

    async fn watch(self, channel: Channel, every: Duration, within: Duration) {
        let _ends = Watching(self.clone());
        loop {
            let line = self.newest();
            let heard = line.as_ref().map(|line| line.heard());
            tokio::time::sleep(every.saturating_mul(1 << self.0.doubled.load(Ordering::Relaxed))).await;
            if self.0.calls.load(Ordering::Acquire) == 0 {
                self.0.is_watched.store(false, Ordering::Release);
                // One may have begun since, and seen that there is a watch.
                let is_needed = self.0.calls.load(Ordering::Acquire) > 0;
                if !is_needed || self.0.is_watched.swap(true, Ordering::AcqRel) {
                    return;
                }
            }
            // Connecting has a time limit of its own.
            let Some(line) = line.filter(|line| Some(line.heard()) == heard) else { continue };
            let written = line.written.load(Ordering::Acquire);
            match tokio::time::timeout(within, ask(channel.clone())).await {
                Ok(Err(status)) if is_too_often(&status) => {
                    let more = |doubled| (doubled < DOUBLED).then_some(doubled + 1);
                    let _ = self.0.doubled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
                }
                Err(_) if Some(line.heard()) == heard && line.was_asked(written) => line.cut(),
                Ok(_) | Err(_) => {}
            }
        }
    }

    fn newest(&self) -> Option<Arc<Line>> {
        self.0.newest.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }
}

/// Any answer will do: the question is one that costs nothing.
async fn ask(channel: Channel) -> Result<(), Status> {
    let slots = Slot::new(0).into_iter().map(|slot| slot.number().into()).collect();
    let request = LocateRequest { slots, ..LocateRequest::default() };
    ClusterServiceClient::new(channel).locate(request).await.map(drop)
}

/// Whether a server finds that it is asked too often.
fn is_too_often(status: &Status) -> bool {
    let text = crate::refusal::whole_message(status);
    // h2 has a text for ENHANCE_YOUR_CALM, and shows the debug data of a GOAWAY.
    status.code() == Code::ResourceExhausted
        || ["too_many_pings", "ENHANCE_YOUR_CALM", "excessive load"].iter().any(|sign| text.contains(sign))
}

impl Line {
    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Acquire)
    }

    /// Whether a question left, or cannot because nothing does. It waits for its turn where a server serves no more
    /// calls at once than there are: then silence says nothing.
    fn was_asked(&self, written: u64) -> bool {
        self.written.load(Ordering::Acquire) != written || self.is_blocked.load(Ordering::Acquire)
    }

    /// Something was written, or could not be.
    pub(crate) fn write(&self, wrote: &Poll<io::Result<usize>>) {
        self.is_blocked.store(wrote.is_pending(), Ordering::Release);
        if wrote.is_ready() {
            self.written.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Something was heard.
    pub(crate) fn hear(&self) {
        self.heard.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the connection is given up; if not, who reads is woken when it is.
    pub(crate) fn is_cut(&self, reader: &std::task::Waker) -> bool {
        self.reader.register(reader);
        self.is_cut.load(Ordering::Acquire)
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.reader.wake();
    }
}

/// The runtime may end before the client does: another one watches then.
struct Watching(Pulse);

impl Drop for Watching {
    fn drop(&mut self) {
        self.0.0.is_watched.store(false, Ordering::Release);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_is_asked_too_often_is_understood() {
        for status in [
            Status::resource_exhausted("calm down"),
            Status::from_error(Box::new(std::io::Error::other(
                "GoAway(b\"too_many_pings\", ENHANCE_YOUR_CALM)",
            ))),
        ] {
            assert!(is_too_often(&status), "{status}");
        }
        assert!(!is_too_often(&Status::unimplemented("no such method")));
        assert!(!is_too_often(&Status::from_error(Box::new(std::io::Error::other("reset by peer")))));
    }
}
