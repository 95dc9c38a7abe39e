//! Keeps a digest of every slot's content up to date with every commit.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::BuildHasher as _,
};

use foldhash::fast::FixedState;
use ledger_core::{
    ContextId, Head, Sequence,
    digest::{Bucket, Digest, SlotDigest, TreeHead},
    healing::proves_by_digest,
    slot::{SLOTS, Slot},
};
use parking_lot::Mutex;

use crate::{
    StoreError, engine::db::Db, engine::errors::io_error, engine::families, engine::heads, engine::index,
    engine::record, error::damaged, integrity::quarantine::Quarantine, limited,
};

/// The digest of every slot. A context without entries does not count, so that it equals an absent one.
#[derive(Debug)]
pub(crate) struct Digests(Box<[Mutex<SlotDigest>]>);

impl Digests {
    /// Reads the heads of all contexts, which takes some two seconds for a million. Quarantines what cannot be read.
    pub(crate) fn scan(db: &Db, quarantine: &Quarantine) -> Result<Self, StoreError> {
        let digests = Self((0..SLOTS).map(|_| Mutex::default()).collect());
        digests.rescan(db, quarantine, |_| true)?;
        Ok(digests)
    }

    /// Reads the heads of some slots again. Nothing may write to these slots meanwhile.
    ///
    /// A head that cannot be read is in no digest, and its context is in quarantine. Peers then see that something
    /// differs, and the response to their request says that it is unreadable.
    pub(crate) fn rescan(
        &self,
        db: &Db,
        quarantine: &Quarantine,
        slots: impl Fn(Slot) -> bool,
    ) -> Result<(), StoreError> {
        let fresh = match read_all(db, quarantine, &slots) {
            // The index also names the contexts whose heads are in the damaged block.
            Err(StoreError::FileDamaged(reason)) => {
                quarantine.record_family(families::HEADS, &reason);
                read_by_index(db, quarantine, &slots)?
            }
            read => read?,
        };
        for (number, fresh) in (0..SLOTS).zip(fresh) {
            if Slot::new(number).is_some_and(&slots) {
                *self.0[usize::from(number)].lock() = fresh;
            }
        }
        Ok(())
    }

    /// Returns whether a context whose head cannot be read had exactly this tree head. That holds if the digest kept
    /// of its bucket equals the digest of all other contexts together with it. For other unreadable contexts of the
    /// bucket this uses `theirs`, which the same equation proves. Nothing may write to the slot meanwhile.
    pub(crate) fn proves(
        &self,
        db: &Db,
        context: &ContextId,
        extent: TreeHead,
        theirs: &BTreeMap<ContextId, TreeHead>,
    ) -> Result<bool, StoreError> {
        let others = read_bucket(db, context)?;
        let kept = self.of_slot(Slot::of(context)).lock().bucket(Bucket::of(context));
        Ok(proves_by_digest(kept, context, extent, others, theirs))
    }

    /// Recounts the bucket of a context that is at `now`, if its previous tree head is unknown. Nothing may write to
    /// the slot meanwhile.
    pub(crate) fn recount(&self, db: &Db, context: &ContextId, now: TreeHead) -> Result<(), StoreError> {
        let others = read_bucket(db, context)?.into_iter().filter_map(|(other, head)| Some((other, head?)));
        let all = others.chain([(context.clone(), now)]);
        self.of_slot(Slot::of(context)).lock().recount(Bucket::of(context), all);
        Ok(())
    }

    /// Records that a context went from `old` to `new`; `None`: it does not exist.
    pub(crate) fn replace(&self, context: &ContextId, old: Option<TreeHead>, new: Option<TreeHead>) {
        self.of_slot(Slot::of(context)).lock().replace(context, old, new);
    }

    /// Returns the digest of a slot.
    pub(crate) fn whole(&self, slot: Slot) -> Digest {
        self.of_slot(slot).lock().whole()
    }

    /// Counts the contexts in some slots.
    pub(crate) fn contexts(&self, slots: impl Fn(Slot) -> bool) -> u64 {
        let counted = (0..SLOTS).filter_map(Slot::new).filter(|slot| slots(*slot));
        counted.map(|slot| self.whole(slot).count()).sum()
    }

    /// Returns the digests of a slot's non-empty buckets.
    pub(crate) fn buckets(&self, slot: Slot) -> BTreeMap<Bucket, Digest> {
        self.of_slot(slot).lock().buckets().collect()
    }

    fn of_slot(&self, slot: Slot) -> &Mutex<SlotDigest> {
        &self.0[usize::from(slot.number())]
    }
}

/// Computes the digests of slots from the heads, in key order.
fn read_all(
    db: &Db,
    quarantine: &Quarantine,
    slots: impl Fn(Slot) -> bool,
) -> Result<Vec<SlotDigest>, StoreError> {
    let mut fresh: Vec<SlotDigest> = (0..SLOTS).map(|_| SlotDigest::default()).collect();
    let mut names = Names::new();
    db.scan(families::HEADS, &[], &[0xff], false, |key, value| {
        let name = std::str::from_utf8(key).ok().and_then(|name| ContextId::new(name).ok());
        let Some(context) = name else {
            limited!(error, ?key, bytes = value.len(), "a head has a malformed name");
            return true;
        };
        let slot = Slot::of(&context);
        if !slots(slot) {
            return true;
        }
        names.count(slot, context.as_str());
        match record::decode_head(value) {
            Ok((_, head)) => {
                fresh[usize::from(slot.number())].replace(&context, None, Some(head.tree_head()));
            }
            Err(error) => quarantine.record(&damaged(&context, Sequence(0), &error.to_string())),
        }
        true
    })
    .map_err(|error| io_error(&error))?;
    match note_lost(db, quarantine, &names, slots) {
        // Peers that have these names report what is missing here.
        Err(StoreError::FileDamaged(reason)) => quarantine.record_family(families::SLOTS, &reason),
        noted => noted?,
    }
    Ok(fresh)
}

/// Quarantines the contexts that the index has and the heads, with these names, lack. They are lost, and this node
/// must not appear never to have had them.
fn note_lost(
    db: &Db,
    quarantine: &Quarantine,
    heads: &Names,
    slots: impl Fn(Slot) -> bool,
) -> Result<(), StoreError> {
    let mut names = Names::new();
    index::everything(db, |slot, name| {
        if slots(slot) {
            names.count(slot, name);
        }
    })?;
    let all = (0..=u8::MAX).map(Bucket).collect();
    for slot in names.differ(heads) {
        each_head(db, slot, &all, |_, head| {
            if let Err(error) = head {
                quarantine.record(&error);
            }
        })?;
    }
    Ok(())
}

/// The names of each slot, as a sum of their hashes: different sets of names give the same sum with a probability of
/// 2⁻⁶⁴.
struct Names(Vec<u64>);

impl Names {
    fn new() -> Self {
        Self(vec![0; usize::from(SLOTS)])
    }

    fn count(&mut self, slot: Slot, name: &str) {
        let sum = &mut self.0[usize::from(slot.number())];
        *sum = sum.wrapping_add(FixedState::default().hash_one(name));
    }

    /// Returns the slots whose names differ.
    fn differ(&self, other: &Self) -> impl Iterator<Item = Slot> {
        let sums = (0..SLOTS).zip(self.0.iter().zip(&other.0));
        sums.filter(|(_, (here, there))| here != there).filter_map(|(number, _)| Slot::new(number))
    }
}

/// Computes the same from the names in the slot index, with one lookup per context.
fn read_by_index(
    db: &Db,
    quarantine: &Quarantine,
    slots: impl Fn(Slot) -> bool,
) -> Result<Vec<SlotDigest>, StoreError> {
    let mut fresh: Vec<SlotDigest> = (0..SLOTS).map(|_| SlotDigest::default()).collect();
    let all = (0..=u8::MAX).map(Bucket).collect();
    for slot in (0..SLOTS).filter_map(Slot::new).filter(|slot| slots(*slot)) {
        each_head(db, slot, &all, |context, head| match head {
            Ok(head) => fresh[usize::from(slot.number())].replace(context, None, Some(head.tree_head())),
            Err(error) => quarantine.record(&error),
        })?;
    }
    Ok(fresh)
}

/// Returns the other contexts in a context's bucket, each with its tree head if that can be read. A bucket has some four
/// contexts for each million in the cluster.
fn read_bucket(db: &Db, context: &ContextId) -> Result<Vec<(ContextId, Option<TreeHead>)>, StoreError> {
    let mut others = Vec::new();
    each_head(db, Slot::of(context), &[Bucket::of(context)].into(), |other, head| {
        if other != context {
            others.push((other.clone(), head.ok().map(|head| head.tree_head())));
        }
    })?;
    Ok(others)
}

/// Visits the heads of the contexts in some buckets of a slot, by the index. A lost head is an error.
fn each_head(
    db: &Db,
    slot: Slot,
    buckets: &BTreeSet<Bucket>,
    mut visit: impl FnMut(&ContextId, Result<Head, StoreError>),
) -> Result<(), StoreError> {
    index::scan(db, slot, buckets, None, |name| {
        if let Ok(context) = ContextId::new(name) {
            let head =
                heads::head(db, &context).and_then(|row| row.ok_or_else(|| heads::lost_head(&context)));
            visit(&context, head.map(|(_, head)| head));
        }
        true
    })
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
        let kept = Digests::scan(&db, &Quarantine::default()).unwrap();
        for number in 0..2000 {
            let mut writer = Writer::new(&db, &format!("c-{number}"), 1);
            for count in [1 + number % 3, 2] {
                let before = (writer.extent().size.0 > 0).then(|| writer.extent());
                writer.append(count);
                kept.replace(&writer.context, before, Some(writer.extent()));
            }
        }
        assert_eq!(everything(&kept), everything(&Digests::scan(&db, &Quarantine::default()).unwrap()));
        assert_eq!(kept.contexts(|_| true), 2000);
        assert_eq!(kept.contexts(|_| false), 0);
    }

    #[test]
    fn slots_that_are_not_read_anew_stay_as_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open(dir.path());
        let digests = Digests::scan(&db, &Quarantine::default()).unwrap();
        let mut writer = Writer::new(&db, "c", 1);
        writer.append(3);
        let slot = Slot::of(&writer.context);
        digests.rescan(&db, &Quarantine::default(), |other| other != slot).unwrap();
        assert_eq!(digests.whole(slot).count(), 0);
        digests.rescan(&db, &Quarantine::default(), |this| this == slot).unwrap();
        assert_eq!(digests.whole(slot).count(), 1);
    }

    #[test]
    fn a_head_that_cannot_be_read_is_quarantined_and_the_digest_says_what_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open(dir.path());
        let mut lost = Writer::new(&db, "lost", 1);
        lost.append(3);
        let bucket = |context: &ContextId| (Slot::of(context), Bucket::of(context));
        let names = (0..).map(|number| format!("c-{number}"));
        let mut names = names.filter(|name| bucket(&ContextId::new(name).unwrap()) == bucket(&lost.context));
        let mut neighbour = Writer::new(&db, &names.next().unwrap(), 2);
        let was = neighbour.append(1).extent();
        let neighbour = neighbour.context.clone();
        index::ensure(&db).unwrap();
        let kept = Digests::scan(&db, &Quarantine::default()).unwrap();
        let before = everything(&kept);
        let damage = |context: &ContextId| {
            let mut batch = rocksdb::WriteBatch::default();
            batch.put_cf(db.family(families::HEADS).unwrap(), context.as_str(), b"not a head");
            db.write(batch).unwrap();
        };
        damage(&lost.context);

        let (right, shorter) = (lost.extent(), TreeHead { size: Size(2), root: Hash([1; 32]) });
        let proves = |digests: &Digests, extent, theirs: &BTreeMap<_, _>| {
            digests.proves(&db, &lost.context, extent, theirs).unwrap()
        };
        let nothing = BTreeMap::new();
        assert!(proves(&kept, right, &nothing));
        assert!(!proves(&kept, shorter, &nothing));

        // A restarted node does not know the previous digest, and reports that.
        let quarantine = Quarantine::default();
        let fresh = Digests::scan(&db, &quarantine).unwrap();
        assert!(quarantine.check(&lost.context).is_err() && quarantine.list().len() == 1);
        assert!(!proves(&fresh, right, &nothing));
        fresh.recount(&db, &lost.context, right).unwrap();
        assert_eq!(everything(&fresh), before);

        // Two damaged contexts of one bucket are proven together.
        damage(&neighbour);
        assert!(!proves(&kept, right, &nothing));
        assert!(proves(&kept, right, &[(neighbour.clone(), was)].into()));
        assert!(!proves(&kept, right, &[(neighbour.clone(), shorter)].into()));
        assert!(!proves(&kept, shorter, &[(neighbour, was)].into()));
    }

    #[test]
    fn a_context_whose_head_is_lost_is_quarantined_by_the_scan() {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open(dir.path());
        let contexts: Vec<_> =
            (0..500).map(|n| Writer::new(&db, &format!("c-{n}"), n).append(1).context.clone()).collect();
        index::ensure(&db).unwrap();
        let quarantine = Quarantine::default();
        Digests::scan(&db, &quarantine).unwrap();
        assert!(quarantine.list().is_empty());

        let lost = &contexts[123];
        let mut batch = rocksdb::WriteBatch::default();
        batch.delete_cf(db.family(families::HEADS).unwrap(), lost.as_str());
        db.write(batch).unwrap();
        let others = Quarantine::default();
        Digests::scan(&db, &others).unwrap().rescan(&db, &quarantine, |slot| slot != Slot::of(lost)).unwrap();
        assert!(quarantine.list().is_empty(), "of another slot");
        let found: Vec<_> = others.list().into_iter().map(|damage| damage.context).collect();
        assert_eq!(found, std::slice::from_ref(lost));
    }

    #[test]
    fn a_context_without_entries_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open(dir.path());
        let mut empty = Writer::new(&db, "empty", 1);
        empty.append(0);
        let digests = Digests::scan(&db, &Quarantine::default()).unwrap();
        let slot = Slot::of(&empty.context);
        assert_eq!(digests.whole(slot), Digest::default());
        let nothing = TreeHead { size: Size(0), root: Hash([1; 32]) };
        let something = TreeHead { size: Size(1), root: Hash([1; 32]) };
        digests.replace(&empty.context, Some(nothing), Some(something));
        assert_eq!(digests.whole(slot).count(), 1);
        digests.replace(&empty.context, Some(something), Some(nothing));
        assert_eq!(digests.whole(slot), Digest::default());
    }
}
