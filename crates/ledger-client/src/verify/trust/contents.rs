//! The known checkpoints of one cluster, and their format: JSON.
//!
//! ```json
//! { "version": 1, "cluster": "converge",
//!   "contexts": { "demo": { "size": "5", "root": "<hex>", "hash_suite": "blake3", "signed_note": "…", "verifier_key": "…" } } }
//! ```

use std::{collections::BTreeMap, io};

use ledger_core::{ContextId, Hash, HashSuite, Size};
use serde::{Deserialize, Serialize};

use crate::error::{ClientError, TreeHead};

/// The version that this build reads and writes.
const VERSION: u32 = 1;

/// The newest checkpoint of a context that a caller has accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KnownCheckpoint {
    pub head: TreeHead,
    pub suite: HashSuite,
    /// Evidence against its signer, for when the ledger shows another history.
    pub signed_note: String,
    pub verifier_key: String,
}

/// The contents of a file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    version: u32,
    /// The cluster of all contexts. Empty: no checkpoint is known yet.
    cluster: String,
    contexts: BTreeMap<String, StoredCheckpoint>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredCheckpoint {
    size: String,
    root: String,
    hash_suite: String,
    signed_note: String,
    verifier_key: String,
}

/// What files of any version have.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl Contents {
    /// Parses the bytes of a file. The error says what is wrong with them.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let versioned: Versioned = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if versioned.version != VERSION {
            return Err(format!("its version is {}, and this build reads {VERSION}", versioned.version));
        }
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// Writes the bytes of a file.
    pub(super) fn write_to(&self, out: &mut impl io::Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        out.write_all(b"\n")
    }

    /// The known checkpoint of a context; an error if the contents are of another cluster.
    pub(super) fn get(
        &self,
        cluster: &str,
        context: &ContextId,
    ) -> Result<Option<KnownCheckpoint>, ClientError> {
        self.check_cluster(cluster)?;
        let Some(stored) = self.contexts.get(context.as_str()) else { return Ok(None) };
        let malformed = |what: &str| {
            ClientError::Invalid(format!("the known checkpoint of context {context} has no {what}"))
        };
        Ok(Some(KnownCheckpoint {
            head: TreeHead {
                size: Size(stored.size.parse().map_err(|_| malformed("size"))?),
                root: Hash::from_hex(&stored.root).ok_or_else(|| malformed("root"))?,
            },
            suite: HashSuite::from_name(&stored.hash_suite).ok_or_else(|| malformed("hash suite"))?,
            signed_note: stored.signed_note.clone(),
            verifier_key: stored.verifier_key.clone(),
        }))
    }

    /// Replaces the known checkpoint of a context, if it is still `known`: false if not.
    pub(super) fn replace(
        &mut self,
        cluster: &str,
        context: &ContextId,
        known: Option<&KnownCheckpoint>,
        newer: KnownCheckpoint,
    ) -> Result<bool, ClientError> {
        if self.get(cluster, context)?.as_ref() != known {
            return Ok(false);
        }
        self.version = VERSION;
        cluster.clone_into(&mut self.cluster);
        let stored = StoredCheckpoint {
            size: newer.head.size.to_string(),
            root: newer.head.root.to_string(),
            hash_suite: newer.suite.name().to_owned(),
            signed_note: newer.signed_note,
            verifier_key: newer.verifier_key,
        };
        self.contexts.insert(context.as_str().to_owned(), stored);
        Ok(true)
    }

    /// Contexts of another cluster are other contexts, though they have the same names: seeing one is no first use.
    fn check_cluster(&self, cluster: &str) -> Result<(), ClientError> {
        if self.cluster.is_empty() || self.cluster == cluster {
            return Ok(());
        }
        Err(ClientError::NotVerified(format!(
            "the ledger says that it is cluster {cluster:?}, and what is known is of cluster {:?}: keep what you know of \
             different clusters in different files",
            self.cluster
        )))
    }
}
