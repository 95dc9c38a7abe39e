//! Checkpoints as nodes sign them. What a caller may believe of them is decided in [`crate::trust`].

use ledger_core::{
    ContextId, Epoch, HashSuite, Lineage, Position, Size,
    checkpoint::{self, VerifierKey},
    clock::LamportClock,
};
use ledger_proto::{context::v1 as proto, ledger::v1::CheckpointRequest};

use crate::{
    connection::{core::Client, destination::Destination},
    convert,
    error::{ClientError, TreeHead},
};

/// A context's size and root as a node states them, signed by the node: an impostor can sign too, with another key. A
/// [`crate::TrustedCheckpoint`] is one that the client verified against what the caller trusts.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// The context.
    pub context: ContextId,
    /// Size, root, epoch and lineage.
    pub position: Position,
    /// Time of the context's newest entry.
    pub lamport: LamportClock,
    /// Hash suite.
    pub suite: HashSuite,
    /// The C2SP signed note; `verifier_key` signed it.
    pub signed_note: String,
    /// The key the node says it signs with: compare it with one you trust.
    pub verifier_key: String,
}

impl Checkpoint {
    /// The tree head that the node states: as trustworthy as the node.
    pub(crate) const fn head(&self) -> TreeHead {
        TreeHead { size: self.position.size, root: self.position.root }
    }
}

impl Client {
    /// The checkpoint that a node states of a context at a size; `None`: the newest. See [`Client::trusted_checkpoint`] for
    /// one to believe.
    ///
    /// # Errors
    ///
    /// [`ClientError::Invalid`] if the context has fewer entries; [`ClientError::NotVerified`] if the note is not signed by
    /// the key the node states; else as the call fails.
    pub async fn checkpoint(
        &self,
        context: &ContextId,
        size: Option<Size>,
    ) -> Result<Checkpoint, ClientError> {
        self.checkpoint_at(Destination::replica_of(context), context, size).await
    }

    /// With the owner as the destination, the checkpoint is the owner's, whichever node the call reaches. From a replica
    /// without entries, which may not know of the context yet, the client turns to the owner.
    pub(crate) async fn checkpoint_at(
        &self,
        destination: Destination,
        context: &ContextId,
        size: Option<Size>,
    ) -> Result<Checkpoint, ClientError> {
        let stated = self.stated_checkpoint(destination, context, size).await?;
        if stated.position.size.0 == 0 && matches!(destination, Destination::AnyReplica(_)) {
            return self.stated_checkpoint(destination.owner(), context, size).await;
        }
        Ok(stated)
    }

    async fn stated_checkpoint(
        &self,
        destination: Destination,
        context: &ContextId,
        size: Option<Size>,
    ) -> Result<Checkpoint, ClientError> {
        let request = CheckpointRequest {
            context_id: context.as_str().to_owned(),
            size: size.map_or(0, |size| size.0),
            consistency: match destination {
                Destination::AnyNode | Destination::AnyReplica(_) => proto::Consistency::AnyReplica,
                Destination::Owner(_) => proto::Consistency::Owner,
            }
            .into(),
        };
        let response = self.call(destination, |channel| {
            let (mut service, request) = (self.integrity_service_on(channel), request.clone());
            async move { service.checkpoint(request).await }
        });
        let response = response.await?.into_inner();
        let stated = response.checkpoint.ok_or_else(|| ClientError::malformed("checkpoint"))?;
        let position = Position {
            size: Size(stated.size),
            root: convert::hash(&stated.root, "root")?,
            epoch: Epoch(stated.epoch),
            lineage: stated
                .lineage
                .as_ref()
                .try_into()
                .map(Lineage)
                .map_err(|_| ClientError::malformed("lineage"))?,
        };
        let key: VerifierKey = response.verifier_key.parse()?;
        let signed = checkpoint::verify(&response.signed_note, &key)?;
        if (signed.size(), signed.root()) != (position.size, position.root) {
            return Err(ClientError::NotVerified("the signed note states another size or root".to_owned()));
        }
        Ok(Checkpoint {
            context: context.clone(),
            position,
            lamport: LamportClock(stated.lamport_clock),
            suite: convert::suite(&stated.hash_suite)?,
            signed_note: response.signed_note,
            verifier_key: response.verifier_key,
        })
    }
}
