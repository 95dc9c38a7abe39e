//! Fetching what is missing: many short contexts with one message and one write, long ones range by range, and what a
//! load brought whole or not at all.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, atomic::Ordering},
};

use ledger_core::{
    ContextId, Size,
    catch_up::{ArrivedRange, Event, Failure, LoadResult, MAX_FETCH, RangeUse, WantedRange, WriteResult},
    digest::TreeHead,
    ownership::Claim,
    slot::Slot,
};
use ledger_proto::ledger::v1::{FetchContext, FetchRequest, FetchedRange};
use ledger_store::{
    EntryRange, IncomingLoad, LoadDescriptor, PendingFetched, StoreError, budget::Permit,
    replicate::replica::Part,
};
use tokio::time::timeout;

use super::{CatchUpError, RESPONSE_TIMEOUT, Run, blocking, wire};

/// Writes that are under way.
const MAX_PENDING_WRITES: usize = 8;
/// So many ranges are written together, or as many as have so many bytes.
const BATCH_RANGES: usize = 1024;
const BATCH_BYTES: usize = 512 << 10;
/// Most ranges that a message may have beside its first.
const MAX_MORE: usize = 4 * MAX_FETCH;

/// What was fetched and is not written yet.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    parts: Vec<Part>,
    bytes: usize,
    /// Being written, the oldest first, with what it takes.
    writing: VecDeque<(PendingFetched, Permit)>,
    load: Option<FetchedLoad>,
}

/// What a load brought, as it comes.
#[derive(Debug)]
struct FetchedLoad {
    context: ContextId,
    slot: Slot,
    claim: Claim,
    /// The range with which it begins, without its records.
    begin: EntryRange,
    to: Size,
    arriving: IncomingLoad,
}

impl Run<'_> {
    /// Fetches contexts with one question. Some of what came may not be written yet when it returns.
    pub(super) async fn fetch(&mut self, wanted: Vec<WantedRange>) {
        self.shared.counters.differing.fetch_add(wanted.len() as u64, Ordering::Relaxed);
        match self.try_fetch(wanted).await {
            // However the response ended: the machine knows whether all came.
            Ok(()) => self.step(Event::FetchEnded),
            Err(CatchUpError::Store(error)) => self.step(Event::DiskRefuses(error.to_string())),
            Err(error) => self.step(Event::SourceLost(error.to_string())),
        }
        // Whatever of a load is missing is fetched again, whole.
        self.give_up_load().await;
    }

    async fn try_fetch(&mut self, wanted: Vec<WantedRange>) -> Result<(), CatchUpError> {
        let wanted = wanted.into_iter().map(|WantedRange { context, after, to }| FetchContext {
            context_id: context.as_str().to_owned(),
            after_size: after.0,
            to_size: to.0,
            staged: 0,
        });
        let to = Some(wire::to_member(self.source));
        let request = FetchRequest { to, contexts: wanted.collect(), packs: true };
        let ranges = timeout(RESPONSE_TIMEOUT, self.client.fetch(request)).await;
        let mut ranges =
            ranges.map_err(|_| CatchUpError::Peer("no answer in time".to_owned()))??.into_inner();
        while !self.machine.is_over() {
            let message = timeout(RESPONSE_TIMEOUT, ranges.message()).await;
            let message = message.map_err(|_| CatchUpError::Peer("no range in time".to_owned()))??;
            let Some(mut message) = message else { break };
            let more = std::mem::take(&mut message.more);
            if more.len() > MAX_MORE {
                return Err(CatchUpError::Invalid("too many ranges in a message".to_owned()));
            }
            let mut bytes = 0;
            let mut is_end = false;
            for item in std::iter::once(message).chain(more) {
                if item.end.is_some() {
                    is_end = true;
                    break;
                }
                bytes += self.take(item).await?;
            }
            self.rate_limiter.acquire(bytes as u64).await;
            if is_end {
                break;
            }
        }
        Ok(())
    }

    /// Takes a range, or why there is none. Returns how many bytes it has.
    async fn take(&mut self, message: FetchedRange) -> Result<usize, CatchUpError> {
        if let Some(missing) = &message.missing {
            let (context, missing) = wire::missing(missing).map_err(|error| self.rejected(&error))?;
            self.step(Event::Missing(context, missing));
            return Ok(0);
        }
        let whole = wire::whole(&message).map_err(|error| self.rejected(&error))?;
        let Some(range) = message.range else { return Ok(0) };
        let (context, range) = wire::range(range).map_err(|error| self.rejected(&error))?;
        let bytes = range.records.len();
        let counters = &self.shared.counters;
        counters.fetched_entries.fetch_add(range.count, Ordering::Relaxed);
        counters.fetched_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let (used, effects) = self.machine.on_range(&ArrivedRange {
            context: &context,
            after: range.after.size,
            end: TreeHead { size: range.end(), root: range.root },
            together_to: Some(Size(message.together_to)).filter(|to| to.0 > 0),
            whole,
        });
        self.todo.extend(effects);
        match used {
            RangeUse::Skip => {}
            RangeUse::Write { slot, claim, is_load } => {
                self.fetched.parts.push(Part { slot, claim, context, range, is_load });
                self.fetched.bytes += bytes;
                if self.fetched.bytes >= BATCH_BYTES || self.fetched.parts.len() >= BATCH_RANGES {
                    self.write().await?;
                }
            }
            RangeUse::Stage { slot, claim, to, is_first, is_last } => {
                let result = self.stage(context.clone(), slot, claim, range, to, (is_first, is_last)).await;
                let result =
                    result.unwrap_or_else(|error| LoadResult::Failed(Failure::Store(error.to_string())));
                self.step(Event::Loaded(context, result));
            }
        }
        Ok(bytes)
    }

    /// Waits until all that was fetched is written.
    pub(super) async fn finish_writes(&mut self) {
        if let Err(error) = self.write().await {
            self.step(Event::DiskRefuses(error.to_string()));
        }
        while let Some((oldest, _held)) = self.fetched.writing.pop_front() {
            self.written(oldest).await;
        }
    }

    /// Hands over what was fetched, and waits while too much is being written.
    async fn write(&mut self) -> Result<(), StoreError> {
        let bytes = std::mem::take(&mut self.fetched.bytes);
        let parts = std::mem::take(&mut self.fetched.parts);
        if parts.is_empty() {
            return Ok(());
        }
        let share = Arc::clone(&self.shared.replicated);
        let held = loop {
            // Nothing that is written is held while this waits.
            if let Some(held) = share.try_acquire(bytes) {
                break held;
            }
            match self.fetched.writing.pop_front() {
                Some((oldest, _held)) => self.written(oldest).await,
                None => break share.acquire(bytes).await,
            }
        };
        self.fetched.writing.push_back((self.shared.ledger.replicate_fetched(parts).await?, held));
        if self.fetched.writing.len() >= MAX_PENDING_WRITES
            && let Some((oldest, _held)) = self.fetched.writing.pop_front()
        {
            self.written(oldest).await;
        }
        Ok(())
    }

    async fn written(&mut self, pending: PendingFetched) {
        // A slot moves as a whole.
        let mut moved = BTreeSet::new();
        for (slot, outcome) in pending.durable().await {
            let result = match outcome {
                Ok(outcome) => WriteResult::of(outcome),
                Err(error) => Some(WriteResult::Failed(Failure::Store(error.to_string()))),
            };
            let Some(result) = result else { continue };
            if result == WriteResult::Moved && !moved.insert(slot) {
                continue;
            }
            self.step(Event::Written(slot, result));
        }
    }

    /// Stages a range of a load, and has the load put in place when all of it is there.
    async fn stage(
        &mut self,
        context: ContextId,
        slot: Slot,
        claim: Claim,
        range: EntryRange,
        to: Size,
        (is_first, is_last): (bool, bool),
    ) -> Result<LoadResult, CatchUpError> {
        if is_first {
            self.give_up_load().await;
            // What was fetched of the context before comes before it.
            self.finish_writes().await;
            let announced = LoadDescriptor::of_range(&range, to, None);
            let (ledger, of) = (self.shared.ledger.clone(), context.clone());
            let Some(arriving) = blocking(move || ledger.stage_load(&of, announced)).await? else {
                return Ok(LoadResult::Moved);
            };
            let begin = EntryRange { records: bytes::Bytes::new(), ..range.clone() };
            self.fetched.load = Some(FetchedLoad { context, slot, claim, begin, to, arriving });
        }
        let Some(mut load) = self.fetched.load.take() else { return Ok(LoadResult::Moved) };
        load = blocking(move || {
            load.arriving.take(&range)?;
            Ok(load)
        })
        .await?;
        if is_last {
            return self.install(load).await;
        }
        self.fetched.load = Some(load);
        Ok(LoadResult::Taken)
    }

    /// Puts a staged load in place.
    async fn install(&mut self, load: FetchedLoad) -> Result<LoadResult, CatchUpError> {
        let FetchedLoad { context, slot, claim, begin, to, arriving } = load;
        let staged = blocking(move || arriving.finish()).await?;
        let TreeHead { root, .. } = staged.to();
        let count = to.0 - begin.after.size.0;
        let range = EntryRange { count, root, ..begin };
        let part = Part { slot, claim, context, range, is_load: true };
        let pending = self.shared.ledger.replicate_fetched(vec![part]).await?;
        self.written(pending).await;
        // If it was not put in place it never is.
        blocking(move || {
            drop(staged);
            Ok(())
        })
        .await?;
        Ok(LoadResult::Taken)
    }

    /// Removes what is staged of a load that did not come whole.
    async fn give_up_load(&mut self) {
        if let Some(load) = self.fetched.load.take() {
            let removed = blocking(move || {
                drop(load);
                Ok(())
            });
            if let Err(error) = removed.await {
                tracing::debug!(%error, "what was staged of a load is removed later");
            }
        }
    }
}
