//! Removing a node for good: other nodes copy its slots while it lives, and it has left when no slot names it as a
//! member.
//!
//! | the node | announces in gossip | changes when |
//! | --- | --- | --- |
//! | is a member | `leaves=no` | an operator decommissions it → leaving |
//! | is leaving | that it leaves and drains | an operator cancels → member; every slot's owner reports that it is no member → has left |
//! | has left | the same, while it runs | an operator cancels → member |
//!
//! The state is on disk before the node announces it, so a restart continues from there, unless the operator limited
//! it to the current run. The owners move the copies, each slot by a takeover like any other move. If the node dies
//! meanwhile, the cluster loses only its copies.

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

/// The attribute that stores the state in the data directory.
const ATTRIBUTE: &str = "leaving";
/// How often the node asks owners.
const QUERY_INTERVAL: Duration = Duration::from_millis(500);
/// How often it asks when it has left.
const IDLE_QUERY_INTERVAL: Duration = Duration::from_secs(10);
/// How long an owner may take to respond.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many times in a row no owner may name the node before it has left. That is long enough that every node that
/// could still move a copy to it has heard that it leaves, or counts as dead.
const CONFIRMATIONS: u32 = 6;

/// Whether and how a node is being decommissioned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecommissionState {
    /// The mode; `None`: it remains a member.
    pub mode: Option<DecommissionMode>,
    /// Whether the process ends when the node has left.
    pub ends: bool,
    /// Whether no slot names it any more.
    pub has_left: bool,
    /// Whether the state is only in memory: a restarted node is a member again.
    pub until_restart: bool,
}

/// The progress of a decommission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecommissionStatus {
    /// Number of slots that name it as a member.
    pub slots: usize,
    /// Number of slots whose owner did not report whether they do.
    pub unknown: usize,
    /// Number of slots that it owns.
    pub owned: usize,
    /// Number of contexts in the slots that name it.
    pub contexts: u64,
    /// What it waits for.
    pub waits_for: Option<String>,
    /// Whether it has left.
    pub is_done: bool,
}

/// Why a node cannot be decommissioned.
#[derive(Debug, thiserror::Error)]
pub enum DecommissionError {
    /// Too few nodes for the copies would remain.
    #[error("{0}")]
    TooFewNodes(TooFewNodes),
    /// A slot with one member cannot be moved off that member while it is written to.
    #[error(
        "the cluster keeps one copy of each slot, and the only copy is not moved while its node lives: snapshot what this \
         node owns, stop it, and load it into the others; or set copies = 2 on every node first"
    )]
    OneCopy,
    /// The state cannot be written to disk.
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
    /// Number of nodes that would remain.
    pub remaining: usize,
    /// The nodes that would remain.
    pub nodes: Vec<NodeId>,
    /// Number of copies that each slot should have.
    pub replication_factor: usize,
    /// Number of copies that an append needs.
    pub write_quorum: usize,
}

fn names(nodes: &[NodeId]) -> String {
    if nodes.is_empty() {
        return "none".to_owned();
    }
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

impl DecommissionState {
    /// Reads the state from the data directory. Blocks.
    pub(crate) fn read(ledger: &Ledger) -> Result<Self, StoreError> {
        let Some(note) = ledger.node_attribute(ATTRIBUTE)? else { return Ok(Self::default()) };
        let LeavingRecord { fewer, ends, has_left } =
            LeavingRecord::decode(note.as_slice()).map_err(|error| {
                StoreError::Io(format!("the note that the node leaves is malformed: {error}"))
            })?;
        let how = if fewer { DecommissionMode::AllowFewer } else { DecommissionMode::Replaced };
        Ok(Self { mode: Some(how), ends, has_left, until_restart: false })
    }

    /// Writes the state to disk.
    async fn keep(self, ledger: &Ledger) -> Result<(), StoreError> {
        let note = self.mode.filter(|_| !self.until_restart).map(|how| {
            let Self { ends, has_left, .. } = self;
            LeavingRecord { fewer: how == DecommissionMode::AllowFewer, ends, has_left }.encode_to_vec()
        });
        let ledger = ledger.clone();
        let kept =
            ledger_store::blocking::spawn(move || ledger.set_node_attribute(ATTRIBUTE, note.as_deref()))
                .await;
        kept.unwrap_or_else(|error| Err(StoreError::Io(error.to_string())))
    }
}

/// Returns the other nodes that can keep copies and are not leaving.
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
    /// Watches whether this node is being decommissioned.
    pub fn decommission_state(&self) -> watch::Receiver<DecommissionState> {
        self.shared.decommission.subscribe()
    }

    /// Watches the progress of the decommission.
    pub fn decommission_status(&self) -> watch::Receiver<DecommissionStatus> {
        self.shared.decommission_status.subscribe()
    }

    /// Decommissions this node, if enough nodes for the copies remain. The state is on disk when this returns, unless
    /// `until_restart` is set. `ends`: the server is to stop once the node has left.
    ///
    /// # Errors
    /// [`DecommissionError`] if too few nodes would remain, or the state cannot be written to disk.
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
        // Announce this before draining: a node that only hears of draining would still move copies here.
        self.membership.set_decommission(departure.mode);
        self.shared.decommission.send_replace(departure);
        self.drain(true).await;
        Ok(())
    }

    /// Cancels the decommission.
    ///
    /// # Errors
    /// [`StoreError`] if the state cannot be written to disk.
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

/// Runs the decommission: checks its progress, and records when the node has left.
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
            // Unless an operator cancelled it meanwhile.
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

/// Determines the progress.
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
            // As far as this node ever heard, a slot without members was never formed.
            SlotOwner::Nobody(_) => unknown += usize::from(!route.members.is_empty()),
        }
    }
    let requests = others.into_iter().map(|(owner, slots)| async move {
        let answer = ask(shared, &owner).await;
        let answer = answer.inspect_err(
            |reason| tracing::debug!(%owner, reason, "an owner did not say what it keeps where"),
        );
        (slots, answer.ok())
    });
    for (slots, answer) in futures::future::join_all(requests).await {
        let Some((theirs, named)) = answer else {
            unknown += slots.len();
            continue;
        };
        unknown += slots.difference(&theirs).count();
        naming.extend(slots.intersection(&theirs).filter(|slot| named.contains(slot)));
    }
    let contexts = match shared.ledger.digests(naming.iter().copied().collect()).await {
        Ok(digests) => digests.values().map(ledger_core::digest::Digest::count).sum(),
        // The ledger is closed, because the node stops.
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

/// Asks another node which slots it owns, and which of them name this node.
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

/// Returns which slots this node owns, and which of them name another node.
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
