//! Nodes as processes, each in a network namespace of its own, and what they say of their cluster.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures::future::join_all;
use ledger_client::ContextId;
use ledger_core::slot::Slot;
use ledger_proto::ledger::v1::{
    LocateRequest, Location, MembersRequest, cluster_service_client::ClusterServiceClient,
};
use ledger_tests::{PATIENCE, binary, until_async};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::{Channel, Endpoint};

use crate::net::{Net, PREFIX, run};

/// Copies of each entry.
const COPIES: usize = 3;
/// How long a node may take to answer one question.
const ANSWER: Duration = Duration::from_secs(2);

/// A cluster. Its processes, namespaces, mounts and files go when it is dropped; after a panic its logs stay.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// In the order of their numbers, from 1; those that left stay in the list.
    pub(crate) nodes: Vec<Node>,
    flags: Vec<String>,
    dir: TempDir,
    pub(crate) net: Net,
}

/// A node, whether it runs or not.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) number: u8,
    pub(crate) name: String,
    process: Option<Child>,
    channel: Channel,
    files: PathBuf,
    /// A small file system holds its data.
    is_small: bool,
}

impl Node {
    /// Whether it was started and not ended since.
    pub(crate) const fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// To its gRPC services; connects when used, and again when broken.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    fn data(&self) -> PathBuf {
        self.files.join("disk/data")
    }

    fn ready_file(&self) -> PathBuf {
        self.files.join("ready.json")
    }

    fn log_file(&self) -> PathBuf {
        self.files.join("log")
    }
}

impl Cluster {
    /// Makes a network with one namespace for each node that will be, and starts none of them.
    pub(crate) fn new(nodes: u8, flags: &[&str]) -> Result<Self, String> {
        let net = Net::new()?;
        // Named as the namespaces are, so that left-overs are found.
        let dir = tempfile::Builder::new().prefix(&format!("{PREFIX}{}-", std::process::id())).tempdir();
        let dir = dir.map_err(|error| format!("no temporary directory: {error}"))?;
        // Any 32 bytes are a key.
        fs::write(dir.path().join("keys"), "bGVkZ2VyLXRlc3RzLW5ldHdvcmstbmFtZXNwYWNlcyE=\n").unwrap();
        let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        let mut cluster = Self { nodes: Vec::new(), flags, dir, net };
        for number in 1..=nodes {
            cluster.net.add(number);
            let files = cluster.dir.path().join(format!("node-{number}"));
            fs::create_dir_all(files.join("disk")).unwrap();
            let endpoint = Endpoint::from_shared(format!("http://{}:50051", cluster.net.address(number)));
            // A connection that a partition cut must not be believed in for long.
            let endpoint = endpoint.unwrap().connect_timeout(ANSWER);
            let endpoint = endpoint.http2_keep_alive_interval(ANSWER).keep_alive_timeout(ANSWER);
            cluster.nodes.push(Node {
                number,
                name: format!("node-{number}"),
                process: None,
                channel: endpoint.keep_alive_while_idle(true).connect_lazy(),
                files,
                is_small: false,
            });
        }
        Ok(cluster)
    }

    /// Gives a node a small file system for its data, before it starts.
    pub(crate) fn make_small(&mut self, index: usize, bytes: usize) -> Result<(), String> {
        let place = self.nodes[index].files.join("disk");
        let size = format!("size={bytes}");
        run("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &place.to_string_lossy()])?;
        self.nodes[index].is_small = true;
        Ok(())
    }

    /// Fills a small file system until nothing more goes in.
    pub(crate) fn fill(&self, index: usize) {
        use std::io::Write as _;
        let mut ballast = File::create(self.ballast(index)).unwrap();
        let block = vec![1; 1 << 12];
        while ballast.write_all(&block).is_ok() {}
    }

    /// Frees what filling took.
    pub(crate) fn free(&self, index: usize) {
        fs::remove_file(self.ballast(index)).unwrap();
    }

    fn ballast(&self, index: usize) -> PathBuf {
        self.nodes[index].files.join("disk/ballast")
    }

    /// The addresses of nodes as an SDK user gives them.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("http://{}:50051", self.net.address(node.number))).collect()
    }

    /// Starts a node's process; does not wait.
    pub(crate) fn spawn(&mut self, index: usize) {
        let node = &self.nodes[index];
        let at = |port: u16| format!("{}:{port}", self.net.address(node.number));
        let seeds: Vec<_> = (1..=3).map(|number| format!("{}:50052", self.net.address(number))).collect();
        let mut command = Command::new("ip");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("LEDGER") || name == "GRPC_PORT" {
                command.env_remove(name);
            }
        }
        // A killed test leaves no node behind.
        command.env("LEDGER_EXIT_WHEN_STDIN_CLOSES", "true").stdin(Stdio::piped());
        command.args(["netns", "exec", &self.net.namespace(node.number)]).arg(binary("ledgerd"));
        command.args(["--cluster", "namespaces", "--node-id", &node.name, "--seeds", &seeds.join(",")]);
        command.args(["--first-nodes", "node-1,node-2,node-3", "--lanes", "1"]);
        let log = std::env::var("LEDGERTEST_NAMESPACES_LOG")
            .unwrap_or_else(|_| "info,ledger_cluster=debug".to_owned());
        command.args(["--log", &log]);
        command.args(["--block-cache", "32MiB", "--write-buffer", "8MiB"]);
        command.args([
            "--grpc-listen",
            &at(50051),
            "--http-listen",
            &at(50080),
            "--gossip-listen",
            &at(50052),
        ]);
        command.arg("--cluster-key-file").arg(self.dir.path().join("keys"));
        command.arg("--data-dir").arg(node.data()).arg("--ready-file").arg(node.ready_file());
        command.args(&self.flags);
        let _ = fs::remove_file(node.ready_file());
        let log = File::options().create(true).append(true).open(node.log_file()).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.nodes[index].process = Some(command.spawn().unwrap());
    }

    /// Waits until a node that was started serves.
    pub(crate) async fn serves(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let (ready, log, name) = (node.ready_file(), node.log_file(), node.name.clone());
        let process = node.process.as_mut().expect("it was started");
        until_async(&format!("{name} serves"), async || {
            if let Some(status) = process.try_wait().unwrap() {
                panic!("{name} ended with {status}:\n{}", tail(&log));
            }
            ready.exists().then_some(())
        })
        .await;
    }

    /// Starts a node and waits until it serves.
    pub(crate) async fn start(&mut self, index: usize) {
        self.spawn(index);
        self.serves(index).await;
    }

    /// kill -9.
    pub(crate) fn kill(&mut self, index: usize) {
        let mut process = self.nodes[index].process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGTERM, and waits for the end, which must be a good one. How long it took.
    pub(crate) async fn stop(&mut self, index: usize) -> Duration {
        let begin = Instant::now();
        let node = &mut self.nodes[index];
        let mut process = node.process.take().expect("it runs");
        kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
        let ended = until_async(&format!("{} stops", node.name), async || process.try_wait().unwrap()).await;
        assert!(ended.success(), "{} ended with {ended}:\n{}", node.name, tail(&node.log_file()));
        begin.elapsed()
    }

    /// Removes the data of a node that does not run.
    pub(crate) fn wipe(&self, index: usize) {
        assert!(!self.nodes[index].runs());
        fs::remove_dir_all(self.nodes[index].data()).unwrap();
    }

    /// Whether a node says that it cannot write.
    pub(crate) async fn is_full(&self, index: usize) -> bool {
        let metrics = self.metrics(index).await.unwrap_or_default();
        metrics.lines().any(|line| line == "ledger_store_writable 0")
    }

    async fn metrics(&self, index: usize) -> std::io::Result<String> {
        let address = format!("{}:50080", self.net.address(self.nodes[index].number));
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// The indices of the nodes that run.
    pub(crate) fn running(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|index| self.nodes[*index].runs()).collect()
    }

    /// The node that owns a context, as a node that runs says; waits until one does.
    pub(crate) async fn owner(&self, context: &ContextId) -> usize {
        let slot = usize::from(Slot::of(context).number());
        until_async(&format!("{context} has an owner"), async || {
            for index in self.running() {
                let locations = locate(&self.nodes[index]).await.unwrap_or_default();
                let owner = locations.get(slot).map(|location| location.owner.clone())?;
                if let Some(found) = self.nodes.iter().position(|node| node.name == owner && node.runs()) {
                    return Some(found);
                }
            }
            None
        })
        .await
    }

    /// How many slots each node owns, as the one that answers first says.
    pub(crate) async fn shares(&self) -> BTreeMap<String, usize> {
        let mut shares = BTreeMap::new();
        for index in self.running() {
            if let Ok(locations) = locate(&self.nodes[index]).await {
                for location in locations {
                    *shares.entry(location.owner).or_default() += 1;
                }
                break;
            }
        }
        shares
    }

    /// Waits until every slot has an owner that all nodes agree on, and all its copies in step. How long it took.
    pub(crate) async fn settled(&self, when: &str) -> Duration {
        let begin = Instant::now();
        loop {
            let Err(why) = self.is_settled().await else { return begin.elapsed() };
            assert!(begin.elapsed() < PATIENCE, "{when}: not all in step within {PATIENCE:?}: {why}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn is_settled(&self) -> Result<(), String> {
        let running = self.running();
        let names: Vec<_> = running.iter().map(|index| self.nodes[*index].name.as_str()).collect();
        let asked = join_all(running.iter().map(|index| async {
            let node = &self.nodes[*index];
            (alive(node).await, locate(node).await)
        }));
        let mut told = Vec::new();
        for (name, (alive, located)) in names.iter().zip(asked.await) {
            let alive = alive.map_err(|why| format!("{name}: {why}"))?;
            if alive != names {
                return Err(format!("{name} hears {alive:?} instead of {names:?}"));
            }
            told.push(located.map_err(|why| format!("{name}: {why}"))?);
        }
        let copies = COPIES.min(running.len());
        let mut wrong = String::new();
        let mut count = 0;
        for slot in 0..told[0].len() {
            let said: Vec<_> =
                told.iter().map(|told| (told[slot].owner.as_str(), told[slot].epoch)).collect();
            let owner = names.iter().position(|name| *name == said[0].0);
            let replicas = owner.map_or(&[][..], |owner| &told[owner][slot].replicas);
            let in_step = replicas.iter().filter(|replica| replica.in_step && replica.alive).count();
            let agreed = said.iter().all(|other| *other == said[0]);
            if !agreed || in_step != copies || replicas.len() != copies {
                count += 1;
                if count <= 3 {
                    let _ = write!(
                        wrong,
                        "\n  slot {slot}: owners {said:?}, {in_step} in step of {:?}; {}",
                        replicas.iter().map(|replica| &replica.node_id).collect::<Vec<_>>(),
                        told[0][slot].reason
                    );
                }
            }
        }
        if count == 0 { Ok(()) } else { Err(format!("{count} slots, such as{wrong}")) }
    }

    /// The members of a context's slot, by their index, as its owner says.
    pub(crate) async fn members(&self, context: &ContextId) -> Vec<usize> {
        let owner = self.owner(context).await;
        let locations = locate(&self.nodes[owner]).await.unwrap();
        let replicas = &locations[usize::from(Slot::of(context).number())].replicas;
        let index = |name: &str| self.nodes.iter().position(|node| node.name == name);
        replicas.iter().filter_map(|replica| index(&replica.node_id)).collect()
    }

    /// Puts logs where they stay, and says where.
    fn keep(&mut self) {
        let place = std::env::temp_dir().join(format!("ledger-namespaces-{}", self.net.namespace(0)));
        let _ = fs::create_dir_all(&place);
        for node in &self.nodes {
            let _ = fs::copy(node.log_file(), place.join(format!("{}.log", node.name)));
        }
        eprintln!("the logs of the nodes are in {}", place.display());
        if std::env::var_os("LEDGERTEST_NAMESPACES_KEEP").is_some() {
            self.dir.disable_cleanup(true);
            eprintln!("all of their files are in {}", self.dir.path().display());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.iter_mut().filter_map(|node| node.process.as_mut()) {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            self.keep();
        }
        for node in self.nodes.iter().filter(|node| node.is_small) {
            let _ = run("umount", &["--lazy", &node.files.join("disk").to_string_lossy()]);
        }
    }
}

/// Where all slots are, as a node says.
async fn locate(node: &Node) -> Result<Vec<Location>, String> {
    let mut service = ClusterServiceClient::new(node.channel()).max_decoding_message_size(64 << 20);
    let answer = tokio::time::timeout(ANSWER, service.locate(LocateRequest::default())).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|status| status.to_string())?;
    Ok(answer.into_inner().locations)
}

/// The nodes that a node hears, itself included.
async fn alive(node: &Node) -> Result<Vec<String>, String> {
    let mut service = ClusterServiceClient::new(node.channel());
    let answer = tokio::time::timeout(ANSWER, service.members(MembersRequest {})).await;
    let answer = answer.map_err(|_| "no answer in time".to_owned())?.map_err(|status| status.to_string())?;
    let members = answer.into_inner().members.into_iter();
    Ok(members.filter(|member| member.alive).map(|member| member.node_id).collect())
}

/// The end of a log.
fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
