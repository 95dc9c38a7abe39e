//! What operators do: decommission nodes, and continue after most disks of a slot were lost.

use std::collections::BTreeSet;

use ledger_core::{
    node::{Member, PromiseQuorum, ReplicaSet},
    ownership::{DeclaredLosses, RecoveryApproval, SlotRecord, slot_manager::Owner},
    slot::Slot,
};

use super::{
    client::Client,
    counts::Counted,
    fault_injection::{Undo, is_damaged},
    faults::Fault,
    message::Index,
    node::index_of,
    run::{ScheduledEvent, Stage, World},
};

/// How often a leaving node asks whether it is still named, in microseconds.
pub const LOOKS_EVERY: u64 = 500_000;
/// How many times in a row nobody must name it: as in `ledger_cluster::ownership::decommission`.
const TIMES: u32 = 6;
/// How long after the loss of most disks an operator acts, in microseconds.
const OPERATOR: u64 = 3_000_000;

impl World {
    /// A leaving node asks whether any owner names it. Once none does, the node and its disk are removed without
    /// further questions, because that is what it waited for.
    pub(super) fn leaves(&mut self, node: Index) {
        if self.stage != Stage::Faults || self.hosts[node].leaving.is_none() {
            return;
        }
        let is_unnamed = self.hosts[node].node.is_some()
            && self.hosts[node].paused_until <= self.now
            && self.config.contexts.slots.iter().all(|slot| self.is_unnamed(*slot, node));
        let unnamed = if is_unnamed { self.hosts[node].unnamed + 1 } else { 0 };
        self.hosts[node].unnamed = unnamed;
        if unnamed < TIMES || !self.remembers(|without| without == node) {
            return self.after(LOOKS_EVERY, ScheduledEvent::Undo(Undo::Left(node)));
        }
        self.note(|| format!("n{node} has left"));
        self.counts.add(Counted::Left, 1);
        let last_loss = self.last_loss;
        self.crash(node);
        self.wipe(node);
        // This loses no copy.
        self.last_loss = last_loss;
        self.hosts[node].is_gone = true;
    }

    /// Returns whether the owner of a slot, as a node sees it in gossip, does not count the node as a member.
    fn is_unnamed(&self, slot: Slot, node: Index) -> bool {
        let Some(asking) = &self.hosts[node].node else { return false };
        let Owner::Other(owner, _) = asking.slot_manager.owner(slot) else { return false };
        let owner = index_of(&owner);
        let Some(asked) = self.hosts[owner].node.as_ref() else { return false };
        let answers = self.hosts[owner].paused_until <= self.now
            && !self.network.cut[node][owner]
            && !self.network.cut[owner][node];
        let named = &self.hosts[node].member.node;
        answers
            && matches!(asked.slot_manager.owner(slot), Owner::Me(_))
            && asked.record(slot).placement.is_some_and(|known| known.members.get(named).is_none())
    }

    /// Loses most disks of a slot. Forgets what no remaining node knows, and keeps what the others had made visible.
    pub(super) fn lose_most(&mut self) {
        // An unreadable history may be all that is left.
        if self.hosts.iter().any(is_damaged) {
            return;
        }
        let slots = self.config.contexts.slots.clone();
        let Some(hit) = self.random.pick(&slots) else { return };
        let Some((_, set)) = self.owned.get(&hit).cloned() else { return };
        let left = self.random.index(set.len());
        let spared = set.members()[left].clone();
        let mut lost: BTreeSet<Member> = BTreeSet::new();
        for member in set.members().iter().filter(|member| **member != spared) {
            lost.insert(member.clone());
            // At least one node must remain for each slot.
            let is_left =
                |set: &ReplicaSet| set.members().iter().any(|of| self.is_here(of) && !lost.contains(of));
            let is_lost = |index: Index| lost.contains(&self.hosts[index].member);
            if !slots.iter().flat_map(|slot| self.sets_of(*slot)).all(|set| is_left(&set))
                || !self.remembers(is_lost)
            {
                lost.remove(member);
            }
        }
        lost.retain(|member| self.is_here(member));
        if lost.is_empty() {
            return;
        }
        self.counts.fault(Fault::LoseMost);
        let hit: Vec<Slot> = slots.iter().copied().filter(|slot| self.is_hit(*slot, &lost)).collect();
        for slot in hit {
            for context in self.config.contexts.of(slot) {
                let shown = self.hosts.iter().filter(|host| !lost.contains(&host.member));
                let shown = shown.filter_map(|host| host.node.as_ref()?.visible_size(context)).max();
                let shown = shown.unwrap_or_default();
                self.note(|| format!("context {context} goes on with what survivors showed: {shown}"));
                self.invariants.forget(context, shown);
                self.changed.insert(context);
            }
        }
        for member in lost {
            let index = index_of(&member.node);
            self.crash(index);
            self.wipe(index);
        }
        self.after(OPERATOR, ScheduledEvent::Undo(Undo::Recover));
    }

    fn is_here(&self, member: &Member) -> bool {
        self.hosts.iter().any(|host| host.member == *member && !host.is_gone)
    }

    /// Returns whether a slot may lose acknowledged entries when these members are lost.
    fn is_hit(&self, slot: Slot, lost: &BTreeSet<Member>) -> bool {
        self.sets_of(slot).iter().any(|set| {
            let left = set.members().iter().filter(|of| self.is_here(of) && !lost.contains(of)).count();
            match set.promise_quorum(self.plan.settings.write_quorum.clamp(1, set.len())) {
                PromiseQuorum::AtLeast(needed) => left < needed,
                PromiseQuorum::EveryLive => true,
            }
        })
    }

    /// Sends all nodes the members that are lost.
    pub(super) fn recover(&mut self) {
        let here: BTreeSet<Member> =
            self.hosts.iter().filter(|host| !host.is_gone).map(|host| host.member.clone()).collect();
        let mut lost: BTreeSet<Member> = self
            .hosts
            .iter()
            .flat_map(|host| host.graveyard.iter().map(|(member, _)| member.clone()))
            .collect();
        lost.extend(self.hosts.iter().filter(|host| host.is_gone).map(|host| host.member.clone()));
        lost.retain(|member| !here.contains(member));
        self.note(|| format!("an operator declares {lost:?} lost"));
        let slots = self.config.contexts.slots.clone();
        let approved = slots.iter().filter_map(|slot| Some((*slot, self.approval(*slot, &lost)?)));
        let declared = DeclaredLosses { slots: approved.collect(), lost };
        self.declared.clone_from(&declared);
        for index in 0..self.hosts.len() {
            self.with(index, |node| node.declare_lost(declared.clone()));
        }
    }

    /// Returns how a slot may continue: with the newest members that any node knows.
    fn approval(&self, slot: Slot, lost: &BTreeSet<Member>) -> Option<RecoveryApproval> {
        let records: Vec<(Member, SlotRecord)> = self
            .hosts
            .iter()
            .filter_map(|host| Some((host.member.clone(), host.node.as_ref()?.record(slot))))
            .collect();
        let known = records.iter().filter_map(|(_, record)| record.placement.as_ref());
        let newest = known.max_by_key(|placement| placement.rank())?;
        if !newest.needs_approval(lost, self.plan.settings.write_quorum) {
            return None;
        }
        let is_known =
            |record: &SlotRecord| record.placement.as_ref().is_some_and(|known| known.is_confirmed);
        let best = records.iter().max_by_key(|(_, record)| (is_known(record), record.accepted));
        let heir = best.map(|(member, _)| member.clone());
        let heir = heir.filter(|_| newest.named().all(|member| lost.contains(member)));
        Some(RecoveryApproval::of(newest, heir))
    }

    /// Returns whether a watcher may find that what it saw is gone.
    pub(super) fn may_change(&self, client: usize) -> bool {
        matches!(&self.clients[client], Client::Watcher(watcher) if self.changed.contains(&watcher.context))
    }
}
