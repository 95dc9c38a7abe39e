//! What operators have a node do to its cluster: leave it for good, and go on without members that are lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use ledger_cluster::{
    Cluster,
    ownership::decommission::{DecommissionError, DecommissionStatus},
    ownership::recovery::{Decision, MAX_LOST, RecoverError, RecoveryEvidence},
};
use ledger_core::{
    Epoch,
    node::{self, MAX_REPLICAS, NodeId, ReplicaSet, StorageId},
    ownership::{Claim, RecoveryApproval, slot_manager::DecommissionMode},
    slot::Slot,
};
use ledger_proto::ledger::v1::{
    ClusterMember, DecommissionProgress, DecommissionRequest, RecoverRequest, RecoverResponse, RecoveredSlot,
    RecoveriesResponse, Recovery, RecoveryMember, SlotApproval,
};
use tokio::sync::watch;
use tonic::Code;

use crate::{grpc::status::Refusal, node::Node, node::mode::NodeMode};

/// How long those who wait for a node to leave may take to read that it has.
const FINAL_READ_TIMEOUT: Duration = Duration::from_millis(500);
/// How often progress is told though nothing changed.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// Forks that are counted at most.
const MAX_COUNTED_FORKS: usize = 10_000;

fn cluster(node: &Node) -> Result<&Arc<Cluster>, Refusal> {
    match &node.mode {
        NodeMode::Clustered(cluster) => Ok(cluster),
        NodeMode::Standalone(_) => {
            let message =
                "this node is by itself, in no cluster: snapshot what it holds, and stop the process";
            Err(Refusal::new(Code::FailedPrecondition, message))
        }
    }
}

/// Leaves the cluster for good, or stays: how far it is, until it is done.
///
/// # Errors
/// `FAILED_PRECONDITION`: the node runs alone, or slots would have too few copies. What the store refuses, if that cannot be noted.
pub async fn decommission(
    node: &Node,
    request: DecommissionRequest,
) -> Result<BoxStream<'static, Result<DecommissionProgress, Refusal>>, Refusal> {
    let cluster = cluster(node)?;
    if request.cancel {
        cluster.cancel_decommission().await.map_err(Refusal::from)?;
        return Ok(stream::iter([Ok(DecommissionProgress::default())]).boxed());
    }
    let how = if request.force { DecommissionMode::AllowFewer } else { DecommissionMode::Replaced };
    let left = cluster.decommission(how, !request.keep_running, request.until_restart).await;
    left.map_err(|refused| match refused {
        DecommissionError::Store(error) => error.into(),
        refused => Refusal::new(Code::FailedPrecondition, refused.to_string()),
    })?;
    let forks = node.read(|ledger| ledger.forks(None, None, MAX_COUNTED_FORKS)).await?;
    let forks = forks.forks.len() as u64;
    let seen =
        progress_stream(cluster.decommission_status()).map(move |progress| Ok(to_progress(&progress, forks)));
    Ok(seen.boxed())
}

/// A node that was to leave for good was stopped before others had taken all that it kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the node was to leave for good, and {slots} slots still count on it after leave_grace: nothing is lost, and the others go on \
     moving what they can; start it again for the rest, or to have it stay"
)]
pub struct DecommissionUnfinished {
    /// How many.
    pub slots: usize,
}

/// Completes when the node has left for good and is to end.
pub async fn decommissioned(cluster: &Cluster) {
    let (mut departure, mut progress) = (cluster.decommission_state(), cluster.decommission_status());
    let is_over = departure.wait_for(|departure| departure.ends && departure.has_left).await.is_ok();
    if is_over && progress.wait_for(|progress| progress.is_done).await.is_ok() {
        tokio::time::sleep(FINAL_READ_TIMEOUT).await;
        return;
    }
    // The node stops for another reason.
    std::future::pending::<()>().await;
}

/// What comes first when a node is asked to stop that is to leave for good, because it was told so before, or leaves
/// whenever it stops: it serves on until others have taken what it keeps.
///
/// # Errors
/// [`DecommissionUnfinished`]: others had not taken all in time.
pub async fn decommission_before_stop(node: &Node) -> Result<(), DecommissionUnfinished> {
    let NodeMode::Clustered(cluster) = &node.mode else { return Ok(()) };
    let (leaves, grace) = (node.config.leave_on_shutdown, node.config.leave_grace.0);
    if cluster.decommission_state().borrow().mode.is_none() {
        if !leaves {
            return Ok(());
        }
        if let Err(why) = cluster.decommission(DecommissionMode::Replaced, true, true).await {
            tracing::error!(%why, "not leaving for good, though leave_on_shutdown is set: stopping as for a restart");
            return Ok(());
        }
    }
    tracing::info!(grace_ms = grace.as_millis(), "leaving for good first: others take what is here");
    let mut progress = cluster.decommission_status();
    let is_done = tokio::time::timeout(grace, progress.wait_for(|progress| progress.is_done)).await;
    if matches!(is_done, Ok(Ok(_))) {
        return Ok(());
    }
    let progress = cluster.decommission_status().borrow().clone();
    Err(DecommissionUnfinished { slots: progress.slots + progress.unknown })
}

fn to_progress(progress: &DecommissionStatus, forks: u64) -> DecommissionProgress {
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    DecommissionProgress {
        slots: count(progress.slots),
        unknown: count(progress.unknown),
        owned: count(progress.owned),
        contexts: progress.contexts,
        waits_for: progress.waits_for.clone().unwrap_or_default(),
        done: progress.is_done,
        forks,
    }
}

/// Whatever changes, and what stays from time to time, until it is done.
fn progress_stream(
    progress: watch::Receiver<DecommissionStatus>,
) -> impl Stream<Item = DecommissionStatus> + Send {
    stream::unfold(Some((progress, false)), |state| async move {
        let (mut progress, was_told) = state?;
        if was_told && let Ok(Err(_)) = tokio::time::timeout(PROGRESS_INTERVAL, progress.changed()).await {
            return None;
        }
        let now = progress.borrow_and_update().clone();
        let next = (!now.is_done).then_some((progress, true));
        Some((now, next))
    })
}

fn read_member(member: &ClusterMember) -> Result<node::Member, Refusal> {
    let wrong = |reason: String| Refusal::field("lost", reason);
    let node = NodeId::new(&member.node_id).map_err(|error| wrong(error.to_string()))?;
    let storage = StorageId::parse(&member.storage_id)
        .ok_or_else(|| wrong(format!("the storage id of {node} must be 32 hex digits")))?;
    Ok(node::Member { node, storage })
}

/// Says what cannot go on, or goes on without what is lost.
///
/// # Errors
/// `INVALID_ARGUMENT` names a field that is wrong; `FAILED_PRECONDITION`: the node runs alone, or the decision does not fit what
/// nodes know.
pub async fn recover(node: &Node, request: RecoverRequest) -> Result<RecoverResponse, Refusal> {
    let cluster = cluster(node)?;
    if request.lost.len() > MAX_LOST {
        return Err(Refusal::field("lost", format!("at most {MAX_LOST} members can be named")));
    }
    let lost = request.lost.iter().map(read_member).collect::<Result<BTreeSet<_>, _>>()?;
    if request.apply {
        let id = request.id.as_ref().try_into();
        let id = id.map_err(|_| Refusal::field("id", "id must have 16 bytes, made at random"))?;
        let (decided_at_ns, reason) = (request.decided_at_ns, request.reason);
        let approved = request.slots.iter().map(approval).collect::<Result<_, _>>()?;
        let decision =
            Decision { id, decided_at_ns, reason, approved, lost: lost.clone(), slots: BTreeMap::new() };
        cluster.recover(decision).await.map_err(|refused| match refused {
            RecoverError::Store(error) => error.into(),
            refused => Refusal::new(Code::FailedPrecondition, refused.to_string()),
        })?;
    }
    let (answers, failed) = cluster.stuck_slots(&lost, request.brief).await;
    Ok(RecoverResponse { answers, failed })
}

/// Which slot may go on, with what.
fn approval(from: &SlotApproval) -> Result<(Slot, RecoveryApproval), Refusal> {
    let slot = u16::try_from(from.slot).ok().and_then(Slot::new);
    let slot = slot.ok_or_else(|| Refusal::field("slots", format!("slot {} is not there", from.slot)))?;
    let heir = from.heir.as_ref().map(read_member).transpose()?;
    let set = |members: &[ClusterMember]| {
        // One more than allowed is enough to refuse it.
        let members =
            members.iter().take(MAX_REPLICAS + 1).map(read_member).collect::<Result<Vec<_>, _>>()?;
        ReplicaSet::new(members)
            .map_err(|error| Refusal::field("slots", format!("the members of slot {}: {error}", from.slot)))
    };
    let previous = (!from.before.is_empty()).then(|| set(&from.before)).transpose()?;
    Ok((
        slot,
        RecoveryApproval { placed_in: Epoch(from.placed_in), members: set(&from.members)?, previous, heir },
    ))
}

/// What was decided after losses, and what came of it.
pub fn recoveries(node: &Node) -> RecoveriesResponse {
    let decisions = node.mode.cluster().map(|cluster| cluster.recoveries()).unwrap_or_default();
    RecoveriesResponse { recoveries: decisions.iter().map(recovery).collect() }
}

fn recovery(decision: &Decision) -> Recovery {
    let lost = decision.lost.iter().map(|member| heard(member, Epoch::default()));
    Recovery {
        id: decision.id.to_vec().into(),
        decided_at_ns: decision.decided_at_ns,
        reason: decision.reason.clone(),
        lost: lost.collect(),
        slots: decision.slots.iter().map(recovered_slot).collect(),
    }
}

fn recovered_slot(((slot, claim), evidence): (&(Slot, Claim), &RecoveryEvidence)) -> RecoveredSlot {
    let missing = evidence.recovery.missing.iter().map(|member| heard(member, Epoch::default()));
    RecoveredSlot {
        slot: slot.number().into(),
        epoch: claim.epoch.0,
        claimant: claim.claimant.to_string(),
        missing: missing.collect(),
        heard: evidence
            .recovery
            .responded
            .iter()
            .map(|(member, accepted)| heard(member, *accepted))
            .collect(),
        digest: evidence.digest.to_bytes().to_vec().into(),
        recovered_at_ns: evidence.recovered_at_ns,
    }
}

fn heard(member: &node::Member, accepted: Epoch) -> RecoveryMember {
    RecoveryMember {
        node_id: member.node.to_string(),
        storage_id: member.storage.to_string(),
        accepted: accepted.0,
    }
}
