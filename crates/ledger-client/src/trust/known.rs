//! The newest checkpoint of each context that a caller has seen.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use ledger_core::{ContextId, HashSuite};

use super::file::{Contents, File};
use crate::{ClientError, error::TreeHead};

/// The newest checkpoint of each context that was seen, of one cluster: in a file that several processes may use, or in
/// memory. Cheap to clone; clones are the same.
#[derive(Debug, Clone)]
pub struct KnownCheckpoints(Arc<Place>);

#[derive(Debug)]
enum Place {
    Memory(Mutex<Contents>),
    File(File),
}

/// What is known of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Known {
    pub head: TreeHead,
    pub suite: HashSuite,
    /// Kept as evidence, for when the ledger shows something else.
    pub signed_note: String,
    pub verifier_key: String,
}

impl KnownCheckpoints {
    /// In memory: forgotten with the last clone.
    pub fn in_memory() -> Self {
        Self(Arc::new(Place::Memory(Mutex::default())))
    }

    /// In a file, which is made when something is first kept. A file that cannot be read, or is no such file, is an error
    /// of each call that needs it: nothing is ever taken for a first use because of that.
    pub fn in_file(path: impl Into<PathBuf>) -> Self {
        Self(Arc::new(Place::File(File::new(path.into()))))
    }

    /// What is known of a context of a cluster.
    pub(super) async fn get(&self, cluster: &str, context: &ContextId) -> Result<Option<Known>, ClientError> {
        match &*self.0 {
            Place::Memory(contents) => {
                let contents = contents.lock().unwrap_or_else(PoisonError::into_inner);
                contents.get(cluster, context)
            }
            Place::File(file) => file.read().await?.get(cluster, context),
        }
    }

    /// Keeps something newer, if what is known is still what it was: false if not.
    pub(super) async fn replace(
        &self,
        cluster: &str,
        context: &ContextId,
        known: Option<&Known>,
        newer: Known,
    ) -> Result<bool, ClientError> {
        match &*self.0 {
            Place::Memory(contents) => {
                let mut contents = contents.lock().unwrap_or_else(PoisonError::into_inner);
                contents.replace(cluster, context, known, newer)
            }
            Place::File(file) => {
                let (cluster, context, known) = (cluster.to_owned(), context.clone(), known.cloned());
                file.change(move |contents| contents.replace(&cluster, &context, known.as_ref(), newer)).await
            }
        }
    }
}
