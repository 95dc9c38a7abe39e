//! What every slot holds, as digests, kept up to date with every commit.

use std::collections::BTreeMap;

use ledger_core::{
    ContextId,
    digest::{Bucket, Digest, Extent, SlotDigest},
    slot::{SLOTS, Slot},
};
use parking_lot::Mutex;

use crate::{
    StoreError,
    db::{Db, io_error},
    families, scrub,
};

/// The digest of every slot. A context without entries does not count: it is as good as none.
#[derive(Debug)]
pub(crate) struct Digests(Box<[Mutex<SlotDigest>]>);

impl Digests {
    /// Reads the heads of all contexts: some two seconds for a million.
    pub(crate) fn scan(db: &Db) -> Result<Self, StoreError> {
        let digests = Self((0..SLOTS).map(|_| Mutex::default()).collect());
        digests.rescan(db, |_| true)?;
        Ok(digests)
    }

    /// Reads the heads of slots anew. Nothing may be written to these slots meanwhile.
    pub(crate) fn rescan(&self, db: &Db, slots: impl Fn(Slot) -> bool) -> Result<(), StoreError> {
        let mut fresh: Vec<SlotDigest> = (0..SLOTS).map(|_| SlotDigest::default()).collect();
        db.scan(families::HEADS, &[], &[0xff], false, |key, value| {
            if let Some((context, place, head)) = scrub::decode_row(key, value) {
                if slots(place.slot) {
                    let extent = counted(head.extent());
                    fresh[usize::from(place.slot.number())].replace(&context, None, extent);
                }
            } else {
                // It is missing here, as far as peers can tell.
                tracing::error!(?key, bytes = value.len(), "a head cannot be decoded: it is in no digest");
            }
            true
        })
        .map_err(|error| io_error(&error))?;
        for (number, fresh) in (0..SLOTS).zip(fresh) {
            if Slot::new(number).is_some_and(&slots) {
                *self.0[usize::from(number)].lock() = fresh;
            }
        }
        Ok(())
    }

    /// Notes that a context went from `old` to `new`; `None`: it does not exist.
    pub(crate) fn replace(&self, context: &ContextId, old: Option<Extent>, new: Option<Extent>) {
        let (old, new) = (old.and_then(counted), new.and_then(counted));
        self.of_slot(Slot::of(context)).lock().replace(context, old, new);
    }

    /// The digest of a slot.
    pub(crate) fn whole(&self, slot: Slot) -> Digest {
        self.of_slot(slot).lock().whole()
    }

    /// How many contexts there are.
    pub(crate) fn contexts(&self) -> u64 {
        self.0.iter().map(|slot| slot.lock().whole().count()).sum()
    }

    /// The digests of the buckets of a slot that hold something.
    pub(crate) fn buckets(&self, slot: Slot) -> BTreeMap<Bucket, Digest> {
        self.of_slot(slot).lock().buckets().collect()
    }

    fn of_slot(&self, slot: Slot) -> &Mutex<SlotDigest> {
        &self.0[usize::from(slot.number())]
    }
}

fn counted(extent: Extent) -> Option<Extent> {
    (extent.size.0 > 0).then_some(extent)
}

#[cfg(test)]
mod tests {
    use ledger_core::{Hash, Size};

    use super::*;
    use crate::testing::{self, Writer};

    fn everything(digests: &Digests) -> Vec<(Digest, BTreeMap<Bucket, Digest>)> {
        let slots = (0..SLOTS).filter_map(Slot::new);
        slots.map(|slot| (digests.whole(slot), digests.buckets(slot))).collect()
    }

    #[test]
    fn digests_kept_up_to_date_are_those_read_from_the_heads() {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open(dir.path());
        let kept = Digests::scan(&db).unwrap();
        for number in 0..2000 {
            let mut writer = Writer::new(&db, &format!("c-{number}"), 1);
            for count in [1 + number % 3, 2] {
                let before = (writer.extent().size.0 > 0).then(|| writer.extent());
                writer.append(count);
                kept.replace(&writer.context, before, Some(writer.extent()));
            }
        }
        assert_eq!(everything(&kept), everything(&Digests::scan(&db).unwrap()));
        assert_eq!(kept.contexts(), 2000);
    }

    #[test]
    fn slots_that_are_not_read_anew_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open(dir.path());
        let digests = Digests::scan(&db).unwrap();
        let mut writer = Writer::new(&db, "c", 1);
        writer.append(3);
        let slot = Slot::of(&writer.context);
        digests.rescan(&db, |other| other != slot).unwrap();
        assert_eq!(digests.whole(slot).count(), 0);
        digests.rescan(&db, |this| this == slot).unwrap();
        assert_eq!(digests.whole(slot).count(), 1);
    }

    #[test]
    fn a_context_without_entries_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open(dir.path());
        let mut empty = Writer::new(&db, "empty", 1);
        empty.append(0);
        let digests = Digests::scan(&db).unwrap();
        let slot = Slot::of(&empty.context);
        assert_eq!(digests.whole(slot), Digest::default());
        let nothing = Extent { size: Size(0), root: Hash([1; 32]) };
        let something = Extent { size: Size(1), root: Hash([1; 32]) };
        digests.replace(&empty.context, Some(nothing), Some(something));
        assert_eq!(digests.whole(slot).count(), 1);
        digests.replace(&empty.context, Some(something), Some(nothing));
        assert_eq!(digests.whole(slot), Digest::default());
    }
}
