//! The proof that one entry is in the tree of a trusted checkpoint.

use std::sync::Arc;

use ledger_core::{Entry, tree::InclusionProof};
use ledger_proto::ledger::v1::InclusionProofRequest;

use super::entry::VerifiedEntry;
use crate::{
    connection::{core::Client, destination::Destination},
    convert,
    error::ClientError,
    verify::trust::TrustedCheckpoint,
};

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
    /// Proves that an entry, with all of its fields as they are here, is in the tree of a trusted checkpoint. The client
    /// computes the content hash itself, whatever the ledger, or the entry itself, says that it is.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotVerified`] if the entry is not in the tree; [`ClientError::Invalid`] if it is of another context
    /// than the checkpoint; else as the call fails.
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
        let response = self.retry_while_behind(|| {
            self.call(Destination::replica_of(context), |channel| {
                let (mut service, request) = (self.integrity_service_on(channel), request.clone());
                async move { service.inclusion_proof(request).await }
            })
        });
        let hashes = convert::hashes(&response.await?.into_inner().hashes)?;
        let proof = InclusionProof { index, size: head.size.0, hashes };
        proof.verify_in(suite, &entry.content_hash, &head.root).map_err(|error| {
            ClientError::NotVerified(format!("entry {} of context {context}: {error}", entry.sequence))
        })?;
        Ok(Inclusion { verified: VerifiedEntry { entry, checkpoint: Arc::new(checkpoint.clone()) }, proof })
    }
}
