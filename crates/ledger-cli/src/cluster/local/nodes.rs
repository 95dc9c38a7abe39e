//! The nodes as processes: started, listened to, stopped.

use std::{fmt, fs, io::Write as _, os::unix::process::ExitStatusExt as _, path::Path, process::Stdio};

use anyhow::Context as _;
use futures::future::select_all;
use indicatif::ProgressBar;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, ChildStderr, ChildStdin, Command},
};

use super::plan::{Plan, Planned};
use crate::output::visible;

/// The processes.
#[derive(Debug)]
pub(super) struct Nodes(Vec<Process>);

/// A node that was started.
#[derive(Debug)]
pub(super) struct Process {
    /// Its name.
    pub name: String,
    /// Its process id.
    pub pid: u32,
    /// Where it serves, once it does.
    pub ready: Option<Ready>,
    ready_file: std::path::PathBuf,
    child: Child,
    /// Open as long as this process lives: when it ends, however it does, the node stops.
    _lifeline: Option<ChildStdin>,
    has_ended: bool,
}

/// What a node writes to its ready file.
#[derive(Debug, Deserialize)]
pub(super) struct Ready {
    /// Address of gRPC.
    pub grpc: String,
    /// Address of probes, metrics and console.
    pub http: String,
    pid: u32,
}

/// A node that ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Its name.
    pub name: String,
    /// The process id it had.
    pub pid: u32,
    /// Its exit code, if it had one.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
}

impl Nodes {
    /// Starts them all.
    pub(super) fn start(plan: &Plan, bar: &ProgressBar) -> anyhow::Result<Self> {
        plan.nodes.iter().map(|node| Process::start(plan, node, bar)).collect::<Result<_, _>>().map(Self)
    }

    /// The processes, in the order of their names.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Process> {
        self.0.iter()
    }

    /// Whether all of them serve.
    pub(super) fn all_serve(&mut self) -> bool {
        self.0.iter_mut().all(Process::serves)
    }

    /// Whether any of them runs.
    pub(super) fn any_runs(&self) -> bool {
        self.0.iter().any(|process| !process.has_ended)
    }

    /// Where those that run serve gRPC, as URLs.
    pub(super) fn endpoints(&self) -> Vec<String> {
        self.0.iter().filter(|process| !process.has_ended).filter_map(Process::endpoint).collect()
    }

    /// Waits until one more of them ends; for ever if none runs.
    pub(super) async fn next_end(&mut self) -> Ended {
        let running = self.0.iter_mut().filter(|process| !process.has_ended);
        let ends: Vec<_> = running.map(|process| Box::pin(process.end())).collect();
        if ends.is_empty() {
            return std::future::pending().await;
        }
        select_all(ends).await.0
    }

    /// Sends a signal to those that run.
    pub(super) fn send(&self, signal: Signal) {
        for process in &self.0 {
            // No id: it was waited for, and the number may be another process's by now.
            let id = process.child.id().and_then(|id| i32::try_from(id).ok());
            if let Some(pid) = id.and_then(Pid::from_raw) {
                // It may have ended a moment ago.
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// An event with all nodes, as an object.
    pub(super) fn object(&self, event: &str, dir: &Path) -> Value {
        let node = |process: &Process| {
            json!({
                "node_id": process.name,
                "pid": process.pid,
                "endpoint": process.endpoint(),
                "console": process.console(),
            })
        };
        json!({ "event": event, "dir": dir, "nodes": self.0.iter().map(node).collect::<Vec<_>>() })
    }
}

impl Process {
    fn start(plan: &Plan, node: &Planned, bar: &ProgressBar) -> anyhow::Result<Self> {
        let mut command = Command::new(&plan.ledgerd);
        // Settings of the user's own node are not for these.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LEDGER_") || name == "GRPC_PORT" {
                command.env_remove(name);
            }
        }
        command.envs(plan.environment(node)).args(&plan.flags);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        // A group of its own: Ctrl-C in the terminal is for us, and we stop the nodes, once.
        command.process_group(0).kill_on_drop(true);
        // An earlier run may have been killed.
        let ready_file = node.ready_file();
        match fs::remove_file(&ready_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("{} cannot be removed", ready_file.display()));
            }
            _ => {}
        }
        let started = command.spawn();
        let mut child = started.with_context(|| format!("{} cannot be started", plan.ledgerd.display()))?;
        let (lifeline, log) = (child.stdin.take(), child.stderr.take());
        if let Some(log) = log {
            tokio::spawn(show(node.name.clone(), log, bar.clone()));
        }
        let pid = child.id().unwrap_or_default();
        Ok(Self {
            name: node.name.clone(),
            pid,
            ready: None,
            ready_file,
            child,
            _lifeline: lifeline,
            has_ended: false,
        })
    }

    fn serves(&mut self) -> bool {
        if self.ready.is_none() {
            let text = fs::read_to_string(&self.ready_file).ok();
            let ready = text.and_then(|text| serde_json::from_str::<Ready>(&text).ok());
            self.ready = ready.filter(|ready| ready.pid == self.pid);
        }
        self.ready.is_some()
    }

    /// Where it serves gRPC, as a URL.
    pub(super) fn endpoint(&self) -> Option<String> {
        self.ready.as_ref().map(|ready| format!("http://{}", ready.grpc))
    }

    /// Where its console is, as a URL.
    pub(super) fn console(&self) -> Option<String> {
        self.ready.as_ref().map(|ready| format!("http://{}", ready.http))
    }

    async fn end(&mut self) -> Ended {
        let status = self.child.wait().await.ok();
        self.has_ended = true;
        Ended {
            name: self.name.clone(),
            pid: self.pid,
            code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, pid, .. } = self;
        match (self.code, self.signal) {
            (Some(0), _) => write!(f, "{name} (pid {pid}) stopped"),
            (Some(code), _) => write!(f, "{name} (pid {pid}) ended with code {code}"),
            (None, Some(9)) => write!(f, "{name} (pid {pid}) was killed"),
            (None, Some(signal)) => write!(f, "{name} (pid {pid}) was ended by signal {signal}"),
            (None, None) => write!(f, "{name} (pid {pid}) ended"),
        }
    }
}

/// Prints what a node logs, with its name before each line.
async fn show(name: String, log: ChildStderr, bar: ProgressBar) {
    let mut lines = BufReader::new(log).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        // A node logs what clients and other nodes call things.
        let line = visible(&String::from_utf8_lossy(&line));
        // Nobody may read it any more.
        bar.suspend(|| writeln!(std::io::stderr(), "{name} | {line}")).unwrap_or_default();
    }
}
