//! Disks whose syncs are slow, or fail: a library that is loaded into a node, and a file that it asks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{compile, preload};

#[cfg(test)]
mod tests;

/// The syncs of one node.
#[derive(Debug)]
pub(crate) struct FaultySync {
    library: PathBuf,
    /// What the library asks.
    file: PathBuf,
}

impl FaultySync {
    /// Compiles the library into a node's directory; syncs are as ever until something else is asked for.
    ///
    /// # Errors
    /// In words, if there is no C compiler.
    pub(crate) fn new(dir: &Path) -> Result<Self, String> {
        let library = dir.join("faulty_sync.so");
        let library = compile(include_str!("faulty_sync.c"), &["-shared", "-fPIC"], library)?;
        Ok(Self { library, file: dir.join("faulty_sync") })
    }

    /// The environment of the node.
    pub(crate) fn environment(&self) -> Vec<String> {
        vec![preload(&self.library), format!("FAULTY_SYNC_FILE={}", self.file.display())]
    }

    /// From now on every sync takes so much longer, and so many percent of them fail with EIO.
    pub(crate) fn set(&self, longer: Duration, percent: u32) {
        // Put in place whole: the node may read it at any moment.
        let new = self.file.with_extension("new");
        fs::write(&new, format!("{} {percent}\n", longer.as_millis())).unwrap();
        fs::rename(new, &self.file).unwrap();
    }

    /// Syncs are as ever.
    pub(crate) fn heal(&self) {
        self.set(Duration::ZERO, 0);
    }
}
