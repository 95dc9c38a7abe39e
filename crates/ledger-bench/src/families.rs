//! What column families cost.

use std::{path::Path, time::Instant};

use rocksdb::{DB, Options};

use crate::node::resident_bytes;

/// Creates families one after the other, and prints what the 100th, 200th, 500th, … took.
pub(crate) fn run(dir: &Path, count: usize) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(dir)?;
    let mut options = Options::default();
    options.create_if_missing(true);
    let mut db = DB::open(&options, dir.path())?;
    let before = resident_bytes(std::process::id())?;
    println!("| family | creating it took | resident memory, each |\n| --- | --- | --- |");
    for number in 1..=count {
        let begin = Instant::now();
        db.create_cf(format!("context-{number}"), &options)?;
        let took = begin.elapsed();
        if matches!(number, 1 | 10 | 100 | 200 | 500) || number % 1000 == 0 || number == count {
            let each = (resident_bytes(std::process::id())?
                - before.min(resident_bytes(std::process::id())?))
                / number as u64;
            println!("| {number} | {:.1} ms | {} KB |", took.as_secs_f64() * 1000.0, each / 1000);
        }
    }
    Ok(())
}
