//! A cluster of nodes, each a process of its own, on the loopback network.

use std::{
    net::{SocketAddr, UdpSocket},
    path::PathBuf,
};

use tempfile::TempDir;

use crate::{Node, node::Refused, until};

/// A cluster of `ledgerd` processes. Killed when dropped.
#[derive(Debug)]
pub struct Cluster {
    data: TempDir,
    gossip: Vec<SocketAddr>,
    flags: Vec<String>,
    first_nodes: String,
    /// The nodes that run.
    pub nodes: Vec<Option<Node>>,
}

/// Slots there are.
const SLOTS: f64 = 1024.0;

impl Cluster {
    /// Starts so many nodes with these flags, and waits until all slots have an owner and all their copies.
    pub fn start(count: usize, flags: &[&str]) -> Self {
        let mut cluster = Self {
            data: TempDir::new().unwrap(),
            gossip: Vec::new(),
            flags: flags.iter().map(ToString::to_string).collect(),
            first_nodes: (0..count).map(name).collect::<Vec<_>>().join(","),
            nodes: Vec::new(),
        };
        for _ in 0..count {
            cluster.add();
        }
        cluster.settle();
        cluster
    }

    /// Starts one node more; gives its number.
    pub fn add(&mut self) -> usize {
        // Free when it was asked for: another process may take it, but hardly ever does.
        let free = UdpSocket::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
        self.gossip.push(free);
        self.nodes.push(None);
        let number = self.nodes.len() - 1;
        self.restart(number);
        number
    }

    /// Starts a node on its directory.
    pub fn restart(&mut self, number: usize) {
        self.try_restart(number).unwrap_or_else(|refused| {
            panic!("node {number} ended with {}:\n{}", refused.status, refused.log)
        });
    }

    /// The same; an error if the process ends before it serves.
    pub fn try_restart(&mut self, number: usize) -> Result<(), Refused> {
        let (id, gossip) = (name(number), self.gossip[number].to_string());
        let seeds = self.gossip.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut flags = vec!["--node-id", &id, "--gossip-listen", &gossip, "--seeds", &seeds];
        flags.extend(["--first-nodes", &self.first_nodes, "--gossip-interval", "100ms"]);
        flags.extend(self.flags.iter().map(String::as_str));
        self.nodes[number] = Some(Node::try_start(&self.data_dir(number), &flags)?);
        Ok(())
    }

    /// Where a node keeps its data.
    pub fn data_dir(&self, number: usize) -> PathBuf {
        self.data.path().join(name(number))
    }

    /// kill -9.
    pub fn kill(&mut self, number: usize) {
        self.nodes[number].take().unwrap().kill();
    }

    /// SIGTERM; waits for the end.
    pub fn stop(&mut self, number: usize) {
        self.nodes[number].take().unwrap().stop_cleanly();
    }

    /// A node that runs.
    pub fn node(&self, number: usize) -> &Node {
        self.nodes[number].as_ref().unwrap()
    }

    /// The nodes that run.
    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().flatten()
    }

    /// The sum of a metric over the nodes that run.
    pub fn sum(&self, metric: &str) -> f64 {
        self.running().map(|node| node.metric(metric).unwrap_or_default()).sum()
    }

    /// Waits until every slot takes appends and has all its copies, at every node that runs.
    pub fn settle(&self) {
        until("all slots are owned, and all copies in sync", || {
            let is_settled = self.sum("ledger_cluster_slots_owned") >= SLOTS
                && self.sum("ledger_cluster_replicas_behind") == 0.0
                && self.running().all(|node| node.metric("ledger_cluster_slots_owned") > Some(0.0));
            is_settled.then_some(())
        });
    }
}

/// A node's name.
pub fn name(number: usize) -> String {
    format!("n{number}")
}
