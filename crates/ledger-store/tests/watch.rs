//! Watching: no gap, in order, once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use ledger_store::{Key, Ledger, Sequence, StoreError};
use support::{append_many, context, draft, small};

/// Entries written while they are watched.
const COUNT: u64 = 5000;

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_every_entry_once_in_order_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let context = context("c");
    let watchers: Vec<_> = (0..8_u64)
        .map(|number| {
            let (ledger, context) = (ledger.clone(), context.clone());
            tokio::spawn(async move {
                // Some start late, some in the middle, some read slowly.
                let after = Sequence(number * 10);
                let key = (number % 2 == 1).then(|| Key::new("facts").unwrap());
                let mut watch = ledger.watch(&context, key.clone(), after);
                let mut next = after.0;
                while watch.delivered().0 < COUNT {
                    let page = watch.read(1 + number as usize * 40, usize::MAX).unwrap();
                    for entry in &page.entries {
                        assert!(entry.sequence.0 > next);
                        assert!(
                            key.is_some() || entry.sequence.0 == next + 1,
                            "a gap before {}",
                            entry.sequence
                        );
                        next = entry.sequence.0;
                    }
                    if page.entries.is_empty() && !page.more {
                        watch.changed().await.unwrap();
                    }
                }
            })
        })
        .collect();
    let writer = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        while all.len() < COUNT as usize {
            append_many(&ledger, &context, 100, &mut all);
        }
    });
    tokio::time::timeout(std::time::Duration::from_mins(1), async {
        writer.await.unwrap();
        for watcher in watchers {
            watcher.await.unwrap();
        }
    })
    .await
    .expect("every watcher gets everything");
}

#[tokio::test]
async fn closing_wakes_the_watchers() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let mut watch = ledger.watch(&context("c"), None, Sequence(0));
    assert!(watch.read(10, usize::MAX).unwrap().entries.is_empty());
    let closing = ledger.clone();
    let closer = tokio::task::spawn_blocking(move || closing.close().unwrap());
    assert!(matches!(watch.changed().await, Err(StoreError::Closed)));
    closer.await.unwrap();
}

#[test]
fn a_blocking_watcher_waits_for_the_next_entry() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open_with(dir.path(), small()).unwrap();
    let mut watch = ledger.watch(&context("c"), None, Sequence(0));
    let writer = ledger.clone();
    let thread = std::thread::spawn(move || writer.append(&context("c"), draft("k", "x")).unwrap());
    watch.wait().unwrap();
    assert_eq!(watch.read(10, usize::MAX).unwrap().entries.len(), 1);
    thread.join().unwrap();
}
