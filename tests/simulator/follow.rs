//! What the lane of a store does with what the owners of slots send, as in `ledger_store::lane::{follow, change}`.

use std::rc::Rc;

use ledger_core::{
    Hash, Size,
    digest::Extent,
    ownership::{
        Claim, NotTaken,
        slots::{Event, Outcome, Renewal},
    },
    replication::{Fit, fit},
    slot::Slot,
};

use super::{
    broken::Broken,
    disk::{Fork, Write},
    history::{Context, Entry},
    message::{Down, Index, Offer, Part, Up},
    node::Node,
    wants::{AfterSync, Note, Out, Readable},
};

/// Most parts of a context that wait for what comes before them.
const PARKED: usize = 32;

/// What became of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    Reaches,
    Missing,
    Differs,
    Refused(Claim),
    /// The disk takes no writes.
    Failed,
}

impl Node {
    /// From a slot's owner, on its stream.
    pub fn down(&mut self, from: Index, stream: u64, body: Down) {
        if self.incoming.get(&from).is_none_or(|(known, _)| *known != stream) {
            // A stream of an earlier life.
            return self.out.push(Out::Break { stream });
        }
        match body {
            Down::Commit { number, parts } => {
                for part in parts {
                    if !self.take_commit(from, stream, part, number) {
                        return self.break_stream(from);
                    }
                }
                self.after_sync(AfterSync::Up { to: from, stream, body: Up::Durable(number) });
            }
            Down::Offer(offer) => self.offered(from, stream, *offer),
            Down::Renewal(slots) => self.renewal(from, stream, &slots),
            Down::Stable { slot, epoch, number } => {
                for (context, size) in self.unstable.stable(slot, epoch, number) {
                    self.show(context, size);
                }
                if self.accepted_at.get(&slot).is_some_and(|(of, at)| *of == epoch && *at <= number) {
                    self.accepted_at.remove(&slot);
                    if self.readable.insert(slot, Readable::Shown) != Some(Readable::Shown) {
                        let config = Rc::clone(&self.config);
                        config.contexts.of(slot).for_each(|context| self.show(context, 0));
                    }
                }
            }
        }
    }

    /// The owner renews leases, after all that it sent before.
    fn renewal(&mut self, from: Index, stream: u64, slots: &[Renewal]) {
        let Some((_, owner)) = self.incoming.get(&from) else { return };
        let owner = owner.clone();
        let refused = slots.iter().filter_map(|of| {
            let refused = self.record(of.slot).may_follow(&of.claim).err()?;
            Some((of.slot, Some(refused.promised)))
        });
        let refused = refused.collect();
        let is_in_step = |of: &Renewal| {
            self.in_step.get(&of.slot) == Some(&of.claim) && self.record(of.slot).takes(&of.claim).is_ok()
        };
        let in_step = slots.iter().filter(|of| is_in_step(of)).filter_map(|of| Some((of.slot, of.age?)));
        let slots = in_step.collect();
        let after = self.renewed.insert(from, self.now).unwrap_or_default();
        self.out.push(Out::Up { stream, body: Up::Renewed(refused) });
        self.events.push_back(Event::Renewed { from: owner, after, slots });
    }

    /// False: the stream must break.
    fn take_commit(&mut self, from: Index, stream: u64, part: Part, number: u64) -> bool {
        let (slot, claim) = (part.slot, part.claim.clone());
        let is_strict = self.in_step.get(&slot) == Some(&claim);
        match self.take_part(part, number) {
            Taken::Reaches => {}
            Taken::Refused(promised) => {
                let outcome = Outcome::Refused(promised);
                self.out.push(Out::Up { stream, body: Up::Offered { slot, claim, outcome } });
            }
            Taken::Failed => return false,
            Taken::Missing | Taken::Differs if is_strict => return false,
            Taken::Missing | Taken::Differs => self.follow_task(slot, &claim, from),
        }
        true
    }

    /// Takes a part of a commit or, with number 0, a range that was fetched.
    pub(super) fn take_part(&mut self, part: Part, number: u64) -> Taken {
        let is_strict = number > 0 && self.in_step.get(&part.slot) == Some(&part.claim);
        let context = part.range.context;
        let slot = part.slot;
        let taken = self.try_part(part, number, is_strict);
        if taken != Taken::Reaches || !is_strict {
            self.trace(|_| {
                format!(
                    "part of {slot:?}, context {context}, commit {number}, in step {is_strict}: {taken:?}"
                )
            });
        }
        if taken == Taken::Reaches {
            self.take_parked(context);
        }
        taken
    }

    /// Takes what waited for what was taken now.
    fn take_parked(&mut self, context: Context) {
        loop {
            let size = self.disk.now.histories[context].size();
            let Some(parts) = self.parked.get_mut(&context) else { return };
            if parts.front().is_none_or(|(part, _)| part.range.after > size) {
                return;
            }
            let Some((part, number)) = parts.pop_front() else { return };
            if self.try_part(part, number, false) != Taken::Reaches {
                self.parked.remove(&context);
            }
        }
    }

    fn try_part(&mut self, part: Part, number: u64, is_strict: bool) -> Taken {
        let Part { slot, claim, range, .. } = &part;
        if let Err(refused) = self.record(*slot).may_follow(claim)
            && self.config.broken != Broken::NoPromiseCheck
        {
            return Taken::Refused(refused.promised);
        }
        if self.is_damaged(range.context) {
            // It is restored before the slot comes in step.
            return Taken::Missing;
        }
        if !is_strict && self.in_step.get(slot) == Some(claim) {
            // Fetched or parked before the slot was in step: what there was then is here, and the stream brings the rest.
            return Taken::Reaches;
        }
        if !is_strict && self.is_held(*slot) {
            // What is taken now is not known to be stable, and no place in the stream says when it is.
            self.darken(*slot);
        }
        let context = range.context;
        let history = &self.disk.now.histories[context];
        let here = history.size();
        let count = part.staged_to.map_or(range.entries.len() as u64, |to| to.saturating_sub(range.after));
        let skip = match fit(Size(here), Size(range.after), count) {
            Fit::Continues { skip } => skip,
            Fit::Known => {
                let is_same = here != range.after + count || history.root() == range.root;
                return if is_same { Taken::Reaches } else { Taken::Differs };
            }
            Fit::Gap { .. } => {
                if !is_strict && number > 0 && part.staged_to.is_none() {
                    let parked = self.parked.entry(context).or_default();
                    parked.push_back((part, number));
                    if parked.len() > PARKED {
                        self.parked.remove(&context);
                    }
                }
                return Taken::Missing;
            }
        };
        let arrived = match part.staged_to {
            None => None,
            Some(to) => match self.arrived.get(&context).filter(|_| skip == 0) {
                Some(arrived) if (arrived.after, arrived.root) == (here, range.root) => {
                    debug_assert_eq!(arrived.after + arrived.entries.len() as u64, to);
                    Some(Rc::clone(&arrived.entries))
                }
                _ => return Taken::Missing,
            },
        };
        let entries = arrived.as_ref().unwrap_or(&range.entries);
        if history.root_at(here) != Some(root_after(range.after_root, entries, skip)) {
            return Taken::Differs;
        }
        if !self.can_write() {
            return Taken::Failed;
        }
        let new: Vec<Entry> = entries[skip as usize..].to_vec();
        let (epoch, slot) = (claim.epoch, *slot);
        if part.is_load {
            self.put_in_place(context, &new);
        } else {
            self.extend(context, &new);
        }
        let size = self.disk.now.histories[context].size();
        if number > 0 {
            self.unstable.push(slot, epoch, number, (context, size));
        }
        if self.config.broken == Broken::UnstableShown {
            self.show(context, size);
        }
        Taken::Reaches
    }

    /// An offer, in its place of the stream.
    fn offered(&mut self, from: Index, stream: u64, offer: Offer) {
        if !self.can_write() {
            return self.break_stream(from);
        }
        let Offer { number, slot, claim, set, is_confirmed, digest, before } = offer;
        let mut record = self.record(slot);
        if self.config.broken == Broken::NoPromiseCheck {
            record.promised = None;
        }
        let outcome = match record.accept(&claim, &set, is_confirmed, before.as_ref()) {
            _ if !self.may_form(slot, &set, is_confirmed) => Outcome::NotNow,
            Err(NotTaken::Refused(refused)) => Outcome::Refused(refused.promised),
            Err(NotTaken::OtherMembers(placement)) => Outcome::OtherMembers(placement),
            Ok(_) | Err(NotTaken::NotAccepted { .. })
                if digest != self.digest(slot) || self.has_damage(slot) =>
            {
                // Whom it follows it has promised, so that it follows nobody else meanwhile, nor leads.
                if let Ok((next, _)) = record.promise(&claim) {
                    self.write_record(slot, next);
                    self.after_sync(AfterSync::Recorded(slot));
                }
                self.darken(slot);
                self.follow_task(slot, &claim, from);
                Outcome::Differs
            }
            Err(NotTaken::NotAccepted { .. }) => Outcome::Differs,
            Err(NotTaken::Formed) => Outcome::NotNow,
            Ok(next) => {
                if self.led.contains_key(&slot) {
                    self.step_down(slot);
                }
                self.write_record(slot, next);
                // Whom it followed before would wait for ever.
                self.give_up(slot);
                self.in_step.insert(slot, claim.clone());
                let kept = self.unstable.take(slot);
                if self.is_held(slot) {
                    for of in kept {
                        self.unstable.push(slot, claim.epoch, number, of);
                    }
                } else {
                    // Nothing is held back of what is accepted here.
                    self.readable.insert(slot, Readable::Holding);
                    self.see_all(slot);
                }
                self.accepted_at.insert(slot, (claim.epoch, number));
                self.after_sync(AfterSync::Recorded(slot));
                Outcome::Accepted
            }
        };
        // What was sent before the offer is durable with it: nothing may follow that would say so.
        self.after_sync(AfterSync::Up { to: from, stream, body: Up::Durable(number) });
        let is_durable = !matches!(outcome, Outcome::Accepted | Outcome::Differs);
        let body = Up::Offered { slot, claim, outcome };
        if is_durable {
            self.out.push(Out::Up { stream, body });
        } else {
            self.after_sync(AfterSync::Up { to: from, stream, body });
        }
    }

    /// Whether what comes to a slot is held back until it is stable.
    fn is_held(&self, slot: Slot) -> bool {
        self.readable.get(&slot).is_some_and(|readable| *readable != Readable::Dark)
    }

    /// What is here of a slot is what will be seen of it.
    fn see_all(&mut self, slot: Slot) {
        let config = Rc::clone(&self.config);
        for context in config.contexts.of(slot) {
            self.visible[context] = self.size_here(context);
        }
    }

    /// This replica does not hold what the owner holds: nothing of the slot is shown until it does.
    pub(super) fn darken(&mut self, slot: Slot) {
        self.trace(|_| format!("shows nothing of {slot:?}"));
        self.in_step.remove(&slot);
        self.accepted_at.remove(&slot);
        self.unstable.take(slot);
        self.readable.insert(slot, Readable::Dark);
    }

    /// Leaves what comes after a common size for the history that an owner has.
    pub(super) fn fork(&mut self, context: Context, common: u64, theirs: (u64, Hash)) {
        let slot = self.config.contexts.slot(context);
        self.darken(slot);
        self.parked.remove(&context);
        let history = &self.disk.now.histories[context];
        let (before, ours) = (history.extent(), (history.size(), history.root()));
        let entries = history.0[common as usize..].to_vec();
        for entry in &entries {
            self.ids[context].remove(&entry.id);
        }
        if self.config.broken == Broken::ForksDropped {
            self.disk.write(Write::Drop { context, common });
        } else {
            self.disk.write(Write::Fork(Fork { context, common, entries, heads: [ours, theirs] }));
        }
        self.changed(context, before);
        self.visible[context] = self.visible[context].min(common);
        self.trace(|_| format!("leaves what comes after {common} entries of context {context}"));
        self.out.push(Out::Note(Note::Forked));
    }

    /// Keeps the digest of a slot.
    pub(super) fn changed(&mut self, context: Context, before: Option<Extent>) {
        let now = self.disk.now.histories[context].extent();
        let config = Rc::clone(&self.config);
        let digest = self.digests.entry(config.contexts.slot(context)).or_default();
        digest.replace(config.contexts.id(context), before, now);
    }

    /// Reads what is on disk, when it starts. What cannot be read is in no digest, and known from then on.
    pub(super) fn scan(&mut self) {
        for context in 0..self.config.contexts.len() {
            self.is_damaged(context);
            let ids = self.disk.now.histories[context].0.iter().map(|entry| (entry.id, entry.sequence));
            self.ids[context] = ids.collect();
            self.changed(context, None);
        }
    }
}

/// The root after so many of the entries that follow a root.
fn root_after(root: Hash, entries: &[Entry], count: u64) -> Hash {
    count.checked_sub(1).and_then(|last| entries.get(last as usize)).map_or(root, |entry| entry.root)
}
