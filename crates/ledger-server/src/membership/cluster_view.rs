//! What a node sees of its cluster, as the contract has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use futures::{Stream, stream};
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
use prost::Message as _;
use tokio::sync::watch;

use crate::{grpc::call, limits};

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
    placed: SlotLocation,
) -> ledger::Location {
    let SlotLocation { owner, replicas, mut reason } = placed;
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

/// Makes of one view after another what changed.
#[derive(Debug, Default)]
pub struct Changes {
    members: BTreeMap<String, ledger::Member>,
    owners: Vec<Option<(NodeId, Epoch)>>,
}

impl Changes {
    /// What changed since the step before; at first, everything there is. `None` if nothing did.
    pub fn step(
        &mut self,
        view: &View,
        placed: impl Fn(Slot) -> SlotLocation,
    ) -> Option<ledger::ClusterChange> {
        let first = self.owners.is_empty();
        let members = self.members(members(view));
        self.owners.resize(usize::from(SLOTS), None);
        let mut slots = Vec::new();
        for (slot, known) in (0..SLOTS).filter_map(Slot::new).zip(&mut self.owners) {
            let placed = placed(slot);
            if *known != placed.owner {
                known.clone_from(&placed.owner);
                slots.push(location(view, slot, None, placed));
            }
        }
        let changed = first || !members.is_empty() || !slots.is_empty();
        changed.then_some(ledger::ClusterChange { members, slots })
    }

    /// Those that came, changed or went.
    fn members(&mut self, now: Vec<ledger::Member>) -> Vec<ledger::Member> {
        let now: BTreeMap<_, _> = now.into_iter().map(|member| (member.node_id.clone(), member)).collect();
        let changed = now.values().filter(|member| self.members.get(&member.node_id) != Some(member));
        let gone = self.members.values().filter(|member| !now.contains_key(&member.node_id));
        let gone = gone.map(|member| ledger::Member { alive: false, ..member.clone() });
        let changed = changed.cloned().chain(gone).collect();
        self.members = now;
        changed
    }
}

/// Everything there is, then what changes of it, with each view and each change of `routes`; ends when no more
/// of them come. What came while the client was slow is taken together.
pub fn changes<R: Clone + Send + Sync + 'static>(
    views: watch::Receiver<Arc<View>>,
    routes: watch::Receiver<R>,
    placed: impl Fn(&R, Slot) -> SlotLocation + Send + 'static,
) -> impl Stream<Item = ledger::ClusterChange> + Send {
    stream::unfold(
        (views, routes, placed, Changes::default()),
        |(mut views, mut routes, placed, mut changes)| async move {
            loop {
                let bytes = if changes.owners.is_empty() { limits::CLUSTER } else { limits::SMALL_PAGE };
                // It waits as long as it takes: it is no call that its answer ends.
                let room = call::reserve(call::current(), bytes).await.ok()?;
                let view = Arc::clone(&views.borrow_and_update());
                let known = routes.borrow_and_update().clone();
                if let Some(change) = changes.step(&view, |slot| placed(&known, slot)) {
                    room.hand_over(2 * change.encoded_len());
                    return Some((change, (views, routes, placed, changes)));
                }
                drop(room);
                tokio::select! {
                    changed = views.changed() => changed.ok()?,
                    changed = routes.changed() => changed.ok()?,
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, time::Duration};

    use futures::StreamExt as _;
    use ledger_cluster::membership::{Facts, Membership, MembershipConfig, NodeLoad, Readiness};
    use ledger_core::node::Incarnation;

    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn slot(number: u16) -> Slot {
        Slot::new(number).unwrap()
    }

    /// A node that gossips with itself, and owns these slots.
    async fn node(owned: &[u16]) -> Membership {
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

    async fn view(node: &Membership, wanted: impl Fn(&View) -> bool) -> Arc<View> {
        let mut view = node.view();
        let found = tokio::time::timeout(Duration::from_secs(20), view.wait_for(|view| wanted(view))).await;
        found.expect("in time").unwrap().clone()
    }

    fn claimed(view: &View, slot: Slot) -> SlotLocation {
        let owner = view.claim(slot).map(|(member, epoch)| (member.node_id.clone(), epoch));
        SlotLocation { owner, ..SlotLocation::default() }
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
        let placed = SlotLocation {
            owner: Some((id("a"), Epoch(77))),
            replicas: vec![kept("a", 1), kept("a", 2), kept("b", 3)],
            reason: String::new(),
        };
        let context = ContextId::new("demo").unwrap();
        let found = location(&view, slot(5), Some(&context), placed);
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

    #[tokio::test]
    async fn a_watcher_hears_everything_once_and_then_what_changes() {
        let node = node(&[3]).await;
        view(&node, |view| view.me().is_some()).await;
        let claims = |view: &Arc<View>, slot| claimed(view, slot);
        let mut heard = Box::pin(changes(node.view(), node.view(), claims));
        let all = heard.next().await.unwrap();
        assert_eq!((all.members.len(), all.slots.len()), (1, 1));
        assert_eq!((all.slots[0].slot, all.slots[0].owner.as_str()), (3, "a"));

        node.set_owned(vec![(slot(8), Epoch::new(3, 9))]);
        let mut moved = Vec::new();
        while moved.len() < 2 {
            let change = tokio::time::timeout(Duration::from_secs(20), heard.next()).await;
            let change = change.expect("in time").unwrap();
            moved.extend(change.slots.into_iter().map(|location| (location.slot, location.owner)));
        }
        assert_eq!(moved, [(3, String::new()), (8, "a".to_owned())]);
        node.shutdown().await;
        while heard.next().await.is_some() {}
    }

    #[tokio::test]
    async fn what_did_not_change_is_not_said_again() {
        let node = node(&[3]).await;
        let now = view(&node, |view| view.me().is_some()).await;
        let mut changes = Changes::default();
        assert!(changes.step(&now, |slot| claimed(&now, slot)).is_some());
        assert_eq!(changes.step(&now, |slot| claimed(&now, slot)), None);
        node.shutdown().await;
    }

    #[test]
    fn a_member_that_went_is_told_once() {
        let member = |name: &str| ledger::Member { node_id: name.into(), alive: true, ..Default::default() };
        let mut changes = Changes::default();
        assert_eq!(changes.members(vec![member("a"), member("b")]).len(), 2);
        let gone = changes.members(vec![member("a")]);
        assert_eq!(gone, [ledger::Member { alive: false, ..member("b") }]);
        assert!(changes.members(vec![member("a")]).is_empty());
    }
}
