//! A node as a process of its own.

use std::{
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::{Rpc, binary, until};

/// A running `ledgerd`. Killed when dropped.
#[derive(Debug)]
pub struct Node {
    child: Child,
    /// Holds the log and the ready file; never the data.
    files: TempDir,
    /// Where gRPC is served.
    pub grpc: SocketAddr,
    /// Where probes, metrics and console are served.
    pub http: SocketAddr,
}

/// A node that did not start.
#[derive(Debug)]
pub struct Refused {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub log: String,
}

/// A node that ended when it was told to.
#[derive(Debug)]
pub struct Stopped {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub log: String,
}

/// `ledgerd` with a clean environment.
pub fn ledgerd() -> Command {
    clean(Command::new(binary("ledgerd")))
}

/// Bytes of memory that a process takes.
pub fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.map_or(0, |line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or_default() << 10)
}

/// `ledgerctl` with a clean environment.
pub fn ledgerctl() -> Command {
    clean(Command::new(binary("ledgerctl")))
}

fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LEDGER") || name == "GRPC_PORT" {
            command.env_remove(name);
        }
    }
    command
}

impl Node {
    /// Starts a node on a directory, with free ports, and waits until it serves.
    pub fn start(data: &Path) -> Self {
        Self::start_with(data, &[])
    }

    /// The same with further flags.
    pub fn start_with(data: &Path, flags: &[&str]) -> Self {
        Self::try_start(data, flags)
            .unwrap_or_else(|refused| panic!("ledgerd ended with {}:\n{}", refused.status, refused.log))
    }

    /// The same; an error if the process ends before it serves.
    pub fn try_start(data: &Path, flags: &[&str]) -> Result<Self, Refused> {
        let mut command = ledgerd();
        command.arg("--data-dir").arg(data);
        command.args(["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]).args(flags);
        Self::try_run(command)
    }

    /// Runs a command that becomes a node.
    pub fn try_run(mut command: Command) -> Result<Self, Refused> {
        let files = TempDir::new().unwrap();
        let ready = files.path().join("ready.json");
        let log = File::create(files.path().join("log")).unwrap();
        command.arg("--ready-file").arg(&ready);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut child = command.spawn().unwrap();
        let served = until("the node serves", || {
            if let Some(status) = child.try_wait().unwrap() {
                return Some(Err(status));
            }
            // Half-written is not ready yet.
            let text = fs::read_to_string(&ready).ok()?;
            serde_json::from_str::<serde_json::Value>(&text).ok().map(Ok)
        });
        let ready = match served {
            Ok(ready) => ready,
            Err(status) => return Err(Refused { status, log: read_log(files.path()) }),
        };
        assert_eq!(ready["pid"], child.id(), "the ready file names the process");
        let address = |name: &str| ready[name].as_str().unwrap().parse().unwrap();
        Ok(Self { grpc: address("grpc"), http: address("http"), child, files })
    }

    /// Its services.
    pub async fn rpc(&self) -> Rpc {
        Rpc::connect(self.grpc).await
    }

    /// Where its gRPC services are, as a URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// What it printed so far.
    pub fn log(&self) -> String {
        read_log(self.files.path())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the HTTP port; the body of the answer.
    pub fn http_get(&self, path: &str) -> String {
        use std::io::{Read as _, Write as _};
        let mut stream = std::net::TcpStream::connect(self.http).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").map_or(answer.clone(), |(_, body)| body.to_owned())
    }

    /// The value of a metric without labels, if it is there.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.http_get("/metrics");
        let line = text.lines().find(|line| line.split_once(' ').is_some_and(|(key, _)| key == name))?;
        line.split_once(' ')?.1.trim().parse().ok()
    }

    /// What `ledgerctl` printed that was pointed at this node, and how it ended: the code, and both outputs.
    pub fn ctl(&self, args: &[&str]) -> (i32, String, String) {
        let mut command = ledgerctl();
        command.args(args).env("LEDGER_ENDPOINT", self.endpoint()).stdin(Stdio::null());
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// kill -9: no chance to write anything more.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Sends SIGTERM.
    pub fn signal_to_stop(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(self) -> Stopped {
        self.signal_to_stop();
        self.wait()
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Stopped {
        let status = until("the node ends", || self.child.try_wait().unwrap());
        Stopped { status, log: self.log() }
    }

    /// Sends SIGTERM, waits for the end and checks that it was a good one.
    pub fn stop_cleanly(self) {
        let stopped = self.stop();
        assert!(stopped.status.success(), "ledgerd ended with {}:\n{}", stopped.status, stopped.log);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("the node's log:\n{log}");
        } else {
            assert!(!log.contains(WAITED_ON_WORKER), "the node's log:\n{log}");
        }
    }
}

/// What a node logs that waited for the store where it must not.
const WAITED_ON_WORKER: &str = "runs on a worker of the runtime";

fn read_log(files: &Path) -> String {
    let path: PathBuf = files.join("log");
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
