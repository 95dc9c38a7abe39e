//! Checks the reports of nodes against the invariants.

use super::{
    client::Client,
    prelude::*,
    run::{Checked, Host, Stage},
};

impl World {
    pub(super) fn noted(&mut self, index: Index, note: Note) -> Checked {
        if matches!(note, Note::Moment) {
            if self.stage == Stage::Faults && self.random.chance(self.plan.ambushes) {
                let after = self.random.below(4000);
                self.after(after, Self::inject);
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
                self.counts.add(Counted::HandedOver, was_handed_over.into());
                self.owned(index, slot, &claim)
            }
            Note::Acknowledged { context, sequence, id, in_epoch, is_stable, needed } => {
                let what = if is_stable { Counted::Acknowledged } else { Counted::AcknowledgedAtFewer };
                self.counts.add(what, 1);
                self.invariants.acknowledges(self.config.contexts.slot(context), in_epoch, index)?;
                let on = &self.hosts[index].member;
                self.invariants.acknowledged(context, sequence, id, is_stable, on)?;
                if is_stable {
                    self.seen("an acknowledgement", index, context, sequence, needed)
                } else {
                    Ok(())
                }
            }
            Note::Shown { context, size } => {
                let members =
                    self.owned.get(&self.config.contexts.slot(context)).map_or(1, |(_, set)| set.len());
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
            Note::Counted(what, count) => {
                self.counts.add(what, count);
                Ok(())
            }
            Note::Violated(violation) => Err(format!("node {index}: {violation}")),
            Note::Moment | Note::Trace(_) => Ok(()),
        }
    }

    fn owned(&mut self, index: Index, slot: Slot, claim: &Claim) -> Checked {
        let Some(node) = &self.hosts[index].node else { return Ok(()) };
        if let Some(placement) = node.record(slot).placement {
            let known = self.owned.get(&slot);
            if known.is_some_and(|(_, set)| *set != placement.members) {
                self.counts.add(Counted::Moved, 1);
            }
            if known.is_none_or(|(known, _)| known < claim) {
                self.owned.insert(slot, (claim.clone(), placement.members));
            }
        }
        self.invariants.owns(slot, claim, index)?;
        for context in self.config.contexts.of(slot) {
            // What turns out to be unreadable is shown to nobody, and restored from another node.
            if !node.is_unreadable(context) {
                let history = &node.disk.now.histories[context];
                self.is_whole("what the next owner holds", index, context, history.size())?;
                self.invariants.holds(slot, claim, index, context, history)?;
            }
        }
        Ok(())
    }

    fn seen(
        &mut self,
        what: &'static str,
        node: Index,
        context: Context,
        size: u64,
        needed: usize,
    ) -> Checked {
        self.is_whole(what, node, context, size)?;
        let history = &self.hosts[node].disk().now.histories[context];
        let root = history.root_at(size);
        let copies = || {
            let holds = |store: &Store| store.histories[context].root_at(size) == root;
            let is_on = |host: &&Host| {
                holds(&host.disk().durable) || host.graveyard.iter().any(|(_, store)| holds(store))
            };
            self.hosts.iter().filter(is_on).count()
        };
        let checked = self.invariants.seen(self.now / 1000, (context, size), history, needed, copies);
        checked.map_err(|violation| format!("node {node}: {what} of context {context} {violation}"))
    }

    /// Checks that a history contains each load as a whole or not at all, wherever it is visible or owned.
    pub(super) fn is_whole(&self, what: &str, index: Index, context: Context, size: u64) -> Checked {
        let is_part =
            |client: &Client| matches!(client, Client::Loader(loader) if !loader.is_whole(context, size));
        // With availability first, or after most disks of a slot are lost, the cluster continues with whatever one
        // disk held.
        if self.plan.is_strict() && !self.changed.contains(&context) && self.clients.iter().any(is_part) {
            return Err(format!(
                "node {index}: {what} of context {context} is a part of a load: {size} entries"
            ));
        }
        Ok(())
    }
}
