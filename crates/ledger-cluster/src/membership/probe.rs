//! Asks whether another process runs under this node's name, before the node takes the name.
//!
//! A second process with a name makes the first one step back, so a mistake (a copied configuration) must be detected
//! by the second. It asks the seeds and the last known nodes. These do not notice at once that a process ended, so it
//! then asks each process they name directly. Only one that responds for itself, from another directory or another
//! machine, prevents this node's start. A restart waits for none of this: on the same machine and directory, the
//! directory's lock proves that no other process uses it.

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

/// How long to wait for the first response of the nodes that may know.
const FIRST_TIMEOUT: Duration = Duration::from_millis(300);
/// How long further responses may take after the first one.
const FURTHER_TIMEOUT: Duration = Duration::from_millis(50);
/// How long a named process may take to respond for itself, and how often it is asked meanwhile.
const SELF_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// The socket that sends the requests.
struct Probe<'a> {
    socket: UdpSocket,
    sealer: Sealer,
    node: &'a NodeId,
    number: u64,
}

/// Returns the process that runs under this node's name, if it responds. If asking fails, the node starts
/// nevertheless.
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
    let mut addresses: BTreeSet<SocketAddr> = seeds.addresses().chain(config.known.iter().copied()).collect();
    let begun = Instant::now();
    if seeds.has_names() {
        let mut resolver = Resolver::new(&seeds, listen);
        addresses.extend(timeout_at(begun + FIRST_TIMEOUT, resolver.resolve()).await.unwrap_or_default());
    }
    let advertised = config.gossip_advertise.unwrap_or(listen);
    let is_me = |address: &SocketAddr| address.ip() == advertised.ip() && address.port() == advertised.port();
    addresses.retain(|address| !is_me(address) && (address.is_ipv4() || !listen.is_ipv4()));
    // On this machine and with this directory it was this node's previous process, and the directory's lock proves
    // that it ended.
    let is_before = |found: &RunningNode| found.storage == storage && found.gossip.ip() == advertised.ip();
    let named = probe.named(&addresses, cluster).await.into_iter();
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
    /// Returns the processes that other nodes name, one for each address.
    async fn named(&self, addresses: &BTreeSet<SocketAddr>, cluster: Option<ClusterId>) -> Vec<RunningNode> {
        for address in addresses {
            self.ask(*address).await;
        }
        let mut named: Vec<RunningNode> = Vec::new();
        let (mut answers, mut until) = (0, Instant::now() + FIRST_TIMEOUT);
        while answers < addresses.len() {
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

    /// Returns the process that responds for itself at an address.
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
            // An unreachable node does not respond, so ignore the error.
            let _ = self.socket.send_to(&datagram, address).await;
        }
    }

    /// Returns the next response; `None`: there is none in time.
    async fn answer(&self, until: Instant, cluster: Option<ClusterId>) -> Option<Option<RunningNode>> {
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            let len = match timeout_at(until, self.socket.recv_from(&mut buffer)).await {
                Err(_) => return None,
                Ok(Ok((len, _))) => len,
                // An absent peer caused this error (ICMP), so continue.
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
