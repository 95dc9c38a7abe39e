//! Nodes that form a cluster, and what they say of it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    process::ExitStatus,
    time::{Duration, Instant},
};

use futures::future::join_all;
use ledger_client::ContextId;
use ledger_core::slot::Slot;
use ledger_tests::{PATIENCE, until_async};
use tempfile::TempDir;

use crate::{
    net::{Net, PREFIX},
    node::Node,
};

/// Copies of each entry.
const COPIES: usize = 3;
/// How often a supervisor starts a node again that ends by itself, one time after the other.
const RESTARTS: usize = 5;
/// The exit code of a node that asks to be started again.
const START_AGAIN: i32 = 5;

/// A cluster. Its processes, namespaces, mounts and files go when it is dropped; after a panic its logs stay.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// In the order of their numbers, from 1; those that left stay in the list.
    pub(crate) nodes: Vec<Node>,
    flags: Vec<String>,
    dir: TempDir,
    pub(crate) net: Net,
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
            cluster.nodes.push(Node::new(number, &cluster.net.address(number), files));
        }
        Ok(cluster)
    }

    /// The addresses of nodes as an SDK user gives them.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("http://{}:50051", self.net.address(node.number))).collect()
    }

    /// Starts a node's process; does not wait.
    pub(crate) fn spawn(&mut self, index: usize) {
        let number = self.nodes[index].number;
        let at = |number: u8, port: u16| format!("{}:{port}", self.net.address(number));
        let seeds = [1, 2, 3].map(|number| at(number, 50052)).join(",");
        let keys = self.dir.path().join("keys").to_string_lossy().into_owned();
        let log = std::env::var("LEDGERTEST_NAMESPACES_LOG")
            .unwrap_or_else(|_| "info,ledger_cluster=debug".to_owned());
        let (grpc, http, gossip) = (at(number, 50051), at(number, 50080), at(number, 50052));
        let flags = [
            ["--cluster", "namespaces"],
            ["--cluster-key-file", &keys],
            ["--seeds", &seeds],
            ["--first-nodes", "node-1,node-2,node-3"],
            ["--grpc-listen", &grpc],
            ["--http-listen", &http],
            ["--gossip-listen", &gossip],
            ["--log", &log],
            ["--lanes", "1"],
            ["--block-cache", "32MiB"],
            ["--write-buffer", "8MiB"],
        ];
        let flags: Vec<_> =
            flags.as_flattened().iter().map(|flag| (*flag).to_owned()).chain(self.flags.clone()).collect();
        self.nodes[index].spawn(&self.net.namespace(number), &flags);
    }

    /// Waits until a node that was started serves.
    pub(crate) async fn serves(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if let Err(status) = node.serves().await {
            panic!("{} ended with {status}:\n{}", node.name, node.log_tail());
        }
    }

    /// Starts a node and waits until it serves.
    pub(crate) async fn start(&mut self, index: usize) {
        self.spawn(index);
        self.serves(index).await;
    }

    /// Starts a node as a supervisor does, again if it asks for that, and waits until it serves. How often it asked; or how
    /// it ended, if it must not be started again as it is.
    pub(crate) async fn supervise(&mut self, index: usize) -> Result<usize, ExitStatus> {
        for restarts in 0..=RESTARTS {
            self.spawn(index);
            match self.nodes[index].serves().await {
                Ok(()) => return Ok(restarts),
                Err(status) if status.code() == Some(START_AGAIN) => {}
                Err(status) => return Err(status),
            }
        }
        let node = &self.nodes[index];
        panic!("{} asked {RESTARTS} times to be started again:\n{}", node.name, node.log_tail());
    }

    /// Whether a node says that it cannot write.
    pub(crate) async fn is_full(&self, index: usize) -> bool {
        self.metric(index, "ledger_store_writable").await == Some(0.0)
    }

    /// The value of a node's metric, if it answers.
    pub(crate) async fn metric(&self, index: usize, name: &str) -> Option<f64> {
        let node = &self.nodes[index];
        node.metric(&self.net.address(node.number), name).await
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
                let locations = self.nodes[index].locate().await.unwrap_or_default();
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
            if let Ok(locations) = self.nodes[index].locate().await {
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

    pub(crate) async fn is_settled(&self) -> Result<(), String> {
        let running = self.running();
        let names: Vec<_> = running.iter().map(|index| self.nodes[*index].name.as_str()).collect();
        let asked = join_all(running.iter().map(|index| async {
            let node = &self.nodes[*index];
            (node.alive().await, node.locate().await)
        }));
        let mut told = Vec::new();
        for (name, (alive, located)) in names.iter().zip(asked.await) {
            let mut alive = alive.map_err(|why| format!("{name}: {why}"))?;
            // node-10 comes before node-2.
            alive.sort_by_key(|name| self.nodes.iter().position(|node| node.name == *name));
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
        let locations = self.nodes[owner].locate().await.unwrap();
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
        if std::thread::panicking() {
            self.keep();
        }
        // They end before their network and their files do.
        self.nodes.clear();
    }
}
