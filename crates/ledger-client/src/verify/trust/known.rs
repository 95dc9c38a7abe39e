//! The newest checkpoint of each context that a caller has accepted.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ledger_core::ContextId;

use super::{
    contents::{Contents, KnownCheckpoint},
    file::CheckpointFile,
};
use crate::error::ClientError;

/// The newest checkpoint of each context that was seen, of one cluster: in a file that several processes may use, or in
/// memory. Cheap to clone; clones are the same.
#[derive(Debug, Clone)]
pub struct KnownCheckpoints(Arc<Storage>);

#[derive(Debug)]
enum Storage {
    Memory(Mutex<Contents>),
    File(CheckpointFile),
}

impl KnownCheckpoints {
    /// In memory: forgotten with the last clone.
    pub fn in_memory() -> Self {
        Self(Arc::new(Storage::Memory(Mutex::default())))
    }

    /// In a file, which the first accepted checkpoint creates. A file that the client cannot read, or that is malformed, is
    /// an error of each call that needs it: the client never takes that for a first use.
    pub fn in_file(path: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Storage::File(CheckpointFile::new(path.into()))))
    }

    /// The known checkpoint of a context of a cluster.
    pub(super) async fn get(
        &self,
        cluster: &str,
        context: &ContextId,
    ) -> Result<Option<KnownCheckpoint>, ClientError> {
        match &*self.0 {
            Storage::Memory(contents) => {
                let contents = contents.lock().unwrap_or_else(PoisonError::into_inner);
                contents.get(cluster, context)
            }
            Storage::File(file) => file.read().await?.get(cluster, context),
        }
    }

    /// Replaces the known checkpoint, if it is still `known`: false if not (compare and swap).
    pub(super) async fn replace(
        &self,
        cluster: &str,
        context: &ContextId,
        known: Option<&KnownCheckpoint>,
        newer: KnownCheckpoint,
    ) -> Result<bool, ClientError> {
        match &*self.0 {
            Storage::Memory(contents) => {
                let mut contents = contents.lock().unwrap_or_else(PoisonError::into_inner);
                contents.replace(cluster, context, known, newer)
            }
            Storage::File(file) => {
                let (cluster, context, known) = (cluster.to_owned(), context.clone(), known.cloned());
                file.change(move |contents| contents.replace(&cluster, &context, known.as_ref(), newer)).await
            }
        }
    }
}
