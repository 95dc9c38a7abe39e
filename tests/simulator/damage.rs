//! Damage: what a node notices of what it cannot read, as in `ledger_store::integrity`.
//!
//! | damage | what meets it | what still works |
//! | --- | --- | --- |
//! | head | everything | nothing: only the digest that the node kept knows the context |
//! | entries | reads, fetches, forks, loads, the scrub | appends, as long as nothing before them is read |
//! | tiles | roots at earlier sizes, the scrub | reads and appends, until it is found |
//! | a slot's record | a restart, the scrub | everything, from memory, until the node is started anew |

use std::collections::BTreeSet;

use ledger_core::slot::Slot;

use super::{
    broken::DisabledRule,
    disk::{Damage, Write},
    history::Context,
    node::Node,
};

impl Node {
    /// Damages what the disk holds of a context. Nobody knows yet.
    pub fn damage(&mut self, context: Context, damage: Damage) {
        if self.config.broken == DisabledRule::DamageIsAbsence {
            self.ids[context].clear();
            return self.disk.damage(context, Damage::Head);
        }
        if let Some(head) = self.disk.now.histories[context].extent().filter(|_| damage == Damage::Head) {
            self.lost_sizes.insert(context, head.size.0);
        }
        self.disk.damage(context, damage);
    }

    /// Returns whether appends to a context wait for a quorum.
    pub fn waits(&self, context: Context) -> bool {
        self.commits.has_pending(self.config.contexts.slot(context))
    }

    fn damage_of(&self, context: Context) -> Option<Damage> {
        let damage = self.disk.now.damaged.get(&context).copied();
        damage.filter(|_| self.config.broken != DisabledRule::DamageIsAbsence)
    }

    /// Returns whether the head of a context cannot be read; a caller that tries records the damage.
    pub(super) fn lacks_head(&mut self, context: Context) -> bool {
        let lacks = self.damage_of(context) == Some(Damage::Head);
        if lacks {
            self.quarantine.insert(context);
        }
        lacks
    }

    /// Returns whether entries of a context cannot be read, or the context is in quarantine; a caller that tries records
    /// the damage.
    pub(super) fn is_damaged(&mut self, context: Context) -> bool {
        if matches!(self.damage_of(context), Some(Damage::Head | Damage::Entries(_))) {
            self.quarantine.insert(context);
        }
        self.quarantine.contains(&context)
    }

    /// Does the same for entries after a size, as a fork reads them.
    pub(super) fn is_damaged_after(&mut self, context: Context, size: u64) -> bool {
        match self.damage_of(context) {
            Some(Damage::Entries(to)) if to <= size => self.quarantine.contains(&context),
            _ => self.is_damaged(context),
        }
    }

    /// Does the same for the roots at earlier sizes.
    pub(super) fn lacks_roots(&mut self, context: Context) -> bool {
        if self.damage_of(context).is_some() {
            self.quarantine.insert(context);
        }
        self.quarantine.contains(&context)
    }

    /// Returns whether something of a context cannot be read, without recording it.
    pub fn is_unreadable(&self, context: Context) -> bool {
        self.damage_of(context).is_some()
    }

    /// Returns whether something of a slot is known to be damaged.
    pub(super) fn has_damage(&self, slot: Slot) -> bool {
        self.quarantine.iter().any(|context| self.config.contexts.slot(*context) == slot)
    }

    /// Returns the size of a context, as far as readers may have been shown it.
    pub(super) fn size_here(&self, context: Context) -> u64 {
        match self.lost_sizes.get(&context) {
            Some(size) => *size,
            None => self.disk.now.histories[context].size(),
        }
    }

    /// Finds damage that nobody met, and writes damaged records anew from memory.
    pub(super) fn scrub(&mut self) {
        let damaged: Vec<Context> = self.disk.now.damaged.keys().copied().collect();
        for context in damaged {
            if self.random.chance(30) && self.is_unreadable(context) {
                self.quarantine.insert(context);
            }
        }
        let records: BTreeSet<Slot> = self.disk.now.damaged_records.clone();
        for slot in records {
            if self.random.chance(30) && self.can_write() {
                self.disk.write(Write::Record(slot, self.record(slot)));
                self.want_sync();
            }
        }
    }
}
