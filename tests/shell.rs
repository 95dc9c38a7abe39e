//! `ledgerctl` as scripts, pipes and terminals meet it: what is absent, refused, interrupted, foreign or not to be believed.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    fs,
    io::{Read as _, Write as _},
    process::Stdio,
};

use ledger_tests::{
    desk::{Desk, lines, run},
    node::{ledgerctl, ledgerd},
    until,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What must not come out of a program that prints what others wrote.
const STEERING: [char; 4] = ['\u{202e}', '\u{9b}', '\u{2066}', '\u{1b}'];

#[test]
fn what_is_not_there_is_said_with_an_exit_code_of_its_own() {
    let desk = Desk::new();
    desk.ok(&["append", "demo", "facts", "x"]);
    let absent: [&[&str]; 6] = [
        &["get", "nope"],
        &["get", "nope", "--verify"],
        &["snapshot", "nope", "--output", "nope.snapshot"],
        &["snapshot", "nope"],
        &["checkpoint", "nope"],
        &["prove", "inclusion", "nope", "1"],
    ];
    for args in absent {
        let ran = desk.run(args);
        assert_eq!(ran.code, 7, "{args:?}: {ran:?}");
        assert!(ran.err.contains("there is no context nope") && ran.out.is_empty(), "{args:?}: {ran:?}");
        let ran = desk.run(&[args, &["--json"]].concat());
        let error: Value = serde_json::from_str(ran.err.trim()).unwrap();
        assert_eq!((&error["kind"], &error["exit_code"]), (&"absent".into(), &7.into()), "{args:?}");
    }
    assert!(!desk.file("nope.snapshot").exists() && !desk.file("nope.snapshot.partial").exists());
    for args in [&["get", "nope"][..], &["snapshot", "nope", "--output", "empty"], &["checkpoint", "nope"]] {
        desk.ok(&[args, &["--allow-empty"]].concat());
    }
    assert!(desk.file("empty").exists());
    // A selection that nothing is of is no context that is not there.
    assert_eq!(desk.ok(&["get", "demo", "--key", "others"]), "");
    assert_eq!(desk.ok(&["get", "demo", "--after", "1"]), "");
    desk.node.stop_cleanly();
}

#[test]
fn nothing_that_others_wrote_steers_the_terminal() {
    let desk = Desk::new();
    let name = "a\u{202e}b\u{2066}c";
    let payload = "money\u{202e}\u{2066}for nothing";
    desk.ok(&["append", name, "facts", payload, "--meta", "who=\u{202e}me"]);
    desk.ok(&["append", name, "facts", "\u{9b}2J\u{1b}[2J"]);
    let shown: [&[&str]; 9] = [
        &["get", name],
        &["get", name, "--json"],
        &["contexts"],
        &["contexts", "--json"],
        &["checkpoint", name],
        &["checkpoint", name, "--json"],
        &["prove", "inclusion", name, "1"],
        &["prove", "inclusion", name, "1", "--json"],
        &["cluster", "locate", name],
    ];
    for args in shown {
        let out = desk.ok(args);
        assert!(!out.contains(STEERING) && out.contains("202e"), "{args:?}: {out:?}");
    }
    assert_eq!(desk.json(&["get", name])[0]["payload"], payload, "its escape means the same");
    assert_eq!(desk.json(&["get", name])[0]["context_id"], name);
    // Errors say what was given, or what a node said.
    let wrong: [&[&str]; 5] = [
        &["get", "nope\u{202e}"],
        &["get", "nope\u{202e}", "--json"],
        &["nonsense\u{202e}\u{9b}"],
        &["nonsense\u{202e}\u{9b}", "--json"],
        &["append", "x", "a\u{9b}b", "x"],
    ];
    for args in wrong {
        let ran = desk.run(args);
        assert!(ran.code != 0 && !ran.err.contains(STEERING), "{args:?}: {ran:?}");
    }
    // As it is only where it was asked for.
    let raw = desk.command(&["get", name, "--raw", "--limit", "1"]).output().unwrap();
    assert_eq!(raw.stdout, format!("{payload}\n").as_bytes());
    let log = desk.node.stop().log;
    assert!(!log.contains(['\u{202e}', '\u{9b}', '\u{2066}']), "{log}");
}

#[test]
fn json_holds_what_programs_can_read_exactly_and_once() {
    let desk = Desk::new();
    let lamport = (1_u64 << 53) + 1;
    desk.ok(&["append", "demo", "facts", "text", "--received-lamport", &(1_u64 << 31).to_string()]);
    let entry = &desk.json(&["get", "demo"])[0];
    for name in ["appended_at_ns", "lamport_clock", "epoch"] {
        entry[name].as_str().unwrap().parse::<u64>().unwrap();
    }
    let (ns, time) = (entry["appended_at_ns"].as_str().unwrap(), entry["appended_at"].as_str().unwrap());
    assert!(time.ends_with(&format!(".{}Z", &ns[ns.len() - 9..])), "{time} is {ns}");
    assert_eq!((&entry["payload"], &entry["payload_base64"]), (&"text".into(), &Value::Null));
    let entry = &desk.json(&["get", "demo", "--payload", "base64"])[0];
    assert_eq!((&entry["payload_base64"], &entry["payload"]), (&"dGV4dA==".into(), &Value::Null));
    assert!(desk.json(&["contexts"])[0]["created_at"].is_string());
    // A mistake of usage too, and help is help.
    let wrong: [&[&str]; 3] =
        [&["--json", "get"], &["no-such-command", "--json"], &["get", "a", "--json", "--limit", "x"]];
    for args in wrong {
        let ran = desk.run(args);
        let error: Value =
            serde_json::from_str(ran.err.trim()).unwrap_or_else(|_| panic!("{args:?}: {ran:?}"));
        assert_eq!(
            (ran.code, &error["exit_code"], &error["kind"]),
            (2, &2.into(), &"usage".into()),
            "{args:?}"
        );
    }
    assert!(desk.ok(&["--json", "--help"]).contains("Exit codes"));
    // What a proof needs survives a program that reads numbers as JavaScript does.
    desk.ok(&["prove", "inclusion", "demo", "1", "--output", "proof"]);
    let proof: Value = serde_json::from_slice(&fs::read(desk.file("proof")).unwrap()).unwrap();
    assert!(proof["proof"]["entry"]["appended_at_ns"].is_string(), "{proof}");
    let piped = desk.ok(&["prove", "inclusion", "demo", "1", "--json"]);
    fs::write(desk.file("piped"), piped).unwrap();
    desk.ok(&["verify", "proof", "piped"]);
    // As version 1 wrote it.
    let mut old = proof.clone();
    old["version"] = 1.into();
    for name in ["lamport_clock", "appended_at_ns", "epoch"] {
        old["proof"]["entry"][name] =
            old["proof"]["entry"][name].as_str().unwrap().parse::<u64>().unwrap().into();
    }
    fs::write(desk.file("old"), old.to_string()).unwrap();
    desk.ok(&["verify", "proof", "old"]);
    assert!(lamport > 1 << 53);
    desk.node.stop_cleanly();
}

#[test]
fn only_what_is_verified_is_called_so() {
    let desk = Desk::new();
    desk.ok_with(&["append", "demo", "lines", "--stdin-lines"], lines(50).as_bytes());
    let key = desk.json(&["checkpoint", "demo"])[0]["verifier_key"].as_str().unwrap().to_owned();
    for args in [
        &["checkpoint", "demo"][..],
        &["prove", "inclusion", "demo", "7"],
        &["prove", "consistency", "demo", "5"],
    ] {
        assert!(!desk.ok(args).contains("verified"), "{args:?}: nothing vouches for the root");
        let with_key = desk.ok(&[args, &["--verify", "--trust", &key]].concat());
        assert!(with_key.contains("verified") && with_key.contains("key that you trust"), "{with_key}");
    }
    desk.ok(&["prove", "inclusion", "demo", "7", "--output", "proof"]);
    let alone = desk.ok(&["verify", "proof", "proof"]);
    assert!(!alone.contains("verified") && alone.contains("nothing vouches"), "{alone}");
    assert_eq!(desk.json(&["verify", "proof", "proof"])[0]["verified"], false);
    // The root of a tree of one size at another: the proof goes with it, and no checkpoint does.
    desk.ok(&["checkpoint", "demo", "--output", "note"]);
    let signed = ["verify", "proof", "proof", "--checkpoint", "note", "--verifier-key", &key];
    assert_eq!(desk.json(&signed)[0]["verified"], true);

    // Entries: by key, by a file of keys, by what was seen first, which is said.
    fs::write(desk.file("keys"), format!("# of node 1\n{key}\n")).unwrap();
    for trust in [&["--trust", &key][..], &["--trust", "keys"], &["--trust", "known.json"], &[]] {
        let ran = desk.run(&[&["get", "demo", "--verify"], trust].concat());
        assert_eq!((ran.code, ran.out.lines().count()), (0, 50), "{ran:?}");
        let is_first_use = trust.is_empty() || trust[1] == "known.json";
        assert_eq!(ran.err.contains("taken on trust"), is_first_use, "{trust:?}: {ran:?}");
        let again = desk.run(&[&["watch", "demo", "--verify", "--count", "50"], trust].concat());
        assert_eq!((again.code, again.out.lines().count(), again.err.as_str()), (0, 50, ""), "{again:?}");
    }
    // Somebody else's ledger under the same names.
    let other = Desk::new();
    other.ok_with(&["append", "demo", "lines", "--stdin-lines"], lines(60).as_bytes());
    let endpoint = other.node.endpoint();
    for trust in [key.as_str(), "keys", "known.json"] {
        for command in [&["get", "demo"][..], &["watch", "demo", "--count", "1"], &["checkpoint", "demo"]] {
            let args = [command, &["--verify", "--trust", trust, "--endpoint", &endpoint]].concat();
            let ran = desk.run(&args);
            assert_eq!(ran.code, 4, "{args:?}: {ran:?}");
            assert!(ran.out.is_empty(), "{ran:?}");
        }
    }
    let ran =
        desk.run(&["get", "demo", "--verify", "--trust", "known.json", "--endpoint", &endpoint, "--json"]);
    let error: Value = serde_json::from_str(ran.err.trim()).unwrap();
    assert_eq!(error["kind"], "not_extended", "{error}");
    // A slip of the pen in a key is no name of a file that is made.
    let slip = key.replace('+', "+0");
    assert_ne!(desk.run(&["get", "demo", "--verify", "--trust", &slip]).code, 0);
    assert!(!desk.file(&slip).exists());
    desk.node.stop_cleanly();
    other.node.stop_cleanly();
}

#[test]
fn a_refused_line_ends_the_run_and_every_lines_fate_is_told() {
    let desk = Desk::new();
    let mut input: Vec<String> = (1..=2000).map(|n| format!("line {n}")).collect();
    input[9] = "x".repeat((4 << 20) + 1);
    let args = ["append", "demo", "lines", "--stdin-lines", "--json"];
    let ran = run(desk.command(&args), input.join("\n").as_bytes());
    assert_eq!((ran.code, ran.out.as_str()), (6, ""), "{ran:?}");
    let told: Vec<Value> = ran.err.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let fates = &told[0];
    assert_eq!(fates["refused"][0]["line"], 10, "{fates}");
    assert!(told[1]["error"].as_str().unwrap().contains("refused: line 10"), "{told:?}");
    // What is told is what is so.
    let stored: Vec<String> = desk
        .json(&["get", "demo"])
        .iter()
        .map(|entry| entry["payload"].as_str().unwrap().to_owned())
        .collect();
    let mut said = Vec::new();
    for range in fates["stored"].as_array().unwrap() {
        let (first, last) = (range[0].as_u64().unwrap(), range[1].as_u64().unwrap());
        said.extend((first..=last).map(|line| input[line as usize - 1].clone()));
    }
    assert_eq!(stored, said);
    assert_eq!(fates["may_be_stored"], Value::Array(Vec::new()));
    let not_sent = fates["not_sent_from"].as_u64().unwrap();
    assert_eq!(not_sent, stored.len() as u64 + 2, "all that was sent is told of");
    // Mended and repeated, nothing is there twice.
    input[9] = "mended".to_owned();
    let run_name = fates["run"].as_str().unwrap();
    desk.ok_with(
        &["append", "demo", "lines", "--stdin-lines", "--run", run_name],
        input.join("\n").as_bytes(),
    );
    let mut stored: Vec<String> = desk
        .json(&["get", "demo"])
        .iter()
        .map(|entry| entry["payload"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(stored.len(), 2000);
    stored.sort_unstable();
    input.sort_unstable();
    assert_eq!(stored, input);
    desk.node.stop_cleanly();
}

#[test]
fn an_interrupted_run_says_what_was_stored_and_how_to_go_on() {
    let desk = Desk::new();
    let mut command = desk.command(&["append", "demo", "lines", "--stdin-lines"]);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"one\ntwo\nthree\n").unwrap();
    until("three are stored", || {
        let ran = desk.run(&["get", "demo"]);
        (ran.out.lines().count() == 3).then_some(())
    });
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    // Standard input stays open: it ends all the same.
    let output = child.wait_with_output().unwrap();
    drop(input);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("stored: lines 1 to 3;") && text.contains("not sent: from line 4 on"), "{text}");
    let name = text.split("--run ").nth(1).unwrap().split(':').next().unwrap();
    desk.ok_with(&["append", "demo", "lines", "--stdin-lines", "--run", name], b"one\ntwo\nthree\nfour\n");
    assert_eq!(desk.json(&["get", "demo"]).len(), 4);
    desk.node.stop_cleanly();
}

#[test]
fn a_measurement_is_not_taken_beside_other_data_unless_told_to() {
    let desk = Desk::new();
    let bench = ["bench", "append", "--seconds", "0.2", "--contexts", "2", "--inflight", "8"];
    let first = desk.run(&bench);
    assert!(first.code == 0 && first.err.contains("cannot be removed"), "{first:?}");
    desk.ok(&bench);
    for kind in ["unary", "watch"] {
        let mut args = vec!["bench", kind, "--seconds", "0.2", "--contexts", "2", "--inflight", "4"];
        if kind == "watch" {
            args.extend(["--watchers", "2"]);
        }
        desk.ok(&args);
    }
    for kind in ["replay", "proof"] {
        desk.ok(&["bench", kind, "--seconds", "0.2", "--entries", "500"]);
    }
    let contexts = desk.json(&["contexts"]);
    let all_its_own =
        contexts.iter().all(|info| info["context_id"].as_str().unwrap().starts_with("ledgerctl-bench/"));
    assert!(!contexts.is_empty() && all_its_own, "{contexts:?}");
    // Before and after its own, in order of their names.
    for other in ["zzz", "aaa"] {
        desk.ok(&["append", other, "facts", "somebody's"]);
        let before = desk.json(&["contexts"]).len();
        let refused = desk.run(&bench);
        assert!(refused.code == 2 && refused.err.contains("--yes"), "{refused:?}");
        assert_eq!(desk.json(&["contexts"]).len(), before);
    }
    desk.ok(&[&bench[..], &["--yes"]].concat());
    desk.node.stop_cleanly();
}

#[test]
fn a_reader_that_has_seen_enough_ends_every_command_quietly() {
    let desk = Desk::new();
    desk.ok_with(&["append", "demo", "lines", "--stdin-lines"], lines(20_000).as_bytes());
    let mut node = ledgerd();
    node.arg("config");
    let commands = [
        desk.command(&["completions", "bash"]),
        desk.command(&["completions", "zsh"]),
        desk.command(&["--help"]),
        desk.command(&["get", "demo"]),
        desk.command(&["get", "demo", "--json"]),
        desk.command(&["watch", "demo", "--count", "20000"]),
        desk.command(&["snapshot", "demo"]),
        node,
    ];
    for mut command in commands {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut [0; 1]).unwrap();
        drop(out);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!text.contains("panicked") && output.status.success(), "{command:?}: {text}");
    }
    // Nobody reads complaints.
    let mut command = ledgerctl();
    command.args(["get"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(2));
    desk.node.stop_cleanly();
}

#[test]
fn one_long_name_does_not_widen_every_row() {
    let desk = Desk::new();
    let long = format!("begin-{}-end", "x".repeat(900));
    desk.ok(&["append", "short", "facts", "x"]);
    desk.ok(&["append", &long, "facts", "x"]);
    let table = desk.ok(&["contexts"]);
    assert!(table.lines().all(|line| line.chars().count() < 160), "{table}");
    assert!(table.contains("begin-") && table.contains("-end") && table.contains('…'), "{table}");
    assert!(desk.json(&["contexts"]).iter().any(|info| info["context_id"] == long.as_str()));
    desk.node.stop_cleanly();
}

#[test]
fn a_wrong_address_is_told_with_its_remedy() {
    let desk = Desk::new();
    let (grpc, http) = (desk.node.grpc.to_string(), desk.node.http.to_string());
    let cases = [
        (format!("http://{http}"), "gRPC port", 2),
        (format!("https://{grpc}"), "http://", 2),
        (grpc.clone(), "write http://", 2),
        ("localhost:50051".to_owned(), "write http://localhost:50051", 2),
    ];
    for (endpoint, remedy, code) in cases {
        let ran = desk.run(&["get", "demo", "--endpoint", &endpoint]);
        assert_eq!(ran.code, code, "{endpoint}: {ran:?}");
        assert!(ran.err.contains(remedy), "{remedy}: {ran:?}");
    }
    let help = desk.ok(&["get", "--help"]);
    let (own, every) = help.split_once("Options of every command").expect("they are apart");
    assert!(own.contains("--after") && !own.contains("--endpoint"), "{help}");
    assert!(every.contains("--endpoint") && every.contains("--json") && !every.contains("--after"), "{help}");
    // What is for tests is no setting.
    fs::write(desk.file("ledgerd.toml"), "no_such_key = 1\n").unwrap();
    let mut command = ledgerd();
    command.arg("--config").arg(desk.file("ledgerd.toml"));
    let ran = run(command, b"");
    assert!(ran.code == 2 && ran.err.contains("data_dir") && !ran.err.contains("test_panic"), "{ran:?}");
    desk.node.stop_cleanly();
}

#[test]
fn what_ledgerctl_reads_in_the_environment_is_no_mistake_to_a_node() {
    let mut command = ledgerctl();
    command.args(["append", "--help"]);
    let help = run(command, b"").out;
    let mut command = ledgerd();
    command.arg("--help");
    // Some are the node's own, too.
    let of_node = run(command, b"").out;
    let variables: Vec<_> = help
        .split("[env: ")
        .skip(1)
        .filter_map(|rest| rest.split(['=', ']']).next())
        .filter(|name| name.starts_with("LEDGER_") && !of_node.contains(&format!("[env: {name}")))
        .collect();
    assert!(variables.contains(&"LEDGER_ENDPOINT"), "{help}");
    for name in variables {
        let mut command = ledgerd();
        command.arg("config").env(name, "x");
        let ran = run(command, b"");
        assert_eq!(ran.code, 0, "{name}: {ran:?}");
        let mut command = ledgerd();
        command.arg("config").env(format!("{name}_X"), "x");
        assert_eq!(run(command, b"").code, 2, "{name}_X");
    }
}
