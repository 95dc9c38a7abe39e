//! The data directory as it is known from outside its database.
//!
//! A database must only be created in a directory that never had one. The database itself cannot tell: RocksDB treats
//! a directory without the file `CURRENT` as new and removes every table and log in it. So the file [`MARKER`],
//! beside the database, records whether one was created.
//!
//! | marker | `db/` | |
//! | --- | --- | --- |
//! | none | none, or empty | created: the marker says "creating", then "in use" once the database is formatted |
//! | none | a database | an older build wrote it: opened, and the marker is written |
//! | "creating" | anything | nothing was ever acknowledged: recreated, or opened |
//! | "in use" | a database | opened |
//! | none, or "in use" | remains without `CURRENT` | refused |
//! | "in use" | none, or empty | refused |

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use crate::StoreError;

/// The file that records that there is a database.
pub(crate) const MARKER: &str = "LEDGER";
/// First line of the marker: its kind and the version of its format.
const MARKER_FORMAT: &str = "converge-ledger data directory, version 1";
const CREATING: &str = "creating";
const IN_USE: &str = "in use";
/// The directory of the database, below the data directory, so that a volume's own files do not disturb RocksDB.
pub(crate) const DATABASE: &str = "db";
/// The file in which RocksDB names the newest manifest.
const CURRENT: &str = "CURRENT";
/// Longest marker, in bytes.
const MAX_MARKER: u64 = 4096;

/// A data directory.
#[derive(Debug, Clone)]
pub(crate) struct DataDir {
    dir: PathBuf,
}

/// What the marker says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    None,
    Creating,
    InUse,
}

/// What was found where the database should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FoundFiles {
    Nothing,
    WithoutCurrent,
    Database,
}

/// Whether the database is created or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenMode {
    /// There never was a database: create it.
    Create,
    /// There is a database: open it.
    Existing,
}

impl DataDir {
    /// Creates the directory if it is missing, accessible to its owner only.
    ///
    /// # Errors
    /// [`StoreError::Open`] if it cannot be created.
    pub(crate) fn new(dir: &Path) -> Result<Self, StoreError> {
        let home = Self { dir: dir.to_owned() };
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|error| home.refused(format!("it cannot be created: {error}")))?;
        Ok(home)
    }

    /// Returns the path of the database.
    pub(crate) fn database(&self) -> PathBuf {
        self.dir.join(DATABASE)
    }

    /// Decides whether the database is created or opened.
    ///
    /// # Errors
    /// [`StoreError::Open`] if there was a database and it is incomplete; nothing is changed then.
    pub(crate) fn prepare(&self) -> Result<OpenMode, StoreError> {
        let keep = "keep a copy of the directory; restore it from snapshots, or remove it for good, so that a member of a \
                    cluster joins as a new one and copies what the others hold";
        match (self.marker()?, self.remains()?) {
            (Marker::None | Marker::Creating, FoundFiles::Nothing) | (Marker::Creating, FoundFiles::WithoutCurrent) => {
                self.mark(CREATING)?;
                Ok(OpenMode::Create)
            }
            (_, FoundFiles::Database) => Ok(OpenMode::Existing),
            (Marker::None | Marker::InUse, FoundFiles::WithoutCurrent) => Err(self.is_not_whole(format!(
                "the database in {DATABASE}/ has lost its file {CURRENT}, and opening it so would remove all that is left of \
                 it; {keep}"
            ))),
            (Marker::InUse, FoundFiles::Nothing) => Err(self.is_not_whole(format!(
                "the file {MARKER} says that there was a database, and {DATABASE}/ is empty or gone; {keep}"
            ))),
        }
    }

    /// Records for good that there is a database, once it is formatted and on disk.
    ///
    /// # Errors
    /// [`StoreError::Open`] if the marker cannot be written.
    pub(crate) fn is_in_use(&self) -> Result<(), StoreError> {
        if self.marker()? == Marker::InUse { Ok(()) } else { self.mark(IN_USE) }
    }

    fn refused(&self, reason: String) -> StoreError {
        StoreError::Open { path: self.dir.display().to_string(), reason }
    }

    fn is_not_whole(&self, reason: String) -> StoreError {
        StoreError::NotWhole { path: self.dir.display().to_string(), reason }
    }

    fn marker(&self) -> Result<Marker, StoreError> {
        let unreadable =
            |error: io::Error| self.refused(format!("its file {MARKER} cannot be read: {error}"));
        let file = match File::open(self.dir.join(MARKER)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Marker::None),
            Err(error) => return Err(unreadable(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_MARKER).read_to_end(&mut bytes).map_err(unreadable)?;
        let text = String::from_utf8_lossy(&bytes);
        if text == content(IN_USE) {
            Ok(Marker::InUse)
        } else if text == content(CREATING) {
            Ok(Marker::Creating)
        } else {
            Err(self.refused(format!(
                "its file {MARKER} is damaged or of a newer build; if {DATABASE}/ is whole, remove {MARKER} and start again"
            )))
        }
    }

    fn remains(&self) -> Result<FoundFiles, StoreError> {
        let unreadable = |error: io::Error| self.refused(format!("{DATABASE}/ cannot be read: {error}"));
        let mut entries = match fs::read_dir(self.database()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FoundFiles::Nothing),
            Err(error) => return Err(unreadable(error)),
        };
        if fs::exists(self.database().join(CURRENT)).map_err(unreadable)? {
            return Ok(FoundFiles::Database);
        }
        match entries.next() {
            None => Ok(FoundFiles::Nothing),
            Some(Ok(_)) => Ok(FoundFiles::WithoutCurrent),
            Some(Err(error)) => Err(unreadable(error)),
        }
    }

    /// Writes the marker atomically: to a temporary file, synced, renamed, and the directory synced.
    fn mark(&self, state: &str) -> Result<(), StoreError> {
        let write = || {
            let beside = self.dir.join(format!("{MARKER}.tmp"));
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(content(state).as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, self.dir.join(MARKER))?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|error| self.refused(format!("its file {MARKER} cannot be written: {error}")))
    }
}

fn content(state: &str) -> String {
    format!("{MARKER_FORMAT}\nstate: {state}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_created_only_where_there_never_was_one() {
        let dir = tempfile::tempdir().unwrap();
        let home = DataDir::new(&dir.path().join("data")).unwrap();
        assert_eq!(home.prepare().unwrap(), OpenMode::Create);
        // The process was killed before it created the database, or halfway through.
        fs::create_dir(home.database()).unwrap();
        fs::write(home.database().join("MANIFEST-000001"), b"").unwrap();
        assert_eq!(home.prepare().unwrap(), OpenMode::Create);
        fs::write(home.database().join(CURRENT), b"MANIFEST-000001\n").unwrap();
        assert_eq!(home.prepare().unwrap(), OpenMode::Existing);
        home.is_in_use().unwrap();
        assert_eq!(home.prepare().unwrap(), OpenMode::Existing);

        fs::remove_file(home.database().join(CURRENT)).unwrap();
        for _ in 0..2 {
            assert!(home.prepare().unwrap_err().to_string().contains(CURRENT));
        }
        fs::remove_file(home.database().join("MANIFEST-000001")).unwrap();
        assert!(home.prepare().unwrap_err().to_string().contains("empty or gone"));
        fs::remove_dir(home.database()).unwrap();
        assert!(home.prepare().unwrap_err().to_string().contains("empty or gone"));
    }

    #[test]
    fn what_an_older_build_wrote_opens_and_its_remains_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let home = DataDir::new(dir.path()).unwrap();
        fs::create_dir(home.database()).unwrap();
        fs::write(home.database().join("000007.sst"), b"").unwrap();
        assert!(home.prepare().unwrap_err().to_string().contains(CURRENT));
        fs::write(home.database().join(CURRENT), b"MANIFEST-000001\n").unwrap();
        assert_eq!(home.prepare().unwrap(), OpenMode::Existing);
    }

    #[test]
    fn a_damaged_marker_is_no_permission_to_create() {
        let dir = tempfile::tempdir().unwrap();
        let home = DataDir::new(dir.path()).unwrap();
        for damaged in ["", "converge", &"x".repeat(1 << 20)] {
            fs::write(dir.path().join(MARKER), damaged).unwrap();
            assert!(home.prepare().unwrap_err().to_string().contains(MARKER));
        }
    }
}
