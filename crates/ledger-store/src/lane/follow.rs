//! A lane in a cluster: taking what other nodes' lanes wrote.
//!
//! Every part is checked before anything of it is staged: the claim against the slot's record, that it continues
//! what is here, and every entry against its hash; the root at its end shows that the whole history is the owner's.

use std::collections::{HashMap, VecDeque};

use foldhash::fast::RandomState;
use ledger_core::{
    ContextId, Head, Size,
    digest::Extent,
    replication::{Fit, fit},
    slot::Slot,
};

use super::{Db, Lane, Origin, Part, Staged, StoreError, Taken, staging};
use crate::{
    commit::Touched,
    loaded::Span,
    state::ContextState,
    verify::{Checked, check},
};

/// A gap of more entries is not waited for: whoever fills it fetches what comes after as well.
const PARK_GAP: u64 = 16_384;
/// Most bytes of parts that wait for what comes before them, in a lane.
const PARK_BYTES: usize = 32 << 20;

/// Parts that came before what they continue, by context, in the order they came.
#[derive(Debug, Default)]
pub(super) struct Parked {
    contexts: HashMap<ContextId, VecDeque<(Part, u64)>, RandomState>,
    bytes: usize,
}

impl Parked {
    fn park(&mut self, part: Part, number: u64) {
        if self.bytes + part.range.records.len() > PARK_BYTES {
            // Those of a context are worth nothing without the first of them.
            self.forget(&part.context);
            return;
        }
        self.bytes += part.range.records.len();
        self.contexts.entry(part.context.clone()).or_default().push_back((part, number));
    }

    /// The next part of a context.
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
    /// Stages a part of another node's commit, or (with number 0) a range that was fetched.
    pub(super) fn take_part(&mut self, db: &Db, staged: &mut Staged, part: Part, number: u64) -> Taken {
        let context = part.context.clone();
        let is_strict = number > 0 && self.in_step.get(&part.slot) == Some(&part.claim);
        match self.try_part(db, staged, part, number, is_strict) {
            // The owner counts on this replica: it must not be told that it has what it has not.
            Ok(Taken::Missing | Taken::Differs) if is_strict => {
                Taken::Invalid(format!("it does not continue context {context} here"))
            }
            Ok(Taken::Reaches(size)) => self.take_parked(db, staged, &context, size),
            Ok(taken) => taken,
            Err(error) => {
                self.shared.quarantine.note(&error);
                match error {
                    // It is restored before the slot comes in step; until then what comes is missing here.
                    StoreError::Damaged { .. } if !is_strict => Taken::Missing,
                    error => Taken::Invalid(error.to_string()),
                }
            }
        }
    }

    /// Stages what waited for what was staged now.
    fn take_parked(&mut self, db: &Db, staged: &mut Staged, context: &ContextId, mut size: Size) -> Taken {
        while let Some((part, number)) = self.parked.next(context, size) {
            match self.try_part(db, staged, part, number, false) {
                Ok(Taken::Reaches(now)) => size = now,
                // It is fetched.
                _ => self.parked.forget(context),
            }
        }
        Taken::Reaches(size)
    }

    fn try_part(
        &mut self,
        db: &Db,
        staged: &mut Staged,
        part: Part,
        number: u64,
        is_strict: bool,
    ) -> Result<Taken, StoreError> {
        let slot = part.slot;
        if slot != Slot::of(&part.context) {
            return Ok(Taken::Invalid(format!("context {} is not of slot {}", part.context, slot.number())));
        }
        if let Err(refused) = self.record(db, slot)?.may_follow(&part.claim) {
            return Ok(Taken::Refused { slot, claim: part.claim, by: refused.promised });
        }
        if !is_strict && self.in_step.get(&slot) == Some(&part.claim) {
            // Fetched or parked before the slot was in step: what there was then is here, and the stream brings the rest.
            return Ok(Taken::Reaches(part.range.end()));
        }
        if !is_strict && self.shared.readable.is_held(slot) {
            // What is taken now is not known to be stable, and no place in the stream says when it is.
            if let Some(copies) = &self.copies {
                copies.differs(&self.shared, slot);
            }
        }
        let origin = Origin::Followed(part.claim.epoch, number);
        if !staged.states.contains_key(&part.context) {
            let touched = self.touch_followed(db, &part, origin)?;
            staged.states.insert(part.context.clone(), touched);
        }
        let Some(touched) = staged.states.get_mut(&part.context) else { return Err(StoreError::Closed) };
        touched.origin = origin;
        let here = touched.state.head.size();
        let skip = match fit(here, part.range.after.size, part.range.count) {
            Fit::Continues { skip } => skip,
            Fit::Known => {
                let is_same = here != part.range.end() || touched.state.extent().root == part.range.root;
                return Ok(if is_same { Taken::Reaches(here) } else { Taken::Differs });
            }
            Fit::Gap { missing } => {
                if !is_strict && number > 0 && missing <= PARK_GAP && !part.is_staged() {
                    self.parked.park(part, number);
                }
                return Ok(Taken::Missing);
            }
        };
        if skip == 0 && touched.state.extent().root != part.range.after.root {
            return Ok(Taken::Differs);
        }
        if part.is_staged() {
            let (after, end) = (part.range.after, Extent { size: part.range.end(), root: part.range.root });
            if skip > 0 || touched.loaded.is_some() {
                return Ok(Taken::Missing);
            }
            let Some(arrived) = self.shared.arrivals.take(&part.context, &after, &end) else {
                return Ok(Taken::Missing);
            };
            staging::check(db, arrived.generation, &part.context)?;
            staged.entries += usize::try_from(part.range.count).unwrap_or(usize::MAX);
            touched.load(arrived.state);
            return Ok(Taken::Reaches(end.size));
        }
        let verified = match check(&part.context, &touched.state.head, &part.range, skip)? {
            Checked::Good(verified) => verified,
            Checked::Differs => return Ok(Taken::Differs),
        };
        if part.is_load {
            let after = touched.loaded.map_or(here, |before| before.after);
            touched.loaded = Some(Span { after, to: part.range.end() });
        }
        touched.appended += verified.entries.len() as u64;
        staged.entries += verified.entries.len();
        let watched = &mut touched.watched;
        touched.state.accept_verified(db, &mut staged.batch, verified, |entry| {
            if let Some(watched) = watched {
                watched.push(entry);
            }
        })?;
        Ok(Taken::Reaches(part.range.end()))
    }

    fn touch_followed(&mut self, db: &Db, part: &Part, origin: Origin) -> Result<Touched, StoreError> {
        let known = match self.cache.remove(&part.context) {
            Some((_, state)) => Some(state),
            None => ContextState::load(db, &part.context)?,
        };
        let state = if let Some(state) = known {
            state
        } else {
            let place = self.place(db, part.slot)?;
            ContextState::new(
                place,
                Head::new(part.range.suite, part.range.lineage, part.range.created_at_ns),
            )
        };
        let tails = &self.shared.tails;
        let is_watched = !tails.is_idle() && tails.find(&part.context).is_some();
        Ok(Touched::new(state, is_watched, origin))
    }
}
