//! Which disks may be lost without the loss of what must survive.

use ledger_core::rendezvous;

use super::{prelude::*, run::Host};

impl Host {
    /// Returns whether the disk holds something unreadable: it counts as lost until that is restored.
    pub fn is_damaged(&self) -> bool {
        let is_damaged = |store: &Store| !store.damaged.is_empty() || !store.damaged_records.is_empty();
        is_damaged(&self.disk().now) || is_damaged(&self.disk().durable)
    }

    /// Keeps a copy of what is lost with the disk.
    pub fn bury(&mut self) {
        let lost = (self.member.clone(), self.disk().durable.clone());
        self.graveyard.push(lost);
    }
}

impl World {
    /// Crashes a node, and replaces its disk by an empty one.
    pub(super) fn lose_disk(&mut self, index: Index) {
        self.crash(index);
        let (storage, host) = (self.new_storage(), &mut self.hosts[index]);
        host.bury();
        host.disk = Some(Disk::new(self.plan.contexts));
        host.member.storage = storage;
        host.leaving = None;
        self.last_loss = self.now;
        self.note(|| format!("the disk of n{index} is wiped"));
    }

    /// Returns whether a disk may be lost: no counting set of members, not even one about to count, has lost as many
    /// as it can bear, and losses are far enough apart.
    pub(super) fn can_lose(&self, index: Index) -> bool {
        if self.owned.len() < self.plan.slots || self.now < self.last_loss + 3_000_000 {
            return false;
        }
        // Leaving members without a replacement are as good as gone.
        let stays = |host: &Host| {
            !host.is_gone && !host.is_damaged() && host.leaving != Some(DecommissionMode::AllowFewer)
        };
        let here: BTreeSet<&Member> =
            self.hosts.iter().filter(|host| stays(host)).map(|host| &host.member).collect();
        let lost = &self.hosts[index].member;
        let slots = &self.config.contexts.slots;
        slots.iter().flat_map(|slot| self.sets_of(*slot)).all(|set| {
            let gone = set.members().iter().filter(|of| !here.contains(of) && *of != lost).count();
            gone < set.len() - set.members_that_must_know(self.plan.settings.write_quorum, set.len())
        }) && self.remembers(|without| without == index)
            && (self.plan.is_strict() || self.others_know(index))
    }

    /// Returns a node's durable record of a slot, whether the node runs or not.
    fn recorded(&self, index: Index, slot: Slot) -> Option<&SlotRecord> {
        let host = Some(&self.hosts[index]).filter(|host| !host.is_gone)?;
        host.disk().durable.records.get(&slot)
    }

    /// Returns whether another member of each slot knows the slot's members for certain: no other node would claim
    /// it. With availability first, one node may own a slot alone, with all that is known of it.
    fn others_know(&self, index: Index) -> bool {
        self.owned.iter().all(|(slot, (_, set))| {
            let knows = |other: Index| {
                let placement = self.recorded(other, *slot).and_then(|record| record.placement.as_ref());
                placement.is_some_and(|known| {
                    known.is_confirmed && known.previous.is_none() && known.members == *set
                })
            };
            let is_member = |other: Index| set.contains(&self.hosts[other].member);
            (0..self.hosts.len()).any(|other| other != index && is_member(other) && knows(other))
        })
    }

    /// Returns whether some node that formed each slot would still remember that the slot was formed. If all of them
    /// lost their disks and were cut off since, they could form it again.
    pub(super) fn remembers(&self, without: impl Fn(Index) -> bool) -> bool {
        let first = || self.hosts.iter().take(self.plan.nodes).map(|host| host.member.node.clone());
        self.config.contexts.slots.iter().all(|slot| {
            let formed = rendezvous::preference_order(*slot, first());
            formed.iter().take(self.plan.settings.replication_factor).map(index_of).any(|index| {
                let record = self.recorded(index, *slot);
                let knows = record.is_some_and(|record| record.is_formed || record.placement.is_some());
                knows && !without(index)
            })
        })
    }

    /// Returns the members of a slot as its newest owner counts them, and as any node with newer knowledge does.
    pub(super) fn sets_of(&self, slot: Slot) -> Vec<ReplicaSet> {
        let Some((claim, set)) = self.owned.get(&slot) else { return Vec::new() };
        let mut sets = vec![set.clone()];
        for store in self.hosts.iter().flat_map(|host| [&host.disk().durable, &host.disk().now]) {
            let placement = store.records.get(&slot).and_then(|record| record.placement.as_ref());
            if let Some(placement) = placement.filter(|placement| placement.epoch > claim.epoch) {
                sets.push(placement.members.clone());
                // Until the move is confirmed, the previous members are needed too.
                sets.extend(placement.previous.clone());
            }
        }
        sets
    }
}
