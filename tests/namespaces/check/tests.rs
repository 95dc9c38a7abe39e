//! Each check finds what it is for.

use std::time::Instant;

use super::*;
use crate::load::Acknowledged;

const NODES: [&str; 3] = ["node-1", "node-2", "node-3"];

fn context() -> ContextId {
    ContextId::new("context").unwrap()
}

/// An entry, different for each sequence.
fn fact(sequence: u64) -> Fact {
    Fact {
        sequence: Sequence(sequence),
        epoch: Epoch(1 << 32),
        id: EntryId::new(&format!("id-{sequence}")).unwrap(),
        content_hash: Hash([u8::try_from(sequence).unwrap(); 32]),
    }
}

/// What nodes, writers, watchers and a reader say, and what was left.
struct Case {
    nodes: Vec<Vec<Fact>>,
    told: Vec<Fact>,
    watched: Vec<Fact>,
    read: Vec<Fact>,
    fork: Vec<Fact>,
}

impl Case {
    /// One in which nothing is wrong.
    fn good() -> Self {
        let history: Vec<_> = (1..=9).map(fact).collect();
        let forked = Fact { epoch: Epoch(7), id: EntryId::new("forked").unwrap(), ..fact(9) };
        Self {
            nodes: vec![history.clone(); NODES.len()],
            told: vec![fact(2), fact(5)],
            watched: history.clone(),
            read: vec![fact(3)],
            fork: vec![forked],
        }
    }

    fn violations(self) -> Vec<String> {
        let context = context();
        let mut violations = Violations::default();
        let nodes = NODES.into_iter().zip(self.nodes).collect();
        let history = violations.check_same(&context, nodes);
        let agreed = Agreed::from([(context.clone(), history)]);
        let acknowledged = self.told.into_iter().map(|fact| Acknowledged { at: Instant::now(), fact });
        let mut told = Told::default();
        told.acknowledged.insert(context.clone(), vec![acknowledged.collect()]);
        violations.check_told(&agreed, &told);
        let mut shown = Shown::default();
        shown.watched.push(("a watcher".to_owned(), context.clone(), self.watched));
        shown.read = self.read.into_iter().map(|fact| ((context.clone(), fact.sequence), fact)).collect();
        violations.check_shown(&agreed, &shown);
        violations.check_fork(&context, &self.fork, "a fork", &told);
        violations.found
    }
}

/// Something is wrong, and is said in these words.
fn assert_found(words: &str, doctor: impl FnOnce(&mut Case)) {
    let mut case = Case::good();
    doctor(&mut case);
    let found = case.violations();
    assert!(found.iter().any(|text| text.contains(words)), "no `{words}` in {found:#?}");
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    assert_eq!(Case::good().violations(), Vec::<String>::new());
}

#[test]
fn an_acknowledged_entry_that_is_missing_is_found() {
    assert_found("was acknowledged, and there is None", |case| {
        case.nodes.iter_mut().for_each(|node| node.truncate(4));
        case.watched.truncate(4);
    });
    assert_found("was acknowledged, and there is Some", |case| {
        // Another entry is in its place.
        let other = Fact { id: EntryId::new("other").unwrap(), epoch: Epoch(8), ..fact(5) };
        case.nodes.iter_mut().for_each(|node| node[4] = other.clone());
        case.watched[4] = other;
    });
}

#[test]
fn an_acknowledgement_out_of_order_is_found() {
    assert_found("was acknowledged after", |case| case.told.reverse());
}

#[test]
fn an_acknowledged_entry_in_a_fork_is_found() {
    assert_found("was acknowledged, and is in a fork", |case| case.fork.push(fact(5)));
}

#[test]
fn nodes_that_differ_are_found() {
    assert_found("node-3 differs", |case| _ = case.nodes[2].pop());
    assert_found("node-2 differs", |case| case.nodes[1][3].content_hash = Hash([0; 32]));
}

#[test]
fn a_gap_is_found() {
    assert_found("as number 4", |case| {
        case.nodes.iter_mut().for_each(|node| _ = node.remove(3));
    });
}

#[test]
fn an_entry_that_is_there_twice_is_found() {
    assert_found("whose id is there before", |case| {
        let twice = Fact { id: fact(1).id, ..fact(10) };
        case.nodes.iter_mut().for_each(|node| node.push(twice.clone()));
        case.watched.push(twice);
    });
}

#[test]
fn two_entries_of_one_epoch_are_found() {
    let other = Fact { id: EntryId::new("other").unwrap(), ..fact(4) };
    assert_found("two entries in one epoch", |case| case.fork.push(other.clone()));
    assert_found("two entries in one epoch", |case| case.watched[3] = other.clone());
    assert_found("two entries in one epoch", |case| case.read.push(other.clone()));
}

#[test]
fn a_watcher_that_misses_repeats_or_invents_is_found() {
    assert_found("a watcher saw", |case| _ = case.watched.remove(4));
    assert_found("a watcher saw", |case| case.watched.insert(4, fact(4)));
    assert_found("a watcher saw", |case| case.watched.swap(4, 5));
    assert_found("a watcher saw", |case| _ = case.watched.pop());
    assert_found("a watcher saw", |case| case.watched.push(fact(10)));
}

#[test]
fn what_a_reader_saw_and_is_no_more_is_found() {
    assert_found("a reader was shown", |case| {
        case.read.push(fact(10));
    });
}
