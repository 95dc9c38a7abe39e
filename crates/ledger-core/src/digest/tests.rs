use proptest::prelude::*;

use super::*;

fn context(number: u32) -> ContextId {
    ContextId::new(format!("context-{number}")).unwrap()
}

fn extent(size: u64) -> TreeHead {
    TreeHead { size: Size(size), root: Hash(*blake3::hash(&size.to_be_bytes()).as_bytes()) }
}

fn digest_of(contexts: &BTreeMap<u32, u64>) -> SlotDigest {
    let mut digest = SlotDigest::default();
    for (number, size) in contexts {
        digest.replace(&context(*number), None, Some(extent(*size)));
    }
    digest
}

#[test]
fn digests_never_change_between_releases() {
    let digest = digest_of(&BTreeMap::from([(1, 7), (2, 1_000_000)]));
    assert_eq!(
        hex::encode(digest.whole().to_bytes()),
        "0b90710500e423472d8987776e37a67aa604532b29209fe8d1dc70d2f8f5ce9a0000000000000002"
    );
    let slots = BTreeMap::from([(Slot::new(3).unwrap(), digest.whole())]);
    assert_eq!(
        NodeDigest::of(&slots).0.to_string(),
        "3978ee360da5448488ce212c14c8f90e9549adca609fe139e2ec6a6f8dfa2f9c"
    );
    assert_eq!([1, 2, 3].map(|number| Bucket::of(&context(number)).0), [238, 126, 6]);
}

#[test]
fn carries_and_borrows_run_through_all_of_the_sum() {
    let one = Digest { sum: [1, 0, 0, 0], count: 1 };
    let mut digest = Digest { sum: [u64::MAX; 4], count: u64::MAX };
    digest.add_all(&one);
    assert_eq!(digest, Digest::default());
    digest.remove_all(&one);
    assert_eq!(digest, Digest { sum: [u64::MAX; 4], count: u64::MAX });
}

#[test]
fn each_of_id_size_and_root_counts() {
    let digest = |number, size: u64, root: u64| {
        let mut digest = Digest::default();
        digest.add(&context(number), TreeHead { size: Size(size), ..extent(root) });
        digest
    };
    let first = digest(1, 5, 5);
    for other in [digest(2, 5, 5), digest(1, 6, 5), digest(1, 5, 6)] {
        assert_ne!(first, other);
    }
}

#[test]
fn a_node_digest_tells_an_empty_slot_from_none_and_one_slot_from_another() {
    let slot = |number| Slot::new(number).unwrap();
    let empty = Digest::default();
    let digests = [
        BTreeMap::new(),
        BTreeMap::from([(slot(1), empty)]),
        BTreeMap::from([(slot(2), empty)]),
        BTreeMap::from([(slot(1), empty), (slot(2), empty)]),
    ]
    .map(|slots| NodeDigest::of(&slots));
    for (i, left) in digests.iter().enumerate() {
        assert!(digests[..i].iter().all(|right| left != right));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_digest_depends_on_what_a_slot_holds_and_not_on_how_it_came_about(
        changes in prop::collection::vec((0..20_u32, prop::option::of(0..5_u64)), 0..200),
    ) {
        let mut held = BTreeMap::new();
        let mut digest = SlotDigest::default();
        for (number, new) in changes {
            let old = match new {
                Some(size) => held.insert(number, size),
                None => held.remove(&number),
            };
            digest.replace(&context(number), old.map(extent), new.map(extent));
        }
        let expected = digest_of(&held);
        prop_assert_eq!(digest.whole(), expected.whole());
        prop_assert!(digest.buckets().eq(expected.buckets()));
        let counted = held.values().filter(|size| **size > 0).count();
        prop_assert_eq!(digest.whole().count(), counted as u64, "a context without entries does not count");
        for bucket in (0..=u8::MAX).map(Bucket) {
            let of = held.iter().map(|(number, size)| (context(*number), extent(*size)));
            digest.recount(bucket, of.filter(|(context, _)| Bucket::of(context) == bucket));
        }
        prop_assert_eq!(digest.whole(), expected.whole());
    }

    #[test]
    fn the_buckets_add_up_to_the_slot_and_survive_bytes(
        held in prop::collection::btree_map(any::<u32>(), 1..u64::MAX, 0..300),
    ) {
        let digest = digest_of(&held);
        let mut sum = Digest::default();
        digest.buckets().for_each(|(_, bucket)| sum.add_all(&bucket));
        prop_assert_eq!(sum, digest.whole());
        prop_assert_eq!(Digest::from_bytes(&sum.to_bytes()), sum);
        prop_assert_eq!(SlotDigest::from_buckets(digest.buckets()).whole(), sum);
        for number in held.keys() {
            prop_assert!(digest.bucket(Bucket::of(&context(*number))).count() > 0);
        }
    }
}
