//! The Merkle tree of the entries that a reader has read, and the entries that it has not proven yet.

use std::sync::Arc;

use ledger_core::{
    ContextId, Entry, HashSuite, Size,
    hash::Hasher as _,
    tree::{Frontier, InclusionProof},
    with_suite,
};
use ledger_proto::ledger::v1::InclusionProofRequest;

use super::entry::VerifiedEntry;
use crate::{
    connection::{core::Client, destination::Destination},
    convert,
    error::{ClientError, TreeHead},
    verify::trust::TrustedCheckpoint,
};

/// A tree to which a reader appends the entries as it reads them.
#[derive(Debug)]
pub(super) struct ReadTree {
    context: ContextId,
    suite: HashSuite,
    frontier: Frontier,
    /// Entries in the tree that are not yet proven to be in a trusted one.
    unproven: Vec<Entry>,
}

impl ReadTree {
    /// A tree that begins with the first `after` entries of a trusted one.
    pub(super) async fn begin(
        client: &Client,
        after: u64,
        trusted: &TrustedCheckpoint,
    ) -> Result<Self, ClientError> {
        let (context, suite) = (trusted.context().clone(), trusted.suite());
        let frontier = match after.checked_sub(1) {
            None => Frontier::default(),
            Some(index) => {
                let request = InclusionProofRequest {
                    context_id: context.as_str().to_owned(),
                    sequence: after,
                    size: after,
                };
                let response = client.retry_while_behind(|| {
                    client.call(Destination::replica_of(&context), |channel| {
                        let (mut service, request) = (client.integrity_service_on(channel), request.clone());
                        async move { service.inclusion_proof(request).await }
                    })
                });
                let response = response.await?.into_inner();
                let data = convert::hash(&response.content_hash, "content_hash")?;
                let hashes = convert::hashes(&response.hashes)?;
                let proof = InclusionProof { index, size: after, hashes };
                // Not verified until the first entries after it are proven, or until none comes after it at all.
                let frontier = with_suite!(suite, H => Frontier::of_last_leaf::<H>(&proof, &data));
                frontier
                    .ok_or_else(|| ClientError::malformed("the proof of the last entry before the reading"))?
            }
        };
        Ok(Self { context, suite, frontier, unproven: Vec::new() })
    }

    /// How many entries the tree has.
    pub(super) const fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Size and root of the tree.
    pub(super) fn head(&self) -> TreeHead {
        let root = with_suite!(self.suite, H => self.frontier.root::<H>());
        TreeHead { size: Size(self.frontier.size()), root }
    }

    /// How many entries are not proven yet.
    pub(super) fn unproven_count(&self) -> usize {
        self.unproven.len()
    }

    /// Appends the next entry. Hashes it here, whatever hash came with it.
    pub(super) fn push(&mut self, entry: Entry) -> Result<(), ClientError> {
        let (next, context) = (self.frontier.size() + 1, &self.context);
        if entry.sequence.0 != next {
            let message = format!("entry {} of context {context} came where {next} was next", entry.sequence);
            return Err(ClientError::NotVerified(message));
        }
        let computed = entry.computed_hash(self.suite);
        if computed != entry.content_hash {
            let message =
                format!("entry {next} of context {context} does not have the content that its hash is of");
            return Err(ClientError::NotVerified(message));
        }
        with_suite!(self.suite, H => self.frontier.push::<H>(H::leaf(&computed), |_, _| ()));
        self.unproven.push(entry);
        Ok(())
    }

    /// Proves that the tree is a prefix of a trusted one, and returns the entries this verifies.
    pub(super) async fn prove(
        &mut self,
        client: &Client,
        trusted: &Arc<TrustedCheckpoint>,
    ) -> Result<impl Iterator<Item = VerifiedEntry> + use<>, ClientError> {
        let (read, trusted_head) = (self.head(), trusted.head());
        if let Err(error) = client.prove_prefix(&self.context, self.suite, read, trusted_head).await? {
            return Err(ClientError::NotVerified(format!(
                "the entries up to {} that came are not those of {trusted}: {error}",
                read.size
            )));
        }
        Ok(self.take_proven(trusted))
    }

    /// Takes out the entries as verified. The caller has checked that the tree is that of the checkpoint, or a prefix.
    pub(super) fn take_proven(
        &mut self,
        trusted: &Arc<TrustedCheckpoint>,
    ) -> impl Iterator<Item = VerifiedEntry> + use<> {
        let checkpoint = Arc::clone(trusted);
        let entries = std::mem::take(&mut self.unproven);
        entries.into_iter().map(move |entry| VerifiedEntry { entry, checkpoint: Arc::clone(&checkpoint) })
    }
}
