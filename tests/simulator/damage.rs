//! Damage: what a node notices of what it cannot read, as in `ledger_store::integrity`.
//!
//! | damage | what meets it | what still works |
//! | --- | --- | --- |
//! | head | everything | nothing: only the digest that the node kept knows the context |
//! | entries | reads, fetches, forks, loads, the scrub | appends, as long as nothing before them is read |
//! | tiles | roots at earlier sizes, the scrub | reads and appends, until it is found |
//! | a slot's record | a restart, the scrub | everything, from memory, until the node is started anew |

use super::prelude::*;

/// What is read of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    Head,
    /// The head, and the entries after a size.
    After(u64),
    /// The roots at earlier sizes.
    Roots,
}

impl Node {
    /// Damages what the disk holds of a context. Nobody knows yet.
    pub fn damage(&mut self, context: Context, damage: Damage) {
        let is_lost = self.is_broken(DisabledRule::DamageIsAbsence);
        self.disk.damage(context, if is_lost { Damage::Head } else { damage });
    }

    /// Returns whether appends to a context wait for a quorum.
    pub fn waits(&self, context: Context) -> bool {
        self.commits.has_pending(self.slot(context))
    }

    pub(super) fn damage_of(&self, context: Context) -> Option<Damage> {
        let damage = self.disk.now.damaged.get(&context).copied();
        damage.filter(|_| !self.is_broken(DisabledRule::DamageIsAbsence))
    }

    /// Returns whether something of a context cannot be read, without recording it.
    pub fn is_unreadable(&self, context: Context) -> bool {
        self.damage_of(context).is_some()
    }

    /// Returns whether a read fails: the context is damaged there, which is recorded, or in quarantine. A head can be read
    /// as long as it is not lost itself.
    pub(super) fn fails(&mut self, context: Context, read: Read) -> bool {
        let meets = match (self.damage_of(context), read) {
            (Some(Damage::Head), _) | (Some(_), Read::Roots) => true,
            (Some(Damage::Entries(to)), Read::After(size)) => to > size,
            _ => false,
        };
        if meets {
            self.quarantine.insert(context);
        }
        meets || read != Read::Head && self.quarantine.contains(&context)
    }

    /// Does the same for all entries of a context.
    pub(super) fn is_damaged(&mut self, context: Context) -> bool {
        self.fails(context, Read::After(0))
    }

    /// Returns whether something of a slot is known to be damaged.
    pub(super) fn has_damage(&self, slot: Slot) -> bool {
        self.quarantine.iter().any(|context| self.slot(*context) == slot)
    }

    /// Finds damage that nobody met, and writes damaged records anew from memory.
    pub(super) fn scrub(&mut self) {
        for context in self.disk.now.damaged.keys().copied().collect::<Vec<_>>() {
            if self.random.chance(30) && self.is_unreadable(context) {
                self.quarantine.insert(context);
            }
        }
        for slot in self.disk.now.damaged_records.clone() {
            if self.random.chance(30) && self.can_write() {
                self.disk.write(Write::Record(slot, self.record(slot)));
                self.want_sync();
            }
        }
    }

    /// Reads the disk when the node starts. What cannot be read is in no digest, and known to be damaged from then on.
    pub(super) fn scan(&mut self) {
        self.digests.clear();
        for context in 0..self.config.contexts.len() {
            self.fails(context, Read::Head);
            let (slot, head) = (self.slot(context), self.history(context).head());
            self.digests.entry(slot).or_default().replace(self.config.contexts.id(context), None, Some(head));
        }
    }
}
