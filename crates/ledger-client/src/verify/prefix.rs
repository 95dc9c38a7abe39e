//! Proves that one tree is a prefix of another (RFC 9162 §2.1.4).

use std::{future::Future, time::Duration};

use ledger_core::{
    ContextId, HashSuite,
    hash::Hasher as _,
    tree::{ConsistencyProof, ProofError},
    with_suite,
};
use ledger_proto::ledger::v1::ConsistencyProofRequest;

use crate::{
    connection::{core::Client, destination::Destination, retry::backoff_delay},
    convert,
    error::{ClientError, TreeHead},
};

/// How often the client asks for a proof at a size that a replica may not have yet.
const PROOF_ATTEMPTS: u32 = 8;

impl Client {
    /// Proves that the tree of one head is a prefix of that of a later head. The inner error: it is not.
    pub(crate) async fn prove_prefix(
        &self,
        context: &ContextId,
        suite: HashSuite,
        old: TreeHead,
        new: TreeHead,
    ) -> Result<Result<ConsistencyProof, ProofError>, ClientError> {
        let (old_size, new_size) = (old.size.0, new.size.0);
        let mut proof = ConsistencyProof { old_size, new_size, hashes: Vec::new() };
        // A proof without hashes needs no call.
        if old_size > 0 && old_size < new_size {
            let request =
                ConsistencyProofRequest { context_id: context.as_str().to_owned(), old_size, new_size };
            let response = self.retry_while_behind(|| {
                self.call(Destination::replica_of(context), |channel| {
                    let (mut service, request) = (self.integrity_service_on(channel), request.clone());
                    async move { service.consistency_proof(request).await }
                })
            });
            // The proof takes only the hashes from the ledger: sizes and roots are the caller's.
            proof.hashes = convert::hashes(&response.await?.into_inner().hashes)?;
        }
        let empty = with_suite!(suite, H => H::empty_root());
        if (old_size == 0 && old.root != empty) || (new_size == 0 && new.root != empty) {
            return Ok(Err(ProofError::Root {
                expected: empty,
                computed: if old_size == 0 { old.root } else { new.root },
            }));
        }
        Ok(proof.verify_in(suite, &old.root, &new.root).map(|()| proof))
    }

    /// Repeats a call while it fails because a replica is behind.
    pub(crate) async fn retry_while_behind<T, F>(&self, mut call: impl FnMut() -> F) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match call().await {
                Err(ClientError::Invalid(_)) if attempt < PROOF_ATTEMPTS => {
                    tokio::time::sleep(backoff_delay(attempt).max(Duration::from_millis(5))).await;
                }
                response => return response,
            }
        }
    }
}
