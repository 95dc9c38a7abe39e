//! Sends entries to a node that fetches them: ranges of long contexts, and many short ones per message.

use std::{collections::HashMap, sync::Arc, thread::sleep, time::Instant};

use bytes::Bytes;
use ledger_core::{
    ContextId,
    catch_up::{FetchAnswer, Missing, RangeEnd, WantedRange},
};
use ledger_proto::ledger::v1::FetchedRange;
use ledger_store::{
    Ledger, SentRange, StoreError,
    budget::{Permit, Share},
    limited,
};
use tokio::{runtime::Handle, sync::mpsc::Sender};
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
/// What a range takes in a message beside its records: names and roots.
const RANGE_OVERHEAD_BYTES: usize = 512;
/// Memory that is taken before the ranges of a message are read: the last of them may exceed [`PACK_BYTES`].
const MESSAGE_BYTES: usize = PACK_BYTES + RANGE_BYTES + PACK_RANGES * RANGE_OVERHEAD_BYTES;

/// A message, with the memory that it takes until the connection has it.
pub(crate) type ChargedRanges = (Result<FetchedRange, Status>, Option<Permit>);

/// Sends ranges to one node.
#[derive(Debug)]
pub(crate) struct RangeSender {
    ledger: Ledger,
    load: Arc<CatchUpThrottle>,
    sender: Sender<ChargedRanges>,
    /// Memory for entries on their way to nodes that catch up.
    share: Arc<Share>,
    /// The numbers of staged loads that have the entries of these contexts.
    staged: HashMap<ContextId, u64>,
    /// Whether the receiver accepts several ranges in a message.
    packs: bool,
    pack: Vec<FetchedRange>,
    /// The memory for the message that is being made.
    held: Option<Permit>,
    bytes: usize,
    rate_limiter: RateLimiter,
}

/// The receiver is gone, or was sent the error that ended the response.
struct FetchEnded;

impl RangeSender {
    pub(crate) fn new(
        ledger: Ledger,
        load: Arc<CatchUpThrottle>,
        sender: Sender<ChargedRanges>,
        share: Arc<Share>,
        staged: HashMap<ContextId, u64>,
        packs: bool,
    ) -> Self {
        let rate_limiter = RateLimiter::new(0);
        Self {
            ledger,
            load,
            sender,
            share,
            staged,
            packs,
            pack: Vec::new(),
            held: None,
            bytes: 0,
            rate_limiter,
        }
    }

    /// Sends everything requested, in order, then that it is the end. Blocks.
    pub(crate) fn send_all(mut self, wanted: Vec<WantedRange>) {
        // If the receiver is gone, nobody needs the rest.
        let _ = self.try_send_all(FetchAnswer::new(wanted));
    }

    fn try_send_all(&mut self, mut answer: FetchAnswer) -> Result<(), FetchEnded> {
        while let Some(wanted) = answer.wanted() {
            self.reserve()?;
            match self.read(wanted) {
                Ok(SentRange { range, together_to, whole }) => {
                    let message = FetchedRange {
                        range: Some(wire::to_range(&wanted.context, &range)),
                        together_to: together_to.map_or(0, |to| to.0),
                        whole_size: whole.map_or(0, |whole| whole.size.0),
                        whole_root: whole
                            .map_or_else(Bytes::new, |whole| Bytes::copy_from_slice(&whole.root.0)),
                        ..FetchedRange::default()
                    };
                    answer.on_range(RangeEnd { end: range.end(), together_to });
                    self.push(message, range.records.len())?;
                    self.yield_to_appends(range.count);
                }
                // The node stops. The ranges read before are good.
                Err(error @ StoreError::Closed) => {
                    self.send()?;
                    let _ = self.sender.blocking_send((Err(failed(error)), None));
                    return Err(FetchEnded);
                }
                Err(error) => {
                    let message = wire::to_missing(&wanted.context, missing(&wanted.context, &error));
                    answer.on_missing();
                    self.push(message, 0)?;
                }
            }
        }
        self.push(wire::to_fetch_end(), 0)?;
        self.send()
    }

    /// Waits for the memory of the next message. Nothing else is held meanwhile, so no two that wait wait for each other.
    fn reserve(&mut self) -> Result<(), FetchEnded> {
        if self.held.is_some() {
            return Ok(());
        }
        let held = self.share.try_acquire(MESSAGE_BYTES).or_else(|| {
            Handle::current().block_on(async {
                tokio::select! {
                    held = self.share.acquire(MESSAGE_BYTES) => Some(held),
                    () = self.sender.closed() => None,
                }
            })
        });
        self.held = Some(held.ok_or(FetchEnded)?);
        Ok(())
    }

    fn read(&self, wanted: &WantedRange) -> Result<SentRange, StoreError> {
        let WantedRange { context, after, to } = wanted;
        match self.staged.get(context) {
            None => self.ledger.range_to_send(context, *after, *to, RANGE_BYTES),
            Some(number) => {
                let range = self.ledger.staged_range(*number, context, *after, *to, RANGE_BYTES)?;
                Ok(SentRange { range, together_to: None, whole: None })
            }
        }
    }

    fn push(&mut self, message: FetchedRange, bytes: usize) -> Result<(), FetchEnded> {
        self.bytes += bytes;
        self.pack.push(message);
        if !self.packs || self.bytes >= PACK_BYTES || self.pack.len() >= PACK_RANGES {
            self.send()
        } else {
            Ok(())
        }
    }

    /// Appends have priority over nodes that catch up.
    fn yield_to_appends(&mut self, entries: u64) {
        if self.ledger.waiting() > 0 {
            let rate = self.load.allowed_rate(Instant::now(), self.ledger.appended());
            sleep(self.rate_limiter.take(entries, rate));
        }
    }

    fn send(&mut self) -> Result<(), FetchEnded> {
        let bytes = std::mem::take(&mut self.bytes) + self.pack.len() * RANGE_OVERHEAD_BYTES;
        let mut pack = std::mem::take(&mut self.pack).into_iter();
        let Some(mut first) = pack.next() else { return Ok(()) };
        first.more = pack.collect();
        let mut held = self.held.take();
        if let Some(held) = &mut held {
            // Most ranges are shorter than they may be; one entry may be longer.
            held.resize(bytes);
        }
        self.sender.blocking_send((Ok(first), held)).map_err(|_| FetchEnded)
    }
}

/// Returns why a context's entries could not be read. The others of the request go on.
fn missing(context: &ContextId, error: &StoreError) -> Missing {
    let missing = match error {
        StoreError::Damaged { .. } => Missing::Unreadable,
        StoreError::OutOfRange { .. } => Missing::Shorter,
        _ => Missing::Failed,
    };
    if missing == Missing::Failed {
        limited!(warn, %context, %error, "entries cannot be read for a node that fetches them");
    } else {
        tracing::debug!(%context, %error, "a context is not given to a node that fetches it");
    }
    missing
}
