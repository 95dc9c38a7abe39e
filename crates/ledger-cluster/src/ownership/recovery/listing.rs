//! Lists the slots that cannot continue without lost members, as this node and the others know it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use ledger_core::{
    digest::Digest,
    node::{Member, ReplicaSet},
    ownership::SlotRecord,
    slot::Slot,
};
use ledger_proto::ledger::v1::{
    ClusterMember, KnownAsk, KnownSlot, RecoverAnswer, replica_service_client::ReplicaServiceClient,
};
use ledger_store::StoreError;
use tokio::time::timeout;

use super::{MAX_BYTES, RecoverError};
use crate::{
    cluster::Cluster,
    membership::{Readiness, View},
    ownership::routes::SlotOwner,
    peers::wire,
    shared::Shared,
};

/// How long another node may take: it reads the heads of all its contexts.
const LISTING_TIMEOUT: Duration = Duration::from_secs(20);

impl Cluster {
    /// Lists the slots that could not continue without these members, or without all absent ones if none are given,
    /// as each living node knows it, this one first. Also returns which nodes did not report, and why. Changes
    /// nothing. Unless `brief` is set, each node reads the heads of all its contexts.
    pub async fn stuck_slots(
        &self,
        lost: &BTreeSet<Member>,
        is_brief: bool,
    ) -> (Vec<RecoverAnswer>, Vec<String>) {
        let shared = &self.shared;
        let view = Arc::clone(&shared.view.borrow());
        let peers = view.alive().map(wire::member_of).filter(|member| *member != shared.me);
        let others = peers.map(|peer| async move {
            let answer = timeout(LISTING_TIMEOUT, ask(shared, &peer, lost, is_brief)).await;
            let answer = answer.unwrap_or_else(|_| Err("no answer in time".to_owned()));
            answer.map_err(|why| format!("{}: {why}", peer.node))
        });
        let own = async {
            let answer = answer(shared, lost.clone(), is_brief).await;
            answer.map_err(|error| format!("{}: {error}", shared.me.node))
        };
        let (own, others) = tokio::join!(own, futures::future::join_all(others));
        let (mut answers, mut failed) = (Vec::new(), Vec::new());
        for answer in std::iter::once(own).chain(others) {
            match answer {
                Ok(answer) => answers.push(answer),
                Err(why) => failed.push(why),
            }
        }
        (answers, failed)
    }
}

async fn ask(
    shared: &Shared,
    to: &Member,
    lost: &BTreeSet<Member>,
    is_brief: bool,
) -> Result<RecoverAnswer, String> {
    let peer = shared.peers.get(to).ok_or("it is not known")?;
    let mut client =
        ReplicaServiceClient::new(shared.peers.channel(&peer)?).max_decoding_message_size(MAX_BYTES);
    let ask = KnownAsk {
        from: Some(wire::to_member(&shared.me)),
        to: Some(wire::to_member(to)),
        lost: lost.iter().map(wire::to_member).collect(),
        brief: is_brief,
    };
    Ok(client.known(ask).await.map_err(|status| status.to_string())?.into_inner())
}

/// Returns what this node knows.
pub(crate) async fn answer(
    shared: &Arc<Shared>,
    lost: BTreeSet<Member>,
    is_brief: bool,
) -> Result<RecoverAnswer, StoreError> {
    let shared = Arc::clone(shared);
    let looked = ledger_store::blocking::spawn(move || look(&shared, &lost, is_brief)).await;
    looked.unwrap_or_else(|error| Err(StoreError::Io(error.to_string())))
}

fn look(shared: &Shared, lost: &BTreeSet<Member>, is_brief: bool) -> Result<RecoverAnswer, StoreError> {
    let view = Arc::clone(&shared.view.borrow());
    let records = shared.ledger.slot_records()?;
    let placements = records.iter().filter_map(|(_, record)| record.placement.as_ref());
    let mut known: BTreeSet<Member> = view.members.iter().map(wire::member_of).collect();
    known.extend(placements.flat_map(|placement| placement.named().cloned()));
    let silent: BTreeSet<Member> = known.into_iter().filter(|member| !is_alive(&view, member)).collect();
    let gone = gone(shared, if lost.is_empty() { &silent } else { lost });
    let mut content: BTreeMap<Slot, (Digest, u64)> = BTreeMap::new();
    if !is_brief {
        shared.ledger.heads(|context, extent| {
            let (digest, entries) = content.entry(Slot::of(context)).or_default();
            digest.add(context, extent);
            *entries = entries.saturating_add(extent.size.0);
        })?;
    }
    let routes = Arc::clone(&shared.routes.borrow());
    let slots = records.iter().filter_map(|(slot, record)| {
        let owner = match routes.get(*slot).map(|route| &route.owner) {
            // A dead node owns nothing, even if no other node took its slots yet.
            Some(SlotOwner::Other(node, _)) if view.get(node).is_some_and(|member| member.alive) => {
                node.to_string()
            }
            _ => String::new(),
        };
        let is_stuck = match &record.placement {
            // An owner with so few members waits for copies that no node can make, or will soon notice that it must.
            Some(placement) => placement.needs_approval(&gone, shared.config.write_quorum),
            // The slot had members that are unknown here. If no node knows them, all of them are lost.
            None if record.is_formed => owner.is_empty(),
            None => return None,
        };
        let content = content.get(slot).copied().unwrap_or_default();
        Some(KnownSlot { owner, is_stuck, ..known_slot(*slot, record, content) })
    });
    let refused = may_recover(&view, &gone, lost).err();
    Ok(RecoverAnswer {
        node: Some(to_member(&shared.me)),
        silent: silent.iter().map(to_member).collect(),
        slots: slots.collect(),
        refused: refused.map(|refused| refused.to_string()).unwrap_or_default(),
    })
}

fn known_slot(slot: Slot, record: &SlotRecord, content: (Digest, u64)) -> KnownSlot {
    let (digest, entries) = content;
    let members = |set: &ReplicaSet| set.members().iter().map(to_member).collect();
    let placement = record.placement.as_ref();
    let before = placement.and_then(|placement| placement.previous.as_ref());
    KnownSlot {
        slot: slot.number().into(),
        members: placement.map(|placement| members(&placement.members)).unwrap_or_default(),
        before: before.map(members).unwrap_or_default(),
        placed_in: placement.map_or(0, |placement| placement.epoch.0),
        is_confirmed: placement.is_some_and(|placement| placement.is_confirmed),
        is_settled: placement.is_some() && before.is_none(),
        accepted: record.accepted.0,
        promised: record.promised.as_ref().map_or(0, |claim| claim.epoch.0),
        contexts: digest.count(),
        entries,
        digest: digest.to_bytes().to_vec().into(),
        owner: String::new(),
        is_stuck: false,
    }
}

fn to_member(member: &Member) -> ClusterMember {
    ClusterMember { node_id: member.node.to_string(), storage_id: member.storage.to_string() }
}

/// Returns these members and those of earlier decisions, which remain lost.
pub(super) fn gone(shared: &Shared, lost: &BTreeSet<Member>) -> BTreeSet<Member> {
    lost.union(&shared.decisions.declared().borrow().lost).cloned().collect()
}

fn is_alive(view: &View, member: &Member) -> bool {
    view.get(&member.node).is_some_and(|known| known.storage_id == member.storage && known.is_usable())
}

/// Checks whether members may be declared lost, as far as this node sees.
pub(super) fn may_recover(
    view: &View,
    gone: &BTreeSet<Member>,
    lost: &BTreeSet<Member>,
) -> Result<(), RecoverError> {
    if let Some(alive) = lost.iter().find(|member| is_alive(view, member)) {
        return Err(RecoverError::Alive(alive.clone()));
    }
    for member in &view.members {
        let named = wire::member_of(member);
        if !member.alive && !gone.contains(&named) {
            return Err(RecoverError::Silent(named));
        }
        if member.alive && member.readiness == Readiness::ReadOnly {
            return Err(RecoverError::Full(named));
        }
    }
    Ok(())
}
