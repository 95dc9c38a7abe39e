//! A real ledger as a process, and what the tests say often.

use std::{net::SocketAddr, path::Path, time::Duration};

use ledger_client::{Append, Client, ContextId, Entry, Options, ReadFrom, Selection};
use ledger_tests::{Node, node::ledgerd};
use tempfile::TempDir;

/// How long anything may take that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A real ledger, and the directory it uses.
pub(crate) struct Ledger {
    pub node: Node,
    pub dir: TempDir,
}

impl Ledger {
    pub(crate) fn start() -> Self {
        let dir = TempDir::new().unwrap();
        Self { node: Node::start(dir.path()), dir }
    }

    /// On a directory, at an address where another was.
    pub(crate) fn start_at(dir: TempDir, address: SocketAddr) -> Self {
        let mut command = ledgerd();
        command.arg("--data-dir").arg(dir.path());
        command.args(["--grpc-listen", &address.to_string(), "--http-listen", "127.0.0.1:0"]);
        let node = Node::try_run(command)
            .unwrap_or_else(|refused| panic!("ledgerd ended with {}:\n{}", refused.status, refused.log));
        Self { node, dir }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.node.grpc
    }

    pub(crate) fn url(&self) -> String {
        self.node.endpoint()
    }

    pub(crate) fn kill(self) -> TempDir {
        self.node.kill();
        self.dir
    }

    pub(crate) fn stop(self) -> TempDir {
        self.node.stop_cleanly();
        self.dir
    }
}

/// A copy of a data directory: what an operator puts back from a snapshot of the volume.
pub(crate) fn copy(dir: &Path) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for file in std::fs::read_dir(&folder).unwrap() {
            let path = file.unwrap().path();
            let to = copy.path().join(path.strip_prefix(dir).unwrap());
            if path.is_dir() {
                std::fs::create_dir_all(&to).unwrap();
                folders.push(path);
            } else {
                std::fs::copy(&path, &to).unwrap();
            }
        }
    }
    copy
}

/// Polls until there is a value.
pub(crate) async fn until<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(value) = ready().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, polling).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// Fails if something takes too long.
pub(crate) async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

pub(crate) fn context(name: &str) -> ContextId {
    ContextId::new(name).unwrap()
}

#[expect(clippy::needless_pass_by_value, reason = "numbers and texts, as they come")]
pub(crate) fn append(context: &ContextId, payload: impl ToString) -> Append {
    Append::new(context, "facts", payload.to_string()).unwrap()
}

pub(crate) fn payload(entry: &Entry) -> String {
    String::from_utf8(entry.payload.to_vec()).unwrap()
}

/// All payloads of a context, with sequences checked to have no gap.
pub(crate) async fn payloads(client: &Client, context: &ContextId) -> Vec<String> {
    let selection = Selection { read_from: ReadFrom::Owner, ..Selection::default() };
    let entries = in_time("reading", client.get(context, selection).collect()).await.unwrap();
    for (index, entry) in entries.iter().enumerate() {
        assert_eq!(entry.sequence.0, index as u64 + 1);
    }
    entries.iter().map(payload).collect()
}

pub(crate) fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|number| number.to_string()).collect()
}

/// Options for tests of what fails: the time is up soon.
pub(crate) fn hasty(timeout: Duration) -> Options {
    Options { timeout, ..Options::default() }
}
