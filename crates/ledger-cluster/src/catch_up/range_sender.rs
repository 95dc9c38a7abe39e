//! Giving entries to a node that fetches them: ranges of long contexts, and many short ones in one message.

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

/// Bytes of a range.
const RANGE_BYTES: usize = 1 << 20;
/// Ranges are sent when they have so many bytes, or are so many.
const PACK_BYTES: usize = 256 << 10;
const PACK_RANGES: usize = 256;

/// Entries that are wanted: of a context, after a size, up to another.
#[derive(Debug)]
pub(crate) struct RangeRequest {
    pub(crate) context: ContextId,
    pub(crate) after: Size,
    pub(crate) to: Size,
    /// If not 0: of the load that is staged under this number.
    pub(crate) staged: u64,
}

/// Gives entries.
#[derive(Debug)]
pub(crate) struct RangeSender {
    ledger: Ledger,
    load: Arc<CatchUpThrottle>,
    sender: Sender<Result<FetchedRange, Status>>,
    /// Whether the one who fetches takes several ranges in a message.
    packs: bool,
    pack: Vec<FetchedRange>,
    bytes: usize,
    rate_limiter: RateLimiter,
}

/// The one who fetches has gone, or was told why there is no more.
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

    /// Gives all that is wanted, in order. Blocks.
    pub(crate) fn send_all(mut self, wanted: Vec<RangeRequest>) {
        for wanted in wanted {
            if self.send_range(wanted).is_err() {
                return;
            }
        }
        // If the other one has gone nobody misses it.
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
                // Others of the same question come all the same.
                Err(error @ StoreError::Damaged { .. }) => {
                    tracing::debug!(%context, %error, "a damaged context is not given to a node that fetches it");
                    return Ok(());
                }
                Err(error) => {
                    // What came before it is good.
                    self.send()?;
                    let _ = self.sender.blocking_send(Err(failed(error)));
                    return Err(FetchEnded);
                }
            };
            after = range.end();
            // A load ends where it ends, whatever was wanted.
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
            // Appends come first: whoever catches up has time.
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
