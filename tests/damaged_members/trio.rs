//! Three nodes, each a process, and how their disks are damaged.

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::UdpSocket,
    path::{Path, PathBuf},
};

use ledger_core::{ContextId, digest::Bucket, slot::Slot};
use ledger_proto::{
    context::v1::AppendRequest,
    ledger::v1::{
        ForksRequest, LocateRequest, Location, cluster_service_client::ClusterServiceClient,
        integrity_service_client::IntegrityServiceClient,
    },
};
use ledger_tests::{Node, Rpc, load::payload, node::ledgerd, until_async};
use tempfile::TempDir;
use tonic::transport::Channel;

pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];
/// Three nodes, each a process.
pub(crate) struct Trio {
    dir: TempDir,
    gossip: Vec<String>,
    flags: Vec<String>,
    pub(crate) nodes: Vec<Option<Node>>,
}

impl Trio {
    pub(crate) fn start(flags: &[&str]) -> Self {
        // Taken one after the other, so that they differ.
        let sockets: Vec<_> = NAMES.iter().map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let gossip = sockets.iter().map(|socket| socket.local_addr().unwrap().to_string()).collect();
        drop(sockets);
        let flags = flags.iter().map(ToString::to_string).collect();
        let mut trio = Self { dir: TempDir::new().unwrap(), gossip, flags, nodes: Vec::new() };
        for index in 0..NAMES.len() {
            trio.nodes.push(None);
            trio.begin(index);
        }
        trio
    }

    pub(crate) fn data(&self, index: usize) -> PathBuf {
        self.dir.path().join(NAMES[index])
    }

    pub(crate) fn try_begin(&mut self, index: usize) -> Result<(), String> {
        let mut command = ledgerd();
        command.arg("--data-dir").arg(self.data(index));
        command.args(["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--lanes", "1"]);
        command.args(["--insecure-gossip", "--node-id", NAMES[index], "--first-nodes", "a,b,c"]);
        command.args(["--gossip-listen", &self.gossip[index], "--seeds", &self.gossip.join(",")]);
        command.args(["--gossip-interval", "100ms", "--anti-entropy-interval", "500ms"]);
        command.args(["--placement-grace", "3s", "--block-cache", "1KiB", "--write-buffer", "8MiB"]);
        command.args(&self.flags);
        match Node::try_run(command) {
            Ok(node) => {
                self.nodes[index] = Some(node);
                Ok(())
            }
            Err(refused) => Err(refused.log),
        }
    }

    pub(crate) fn begin(&mut self, index: usize) {
        self.try_begin(index).unwrap_or_else(|log| panic!("node {} did not start:\n{log}", NAMES[index]));
    }

    pub(crate) fn node(&self, index: usize) -> &Node {
        self.nodes[index].as_ref().unwrap()
    }

    pub(crate) fn kill(&mut self, index: usize) {
        self.nodes[index].take().unwrap().kill();
    }

    /// Each node is started again after it was closed well: what it holds is in table files, and in no cache.
    pub(crate) async fn forget(&mut self, contexts: &[&str]) {
        for index in 0..NAMES.len() {
            self.nodes[index].take().unwrap().stop_cleanly();
            self.begin(index);
            self.in_step(contexts).await;
        }
    }

    pub(crate) async fn located(&self, at: usize, context: &str) -> Option<Location> {
        let channel = Channel::from_shared(self.node(at).endpoint()).unwrap().connect().await.ok()?;
        let request = LocateRequest { context_ids: vec![context.to_owned()], ..LocateRequest::default() };
        let answer = ClusterServiceClient::new(channel).locate(request).await.ok()?;
        answer.into_inner().locations.pop()
    }

    /// The owner of a context, whom all nodes that run agree on; with all members in step if they must be.
    pub(crate) async fn owner(&self, context: &str, all_in_step: bool) -> usize {
        until_async(&format!("an owner of {context}"), async || {
            let mut owner = None;
            for at in (0..NAMES.len()).filter(|at| self.nodes[*at].is_some()) {
                let location = self.located(at, context).await?;
                let named = NAMES.iter().position(|name| *name == location.owner)?;
                if owner.is_some_and(|owner| owner != named) {
                    return None;
                }
                owner = Some(named);
            }
            let owner = owner?;
            let location = self.located(owner, context).await?;
            let in_step = location.replicas.iter().filter(|replica| replica.in_step).count();
            (!all_in_step || in_step == NAMES.len()).then_some(owner)
        })
        .await
    }

    pub(crate) async fn in_step(&self, contexts: &[&str]) {
        for context in contexts {
            self.owner(context, true).await;
        }
    }

    pub(crate) async fn rpc(&self, index: usize) -> Rpc {
        self.node(index).rpc().await
    }

    /// Appends an entry with an id of its own through a node, whatever owner there is by then; gives its sequence.
    pub(crate) async fn append(&self, at: usize, context: &str, number: u64) -> u64 {
        let rpc = self.rpc(at).await;
        until_async(&format!("entry {number} of {context}"), async || {
            Some(rpc.append(request(context, number)).await.ok()?.entry?.sequence)
        })
        .await
    }

    /// How often nodes have left a history of a context.
    pub(crate) async fn forks(&self, context: &str) -> usize {
        self.forked(context).await.len()
    }

    /// How many entries each fork has.
    pub(crate) async fn forked(&self, context: &str) -> Vec<u64> {
        let mut forks = Vec::new();
        for at in 0..NAMES.len() {
            let request = ForksRequest { context_id: context.to_owned(), ..ForksRequest::default() };
            let channel = Channel::from_shared(self.node(at).endpoint()).unwrap().connect().await.unwrap();
            let answer = IntegrityServiceClient::new(channel).forks(request).await.unwrap();
            forks.extend(answer.into_inner().forks.into_iter().map(|fork| fork.entry_count));
        }
        forks
    }

    pub(crate) fn damaged(&self, index: usize) -> Option<f64> {
        self.node(index).metric("ledger_store_quarantined_contexts")
    }

    /// Everything acknowledged is readable through every node, and at every node by itself.
    pub(crate) async fn all_have(&self, context: &str, entries: u64) {
        for (index, name) in NAMES.iter().enumerate() {
            let rpc = self.rpc(index).await;
            for (rpc, by) in [(rpc.clone(), "through"), (rpc.from_itself(), "by")] {
                until_async(&format!("{context} {by} {name}"), async || {
                    let read = rpc.entries(context, 0).await.ok()?;
                    let is_right = |(entry, number): (&ledger_proto::context::v1::Entry, u64)| {
                        entry.sequence == number && entry.payload == payload(number)
                    };
                    let is_whole = read.len() as u64 == entries && read.iter().zip(1..).all(is_right);
                    assert!(
                        read.iter().zip(1..).all(is_right),
                        "{context} at {name} has other entries than were acknowledged"
                    );
                    is_whole.then_some(())
                })
                .await;
            }
        }
    }
}

pub(crate) fn request(context: &str, number: u64) -> AppendRequest {
    AppendRequest {
        context_id: context.to_owned(),
        key: "facts".to_owned(),
        payload: payload(number),
        entry_id: format!("entry-{number}"),
        ..AppendRequest::default()
    }
}

/// Two contexts of one bucket: where one grows, the other is compared.
pub(crate) fn neighbours() -> (String, String) {
    let place = |name: &str| {
        let context = ContextId::new(name).unwrap();
        (Slot::of(&context), Bucket::of(&context))
    };
    let damaged = "damaged".to_owned();
    let other =
        (0..100_000_000).map(|number| format!("other-{number}")).find(|name| place(name) == place(&damaged));
    (damaged, other.unwrap())
}

/// The table files of a family.
fn tables(data: &Path, family: &str) -> Vec<PathBuf> {
    let mark = format!("name{family}");
    let files = fs::read_dir(data.join("db")).unwrap().flatten().map(|file| file.path());
    let is_of = |path: &PathBuf| {
        let is_table = path.extension().is_some_and(|extension| extension == "sst");
        // In the properties, where keys that begin alike are stored from where they differ. One may be compacted away.
        let is_marked = |bytes: Vec<u8>| bytes.windows(mark.len()).any(|window| window == mark.as_bytes());
        is_table && fs::read(path).is_ok_and(is_marked)
    };
    files.filter(is_of).collect()
}

/// Flips a bit in the first data block of each table file of a family, in place, as a running node has it open. Gives how
/// many files there were.
pub(crate) fn flip(data: &Path, family: &str) -> usize {
    let files = tables(data, family);
    for path in &files {
        let mut table = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        table.seek(SeekFrom::Start(40)).unwrap();
        table.read_exact(&mut byte).unwrap();
        byte[0] ^= 0x10;
        table.seek(SeekFrom::Start(40)).unwrap();
        table.write_all(&byte).unwrap();
    }
    files.len()
}

/// Cuts each table file of a family to half, in place, as a running node has it open. Gives how many files there were.
pub(crate) fn truncate(data: &Path, family: &str) -> usize {
    let files = tables(data, family);
    for path in &files {
        let table = fs::File::options().write(true).open(path).unwrap();
        let bytes = table.metadata().unwrap().len();
        table.set_len(bytes / 2).unwrap();
    }
    files.len()
}
