//! Checkpoints as nodes state them, and consistency proofs between trusted ones.

use ledger_core::{HashSuite, tree::proof::ConsistencyProof};

pub use super::checkpoint::Checkpoint;
use super::trust::TrustedCheckpoint;
use crate::{
    connection::core::Client,
    error::{ClientError, TreeHead},
};

/// The tree of one trusted checkpoint is a prefix of that of another: only a verified proof makes one.
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

impl Client {
    /// Proves that the tree of one trusted checkpoint is a prefix of that of another.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotVerified`] if it is not; [`ClientError::Invalid`] if the two are of different contexts; else as
    /// the call fails.
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
