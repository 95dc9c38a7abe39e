//! Leaving for good: other nodes take this one's copies while it lives, and it goes when no slot names it any more.
//!
//! | the node | says in gossip | leaves it when |
//! | --- | --- | --- |
//! | stays | `leaves=no` | an operator has it leave → leaving |
//! | leaving | that it leaves and drains | it is cancelled → stays; every slot's owner says that it is no member → has left |
//! | has left | the same, as long as it runs | it is cancelled → stays |
//!
//! What it is, is on its disk before it is said, so a restart goes on where it was, unless it was to leave until a restart
//! only. The owners move its copies: each slot
//! by a takeover like any other move, so that a node that dies on its way out takes nothing along but its own copies.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ledger_core::{
    node::{Member, NodeId},
    ownership::slot_manager::{DecommissionMode, Event},
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1::{
    LeavingRecord, NamedAnswer, NamedAsk, replica_service_client::ReplicaServiceClient,
};
use ledger_store::{Ledger, StoreError};
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    cluster::Cluster,
    membership::{Readiness, View},
    ownership::routes::{Routes, SlotOwner},
    peers::wire,
    shared::Shared,
};

/// The note that says so, in the data directory.
const ATTRIBUTE: &str = "leaving";
/// How often owners are asked.
const QUERY_INTERVAL: Duration = Duration::from_millis(500);
/// How often when it has left.
const IDLE_QUERY_INTERVAL: Duration = Duration::from_secs(10);
/// How long an owner may take to answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How often nobody must name the node, one time after the other: for so long that whoever had not heard yet that it leaves,
/// and might have moved a copy to it, has heard or is taken for dead.
const CONFIRMATIONS: u32 = 6;

/// Whether a node leaves for good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecommissionState {
    /// How; `None`: it stays.
    pub mode: Option<DecommissionMode>,
    /// The process is to end when it has left.
    pub ends: bool,
    /// Nothing is kept by it any more.
    pub has_left: bool,
    /// It stays when it is started anew: none of this is on its disk.
    pub until_restart: bool,
}

/// How far a node is that leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecommissionStatus {
    /// Slots that name it as a member.
    pub slots: usize,
    /// Slots of which nobody says whether they do.
    pub unknown: usize,
    /// Slots that it owns.
    pub owned: usize,
    /// Contexts of the slots that name it.
    pub contexts: u64,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// It has left.
    pub is_done: bool,
}

/// Why a node does not leave.
#[derive(Debug, thiserror::Error)]
pub enum DecommissionError {
    /// Copies would fall short.
    #[error("{0}")]
    TooFewNodes(TooFewNodes),
    /// A slot with one member cannot be moved off it while it is written.
    #[error(
        "the cluster keeps one copy of each slot, and the only copy is not moved while its node lives: snapshot what this \
         node owns, stop it, and load it into the others; or set copies = 2 on every node first"
    )]
    OneCopy,
    /// It cannot be noted on disk.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Too few nodes would remain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{remaining} nodes would remain that can keep copies ({}), each slot is to have {replication_factor}, and an append needs {write_quorum}: {}",
    names(.nodes),
    if .remaining < .write_quorum {
        "no append would be acknowledged any more, so this is not done, forced or not; start another node first"
    } else {
        "start another node first, or force it to go on with fewer copies"
    }
)]
pub struct TooFewNodes {
    /// How many would remain.
    pub remaining: usize,
    /// Who they are.
    pub nodes: Vec<NodeId>,
    /// How many copies there should be.
    pub replication_factor: usize,
    /// How many an append needs.
    pub write_quorum: usize,
}

fn names(nodes: &[NodeId]) -> String {
    if nodes.is_empty() {
        return "none".to_owned();
    }
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

impl DecommissionState {
    /// Reads what the data directory says. Blocks.
    pub(crate) fn read(ledger: &Ledger) -> Result<Self, StoreError> {
        let Some(note) = ledger.node_attribute(ATTRIBUTE)? else { return Ok(Self::default()) };
        let LeavingRecord { fewer, ends, has_left } =
            LeavingRecord::decode(note.as_slice()).map_err(|error| {
                StoreError::Io(format!("the note that the node leaves is malformed: {error}"))
            })?;
        let how = if fewer { DecommissionMode::AllowFewer } else { DecommissionMode::Replaced };
        Ok(Self { mode: Some(how), ends, has_left, until_restart: false })
    }

    /// Keeps it on disk.
    async fn keep(self, ledger: &Ledger) -> Result<(), StoreError> {
        let note = self.mode.filter(|_| !self.until_restart).map(|how| {
            let Self { ends, has_left, .. } = self;
            LeavingRecord { fewer: how == DecommissionMode::AllowFewer, ends, has_left }.encode_to_vec()
        });
        let ledger = ledger.clone();
        let kept =
            tokio::task::spawn_blocking(move || ledger.set_node_attribute(ATTRIBUTE, note.as_deref())).await;
        kept.unwrap_or_else(|error| Err(StoreError::Io(error.to_string())))
    }
}

/// The other nodes that can keep copies, and stay.
fn remaining(view: &View, me: &NodeId) -> Vec<NodeId> {
    let keeps = view.members.iter().filter(|member| {
        member.is_usable()
            && member.decommission.is_none()
            && member.node_id != *me
            && !matches!(member.readiness, Readiness::ReadOnly | Readiness::Leaving)
    });
    keeps.map(|member| member.node_id.clone()).collect()
}

impl Cluster {
    /// Whether this node leaves for good, from now on.
    pub fn decommission_state(&self) -> watch::Receiver<DecommissionState> {
        self.shared.decommission.subscribe()
    }

    /// How far it is, from now on.
    pub fn decommission_status(&self) -> watch::Receiver<DecommissionStatus> {
        self.shared.decommission_status.subscribe()
    }

    /// Leaves for good, unless copies would fall short: it is on disk when this returns, unless it is until the next start
    /// only. `ends`: whoever runs the node is to end it when it has left.
    pub async fn decommission(
        &self,
        how: DecommissionMode,
        ends: bool,
        until_restart: bool,
    ) -> Result<(), DecommissionError> {
        let known = *self.shared.decommission.borrow();
        if !known.has_left {
            check_decommission(&self.shared, how)?;
        }
        let departure = DecommissionState { mode: Some(how), ends, has_left: known.has_left, until_restart };
        departure.keep(&self.shared.ledger).await?;
        tracing::warn!(node = %self.shared.me.node, ?how, "leaving for good: other nodes take the copies that are here");
        // First that it leaves: who hears only that it drains would give it copies still.
        self.membership.set_decommission(departure.mode);
        self.shared.decommission.send_replace(departure);
        self.drain(true).await;
        Ok(())
    }

    /// Stays after all.
    pub async fn cancel_decommission(&self) -> Result<(), StoreError> {
        DecommissionState::default().keep(&self.shared.ledger).await?;
        tracing::warn!(node = %self.shared.me.node, "staying: the node does not leave any more");
        self.shared.decommission.send_replace(DecommissionState::default());
        self.shared.decommission_status.send_replace(DecommissionStatus::default());
        self.membership.set_decommission(None);
        self.drain(false).await;
        Ok(())
    }
}

fn check_decommission(shared: &Shared, how: DecommissionMode) -> Result<(), DecommissionError> {
    let (replication_factor, write_quorum) = (shared.config.replication_factor, shared.config.write_quorum);
    if replication_factor == 1 {
        return Err(DecommissionError::OneCopy);
    }
    let nodes = remaining(&shared.view.borrow(), &shared.me.node);
    let needed = if how == DecommissionMode::AllowFewer { write_quorum } else { replication_factor };
    if nodes.len() < needed {
        return Err(DecommissionError::TooFewNodes(TooFewNodes {
            remaining: nodes.len(),
            nodes,
            replication_factor,
            write_quorum,
        }));
    }
    Ok(())
}

/// Sees to it that a node that leaves comes to an end.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut departure = shared.decommission.subscribe();
    let first = *departure.borrow_and_update();
    if first.mode.is_some() {
        if first.has_left {
            tracing::warn!(
                "this node has left the cluster for good: it keeps nothing, and may be stopped and removed; to have it back, cancel that \
                 with `ledgerctl cluster decommission NODE --cancel`"
            );
        }
        shared.send_events(vec![Event::Drain(true)]).await;
    }
    let mut times = 0;
    loop {
        let Ok(now) = departure.wait_for(|departure| departure.mode.is_some()).await.map(|now| *now) else {
            return;
        };
        let mut progress = look(&shared, now.mode).await;
        let is_free = progress.slots + progress.unknown + progress.owned == 0;
        times = if is_free { times + 1 } else { 0 };
        if times >= CONFIRMATIONS && !now.has_left {
            let left = DecommissionState { has_left: true, ..now };
            // Unless it was told to stay meanwhile.
            if *departure.borrow() == now {
                match left.keep(&shared.ledger).await {
                    Ok(()) => {
                        tracing::warn!("left: no slot names this node as a member any more");
                        shared.decommission.send_if_modified(|known| {
                            let is_same = *known == now;
                            if is_same {
                                *known = left;
                            }
                            is_same
                        });
                    }
                    Err(error) => progress.waits_for = Some(format!("its disk: {error}")),
                }
            }
        }
        progress.is_done = shared.decommission.borrow().has_left && times >= CONFIRMATIONS;
        shared.decommission_status.send_if_modified(|known| {
            let is_new = *known != progress;
            if is_new {
                known.clone_from(&progress);
            }
            is_new
        });
        sleep(if progress.is_done { IDLE_QUERY_INTERVAL } else { QUERY_INTERVAL }).await;
    }
}

/// How far it is.
async fn look(shared: &Arc<Shared>, how: Option<DecommissionMode>) -> DecommissionStatus {
    let routes = Arc::clone(&shared.routes.borrow());
    let mut others: BTreeMap<NodeId, BTreeSet<Slot>> = BTreeMap::new();
    let (mut naming, mut unknown, mut owned) = (BTreeSet::new(), 0, 0);
    if Slot::new(0).and_then(|slot| routes.get(slot)).is_none() {
        // Nothing is known yet.
        unknown = usize::from(SLOTS);
    }
    for slot in (0..SLOTS).filter_map(Slot::new) {
        let Some(route) = routes.get(slot) else { continue };
        match &route.owner {
            SlotOwner::Me(_) => {
                owned += 1;
                if route.members.iter().any(|member| member.node == shared.me.node) {
                    naming.insert(slot);
                }
            }
            SlotOwner::Other(node, _) => _ = others.entry(node.clone()).or_default().insert(slot),
            // Without members it was never formed, as far as this node ever heard.
            SlotOwner::Nobody(_) => unknown += usize::from(!route.members.is_empty()),
        }
    }
    let asked = others.into_iter().map(|(owner, slots)| async move {
        let answer = ask(shared, &owner).await;
        let answer = answer.inspect_err(
            |reason| tracing::debug!(%owner, reason, "an owner did not say what it keeps where"),
        );
        (slots, answer.ok())
    });
    for (slots, answer) in futures::future::join_all(asked).await {
        let Some((theirs, named)) = answer else {
            unknown += slots.len();
            continue;
        };
        unknown += slots.difference(&theirs).count();
        naming.extend(slots.intersection(&theirs).filter(|slot| named.contains(slot)));
    }
    let contexts = match shared.ledger.digests(naming.iter().copied().collect()).await {
        Ok(digests) => digests.values().map(ledger_core::digest::Digest::count).sum(),
        // It is closed: the node stops.
        Err(_) => 0,
    };
    let waits_for = match how.map(|how| check_decommission(shared, how)) {
        Some(Err(why)) if !naming.is_empty() => Some(why.to_string()),
        _ if unknown > 0 => {
            Some(format!("{unknown} slots have no owner, or it did not say who their members are"))
        }
        _ => None,
    };
    DecommissionStatus { slots: naming.len(), unknown, owned, contexts, waits_for, is_done: false }
}

/// What another node owns, and what of it names this one.
async fn ask(shared: &Shared, owner: &NodeId) -> Result<(BTreeSet<Slot>, BTreeSet<Slot>), String> {
    let to = {
        let view = shared.view.borrow();
        let found = view.get(owner).ok_or("it is not known")?;
        Member { node: found.node_id.clone(), storage: found.storage_id }
    };
    let peer = shared.peers.get(&to).ok_or("it is not known")?;
    let mut client = ReplicaServiceClient::new(shared.peers.channel(&peer)?);
    let ask = NamedAsk { from: Some(wire::to_member(&shared.me)), to: Some(wire::to_member(&to)) };
    let answer =
        timeout(RESPONSE_TIMEOUT, client.named(ask)).await.map_err(|_| "no answer in time".to_owned())?;
    let answer = answer.map_err(|status| status.to_string())?.into_inner();
    let slots = |bytes: &[u8]| wire::slots(bytes).map_err(|error| error.to_string());
    Ok((slots(&answer.owned)?, slots(&answer.naming)?))
}

/// What this node owns, and what of it names another one.
pub(crate) fn named(routes: &Routes, asked_by: &NodeId) -> NamedAnswer {
    let mut owned = BTreeSet::new();
    let mut naming = BTreeSet::new();
    for slot in (0..SLOTS).filter_map(Slot::new) {
        let Some(route) = routes.get(slot).filter(|route| matches!(route.owner, SlotOwner::Me(_))) else {
            continue;
        };
        owned.insert(slot);
        if route.members.iter().any(|member| member.node == *asked_by) {
            naming.insert(slot);
        }
    }
    NamedAnswer { owned: wire::to_slots(&owned), naming: wire::to_slots(&naming) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_fall_short_is_said_in_numbers_with_what_to_do() {
        let node = |name: &str| NodeId::new(name).unwrap();
        let few = |nodes: Vec<NodeId>| {
            TooFewNodes { remaining: nodes.len(), nodes, replication_factor: 3, write_quorum: 2 }.to_string()
        };
        let two = few(vec![node("n-0"), node("n-1")]);
        assert!(two.contains("2 nodes would remain that can keep copies (n-0, n-1)"), "{two}");
        assert!(two.contains("is to have 3") && two.contains("needs 2") && two.contains("force it"), "{two}");
        let one = few(vec![node("n-0")]);
        assert!(one.contains("forced or not") && one.contains("start another node first"), "{one}");
        assert!(few(Vec::new()).contains("(none)"));
    }
}
