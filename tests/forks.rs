//! `ledgerctl forks`, on a node that left a history.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::path::Path;

use ledger_core::{ContextId, Entry, Epoch, Hash, Key, Size, entry::Draft, node::NodeId, ownership::Claim};
use ledger_store::{Append, Evidence, Ledger, Tip};
use ledger_tests::Node;
use serde_json::Value;
use tempfile::TempDir;

/// Fills a context, and leaves what comes after `common` as a replica does whose history differs from the owner's.
async fn leave(ledger: &Ledger, name: &str, entries: usize, common: u64) -> Vec<Entry> {
    let context = ContextId::new(name).unwrap();
    let mut all = Vec::new();
    for number in 1..=entries {
        let draft = Draft {
            key: Key::new("facts").unwrap(),
            payload: format!("fact {number}").into(),
            metadata: [].into(),
        };
        let append = Append::new(context.clone(), draft);
        all.push(ledger.append_async(append).await.unwrap().entry);
    }
    let head = ledger.head(&context).unwrap().unwrap();
    let ours = head.tree_head();
    let claim = Claim { epoch: Epoch::new(9, 9), claimant: NodeId::new("owner").unwrap(), storage: None };
    let theirs = Tip { size: Size(44), root: Hash([7; 32]), epoch: Epoch(77) };
    let evidence = Evidence { theirs, reason: "the owner's history differs".to_owned() };
    ledger.fork_history(context, claim, Size(common), ours, evidence).await.unwrap();
    all
}

fn fill(data: &Path) -> Vec<Entry> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ledger = Ledger::open(data).unwrap();
    let all = runtime.block_on(async {
        leave(&ledger, "other", 2, 0).await;
        leave(&ledger, "demo", 10, 6).await
    });
    ledger.close().unwrap();
    all
}

fn json(node: &Node, args: &[&str]) -> Vec<Value> {
    let (code, out, err) = node.ctl(&[args, &["--json"]].concat());
    assert_eq!(code, 0, "{args:?}: {err}");
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn what_a_node_left_is_listed_and_exported() {
    let data = TempDir::new().unwrap();
    let all = fill(data.path());
    let node = Node::start(data.path());

    let forks = json(&node, &["forks"]);
    assert_eq!(json(&node, &["cluster", "forks"]), forks, "where the other commands of a cluster are");
    assert_eq!(forks.len(), 2);
    let fork = &json(&node, &["forks", "demo"])[0];
    assert!(forks.contains(fork));
    assert_eq!((&fork["context_id"], &fork["fork"]), (&"demo".into(), &2.into()));
    assert_eq!((&fork["common_size"], &fork["entries"]), (&6.into(), &4.into()));
    assert_eq!((&fork["ours"]["size"], &fork["theirs"]["size"]), (&10.into(), &44.into()));
    assert_eq!(fork["theirs"]["root"], "07".repeat(32));
    assert_eq!(
        (&fork["hash_suite"], &fork["reason"]),
        (&"blake3".into(), &"the owner's history differs".into())
    );
    let (_, table, _) = node.ctl(&["forks"]);
    for shown in ["instead of", "demo", "4 after 6", "other", "2 after 0", "44 of epoch 77", "differs"] {
        assert!(table.contains(shown), "{shown} in {table}");
    }
    assert_eq!(json(&node, &["forks", "--limit", "1"]).len(), 1);
    let (code, said, _) = node.ctl(&["forks", "never-left"]);
    assert_eq!((code, said.trim()), (0, "no node left a history"));

    let exported = json(&node, &["forks", "demo", "--export", "2"]);
    assert_eq!(exported.len(), 4);
    for (shown, entry) in exported.iter().zip(&all[6..]) {
        assert_eq!(
            (&shown["sequence"], &shown["id"]),
            (&entry.sequence.0.into(), &entry.id.to_string().into())
        );
        assert_eq!(shown["content_hash"], entry.content_hash.to_string());
    }
    let name = fork["node_id"].as_str().unwrap();
    let (code, lines, _) = node.ctl(&["forks", "demo", "--export", "2", "--node", name]);
    assert_eq!((code, lines.lines().count()), (0, 4), "{lines}");
    assert!(lines.contains("fact 7") && lines.contains("fact 10"), "{lines}");

    let files = TempDir::new().unwrap();
    for (name, entries) in [("demo", 10), ("other", 2)] {
        let fork = json(&node, &["forks", name])[0]["fork"].to_string();
        let file = files.path().join(name).display().to_string();
        let written = json(&node, &["forks", name, "--export", &fork, "--output", &file]);
        assert_eq!(written[0]["entries"], entries);
        let verified = json(&node, &["verify", "snapshot", &file]);
        assert_eq!(verified[0]["root"], written[0]["root"], "it is the history that was left");
        let copy = format!("{name}-as-it-was");
        assert_eq!(json(&node, &["load", &copy, &file])[0]["restored"], entries);
        let read = json(&node, &["get", &copy]);
        let payloads: Vec<_> = read.iter().map(|entry| entry["payload"].as_str().unwrap()).collect();
        let expected: Vec<_> = (1..=entries).map(|number| format!("fact {number}")).collect();
        assert_eq!(payloads, expected);
    }

    for (args, said) in [
        (&["forks", "demo", "--export", "1"][..], "no fork 1"),
        (&["forks", "--node", "nobody"], "no node is called nobody"),
        (&["forks", "--export", "1"], "CONTEXT"),
        (&["forks", "demo", "--output", "f"], "--export"),
    ] {
        let (code, _, err) = node.ctl(args);
        assert!(code == 2 && err.contains(said), "{args:?}: {code} {err}");
    }
    node.stop_cleanly();
}
