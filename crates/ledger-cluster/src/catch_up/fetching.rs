//! Fetching what is missing: many short contexts with one message and one write, long ones range by range, and what a
//! load brought whole or not at all.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use ledger_core::{ContextId, Size, digest::TreeHead, ownership::Claim, slot::Slot};
use ledger_proto::ledger::v1::{FetchContext, FetchRequest, FetchedRange};
use ledger_store::{
    EntryRange, IncomingLoad, LoadDescriptor, PendingReplication,
    budget::Permit,
    replicate::replica::{Part, ReplicateOutcome},
};
use tokio::time::timeout;

use super::{CatchUp, CatchUpError, Ordering, RESPONSE_TIMEOUT, blocking, wire};
use crate::peers::service::MAX_FETCH;

/// Writes that are under way.
const MAX_PENDING_WRITES: usize = 8;
/// So many ranges are written together, or as many as have so many bytes.
const BATCH_RANGES: usize = 1024;
const BATCH_BYTES: usize = 512 << 10;
/// Contexts fetched with one question have at most so many entries beside the last one.
const BATCH_ENTRIES: u64 = 65_536;

/// A context to fetch: after a size, up to another.
pub(super) type MissingRange = (ContextId, Size, Size);

/// What was fetched and is not written yet.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    parts: Vec<Part>,
    bytes: usize,
    /// Being written, the oldest first, with what it takes.
    writing: VecDeque<(PendingReplication, Permit)>,
    load: Option<FetchedLoad>,
    /// What was asked for and has not come yet: up to which size of each context.
    wanted: HashMap<ContextId, Size>,
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
    /// `None`: the context moved on here meanwhile. It is compared again.
    arriving: Option<IncomingLoad>,
}

impl CatchUp<'_> {
    /// Fetches contexts. Some of what came may not be written yet when it returns.
    pub(super) async fn fetch(
        &mut self,
        contexts: &[MissingRange],
        fetched: &mut Fetched,
    ) -> Result<(), CatchUpError> {
        let mut rest = contexts;
        while !rest.is_empty() {
            // Few enough that a broken connection does not cost much.
            let mut entries = 0;
            let count = rest
                .iter()
                .take(MAX_FETCH)
                .take_while(|(_, after, to)| {
                    let is_room = entries < BATCH_ENTRIES;
                    entries += to.0 - after.0.min(to.0);
                    is_room
                })
                .count();
            let (batch, others) = rest.split_at(count);
            rest = others;
            self.fetch_batch(batch, fetched).await?;
        }
        Ok(())
    }

    /// Waits until all that was fetched is written.
    pub(super) async fn finish(&mut self, mut fetched: Fetched) -> Result<(), CatchUpError> {
        self.write(&mut fetched).await?;
        for (following, _held) in fetched.writing {
            self.written(following).await?;
        }
        Ok(())
    }

    /// Fetches contexts with one question.
    async fn fetch_batch(
        &mut self,
        contexts: &[MissingRange],
        fetched: &mut Fetched,
    ) -> Result<(), CatchUpError> {
        let wanted = contexts.iter().map(|(context, after, to)| FetchContext {
            context_id: context.as_str().to_owned(),
            after_size: after.0,
            to_size: to.0,
            staged: 0,
        });
        let to = Some(wire::to_member(self.source));
        let request = FetchRequest { to, contexts: wanted.collect(), packs: true };
        fetched.wanted = contexts.iter().map(|(context, _, to)| (context.clone(), *to)).collect();
        let ranges = timeout(RESPONSE_TIMEOUT, self.client.fetch(request)).await;
        let mut ranges =
            ranges.map_err(|_| CatchUpError::Peer("no answer in time".to_owned()))??.into_inner();
        loop {
            let message = timeout(RESPONSE_TIMEOUT, ranges.message()).await;
            let message = message.map_err(|_| CatchUpError::Peer("no range in time".to_owned()))??;
            let Some(mut message) = message else { break };
            let more = std::mem::take(&mut message.more);
            let mut bytes = 0;
            for range in std::iter::once(message).chain(more) {
                bytes += self.take(range, fetched).await?;
            }
            self.rate_limiter.acquire(bytes as u64).await;
        }
        // Whatever of a load is missing is fetched again, whole.
        self.has_changed |= fetched.load.take().is_some();
        // The source leaves out what it cannot read. The next comparison tells.
        let wanted = std::mem::take(&mut fetched.wanted);
        self.has_changed |= wanted.keys().any(|context| self.claims.contains_key(&Slot::of(context)));
        Ok(())
    }

    /// Takes a range; gives how many bytes it has.
    async fn take(&mut self, message: FetchedRange, fetched: &mut Fetched) -> Result<usize, CatchUpError> {
        let Some(range) = message.range else { return Ok(0) };
        let (context, range) = wire::range(range).map_err(|error| self.unread(&error))?;
        let slot = Slot::of(&context);
        let Some(claim) = self.claims.get(&slot).cloned() else {
            if self.result.refused.contains_key(&slot) {
                return Ok(0);
            }
            return Err(CatchUpError::Invalid(format!("context {context} was not asked for")));
        };
        if fetched.wanted.get(&context).is_some_and(|to| range.end() >= *to) {
            fetched.wanted.remove(&context);
        }
        let bytes = range.records.len();
        let counters = &self.shared.counters;
        counters.fetched_entries.fetch_add(range.count, Ordering::Relaxed);
        counters.fetched_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.fetched += range.count;
        let to = Size(message.together_to);
        if to > range.end() || fetched.load.as_ref().is_some_and(|load| load.context == context) {
            self.take_of_load(context, slot, claim, range, to, fetched).await?;
            return Ok(bytes);
        }
        fetched.parts.push(Part { slot, claim, context, range, is_load: to.0 > 0 });
        fetched.bytes += bytes;
        if fetched.bytes >= BATCH_BYTES || fetched.parts.len() >= BATCH_RANGES {
            self.write(fetched).await?;
        }
        Ok(bytes)
    }

    /// Hands over what was fetched, and waits while too much is being written.
    async fn write(&mut self, fetched: &mut Fetched) -> Result<(), CatchUpError> {
        let bytes = std::mem::take(&mut fetched.bytes);
        let parts = std::mem::take(&mut fetched.parts);
        let share = Arc::clone(&self.shared.replicated);
        let held = loop {
            // Nothing that is written is held while this waits.
            if let Some(held) = share.try_acquire(bytes) {
                break held;
            }
            match fetched.writing.pop_front() {
                Some((oldest, _held)) => self.written(oldest).await?,
                None => break share.acquire(bytes).await,
            }
        };
        fetched.writing.push_back((self.shared.ledger.replicate(parts, 0).await?, held));
        if fetched.writing.len() >= MAX_PENDING_WRITES
            && let Some((oldest, _held)) = fetched.writing.pop_front()
        {
            self.written(oldest).await?;
        }
        Ok(())
    }

    async fn written(&mut self, following: PendingReplication) -> Result<(), CatchUpError> {
        for taken in following.durable().await? {
            match taken {
                ReplicateOutcome::Durable(_) => {}
                ReplicateOutcome::Gap | ReplicateOutcome::Diverged => self.has_changed = true,
                ReplicateOutcome::Refused { slot, by, .. } => self.refused(slot, by),
                ReplicateOutcome::Invalid(reason) => return Err(CatchUpError::Invalid(reason)),
            }
        }
        Ok(())
    }

    /// Stages a range of a load, and has the load put in place when all of it is there.
    async fn take_of_load(
        &mut self,
        context: ContextId,
        slot: Slot,
        claim: Claim,
        range: EntryRange,
        to: Size,
        fetched: &mut Fetched,
    ) -> Result<(), CatchUpError> {
        if fetched.load.as_ref().is_none_or(|load| load.context != context) {
            // What was fetched of the context before comes before it.
            self.write(fetched).await?;
            for (following, _held) in std::mem::take(&mut fetched.writing) {
                self.written(following).await?;
            }
            let announced = LoadDescriptor::of_range(&range, to, None);
            let (ledger, of) = (self.shared.ledger.clone(), context.clone());
            let arriving = blocking(move || ledger.stage_load(&of, announced)).await?;
            let begin = EntryRange { records: bytes::Bytes::new(), ..range.clone() };
            self.has_changed |= arriving.is_none();
            fetched.load = Some(FetchedLoad { context, slot, claim, begin, to, arriving });
        }
        let Some(load) = &mut fetched.load else { return Ok(()) };
        let Some(mut arriving) = load.arriving.take() else { return Ok(()) };
        let arriving = blocking(move || {
            arriving.take(&range)?;
            Ok(arriving)
        });
        load.arriving = Some(arriving.await?);
        let is_whole = load.arriving.as_ref().is_some_and(|arriving| arriving.missing().is_none());
        if is_whole
            && let Some(FetchedLoad { context, slot, claim, begin, to, arriving, .. }) = fetched.load.take()
        {
            let Some(arriving) = arriving else { return Ok(()) };
            let staged = blocking(move || arriving.finish()).await?;
            let TreeHead { root, .. } = staged.to();
            let count = to.0 - begin.after.size.0;
            let range = EntryRange { count, root, ..begin };
            let part = Part { slot, claim, context, range, is_load: true };
            let following = self.shared.ledger.replicate(vec![part], 0).await?;
            self.written(following).await?;
            // If it was not put in place it never is.
            blocking(move || {
                drop(staged);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }
}
