//! `converge.ledger.v1.IntegrityService`: what it proves verifies offline.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use bytes::Bytes;
use ledger_core::{
    ContextId, Entry, Epoch, Hash, HashSuite, Key, Size,
    checkpoint::{self, VerifierKey},
    entry::Draft,
    node::NodeId,
    ownership::Claim,
    tree::proof::{ConsistencyProof, InclusionProof},
};
use ledger_proto::{
    context::v1::Consistency,
    ledger::v1::{
        CheckpointRequest, ConsistencyProofRequest, ForkEntriesRequest, ForksRequest, InclusionProofRequest,
    },
};
use ledger_server::settings::config::Suite;
use ledger_store::{Append, Evidence, Ledger, Tip};
use support::{TestNode, append, append_all, field, free_ports, until};
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
        .checkpoint(CheckpointRequest { context_id: context_id(), ..CheckpointRequest::default() })
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
            .checkpoint(CheckpointRequest { context_id: context_id(), size, ..CheckpointRequest::default() })
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
    let status = client
        .checkpoint(CheckpointRequest { context_id: context_id(), size: 3, ..CheckpointRequest::default() })
        .await
        .unwrap_err();
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
    let strange = CheckpointRequest { context_id: context_id(), consistency: 2, ..Default::default() };
    let status = client.checkpoint(strange).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "consistency"));
    node.stop().await;
}

#[tokio::test]
async fn a_lone_node_has_no_forks() {
    let node = TestNode::start().await;
    append_all(&mut node.contexts().await, "c", &["1"]).await;
    let mut client = node.integrity().await;
    let forks = client.forks(ForksRequest::default()).await.unwrap().into_inner();
    assert!(forks.forks.is_empty() && forks.next.is_empty());
    let request = ForkEntriesRequest { context_id: "c".into(), fork: 1, after_sequence: 0 };
    let status = client.fork_entries(request).await.unwrap().into_inner().message().await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
    node.stop().await;
}

/// A context of which entries were left, as a replica does whose history differs from the owner's.
async fn leave(ledger: &Ledger, name: &str, entries: usize, common: u64) -> Vec<Entry> {
    let context = ContextId::new(name).unwrap();
    let mut all = Vec::new();
    for number in 0..entries {
        let draft = Draft {
            key: Key::new("facts").unwrap(),
            payload: number.to_string().into(),
            metadata: [("n".into(), number.to_string())].into(),
        };
        let append = Append::new(context.clone(), draft);
        all.push(ledger.append_async(append).await.unwrap().entry);
    }
    let head = ledger.head(&context).unwrap().unwrap();
    let ours = head.tree_head();
    let claim = Claim { epoch: Epoch::new(9, 9), claimant: NodeId::new("owner").unwrap(), storage: None };
    let theirs = Tip { size: Size(7), root: Hash([7; 32]), epoch: Epoch(77) };
    let evidence = Evidence { theirs, reason: format!("{name} is another at the owner") };
    ledger.fork_history(context, claim, Size(common), ours, evidence).await.unwrap();
    all
}

#[tokio::test]
async fn forks_are_listed_in_parts_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(dir.path()).unwrap();
    let all = leave(&ledger, "c", 5000, 2000).await;
    for number in 0..5 {
        leave(&ledger, &format!("other-{number}"), 2, 1).await;
    }
    ledger.close().unwrap();
    drop(ledger);
    let node = TestNode::start_in(dir, |_| {}).await;
    let mut client = node.integrity().await;

    let (mut forks, mut after) = (Vec::new(), Bytes::new());
    loop {
        let request = ForksRequest { limit: 4, after, ..ForksRequest::default() };
        let answer = client.forks(request).await.unwrap().into_inner();
        assert!(answer.forks.len() <= 4);
        forks.extend(answer.forks);
        after = answer.next;
        if after.is_empty() {
            break;
        }
    }
    forks.sort_by_key(|fork| fork.fork);
    assert_eq!(forks.iter().map(|fork| fork.fork).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
    let of_one = ForksRequest { context_id: "c".into(), ..ForksRequest::default() };
    assert_eq!(client.forks(of_one).await.unwrap().into_inner().forks, forks[..1]);
    let fork = &forks[0];
    assert_eq!((fork.context_id.as_str(), fork.hash_suite.as_str()), ("c", "blake3"));
    assert_eq!((fork.common_size, fork.first_sequence, fork.entry_count), (2000, 2001, 3000));
    let (ours, theirs) = (fork.ours.as_ref().unwrap(), fork.theirs.as_ref().unwrap());
    assert_eq!((ours.size, ours.epoch), (5000, all[4999].epoch.0));
    assert_eq!((theirs.size, theirs.root.as_ref(), theirs.epoch), (7, &[7; 32][..], 77));
    assert_eq!(fork.reason, "c is another at the owner");
    assert!(fork.left_at_ns > 0 && fork.lineage.len() == 16);

    let request = |after_sequence| ForkEntriesRequest { context_id: "c".into(), fork: 1, after_sequence };
    for after in [0, 4000] {
        let mut pages = client.fork_entries(request(after)).await.unwrap().into_inner();
        let (mut next, mut count) = (after.max(2000) as usize, 0);
        while let Some(page) = pages.message().await.unwrap() {
            count += 1;
            for entry in page.entries {
                let expected = &all[next];
                assert_eq!((entry.sequence, &entry.payload), (expected.sequence.0, &expected.payload));
                assert_eq!((entry.id, entry.metadata), (expected.id.to_string(), expected.metadata.clone()));
                assert_eq!(hash(&entry.content_hash), expected.content_hash);
                assert_eq!(entry.context_id, "");
                next += 1;
            }
        }
        assert_eq!((next, count > 1), (5000, after == 0));
    }
    let bad = ForksRequest { after: "short".into(), ..ForksRequest::default() };
    let status = client.forks(bad).await.unwrap_err();
    assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, "after"));
    // The context goes on with what is left.
    let stated = client
        .checkpoint(CheckpointRequest { context_id: "c".into(), ..CheckpointRequest::default() })
        .await
        .unwrap();
    assert_eq!(stated.into_inner().checkpoint.unwrap().size, 2000);
    append_all(&mut node.contexts().await, "c", &["after"]).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_of_the_owner_is_made_by_the_owner_whoever_is_asked() {
    let ports = free_ports();
    let (a, b) = tokio::join!(TestNode::join("a", ports, 0), TestNode::join("b", ports, 1));
    let (mut contexts, nodes) = (a.contexts().await, [a.integrity().await, b.integrity().await]);
    // Who signed it tells who made it.
    let signers = async |consistency: Consistency| {
        let request = || CheckpointRequest {
            context_id: "c".into(),
            consistency: consistency.into(),
            ..CheckpointRequest::default()
        };
        let [mut a, mut b] = nodes.clone();
        let (a, b) = (a.checkpoint(request()).await.ok()?, b.checkpoint(request()).await.ok()?);
        Some((a.into_inner().verifier_key, b.into_inner().verifier_key))
    };
    until("an append", async || contexts.append(append("c", "facts", "1")).await.ok()).await;
    until("each shows its own copy, and only one is the owner", async || {
        let (any, other) = signers(Consistency::AnyReplica).await?;
        let (owner, same) = signers(Consistency::Owner).await?;
        (any != other && owner == same).then_some(())
    })
    .await;
    tokio::join!(a.stop(), b.stop());
}

#[tokio::test]
async fn a_restarted_node_signs_with_the_same_key() {
    let node = TestNode::start().await;
    append_all(&mut node.contexts().await, "c", &["1"]).await;
    let request = || CheckpointRequest { context_id: "c".into(), ..CheckpointRequest::default() };
    let before = node.integrity().await.checkpoint(request()).await.unwrap().into_inner();
    let node = TestNode::start_in(node.stop().await, |_| {}).await;
    let after = node.integrity().await.checkpoint(request()).await.unwrap().into_inner();
    assert_eq!(before, after);
    node.stop().await;
}
