//! Which damaged context is tried when.

use std::collections::{BTreeMap, BTreeSet};

use crate::{ContextId, ownership::slot_manager::Millis, slot::Slot};

/// The pause before a context is tried again, milliseconds: at first, and at most.
const FIRST_PAUSE: Millis = 500;
const MAX_PAUSE: Millis = 20_000;
/// A context that stayed undamaged for this long after it was restored counts as healthy again, milliseconds.
const HEALTHY_AFTER: Millis = 600_000;
/// Most contexts that are due together.
pub const MAX_DUE: usize = 1024;
/// If a context is damaged again this often after it was restored, the node's disk is unreliable.
pub const MAX_RELAPSES: u32 = 3;
/// A slot of which a context could not be restored for this long is impaired, milliseconds: another member should own it.
pub const IMPAIRED_AFTER: Millis = 15_000;

/// A context that is damaged, or was.
#[derive(Debug, Clone, Copy)]
struct Patient {
    /// Since when it is damaged; `None`: it was restored.
    damaged_since: Option<Millis>,
    /// When to try it next.
    due: Millis,
    tries: u32,
    restored: u32,
}

/// The damaged contexts of a node, and when the node tries to restore each: as soon as it finds the damage, then ever less
/// often until it has restored the context.
#[derive(Debug, Default)]
pub struct HealSchedule {
    patients: BTreeMap<ContextId, Patient>,
}

impl HealSchedule {
    /// Takes the contexts that are damaged now, and returns those that are due, at most [`MAX_DUE`]: first those never
    /// tried, then those that wait the longest. So contexts that cannot be restored do not starve the others.
    pub fn due(&mut self, now: Millis, damaged: &BTreeSet<ContextId>) -> Vec<ContextId> {
        self.patients
            .retain(|context, patient| damaged.contains(context) || now < patient.due + HEALTHY_AFTER);
        for (context, patient) in &mut self.patients {
            if damaged.contains(context) {
                patient.damaged_since.get_or_insert(now);
            } else {
                patient.damaged_since = None;
            }
        }
        for context in damaged {
            let found = Patient { damaged_since: Some(now), due: now, tries: 0, restored: 0 };
            self.patients.entry(context.clone()).or_insert(found);
        }
        let is_due = |patient: &Patient| patient.damaged_since.is_some() && patient.due <= now;
        let due = self.patients.iter().filter(|(_, patient)| is_due(patient));
        let mut due: Vec<_> =
            due.map(|(context, patient)| (patient.tries > 0, patient.due, context)).collect();
        due.sort();
        due.into_iter().take(MAX_DUE).map(|(.., context)| context.clone()).collect()
    }

    /// Records that a context was tried, and whether it was restored. The next try is after a pause that doubles with
    /// each; `random` spreads it over its second half. Returns how often the context was restored, if it was now.
    pub fn tried(&mut self, now: Millis, context: &ContextId, is_restored: bool, random: u32) -> Option<u32> {
        let patient = self.patients.get_mut(context)?;
        let longest = FIRST_PAUSE.saturating_mul(1 << patient.tries.min(16)).min(MAX_PAUSE);
        let spread = longest / 2 * Millis::from(random) / Millis::from(u32::MAX);
        // Pause after success too: a context that is damaged again at once must not occupy the node.
        patient.due = now + longest / 2 + spread;
        patient.tries = patient.tries.saturating_add(1);
        if is_restored {
            patient.damaged_since = None;
            patient.restored = patient.restored.saturating_add(1);
        }
        is_restored.then_some(patient.restored)
    }

    /// Returns the slots of which a context was tried, and could not be restored for [`IMPAIRED_AFTER`].
    pub fn impaired(&self, now: Millis) -> BTreeSet<Slot> {
        let is_impaired = |patient: &Patient| {
            patient.tries > 0
                && patient.damaged_since.is_some_and(|since| now.saturating_sub(since) >= IMPAIRED_AFTER)
        };
        let impaired = self.patients.iter().filter(|(_, patient)| is_impaired(patient));
        impaired.map(|(context, _)| Slot::of(context)).collect()
    }
}
