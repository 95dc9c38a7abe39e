//! Tracks damage: rows that cannot be read or do not match their hashes. Reads of them fail, nothing is deleted, and
//! nobody treats them as absent.

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

/// The known damage: at most one item for each context, and one for each family with damage that belongs to no
/// context.
#[derive(Debug)]
pub(crate) struct Quarantine {
    contexts: Mutex<HashMap<ContextId, FoundDamage>>,
    count: AtomicUsize,
    /// Number of damaged contexts in each slot.
    slots: Box<[AtomicUsize]>,
    /// Number of contexts in each slot that were ever damaged: the damaged blocks remain after the contexts are
    /// restored.
    slots_with_past_damage: Box<[AtomicUsize]>,
    families: Mutex<BTreeMap<&'static str, String>>,
    changed: watch::Sender<usize>,
}

#[derive(Debug)]
struct FoundDamage {
    damage: Damage,
    at: Instant,
}

/// For this long after damage is found, the context is likely to be restored from another node shortly.
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
    /// Fails if the context is damaged.
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

    /// Returns whether a context of the slot is damaged, so that this node's copy of the slot is incomplete.
    pub(crate) fn has(&self, slot: Slot) -> bool {
        of(&self.slots, slot).load(Ordering::Acquire) > 0
    }

    /// Returns whether a damaged block may block reading rows of the slot.
    pub(crate) fn had_damage(&self, slot: Slot) -> bool {
        of(&self.slots_with_past_damage, slot).load(Ordering::Relaxed) > 0
    }

    /// Records the damage that an error reports, if it reports any.
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

    /// Returns the error for an append to a damaged context where other nodes have copies: retry soon, or the damage
    /// itself if nobody restored the context in time.
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

    /// Records damage of a family that belongs to no context.
    pub(crate) fn record_family(&self, family: &'static str, reason: &str) {
        let known = self.families.lock().insert(family, reason.to_owned());
        if known.is_none() {
            limited!(error, family, reason, "a family of the database is damaged");
        }
    }

    /// Removes a family's damage, because the family was read completely without meeting any.
    pub(crate) fn release_family(&self, family: &'static str) {
        if self.families.lock().remove(family).is_some() {
            limited!(info, family, "a family of the database is whole again");
        }
    }

    /// Returns the damaged families.
    pub(crate) fn families(&self) -> Vec<FamilyDamage> {
        let families = self.families.lock();
        families.iter().map(|(family, reason)| FamilyDamage { family, reason: reason.clone() }).collect()
    }

    /// Removes a context's damage, because the context was restored.
    pub(crate) fn release(&self, context: &ContextId) {
        let mut contexts = self.contexts.lock();
        if contexts.remove(context).is_some() {
            limited!(info, %context, "a damaged context was restored");
            of(&self.slots, Slot::of(context)).fetch_sub(1, Ordering::AcqRel);
            self.counted(contexts.len());
        }
    }

    /// Watches the number of damaged contexts.
    pub(crate) fn watch(&self) -> watch::Receiver<usize> {
        self.changed.subscribe()
    }

    /// Lists all damaged contexts.
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
