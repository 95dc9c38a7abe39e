//! Checkpoints as nodes state them, and proofs between those that are trusted.

use ledger_core::{
    ContextId, Epoch, HashSuite, Lineage, Position, Size,
    checkpoint::{self, VerifierKey},
    clock::LamportClock,
    tree::proof::ConsistencyProof,
};
use ledger_proto::{context::v1 as proto, ledger::v1::CheckpointRequest};

use crate::{Client, ClientError, TrustedCheckpoint, convert, error::TreeHead, route::Aim};

/// A context's size and root as a node states them, signed by the node: whoever answers in its place can sign too, with
/// another key. [`crate::TrustedCheckpoint`] is one that was held against what the caller trusts.
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
    /// The C2SP signed note; `verifier_key` has signed it.
    pub signed_note: String,
    /// The key the node says it signs with: compare it with one you trust.
    pub verifier_key: String,
}

/// That the tree of one trusted checkpoint is the beginning of that of another: only verifying the proof makes one.
#[derive(Debug, Clone)]
pub struct Consistency {
    old: TreeHead,
    new: TreeHead,
    proof: ConsistencyProof,
    suite: HashSuite,
}

impl Consistency {
    /// The earlier tree.
    pub const fn old(&self) -> TreeHead {
        self.old
    }

    /// The later tree.
    pub const fn new_head(&self) -> TreeHead {
        self.new
    }

    /// The proof.
    pub const fn proof(&self) -> &ConsistencyProof {
        &self.proof
    }

    /// Hash suite.
    pub const fn suite(&self) -> HashSuite {
        self.suite
    }
}

impl Checkpoint {
    /// What the node states: to be believed as far as the node is.
    pub(crate) const fn head(&self) -> TreeHead {
        TreeHead { size: self.position.size, root: self.position.root }
    }
}

impl Client {
    /// What a node states of a context at a size; `None`: the newest. See [`Client::trusted_checkpoint`] for more.
    pub async fn checkpoint(
        &self,
        context: &ContextId,
        size: Option<Size>,
    ) -> Result<Checkpoint, ClientError> {
        self.checkpoint_at(Aim::near(context), context, size).await
    }

    /// Aimed at the owner it is the owner's, whichever node the call reaches. Aimed at any it is the owner's if there is
    /// nothing: a replica may not know of a context yet.
    pub(crate) async fn checkpoint_at(
        &self,
        aim: Aim,
        context: &ContextId,
        size: Option<Size>,
    ) -> Result<Checkpoint, ClientError> {
        let stated = self.stated(aim, context, size).await?;
        if stated.position.size.0 == 0 && matches!(aim, Aim::Near(_)) {
            return self.stated(aim.owner(), context, size).await;
        }
        Ok(stated)
    }

    async fn stated(
        &self,
        aim: Aim,
        context: &ContextId,
        size: Option<Size>,
    ) -> Result<Checkpoint, ClientError> {
        let request = CheckpointRequest {
            context_id: context.as_str().to_owned(),
            size: size.map_or(0, |size| size.0),
            consistency: match aim {
                Aim::Any | Aim::Near(_) => proto::Consistency::AnyReplica,
                Aim::Owner(_) => proto::Consistency::Owner,
            }
            .into(),
        };
        let answer = self.call(aim, |channel| {
            let (mut service, request) = (self.integrity_service_on(channel), request.clone());
            async move { service.checkpoint(request).await }
        });
        let answer = answer.await?.into_inner();
        let stated = answer.checkpoint.ok_or_else(|| ClientError::malformed("checkpoint"))?;
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
        let key: VerifierKey = answer.verifier_key.parse()?;
        let signed = checkpoint::verify(&answer.signed_note, &key)?;
        if (signed.size(), signed.root()) != (position.size, position.root) {
            return Err(ClientError::NotVerified("the signed note states another size or root".to_owned()));
        }
        Ok(Checkpoint {
            context: context.clone(),
            position,
            lamport: LamportClock(stated.lamport_clock),
            suite: convert::suite(&stated.hash_suite)?,
            signed_note: answer.signed_note,
            verifier_key: answer.verifier_key,
        })
    }

    /// Proves that the tree of one trusted checkpoint is the beginning of that of another.
    pub async fn prove_consistency(
        &self,
        old: &TrustedCheckpoint,
        new: &TrustedCheckpoint,
    ) -> Result<Consistency, ClientError> {
        if (old.context(), old.suite()) != (new.context(), new.suite()) {
            let message = format!("one checkpoint is of {}, the other of {}", old.context(), new.context());
            return Err(ClientError::Invalid(message));
        }
        let (old_head, new_head) = (old.head(), new.head());
        let proof = self.prove_prefix(old.context(), old.suite(), old_head, new_head).await??;
        Ok(Consistency { old: old_head, new: new_head, proof, suite: old.suite() })
    }
}
