use proptest::prelude::*;

use super::*;
use crate::limits::MAX_SEQUENCE;

fn histories(count: u32) -> impl Iterator<Item = (ContextId, History)> {
    (0..count).map(|number| (context(number), History::plain(u64::from(number % 100) + 1)))
}

fn forked(size: u64, common: u64, branch: u8) -> History {
    History { size, common, branch }
}

#[test]
fn nodes_in_step_exchange_the_same_few_bytes_however_many_contexts_they_hold() {
    for count in [0, 1, 1_000_000] {
        let node = Node::of(histories(count));
        let ran = run_quietly(&node, &node);
        assert!(ran.found.is_empty());
        assert_eq!((ran.round_trips, ran.bytes), (1, 162));
    }
}

#[test]
fn one_context_of_a_hundred_thousand_is_found_in_four_round_trips() {
    let node = Node::of(histories(100_000));
    let missing = context(31_415);
    let cases = [
        (None, Verdict::Ahead { from: Size(0) }, 3),
        (Some(History::plain(7)), Verdict::Ahead { from: Size(7) }, 4),
        (Some(History::plain(1_000)), Verdict::Behind { from: Size(16) }, 4),
        (Some(forked(16, 9, 1)), Verdict::Diverged { common: Size(9) }, 4),
        (Some(forked(15, 9, 1)), Verdict::Diverged { common: Size(9) }, 5),
    ];
    let mut theirs = node.clone();
    for (history, verdict, round_trips) in cases {
        theirs.set(&missing, history);
        let ran = run_quietly(&node, &theirs);
        assert_eq!(ran.found, BTreeMap::from([(missing.clone(), verdict)]));
        assert_eq!(ran.round_trips, round_trips);
        // Mostly the digests of 1024 slots; without buckets a larger slot would cost much more.
        assert!(ran.bytes < 64 * 1024, "{} bytes", ran.bytes);
    }
}

#[test]
fn a_slot_of_many_contexts_is_narrowed_down_by_its_buckets() {
    let slot = Slot::of(&context(0));
    let contexts = (0..3_000_000).map(context).filter(|context| Slot::of(context) == slot);
    let node = Node::of(contexts.map(|context| (context, History::plain(5))));
    let (first, count) = {
        let contexts = &node.slots[&slot];
        (contexts.keys().next().unwrap().clone(), contexts.len())
    };
    let mut theirs = node.clone();
    theirs.set(&first, Some(History::plain(6)));
    let CompareResponse::Contexts(page) = theirs.answer(&CompareRequest::Contexts {
        buckets: BTreeMap::from([(slot, BTreeSet::from([Bucket::of(&first)]))]),
        after: None,
    }) else {
        unreachable!()
    };
    assert!(page.contexts.len() * 50 < count, "{} of {count}", page.contexts.len());
    assert_eq!(
        run_quietly(&node, &theirs).found,
        BTreeMap::from([(first, Verdict::Behind { from: Size(5) })])
    );
}

#[test]
fn an_empty_node_finds_everything_page_by_page() {
    let full = Node::of(histories(20_000));
    let ran = run_quietly(&Node::default(), &full);
    assert_eq!(ran.found.len(), 20_000);
    assert!(ran.found.values().all(|verdict| *verdict == Verdict::Behind { from: Size(0) }));
    // 1 for the node, 16 for the buckets of 64 slots each, and a page for every 512 contexts.
    assert!(ran.round_trips <= 1 + 16 + 16 + 20_000 / 512, "{} round trips", ran.round_trips);
    assert_eq!(run_quietly(&full, &Node::default()).found.len(), 20_000);
}

#[test]
fn slots_that_the_peer_does_not_keep_are_named_and_left_alone() {
    let node = Node::of(histories(5_000));
    let theirs = Node { not_kept: node.slots.keys().copied().take(10).collect(), ..Node::default() };
    let ran = run_quietly(&node, &theirs);
    assert_eq!(ran.not_kept, theirs.not_kept);
    assert!(ran.found.keys().all(|context| !theirs.not_kept.contains(&Slot::of(context))));
    let there = node.slots.iter().filter(|(slot, _)| !theirs.not_kept.contains(slot));
    assert_eq!(ran.found.len(), there.map(|(_, contexts)| contexts.len()).sum());
}

#[test]
fn two_nodes_that_share_no_slot_have_nothing_to_say() {
    let (drill, effects) = DrillDown::start(BTreeMap::new());
    assert_eq!((effects, drill.rounds()), (vec![Effect::Done], 0));
}

#[test]
fn appends_while_nodes_compare_are_left_to_the_next_round() {
    let mut ours = Node::of(histories(3_000));
    let mut theirs = ours.clone();
    let fork = context(77);
    ours.set(&fork, Some(forked(1_000, 400, 1)));
    theirs.set(&fork, Some(forked(1_000, 400, 2)));
    let mut next = 0;
    let ran = run(&mut ours, &mut theirs, |ours, theirs| {
        // The peer appends everywhere, and half of it reaches us at once; contexts come into being as well.
        for number in (0..3_000).step_by(7).filter(|number| *number != 77) {
            let grown = theirs.get(&context(number)).map_or(0, |history| history.size) + 1;
            theirs.set(&context(number), Some(History::plain(grown)));
            if number % 2 == 0 {
                ours.set(&context(number), Some(History::plain(grown)));
            }
        }
        next += 1;
        theirs.set(&context(3_000 + next), Some(History::plain(1)));
        ours.set(&context(900_000 + next), Some(History::plain(1)));
    })
    .unwrap();
    assert_eq!(ran.found.get(&fork), Some(&Verdict::Diverged { common: Size(400) }));
    let only_suffixes = |verdict: &Verdict| matches!(verdict, Verdict::Behind { .. } | Verdict::Ahead { .. });
    assert!(ran.found.iter().all(|(context, verdict)| *context == fork || only_suffixes(verdict)));
}

#[test]
fn a_context_that_goes_away_while_it_is_compared_has_changed() {
    let mut ours = Node::of(histories(10));
    let mut theirs = ours.clone();
    theirs.set(&context(3), Some(History::plain(1_000)));
    let mut answers = 0;
    let ran = run(&mut ours, &mut theirs, |_, theirs| {
        answers += 1;
        // Just before the peer is asked for roots: what went before are one question to it, then two to both.
        if answers == 6 {
            theirs.set(&context(3), None);
        }
    })
    .unwrap();
    assert_eq!(ran.found, BTreeMap::from([(context(3), Verdict::Changed)]));
    let next = run_quietly(&ours, &theirs);
    assert_eq!(next.found, BTreeMap::from([(context(3), Verdict::Ahead { from: Size(0) })]));
}

#[test]
fn a_question_out_of_bounds_is_refused() {
    let slots: BTreeSet<_> = (0..65).filter_map(Slot::new).collect();
    let buckets = slots.iter().map(|slot| (*slot, BTreeSet::new())).collect();
    let roots = |sizes: &[u64], contexts| {
        let sizes = sizes.iter().copied().map(Size).collect();
        CompareRequest::Roots(vec![RootsRequest { context: context(1), sizes }; contexts])
    };
    let eighteen: Vec<_> = (1..=18).collect();
    assert_eq!(
        CompareRequest::Buckets { slots }.check(),
        Err(CompareRequestError::TooManySlots { slots: 65 })
    );
    assert_eq!(
        CompareRequest::Contexts { buckets, after: None }.check(),
        Err(CompareRequestError::TooManySlots { slots: 65 })
    );
    assert_eq!(roots(&[1], 129).check(), Err(CompareRequestError::TooManyContexts { contexts: 129 }));
    assert_eq!(roots(&eighteen[..17], 128).check(), Ok(()));
    for (sizes, number) in [(&eighteen[..], 18), (&[], 0)] {
        let error = CompareRequestError::WrongNumberOfSizes { context: context(1), sizes: number };
        assert_eq!(roots(sizes, 1).check(), Err(error));
    }
    for sizes in [&[0, 1][..], &[2, 1], &[1, 1], &[MAX_SEQUENCE + 1]] {
        assert_eq!(roots(sizes, 1).check(), Err(CompareRequestError::Sizes { context: context(1) }));
    }
}

/// Runs a drill-down with a peer that answers as it likes; what ends it.
fn run_with_liar(
    ours: &Node,
    mut lie: impl FnMut(&CompareRequest, CompareResponse) -> CompareResponse,
) -> Result<u32, CompareError> {
    let theirs = Node::of((0..5_000).map(|number| (context(number), forked(90, 40, 2))));
    let (mut drill, mut effects) = DrillDown::start(ours.all_digests());
    loop {
        let mut next = Vec::new();
        for effect in effects {
            match effect {
                Effect::AskRemote(ask) => {
                    let answer = theirs.answer(&ask);
                    next.extend(drill.step(Event::Remote(lie(&ask, answer)))?);
                }
                Effect::AskLocal(ask) => next.extend(drill.step(Event::Local(ours.answer(&ask)))?),
                Effect::Done => return Ok(drill.rounds()),
                Effect::Found(_) | Effect::NotReplicated(_) => {}
            }
        }
        effects = next;
    }
}

#[test]
fn what_a_side_cannot_read_is_neither_absent_nor_shorter() {
    // In one bucket, so that all are listed once one of them differs.
    let bucket = Bucket::of(&context(0));
    let slot = Slot::of(&context(0));
    let same = |context: &ContextId| Slot::of(context) == slot && Bucket::of(context) == bucket;
    let names: Vec<_> = (0..8_000_000).map(context).filter(same).take(6).collect();
    assert_eq!(names.len(), 6);
    let both = Node::of(names.iter().map(|name| (name.clone(), History::plain(9))));
    let (mut ours, mut theirs) = (both.clone(), both);
    theirs.set(&names[0], Some(History::plain(10)));
    // Of each: read by us only, by them only, by nobody; and there on one side only, unreadable.
    theirs.unreadable.extend([names[1].clone(), names[3].clone(), names[4].clone()]);
    ours.unreadable.extend([names[2].clone(), names[3].clone(), names[5].clone()]);
    ours.set(&names[4], None);
    theirs.set(&names[5], None);
    let expected = BTreeMap::from([
        (names[0].clone(), Verdict::Behind { from: Size(9) }),
        (names[1].clone(), Verdict::Unreadable(Side::Remote)),
        (names[2].clone(), Verdict::Unreadable(Side::Local)),
        (names[3].clone(), Verdict::Unreadable(Side::Remote)),
        (names[4].clone(), Verdict::Unreadable(Side::Remote)),
        (names[5].clone(), Verdict::Unreadable(Side::Local)),
    ]);
    assert_eq!(run_quietly(&ours, &theirs).found, expected);
}

fn ours() -> Node {
    Node::of((0..5_000).map(|number| (context(number), forked(100, 40, 1))))
}

#[test]
fn hostile_answers_end_in_an_error_that_says_what_is_wrong() {
    let ours = ours();
    let page = |change: fn(&mut Page)| {
        move |_: &CompareRequest, mut answer| {
            if let CompareResponse::Contexts(page) = &mut answer {
                change(page);
            }
            answer
        }
    };
    let message = |lie: &mut dyn FnMut(&CompareRequest, CompareResponse) -> CompareResponse| {
        run_with_liar(&ours, |ask, answer| lie(ask, answer)).unwrap_err().to_string()
    };

    let other_kind = message(&mut |_, _| CompareResponse::Roots(Vec::new()));
    assert!(
        other_kind.contains("the peer answered with roots when asked for digests of slots"),
        "{other_kind}"
    );
    let in_step = message(&mut |ask, answer| {
        if matches!(ask, CompareRequest::Contexts { .. }) { CompareResponse::InSync } else { answer }
    });
    assert!(in_step.contains("\"in step\" when asked for contexts"), "{in_step}");

    let unasked_slot = message(&mut |ask, answer| match (ask, answer) {
        (CompareRequest::Buckets { slots }, CompareResponse::Buckets(mut buckets)) => {
            let other = (0..1024).filter_map(Slot::new).find(|slot| !slots.contains(slot)).unwrap();
            buckets.insert(other, BTreeMap::new());
            CompareResponse::Buckets(buckets)
        }
        (_, answer) => answer,
    });
    assert!(unasked_slot.contains("which was not asked about"), "{unasked_slot}");

    let long = message(&mut page(|page| page.contexts.extend_from_within(..)));
    assert!(long.contains("contexts in a page of at most 512"), "{long}");
    let empty = message(&mut page(|page| *page = Page { contexts: Vec::new(), more: true }));
    assert!(empty.contains("said that there are more"), "{empty}");
    let order = message(&mut page(|page| page.contexts.swap(3, 4)));
    assert!(order.contains("not after the one before it"), "{order}");
    let twice = message(&mut page(|page| page.contexts[1] = page.contexts[0].clone()));
    assert!(twice.contains("not after the one before it"), "{twice}");
    let large = message(&mut page(|page| {
        if let ListedContext::Present(summary) = &mut page.contexts[0] {
            summary.size = Size(u64::MAX);
        }
    }));
    assert!(large.contains("more entries than a context can have"), "{large}");
    let misplaced = message(&mut page(|page| {
        let last_slot = (0..100_000).map(context).find(|context| Slot::of(context).number() == 1023).unwrap();
        page.contexts[0] = ListedContext::Unreadable(last_slot);
    }));
    assert!(misplaced.contains("was not asked for"), "{misplaced}");

    let roots = |change: fn(&mut Vec<Roots>)| {
        move |_: &CompareRequest, mut answer| {
            if let CompareResponse::Roots(roots) = &mut answer {
                change(roots);
            }
            answer
        }
    };
    let fewer = message(&mut roots(|roots| _ = roots.pop()));
    assert!(fewer.contains("answered about 127 contexts when asked about 128"), "{fewer}");
    let unasked_size = message(&mut roots(|roots| {
        if let Roots::At(roots) = &mut roots[5] {
            roots.push(Hash([0; 32]));
        }
    }));
    assert!(unasked_size.contains("gave 2 roots of a context when asked for 1"), "{unasked_size}");
}

#[test]
fn a_listing_that_does_not_move_on_is_an_error() {
    let mut first = None;
    let stuck = run_with_liar(&ours(), |_, answer| match answer {
        CompareResponse::Contexts(mut page) => {
            page.more = true;
            CompareResponse::Contexts(first.get_or_insert(page).clone())
        }
        answer => answer,
    });
    assert!(matches!(stuck, Err(CompareError::Misplaced { side: Side::Remote, .. })), "{stuck:?}");
}

#[test]
fn an_answer_without_a_question_is_an_error_and_so_is_every_one_after_an_error() {
    let (mut drill, _) = DrillDown::start(ours().all_digests());
    let not_asked = |side| Err(CompareError::UnexpectedResponse { side });
    assert_eq!(drill.step(Event::Local(CompareResponse::InSync)), not_asked(Side::Local));
    assert_eq!(drill.step(Event::Remote(CompareResponse::InSync)), not_asked(Side::Remote));

    let (mut drill, _) = DrillDown::start(ours().all_digests());
    assert_eq!(drill.step(Event::Remote(CompareResponse::InSync)), Ok(vec![Effect::Done]));
    assert_eq!(drill.step(Event::Remote(CompareResponse::InSync)), not_asked(Side::Remote));
}

#[test]
fn a_peer_that_lists_for_ever_comes_to_an_end() {
    let first = context(0);
    let (slot, bucket) = (Slot::of(&first), Bucket::of(&first));
    let (mut drill, _) = DrillDown::start(BTreeMap::from([(slot, Digest::default())]));
    let mut digest = Digest::default();
    digest.add(&first, History::plain(1).extent());
    drill.step(Event::Remote(CompareResponse::Slots(BTreeMap::from([(slot, digest)])))).unwrap();
    drill.step(Event::Local(CompareResponse::Buckets(BTreeMap::from([(slot, BTreeMap::new())])))).unwrap();
    let buckets = BTreeMap::from([(slot, BTreeMap::from([(bucket, digest)]))]);
    drill.step(Event::Remote(CompareResponse::Buckets(buckets))).unwrap();

    // To make up a name for this bucket takes a quarter of a million hashes: the limit is brought near instead.
    drill.set_rounds(MAX_ROUNDS);
    drill.step(Event::Local(CompareResponse::Contexts(Page::default()))).unwrap();
    let page =
        Page { contexts: vec![ListedContext::Present(summary(&first, &History::plain(1)))], more: true };
    assert_eq!(drill.step(Event::Remote(CompareResponse::Contexts(page))), Err(CompareError::TooManyRounds));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn exactly_what_differs_is_found(
        contexts in prop::collection::btree_map(
            0..2_000_u32,
            // A context without entries counts as absent.
            prop::option::of((1..50_u64, 0..30_u64, 0..30_u64, any::<bool>())),
            0..600,
        ),
    ) {
        let (mut ours, mut theirs, mut expected) = (Node::default(), Node::default(), BTreeMap::new());
        for (number, kind) in contexts {
            let id = context(number);
            let Some((common, our_rest, their_rest, on_both)) = kind else {
                ours.set(&id, Some(History::plain(9)));
                theirs.set(&id, Some(History::plain(9)));
                continue;
            };
            let our_history = forked(common + our_rest, common, 1);
            ours.set(&id, Some(our_history));
            let verdict = if on_both {
                theirs.set(&id, Some(forked(common + their_rest, common, 2)));
                match (our_rest, their_rest) {
                    (0, 0) => continue,
                    (0, _) => Verdict::Behind { from: Size(common) },
                    (_, 0) => Verdict::Ahead { from: Size(common) },
                    _ => Verdict::Diverged { common: Size(common) },
                }
            } else {
                Verdict::Ahead { from: Size(0) }
            };
            expected.insert(id, verdict);
        }
        let ran = run_quietly(&ours, &theirs);
        prop_assert_eq!(ran.found, expected);
    }
}
