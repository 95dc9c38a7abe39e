//! Space on the disk: what is needed, and a reserve to start with when there is none left.
//!
//! A database cannot be opened without writing a little: a manifest, a log. The reserve is a file that takes so much space
//! as long as it is not needed. It is given up when a node starts on a full disk, and made again once there is space, as
//! other databases do with their ballast files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Free bytes there must be beyond what is in memory before a full disk is tried again.
pub(crate) const HEADROOM: u64 = 4 << 20;
/// Bytes that are held in reserve.
const RESERVE: u64 = 8 << 20;
/// Bytes that are left to a node that started on a full disk.
const LEFT: u64 = 512 << 10;
/// The reserve, in the data directory.
pub(crate) const FILE: &str = "RESERVE";
/// Where it is tried out whether files can be made, in the data directory.
const PROBE: &str = "PROBE";
/// Files that are made there: a database that is opened makes a log, a manifest, its options, and a table of each family.
const PROBES: u64 = 16;
/// Bytes that a load leaves beside what appends need.
const LEFT_BY_LOADS: u64 = 16 << 20;
/// Extension of the write-ahead log's files.
const LOG: &str = "log";

/// Free bytes where a path lies, for this user.
pub(crate) fn free(path: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(path)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// Whether files of so many bytes together can be made in a directory, and are on the disk then. The free bytes of a volume do
/// not say that: it may be out of inodes, a quota may be used up, or what is below the volume be full.
pub(crate) fn probe(dir: &Path, bytes: u64) -> io::Result<()> {
    let place = dir.join(PROBE);
    end_probe(dir)?;
    let tried = fs::create_dir(&place).and_then(|()| {
        (0..PROBES).try_for_each(|number| make(&place.join(number.to_string()), bytes / PROBES)?.sync_all())
    });
    tried.and(end_probe(dir))
}

/// Removes what a probe made, which may have been cut short.
pub(crate) fn end_probe(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir.join(PROBE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Free bytes that there must be for a load to go on, given what appends need: it can be tried again, and they cannot wait.
pub(crate) const fn needed_to_load(needed: u64) -> u64 {
    needed + LEFT_BY_LOADS
}

/// Bytes, as people read them: rounded up.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Whether RocksDB's words for an error mean that there is no space: of the disk, of a quota, or of a file's size.
pub(crate) fn is_no_space(text: &str) -> bool {
    [
        "No space left",
        "ENOSPC",
        "Disk quota exceeded",
        "EDQUOT",
        "File too large",
        "Space limit reached",
        "No space",
    ]
    .iter()
    .any(|said| text.contains(said))
}

/// Whether an error of the operating system means that there is no space.
pub(crate) fn is_no_space_io(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Bytes of the write-ahead log in a database: so many may be in memory once it is open.
pub(crate) fn logged(database: &Path) -> u64 {
    let Ok(files) = fs::read_dir(database) else { return 0 };
    let logs =
        files.flatten().filter(|file| Path::new(&file.file_name()).extension().is_some_and(|e| e == LOG));
    logs.filter_map(|log| log.metadata().ok()).map(|log| log.len()).sum()
}

/// Space that nobody else gets.
#[derive(Debug)]
pub(crate) struct Reserve(PathBuf);

impl Reserve {
    /// The reserve of a data directory, whether there is one now or not.
    pub(crate) fn of(dir: &Path) -> Self {
        Self(dir.join(FILE))
    }

    /// Holds space in reserve again, if there is plenty. What cannot be is left for the next time.
    pub(crate) fn keep(&self) {
        let is_kept = fs::metadata(&self.0).is_ok_and(|file| file.len() == RESERVE);
        let is_plenty = self.0.parent().is_some_and(|dir| free(dir).is_ok_and(|free| free > 4 * RESERVE));
        if is_kept || !is_plenty {
            return;
        }
        self.make(RESERVE);
    }

    /// Holds in reserve for the next start what this one did not need.
    pub(crate) fn keep_rest(&self) {
        let left = self.0.parent().and_then(|dir| free(dir).ok()).unwrap_or_default();
        if let Some(rest) = left.checked_sub(LEFT).filter(|rest| *rest > LEFT) {
            self.make(rest.min(RESERVE));
        }
    }

    fn make(&self, bytes: u64) {
        if let Err(error) = make(&self.0, bytes) {
            tracing::debug!(%error, "no space can be held in reserve");
            let _ = fs::remove_file(&self.0);
        }
    }

    /// Gives the reserve up; whether there was one.
    pub(crate) fn give_up(&self) -> bool {
        fs::remove_file(&self.0).is_ok()
    }
}

/// Makes a file that takes so many bytes.
fn make(path: &Path, bytes: u64) -> io::Result<File> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
        Ok(()) => {}
        Err(rustix::io::Errno::OPNOTSUPP) => fill(&mut file, bytes)?,
        Err(error) => return Err(error.into()),
    }
    Ok(file)
}

fn fill(file: &mut File, bytes: u64) -> io::Result<()> {
    let block = [0xa5; 8 << 10];
    for _ in 0..bytes / block.len() as u64 {
        file.write_all(&block)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_say_no_space_is_known() {
        for text in [
            "IO error: No space left on device: While appending to file: /d/db/000012.log: No space left on device",
            "IO error: Disk quota exceeded: While appending to file",
            "IO error: File too large: While appending to file",
            "IO error: No space left on device",
            "Space limit reached: max allowed space",
        ] {
            assert!(is_no_space(text), "{text}");
        }
        assert!(!is_no_space("Corruption: block checksum mismatch"));
        for (errno, is_full) in [(28, true), (122, true), (27, true), (5, false), (30, false)] {
            assert_eq!(is_no_space_io(&io::Error::from_raw_os_error(errno)), is_full, "{errno}");
        }
    }

    #[test]
    fn a_probe_makes_files_and_leaves_none() {
        let dir = tempfile::tempdir().unwrap();
        // One that was cut short is no obstacle.
        fs::create_dir(dir.path().join(PROBE)).unwrap();
        fs::write(dir.path().join(PROBE).join("3"), b"x").unwrap();
        probe(dir.path(), 1 << 20).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(probe(&dir.path().join("gone"), 1 << 20).is_err());
    }

    #[test]
    fn space_is_held_in_reserve_and_given_up_once() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path());
        assert!(!reserve.give_up());
        reserve.keep();
        reserve.keep();
        assert_eq!(fs::metadata(dir.path().join(FILE)).unwrap().len(), RESERVE);
        assert!(reserve.give_up());
        assert!(!reserve.give_up());
    }
}
