//! What of the directory cannot be read, or does not match its hashes. Reads of it fail; nothing is deleted, and nobody
//! takes it for absent.

use std::{
    collections::{BTreeMap, HashMap},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use ledger_core::{
    ContextId,
    slot::{SLOTS, Slot},
};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Damage, FamilyDamage, StoreError, limited};

/// The damage known: one item for each context, and one for each family in which there is some that is no context's.
#[derive(Debug)]
pub(crate) struct Quarantine {
    contexts: Mutex<HashMap<ContextId, FoundDamage>>,
    count: AtomicUsize,
    /// Damaged contexts of each slot.
    slots: Box<[AtomicUsize]>,
    /// Those of which there ever were some: a damaged block is still there after they were restored.
    slots_with_past_damage: Box<[AtomicUsize]>,
    families: Mutex<BTreeMap<&'static str, String>>,
    changed: watch::Sender<usize>,
}

#[derive(Debug)]
struct FoundDamage {
    damage: Damage,
    at: Instant,
}

/// How long a context that was found to be damaged is likely to be restored from another node in a moment.
const RESTORED_WITHIN: Duration = Duration::from_mins(1);

impl Default for Quarantine {
    fn default() -> Self {
        let zeroes = || (0..SLOTS).map(|_| AtomicUsize::new(0)).collect();
        Self {
            contexts: Mutex::default(),
            count: AtomicUsize::new(0),
            slots: zeroes(),
            slots_with_past_damage: zeroes(),
            families: Mutex::default(),
            changed: watch::Sender::default(),
        }
    }
}

impl Quarantine {
    /// Refuses a damaged context.
    pub(crate) fn check(&self, context: &ContextId) -> Result<(), StoreError> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        match self.contexts.lock().get(context).map(|found| found.damage.clone()) {
            None => Ok(()),
            Some(Damage { context, sequence, reason }) => {
                Err(StoreError::Damaged { context, sequence, reason })
            }
        }
    }

    /// Whether a context of the slot is damaged: what this node has of it is not all that it had.
    pub(crate) fn has(&self, slot: Slot) -> bool {
        of(&self.slots, slot).load(Ordering::Acquire) > 0
    }

    /// A damaged context of a slot.
    pub(crate) fn any(&self, slot: Slot) -> Option<Damage> {
        if !self.has(slot) {
            return None;
        }
        let contexts = self.contexts.lock();
        contexts.values().map(|found| &found.damage).find(|damage| Slot::of(&damage.context) == slot).cloned()
    }

    /// Whether rows of the slot may lie where a damaged block is in the way of reading them.
    pub(crate) fn had_damage(&self, slot: Slot) -> bool {
        of(&self.slots_with_past_damage, slot).load(Ordering::Relaxed) > 0
    }

    /// Remembers an error's damage, if it is about damage.
    pub(crate) fn record(&self, error: &StoreError) {
        let StoreError::Damaged { context, sequence, reason } = error else { return };
        let mut contexts = self.contexts.lock();
        if !contexts.contains_key(context) {
            limited!(error, %context, %sequence, %reason, "a context is damaged and quarantined");
            let damage = Damage { context: context.clone(), sequence: *sequence, reason: reason.clone() };
            contexts.insert(context.clone(), FoundDamage { damage, at: Instant::now() });
            of(&self.slots, Slot::of(context)).fetch_add(1, Ordering::AcqRel);
            of(&self.slots_with_past_damage, Slot::of(context)).store(1, Ordering::Relaxed);
            self.counted(contexts.len());
        }
    }

    /// What an append to a damaged context is answered with where other nodes have copies. One that was not restored in time
    /// is lost for all that is known.
    pub(crate) fn restoring(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Damaged { context, reason, .. }
                if self
                    .contexts
                    .lock()
                    .get(&context)
                    .is_some_and(|found| found.at.elapsed() < RESTORED_WITHIN) =>
            {
                StoreError::Restoring { context, reason }
            }
            error => error,
        }
    }

    /// Remembers damage of a family that is not of one context.
    pub(crate) fn record_family(&self, family: &'static str, reason: &str) {
        let known = self.families.lock().insert(family, reason.to_owned());
        if known.is_none() {
            limited!(error, family, reason, "a family of the database is damaged");
        }
    }

    /// A family was read to its end without meeting damage.
    pub(crate) fn release_family(&self, family: &'static str) {
        if self.families.lock().remove(family).is_some() {
            limited!(info, family, "a family of the database is whole again");
        }
    }

    /// The families that are damaged.
    pub(crate) fn families(&self) -> Vec<FamilyDamage> {
        let families = self.families.lock();
        families.iter().map(|(family, reason)| FamilyDamage { family, reason: reason.clone() }).collect()
    }

    /// The context was restored.
    pub(crate) fn release(&self, context: &ContextId) {
        let mut contexts = self.contexts.lock();
        if contexts.remove(context).is_some() {
            limited!(info, %context, "a damaged context was restored");
            of(&self.slots, Slot::of(context)).fetch_sub(1, Ordering::AcqRel);
            self.counted(contexts.len());
        }
    }

    /// How many there are, from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<usize> {
        self.changed.subscribe()
    }

    /// All of it.
    pub(crate) fn list(&self) -> Vec<Damage> {
        self.contexts.lock().values().map(|found| found.damage.clone()).collect()
    }

    fn counted(&self, count: usize) {
        self.count.store(count, Ordering::Release);
        self.changed.send_replace(count);
    }
}

fn of(slots: &[AtomicUsize], slot: Slot) -> &AtomicUsize {
    &slots[usize::from(slot.number())]
}
