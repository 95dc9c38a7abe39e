//! Disk space: how much the node needs, and a reserve for starting on a full disk.
//!
//! Opening a database writes a little: a manifest and a log. The reserve is a file that keeps that much space
//! occupied. A node that starts on a full disk releases it, and creates it again once there is space. Other databases
//! call this a ballast file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Free bytes needed beyond the size of the memtables before a full disk is tried again.
pub(crate) const HEADROOM: u64 = 4 << 20;
/// Size of the reserve, in bytes.
const RESERVE: u64 = 8 << 20;
/// Bytes kept free for a node that started on a full disk.
const LEFT: u64 = 512 << 10;
/// Name of the reserve file in the data directory.
pub(crate) const FILE: &str = "RESERVE";
/// Name of the directory, in the data directory, in which a probe creates files.
const PROBE: &str = "PROBE";
/// Number of files that a probe creates: opening a database creates a log, a manifest, an options file, and a table
/// for each family.
const PROBES: u64 = 16;
/// Free bytes that a load leaves in addition to what appends need.
const LEFT_BY_LOADS: u64 = 16 << 20;
/// Extension of write-ahead log files.
const LOG: &str = "log";

/// Returns the free bytes of the path's volume that this user may use.
pub(crate) fn free(path: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(path)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// Tries to create files of `bytes` in total in a directory, and syncs them. The volume's free bytes do not show
/// whether that works: it may be out of inodes, over a quota, or thinly provisioned on a full disk.
pub(crate) fn probe(dir: &Path, bytes: u64) -> io::Result<()> {
    let place = dir.join(PROBE);
    end_probe(dir)?;
    let tried = fs::create_dir(&place).and_then(|()| {
        (0..PROBES).try_for_each(|number| make(&place.join(number.to_string()), bytes / PROBES)?.sync_all())
    });
    tried.and(end_probe(dir))
}

/// Removes the files of a probe, which may have been interrupted.
pub(crate) fn end_probe(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir.join(PROBE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Returns the free bytes that a load needs, given what appends need. Loads keep more free, because a load can be
/// retried and appends cannot wait.
pub(crate) const fn needed_to_load(needed: u64) -> u64 {
    needed + LEFT_BY_LOADS
}

/// Formats bytes as mebibytes, rounded up.
pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

/// Returns whether the text of a RocksDB error means that there is no space: on the disk, in a quota, or within the
/// file size limit.
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

/// Returns whether an error of the operating system means that there is no space.
pub(crate) fn is_no_space_io(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Returns the size of a database's write-ahead log, in bytes: up to that much may be in memory once it is open.
pub(crate) fn logged(database: &Path) -> u64 {
    let Ok(files) = fs::read_dir(database) else { return 0 };
    let logs =
        files.flatten().filter(|file| Path::new(&file.file_name()).extension().is_some_and(|e| e == LOG));
    logs.filter_map(|log| log.metadata().ok()).map(|log| log.len()).sum()
}

/// Disk space that is reserved for starting.
#[derive(Debug)]
pub(crate) struct Reserve(PathBuf);

impl Reserve {
    /// Returns the reserve of a data directory, whether its file exists now or not.
    pub(crate) fn of(dir: &Path) -> Self {
        Self(dir.join(FILE))
    }

    /// Creates the reserve again if there is ample space. A failure is left to the next attempt.
    pub(crate) fn keep(&self) {
        let is_kept = fs::metadata(&self.0).is_ok_and(|file| file.len() == RESERVE);
        let is_plenty = self.0.parent().is_some_and(|dir| free(dir).is_ok_and(|free| free > 4 * RESERVE));
        if is_kept || !is_plenty {
            return;
        }
        self.make(RESERVE);
    }

    /// Keeps what this start did not use of the reserve for the next start.
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

    /// Releases the reserve; returns whether there was one.
    pub(crate) fn give_up(&self) -> bool {
        fs::remove_file(&self.0).is_ok()
    }
}

/// Creates a file that occupies `bytes` on the disk.
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
        // The remains of an interrupted probe are no obstacle.
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
