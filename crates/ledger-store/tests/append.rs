//! Appending and reading, as an embedding program does it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use ledger_store::{Append, Filter, Key, LamportClock, Ledger, Options, Sequence, StoreError};
use support::{context, draft, small};

#[test]
fn entries_come_back_in_order_with_all_their_fields() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let context = context("growth");
    for number in 1..=1000_u64 {
        let appended = ledger.append(&context, draft("facts", format!("payload {number}"))).unwrap();
        assert_eq!(appended.entry.sequence, Sequence(number));
        assert_eq!(appended.entry.lamport, LamportClock(number));
        assert_eq!(appended.position.size.0, number);
    }
    let page = ledger.get(&context, &Filter::default()).unwrap();
    assert_eq!((page.entries.len(), page.latest.0, page.more), (1000, 1000, false));
    for (index, entry) in page.entries.iter().enumerate() {
        assert_eq!(entry.payload, format!("payload {}", index + 1));
        assert_eq!(entry.metadata["n"], "1");
        assert_eq!(entry.id.to_string().len(), 32);
    }
    assert_eq!(ledger.head(&context).unwrap().unwrap().root(), support::root_of(&page.entries));
}

#[test]
fn a_context_never_written_reads_as_empty() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let context = context("nothing");
    let page = ledger.get(&context, &Filter::default()).unwrap();
    assert!(page.entries.is_empty() && page.latest.0 == 0 && !page.more);
    assert_eq!(ledger.sequence(&context).unwrap(), Sequence(0));
    assert_eq!(ledger.lamport(&context).unwrap(), LamportClock(0));
    assert!(ledger.contexts("", "", 10).unwrap().is_empty());
}

#[test]
fn a_ledger_goes_on_where_it_was_closed() {
    let dir = tempfile::tempdir().unwrap();
    let context = context("growth");
    let mut expected = Vec::new();
    // Across tile borders, at sizes that leave every kind of right edge.
    for count in [1, 254, 1, 1, 511, 300, 65_300, 10] {
        let ledger = Ledger::open_with(dir.path(), small()).unwrap();
        for _ in 0..count {
            expected
                .push(ledger.append(&context, draft("facts", format!("{}", expected.len()))).unwrap().entry);
            if expected.len() > 2000 {
                break;
            }
        }
        if count > 60_000 {
            support::append_many(&ledger, &context, count, &mut expected);
        }
        ledger.close().unwrap();
    }
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let page = ledger.get(&context, &Filter::default()).unwrap();
    assert_eq!(page.entries, expected);
    assert_eq!(ledger.head(&context).unwrap().unwrap().root(), support::root_of(&expected));
}

#[test]
fn received_time_moves_the_clock() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let context = context("c");
    let append = |received| ledger.append_received(&context, draft("k", "x"), LamportClock(received));
    assert_eq!(append(41).unwrap().entry.lamport, LamportClock(42));
    assert_eq!(append(7).unwrap().entry.lamport, LamportClock(43));
    assert_eq!(ledger.lamport(&context).unwrap(), LamportClock(43));
    assert!(matches!(append(u64::MAX), Err(StoreError::Lamport(_))));
    assert_eq!(append(0).unwrap().entry.sequence, Sequence(3), "a refused append leaves no gap");
}

#[tokio::test]
async fn repeating_an_entry_id_returns_the_first_result() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let append = |id: &str, payload: &str| {
        let id = ledger_store::EntryId::new(id).unwrap();
        let append =
            Append { entry_id: Some(id), ..Append::new(context("c"), draft("k", payload.to_owned())) };
        ledger.append_async(append)
    };
    let first = append("retry-1", "x").await.unwrap();
    append("other", "y").await.unwrap();
    let again = append("retry-1", "x").await.unwrap();
    assert!(again.repeated && !first.repeated);
    assert_eq!((again.entry, again.position), (first.entry, first.position));
    let error = append("retry-1", "changed").await.unwrap_err();
    assert!(matches!(&error, StoreError::EntryIdTaken { sequence: Sequence(1), .. }), "{error}");
    // All at once: one of them is stored.
    let all = futures::future::join_all((0..50).map(|_| append("burst", "z"))).await;
    assert!(all.iter().all(|result| result.as_ref().unwrap().entry.sequence == Sequence(3)));
    assert_eq!(all.iter().filter(|result| !result.as_ref().unwrap().repeated).count(), 1);
    assert_eq!(ledger.sequence(&context("c")).unwrap(), Sequence(3));
}

#[test]
fn pages_cover_everything_once() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let context = context("c");
    let mut all = Vec::new();
    support::append_many(&ledger, &context, 700, &mut all);
    for (limit, max_bytes) in
        [(1, usize::MAX), (7, usize::MAX), (usize::MAX, 1000), (256, usize::MAX), (usize::MAX, 1)]
    {
        for key in [None, Some("rare"), Some("facts"), Some("absent")] {
            let (mut got, mut after) = (Vec::new(), Sequence(0));
            loop {
                let filter = Filter {
                    key: key.map(|key| Key::new(key).unwrap()),
                    after,
                    limit,
                    max_bytes,
                    ..Filter::default()
                };
                let page = ledger.get(&context, &filter).unwrap();
                assert!(page.entries.len() <= limit);
                assert!(!page.more || page.covered > after, "a page makes progress");
                got.extend(page.entries);
                after = page.covered;
                if !page.more {
                    break;
                }
            }
            let expected: Vec<_> =
                all.iter().filter(|entry| key.is_none_or(|key| entry.key.as_str() == key)).cloned().collect();
            assert_eq!(got, expected, "limit {limit}, max_bytes {max_bytes}, key {key:?}");
            assert_eq!(after, Sequence(700));
        }
    }
}

#[test]
fn a_first_entry_that_is_too_large_for_a_page_is_left_with_its_size() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let context = context("c");
    let watch = || ledger.watch(&context, None, Sequence(0));
    // What is appended while somebody watches is in memory.
    let watches = [watch(), watch()];
    for (key, payload) in [("a", "1".to_owned()), ("b", "x".repeat(5000)), ("b", "3".to_owned())] {
        ledger.append(&context, draft(key, payload)).unwrap();
    }
    let most = 1000;
    let read = |key: Option<&str>, after, max_first| {
        let key = key.map(|key| Key::new(key).unwrap());
        let filter = Filter { key, after: Sequence(after), max_bytes: most, max_first, ..Filter::default() };
        let page = ledger.get(&context, &filter).unwrap();
        (page.entries.len(), page.covered.0, page.more, page.larger)
    };
    assert_eq!(read(None, 0, most), (1, 1, true, None));
    let (none, covered, more, larger) = read(None, 1, most);
    let bytes = larger.unwrap();
    assert!(bytes > 5000 && bytes < 6000, "{bytes}");
    assert_eq!((none, covered, more), (0, 1, true));
    // Those that are filtered out are covered, whatever their size.
    assert_eq!(read(Some("b"), 0, most), (0, 1, true, Some(bytes)));
    assert_eq!(read(Some("a"), 1, most), (0, 3, false, None));
    // With room for it, it is the page.
    assert_eq!(read(None, 1, bytes), (1, 2, true, None));

    // A watcher is told the same, of what is in memory and of what is stored, and goes on from there.
    for (mut watch, from_memory) in watches.into_iter().zip([true, false]) {
        let mut read = |most| {
            let mut seen = Vec::new();
            let covered = if from_memory {
                watch.visit_recent(10, most, |view| seen.push(view.sequence.0))
            } else {
                Some(watch.visit(10, most, |view| seen.push(view.sequence.0)))
            };
            let covered = covered.expect("it is recent").unwrap();
            (seen, covered.larger)
        };
        assert_eq!(read(most), (vec![1], None), "{from_memory}");
        assert_eq!(read(most), (vec![], Some(bytes)), "{from_memory}");
        assert_eq!(read(bytes), (vec![2], None), "{from_memory}");
        assert_eq!(read(most), (vec![3], None), "{from_memory}");
    }
}

#[test]
fn an_entry_over_the_limit_is_refused_by_its_size_in_a_message_and_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), Options { max_entry: 300, ..small() }).unwrap();
    // Names, numbers, the hash and the longest id that the ledger makes count as well as the payload.
    let refused = ledger.append(&context("c"), draft("k", "x".repeat(300))).unwrap_err().to_string();
    let len: usize = refused.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    let most = 300 - (len - 300);
    let error = ledger.append(&context("c"), draft("k", "x".repeat(most + 1))).unwrap_err().to_string();
    assert!(error.contains("301 bytes") && error.contains("at most 300"), "{error}");
    let appended = ledger.append(&context("c"), draft("k", "x".repeat(most))).unwrap();
    assert!(appended.entry.message_len() <= 300);
    let metadata = [("m".to_owned(), "x".repeat(300))].into();
    let draft = ledger_store::Draft { metadata, ..draft("k", "") };
    assert!(ledger.append(&context("c"), draft).is_err(), "metadata counts, too");
}

#[test]
fn a_second_process_is_refused_by_a_plain_message() {
    let dir = tempfile::tempdir().unwrap();
    let _ledger = Ledger::open(dir.path()).unwrap();
    let error = Ledger::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("has it open"), "{error}");
}

#[test]
fn a_closed_ledger_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    ledger.append(&context("c"), draft("k", "x")).unwrap();
    ledger.close().unwrap();
    assert!(matches!(ledger.append(&context("c"), draft("k", "x")), Err(StoreError::Closed)));
    assert!(matches!(ledger.writable(), Err(StoreError::Closed)));
}

#[test]
fn contexts_are_listed_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    for name in ["a", "b/1", "b/2", "b/3", "c"] {
        ledger.append(&context(name), draft("k", "x")).unwrap();
    }
    let names = |prefix: &str, after: &str, limit| -> Vec<String> {
        ledger.contexts(prefix, after, limit).unwrap().iter().map(|info| info.context.to_string()).collect()
    };
    assert_eq!(names("", "", 100), ["a", "b/1", "b/2", "b/3", "c"]);
    assert_eq!(names("b/", "", 2), ["b/1", "b/2"]);
    assert_eq!(names("b/", "b/2", 2), ["b/3"]);
    assert_eq!(names("", "b/3", 9), ["c"]);
    assert!(names("", "c", 9).is_empty() && names("x", "", 9).is_empty());
}

#[test]
fn what_was_promised_of_a_slot_is_there_after_opening_again() {
    use ledger_core::{
        node::{Member, NodeId, ReplicaSet, StorageId},
        ownership::{Claim, SlotRecord},
        slot::Slot,
    };
    let dir = tempfile::tempdir().unwrap();
    let slot = |number| Slot::new(number).unwrap();
    let node = NodeId::new("ledger-1").unwrap();
    let member = Member { node, storage: StorageId([1; 16]) };
    let claim = Claim::lowest_above(ledger_store::Epoch::default(), &member).unwrap();
    let set = ReplicaSet::new([member]).unwrap();
    let (promised, _) = SlotRecord::default().promise(&claim).unwrap();
    let accepted = promised.accept(&claim, &set, false, None).unwrap();
    {
        let ledger = Ledger::open_with(dir.path(), small()).unwrap();
        assert_eq!(ledger.slot_record(slot(3)).unwrap(), SlotRecord::default());
        let records = [(slot(3), promised.clone()), (slot(1023), accepted.clone())];
        ledger.keep_slot_records(&records.into()).unwrap();
        ledger.close().unwrap();
    }
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    // Of a slot without members the record names the node only.
    let bare = Claim { storage: None, ..claim };
    assert_eq!(ledger.slot_record(slot(3)).unwrap(), SlotRecord { promised: Some(bare), ..promised });
    assert_eq!(ledger.slot_record(slot(1023)).unwrap(), accepted);
    assert_eq!(ledger.slot_record(slot(4)).unwrap(), SlotRecord::default());
}
