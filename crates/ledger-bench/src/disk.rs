//! The disk alone.

use std::{
    fs::File,
    io::{Seek as _, SeekFrom, Write as _},
    path::Path,
    time::Instant,
};

use hdrhistogram::Histogram;

const BLOCK: usize = 4096;

/// Latencies of fdatasync after appending 4 KiB to a file, as a log is written, nanoseconds. The file grows, so its
/// size is written too.
pub(crate) fn fdatasync(dir: &Path, count: usize) -> anyhow::Result<Histogram<u64>> {
    measured(dir, count, |_| None)
}

/// Latencies of fdatasync after overwriting 4 KiB of a file, nanoseconds.
pub(crate) fn fdatasync_in_place(dir: &Path, count: usize) -> anyhow::Result<Histogram<u64>> {
    measured(dir, count, |number| Some(number % 64 * BLOCK))
}

fn measured(
    dir: &Path,
    count: usize,
    place: impl Fn(usize) -> Option<usize>,
) -> anyhow::Result<Histogram<u64>> {
    let mut file: File = tempfile::tempfile_in(dir)?;
    file.write_all(&vec![0; BLOCK * 64])?;
    file.sync_all()?;
    let mut latency = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
    for number in 0..count {
        if let Some(offset) = place(number) {
            file.seek(SeekFrom::Start(offset as u64))?;
        }
        file.write_all(&[number as u8; BLOCK])?;
        let begin = Instant::now();
        file.sync_data()?;
        latency.saturating_record(begin.elapsed().as_nanos() as u64);
    }
    Ok(latency)
}
