use std::collections::VecDeque;

use ledger_core::{
    Sequence, Size,
    compare::{
        CompareRequestError, DrillDown, Effect, Event, Finding, ListedContext, MAX_BUCKET_SLOTS, MAX_PAGE,
        Page, Verdict,
    },
    digest::NodeDigest,
    slot::SLOTS,
};
use rocksdb::WriteBatch;

use super::*;
use crate::{
    Options,
    engine::families::{self, RowLocation},
    error,
    testing::{self, Writer},
};

fn slots() -> impl Iterator<Item = Slot> {
    (0..SLOTS).filter_map(Slot::new)
}

/// A node: its content and its digests.
struct Node {
    _dir: tempfile::TempDir,
    db: Db,
    digests: Digests,
    quarantine: Quarantine,
}

impl Node {
    fn new(fill: impl FnOnce(&Db)) -> Self {
        Self::with(&testing::options(), fill)
    }

    fn with(options: &Options, fill: impl FnOnce(&Db)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let db = testing::open_with(dir.path(), options);
        fill(&db);
        index::ensure(&db).unwrap();
        let quarantine = Quarantine::default();
        let digests = Digests::scan(&db, &quarantine).unwrap();
        Self { _dir: dir, db, digests, quarantine }
    }

    fn ask(&self, ask: &CompareRequest) -> CompareResponse {
        respond(&self.db, &self.digests, &self.quarantine, ask).unwrap()
    }

    fn page(&self, buckets: &BTreeMap<Slot, BTreeSet<Bucket>>, after: Option<&ContextId>) -> Page {
        match self.ask(&CompareRequest::Contexts { buckets: buckets.clone(), after: after.cloned() }) {
            CompareResponse::Contexts(page) => page,
            other => panic!("{other:?}"),
        }
    }

    /// Collects all pages of a listing, in which everything is readable.
    fn list(&self, buckets: &BTreeMap<Slot, BTreeSet<Bucket>>) -> Vec<ContextSummary> {
        let mut all: Vec<ContextSummary> = Vec::new();
        loop {
            let after = all.last().map(|last| last.context.clone());
            let page = self.page(buckets, after.as_ref());
            assert!(page.contexts.len() == MAX_PAGE || !page.more);
            all.extend(summaries(&page));
            if !page.more {
                return all;
            }
        }
    }

    /// Compares with a peer. Returns the findings, and the number of rounds that it took.
    fn compare(&self, peer: &Self) -> (Vec<Finding>, u32) {
        let ours = slots().map(|slot| (slot, self.digests.whole(slot))).collect();
        let (mut drill, effects) = DrillDown::start(ours);
        let (mut effects, mut found) = (VecDeque::from(effects), Vec::new());
        while let Some(effect) = effects.pop_front() {
            let event = match effect {
                Effect::AskRemote(ask) => Event::Remote(peer.ask(&ask)),
                Effect::AskLocal(ask) => Event::Local(self.ask(&ask)),
                Effect::Found(finding) => {
                    found.push(finding);
                    continue;
                }
                Effect::NotReplicated(slots) => panic!("{slots:?}"),
                Effect::Done => break,
            };
            effects.extend(drill.step(event).unwrap());
        }
        (found, drill.rounds())
    }
}

/// Returns what a page lists, all of it readable.
fn summaries(page: &Page) -> Vec<ContextSummary> {
    let summary = |listed: &ListedContext| match listed {
        ListedContext::Present(summary) => summary.clone(),
        ListedContext::Unreadable(context) => panic!("{context} cannot be read"),
    };
    page.contexts.iter().map(summary).collect()
}

/// Selects all buckets of these slots.
fn whole(slots: impl IntoIterator<Item = Slot>) -> BTreeMap<Slot, BTreeSet<Bucket>> {
    slots.into_iter().map(|slot| (slot, (0..=u8::MAX).map(Bucket).collect())).collect()
}

fn name(number: u64) -> String {
    format!("context-{number}")
}

/// Writes contexts of 1 to 4 entries.
fn fill(db: &Db, contexts: u64) -> Vec<ContextSummary> {
    let write = |number| Writer::new(db, &name(number), number).append(1 + number as usize % 4).summary();
    let mut all: Vec<_> = (0..contexts).map(write).collect();
    all.sort_by_key(|summary| (Slot::of(&summary.context), summary.context.clone()));
    all
}

#[test]
fn a_listing_has_every_context_once_by_slot_and_then_id() {
    let mut all = Vec::new();
    let node = Node::new(|db| all = fill(db, 60_000));
    for range in [0..MAX_BUCKET_SLOTS as u16, SLOTS - 20..SLOTS, 500..501] {
        let requested: BTreeSet<Slot> = range.filter_map(Slot::new).collect();
        let expected: Vec<_> =
            all.iter().filter(|summary| requested.contains(&Slot::of(&summary.context))).cloned().collect();
        assert_eq!(node.list(&whole(requested)), expected);
    }
}

#[test]
fn a_slot_of_many_contexts_is_listed_in_pages_that_follow_each_other() {
    let slot = Slot::new(77).unwrap();
    let names: Vec<String> =
        (0..).map(name).filter(|name| Slot::of(&ContextId::new(name).unwrap()) == slot).take(1600).collect();
    let mut all = Vec::new();
    let node = Node::new(|db| {
        all = names
            .iter()
            .zip(1..)
            .map(|(name, number)| Writer::new(db, name, number).append(1).summary())
            .collect();
    });
    all.sort_by_key(|summary| summary.context.clone());
    assert_eq!(node.list(&whole([slot])), all);
    // A page may end exactly where the listing ends.
    let last = &all[all.len() - MAX_PAGE - 1].context;
    let page = node.page(&whole([slot]), Some(last));
    assert!(summaries(&page) == all[all.len() - MAX_PAGE..] && !page.more);

    // Some of its buckets, and a start between two of them.
    let some: BTreeSet<Bucket> = (0..=u8::MAX).step_by(3).map(Bucket).collect();
    let in_some = |summary: &&ContextSummary| some.contains(&Bucket::of(&summary.context));
    let buckets = BTreeMap::from([(slot, some.clone())]);
    let expected: Vec<_> = all.iter().filter(in_some).cloned().collect();
    assert_eq!(node.list(&buckets), expected);
    let outside = all.iter().skip(700).find(|summary| !in_some(summary)).unwrap();
    let page = node.page(&buckets, Some(&outside.context));
    assert!(
        summaries(&page).iter().eq(all
            .iter()
            .filter(in_some)
            .filter(|s| s.context > outside.context)
            .take(MAX_PAGE))
    );
}

#[test]
fn a_listing_goes_on_in_the_slot_of_the_context_it_is_to_follow() {
    let mut all = Vec::new();
    let node = Node::new(|db| all = fill(db, 3000));
    let requested = whole(slots().take(40));
    let listed = node.list(&requested);
    for at in [0, 1, listed.len() / 2, listed.len() - 1] {
        let page = node.page(&requested, Some(&listed[at].context));
        assert_eq!(summaries(&page), listed[at + 1..], "after {}", listed[at].context);
    }
    // After a context of a slot that was not requested, and after the last of all.
    let (first, last) = (&all[0].context, &all[all.len() - 1].context);
    let later = whole(slots().skip(30).take(10));
    assert_eq!(node.page(&later, Some(first)).contexts, node.page(&later, None).contexts);
    assert_eq!(node.page(&later, Some(last)), Page::default());
    assert_eq!(node.page(&BTreeMap::new(), None), Page::default());
}

#[test]
fn what_is_empty_is_not_listed_and_what_cannot_be_read_is_listed_as_that() {
    let slot = Slot::of(&ContextId::new("good").unwrap());
    let same_slot = |name: &String| Slot::of(&ContextId::new(name).unwrap()) == slot;
    let mut names = (0..).map(name).filter(same_slot);
    let [empty, damaged, lost, found_before, tileless] = std::array::from_fn(|_| names.next().unwrap());
    let node = Node::new(|db| {
        Writer::new(db, "good", 1).append(2);
        Writer::new(db, &empty, 2).append(0);
        Writer::new(db, &lost, 3).append(1);
        Writer::new(db, &damaged, 4).append(1);
        Writer::new(db, &found_before, 5).append(1);
        Writer::new(db, &tileless, 6).append(300);
    });
    let mut batch = WriteBatch::default();
    let heads = node.db.family(families::HEADS).unwrap();
    batch.delete_cf(heads, &lost);
    batch.put_cf(heads, &damaged, b"not a head");
    let place = RowLocation { slot, number: 6 };
    let tile = ledger_core::tree::TileId { level: 0, index: 0 };
    batch.delete_cf(node.db.family(families::TILES).unwrap(), place.tile(tile));
    node.db.write(batch).unwrap();
    let reason = "an entry of it was found damaged";
    let of = |name: &str| ContextId::new(name).unwrap();
    node.quarantine.record(&error::damaged(&of(&found_before), Sequence(1), reason));

    let page = node.page(&whole([slot]), None);
    let listed = |readable: bool| -> BTreeSet<&str> {
        let is_readable = |listed: &&ListedContext| matches!(listed, ListedContext::Present(_)) == readable;
        page.contexts.iter().filter(is_readable).map(|listed| listed.context().as_str()).collect()
    };
    assert_eq!(listed(true), ["good", &tileless].into());
    assert_eq!(listed(false), [damaged.as_str(), &lost, &found_before].into());

    let prefixes = |name: &str| RootsRequest { context: of(name), sizes: vec![Size(1), Size(2), Size(3)] };
    let requested = [&empty, &damaged, &lost, &found_before, &tileless, "never", "good"].map(prefixes);
    let CompareResponse::Roots(roots) = node.ask(&CompareRequest::Roots(requested.to_vec())) else {
        panic!()
    };
    let [empty, unreadable @ .., never, good] = roots.as_slice() else { panic!("{roots:?}") };
    assert_eq!(*empty, Roots::At(vec![]));
    assert!(unreadable.iter().all(|roots| *roots == Roots::Unreadable), "{unreadable:?}");
    assert_eq!(*never, Roots::Absent);
    assert!(matches!(good, Roots::At(roots) if roots.len() == 2), "{good:?}");
    // All damage is known from now on.
    assert_eq!(node.quarantine.list().len(), 4);
    assert!(node.quarantine.has(slot) && node.quarantine.had_damage(slot));
}

#[test]
fn roots_are_those_that_the_context_had_whether_stable_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let db = testing::open(dir.path());
    let mut expected = Vec::new();
    let mut writer = Writer::new(&db, "c", 1);
    let steps = [1, 254, 1, 1, 255, 65_024, 1, 150];
    for step in steps {
        writer.append(step);
        expected.push((writer.extent().size, writer.extent().root));
    }
    let context = writer.context.clone();
    // Readers see nothing of it yet.
    db.committed_heads().pin(&context, None);
    assert_eq!(db.head(&context).unwrap(), None);
    let quarantine = Quarantine::default();
    let digests = Digests::scan(&db, &quarantine).unwrap();
    let (mut sizes, roots): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
    sizes.push(Size(1 << 40));
    let unknown = RootsRequest { context: ContextId::new("unknown").unwrap(), sizes: vec![Size(1)] };
    let ask = CompareRequest::Roots(vec![unknown, RootsRequest { context, sizes }]);
    let answered = respond(&db, &digests, &quarantine, &ask).unwrap();
    assert_eq!(answered, CompareResponse::Roots(vec![Roots::Absent, Roots::At(roots)]));
}

#[test]
fn a_question_over_its_bounds_is_not_answered() {
    let node = Node::new(|_| ());
    let slots = slots().take(MAX_BUCKET_SLOTS + 1).collect();
    let Node { db, digests, quarantine, .. } = &node;
    let refused = respond(db, digests, quarantine, &CompareRequest::Buckets { slots }).unwrap_err();
    assert!(matches!(refused, StoreError::Ask(CompareRequestError::TooManySlots { slots: 65 })), "{refused}");
}

#[test]
fn two_nodes_find_what_differs_between_them() {
    let longer = name(17);
    let forked = name(40);
    let node = |mine: &str, more: usize, alone: &str| {
        Node::new(|db| {
            for number in 0..2000 {
                let mut writer = Writer::new(db, &name(number), number);
                writer.append(3);
                if writer.context.as_str() == longer {
                    writer.append(more);
                }
                if writer.context.as_str() == forked {
                    writer.append(700).append_saying(100, mine);
                }
            }
            Writer::new(db, alone, 5000).append(1);
        })
    };
    // Entry ids and with them roots must be the same on both: copy the first node's rows.
    let ours = node("ours", 300, "only-here");
    let theirs = Node::new(|db| {
        for family in [families::HEADS, families::ENTRIES, families::TILES] {
            let mut batch = WriteBatch::default();
            let to = db.family(family).unwrap();
            ours.db
                .scan(family, &[], &[0xff; 20], false, |key, value| {
                    batch.put_cf(to, key, value);
                    true
                })
                .unwrap();
            db.write(batch).unwrap();
        }
    });
    assert_eq!(ours.compare(&theirs), (vec![], 1), "two nodes in step need one round");

    // The remote context grows.
    let change = |name: &str, step: &dyn Fn(&mut Writer<'_>)| {
        let context = ContextId::new(name).unwrap();
        let mut writer = Writer::resume(&theirs.db, &context, &[]);
        let before = writer.extent();
        step(&mut writer);
        theirs.digests.replace(&context, Some(before), Some(writer.extent()));
        writer.extent()
    };
    let now = change(&longer, &|writer| _ = writer.append(5));
    let (found, rounds) = ours.compare(&theirs);
    let [finding] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(finding.context.as_str(), longer);
    assert_eq!(finding.verdict, Verdict::Behind { from: Size(303) });
    assert_eq!(finding.remote.summary().unwrap().tree_head(), now);
    assert!(rounds <= 5, "{rounds} rounds");

    // The local context grows differently: the histories diverge after 803 entries.
    let context = ContextId::new(&forked).unwrap();
    let mut writer = Writer::resume(&ours.db, &context, &[]);
    let before = writer.extent();
    writer.append_saying(9, "another");
    ours.digests.replace(&context, Some(before), Some(writer.extent()));
    change(&forked, &|writer| _ = writer.append_saying(400, "theirs"));
    let (found, _) = ours.compare(&theirs);
    let verdict = found.iter().find(|finding| finding.context == context).map(|finding| finding.verdict);
    assert_eq!(verdict, Some(Verdict::Diverged { common: Size(803) }));
    assert_eq!(found.len(), 2);
}

/// `cargo test --release -p ledger-store -- --ignored a_million --nocapture`
#[test]
#[ignore = "takes a minute"]
fn one_of_a_million_contexts_is_found_in_well_under_a_second() {
    use std::time::{Duration, Instant};
    const CONTEXTS: u64 = 1_000_000;
    let ours = Node::with(&Options::default(), |db| {
        for number in 0..CONTEXTS {
            Writer::new(db, &name(number), number).append(1);
        }
    });
    let begun = Instant::now();
    let digests = Digests::scan(&ours.db, &ours.quarantine).unwrap();
    println!("digests of {CONTEXTS} contexts from their heads: {:?}", begun.elapsed());
    // The peer is the same database as before the change, represented by its earlier digest.
    let context = ContextId::new(name(CONTEXTS / 3)).unwrap();
    let mut writer = Writer::resume(&ours.db, &context, &[]);
    let before = writer.extent();
    writer.append(1);
    digests.replace(&context, Some(before), Some(writer.extent()));
    let buckets = BTreeMap::from([(Slot::of(&context), BTreeSet::from([Bucket::of(&context)]))]);
    let all = slots().map(|slot| (slot, digests.whole(slot))).collect();

    let begun = Instant::now();
    let asks = [
        CompareRequest::Node { slots: slots().collect(), digest: NodeDigest::of(&all) },
        CompareRequest::Buckets { slots: [Slot::of(&context)].into() },
        CompareRequest::Contexts { buckets, after: None },
        CompareRequest::Roots(vec![RootsRequest { context, sizes: vec![Size(1)] }]),
    ];
    for ask in &asks {
        let (begun, answer) = (Instant::now(), ours.ask(ask));
        println!("{:.40}: {:?}, {}", format!("{ask:?}"), begun.elapsed(), format!("{answer:?}").len());
    }
    assert!(begun.elapsed() < Duration::from_millis(500));

    let begun = Instant::now();
    let listed: usize = (0..SLOTS)
        .step_by(MAX_BUCKET_SLOTS)
        .map(|first| ours.list(&whole((first..SLOTS).take(MAX_BUCKET_SLOTS).filter_map(Slot::new))).len())
        .sum();
    println!("all {listed} contexts listed: {:?}", begun.elapsed());
    assert_eq!(listed as u64, CONTEXTS);
}
