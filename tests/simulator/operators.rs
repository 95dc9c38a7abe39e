//! What operators do: decommission nodes, and continue after most disks of a slot were lost.

use ledger_core::{
    node::PromiseQuorum,
    ownership::{RecoveryApproval, slot_manager::Owner},
};

use super::{
    prelude::*,
    run::{Host, Stage},
};

/// How often a leaving node asks whether it is still named, in microseconds.
const LOOKS_EVERY: u64 = 500_000;
/// How many times in a row nobody must name it: as in `ledger_cluster::ownership::decommission`.
const TIMES: u32 = 6;
/// How long after the loss of most disks an operator acts, in microseconds.
const OPERATOR: u64 = 3_000_000;

impl World {
    /// Decommissions a node. Returns false if the others are too few.
    pub(super) fn decommission(&mut self, index: Index) -> bool {
        let stay = self.hosts.iter().filter(|host| !host.is_gone && host.leaving.is_none()).count();
        let OwnershipSettings { replication_factor, write_quorum, .. } = self.plan.settings;
        if replication_factor == 1 || self.hosts[index].leaving.is_some() {
            return false;
        }
        let mode = if stay > replication_factor {
            DecommissionMode::Replaced
        } else if stay > write_quorum.max(2) && self.can_lose(index) {
            // Not right after a disk was lost: with so few members all of them are needed.
            DecommissionMode::AllowFewer
        } else {
            return false;
        };
        self.hosts[index].leaving = Some(mode);
        self.with(index, |node| node.leave(Some(mode)));
        self.after(LOOKS_EVERY, move |world| world.leave(index, 0));
        true
    }

    /// A leaving node, which nobody named so many times in a row, asks whether any owner names it. Once none does, the
    /// node and its disk are removed without further questions, because that is what it waited for.
    fn leave(&mut self, index: Index, unnamed: u32) {
        let host = &self.hosts[index];
        if self.stage != Stage::Faults || host.leaving.is_none() {
            return;
        }
        let is_unnamed = host.node.is_some()
            && host.paused_until <= self.now
            && self.config.contexts.slots.iter().all(|slot| self.is_unnamed(*slot, index));
        let unnamed = if is_unnamed { unnamed + 1 } else { 0 };
        if unnamed < TIMES || !self.remembers(|without| without == index) {
            return self.after(LOOKS_EVERY, move |world| world.leave(index, unnamed));
        }
        self.note(|| format!("n{index} has left"));
        self.counts.add(Counted::Left, 1);
        // This loses no copy.
        let last_loss = self.last_loss;
        self.lose_disk(index);
        self.last_loss = last_loss;
        self.hosts[index].is_gone = true;
    }

    /// Returns whether the owner of a slot, as a node sees it in gossip, does not count the node as a member.
    fn is_unnamed(&self, slot: Slot, index: Index) -> bool {
        let Some(asking) = &self.hosts[index].node else { return false };
        let Owner::Other(owner, _) = asking.slot_manager.owner(slot) else { return false };
        let owner = index_of(&owner);
        let Some(asked) = self.hosts[owner].node.as_ref() else { return false };
        let cut = &self.network.cut;
        let answers = self.hosts[owner].paused_until <= self.now && !cut[index][owner] && !cut[owner][index];
        let placement = asked.record(slot).placement;
        answers
            && matches!(asked.slot_manager.owner(slot), Owner::Me(_))
            && placement.is_some_and(|known| known.members.get(&asking.member.node).is_none())
    }

    /// Loses most disks of a slot. Forgets what no remaining node knows, and keeps what the others had made visible.
    pub(super) fn lose_most(&mut self) {
        // An unreadable history may be all that is left.
        if self.hosts.iter().any(Host::is_damaged) {
            return;
        }
        let slots = self.config.contexts.slots.clone();
        let Some(hit) = self.random.pick(&slots) else { return };
        let Some((_, set)) = self.owned.get(&hit).cloned() else { return };
        let spared = self.random.index(set.len());
        let mut lost: BTreeSet<Member> = BTreeSet::new();
        for (_, member) in set.members().iter().enumerate().filter(|(number, _)| *number != spared) {
            lost.insert(member.clone());
            // At least one node must remain for each slot.
            let is_left = |set: &ReplicaSet| self.remaining(set, &lost) > 0;
            let is_lost = |index: Index| lost.contains(&self.hosts[index].member);
            let mut sets = slots.iter().flat_map(|slot| self.sets_of(*slot));
            if !sets.all(|set| is_left(&set)) || !self.remembers(is_lost) {
                lost.remove(member);
            }
        }
        lost.retain(|member| self.is_here(member));
        if lost.is_empty() {
            return;
        }
        self.counts.add(Counted::MostLost, 1);
        for slot in slots.into_iter().filter(|slot| self.is_hit(*slot, &lost)).collect::<Vec<_>>() {
            for context in self.config.contexts.of(slot) {
                let left = self.hosts.iter().filter(|host| !lost.contains(&host.member));
                // A disk whose writes fail may yet lose what its node shows.
                let kept = |node: &Node| {
                    let durable = node.disk.durable.histories[context].size();
                    node.visible_size(context).map(|shown| shown.min(durable))
                };
                let shown = left.filter_map(|host| host.node.as_ref().and_then(kept)).max();
                let shown = shown.unwrap_or_default();
                self.note(|| format!("context {context} goes on with what survivors showed: {shown}"));
                self.invariants.forget(context, shown);
                self.changed.insert(context);
            }
        }
        for member in lost {
            self.lose_disk(index_of(&member.node));
        }
        self.after(OPERATOR, Self::recover);
    }

    fn is_here(&self, member: &Member) -> bool {
        self.hosts.iter().any(|host| host.member == *member && !host.is_gone)
    }

    /// Returns how many of a set of members are left.
    fn remaining(&self, set: &ReplicaSet, lost: &BTreeSet<Member>) -> usize {
        set.members().iter().filter(|of| self.is_here(of) && !lost.contains(of)).count()
    }

    /// Returns whether a slot may lose acknowledged entries when these members are lost.
    fn is_hit(&self, slot: Slot, lost: &BTreeSet<Member>) -> bool {
        self.sets_of(slot).iter().any(|set| {
            match set.promise_quorum(self.plan.settings.write_quorum.clamp(1, set.len())) {
                PromiseQuorum::AtLeast(needed) => self.remaining(set, lost) < needed,
                PromiseQuorum::EveryLive => true,
            }
        })
    }

    /// Sends all nodes the members that are lost.
    fn recover(&mut self) {
        let buried = self.hosts.iter().flat_map(|host| host.graveyard.iter().map(|(member, _)| member));
        let gone = self.hosts.iter().map(|host| &host.member);
        let lost: BTreeSet<Member> =
            buried.chain(gone).filter(|member| !self.is_here(member)).cloned().collect();
        self.note(|| format!("an operator declares {lost:?} lost"));
        let slots = &self.config.contexts.slots;
        let approved = slots.iter().filter_map(|slot| Some((*slot, self.approval(*slot, &lost)?)));
        self.declared = DeclaredLosses { slots: approved.collect(), lost };
        for index in 0..self.hosts.len() {
            let declared = self.declared.clone();
            self.with(index, |node| node.declare_lost(declared));
        }
    }

    /// Returns how a slot may continue: with the newest members that any node knows.
    fn approval(&self, slot: Slot, lost: &BTreeSet<Member>) -> Option<RecoveryApproval> {
        let records: Vec<(&Member, SlotRecord)> = self
            .hosts
            .iter()
            .filter_map(|host| Some((&host.member, host.node.as_ref()?.record(slot))))
            .collect();
        let known = records.iter().filter_map(|(_, record)| record.placement.as_ref());
        let newest = known.max_by_key(|placement| placement.rank())?;
        if !newest.needs_approval(lost, self.plan.settings.write_quorum) {
            return None;
        }
        let is_known =
            |record: &SlotRecord| record.placement.as_ref().is_some_and(|known| known.is_confirmed);
        let best = records.iter().max_by_key(|(_, record)| (is_known(record), record.accepted));
        let heir = best.map(|(member, _)| (*member).clone());
        let heir = heir.filter(|_| newest.named().all(|member| lost.contains(member)));
        Some(RecoveryApproval::of(newest, heir))
    }
}
