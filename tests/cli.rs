//! `ledgerctl` as a user types it.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use ledger_proto::ledger::v1::CheckpointRequest;
use ledger_tests::{
    desk::{Desk, lines, run},
    node::ledgerctl,
    repository,
};
use serde_json::Value;
use tempfile::TempDir;

#[test]
fn what_is_appended_is_what_is_read() {
    let desk = Desk::new();
    fs::write(desk.file("fact.bin"), [0, 159, 146, 150]).unwrap();
    let said = desk.ok(&["append", "demo", "facts", "market_size: 2.4B", "--meta", "agent_id=analyst"]);
    assert!(said.contains('1') && said.contains("demo"), "{said}");
    desk.ok(&["append", "demo", "blobs", "--file", "fact.bin"]);
    desk.ok_with(&["append", "demo", "lines", "--stdin-lines"], "one\ntwo\nthree ✓\n".as_bytes());

    let entries = desk.json(&["get", "demo"]);
    let field = |name: &str| entries.iter().map(|entry| entry[name].clone()).collect::<Vec<_>>();
    assert_eq!(field("sequence"), [1, 2, 3, 4, 5]);
    assert_eq!(field("key"), ["facts", "blobs", "lines", "lines", "lines"]);
    assert_eq!(entries[0]["payload"], "market_size: 2.4B");
    assert_eq!(entries[0]["metadata"]["agent_id"], "analyst");
    assert_eq!(entries[1]["payload_base64"], "AJ+Slg==");
    assert_eq!(entries[4]["payload"], "three ✓");

    let some = desk.json(&["get", "demo", "--key", "lines", "--after", "3", "--limit", "1"]);
    assert_eq!(some.len(), 1);
    assert_eq!(some[0]["payload"], "two");
    let shown = desk.ok(&["get", "demo"]);
    assert_eq!(shown.lines().count(), 5, "{shown}");
    assert!(shown.contains("market_size: 2.4B") && shown.contains("agent_id=analyst"), "{shown}");
    assert_eq!(desk.json(&["contexts"])[0]["context_id"], "demo");
    desk.node.stop_cleanly();
}

#[test]
fn a_watch_shows_history_and_then_what_comes() {
    let desk = Desk::new();
    desk.ok(&["append", "demo", "facts", "before"]);
    let mut watch = desk
        .command(&["watch", "demo", "--json", "--count", "3"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let mut next = move || serde_json::from_str::<Value>(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(next()["payload"], "before");
    // Shown at once, not when a buffer is full.
    for text in ["during", "after"] {
        desk.ok(&["append", "demo", "facts", text]);
        assert_eq!(next()["payload"], text);
    }
    assert!(watch.wait().unwrap().success());
    desk.node.stop_cleanly();
}

#[test]
fn an_entry_id_makes_repeating_an_append_safe() {
    let desk = Desk::new();
    let append = ["append", "demo", "facts", "once", "--entry-id", "order-7"];
    let (first, second) = (desk.json(&append), desk.json(&append));
    assert_eq!(first[0]["sequence"], 1);
    assert_eq!(first, second);
    let taken = desk.run(&["append", "demo", "facts", "other", "--entry-id", "order-7"]);
    assert_eq!(taken.code, 5, "{taken:?}");
    assert!(taken.err.contains("order-7"), "{taken:?}");
    desk.node.stop_cleanly();
}

#[test]
fn a_snapshot_moves_a_context_to_another_node() {
    let (from, to) = (Desk::new(), Desk::new());
    let lines = lines(2000);
    from.ok_with(&["append", "demo", "lines", "--stdin-lines"], lines.as_bytes());
    from.ok(&["snapshot", "demo", "--output", "demo.snapshot"]);
    let file = from.file("demo.snapshot").display().to_string();

    to.ok(&["verify", "snapshot", &file]);
    assert_eq!(to.json(&["load", "demo", &file])[0]["restored"], 2000);
    assert_eq!(to.json(&["load", "demo", &file])[0]["restored"], 0);
    assert_eq!(from.ok(&["get", "demo", "--json"]), to.ok(&["get", "demo", "--json"]), "ids and all");
    let exists = to.run(&["load", "demo", &file, "--fail-if-exists"]);
    assert_eq!(exists.code, 5, "{exists:?}");

    // Through a pipe, too.
    let piped = from.command(&["snapshot", "demo"]).output().unwrap();
    assert!(piped.status.success());
    to.ok_with(&["load", "copy", "-"], &piped.stdout);
    assert_eq!(to.json(&["get", "copy", "--after", "1999"])[0]["payload"], "line 2000");

    // The predecessor's, too.
    let legacy = repository().join("tests/fixtures/five-entries.etf").display().to_string();
    to.ok(&["verify", "snapshot", &legacy]);
    assert_eq!(to.json(&["load", "growth-strategy-001", &legacy])[0]["restored"], 5);

    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(from.file("bad.snapshot"), bytes).unwrap();
    for args in [["verify", "snapshot", "bad.snapshot"], ["load", "bad", "bad.snapshot"]] {
        let refused = from.run(&args);
        assert_eq!(refused.code, 4, "{args:?}: {refused:?}");
        assert!(!refused.err.is_empty());
    }
    assert_eq!(from.run(&["get", "bad"]).code, 7, "nothing of it was written");
    from.node.stop_cleanly();
    to.node.stop_cleanly();
}

#[tokio::test(flavor = "multi_thread")]
async fn proofs_verify_without_a_node_and_wrong_ones_do_not() {
    let desk = Desk::new();
    let lines = lines(300);
    desk.ok_with(&["append", "demo", "lines", "--stdin-lines"], lines.as_bytes());
    desk.ok(&["append", "other", "facts", "something else"]);
    desk.ok(&["checkpoint", "demo", "--output", "checkpoint"]);
    desk.ok(&["checkpoint", "other", "--output", "other-checkpoint"]);
    desk.ok(&["prove", "inclusion", "demo", "7", "--output", "inclusion"]);
    desk.ok(&["prove", "consistency", "demo", "100", "--output", "consistency"]);
    let request = CheckpointRequest { context_id: "demo".to_owned(), ..CheckpointRequest::default() };
    let answer = desk.node.rpc().await.integrity.checkpoint(request).await.unwrap().into_inner();
    let key = answer.verifier_key;
    assert_eq!(fs::read_to_string(desk.file("checkpoint")).unwrap(), answer.signed_note);
    fs::write(desk.file("payload"), "line 7").unwrap();
    fs::write(desk.file("other-payload"), "line 8").unwrap();

    let Desk { node, data: _data, files } = desk;
    node.stop_cleanly();
    let offline = |args: &[&str]| {
        let mut command = ledgerctl();
        command.args(args).current_dir(files.path());
        run(command, b"")
    };
    let good: [&[&str]; 6] = [
        &["verify", "proof", "inclusion"],
        &["verify", "proof", "inclusion", "--payload", "payload"],
        &["verify", "proof", "inclusion", "--checkpoint", "checkpoint", "--verifier-key", &key],
        &["verify", "proof", "consistency"],
        &["verify", "proof", "consistency", "--checkpoint", "checkpoint", "--verifier-key", &key],
        &["verify", "checkpoint", "checkpoint", "--verifier-key", &key],
    ];
    for args in good {
        let ran = offline(args);
        assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
        assert!(!ran.out.is_empty(), "{args:?} says what was verified");
        let ran = offline(&[args, &["--json"]].concat());
        assert!(serde_json::from_str::<Value>(ran.out.trim()).is_ok(), "{args:?} --json: {ran:?}");
    }

    let note = fs::read_to_string(files.path().join("checkpoint")).unwrap();
    fs::write(files.path().join("tampered"), note.replacen("\n300\n", "\n301\n", 1)).unwrap();
    // A proof with one digit of its first hash changed.
    for name in ["inclusion", "consistency"] {
        let mut proof: Value = serde_json::from_slice(&fs::read(files.path().join(name)).unwrap()).unwrap();
        let hash = proof["proof"]["hashes"][0].as_str().unwrap();
        let digit = if hash.starts_with('0') { "1" } else { "0" };
        proof["proof"]["hashes"][0] = format!("{digit}{}", &hash[1..]).into();
        fs::write(files.path().join(format!("bad-{name}")), proof.to_string()).unwrap();
    }
    let bad: [&[&str]; 6] = [
        &["verify", "proof", "bad-inclusion"],
        &["verify", "proof", "bad-consistency"],
        &["verify", "proof", "inclusion", "--payload", "other-payload"],
        &["verify", "proof", "inclusion", "--checkpoint", "other-checkpoint", "--verifier-key", &key],
        &["verify", "proof", "inclusion", "--checkpoint", "tampered", "--verifier-key", &key],
        &["verify", "checkpoint", "tampered", "--verifier-key", &key],
    ];
    for args in bad {
        let ran = offline(args);
        assert_eq!(ran.code, 4, "{args:?}: {ran:?}");
        assert!(!ran.err.is_empty(), "{args:?} says why");
    }
}

#[test]
fn exit_codes_say_what_kind_of_thing_went_wrong() {
    let desk = Desk::new();
    desk.ok(&["append", "demo", "facts", "x"]);
    fs::write(desk.file("large"), vec![b'x'; (4 << 20) + 1]).unwrap();
    let long = "x".repeat(1025);
    let cases: [(i32, &str, &[&str]); 8] = [
        (2, "", &["append", "demo"]),
        (2, "", &["no-such-command"]),
        (2, "context_id", &["append", "", "facts", "x"]),
        (2, "context_id", &["get", &long]),
        (2, "key", &["append", "demo", "a\nb", "x"]),
        (6, "max_entry", &["append", "demo", "facts", "--file", "large"]),
        (1, "no-such-file", &["load", "demo", "no-such-file"]),
        (3, "not available", &["get", "demo", "--endpoint", "http://127.0.0.1:1"]),
    ];
    for (code, part, args) in cases {
        let ran = desk.run(args);
        assert_eq!(ran.code, code, "{args:?}: {ran:?}");
        assert!(ran.err.contains(part) && !ran.err.contains("panicked"), "{part} in {args:?}: {ran:?}");
        assert!(ran.out.is_empty(), "{ran:?}");
    }
    let ran = desk.run(&["append", "", "facts", "x", "--json"]);
    let error: Value = serde_json::from_str(ran.err.trim()).unwrap();
    assert!(error["error"].as_str().unwrap().contains("context_id"), "{error}");
    assert_eq!(error["exit_code"], 2);
    // Each code is documented where a user looks.
    let help = desk.ok(&["--help"]);
    for code in (0..=7).chain([130]) {
        assert!(
            help.lines().any(|line| line.trim_start().starts_with(&format!("{code}  "))),
            "{code}: {help}"
        );
    }
    desk.node.stop_cleanly();
}

#[test]
fn a_lone_node_is_a_cluster_of_one() {
    let desk = Desk::new();
    let members = desk.json(&["cluster", "members"]);
    assert_eq!(members.len(), 1);
    let member = &members[0];
    assert_eq!(member["address"], desk.node.grpc.to_string());
    assert_eq!((&member["slots_owned"], &member["alive"]), (&1024.into(), &true.into()));
    let table = desk.ok(&["cluster", "members"]);
    assert!(table.contains("ready") && table.contains(member["node_id"].as_str().unwrap()), "{table}");

    let located = desk.json(&["cluster", "locate", "demo", "other"]);
    assert_eq!(located.len(), 2);
    assert_eq!((&located[0]["context_id"], &located[0]["owner"]), (&"demo".into(), &member["node_id"]));
    assert_eq!(located[0]["replicas"][0]["in_step"], true);
    assert!(desk.ok(&["cluster", "locate", "demo"]).contains("demo"));

    let status = desk.json(&["cluster", "status"]);
    let slots = &status[0]["slots"];
    assert_eq!((&slots["total"], &slots["owned"]), (&1024.into(), &1024.into()), "{slots}");
    assert_eq!((&slots["short_of_copies"], &slots["not_known"]), (&0.into(), &0.into()), "{slots}");
    assert!(desk.ok(&["cluster", "status"]).contains("all 1024 slots have an owner"));

    // There is nobody to hand anything to.
    let drain = desk.run(&["cluster", "drain"]);
    assert!(drain.code == 2 && drain.err.contains("by itself"), "{drain:?}");
    assert_eq!(desk.json(&["cluster", "drain", "--resume"])[0]["owned"], 1024);
    for (code, args) in [
        (2, &["cluster", "locate"][..]),
        (2, &["cluster", "locate", ""]),
        (2, &["cluster", "local", "--nodes", "0"]),
    ] {
        assert_eq!(desk.run(args).code, code, "{args:?}");
    }
    desk.node.stop_cleanly();
}

#[test]
fn a_watch_of_the_cluster_ends_when_its_only_node_does() {
    let desk = Desk::new();
    let mut watch = desk.command(&["cluster", "status", "--watch", "--json"]);
    let mut watch = watch.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let status: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(status["slots"]["owned"], 1024);
    desk.node.stop_cleanly();
    let output = watch.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

#[test]
fn a_local_cluster_whose_nodes_do_not_start_says_so_and_leaves_nothing() {
    let place = TempDir::new().unwrap();
    let mut command = ledgerctl();
    command.env("TMPDIR", place.path()).args(["cluster", "local", "--", "--no-such-flag"]);
    let ran = run(command, b"");
    assert_eq!(ran.code, 1, "{ran:?}");
    // Which of them prints first is chance.
    assert!(ran.err.contains(" | error: unexpected argument '--no-such-flag'"), "{ran:?}");
    assert!(ran.err.contains("before it served"), "{ran:?}");
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

#[test]
fn completions_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let mut command = ledgerctl();
        command.args(["completions", shell]);
        let ran = run(command, b"");
        assert_eq!(ran.code, 0, "{ran:?}");
        for word in ["append", "snapshot", "checkpoint", "endpoint"] {
            assert!(ran.out.contains(word), "{word} for {shell}");
        }
    }
}
