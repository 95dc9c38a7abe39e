//! What the tests share.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test uses a part of it")]

use ledger_store::{Append, ContextId, Draft, Entry, Hash, Key, Ledger, Options};

pub fn context(name: &str) -> ContextId {
    ContextId::new(name).unwrap()
}

pub fn draft(key: &str, payload: impl Into<bytes::Bytes>) -> Draft {
    Draft {
        key: Key::new(key).unwrap(),
        payload: payload.into(),
        metadata: [("n".into(), "1".into())].into(),
    }
}

/// Options that make everything happen early: small caches, no scrub.
pub fn small() -> Options {
    Options {
        block_cache: 8 << 20,
        write_buffer: 8 << 20,
        head_cache: 1 << 16,
        scrub_rate: 0,
        ..Options::default()
    }
}

/// Appends `count` entries in batches, one in a hundred of key "rare".
pub fn append_many(ledger: &Ledger, context: &ContextId, count: usize, all: &mut Vec<Entry>) {
    let (results, mut received) = tokio::sync::mpsc::unbounded_channel();
    let first = all.len();
    let draft_of = |number: usize| {
        let key = if number % 300 == 123 { "rare" } else { "facts" };
        draft(key, format!("payload {number}"))
    };
    let appends =
        (first..first + count).map(|number| (number as u64, Append::new(context.clone(), draft_of(number))));
    futures::executor::block_on(ledger.submit(
        appends.collect(),
        ledger_store::AppendConditions::default(),
        results,
    ))
    .unwrap();
    while let Some(message) = received.blocking_recv() {
        for result in message.results {
            assert_eq!(result.tag, all.len() as u64);
            let stored = result.result.unwrap();
            let Draft { key, payload, metadata } = draft_of(all.len());
            assert_eq!(stored.payload_bytes, payload.len());
            all.push(Entry {
                id: stored.id,
                context_id: stored.context_id,
                sequence: stored.sequence,
                lamport: stored.lamport,
                appended_at_ns: stored.appended_at_ns,
                epoch: stored.epoch,
                content_hash: stored.content_hash,
                key,
                payload,
                metadata,
            });
        }
    }
    assert_eq!(all.len(), first + count);
}

/// The root over entries, from their fields alone.
pub fn root_of(entries: &[Entry]) -> Hash {
    use ledger_core::hash::{Blake3, Hasher as _};
    let mut frontier = ledger_core::tree::Frontier::default();
    for entry in entries {
        frontier.push::<Blake3>(Blake3::leaf(&entry.computed_hash_with::<Blake3>()), |_, _| ());
    }
    frontier.root::<Blake3>()
}

/// Copies a directory tree.
pub fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let item = item.unwrap();
        let target = to.join(item.file_name());
        if item.file_type().unwrap().is_dir() {
            copy_dir(&item.path(), &target);
        } else {
            std::fs::copy(item.path(), target).unwrap();
        }
    }
}

/// Changes rows of a closed ledger behind its back: `change` gets each row of a family and may return another value.
pub fn tamper(dir: &std::path::Path, family: &str, change: impl Fn(usize, &[u8], &[u8]) -> Option<Vec<u8>>) {
    let db = behind_its_back(dir);
    let handle = db.cf_handle(family).unwrap();
    let rows: Vec<_> = db.iterator_cf(handle, rocksdb::IteratorMode::Start).map(Result::unwrap).collect();
    for (number, (key, value)) in rows.into_iter().enumerate() {
        if let Some(value) = change(number, &key, &value) {
            db.put_cf(handle, key, value).unwrap();
        }
    }
}

/// The database of a closed ledger.
fn behind_its_back(dir: &std::path::Path) -> rocksdb::DB {
    let (options, path) = (rocksdb::Options::default(), dir.join("db"));
    let families = rocksdb::DB::list_cf(&options, &path).unwrap();
    rocksdb::DB::open_cf(&options, &path, families).unwrap()
}

/// Removes a row of a closed ledger behind its back.
pub fn remove_row(dir: &std::path::Path, family: &str, key: &[u8]) {
    let db = behind_its_back(dir);
    let handle = db.cf_handle(family).unwrap();
    assert!(db.get_cf(handle, key).unwrap().is_some());
    db.delete_cf(handle, key).unwrap();
}

/// With one bit of the byte there flipped.
pub fn flipped(value: &[u8], at: usize) -> Vec<u8> {
    let mut value = value.to_vec();
    value[at] ^= 1;
    value
}
