//! `ledgerctl cluster local`, as somebody who tries the ledger out uses it.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Lines},
    path::Path,
    process::{Child, ChildStdout, Stdio},
    sync::mpsc::Receiver,
};

use ledger_tests::{PATIENCE, node::ledgerctl, until};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// A running `cluster local`, and what it said when it was ready.
struct Cluster {
    child: Child,
    events: Lines<BufReader<ChildStdout>>,
    nodes: Vec<Node>,
    /// Where it makes its temporary directory.
    place: TempDir,
}

#[derive(Debug, Clone)]
struct Node {
    name: String,
    endpoint: String,
    pid: Pid,
}

impl Cluster {
    fn start(args: &[&str]) -> Self {
        let place = TempDir::new().unwrap();
        let log = fs::File::create(place.path().join("log")).unwrap();
        fs::create_dir(place.path().join("tmp")).unwrap();
        let mut command = ledgerctl();
        command.args(["--json", "cluster", "local"]).args(args).env("TMPDIR", place.path().join("tmp"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let events = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut cluster = Self { child, events, nodes: Vec::new(), place };
        let ready = cluster.event();
        assert_eq!(ready["event"], "ready");
        cluster.nodes = ready["nodes"].as_array().unwrap().iter().map(node).collect();
        cluster
    }

    fn event(&mut self) -> Value {
        match self.events.next() {
            Some(line) => serde_json::from_str(&line.unwrap()).unwrap(),
            None => panic!("it ended: {}", self.log()),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.path().join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// What is left in the place of temporary directories.
    fn left(&self) -> usize {
        fs::read_dir(self.place.path().join("tmp")).unwrap().count()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the cluster's log:\n{}", self.log());
        }
    }
}

/// An observer of the context `demo`: a `ledgerctl interest join`, and what it prints.
struct Observer {
    child: Child,
    lines: Receiver<Value>,
    known: BTreeSet<String>,
}

impl Observer {
    fn join(endpoints: &str, name: &str) -> Self {
        let mut command = ledgerctl();
        command.args(["--json", "--endpoint", endpoints, "interest", "join", "demo", "--as", name]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap()).lines();
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            out.map_while(Result::ok).try_for_each(|line| sender.send(serde_json::from_str(&line).unwrap()))
        });
        Self { child, lines, known: BTreeSet::new() }
    }

    /// What it is told next; what is said of members is noted.
    fn next(&mut self) -> Value {
        let event = self.lines.recv_timeout(PATIENCE).expect("an event in time");
        let name = |value: &Value| value["observer"].as_str().unwrap().to_owned();
        match event["event"].as_str().unwrap() {
            "members" => self.known = event["members"].as_array().unwrap().iter().map(name).collect(),
            "joined" => {
                self.known.insert(name(&event));
            }
            "left" => {
                self.known.remove(&name(&event));
            }
            _ => {}
        }
        event
    }

    fn meets(&mut self, all: usize) {
        while self.known.len() != all {
            self.next();
        }
    }

    fn hears(&mut self, text: &str) {
        while self.next()["payload"] != text {}
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn node(node: &Value) -> Node {
    Node {
        name: node["node_id"].as_str().unwrap().to_owned(),
        endpoint: node["endpoint"].as_str().unwrap().to_owned(),
        pid: Pid::from_raw(i32::try_from(node["pid"].as_i64().unwrap()).unwrap()).unwrap(),
    }
}

impl Node {
    /// Runs a command against the node; the objects it printed, if it succeeded.
    fn try_run(&self, args: &[&str]) -> Option<Vec<Value>> {
        let (code, answer) = self.run(args);
        (code == 0).then_some(answer)
    }

    fn run(&self, args: &[&str]) -> (i32, Vec<Value>) {
        let output = ledgerctl().args(["--json", "--endpoint", &self.endpoint]).args(args).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let objects = text.lines().map(|line| serde_json::from_str(line).unwrap());
        (output.status.code().unwrap(), objects.collect())
    }

    fn payloads(&self) -> Vec<String> {
        let entries = self.try_run(&["get", "demo"]).unwrap_or_default();
        entries.iter().map(|entry| entry["payload"].as_str().unwrap().to_owned()).collect()
    }
}

fn runs(pid: Pid) -> bool {
    // A process that ended and was not waited for still has its number.
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
    test_kill_process(pid).is_ok() && !stat.contains(") Z ")
}

#[test]
fn a_local_cluster_goes_on_when_the_owner_is_killed_and_leaves_nothing_behind() {
    let mut cluster = Cluster::start(&["--nodes", "3"]);
    let nodes = cluster.nodes.clone();
    assert_eq!(
        nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>(),
        ["node-1", "node-2", "node-3"]
    );
    let append = |node: &Node, payload: &str| {
        until("the append is acknowledged", || {
            node.try_run(&["append", "demo", "facts", payload, "--entry-id", payload])
        })
    };
    append(&nodes[0], "one");
    for node in &nodes {
        until("every node shows it", || (node.payloads() == ["one"]).then_some(()));
    }

    let located = nodes[0].try_run(&["cluster", "locate", "demo"]).unwrap();
    let (killed, others): (Vec<_>, Vec<_>) =
        nodes.iter().partition(|node| located[0]["owner"] == node.name.as_str());
    kill_process(killed[0].pid, Signal::KILL).unwrap();
    let ended = cluster.event();
    assert_eq!((&ended["event"], &ended["node_id"]), (&"ended".into(), &killed[0].name.as_str().into()));
    assert_eq!(ended["signal"], 9);
    append(others[0], "two");
    for node in &others {
        until("every node that is left shows it", || (node.payloads() == ["one", "two"]).then_some(()));
    }
    until("every slot has an owner again", || {
        let (code, status) = others[0].run(&["cluster", "status"]);
        let slots = &status.first()?["slots"];
        // They have an owner, and a copy less than there should be.
        (code == 9 && slots["taking_appends"] == 1024 && slots["short_of_copies"] == 1024).then_some(())
    });

    cluster.signal(Signal::INT);
    let status = until("it ends", || cluster.child.try_wait().unwrap());
    assert!(status.success(), "{status}: {}", cluster.log());
    assert!(nodes.iter().all(|node| !runs(node.pid)));
    assert_eq!(cluster.left(), 0);
}

#[test]
fn observers_go_on_when_the_owner_is_killed() {
    let cluster = Cluster::start(&["--nodes", "3"]);
    let say = |node: &Node, text: &str, reached: usize| {
        until("the broadcast reaches all", || {
            let said = node.try_run(&["interest", "broadcast", "demo", text, "--as", "test"])?;
            (said[0]["reached"] == reached).then_some(())
        });
    };
    let owner = until("there is an owner", || {
        let located = cluster.nodes[0].try_run(&["cluster", "locate", "demo"])?;
        cluster.nodes.iter().find(|node| located[0]["owner"] == node.name.as_str())
    });
    let others: Vec<_> = cluster.nodes.iter().filter(|node| node.name != owner.name).collect();
    let everywhere = format!("{},{}", owner.endpoint, others[0].endpoint);
    let mut observers = [
        Observer::join(&others[0].endpoint, "x"),
        Observer::join(&others[1].endpoint, "y"),
        Observer::join(&everywhere, "z"),
    ];
    for observer in &mut observers {
        observer.meets(3);
    }
    say(others[0], "one", 3);
    for observer in &mut observers {
        observer.hears("one");
    }

    kill_process(owner.pid, Signal::KILL).unwrap();
    say(others[1], "two", 3);
    for observer in &mut observers {
        observer.hears("two");
    }
    for observer in &mut observers {
        observer.meets(3);
    }
    let left = others[1].try_run(&["interest", "leave", "demo", "x"]).unwrap();
    assert_eq!(left[0]["was_there"], true);
    let status = until("it ends", || observers[0].child.try_wait().unwrap());
    assert!(status.success(), "{status}");
    for observer in &mut observers[1..] {
        observer.meets(2);
    }
}

#[test]
fn nodes_do_not_survive_the_one_who_started_them() {
    let mut cluster = Cluster::start(&["--nodes", "2"]);
    cluster.child.kill().unwrap();
    cluster.child.wait().unwrap();
    for node in &cluster.nodes {
        until("the node ends", || (!runs(node.pid)).then_some(()));
    }
    // They stopped as if they had been asked to, though nobody read what they logged.
    let dir = fs::read_dir(cluster.place.path().join("tmp")).unwrap().next().unwrap().unwrap().path();
    for node in &cluster.nodes {
        assert!(!dir.join(&node.name).join("ready.json").exists());
    }
}

#[test]
fn a_directory_that_is_kept_is_the_same_cluster_again() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().display().to_string();
    for round in 1..=2 {
        let mut cluster = Cluster::start(&["--nodes", "2", "--dir", &path, "--", "--hash-suite", "sha256"]);
        let node = &cluster.nodes[round % 2];
        let payload = round.to_string();
        until("the append is acknowledged", || {
            node.try_run(&["append", "demo", "facts", &payload, "--entry-id", &payload])
        });
        until("all is there", || (node.payloads().len() == round).then_some(()));
        assert_eq!(node.try_run(&["contexts"]).unwrap()[0]["hash_suite"], "sha256", "flags reach the nodes");
        cluster.signal(Signal::TERM);
        let status = until("it ends", || cluster.child.try_wait().unwrap());
        assert!(status.success(), "{status}: {}", cluster.log());
    }
    assert!(Path::new(&path).join("cluster.keys").exists());
}
