//! Nodes of a cluster on loopback: real processes, each with a directory and addresses of its own.

pub(super) mod metrics;
mod ports;
pub(super) mod processor;
pub(super) mod wire;

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ledger_client::{Client, Options};
use ledger_core::slot::SLOTS;
use ledger_proto::ledger::v1::{LocateRequest, Location};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use self::{
    metrics::sum,
    ports::free_ports,
    processor::{processor, quiet},
};
use crate::node::beside;

/// How long something that must come about may take.
const TIMEOUT: Duration = Duration::from_mins(2);
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(10);
/// The nodes of a cluster. All are killed when this is dropped.
#[derive(Debug)]
pub(super) struct Nodes {
    list: Vec<Node>,
    seeds: String,
    names: String,
    keys: PathBuf,
    /// Further flags for each.
    flags: Vec<OsString>,
}

/// A node, running or not.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    dir: PathBuf,
    grpc: SocketAddr,
    /// Where others are told that it is, if that is another address.
    pub(super) advertised: Option<SocketAddr>,
    http: SocketAddr,
    gossip: SocketAddr,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    child: Child,
    /// Open as long as this process lives: when it ends, however it does, the node stops.
    _lifeline: Option<ChildStdin>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How the slots stand, by what their owners say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// Slots with an owner.
    pub(super) owned: usize,
    /// Slots that every running node holds as their owner does.
    pub(super) whole: usize,
}

impl Standing {
    /// As it should be.
    pub(super) const ALL: Self = Self { owned: SLOTS as usize, whole: SLOTS as usize };
}

impl Nodes {
    /// Prepares a cluster of three in a directory; nothing runs yet.
    pub(super) fn prepare(dir: &Path, flags: &[OsString]) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)?;
        let keys = dir.join("cluster.keys");
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&keys)?;
        writeln!(file, "{}", BASE64_STANDARD.encode(rand::random::<[u8; 32]>()))?;
        let ports = free_ports(9)?;
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let nodes: Vec<_> = ports
            .chunks_exact(3)
            .enumerate()
            .map(|(index, ports)| {
                let name = format!("node-{}", index + 1);
                let dir = dir.join(&name);
                let [grpc, http, gossip] = [ports[0], ports[1], ports[2]].map(at);
                Node { name, dir, grpc, advertised: None, http, gossip, running: None }
            })
            .collect();
        let list = |of: fn(&Node) -> String| nodes.iter().map(of).collect::<Vec<_>>().join(",");
        let (seeds, names) = (list(|node| node.gossip.to_string()), list(|node| node.name.clone()));
        for node in &nodes {
            fs::create_dir_all(&node.dir)?;
        }
        Ok(Self { list: nodes, seeds, names, keys, flags: flags.to_vec() })
    }

    /// Starts three new nodes, and waits until every slot has an owner and two replicas in step.
    pub(super) async fn start(dir: &Path, flags: &[OsString]) -> anyhow::Result<Self> {
        let mut nodes = Self::prepare(dir, flags)?;
        nodes.start_all().await?;
        Ok(nodes)
    }

    /// Starts those that do not run, and waits until all is in sync.
    pub(super) async fn start_all(&mut self) -> anyhow::Result<()> {
        for node in 0..self.list.len() {
            if self.list[node].running.is_none() {
                self.spawn(node)?;
            }
        }
        for node in 0..self.list.len() {
            self.serves(node).await?;
        }
        self.in_step().await
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn node(&self, node: usize) -> &Node {
        &self.list[node]
    }

    pub(super) fn node_mut(&mut self, node: usize) -> &mut Node {
        &mut self.list[node]
    }

    /// The addresses of all, for a client.
    pub(super) fn endpoints(&self) -> String {
        self.list.iter().map(Node::endpoint).collect::<Vec<_>>().join(",")
    }

    /// A client as users have it: default settings, the addresses of all nodes.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.endpoints(), &Options::default())?)
    }

    /// Starts a node's process.
    pub(super) fn spawn(&mut self, node: usize) -> anyhow::Result<()> {
        let (seeds, names, keys) = (self.seeds.clone(), self.names.clone(), self.keys.clone());
        let node = &mut self.list[node];
        // One of an earlier start would be taken for this one's.
        let _ = fs::remove_file(node.ready_file());
        let mut command = Command::new(beside("ledgerd")?);
        // Settings of the user's own node are not for these.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LEDGER_") || name == "GRPC_PORT" {
                command.env_remove(name);
            }
        }
        let mut flag = |name: &str, value: &OsStr| {
            command.arg(name).arg(value);
        };
        flag("--node-id", node.name.as_ref());
        flag("--data-dir", node.data_dir().as_ref());
        flag("--ready-file", node.ready_file().as_ref());
        flag("--grpc-listen", node.grpc.to_string().as_ref());
        flag("--http-listen", node.http.to_string().as_ref());
        flag("--gossip-listen", node.gossip.to_string().as_ref());
        flag("--seeds", seeds.as_ref());
        flag("--first-nodes", names.as_ref());
        flag("--cluster-key-file", keys.as_ref());
        if let Some(advertised) = node.advertised {
            flag("--grpc-advertise", advertised.to_string().as_ref());
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(node.log_file())?;
        command.arg("--exit-when-stdin-closes").args(&self.flags);
        // A group of its own: Ctrl-C in the terminal is for the measurement, which ends the nodes.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let mut child = command.spawn().context("ledgerd cannot be started")?;
        let lifeline = child.stdin.take();
        node.running = Some(Running { child, _lifeline: lifeline });
        Ok(())
    }

    /// Waits until a node serves.
    pub(super) async fn serves(&mut self, node: usize) -> anyhow::Result<()> {
        let node = &mut self.list[node];
        let begin = Instant::now();
        while !node.ready_file().exists() {
            let running = node.running.as_mut().context("the node was not started")?;
            if let Some(status) = running.child.try_wait()? {
                bail!("{} ended before it served: {status}: {}", node.name, node.last_log());
            }
            ensure!(begin.elapsed() < TIMEOUT, "{} does not serve within {TIMEOUT:?}", node.name);
            sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Ends a node with SIGKILL, and gives when the signal was sent.
    pub(super) fn kill(&mut self, node: usize) -> std::time::Instant {
        let at = std::time::Instant::now();
        self.list[node].running = None;
        at
    }

    /// Ends all nodes with SIGKILL.
    pub(super) fn kill_all(&mut self) {
        for node in &mut self.list {
            node.running = None;
        }
    }

    /// Stops a node with SIGTERM, and waits until it has ended.
    pub(super) async fn stop(&mut self, node: usize) -> anyhow::Result<()> {
        let node = &mut self.list[node];
        let running = node.running.as_mut().context("the node does not run")?;
        let pid = i32::try_from(running.child.id()).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::TERM)?;
        let begin = Instant::now();
        while running.child.try_wait()?.is_none() {
            ensure!(begin.elapsed() < TIMEOUT, "{} does not stop within {TIMEOUT:?}", node.name);
            sleep(Duration::from_millis(5)).await;
        }
        node.running = None;
        Ok(())
    }

    /// Where every slot is, as the nodes say that own them. The slots of a node that does not answer are missing.
    pub(super) async fn owned(&self) -> Vec<Location> {
        let mut all = Vec::new();
        for node in self.list.iter().filter(|node| node.running.is_some()) {
            let locations = node.locations().await.unwrap_or_default();
            all.extend(locations.into_iter().filter(|location| location.owner == node.name));
        }
        all
    }

    pub(super) async fn standing(&self) -> Standing {
        let running: Vec<_> = self.list.iter().filter(|node| node.running.is_some()).collect();
        let owned = self.owned().await;
        let is_whole = |location: &&Location| {
            running.iter().all(|node| {
                let kept = location.replicas.iter().find(|replica| replica.node_id == node.name);
                node.name == location.owner || kept.is_some_and(|replica| replica.in_step)
            })
        };
        let whole = owned.iter().filter(is_whole).count();
        Standing { owned: owned.len(), whole }
    }

    /// Waits until every slot has an owner, and every running node holds what its owner holds.
    pub(super) async fn in_step(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let standing = self.standing().await;
            if standing == Standing::ALL {
                return Ok(());
            }
            ensure!(
                begin.elapsed() < TIMEOUT,
                "after {TIMEOUT:?} {} of {SLOTS} slots have an owner, {} are in step everywhere",
                standing.owned,
                standing.whole
            );
            sleep(LOOK).await;
        }
    }

    /// Waits until every node owns slots again: after a restart they return one after the other.
    pub(super) async fn spread(&self) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let owned = self.owned().await;
            let of = |node: &Node| owned.iter().filter(|location| location.owner == node.name).count();
            let least = usize::from(SLOTS) / self.list.len() / 2;
            if owned.len() == usize::from(SLOTS) && self.list.iter().all(|node| of(node) >= least) {
                return self.in_step().await;
            }
            ensure!(begin.elapsed() < TIMEOUT, "slots do not return to their nodes within {TIMEOUT:?}");
            sleep(LOOK).await;
        }
    }

    /// Processor time of a node's process so far, seconds; 0 if it does not run.
    pub(super) fn processor(&self, node: usize) -> anyhow::Result<f64> {
        self.list[node].running.as_ref().map_or(Ok(0.0), |running| processor(running.child.id()))
    }

    /// Waits until the nodes have little left to do, such as compacting what was written before.
    pub(super) async fn quiet(&self) -> anyhow::Result<()> {
        let ids: Vec<_> =
            self.list.iter().filter_map(|node| Some(node.running.as_ref()?.child.id())).collect();
        quiet(&ids).await
    }
}

impl Node {
    pub(super) fn endpoint(&self) -> String {
        format!("http://{}", self.grpc)
    }

    pub(super) fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn ready_file(&self) -> PathBuf {
        self.dir.join("ready.json")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn last_log(&self) -> String {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        log.lines().last().unwrap_or("it said nothing").to_owned()
    }

    /// A client of this node alone.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        Ok(Client::connect(&self.endpoint(), &Options::default())?)
    }

    /// All slots, as this node sees them.
    pub(super) async fn locations(&self) -> anyhow::Result<Vec<Location>> {
        let mut service = self.client()?.cluster_service();
        let answer = timeout(ANSWER, service.locate(LocateRequest::default())).await??;
        Ok(answer.into_inner().locations)
    }

    /// What the node counts: the sum of all metrics of a name, 0 if there is none.
    pub(super) async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        Ok(sum(&self.metrics().await?, name))
    }

    /// All that the node counts, as Prometheus reads it.
    pub(super) async fn metrics(&self) -> anyhow::Result<String> {
        let read = async {
            let mut stream = TcpStream::connect(self.http).await?;
            stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            anyhow::Ok(answer)
        };
        let answer = timeout(ANSWER, read).await??;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer to GET /metrics")?;
        ensure!(head.contains(" 200 "), "{} does not say what it counts: {head}", self.name);
        Ok(body.to_owned())
    }
}
