//! Entries that are proven to be those of a trusted checkpoint: one, a reading, or a watch.
//!
//! A reading hashes every entry itself and appends it to a tree of its own. What it hands out was proven first: the
//! root it has come to is that of a beginning of the trusted tree (RFC 9162 §2.1.4), and no other entries give that
//! root. So nothing can be changed, left out, added or moved. To show that nothing is left out it reads all keys and
//! chooses here.

mod chain;
mod pages;
mod watch;

use std::{ops::Deref, sync::Arc};

use ledger_core::{Entry, tree::InclusionProof};
use ledger_proto::ledger::v1::InclusionProofRequest;

use crate::{Client, ClientError, TrustedCheckpoint, convert, route::Aim};

pub use self::{pages::VerifiedPages, watch::VerifiedWatch};

/// An entry that is proven to be in a context as of a trusted checkpoint. Only a proof makes one.
#[derive(Debug, Clone)]
pub struct VerifiedEntry {
    entry: Entry,
    checkpoint: Arc<TrustedCheckpoint>,
}

impl VerifiedEntry {
    /// The entry.
    pub const fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The checkpoint of whose tree it is an entry.
    pub fn checkpoint(&self) -> &TrustedCheckpoint {
        &self.checkpoint
    }

    /// The entry alone.
    pub fn into_entry(self) -> Entry {
        self.entry
    }
}

impl Deref for VerifiedEntry {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

/// The proof that an entry is in the tree of a trusted checkpoint: only verifying it makes one.
#[derive(Debug, Clone)]
pub struct Inclusion {
    verified: VerifiedEntry,
    proof: InclusionProof,
}

impl Inclusion {
    /// The entry.
    pub const fn entry(&self) -> &VerifiedEntry {
        &self.verified
    }

    /// The checkpoint of whose tree it is an entry.
    pub fn checkpoint(&self) -> &TrustedCheckpoint {
        &self.verified.checkpoint
    }

    /// The proof: it leads from the entry's content hash to the checkpoint's root.
    pub const fn proof(&self) -> &InclusionProof {
        &self.proof
    }
}

impl Client {
    /// Proves that an entry, with all of its fields as they are here, is in the tree of a trusted checkpoint. The content
    /// hash is computed here: what the ledger, or the entry itself, says that it is does not count.
    pub async fn prove_inclusion(
        &self,
        entry: &Entry,
        checkpoint: &TrustedCheckpoint,
    ) -> Result<Inclusion, ClientError> {
        let (context, head, suite) = (checkpoint.context(), checkpoint.head(), checkpoint.suite());
        if entry.context_id != *context {
            let message =
                format!("the entry is of context {}, the checkpoint of {context}", entry.context_id);
            return Err(ClientError::Invalid(message));
        }
        let index = entry.sequence.leaf_index();
        let index = index.ok_or_else(|| ClientError::Invalid("entries count from 1".to_owned()))?;
        let entry = Entry { content_hash: entry.computed_hash(suite), ..entry.clone() };
        let request = InclusionProofRequest {
            context_id: context.as_str().to_owned(),
            sequence: entry.sequence.0,
            size: head.size.0,
        };
        let answer = self.asked_again(|| {
            self.call(Aim::near(context), |channel| {
                let (mut service, request) = (self.integrity_service_on(channel), request.clone());
                async move { service.inclusion_proof(request).await }
            })
        });
        let hashes = convert::hashes(&answer.await?.into_inner().hashes)?;
        let proof = InclusionProof { index, size: head.size.0, hashes };
        proof.verify_in(suite, &entry.content_hash, &head.root).map_err(|error| {
            ClientError::NotVerified(format!("entry {} of context {context}: {error}", entry.sequence))
        })?;
        Ok(Inclusion { verified: VerifiedEntry { entry, checkpoint: Arc::new(checkpoint.clone()) }, proof })
    }
}
