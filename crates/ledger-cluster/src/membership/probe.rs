//! Whether somebody else runs under this node's name, asked before the name is taken.
//!
//! A second process of one name makes the first one step back, so a mistake (a copied configuration) must show at the second. Who
//! may know is asked: seeds, and the nodes that were there last. Whoever they name is asked itself, because they do not notice at
//! once that a node ended; only what answers for itself, from another directory or another machine, keeps this node
//! from its start. A restart waits for none of it: with the same directory on the same machine the lock shows that nobody
//! else has it.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use ledger_core::node::{ClusterId, NodeId, StorageId};
use tokio::{
    net::UdpSocket,
    time::{Instant, sleep_until, timeout_at},
};

use super::MembershipConfig;
use crate::{
    membership::gossip::{
        MAX_DATAGRAM,
        identity_message::{IdentityMessage, RunningNode},
    },
    membership::seal::Sealer,
    membership::seeds::{Resolver, Seeds},
};

/// How long to wait for the first answer of those who may know.
const FIRST_TIMEOUT: Duration = Duration::from_millis(300);
/// How long others may take after the first answer.
const FURTHER_TIMEOUT: Duration = Duration::from_millis(50);
/// How long whoever is named may take to answer for itself, and how often it is asked meanwhile.
const SELF_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The socket with which is asked.
struct Probe<'a> {
    socket: UdpSocket,
    sealer: Sealer,
    node: &'a NodeId,
    number: u64,
}

/// Who runs under this node's name, if it answers. Failing to ask is no reason not to start.
pub(super) async fn find_namesake(
    config: &MembershipConfig,
    storage: StorageId,
    cluster: Option<ClusterId>,
) -> Option<RunningNode> {
    let listen = config.gossip_listen;
    let socket = UdpSocket::bind((listen.ip(), 0)).await.ok()?;
    let sealer = Sealer::new(&config.cluster_id, config.keyring.clone());
    let probe = Probe { socket, sealer, node: &config.node_id, number: getrandom::u64().ok()? };
    let seeds = Seeds::parse(&config.seeds).ok()?;
    let mut asked: BTreeSet<SocketAddr> = seeds.addresses().chain(config.known.iter().copied()).collect();
    let begun = Instant::now();
    if seeds.has_names() {
        let mut resolver = Resolver::new(&seeds, listen);
        asked.extend(timeout_at(begun + FIRST_TIMEOUT, resolver.resolve()).await.unwrap_or_default());
    }
    let advertised = config.gossip_advertise.unwrap_or(listen);
    let is_me = |address: &SocketAddr| address.ip() == advertised.ip() && address.port() == advertised.port();
    asked.retain(|address| !is_me(address) && (address.is_ipv4() || !listen.is_ipv4()));
    // On this machine, with this directory: it was this node, before. The lock of the directory says that it has ended.
    let is_before = |found: &RunningNode| found.storage == storage && found.gossip.ip() == advertised.ip();
    let named = probe.named(&asked, cluster).await.into_iter();
    for found in named.filter(|found| !is_before(found) && !is_me(&found.gossip)) {
        if let Some(itself) = probe.itself(found.gossip, cluster).await
            && !is_before(&itself)
        {
            return Some(itself);
        }
    }
    None
}

impl Probe<'_> {
    /// Whom those who may know name; one of each address.
    async fn named(&self, asked: &BTreeSet<SocketAddr>, cluster: Option<ClusterId>) -> Vec<RunningNode> {
        for address in asked {
            self.ask(*address).await;
        }
        let mut named: Vec<RunningNode> = Vec::new();
        let (mut answers, mut until) = (0, Instant::now() + FIRST_TIMEOUT);
        while answers < asked.len() {
            let Some(found) = self.answer(until, cluster).await else { break };
            answers += 1;
            until = until.min(Instant::now() + FURTHER_TIMEOUT);
            if let Some(found) = found
                && named.iter().all(|known| known.gossip != found.gossip)
            {
                named.push(found);
            }
        }
        named
    }

    /// Who answers for itself at an address.
    async fn itself(&self, address: SocketAddr, cluster: Option<ClusterId>) -> Option<RunningNode> {
        let until = Instant::now() + SELF_TIMEOUT;
        while Instant::now() < until {
            self.ask(address).await;
            let again = until.min(Instant::now() + RETRY_PAUSE);
            while let Some(answer) = self.answer(again, cluster).await {
                if let Some(found) = answer.filter(|found| found.is_itself && found.gossip == address) {
                    return Some(found);
                }
            }
        }
        None
    }

    async fn ask(&self, address: SocketAddr) {
        let word = IdentityMessage::WhoIs { number: self.number, node: self.node.clone() };
        if let Ok(datagram) = self.sealer.seal(&word.encode()) {
            // Whoever cannot be reached does not answer.
            let _ = self.socket.send_to(&datagram, address).await;
        }
    }

    /// The next answer; `None`: there is no more in time.
    async fn answer(&self, until: Instant, cluster: Option<ClusterId>) -> Option<Option<RunningNode>> {
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            let len = match timeout_at(until, self.socket.recv_from(&mut buffer)).await {
                Err(_) => return None,
                Ok(Ok((len, _))) => len,
                // What a peer that is not there caused.
                Ok(Err(_)) => {
                    sleep_until(until.min(Instant::now() + Duration::from_millis(5))).await;
                    continue;
                }
            };
            let opened = buffer.get(..len).and_then(|datagram| self.sealer.open_of(datagram).ok());
            let Some((theirs, payload)) = opened else { continue };
            let is_another = cluster.is_some() && theirs.is_some() && theirs != cluster;
            let text = if theirs.is_some() { payload.get(16..) } else { payload.get(..) };
            match text.and_then(IdentityMessage::decode) {
                Some(IdentityMessage::Is { number, found }) if number == self.number && !is_another => {
                    return Some(found);
                }
                _ => {}
            }
        }
    }
}
