//! Sets aside data directories that cannot be opened: kept whole, below the directory, while a cluster member
//! continues with a new database.
//!
//! The files are moved into [`BELOW`]. The database moves first and the file [`WHY`] is written last, so the next
//! start can finish after a crash; a database without its other files is incomplete too. This happens once: if the
//! directory fails again while the first database is still kept, a new database would not remove the cause.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::{
    directory::data_dir::{DATABASE, DataDir, MARKER},
    engine::space,
    engine::watermark,
};

/// Subdirectory of the data directory that holds what was set aside.
const BELOW: &str = "set-aside";
/// Requests that the next start sets the directory aside, and says why: the database opens, but has failed
/// permanently.
const REPLACE: &str = "REPLACE";
/// Says why the directory was set aside; written once everything is moved.
const WHY: &str = "WHY";
/// Longest reason that is read back, in bytes.
const MAX_WHY: u64 = 64 << 10;

/// A database that could not be opened and was set aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// Path of the files.
    pub path: PathBuf,
    /// The reason recorded when it was set aside.
    pub why: String,
}

/// Returns what was set aside earlier in a data directory and is still there.
///
/// # Errors
/// If it cannot be read.
pub fn set_aside_before(dir: &Path) -> io::Result<Option<SetAside>> {
    let path = dir.join(BELOW);
    Ok(read_why(&path.join(WHY))?.map(|why| SetAside { path, why }))
}

fn read_why(path: &Path) -> io::Result<Option<String>> {
    let mut why = String::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_WHY).read_to_string(&mut why)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(Some(why.trim_end().to_owned()))
}

fn write_why(path: &Path, why: &str) -> io::Result<()> {
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(format!("{why}\n").as_bytes())?;
    file.sync_all()?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Requests that the next start sets the directory aside, with the reason.
///
/// # Errors
/// If the request cannot be written.
pub fn want_replacement(dir: &Path, why: &str) -> io::Result<()> {
    write_why(&dir.join(REPLACE), why)
}

/// Returns the reason if this start is to set the directory aside.
///
/// # Errors
/// If the request cannot be read.
pub fn wants_replacement(dir: &Path) -> io::Result<Option<String>> {
    read_why(&dir.join(REPLACE))
}

/// Sets aside a database that cannot be opened, with the reason. No process may have it open.
///
/// # Errors
/// If one was set aside before ([`io::ErrorKind::AlreadyExists`]), or if a file cannot be moved: then nothing is
/// lost, and the next attempt continues.
pub fn set_aside(dir: &Path, why: &str) -> io::Result<SetAside> {
    if let Some(before) = set_aside_before(dir)? {
        let message = format!("{} is there already", before.path.display());
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
    }
    let path = dir.join(BELOW);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&path)?;
    File::open(dir)?.sync_all()?;
    // The marker says that there was a database, so it moves last. The directory of an older build gets a marker
    // first.
    DataDir::new(dir).and_then(|home| home.is_in_use()).map_err(io::Error::other)?;
    for name in [DATABASE, watermark::FILE, space::FILE, MARKER, REPLACE] {
        match fs::rename(dir.join(name), path.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        File::open(&path)?.sync_all()?;
        File::open(dir)?.sync_all()?;
    }
    write_why(&path.join(WHY), why)?;
    Ok(SetAside { path, why: why.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ContextId, Draft, Key, Ledger, StoreError};

    fn fact() -> Draft {
        Draft { key: Key::new("facts").unwrap(), payload: "kept".into(), metadata: [].into() }
    }

    #[test]
    fn a_database_that_lost_a_file_is_kept_and_a_new_one_opens_once() {
        let dir = tempfile::tempdir().unwrap();
        let context = ContextId::new("c").unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        ledger.append(&context, fact()).unwrap();
        let storage = ledger.storage_id();
        ledger.close().unwrap();
        drop(ledger);
        let current = fs::read(dir.path().join("db/CURRENT")).unwrap();
        fs::remove_file(dir.path().join("db/CURRENT")).unwrap();
        let refused = Ledger::open(dir.path()).unwrap_err();
        assert!(matches!(refused, StoreError::NotWhole { .. }), "{refused}");

        assert_eq!(set_aside_before(dir.path()).unwrap(), None);
        let kept = set_aside(dir.path(), &refused.to_string()).unwrap();
        assert_eq!(set_aside_before(dir.path()).unwrap().as_ref(), Some(&kept));
        let fresh = Ledger::open(dir.path()).unwrap();
        assert_ne!(fresh.storage_id(), storage);
        fresh.close().unwrap();
        drop(fresh);
        let again = set_aside(dir.path(), "again").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);

        // Nothing was lost: once the file is back, the database opens where it is.
        fs::write(kept.path.join("db/CURRENT"), current).unwrap();
        let old = Ledger::open(&kept.path).unwrap();
        assert_eq!(old.storage_id(), storage);
        assert_eq!(old.get(&context, &crate::Filter::default()).unwrap().entries.len(), 1);
    }

    #[test]
    fn a_wish_for_replacement_is_kept_until_it_is_done() {
        let dir = tempfile::tempdir().unwrap();
        Ledger::open(dir.path()).unwrap().close().unwrap();
        assert_eq!(wants_replacement(dir.path()).unwrap(), None);
        want_replacement(dir.path(), "a table file is damaged").unwrap();
        assert_eq!(wants_replacement(dir.path()).unwrap().as_deref(), Some("a table file is damaged"));
        set_aside(dir.path(), "a table file is damaged").unwrap();
        assert_eq!(wants_replacement(dir.path()).unwrap(), None);
    }

    #[test]
    fn what_was_interrupted_is_finished_and_never_opened_in_between() {
        for moved in 1..4 {
            let dir = tempfile::tempdir().unwrap();
            let ledger = Ledger::open(dir.path()).unwrap();
            ledger.append(&ContextId::new("c").unwrap(), fact()).unwrap();
            ledger.close().unwrap();
            drop(ledger);
            fs::create_dir(dir.path().join(BELOW)).unwrap();
            for name in [DATABASE, watermark::FILE, space::FILE].iter().take(moved) {
                fs::rename(dir.path().join(name), dir.path().join(BELOW).join(name)).unwrap();
            }
            let refused = Ledger::open(dir.path()).unwrap_err();
            assert!(matches!(refused, StoreError::NotWhole { .. }), "{moved}: {refused}");
            let kept = set_aside(dir.path(), "interrupted").unwrap();
            assert!(kept.path.join("db/CURRENT").exists() && kept.path.join(MARKER).exists(), "{moved}");
            Ledger::open(dir.path()).unwrap();
        }
    }
}
