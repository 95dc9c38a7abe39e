//! Records outside of the write-ahead log how far the directory is durable.
//!
//! RocksDB opens a truncated log without an error: it cannot tell a missing end from one that was never written. So
//! after each sync, and before anything of it is acknowledged, the node writes the newest durable sequence number to
//! a file beside the database. It does not sync that file. A killed process leaves the number in the page cache.
//! After a power cut the file may say less than is on disk, and never more, because the log was synced first.
//!
//! | bytes | of each of the two records, which are [`RECORD_SPACING`] bytes apart |
//! | --- | --- |
//! | 8 | [`MAGIC`] |
//! | 8 | the number, big-endian |
//! | 4 | CRC-32 of the above, big-endian |

use std::{
    fs::File,
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::Path,
};

use parking_lot::Mutex;

/// Name of the file in the data directory.
pub(crate) const FILE: &str = "DURABLE";
/// First bytes of a record: its format, version 1.
const MAGIC: [u8; 8] = *b"CVGLDUR1";
/// Distance between the two records, in bytes: they lie in different sectors, so a torn write damages only one.
const RECORD_SPACING: u64 = 4096;
const RECORD: usize = 8 + 8 + 4;

/// The watermark file and its number.
#[derive(Debug)]
pub(crate) struct Watermark {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    number: u64,
    /// Offset of the record that the next write replaces.
    next: u64,
    has_failed: bool,
}

impl Watermark {
    /// Opens the file, or creates it with number 0.
    ///
    /// # Errors
    /// If the file cannot be opened or read.
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join(FILE))?;
        let records = [read(&file, 0)?, read(&file, RECORD_SPACING)?];
        let number = records.iter().flatten().copied().max().unwrap_or(0);
        // The next write replaces the older record.
        let next = if records[0].is_some_and(|first| first == number) { RECORD_SPACING } else { 0 };
        Ok(Self { file, state: Mutex::new(State { number, next, has_failed: false }) })
    }

    /// Returns the number up to which the directory is known to have been durable.
    pub(crate) fn number(&self) -> u64 {
        self.state.lock().number
    }

    /// Records that everything up to `number` is on disk.
    pub(crate) fn advance(&self, number: u64) {
        let mut state = self.state.lock();
        if number > state.number {
            self.write(&mut state, number);
        }
    }

    /// Lowers the number: an operator accepts that later changes are lost.
    ///
    /// # Errors
    /// If the file cannot be written and synced.
    pub(crate) fn reset(&self, number: u64) -> io::Result<()> {
        for at in [0, RECORD_SPACING] {
            self.file.write_all_at(&encode(number), at)?;
        }
        self.file.sync_all()?;
        self.state.lock().number = number;
        Ok(())
    }

    /// Syncs the file itself.
    pub(crate) fn sync(&self) {
        // A failure is harmless: the file may say less than is on disk.
        let _ = self.file.sync_data();
    }

    fn write(&self, state: &mut State, number: u64) {
        match self.file.write_all_at(&encode(number), state.next) {
            Ok(()) => {
                state.number = number;
                state.next = RECORD_SPACING - state.next;
                state.has_failed = false;
            }
            Err(error) if !state.has_failed => {
                state.has_failed = true;
                tracing::warn!(
                    %error,
                    "the file {FILE} cannot be written: a log that is cut short would go unnoticed at the next start"
                );
            }
            Err(_) => {}
        }
    }
}

fn encode(number: u64) -> [u8; RECORD] {
    let mut record = [0; RECORD];
    record[..8].copy_from_slice(&MAGIC);
    record[8..16].copy_from_slice(&number.to_be_bytes());
    let checksum = crc32fast::hash(&record[..16]);
    record[16..].copy_from_slice(&checksum.to_be_bytes());
    record
}

fn read(file: &File, at: u64) -> io::Result<Option<u64>> {
    let mut record = [0; RECORD];
    match file.read_exact_at(&mut record, at) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut number = [0; 8];
    number.copy_from_slice(&record[8..16]);
    let number = u64::from_be_bytes(number);
    Ok((record == encode(number)).then_some(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_number_survives_and_a_torn_record_spares_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let watermark = Watermark::open(dir.path()).unwrap();
        assert_eq!(watermark.number(), 0);
        for number in [5, 9, 7, 12] {
            watermark.advance(number);
        }
        assert_eq!(Watermark::open(dir.path()).unwrap().number(), 12);
        // 12 was the third number written, so it replaced 5.
        let file = File::options().write(true).open(dir.path().join(FILE)).unwrap();
        file.write_all_at(b"torn", 12).unwrap();
        let watermark = Watermark::open(dir.path()).unwrap();
        assert_eq!(watermark.number(), 9);
        watermark.advance(20);
        assert_eq!(Watermark::open(dir.path()).unwrap().number(), 20);
        watermark.reset(3).unwrap();
        assert_eq!(Watermark::open(dir.path()).unwrap().number(), 3);
    }
}
