//! `converge.ledger.v1.IntegrityService`: what it proves verifies offline.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use ledger_core::{
    Hash, HashSuite, Size,
    checkpoint::{self, VerifierKey},
    tree::proof::{ConsistencyProof, InclusionProof},
};
use ledger_proto::ledger::v1::{
    CheckpointRequest, ConsistencyProofRequest, ForksRequest, InclusionProofRequest,
};
use ledger_server::config::Suite;
use support::{TestNode, append_all, field};
use tonic::Code;

fn hash(bytes: &[u8]) -> Hash {
    Hash::from_slice(bytes).unwrap()
}

async fn proofs_verify(suite: Suite, expected: HashSuite) {
    let node = TestNode::start_with(|config| config.hash_suite = suite).await;
    let mut contexts = node.contexts().await;
    let payloads: Vec<_> = (0..13).map(|n| n.to_string()).collect();
    append_all(&mut contexts, "c", &payloads.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut client = node.integrity().await;
    let context_id = || "c".to_owned();

    let newest = client
        .checkpoint(CheckpointRequest { context_id: context_id(), size: 0 })
        .await
        .unwrap()
        .into_inner();
    let stated = newest.checkpoint.unwrap();
    assert_eq!((stated.size, stated.lamport_clock, stated.hash_suite.as_str()), (13, 13, expected.name()));
    let key: VerifierKey = newest.verifier_key.parse().unwrap();
    let verified = checkpoint::verify(&newest.signed_note, &key).unwrap();
    assert_eq!(
        (verified.origin(), verified.size(), verified.root()),
        ("converge/c", Size(13), hash(&stated.root))
    );

    for size in [1, 7, 13] {
        for sequence in 1..=size {
            let request = InclusionProofRequest { context_id: context_id(), sequence, size };
            let response = client.inclusion_proof(request).await.unwrap().into_inner();
            let hashes = response.hashes.iter().map(|bytes| hash(bytes)).collect();
            let proof = InclusionProof { index: sequence - 1, size: response.size, hashes };
            proof.verify_in(expected, &hash(&response.content_hash), &hash(&response.root)).unwrap();
        }
        let request = ConsistencyProofRequest { context_id: context_id(), old_size: size, new_size: 0 };
        let response = client.consistency_proof(request).await.unwrap().into_inner();
        let hashes = response.hashes.iter().map(|bytes| hash(bytes)).collect();
        let proof = ConsistencyProof { old_size: size, new_size: response.new_size, hashes };
        proof.verify_in(expected, &hash(&response.old_root), &hash(&response.new_root)).unwrap();
        assert_eq!(hash(&response.new_root), hash(&stated.root));
        let then = client
            .checkpoint(CheckpointRequest { context_id: context_id(), size })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(then.checkpoint.unwrap().root, response.old_root);
    }
    node.stop().await;
}

#[tokio::test]
async fn proofs_of_blake3_contexts_verify() {
    proofs_verify(Suite::Blake3, HashSuite::Blake3).await;
}

#[tokio::test]
async fn proofs_of_sha256_contexts_verify() {
    proofs_verify(Suite::Sha256, HashSuite::Sha256).await;
}

#[tokio::test]
async fn what_is_out_of_range_is_refused() {
    let node = TestNode::start().await;
    append_all(&mut node.contexts().await, "c", &["1", "2"]).await;
    let mut client = node.integrity().await;
    let context_id = || "c".to_owned();
    let status =
        client.checkpoint(CheckpointRequest { context_id: context_id(), size: 3 }).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    for (sequence, size, code) in
        [(3, 0, Code::OutOfRange), (2, 1, Code::OutOfRange), (0, 0, Code::InvalidArgument)]
    {
        let request = InclusionProofRequest { context_id: context_id(), sequence, size };
        assert_eq!(client.inclusion_proof(request).await.unwrap_err().code(), code, "{sequence} of {size}");
    }
    for (old_size, new_size, code) in [(3, 0, Code::OutOfRange), (2, 1, Code::InvalidArgument)] {
        let request = ConsistencyProofRequest { context_id: context_id(), old_size, new_size };
        assert_eq!(client.consistency_proof(request).await.unwrap_err().code(), code);
    }
    let status = client.checkpoint(CheckpointRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "context_id"));
    node.stop().await;
}

#[tokio::test]
async fn one_node_has_no_forks() {
    let node = TestNode::start().await;
    let forks = node.integrity().await.forks(ForksRequest::default()).await.unwrap().into_inner();
    assert!(forks.forks.is_empty());
    node.stop().await;
}

#[tokio::test]
async fn a_restarted_node_signs_with_the_same_key() {
    let node = TestNode::start().await;
    append_all(&mut node.contexts().await, "c", &["1"]).await;
    let request = || CheckpointRequest { context_id: "c".into(), size: 0 };
    let before = node.integrity().await.checkpoint(request()).await.unwrap().into_inner();
    let node = TestNode::start_in(node.stop().await, |_| {}).await;
    let after = node.integrity().await.checkpoint(request()).await.unwrap().into_inner();
    assert_eq!(before, after);
    node.stop().await;
}
