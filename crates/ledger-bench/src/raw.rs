//! RocksDB alone.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rocksdb::{DB, Options, WriteBatch, WriteOptions};

/// Entries written per second, one synced batch after the other, keys in order.
pub(crate) fn entries_per_second(
    dir: &Path,
    payload: usize,
    batch: u64,
    seconds: f64,
) -> anyhow::Result<f64> {
    let dir = tempfile::tempdir_in(dir)?;
    let mut options = Options::default();
    options.create_if_missing(true);
    let db = DB::open(&options, dir.path())?;
    let mut write = WriteOptions::default();
    write.set_sync(true);
    let mut value = vec![0; payload];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut value);
    let length = Duration::from_secs_f64(seconds);
    let (begin, mut written) = (Instant::now(), 0_u64);
    while begin.elapsed() < length {
        let mut rows = WriteBatch::default();
        for _ in 0..batch.max(1) {
            rows.put(written.to_be_bytes(), &value);
            written += 1;
        }
        db.write_opt(rows, &write)?;
    }
    Ok(written as f64 / begin.elapsed().as_secs_f64())
}
