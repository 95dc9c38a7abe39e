use proptest::prelude::*;

use super::*;
use crate::{
    hash::{Blake3, Hasher},
    limits::MAX_SEQUENCE,
    tree::Frontier,
};

/// Runs a search to its end; the verdict and the number of round trips.
fn search(
    ours: TreeHead,
    theirs: TreeHead,
    our_roots: impl Fn(&[Size]) -> Vec<Hash>,
    their_roots: impl Fn(&[Size]) -> Vec<Hash>,
) -> (Verdict, u32) {
    let mut compare = HistorySearch::new(ours, theirs);
    let mut round_trips = 0;
    loop {
        let sizes = compare.sizes();
        if let Some(verdict) = compare.verdict() {
            assert_eq!(sizes, []);
            return (verdict, round_trips);
        }
        let ask = CompareRequest::Roots(vec![RootsRequest { context: context(1), sizes: sizes.clone() }]);
        assert_eq!(ask.check(), Ok(()));
        round_trips += 1;
        assert!(round_trips <= MAX_COMPARE_ROUNDS);
        compare.on_roots(&Roots::At(our_roots(&sizes)), &Roots::At(their_roots(&sizes))).unwrap();
    }
}

fn search_histories(ours: History, theirs: History) -> (Verdict, u32) {
    search(ours.extent(), theirs.extent(), |sizes| ours.roots(sizes), |sizes| theirs.roots(sizes))
}

/// The roots at every size of the tree of these leaves, from the real tree.
fn roots_of(leaves: &[u8]) -> Vec<Hash> {
    let mut frontier = Frontier::default();
    let mut roots = vec![frontier.root::<Blake3>()];
    for leaf in leaves {
        frontier.push::<Blake3>(Blake3::leaf(&Hash([*leaf; 32])), |_, _| {});
        roots.push(frontier.root::<Blake3>());
    }
    roots
}

/// What the verdict must be, read off the entries.
fn expected(ours: &[u8], theirs: &[u8]) -> Verdict {
    let common = ours.iter().zip(theirs).take_while(|(ours, theirs)| ours == theirs).count();
    let size = |len: usize| Size(len as u64);
    match (common == ours.len(), common == theirs.len()) {
        (true, true) => Verdict::InSync,
        (true, false) => Verdict::Behind { from: size(ours.len()) },
        (false, true) => Verdict::Ahead { from: size(theirs.len()) },
        (false, false) => Verdict::Diverged { common: size(common) },
    }
}

#[test]
fn ten_million_entries_take_seven_round_trips() {
    let size = 10_000_000;
    for common in [0, 1, 15, 16, 17, 4_999_999, 5_000_000, 9_999_998, 9_999_999, 3_141_592] {
        let ours = History { size, common, branch: 1 };
        for theirs in [History { size, common, branch: 2 }, History { size: size + 77, common, branch: 2 }] {
            let (verdict, round_trips) = search_histories(ours, theirs);
            assert_eq!(verdict, Verdict::Diverged { common: Size(common) });
            assert!(round_trips <= 7, "{round_trips} round trips");
        }
    }
}

#[test]
fn a_suffix_takes_one_round_trip_and_equal_histories_none() {
    let (short, long) = (History::plain(1_000), History::plain(10_000_000));
    assert_eq!(search_histories(short, short), (Verdict::InSync, 0));
    assert_eq!(search_histories(short, long), (Verdict::Behind { from: Size(1_000) }, 1));
    assert_eq!(search_histories(long, short), (Verdict::Ahead { from: Size(1_000) }, 1));
    let empty = History::plain(0);
    assert_eq!(search_histories(empty, long), (Verdict::Behind { from: Size(0) }, 0));
    assert_eq!(search_histories(long, empty), (Verdict::Ahead { from: Size(0) }, 0));
}

#[test]
fn the_largest_sizes_stay_within_the_limit_and_nothing_overflows() {
    for size in [MAX_SEQUENCE, MAX_SEQUENCE - 1] {
        for common in [0, 1, size / 3, size - 2, size - 1] {
            let history = |branch| History { size, common, branch };
            let (verdict, round_trips) = search_histories(history(1), history(2));
            assert_eq!(verdict, Verdict::Diverged { common: Size(common) });
            assert!(round_trips < 30);
        }
    }
    // A peer may claim any size; only the smaller one is searched.
    let absurd = TreeHead { size: Size(u64::MAX), root: Hash([1; 32]) };
    let mut compare = HistorySearch::new(absurd, TreeHead { size: Size(u64::MAX), root: Hash([2; 32]) });
    while compare.verdict().is_none() {
        let sizes = compare.sizes();
        assert!(sizes.len() <= MAX_SIZES && sizes.is_sorted_by(|a, b| a < b));
        let all = |root| Roots::At(vec![Hash([root; 32]); sizes.len()]);
        compare.on_roots(&all(1), &all(2)).unwrap();
    }
    assert_eq!(compare.verdict(), Some(Verdict::Diverged { common: Size(0) }));
}

#[test]
fn a_history_that_grows_meanwhile_does_not_disturb_the_search() {
    let common = 123_456;
    let ours = History { size: 1_000_000, common, branch: 1 };
    let theirs = History { size: 2_000_000, common, branch: 2 };
    let grown = std::cell::Cell::new(theirs);
    let (verdict, _) = search(
        ours.extent(),
        theirs.extent(),
        |sizes| ours.roots(sizes),
        |sizes| {
            grown.set(History { size: grown.get().size + 10_000, ..grown.get() });
            grown.get().roots(sizes)
        },
    );
    assert_eq!(verdict, Verdict::Diverged { common: Size(common) });
}

#[test]
fn a_history_that_shrinks_or_is_replaced_meanwhile_has_changed() {
    let size = 1_000_000;
    let ours = History { size, common: 500_000, branch: 1 };
    let theirs = History { branch: 2, ..ours };
    let gone = |_: &[Size]| Vec::new();
    assert_eq!(search(ours.extent(), theirs.extent(), |sizes| ours.roots(sizes), gone).0, Verdict::Changed);
    let cut = History { size: 600_000, ..theirs };
    assert_eq!(
        search(ours.extent(), theirs.extent(), |sizes| ours.roots(sizes), |sizes| cut.roots(sizes)).0,
        Verdict::Changed
    );
    // Repaired to our history: the upper end is equal now.
    assert_eq!(
        search(ours.extent(), theirs.extent(), |sizes| ours.roots(sizes), |sizes| ours.roots(sizes)).0,
        Verdict::Changed
    );
    // Replaced by one that parts before what was found equal.
    let calls = std::cell::Cell::new(0);
    let earlier = History { common: 10, ..theirs };
    let verdict = search(
        ours.extent(),
        theirs.extent(),
        |sizes| ours.roots(sizes),
        |sizes| {
            calls.set(calls.get() + 1);
            if calls.get() == 1 { theirs.roots(sizes) } else { earlier.roots(sizes) }
        },
    );
    assert_eq!(verdict.0, Verdict::Changed);
}

#[test]
fn roots_that_contradict_each_other_are_damage() {
    let size = 10_000;
    let ours = History { size, common: 9_000, branch: 1 };
    let theirs = History { branch: 2, ..ours };
    let rotten = |sizes: &[Size]| {
        let mut roots = theirs.roots(sizes);
        roots[2] = Hash([0; 32]);
        roots
    };
    let (verdict, _) = search(ours.extent(), theirs.extent(), |sizes| ours.roots(sizes), rotten);
    assert_eq!(verdict, Verdict::Damaged { different: Size(1_875), equal: Size(8_750) });
}

#[test]
fn more_roots_than_asked_for_are_an_error() {
    let history = |branch| History { size: 100, common: 50, branch };
    let mut compare = HistorySearch::new(history(1).extent(), history(2).extent());
    let asked = compare.sizes().len();
    let roots = |count| Roots::At(vec![Hash([1; 32]); count]);
    let (right, long) = (roots(asked), roots(asked + 1));
    let error = |side| Err(CompareError::TooManyRoots { side, asked, actual: asked + 1 });
    assert_eq!(compare.on_roots(&long, &right), error(Side::Local));
    assert_eq!(compare.on_roots(&right, &long), error(Side::Remote));
    assert_eq!(compare.verdict(), None);
}

#[test]
fn roots_that_a_side_cannot_read_end_the_search_without_a_verdict_on_the_histories() {
    let history = |branch| History { size: 100, common: 50, branch };
    let roots = Roots::At(history(1).roots(&[Size(100)]));
    for (ours, theirs, side) in [
        (&roots, Roots::Unreadable, Side::Remote),
        (&Roots::Absent, Roots::Unreadable, Side::Remote),
        (&Roots::Unreadable, Roots::Unreadable, Side::Remote),
        (&Roots::Unreadable, Roots::Absent, Side::Local),
        (&Roots::Unreadable, roots.clone(), Side::Local),
    ] {
        let mut compare = HistorySearch::new(history(1).extent(), history(2).extent());
        compare.on_roots(ours, &theirs).unwrap();
        assert_eq!(compare.verdict(), Some(Verdict::Unreadable(side)));
        assert_eq!(compare.sizes(), []);
    }
}

#[test]
fn only_a_history_that_was_read_is_shorter() {
    assert!(Roots::Absent.is_shorter_than(1));
    assert!(Roots::At(vec![]).is_shorter_than(1));
    assert!(!Roots::At(vec![Hash([1; 32])]).is_shorter_than(1));
    assert!(!Roots::Unreadable.is_shorter_than(1));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn the_verdict_on_real_trees_is_what_their_entries_say(
        shared in prop::collection::vec(any::<u8>(), 0..400),
        ours in prop::collection::vec(any::<u8>(), 0..100),
        theirs in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let (ours, theirs) = ([shared.clone(), ours].concat(), [shared, theirs].concat());
        let (our_roots, their_roots) = (roots_of(&ours), roots_of(&theirs));
        let extent = |roots: &[Hash]| TreeHead { size: Size(roots.len() as u64 - 1), root: roots[roots.len() - 1] };
        let lookup = |roots: &[Hash], sizes: &[Size]| {
            sizes.iter().map(|size| roots[usize::try_from(size.0).unwrap()]).collect::<Vec<_>>()
        };
        let (verdict, round_trips) = search(
            extent(&our_roots),
            extent(&their_roots),
            |sizes| lookup(&our_roots, sizes),
            |sizes| lookup(&their_roots, sizes),
        );
        prop_assert_eq!(verdict, expected(&ours, &theirs));
        // 500 entries: the shorter size, and 16 × 16 × 16 parts.
        prop_assert!(round_trips <= 4);
    }

    #[test]
    fn the_point_of_divergence_is_found_in_histories_of_any_length(
        common in 0..=MAX_SEQUENCE / 2,
        ours in 1..=MAX_SEQUENCE / 2,
        theirs in 1..=MAX_SEQUENCE / 2,
    ) {
        let history = |rest, branch| History { size: common + rest, common, branch };
        let (verdict, round_trips) = search_histories(history(ours, 1), history(theirs, 2));
        prop_assert_eq!(verdict, Verdict::Diverged { common: Size(common) });
        prop_assert!(round_trips < 30);
    }

    #[test]
    fn whatever_roots_a_peer_makes_up_the_search_ends(
        sizes in (0..u64::MAX, 0..u64::MAX),
        lists in prop::collection::vec(prop::collection::vec(0..2_u8, 0..=MAX_SIZES), 20),
    ) {
        let extent = |size, root| TreeHead { size: Size(size), root: Hash([root; 32]) };
        let mut compare = HistorySearch::new(extent(sizes.0, 0), extent(sizes.1, 1));
        for list in &lists {
            let asked = compare.sizes().len();
            let made_up: Vec<_> = list.iter().map(|byte| Hash([*byte; 32])).collect();
            let count = made_up.len();
            let ours = Roots::At(vec![Hash([0; 32]); asked]);
            if compare.on_roots(&ours, &Roots::At(made_up)).is_err() {
                prop_assert!(count > asked);
            }
        }
        let mut rounds = 0;
        while compare.verdict().is_none() {
            let asked = compare.sizes().len();
            let all = |root| Roots::At(vec![Hash([root; 32]); asked]);
            compare.on_roots(&all(0), &all(1)).unwrap();
            rounds += 1;
            prop_assert!(rounds <= MAX_COMPARE_ROUNDS);
        }
    }
}
