//! Checks the reports of nodes against the invariants.

use super::{
    counts::Counted,
    disk::Store,
    invariants::{Checked, Observation},
    message::Index,
    node_output::Note,
    run::{Host, ScheduledEvent, Stage, World},
};

impl World {
    pub(super) fn noted(&mut self, index: Index, note: Note) -> Checked {
        if matches!(note, Note::Moment) {
            if self.stage == Stage::Faults && self.random.chance(self.plan.ambushes) {
                let after = self.random.below(4000);
                self.after(after, ScheduledEvent::Ambush);
            }
            return Ok(());
        }
        self.note(|| match &note {
            Note::Trace(what) => format!("n{index} {what}"),
            note => format!("n{index} {note:?}"),
        });
        match note {
            Note::Created { context, entry, by } => {
                self.counts.add(Counted::Created, 1);
                self.invariants.created(context, &entry, by)
            }
            Note::Owned { slot, claim, was_handed_over } => {
                self.counts.add(Counted::Owned, 1);
                self.counts.add(Counted::HandedOver, u64::from(was_handed_over));
                let Some(node) = &self.hosts[index].node else { return Ok(()) };
                if let Some(placement) = node.record(slot).placement {
                    let known = self.owned.get(&slot);
                    if known.is_some_and(|(_, set)| *set != placement.members) {
                        self.counts.add(Counted::Moved, 1);
                    }
                    if known.is_none_or(|(known, _)| *known < claim) {
                        self.owned.insert(slot, (claim.clone(), placement.members));
                    }
                }
                let contexts = &self.config.contexts;
                let is_unreadable = |context| node.is_unreadable(context);
                if let Some(context) = self
                    .plan
                    .loaded
                    .filter(|context| contexts.slot(*context) == slot && !node.is_unreadable(*context))
                {
                    self.is_whole(
                        "what the next owner holds",
                        index,
                        context,
                        node.disk.now.histories[context].size(),
                    )?;
                }
                self.invariants.owned(slot, &claim, index, &node.disk.now, contexts, is_unreadable)
            }
            Note::Acknowledged { context, sequence, id, in_epoch, is_stable, needed } => {
                let what = if is_stable { Counted::Acknowledged } else { Counted::AcknowledgedAtFewer };
                self.counts.add(what, 1);
                self.invariants.acknowledges(self.config.contexts.slot(context), in_epoch, index)?;
                let on = self.hosts[index].member.clone();
                self.invariants.acknowledged(context, sequence, id, is_stable, &on)?;
                if is_stable {
                    self.seen("an acknowledgement", index, context, sequence, needed)
                } else {
                    Ok(())
                }
            }
            Note::Shown { context, size } => {
                let slot = self.config.contexts.slot(context);
                let members = self.owned.get(&slot).map_or(1, |(_, set)| set.len());
                let needed = self.plan.settings.write_quorum.min(members);
                self.seen("what readers see", index, context, size, needed)
            }
            Note::Recovered { slot, recovery } => {
                self.counts.add(Counted::Recovered, 1);
                let is_evidence = |member| self.declared.lost.contains(member);
                if recovery.responded.is_empty() || !recovery.missing.iter().all(is_evidence) {
                    return Err(format!("slot {} went on without evidence: {recovery:?}", slot.number()));
                }
                Ok(())
            }
            Note::Forked => {
                self.counts.add(Counted::Forked, 1);
                Ok(())
            }
            Note::Restored => {
                self.counts.add(Counted::Restored, 1);
                Ok(())
            }
            Note::Load(what) => {
                self.counts.add(what, 1);
                Ok(())
            }
            Note::Moment | Note::Trace(_) => Ok(()),
            Note::Violated(violation) => Err(format!("node {index}: {violation}")),
            Note::FetchCut => {
                self.counts.add(Counted::FetchCut, 1);
                Ok(())
            }
            Note::CaughtUp { entries } => {
                self.counts.add(Counted::Fetched, entries);
                Ok(())
            }
        }
    }

    pub(super) fn seen(
        &mut self,
        what: &'static str,
        index: Index,
        context: usize,
        size: u64,
        needed: usize,
    ) -> Checked {
        self.is_whole(what, index, context, size)?;
        let Some(node) = &self.hosts[index].node else { return Ok(()) };
        let history = &node.disk.now.histories[context];
        let root = history.root_at(size);
        let copies = || {
            let holds = |store: &Store| store.histories[context].root_at(size) == root;
            let on_host = |host: &&Host| {
                let disk = host.node.as_ref().map(|node| &node.disk).or(host.disk.as_ref());
                disk.is_some_and(|disk| holds(&disk.durable))
                    || host.graveyard.iter().any(|(_, store)| holds(store))
            };
            self.hosts.iter().filter(on_host).count()
        };
        let seen = Observation { what, node: index, context, size, history };
        self.invariants.seen(self.now / 1000, &seen, needed, copies)
    }
}
