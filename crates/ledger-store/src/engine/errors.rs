//! Translates errors of RocksDB into [`StoreError`].

use std::path::Path;

use ledger_core::{ContextId, Sequence};
use rocksdb::ErrorKind;

use crate::{StoreError, engine::space};

/// Translates an error of a RocksDB write.
pub(crate) fn io_error(error: &rocksdb::Error) -> StoreError {
    let text = error.as_ref();
    if space::is_no_space(text) {
        return StoreError::DiskFull { needed: None };
    }
    if error.kind() == ErrorKind::Corruption {
        return StoreError::FileDamaged(text.to_owned());
    }
    StoreError::Io(text.to_owned())
}

/// Translates an error of a RocksDB read in a context: a block that fails its checksum is damage.
pub(crate) fn read_error(context: &ContextId, sequence: Sequence, error: &rocksdb::Error) -> StoreError {
    match error.kind() {
        ErrorKind::Corruption => StoreError::Damaged {
            context: context.clone(),
            sequence,
            reason: format!("a block on disk is not what was written ({})", error.as_ref()),
        },
        _ => io_error(error),
    }
}

/// Translates an error of opening a database: says what to do about it.
pub(crate) fn open_error(path: &Path, error: &rocksdb::Error) -> StoreError {
    let (text, path) = (error.as_ref(), path.display().to_string());
    if error.kind() == ErrorKind::Corruption || text.contains("No such file or directory") {
        let reason = StoreError::FileDamaged(text.to_owned()).to_string();
        return StoreError::NotWhole { path, reason };
    }
    let reason = if text.contains("lock hold by current process") || text.contains("While lock file") {
        "another process (or this one) has it open; stop that one, or choose another directory".to_owned()
    } else if space::is_no_space(text) {
        let needed = space::mebibytes(space::logged(Path::new(&path)) + space::HEADROOM);
        format!("no space left on the device ({text}); free at least {needed} and start again")
    } else if text.contains("Read-only file system") || text.contains("Permission denied") {
        format!("it cannot be written ({text}); give this user the right to write there")
    } else {
        text.to_owned()
    };
    StoreError::Open { path, reason }
}
