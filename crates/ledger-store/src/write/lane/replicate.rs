//! A lane in a cluster: writing what other nodes' lanes wrote.
//!
//! [`ledger_core::replication::replica`] decides about every part before the lane stages anything: by the claim and
//! the slot's record, and by whether the part continues the history here. The lane checks every entry against its hash.
//! The root at the end proves that the whole history equals the owner's.

use ledger_core::{
    Head,
    digest::TreeHead,
    loads::LoadSpan,
    ownership::{RefusedPart, WhyRefused},
    replication::replica::{
        Admission, Admitted, LocalHistory, PartDecision, PartHeader, PartResult, PartSource,
    },
    slot::Slot,
};

use super::{BufferedPart, Lane};
use crate::{
    StoreError,
    engine::db::Db,
    replicate::replica::{Part, ReplicateOutcome},
    replicate::verify::{RangeCheck, check},
    write::commit::{StagedCommit, StagedContext},
    write::staging,
    write::state::ContextState,
    write::written_context::WriteOrigin,
};

/// What a buffered part takes beside its records: names, claim, and its place in the buffer.
const BUFFERED_PART_BYTES: usize = 512;

impl Lane {
    /// Stages a part of another node's commit, or (with number 0) a fetched range; then the parts that waited for it.
    pub(super) fn apply_part(
        &mut self,
        db: &Db,
        staged: &mut StagedCommit,
        part: Part,
        number: u64,
    ) -> ReplicateOutcome {
        let slot = part.slot;
        let awaited = self.replica.is_buffering(slot).then(|| part.context.clone());
        let outcome = self.apply_one(db, staged, part, PartSource::of_number(number));
        if let (ReplicateOutcome::Durable(size), Some(context)) = (&outcome, awaited) {
            let mut size = *size;
            while let Some((next, number)) = self.replica.next_buffered(slot, &context, size) {
                if let ReplicateOutcome::Durable(now) =
                    self.apply_one(db, staged, next.part, PartSource::Buffered(number))
                {
                    size = now;
                }
            }
        }
        outcome
    }

    fn apply_one(
        &mut self,
        db: &Db,
        staged: &mut StagedCommit,
        part: Part,
        source: PartSource,
    ) -> ReplicateOutcome {
        let Part { slot, context, .. } = &part;
        let slot = *slot;
        let header = part.header(source);
        if slot != Slot::of(context) {
            let reason = format!("context {context} is not of slot {}", slot.number());
            return self.replica.refuse(&header, reason);
        }
        let record = match self.records.of(db, &self.shared, slot) {
            Ok(record) => record,
            Err(error) => return self.replica.refuse(&header, error.to_string()),
        };
        let admitted =
            match self.replica.admit(&header, record, self.shared.publisher.visibility.is_withheld(slot)) {
                Admission::Admitted(admitted) => admitted,
                Admission::Settled(outcome) => return outcome,
            };
        if admitted.hides()
            && let Some(copies) = &self.replication
        {
            copies.hide_diverged(&self.shared.publisher, slot);
        }
        let result = match self.place(db, staged, &part, &header, admitted) {
            Ok(Some(result)) => result,
            Ok(None) => return self.buffer(part, source.number()),
            Err(error) => {
                self.shared.quarantine.record(&error);
                match error {
                    StoreError::Damaged { .. } => PartResult::Unreadable(error.to_string()),
                    error => PartResult::Invalid(error.to_string()),
                }
            }
        };
        let mut outcome = self.replica.settle(&header, context, admitted, result);
        if let ReplicateOutcome::Refused(RefusedPart { why: WhyRefused::Invalid(reason), .. }) = &mut outcome
        {
            *reason = format!("context {context}: {reason}");
        }
        outcome
    }

    /// Keeps a part until what it continues arrives, if there is memory for it.
    fn buffer(&mut self, part: Part, number: u64) -> ReplicateOutcome {
        let (slot, context, after) = (part.slot, part.context.clone(), part.range.after.size);
        let cost_bytes = part.range.records.len() + BUFFERED_PART_BYTES;
        let share = &self.shared.out_of_order;
        match share.try_acquire(cost_bytes).filter(|_| cost_bytes <= share.capacity()) {
            Some(held) => {
                let part = BufferedPart { part, _held: held };
                self.replica.buffer(slot, context, after, cost_bytes, number, part)
            }
            None => self.replica.refuse_buffering(slot, &context),
        }
    }

    /// Stages a part that was admitted, if it fits. Returns `None` if it is to be buffered.
    fn place(
        &mut self,
        db: &Db,
        staged: &mut StagedCommit,
        part: &Part,
        header: &PartHeader<'_>,
        admitted: Admitted,
    ) -> Result<Option<PartResult>, StoreError> {
        let origin = WriteOrigin::Replicated(part.claim.epoch, header.source.number());
        if !staged.contexts.contains_key(&part.context) {
            let staged_context = self.replicated_context_state(db, part, origin)?;
            staged.contexts.insert(part.context.clone(), staged_context);
        }
        let Some(staged_context) = staged.contexts.get_mut(&part.context) else {
            return Err(StoreError::Closed);
        };
        staged_context.origin = origin;
        let here = staged_context.state.extent();
        let skip = match admitted.place(header, LocalHistory::Readable(here)) {
            PartDecision::Append { skip } => skip,
            PartDecision::Buffer => return Ok(None),
            PartDecision::Nothing(result) => return Ok(Some(result)),
            PartDecision::Install => {
                let end = TreeHead { size: header.end(), root: header.root };
                if staged_context.loaded.is_some() {
                    return Ok(Some(PartResult::Gap));
                }
                let Some(arrived) = self.shared.staged_loads.take(&part.context, &header.after, &end) else {
                    return Ok(Some(PartResult::Gap));
                };
                staging::check(db, arrived.generation, &part.context)?;
                staged.entries += usize::try_from(part.range.count).unwrap_or(usize::MAX);
                staged_context.load(arrived.state);
                return Ok(Some(PartResult::Reaches(end.size)));
            }
        };
        let verified = match check(&part.context, &staged_context.state.head, &part.range, skip)? {
            RangeCheck::Continues(verified) => verified,
            RangeCheck::Diverged => return Ok(Some(PartResult::Diverged)),
        };
        if part.is_load {
            let after = staged_context.loaded.map_or(here.size, |before| before.after);
            staged_context.loaded = Some(LoadSpan { after, to: header.end() });
        }
        staged_context.appended += verified.entries.len() as u64;
        staged.entries += verified.entries.len();
        let watched = &mut staged_context.watched;
        staged_context.state.accept_verified(db, &mut staged.batch, verified, |entry| {
            if let Some(watched) = watched {
                watched.push(entry);
            }
        })?;
        Ok(Some(PartResult::Reaches(header.end())))
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
        let tails = &self.shared.publisher.tails;
        let is_watched = !tails.is_idle() && tails.find(&part.context).is_some();
        Ok(StagedContext::new(state, is_watched, origin))
    }
}
