//! How a node joins its cluster.
//!
//! A new cluster gets its identity with its first slot: the lane that records the slot as formed records the identity
//! in the same write. A node without a cluster joins that of the nodes it finds ([`crate::membership::identity`]).
//!
//! What remains are clusters that builds without identities formed. There the owner of the first slot draws an
//! identity once all nodes known to gossip are present and have no cluster. It asks each of them: [`FormationFence`].
//! A node that responded to the owner of a later epoch refuses an earlier one, and the owner itself draws only if no
//! later owner has asked it. All other nodes learn the identity through gossip.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ledger_core::{
    node::{ClusterId, Member},
    ownership::Claim,
    slot::Slot,
};
use ledger_proto::ledger::v1::{
    BelongsRequest, BelongsResponse, replica_service_client::ReplicaServiceClient,
};
use ledger_store::limited;
use ledger_store::replicate::replica::{RecordChange, RecordChangeOutcome};
use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tonic::Status;

use crate::{
    membership::{Membership, identity::JoinTarget},
    ownership::routes::SlotOwner,
    peers::wire,
    shared::Shared,
};

/// How often the owner of the first slot checks whether all nodes are present.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a response may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The highest claim to which this node responded that it belongs to no cluster.
#[derive(Debug, Default)]
pub(crate) struct FormationFence(Mutex<FormationQuery>);

#[derive(Debug, Default)]
struct FormationQuery {
    by: Option<Claim>,
    /// This node is drawing an identity: it responds to nobody meanwhile.
    is_drawing: bool,
}

impl FormationFence {
    /// Returns whether this node may respond to a claim's owner: no owner of a higher claim has asked.
    fn ask(&self, by: &Claim) -> bool {
        let mut query = self.0.lock();
        if query.is_drawing || query.by.as_ref().is_some_and(|higher| higher > by) {
            return false;
        }
        query.by = Some(by.clone());
        true
    }

    /// Returns whether this node may draw an identity in a claim: no owner of a higher claim has asked, and none gets
    /// a response until the drawing is done.
    fn begin(&self, claim: &Claim) -> bool {
        let mut query = self.0.lock();
        query.is_drawing = !query.is_drawing && query.by.as_ref() == Some(claim);
        query.is_drawing
    }

    fn done(&self) {
        self.0.lock().is_drawing = false;
    }
}

/// Joins the cluster that the directory or gossip names, and keeps checking until this node belongs to one.
pub(crate) async fn keep(shared: Arc<Shared>, membership: Arc<Membership>) {
    let (mut belongs, mut wanted) = (shared.ledger.cluster_id(), membership.identity().wanted());
    let mut tick = interval(CHECK_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let known = *belongs.borrow_and_update();
        if let Some(id) = known {
            tracing::info!(cluster = %id, "this node belongs to a cluster");
            membership.set_cluster(id);
            return;
        }
        tokio::select! {
            Ok(()) = belongs.changed() => {}
            Ok(()) = wanted.changed() => {
                let found = *wanted.borrow_and_update();
                if let Some(JoinTarget { id, said_by }) = found {
                    join(&shared, RecordChange::JoinCluster(id, said_by)).await;
                }
            }
            _ = tick.tick() => {
                if let Some(claim) = owned(&shared) {
                    form_cluster(&shared, claim).await;
                }
            }
        }
    }
}

async fn join(shared: &Arc<Shared>, change: RecordChange) {
    let changed = shared.change_slots(vec![(Slot::FIRST, change)]).await;
    match changed.map(|changed| changed.into_iter().map(|(_, changed)| changed.outcome).next()) {
        Ok(Some(Ok(RecordChangeOutcome::Done))) => {}
        Ok(outcome) => {
            limited!(warn, ?outcome, "this node does not come to belong to the cluster that it hears of");
        }
        Err(error) => {
            limited!(warn, %error, "to which cluster this node belongs cannot be written: this is tried again");
        }
    }
}

/// Returns the claim in which this node owns the first slot.
fn owned(shared: &Shared) -> Option<Claim> {
    match shared.routes.borrow().get(Slot::FIRST)?.owner {
        SlotOwner::Me(epoch) => Some(Claim::new(epoch, &shared.me)),
        _ => None,
    }
}

/// Draws an identity for a cluster without one, if all nodes agree.
async fn form_cluster(shared: &Arc<Shared>, claim: Claim) {
    let others = {
        let view = shared.view.borrow();
        let members =
            shared.routes.borrow().get(Slot::FIRST).map_or_else(Vec::new, |route| route.members.clone());
        let others = view.members.iter().filter(|member| member.node_id != shared.me.node);
        let is_there = |member: &Member| {
            *member == shared.me
                || view.get(&member.node).is_some_and(|known| known.storage_id == member.storage)
        };
        // An absent node could have drawn an identity, or respond to another owner.
        if !members.iter().all(is_there) || others.clone().any(|other| !other.is_usable() || !other.greets) {
            return;
        }
        let member = |other: &crate::membership::ViewMember| Member {
            node: other.node_id.clone(),
            storage: other.storage_id,
        };
        others.map(member).collect::<Vec<_>>()
    };
    if !shared.formation.ask(&claim) {
        return;
    }
    for other in &others {
        match ask(shared, other, &claim).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(reason) => {
                tracing::debug!(%other, %reason, "a node does not say to which cluster it belongs");
                return;
            }
        }
    }
    if !shared.formation.begin(&claim) {
        return;
    }
    let mut id = [0; 16];
    if getrandom::fill(&mut id).is_ok() {
        join(shared, RecordChange::JoinCluster(ClusterId(id), shared.me.storage)).await;
    }
    shared.formation.done();
}

/// Asks whether a node belongs to no cluster. From then on that node refuses lower claims.
async fn ask(shared: &Arc<Shared>, to: &Member, claim: &Claim) -> Result<bool, String> {
    let peer = shared.peers.get(to).ok_or("it is not known")?;
    let mut client = ReplicaServiceClient::new(shared.peers.channel(&peer)?);
    let request = BelongsRequest {
        from: Some(wire::to_member(&shared.me)),
        to: Some(wire::to_member(to)),
        claim: Some(wire::to_claim(claim)),
    };
    let answer = timeout(RESPONSE_TIMEOUT, client.belongs(request))
        .await
        .map_err(|_| "no answer in time".to_owned())?;
    let answer = answer.map_err(|status| status.to_string())?.into_inner();
    Ok(answer.cluster.is_empty())
}

/// Responds to the owner of the first slot, which wants to draw an identity.
pub(crate) fn answer(shared: &Shared, by: &Claim) -> Result<BelongsResponse, Status> {
    if let Some(id) = *shared.ledger.cluster_id().borrow() {
        return Ok(BelongsResponse { cluster: id.0.to_vec().into() });
    }
    // A cluster that is about to be formed gets an identity of its own.
    if shared.is_forming.load(Ordering::Relaxed) || !shared.formation.ask(by) {
        return Err(Status::failed_precondition("the first slot is about to have another owner"));
    }
    Ok(BelongsResponse::default())
}

#[cfg(test)]
mod tests {
    use ledger_core::{Epoch, node::NodeId};

    use super::*;

    fn claim(counter: u32) -> Claim {
        Claim { epoch: Epoch::new(counter, 0), claimant: NodeId::new("n0").unwrap(), storage: None }
    }

    #[test]
    fn whoever_answered_a_later_owner_answers_no_earlier_one_and_does_not_draw_for_it() {
        let fence = FormationFence::default();
        assert!(!fence.begin(&claim(1)), "nobody was asked");
        assert!(fence.ask(&claim(1)) && fence.ask(&claim(2)) && fence.ask(&claim(2)));
        assert!(!fence.ask(&claim(1)) && !fence.begin(&claim(1)));
        assert!(fence.begin(&claim(2)));
        assert!(!fence.ask(&claim(3)) && !fence.begin(&claim(2)), "it is drawn now");
        fence.done();
        assert!(fence.ask(&claim(3)) && !fence.begin(&claim(2)));
    }
}
