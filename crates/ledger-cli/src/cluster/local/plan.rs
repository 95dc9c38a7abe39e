//! What is started where: directories, addresses, keys.

use std::{
    ffi::OsString,
    fs::{self, OpenOptions},
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ledger_client::ClientError;

use crate::args::Local;

/// The name of the cluster.
const CLUSTER: &str = "local";
/// Copies, if there are as many nodes.
const COPIES: usize = 3;

/// A cluster to be started.
#[derive(Debug)]
pub(super) struct Plan {
    /// What is started.
    pub ledgerd: PathBuf,
    /// Where everything is.
    pub dir: PathBuf,
    /// Whether the directory goes with the cluster.
    pub is_temporary: bool,
    /// The nodes.
    pub nodes: Vec<Planned>,
    /// Whether all that the nodes log is shown.
    pub verbose: bool,
    /// Further flags for each.
    pub flags: Vec<OsString>,
}

/// A node to be started.
#[derive(Debug)]
pub(super) struct Planned {
    /// Its name.
    pub name: String,
    /// Its directory, of data and ready file.
    pub dir: PathBuf,
    grpc: SocketAddr,
    http: SocketAddr,
    gossip: SocketAddr,
}

impl Plan {
    /// Chooses addresses, and makes directories and the cluster's key.
    pub(super) fn make(ledgerd: &Path, dir: &Path, command: &Local) -> anyhow::Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("{} cannot be created", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("{} cannot be used", dir.display()))?;
        write_key(&dir.join(KEYS))?;
        let count = usize::from(command.nodes);
        let gossip = match command.port {
            Some(first) => ports(first, count)?,
            None => free_ports(count)?,
        };
        let (grpc, http) = match command.port {
            Some(first) => (ports(first, count)?, ports(first.saturating_add(command.nodes), count)?),
            None => (vec![0; count], vec![0; count]),
        };
        let at = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut nodes = Vec::new();
        for (index, ((gossip, grpc), http)) in gossip.into_iter().zip(grpc).zip(http).enumerate() {
            let name = format!("node-{}", index + 1);
            let dir = dir.join(&name);
            fs::create_dir_all(&dir).with_context(|| format!("{} cannot be created", dir.display()))?;
            nodes.push(Planned { name, dir, grpc: at(grpc), http: at(http), gossip: at(gossip) });
        }
        let (ledgerd, flags) = (ledgerd.to_owned(), command.flags.clone());
        let is_temporary = command.dir.is_none();
        Ok(Self { ledgerd, dir, is_temporary, nodes, verbose: command.verbose, flags })
    }

    /// The settings of a node, as variables of its environment: flags of the user win over them.
    pub(super) fn environment(&self, node: &Planned) -> Vec<(&'static str, OsString)> {
        let names = self.nodes.iter().map(|node| node.name.as_str()).collect::<Vec<_>>().join(",");
        let seeds = self.nodes.iter().map(|node| node.gossip.to_string()).collect::<Vec<_>>().join(",");
        vec![
            ("LEDGER_CLUSTER", CLUSTER.into()),
            ("LEDGER_NODE_ID", node.name.clone().into()),
            ("LEDGER_DATA_DIR", node.dir.join("data").into()),
            ("LEDGER_READY_FILE", node.ready_file().into()),
            ("LEDGER_GRPC_LISTEN", node.grpc.to_string().into()),
            ("LEDGER_HTTP_LISTEN", node.http.to_string().into()),
            ("LEDGER_GOSSIP_LISTEN", node.gossip.to_string().into()),
            ("LEDGER_SEEDS", seeds.into()),
            ("LEDGER_FIRST_NODES", names.into()),
            ("LEDGER_CLUSTER_KEY_FILE", self.dir.join(KEYS).into()),
            ("LEDGER_COPIES", self.nodes.len().min(COPIES).to_string().into()),
            // Several nodes share the machine.
            ("LEDGER_LANES", "1".into()),
            ("LEDGER_BLOCK_CACHE", "32MiB".into()),
            ("LEDGER_WRITE_BUFFER", "32MiB".into()),
            ("LEDGER_LOG", if self.verbose { "info" } else { "warn" }.into()),
            ("LEDGER_EXIT_WHEN_STDIN_CLOSES", "true".into()),
        ]
    }
}

impl Planned {
    /// Written by the node once it serves.
    pub(super) fn ready_file(&self) -> PathBuf {
        self.dir.join("ready.json")
    }
}

/// The file of the cluster's key.
const KEYS: &str = "cluster.keys";

/// Writes a key of its own for this cluster, unless it has one from an earlier run.
fn write_key(path: &Path) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = match file {
        Ok(mut file) => writeln!(file, "{}", BASE64_STANDARD.encode(rand::random::<[u8; 32]>())),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    };
    written.with_context(|| format!("{} cannot be written", path.display()))
}

fn ports(first: u16, count: usize) -> anyhow::Result<Vec<u16>> {
    let ports: Vec<_> = (first..=u16::MAX).take(count).collect();
    if ports.len() < count {
        return Err(ClientError::Invalid(format!("there are too few ports from --port {first} on")).into());
    }
    Ok(ports)
}

/// UDP ports that nobody uses at the moment: others must know them before a node takes one.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let bind = |_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
    // All at once, so that each is another one.
    let sockets = (0..count).map(bind).collect::<Result<Vec<_>, _>>().context("no UDP port is free")?;
    sockets.iter().map(|socket| Ok(socket.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(nodes: u16, port: Option<u16>) -> Local {
        Local { nodes, dir: None, port, verbose: false, flags: Vec::new() }
    }

    fn variable(plan: &Plan, node: usize, name: &str) -> String {
        let environment = plan.environment(&plan.nodes[node]);
        let value = environment.into_iter().find(|(key, _)| *key == name).unwrap().1;
        value.into_string().unwrap()
    }

    #[test]
    fn nodes_find_each_other_under_one_key() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::make(Path::new("ledgerd"), dir.path(), &command(3, None)).unwrap();
        let seeds = variable(&plan, 0, "LEDGER_SEEDS");
        assert_eq!(seeds.split(',').count(), 3);
        for node in 0..3 {
            assert!(seeds.contains(&variable(&plan, node, "LEDGER_GOSSIP_LISTEN")));
            assert_eq!(variable(&plan, node, "LEDGER_FIRST_NODES"), "node-1,node-2,node-3");
            assert_eq!(variable(&plan, node, "LEDGER_GRPC_LISTEN"), "127.0.0.1:0");
        }
        let file = variable(&plan, 0, "LEDGER_CLUSTER_KEY_FILE");
        let key = fs::read_to_string(&file).unwrap();
        assert_eq!(BASE64_STANDARD.decode(key.trim()).unwrap().len(), 32);
        // Another run on the same directory is the same cluster.
        Plan::make(Path::new("ledgerd"), dir.path(), &command(3, None)).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), key);
    }

    #[test]
    fn ports_follow_the_one_that_is_given() {
        let dir = tempfile::tempdir().unwrap();
        let plan = Plan::make(Path::new("ledgerd"), dir.path(), &command(2, Some(7000))).unwrap();
        for (name, port) in
            [("LEDGER_GRPC_LISTEN", 7001), ("LEDGER_GOSSIP_LISTEN", 7001), ("LEDGER_HTTP_LISTEN", 7003)]
        {
            assert_eq!(variable(&plan, 1, name), format!("127.0.0.1:{port}"), "{name}");
        }
        let few = Plan::make(Path::new("ledgerd"), dir.path(), &command(2, Some(65533))).unwrap_err();
        assert!(few.to_string().contains("--port"), "{few}");
    }

    #[test]
    fn a_small_cluster_has_as_many_copies_as_nodes() {
        let dir = tempfile::tempdir().unwrap();
        for (nodes, copies) in [(1, "1"), (2, "2"), (5, "3")] {
            let plan = Plan::make(Path::new("ledgerd"), dir.path(), &command(nodes, None)).unwrap();
            assert_eq!(variable(&plan, 0, "LEDGER_COPIES"), copies);
        }
    }
}
