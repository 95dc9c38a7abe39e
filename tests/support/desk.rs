//! `ledgerctl` as a user types it, and a node beside.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{Node, node::ledgerctl};

/// A node and a user with an empty directory.
#[derive(Debug)]
pub struct Desk {
    /// The node.
    pub node: Node,
    /// Its data.
    pub data: TempDir,
    /// The directory the user is in.
    pub files: TempDir,
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Ran {
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Desk {
    /// A new node, on nothing.
    #[expect(clippy::new_without_default, reason = "it starts a process")]
    pub fn new() -> Self {
        let data = TempDir::new().unwrap();
        Self { node: Node::start(data.path()), data, files: TempDir::new().unwrap() }
    }

    /// A file in the user's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// A command, not yet run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = ledgerctl();
        command.args(args).env("LEDGER_ENDPOINT", self.node.endpoint()).current_dir(self.files.path());
        // What is first seen is kept there, and not with the user who runs the tests.
        command.env("XDG_STATE_HOME", self.files.path().join("state"));
        command
    }

    /// Runs a command.
    pub fn run(&self, args: &[&str]) -> Ran {
        run(self.command(args), b"")
    }

    /// Runs a command that must succeed; what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, b"")
    }

    /// The same with something on standard input.
    pub fn ok_with(&self, args: &[&str], input: &[u8]) -> String {
        let ran = run(self.command(args), input);
        assert_eq!(ran.code, 0, "{args:?}: {ran:#?}");
        ran.out
    }

    /// The objects that a command with `--json` printed, one a line.
    pub fn json(&self, args: &[&str]) -> Vec<Value> {
        let out = self.ok(&[args, &["--json"]].concat());
        out.lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
            .collect()
    }
}

/// Runs a command with something on standard input.
pub fn run(mut command: Command, input: &[u8]) -> Ran {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads no input may have ended.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code().expect("it was not killed"),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// "line 1", "line 2", …
pub fn lines(count: usize) -> String {
    (1..=count).map(|n| format!("line {n}")).collect::<Vec<_>>().join("\n")
}
