//! What changes of the cluster, as a stream for whoever watches it.

use std::{collections::BTreeMap, sync::Arc};

use futures::{Stream, stream};
use ledger_cluster::membership::View;
use ledger_core::{
    Epoch,
    node::NodeId,
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1 as ledger;
use prost::Message as _;
use tokio::sync::watch;

use crate::{
    grpc::call,
    limits,
    membership::cluster_view::{SlotLocation, location, members},
};

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
        locate: impl Fn(Slot) -> SlotLocation,
    ) -> Option<ledger::ClusterChange> {
        let first = self.owners.is_empty();
        let members = self.members(members(view));
        self.owners.resize(usize::from(SLOTS), None);
        let mut slots = Vec::new();
        for (slot, known) in (0..SLOTS).filter_map(Slot::new).zip(&mut self.owners) {
            let found = locate(slot);
            if *known != found.owner {
                known.clone_from(&found.owner);
                slots.push(location(view, slot, None, found));
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
    locate: impl Fn(&R, Slot) -> SlotLocation + Send + 'static,
) -> impl Stream<Item = ledger::ClusterChange> + Send {
    stream::unfold(
        (views, routes, locate, Changes::default()),
        |(mut views, mut routes, locate, mut changes)| async move {
            loop {
                let bytes = if changes.owners.is_empty() { limits::CLUSTER } else { limits::SMALL_PAGE };
                // It waits as long as it takes: it is no call that its answer ends.
                let reserved = call::reserve(call::current(), bytes).await.ok()?;
                let view = Arc::clone(&views.borrow_and_update());
                let known = routes.borrow_and_update().clone();
                if let Some(change) = changes.step(&view, |slot| locate(&known, slot)) {
                    reserved.hand_over(2 * change.encoded_len());
                    return Some((change, (views, routes, locate, changes)));
                }
                drop(reserved);
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
    use std::time::Duration;

    use futures::StreamExt as _;

    use super::*;
    use crate::membership::cluster_view::tests::{node, slot, view};

    fn claimed(view: &View, slot: Slot) -> SlotLocation {
        let owner = view.claim(slot).map(|(member, epoch)| (member.node_id.clone(), epoch));
        SlotLocation { owner, ..SlotLocation::default() }
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
