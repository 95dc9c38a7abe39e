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
    ownership::slots::{Event, Leaving},
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
    routes::{RouteTo, Routes},
    shared::Shared,
    wire,
};

/// The note that says so, in the data directory.
const NOTE: &str = "leaving";
/// How often owners are asked.
const ASKED_EVERY: Duration = Duration::from_millis(500);
/// How often when it has left.
const SELDOM: Duration = Duration::from_secs(10);
/// How long an owner may take to answer.
const ASKED: Duration = Duration::from_secs(2);
/// How often nobody must name the node, one time after the other: for so long that whoever had not heard yet that it leaves,
/// and might have moved a copy to it, has heard or is taken for dead.
const TIMES: u32 = 6;

/// Whether a node leaves for good.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Departure {
    /// How; `None`: it stays.
    pub how: Option<Leaving>,
    /// The process is to end when it has left.
    pub ends: bool,
    /// Nothing is kept by it any more.
    pub has_left: bool,
    /// It stays when it is started anew: none of this is on its disk.
    pub until_restart: bool,
}

/// How far a node is that leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
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
pub enum CannotLeave {
    /// Copies would fall short.
    #[error("{0}")]
    TooFew(TooFew),
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
    "{remaining} nodes would remain that can keep copies ({}), each slot is to have {copies}, and an append needs {min_copies}: {}",
    names(.nodes),
    if .remaining < .min_copies {
        "no append would be acknowledged any more, so this is not done, forced or not; start another node first"
    } else {
        "start another node first, or force it to go on with fewer copies"
    }
)]
pub struct TooFew {
    /// How many would remain.
    pub remaining: usize,
    /// Who they are.
    pub nodes: Vec<NodeId>,
    /// How many copies there should be.
    pub copies: usize,
    /// How many an append needs.
    pub min_copies: usize,
}

fn names(nodes: &[NodeId]) -> String {
    if nodes.is_empty() {
        return "none".to_owned();
    }
    nodes.iter().map(NodeId::as_str).collect::<Vec<_>>().join(", ")
}

impl Departure {
    /// Reads what the data directory says. Blocks.
    pub(crate) fn read(ledger: &Ledger) -> Result<Self, StoreError> {
        let Some(note) = ledger.note(NOTE)? else { return Ok(Self::default()) };
        let LeavingRecord { fewer, ends, has_left } =
            LeavingRecord::decode(note.as_slice()).map_err(|error| {
                StoreError::Io(format!("the note that the node leaves is malformed: {error}"))
            })?;
        let how = if fewer { Leaving::Fewer } else { Leaving::Replaced };
        Ok(Self { how: Some(how), ends, has_left, until_restart: false })
    }

    /// Keeps it on disk.
    async fn keep(self, ledger: &Ledger) -> Result<(), StoreError> {
        let note = self.how.filter(|_| !self.until_restart).map(|how| {
            let Self { ends, has_left, .. } = self;
            LeavingRecord { fewer: how == Leaving::Fewer, ends, has_left }.encode_to_vec()
        });
        let ledger = ledger.clone();
        let kept = tokio::task::spawn_blocking(move || ledger.keep_note(NOTE, note.as_deref())).await;
        kept.unwrap_or_else(|error| Err(StoreError::Io(error.to_string())))
    }
}

/// The other nodes that can keep copies, and stay.
fn remaining(view: &View, me: &NodeId) -> Vec<NodeId> {
    let keeps = view.members.iter().filter(|member| {
        member.counts()
            && member.leaving.is_none()
            && member.node_id != *me
            && !matches!(member.readiness, Readiness::ReadOnly | Readiness::Leaving)
    });
    keeps.map(|member| member.node_id.clone()).collect()
}

impl Cluster {
    /// Whether this node leaves for good, from now on.
    pub fn departure(&self) -> watch::Receiver<Departure> {
        self.shared.departure.subscribe()
    }

    /// How far it is, from now on.
    pub fn leaving_progress(&self) -> watch::Receiver<Progress> {
        self.shared.leaving.subscribe()
    }

    /// Leaves for good, unless copies would fall short: it is on disk when this returns, unless it is until the next start
    /// only. `ends`: whoever runs the node is to end it when it has left.
    pub async fn leave_for_good(
        &self,
        how: Leaving,
        ends: bool,
        until_restart: bool,
    ) -> Result<(), CannotLeave> {
        let known = *self.shared.departure.borrow();
        if !known.has_left {
            may_leave(&self.shared, how)?;
        }
        let departure = Departure { how: Some(how), ends, has_left: known.has_left, until_restart };
        departure.keep(&self.shared.ledger).await?;
        tracing::warn!(node = %self.shared.me.node, ?how, "leaving for good: other nodes take the copies that are here");
        // First that it leaves: who hears only that it drains would give it copies still.
        self.membership.set_leaving(departure.how);
        self.shared.departure.send_replace(departure);
        self.drain(true).await;
        Ok(())
    }

    /// Stays after all.
    pub async fn stay(&self) -> Result<(), StoreError> {
        Departure::default().keep(&self.shared.ledger).await?;
        tracing::warn!(node = %self.shared.me.node, "staying: the node does not leave any more");
        self.shared.departure.send_replace(Departure::default());
        self.shared.leaving.send_replace(Progress::default());
        self.membership.set_leaving(None);
        self.drain(false).await;
        Ok(())
    }
}

fn may_leave(shared: &Shared, how: Leaving) -> Result<(), CannotLeave> {
    let (copies, min_copies) = (shared.config.copies, shared.config.min_copies);
    if copies == 1 {
        return Err(CannotLeave::OneCopy);
    }
    let nodes = remaining(&shared.view.borrow(), &shared.me.node);
    let needed = if how == Leaving::Fewer { min_copies } else { copies };
    if nodes.len() < needed {
        return Err(CannotLeave::TooFew(TooFew { remaining: nodes.len(), nodes, copies, min_copies }));
    }
    Ok(())
}

/// Sees to it that a node that leaves comes to an end.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut departure = shared.departure.subscribe();
    let first = *departure.borrow_and_update();
    if first.how.is_some() {
        if first.has_left {
            tracing::warn!(
                "this node has left the cluster for good: it keeps nothing, and may be stopped and removed; to have it back, cancel that \
                 with `ledgerctl cluster decommission NODE --cancel`"
            );
        }
        shared.tell(vec![Event::Drain(true)]).await;
    }
    let mut times = 0;
    loop {
        let Ok(now) = departure.wait_for(|departure| departure.how.is_some()).await.map(|now| *now) else {
            return;
        };
        let mut progress = look(&shared, now.how).await;
        let is_free = progress.slots + progress.unknown + progress.owned == 0;
        times = if is_free { times + 1 } else { 0 };
        if times >= TIMES && !now.has_left {
            let left = Departure { has_left: true, ..now };
            // Unless it was told to stay meanwhile.
            if *departure.borrow() == now {
                match left.keep(&shared.ledger).await {
                    Ok(()) => {
                        tracing::warn!("left: no slot names this node as a member any more");
                        shared.departure.send_if_modified(|known| {
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
        progress.is_done = shared.departure.borrow().has_left && times >= TIMES;
        shared.leaving.send_if_modified(|known| {
            let is_new = *known != progress;
            if is_new {
                known.clone_from(&progress);
            }
            is_new
        });
        sleep(if progress.is_done { SELDOM } else { ASKED_EVERY }).await;
    }
}

/// How far it is.
async fn look(shared: &Arc<Shared>, how: Option<Leaving>) -> Progress {
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
            RouteTo::Me(_) => {
                owned += 1;
                if route.members.iter().any(|member| member.node == shared.me.node) {
                    naming.insert(slot);
                }
            }
            RouteTo::Other(node, _) => _ = others.entry(node.clone()).or_default().insert(slot),
            // Without members it was never formed, as far as this node ever heard.
            RouteTo::Nobody(_) => unknown += usize::from(!route.members.is_empty()),
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
    let waits_for = match how.map(|how| may_leave(shared, how)) {
        Some(Err(why)) if !naming.is_empty() => Some(why.to_string()),
        _ if unknown > 0 => {
            Some(format!("{unknown} slots have no owner, or it did not say who their members are"))
        }
        _ => None,
    };
    Progress { slots: naming.len(), unknown, owned, contexts, waits_for, is_done: false }
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
    let answer = timeout(ASKED, client.named(ask)).await.map_err(|_| "no answer in time".to_owned())?;
    let answer = answer.map_err(|status| status.to_string())?.into_inner();
    let slots = |bytes: &[u8]| wire::slots(bytes).map_err(|error| error.to_string());
    Ok((slots(&answer.owned)?, slots(&answer.naming)?))
}

/// What this node owns, and what of it names another one.
pub(crate) fn named(routes: &Routes, asked_by: &NodeId) -> NamedAnswer {
    let mut owned = BTreeSet::new();
    let mut naming = BTreeSet::new();
    for slot in (0..SLOTS).filter_map(Slot::new) {
        let Some(route) = routes.get(slot).filter(|route| matches!(route.owner, RouteTo::Me(_))) else {
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
            TooFew { remaining: nodes.len(), nodes, copies: 3, min_copies: 2 }.to_string()
        };
        let two = few(vec![node("n-0"), node("n-1")]);
        assert!(two.contains("2 nodes would remain that can keep copies (n-0, n-1)"), "{two}");
        assert!(two.contains("is to have 3") && two.contains("needs 2") && two.contains("force it"), "{two}");
        let one = few(vec![node("n-0")]);
        assert!(one.contains("forced or not") && one.contains("start another node first"), "{one}");
        assert!(few(Vec::new()).contains("(none)"));
    }
}
