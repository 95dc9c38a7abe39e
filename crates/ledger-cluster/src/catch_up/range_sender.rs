//! Sends entries to a node that fetches them: ranges of long contexts, and many short ones per message.

use std::{sync::Arc, thread::sleep, time::Instant};

use ledger_core::{ContextId, Size};
use ledger_proto::ledger::v1::FetchedRange;
use ledger_store::{Ledger, StoreError};
use tokio::sync::mpsc::Sender;
use tonic::Status;

use crate::{
    catch_up::rate_limiter::RateLimiter, catch_up::throttle::CatchUpThrottle, peers::service::failed,
    peers::wire,
};

/// Size of a range, in bytes.
const RANGE_BYTES: usize = 1 << 20;
/// Ranges are sent when together they have this many bytes, or are [`PACK_RANGES`].
const PACK_BYTES: usize = 256 << 10;
const PACK_RANGES: usize = 256;

/// The requested entries of a context: after one size, up to another.
#[derive(Debug)]
pub(crate) struct RangeRequest {
    pub(crate) context: ContextId,
    pub(crate) after: Size,
    pub(crate) to: Size,
    /// If not 0: the number of a staged load that has the entries.
    pub(crate) staged: u64,
}

/// Sends ranges to one node.
#[derive(Debug)]
pub(crate) struct RangeSender {
    ledger: Ledger,
    load: Arc<CatchUpThrottle>,
    sender: Sender<Result<FetchedRange, Status>>,
    /// Whether the receiver accepts several ranges in a message.
    packs: bool,
    pack: Vec<FetchedRange>,
    bytes: usize,
    rate_limiter: RateLimiter,
}

/// The receiver is gone, or was sent the error that ended the response.
struct FetchEnded;

impl RangeSender {
    pub(crate) fn new(
        ledger: Ledger,
        load: Arc<CatchUpThrottle>,
        sender: Sender<Result<FetchedRange, Status>>,
        packs: bool,
    ) -> Self {
        Self { ledger, load, sender, packs, pack: Vec::new(), bytes: 0, rate_limiter: RateLimiter::new(0) }
    }

    /// Sends everything requested, in order. Blocks.
    pub(crate) fn send_all(mut self, wanted: Vec<RangeRequest>) {
        for wanted in wanted {
            if self.send_range(wanted).is_err() {
                return;
            }
        }
        // If the receiver is gone, nobody needs the rest.
        let _ = self.send();
    }

    fn send_range(&mut self, wanted: RangeRequest) -> Result<(), FetchEnded> {
        let RangeRequest { context, mut after, mut to, staged } = wanted;
        while after < to {
            let read = if staged == 0 {
                self.ledger.range_together(&context, after, to, RANGE_BYTES)
            } else {
                self.ledger.staged_range(staged, &context, after, to, RANGE_BYTES).map(|range| (range, None))
            };
            let (range, together) = match read {
                Ok(read) => read,
                // Continue with the other contexts of the request.
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::debug!(%context, %error, "a damaged context is not given to a node that fetches it");
                    return Ok(());
                }
                Err(error) => {
                    // The ranges read before the error are good.
                    self.send()?;
                    let _ = self.sender.blocking_send(Err(failed(error)));
                    return Err(FetchEnded);
                }
            };
            after = range.end();
            // A load must be sent up to its end, even beyond the requested size.
            to = together.map_or(to, |together| to.max(together));
            self.bytes += range.records.len();
            self.pack.push(FetchedRange {
                range: Some(wire::to_range(&context, &range)),
                together_to: together.map_or(0, |to| to.0),
                more: Vec::new(),
            });
            if !self.packs || self.bytes >= PACK_BYTES || self.pack.len() >= PACK_RANGES {
                self.send()?;
            }
            // Appends have priority over nodes that catch up.
            if self.ledger.waiting() > 0 {
                let rate = self.load.allowed_rate(Instant::now(), self.ledger.appended());
                sleep(self.rate_limiter.take(range.count, rate));
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), FetchEnded> {
        self.bytes = 0;
        let mut pack = std::mem::take(&mut self.pack).into_iter();
        let Some(mut first) = pack.next() else { return Ok(()) };
        first.more = pack.collect();
        self.sender.blocking_send(Ok(first)).map_err(|_| FetchEnded)
    }
}
