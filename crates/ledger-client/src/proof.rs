//! Checkpoints and proofs, verified here before they are handed out.

use ledger_core::{
    ContextId, Epoch, Hash, HashSuite, Lineage, Position, Sequence, Size,
    checkpoint::{self, VerifierKey},
    clock::LamportClock,
    tree::proof::{ConsistencyProof, InclusionProof},
};
use ledger_proto::{
    context::v1 as proto,
    ledger::v1::{CheckpointRequest, ConsistencyProofRequest, InclusionProofRequest},
};

use crate::{Client, ClientError, convert, route::Aim};

/// A context's size and root, signed by the node.
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
    /// The C2SP signed note; its signature was verified with `verifier_key`.
    pub signed_note: String,
    /// The key the node says it signs with: compare it with one you trust.
    pub verifier_key: String,
}

/// An entry's inclusion in the tree of a size, verified.
#[derive(Debug, Clone)]
pub struct Inclusion {
    /// The entry.
    pub sequence: Sequence,
    /// Its content hash.
    pub content_hash: Hash,
    /// The root of the tree.
    pub root: Hash,
    /// The proof.
    pub proof: InclusionProof,
    /// Hash suite.
    pub suite: HashSuite,
}

/// That one tree is a prefix of another, verified.
#[derive(Debug, Clone)]
pub struct Consistency {
    /// The root at the old size.
    pub old_root: Hash,
    /// The root at the new size.
    pub new_root: Hash,
    /// The proof.
    pub proof: ConsistencyProof,
    /// Hash suite.
    pub suite: HashSuite,
}

impl Client {
    /// A checkpoint of a context at a size; `None`: the newest.
    pub async fn checkpoint(
        &self,
        context: &ContextId,
        size: Option<Size>,
    ) -> Result<Checkpoint, ClientError> {
        self.checkpoint_at(Aim::near(context), context, size).await
    }

    /// Aimed at the owner it is the owner's, whichever node the call reaches.
    pub(crate) async fn checkpoint_at(
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

    /// Proof that an entry is in the tree of a size; `None`: the newest.
    pub async fn prove_inclusion(
        &self,
        context: &ContextId,
        sequence: Sequence,
        size: Option<Size>,
    ) -> Result<Inclusion, ClientError> {
        self.inclusion_at(Aim::near(context), context, sequence, size).await
    }

    pub(crate) async fn inclusion_at(
        &self,
        aim: Aim,
        context: &ContextId,
        sequence: Sequence,
        size: Option<Size>,
    ) -> Result<Inclusion, ClientError> {
        let request = InclusionProofRequest {
            context_id: context.as_str().to_owned(),
            sequence: sequence.0,
            size: size.map_or(0, |size| size.0),
        };
        let answer = self.call(aim, |channel| {
            let (mut service, request) = (self.integrity_service_on(channel), request.clone());
            async move { service.inclusion_proof(request).await }
        });
        let answer = answer.await?.into_inner();
        let index =
            sequence.leaf_index().ok_or_else(|| ClientError::Invalid("entries count from 1".to_owned()))?;
        let proof = InclusionProof { index, size: answer.size, hashes: convert::hashes(&answer.hashes)? };
        let suite = convert::suite(&answer.hash_suite)?;
        let content_hash = convert::hash(&answer.content_hash, "content_hash")?;
        let root = convert::hash(&answer.root, "root")?;
        proof.verify_in(suite, &content_hash, &root)?;
        Ok(Inclusion { sequence, content_hash, root, proof, suite })
    }

    /// Proof that the tree of one size is a prefix of the tree of another; `None`: the newest.
    pub async fn prove_consistency(
        &self,
        context: &ContextId,
        old: Size,
        new: Option<Size>,
    ) -> Result<Consistency, ClientError> {
        let request = ConsistencyProofRequest {
            context_id: context.as_str().to_owned(),
            old_size: old.0,
            new_size: new.map_or(0, |size| size.0),
        };
        let answer = self.call(Aim::near(context), |channel| {
            let (mut service, request) = (self.integrity_service_on(channel), request.clone());
            async move { service.consistency_proof(request).await }
        });
        let answer = answer.await?.into_inner();
        let proof = ConsistencyProof {
            old_size: old.0,
            new_size: answer.new_size,
            hashes: convert::hashes(&answer.hashes)?,
        };
        let suite = convert::suite(&answer.hash_suite)?;
        let old_root = convert::hash(&answer.old_root, "old_root")?;
        let new_root = convert::hash(&answer.new_root, "new_root")?;
        proof.verify_in(suite, &old_root, &new_root)?;
        Ok(Consistency { old_root, new_root, proof, suite })
    }
}
