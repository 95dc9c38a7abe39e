//! A lane in a cluster: accepting what other nodes' lanes wrote.
//!
//! The lane checks every part before it stages anything: the claim against the slot's record, that the part continues
//! the history here, and every entry against its hash. The root at the end proves that the whole history equals the
//! owner's.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;
use ledger_core::{
    ContextId, Head, Size,
    digest::TreeHead,
    loads::LoadSpan,
    replication::{RangeFit, fit},
    slot::Slot,
};

use super::{Db, Lane, Part, ReplicateOutcome, StagedCommit, StoreError, WriteOrigin, staging};
use crate::{
    replicate::verify::{RangeCheck, check},
    write::commit::StagedContext,
    write::state::ContextState,
};

/// A part after a larger gap than this is not buffered: fetching the gap fetches what follows as well.
const MAX_OUT_OF_ORDER_GAP: u64 = 16_384;
/// Most bytes of parts in a lane that wait for what comes before them.
const MAX_OUT_OF_ORDER_BYTES: usize = 32 << 20;

/// Parts that arrived before what they continue, by context, in order of arrival.
#[derive(Debug, Default)]
pub(super) struct OutOfOrderBuffer {
    contexts: HashMap<ContextId, VecDeque<(Part, u64)>, RandomState>,
    bytes: usize,
}

impl OutOfOrderBuffer {
    fn push(&mut self, part: Part, number: u64) {
        if self.bytes + part.range.records.len() > MAX_OUT_OF_ORDER_BYTES {
            // Without the first of them, the other parts of a context are useless.
            self.forget(&part.context);
            return;
        }
        self.bytes += part.range.records.len();
        self.contexts.entry(part.context.clone()).or_default().push_back((part, number));
    }

    /// Returns the next part of a context.
    fn next(&mut self, context: &ContextId, size: Size) -> Option<(Part, u64)> {
        let parts = self.contexts.get_mut(context)?;
        if parts.front().is_some_and(|(part, _)| part.range.after.size > size) {
            return None;
        }
        let next = parts.pop_front();
        if parts.is_empty() {
            self.contexts.remove(context);
        }
        if let Some((part, _)) = &next {
            self.bytes -= part.range.records.len();
        }
        next
    }

    pub(super) fn forget(&mut self, context: &ContextId) {
        if let Some(parts) = self.contexts.remove(context) {
            self.bytes -= parts.iter().map(|(part, _)| part.range.records.len()).sum::<usize>();
        }
    }
}

impl Lane {
    /// Stages a part of another node's commit, or (with number 0) a fetched range.
    pub(super) fn apply_part(
        &mut self,
        db: &Db,
        staged: &mut StagedCommit,
        part: Part,
        number: u64,
    ) -> ReplicateOutcome {
        let context = part.context.clone();
        let is_strict = number > 0 && self.in_sync_claims.get(&part.slot) == Some(&part.claim);
        match self.try_apply_part(db, staged, part, number, is_strict) {
            // The owner counts this replica's acknowledgement, so a missing entry must not be acknowledged: break the
            // stream.
            Ok(ReplicateOutcome::Gap | ReplicateOutcome::Diverged) if is_strict => {
                ReplicateOutcome::Invalid(format!("it does not continue context {context} here"))
            }
            Ok(ReplicateOutcome::Durable(size)) => self.drain_out_of_order(db, staged, &context, size),
            Ok(taken) => taken,
            Err(error) => {
                self.shared.quarantine.record(&error);
                match error {
                    // The context is restored before the slot gets in sync; until then what arrives has a gap before
                    // it.
                    StoreError::Damaged { .. } if !is_strict => ReplicateOutcome::Gap,
                    error => ReplicateOutcome::Invalid(error.to_string()),
                }
            }
        }
    }

    /// Stages buffered parts that what was just staged allows.
    fn drain_out_of_order(
        &mut self,
        db: &Db,
        staged: &mut StagedCommit,
        context: &ContextId,
        mut size: Size,
    ) -> ReplicateOutcome {
        while let Some((part, number)) = self.out_of_order.next(context, size) {
            match self.try_apply_part(db, staged, part, number, false) {
                Ok(ReplicateOutcome::Durable(now)) => size = now,
                // A fetch brings it instead.
                _ => self.out_of_order.forget(context),
            }
        }
        ReplicateOutcome::Durable(size)
    }

    fn try_apply_part(
        &mut self,
        db: &Db,
        staged: &mut StagedCommit,
        part: Part,
        number: u64,
        is_strict: bool,
    ) -> Result<ReplicateOutcome, StoreError> {
        let slot = part.slot;
        if slot != Slot::of(&part.context) {
            return Ok(ReplicateOutcome::Invalid(format!(
                "context {} is not of slot {}",
                part.context,
                slot.number()
            )));
        }
        if let Err(refused) = self.record(db, slot)?.check_replicate(&part.claim) {
            return Ok(ReplicateOutcome::Refused { slot, claim: part.claim, by: refused.promised });
        }
        if !is_strict && self.in_sync_claims.get(&slot) == Some(&part.claim) {
            // The part was fetched or buffered before the slot got in sync: this replica has those entries, and the
            // stream brings the rest.
            return Ok(ReplicateOutcome::Durable(part.range.end()));
        }
        if !is_strict && self.shared.visibility.is_withheld(slot) {
            // This write is not known to be committed, and no number in the stream says when it is: hide the slot.
            if let Some(copies) = &self.replication {
                copies.hide_diverged(&self.shared, slot);
            }
        }
        let origin = WriteOrigin::Replicated(part.claim.epoch, number);
        if !staged.contexts.contains_key(&part.context) {
            let staged_context = self.replicated_context_state(db, &part, origin)?;
            staged.contexts.insert(part.context.clone(), staged_context);
        }
        let Some(staged_context) = staged.contexts.get_mut(&part.context) else {
            return Err(StoreError::Closed);
        };
        staged_context.origin = origin;
        let here = staged_context.state.head.size();
        let skip = match fit(here, part.range.after.size, part.range.count) {
            RangeFit::Continues { skip } => skip,
            RangeFit::AlreadyHere => {
                let is_same =
                    here != part.range.end() || staged_context.state.extent().root == part.range.root;
                return Ok(if is_same {
                    ReplicateOutcome::Durable(here)
                } else {
                    ReplicateOutcome::Diverged
                });
            }
            RangeFit::Gap { missing } => {
                if !is_strict && number > 0 && missing <= MAX_OUT_OF_ORDER_GAP && !part.is_staged() {
                    self.out_of_order.push(part, number);
                }
                return Ok(ReplicateOutcome::Gap);
            }
        };
        if skip == 0 && staged_context.state.extent().root != part.range.after.root {
            return Ok(ReplicateOutcome::Diverged);
        }
        if part.is_staged() {
            let (after, end) = (part.range.after, TreeHead { size: part.range.end(), root: part.range.root });
            if skip > 0 || staged_context.loaded.is_some() {
                return Ok(ReplicateOutcome::Gap);
            }
            let Some(arrived) = self.shared.staged_loads.take(&part.context, &after, &end) else {
                return Ok(ReplicateOutcome::Gap);
            };
            staging::check(db, arrived.generation, &part.context)?;
            staged.entries += usize::try_from(part.range.count).unwrap_or(usize::MAX);
            staged_context.load(arrived.state);
            return Ok(ReplicateOutcome::Durable(end.size));
        }
        let verified = match check(&part.context, &staged_context.state.head, &part.range, skip)? {
            RangeCheck::Continues(verified) => verified,
            RangeCheck::Diverged => return Ok(ReplicateOutcome::Diverged),
        };
        if part.is_load {
            let after = staged_context.loaded.map_or(here, |before| before.after);
            staged_context.loaded = Some(LoadSpan { after, to: part.range.end() });
        }
        staged_context.appended += verified.entries.len() as u64;
        staged.entries += verified.entries.len();
        let watched = &mut staged_context.watched;
        staged_context.state.accept_verified(db, &mut staged.batch, verified, |entry| {
            if let Some(watched) = watched {
                watched.push(entry);
            }
        })?;
        Ok(ReplicateOutcome::Durable(part.range.end()))
    }

    fn replicated_context_state(
        &mut self,
        db: &Db,
        part: &Part,
        origin: WriteOrigin,
    ) -> Result<StagedContext, StoreError> {
        let known = match self.cache.remove(&part.context) {
            Some((_, state)) => Some(state),
            None => ContextState::load(db, &part.context)?,
        };
        let state = if let Some(state) = known {
            state
        } else {
            let place = self.allocate_rows(db, part.slot)?;
            ContextState::new(
                place,
                Head::new(part.range.suite, part.range.lineage, part.range.created_at_ns),
            )
        };
        let tails = &self.shared.tails;
        let is_watched = !tails.is_idle() && tails.find(&part.context).is_some();
        Ok(StagedContext::new(state, is_watched, origin))
    }
}
