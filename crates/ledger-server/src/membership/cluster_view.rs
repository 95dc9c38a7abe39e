//! What a node sees of its cluster, as the contract has it.

use std::collections::BTreeSet;

use ledger_cluster::{
    membership::{self, View, ViewMember},
    ownership::routes::{Routes, SlotOwner, SlotRoute},
};
use ledger_core::{
    ContextId, Epoch,
    node::{self, NodeId, StorageId},
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1 as ledger;

/// Where a slot is, as far as this node knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlotLocation {
    /// The node that takes appends, and the epoch it owns the slot in.
    pub owner: Option<(NodeId, Epoch)>,
    /// The members that keep it.
    pub replicas: Vec<ReplicaState>,
    /// Without an owner, or with one that takes no appends at the moment: why, and what is being done.
    pub reason: String,
}

/// A member that keeps a slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaState {
    /// The node and its data directory.
    pub member: node::Member,
    /// Whether it holds what the owner holds; only the owner knows.
    pub in_sync: bool,
}

/// Where a slot is by its route, to `me`; without a route the node has only just started.
pub fn slot_location(route: Option<&SlotRoute>, me: &NodeId) -> SlotLocation {
    let Some(SlotRoute { owner, members, in_sync, is_halted, .. }) = route else {
        return SlotLocation {
            reason: "this node has only just started".to_owned(),
            ..SlotLocation::default()
        };
    };
    let (owner, reason) = match owner {
        SlotOwner::Me(epoch) if *is_halted => (Some((me.clone(), *epoch)), halted(me)),
        SlotOwner::Me(epoch) => (Some((me.clone(), *epoch)), String::new()),
        SlotOwner::Other(node, epoch) => (Some((node.clone(), *epoch)), String::new()),
        SlotOwner::Nobody(why) => (None, why.clone()),
    };
    let kept =
        |member: &node::Member| ReplicaState { member: member.clone(), in_sync: in_sync.contains(member) };
    SlotLocation { owner, replicas: members.iter().map(kept).collect(), reason }
}

fn halted(owner: &NodeId) -> String {
    format!("its owner, {owner}, has too few copies in step: appends wait, and are refused if that lasts")
}

/// How many slots take no appends now, as this node sees it: nobody owns them, or their owner says that too few copies are in sync.
pub fn halted_slots(view: &View, routes: &Routes) -> usize {
    let takes_none = |slot: &Slot| match routes.get(*slot) {
        Some(SlotRoute { owner: SlotOwner::Other(node, _), .. }) => {
            view.get(node).is_some_and(|member| member.is_halted(*slot))
        }
        Some(SlotRoute { owner: SlotOwner::Me(_), is_halted, .. }) => *is_halted,
        None | Some(SlotRoute { owner: SlotOwner::Nobody(_), .. }) => true,
    };
    (0..SLOTS).filter_map(Slot::new).filter(takes_none).count()
}

/// The nodes that keep slots which this one keeps too, and that are not heard with the directory that they had.
pub fn away<'a>(view: &View, routes: &'a Routes, me: &node::Member) -> BTreeSet<&'a NodeId> {
    let kept = (0..SLOTS).filter_map(Slot::new).filter_map(|slot| routes.get(slot));
    let kept = kept.filter(|route| route.members.contains(me)).flat_map(|route| &route.members);
    let is_heard = |member: &node::Member| {
        let seen = view.get(&member.node);
        seen.is_some_and(|seen| seen.storage_id == member.storage && seen.is_usable())
    };
    kept.filter(|member| *member != me && !is_heard(member)).map(|member| &member.node).collect()
}

/// The members, in order of their ids.
pub fn members(view: &View) -> Vec<ledger::Member> {
    view.members.iter().zip(view.taking()).map(|(seen, slots)| member(seen, slots)).collect()
}

/// A member that takes appends to so many slots, and owns so many more to which it takes none.
fn member(member: &ViewMember, (taking, halted): (usize, usize)) -> ledger::Member {
    let count = |slots| u32::try_from(slots).unwrap_or(u32::MAX);
    ledger::Member {
        node_id: member.node_id.to_string(),
        storage_id: member.storage_id.to_string(),
        incarnation: member.incarnation.0,
        address: member.grpc_address.clone(),
        readiness: match member.rolled_back {
            Some(_) => "set-back".to_owned(),
            None if member.decommission.is_some() && member.readiness != membership::Readiness::Leaving => {
                "decommissioning".to_owned()
            }
            None => member.readiness.to_string(),
        },
        zone: member.zone.clone(),
        format: member.format,
        alive: member.alive,
        slots_owned: count(taking),
        entries_per_second: member.load.entries_per_second,
        contexts: member.load.contexts,
        slots_halted: count(halted),
    }
}

/// Where a slot is; `context` if it was asked for by one.
pub fn location(
    view: &View,
    slot: Slot,
    context: Option<&ContextId>,
    location: SlotLocation,
) -> ledger::Location {
    let SlotLocation { owner, replicas, mut reason } = location;
    if let Some((node, _)) = &owner
        && reason.is_empty()
        && view.get(node).is_some_and(|member| member.is_halted(slot))
        && !view.is_me(node)
    {
        reason = halted(node);
    }
    let (owner, epoch) = owner.map_or((None, Epoch::default()), |(node, epoch)| (Some(node), epoch));
    ledger::Location {
        context_id: context.map(|context| context.as_str().to_owned()).unwrap_or_default(),
        slot: slot.number().into(),
        owner_address: owner
            .as_ref()
            .and_then(|node| view.get(node))
            .map(|member| member.grpc_address.clone())
            .unwrap_or_default(),
        owner: owner.map(|node| node.to_string()).unwrap_or_default(),
        epoch: epoch.0,
        replicas: replicas.iter().map(|kept| replica(view, kept)).collect(),
        reason,
    }
}

fn replica(view: &View, kept: &ReplicaState) -> ledger::Replica {
    let node::Member { node, storage } = &kept.member;
    // A node that came back with another disk keeps nothing of it.
    let member = view.get(node).filter(|member| member.storage_id == *storage);
    ledger::Replica {
        node_id: node.to_string(),
        storage_id: StorageId::to_string(storage),
        address: member.map(|member| member.grpc_address.clone()).unwrap_or_default(),
        in_step: kept.in_sync,
        alive: member.is_some_and(|member| member.alive),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{net::SocketAddr, sync::Arc, time::Duration};

    use ledger_cluster::membership::{Facts, Membership, MembershipConfig, NodeLoad, Readiness};
    use ledger_core::node::Incarnation;

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    pub(crate) fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    /// A node that gossips with itself, and owns these slots.
    pub(crate) async fn node(owned: &[u16]) -> Membership {
        let config = MembershipConfig {
            gossip_interval: Duration::from_millis(20),
            ..MembershipConfig::new("test", id("a"), Incarnation(4), SocketAddr::from(([127, 0, 0, 1], 0)))
        };
        let facts = Facts {
            grpc_address: "a:50051".into(),
            storage_id: StorageId([1; 16]),
            readiness: Readiness::Ready,
            zone: "eu".into(),
            format: 1,
            load: NodeLoad { entries_per_second: 120, contexts: 7 },
            opened: None,
            durable: None,
            decommission: None,
            owned: owned.iter().map(|&number| (slot(number), Epoch::new(2, 9))).collect(),
            halted: Vec::new(),
        };
        Membership::start(config, facts).await.unwrap()
    }

    pub(crate) async fn view(node: &Membership, wanted: impl Fn(&View) -> bool) -> Arc<View> {
        let mut view = node.view();
        let found = tokio::time::timeout(Duration::from_secs(20), view.wait_for(|view| wanted(view))).await;
        found.expect("in time").unwrap().clone()
    }

    #[test]
    fn a_route_says_who_owns_and_who_is_in_step() {
        let member = |name: &str| node::Member { node: id(name), storage: StorageId([1; 16]) };
        let route = |owner| SlotRoute {
            owner,
            members: vec![member("a"), member("b")],
            in_sync: vec![member("a")],
            is_halted: false,
            unowned_since: None,
        };
        let mine = slot_location(Some(&route(SlotOwner::Me(Epoch(5)))), &id("a"));
        assert_eq!(mine.owner, Some((id("a"), Epoch(5))));
        assert_eq!(mine.replicas.iter().map(|kept| kept.in_sync).collect::<Vec<_>>(), [true, false]);
        let other = slot_location(Some(&route(SlotOwner::Other(id("b"), Epoch(6)))), &id("a"));
        assert_eq!(other.owner, Some((id("b"), Epoch(6))));
        let nobody = slot_location(Some(&route(SlotOwner::Nobody("two are away".into()))), &id("a"));
        assert_eq!((nobody.owner, nobody.reason.as_str()), (None, "two are away"));
        assert!(slot_location(None, &id("a")).reason.contains("just started"));
        let halted =
            slot_location(Some(&SlotRoute { is_halted: true, ..route(SlotOwner::Me(Epoch(5))) }), &id("a"));
        assert!(halted.owner == mine.owner && halted.reason.contains("appends wait"), "{halted:?}");
    }

    #[tokio::test]
    async fn a_member_is_what_it_says_of_itself() {
        let node = node(&[3, 4]).await;
        let members = members(&*view(&node, |view| view.me().is_some()).await);
        let expected = ledger::Member {
            node_id: "a".into(),
            storage_id: "01".repeat(16),
            incarnation: 4,
            address: "a:50051".into(),
            readiness: "ready".into(),
            zone: "eu".into(),
            format: 1,
            alive: true,
            slots_owned: 2,
            entries_per_second: 120,
            contexts: 7,
            slots_halted: 0,
        };
        assert_eq!(members, std::slice::from_ref(&expected));
        node.set_halted(vec![slot(4), slot(5)]);
        let view = self::view(&node, |view| view.me().is_some_and(|me| me.is_halted(slot(4)))).await;
        let expected = ledger::Member { slots_owned: 1, slots_halted: 1, ..expected };
        assert_eq!(self::members(&view), [expected], "what it takes no appends to is told apart");
        node.shutdown().await;
    }

    #[tokio::test]
    async fn a_location_names_the_owner_and_who_keeps_copies() {
        let node = node(&[]).await;
        let view = view(&node, |view| view.me().is_some()).await;
        let kept = |name: &str, disk: u8| ReplicaState {
            member: node::Member { node: id(name), storage: StorageId([disk; 16]) },
            in_sync: disk == 1,
        };
        let at = SlotLocation {
            owner: Some((id("a"), Epoch(77))),
            replicas: vec![kept("a", 1), kept("a", 2), kept("b", 3)],
            reason: String::new(),
        };
        let context = ContextId::new("demo").unwrap();
        let found = location(&view, slot(5), Some(&context), at);
        assert_eq!((found.context_id.as_str(), found.slot, found.epoch), ("demo", 5, 77));
        assert_eq!((found.owner.as_str(), found.owner_address.as_str()), ("a", "a:50051"));
        let replicas: Vec<_> = found
            .replicas
            .iter()
            .map(|replica| {
                (replica.node_id.as_str(), replica.address.as_str(), replica.alive, replica.in_step)
            })
            .collect();
        let expected = [("a", "a:50051", true, true), ("a", "", false, false), ("b", "", false, false)];
        assert_eq!(replicas, expected, "another disk, or a node that is not known, is not alive");
        let nobody = SlotLocation { reason: "2 of 3 copies are away".into(), ..SlotLocation::default() };
        let found = location(&view, slot(6), None, nobody);
        assert_eq!((found.context_id.as_str(), found.owner.as_str(), found.epoch), ("", "", 0));
        assert_eq!(found.reason, "2 of 3 copies are away");
        node.shutdown().await;
    }
}
