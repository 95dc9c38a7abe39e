//! Giving entries to a node that fetches them: ranges of long contexts, and many short ones in one message.

use std::{sync::Arc, thread::sleep, time::Instant};

use ledger_core::{ContextId, Size};
use ledger_proto::ledger::v1::FetchedRange;
use ledger_store::{Ledger, StoreError};
use tokio::sync::mpsc::Sender;
use tonic::Status;

use crate::{load::Load, pace::Pace, service::failed, wire};

/// Bytes of a range.
const RANGE: usize = 1 << 20;
/// Ranges are sent when they have so many bytes, or are so many.
const PACK_BYTES: usize = 256 << 10;
const PACK: usize = 256;

/// Entries that are wanted: of a context, after a size, up to another.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) context: ContextId,
    pub(crate) after: Size,
    pub(crate) to: Size,
    /// If not 0: of the load that is staged under this number.
    pub(crate) staged: u64,
}

/// Gives entries.
#[derive(Debug)]
pub(crate) struct Giver {
    ledger: Ledger,
    load: Arc<Load>,
    sender: Sender<Result<FetchedRange, Status>>,
    /// Whether the one who fetches takes several ranges in a message.
    packs: bool,
    pack: Vec<FetchedRange>,
    bytes: usize,
    pace: Pace,
}

/// The one who fetches has gone, or was told why there is no more.
struct Over;

impl Giver {
    pub(crate) fn new(
        ledger: Ledger,
        load: Arc<Load>,
        sender: Sender<Result<FetchedRange, Status>>,
        packs: bool,
    ) -> Self {
        Self { ledger, load, sender, packs, pack: Vec::new(), bytes: 0, pace: Pace::new(0) }
    }

    /// Gives all that is wanted, in order. Blocks.
    pub(crate) fn give_all(mut self, wanted: Vec<Wanted>) {
        for wanted in wanted {
            if self.give(wanted).is_err() {
                return;
            }
        }
        // If the other one has gone nobody misses it.
        let _ = self.send();
    }

    fn give(&mut self, wanted: Wanted) -> Result<(), Over> {
        let Wanted { context, mut after, mut to, staged } = wanted;
        while after < to {
            let read = if staged == 0 {
                self.ledger.range_together(&context, after, to, RANGE)
            } else {
                self.ledger.staged_range(staged, &context, after, to, RANGE).map(|range| (range, None))
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
                    return Err(Over);
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
            if !self.packs || self.bytes >= PACK_BYTES || self.pack.len() >= PACK {
                self.send()?;
            }
            // Appends come first: whoever catches up has time.
            if self.ledger.waiting() > 0 {
                let rate = self.load.may_give(Instant::now(), self.ledger.appended());
                sleep(self.pace.take(range.count, rate));
            }
        }
        Ok(())
    }

    fn send(&mut self) -> Result<(), Over> {
        self.bytes = 0;
        let mut pack = std::mem::take(&mut self.pack).into_iter();
        let Some(mut first) = pack.next() else { return Ok(()) };
        first.more = pack.collect();
        self.sender.blocking_send(Ok(first)).map_err(|_| Over)
    }
}
