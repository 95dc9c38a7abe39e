//! Which nodes a slot should be on: highest random weight, or rendezvous hashing (Thaler and Ravishankar,
//! "Using name-based mappings to increase hit rates", IEEE/ACM Transactions on Networking 6(1), 1998).
//!
//! Every node has a weight for every slot, the BLAKE3 hash of both. A slot prefers the nodes of the highest
//! weights. All who know the same nodes find the same order without a word, slots spread evenly, and a node
//! that goes takes no slot along but its own.

use std::cmp::Reverse;

use crate::{node::NodeId, slot::Slot};

/// A node that placement may choose for a slot, and its zone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlacementCandidate {
    /// The node.
    pub node: NodeId,
    /// The zone that the node stands in, such as a rack or a data centre. Nodes without a zone count as of one zone, "".
    pub zone: String,
}

/// Returns the nodes in the order in which a slot prefers them, each once.
pub fn preference_order(slot: Slot, nodes: impl IntoIterator<Item = NodeId>) -> Vec<NodeId> {
    let mut nodes: Vec<_> = nodes.into_iter().collect();
    nodes.sort_unstable();
    nodes.dedup();
    // The order of names decides between equal weights, because the sort is stable.
    nodes.sort_by_cached_key(|node| Reverse(weight(slot, node)));
    nodes
}

/// Returns the `copies` nodes that should keep a slot (all of them if there are fewer), the most preferred first.
///
/// Zones come before weights: no zone gets a second copy while another zone has none, nor a third while
/// another has room for a second. Within that, higher weights win. Without zones this is [`preference_order`], cut.
///
/// A node that goes still moves only the slots it kept: its zone's next node takes its place or a worse one,
/// so nobody else is pushed out.
pub fn preferred_members(
    slot: Slot,
    candidates: impl IntoIterator<Item = PlacementCandidate>,
    copies: usize,
) -> Vec<NodeId> {
    let mut candidates: Vec<_> = candidates.into_iter().collect();
    candidates.sort_unstable();
    // Of a node that is said to be in two zones the first by name counts, so the order of input does not.
    candidates.dedup_by(|later, earlier| later.node == earlier.node);

    let mut ranked: Vec<_> =
        candidates.into_iter().map(|candidate| (Reverse(weight(slot, &candidate.node)), candidate)).collect();
    ranked.sort_by(|(a, left), (b, right)| left.zone.cmp(&right.zone).then(a.cmp(b)));

    // By zone now, and within a zone by weight: a node's rank is its place in its zone.
    let mut placed = Vec::with_capacity(ranked.len());
    for zone in ranked.chunk_by(|(_, left), (_, right)| left.zone == right.zone) {
        placed.extend(
            zone.iter().enumerate().map(|(rank, (weight, candidate))| (rank, weight, &candidate.node)),
        );
    }
    placed.sort_unstable();
    placed.into_iter().take(copies).map(|(_, _, node)| node.clone()).collect()
}

fn weight(slot: Slot, node: &NodeId) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&slot.number().to_be_bytes());
    hasher.update(node.as_str().as_bytes());
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::slot::SLOTS;

    fn slots() -> impl Iterator<Item = Slot> {
        (0..SLOTS).filter_map(Slot::new)
    }

    fn candidate(node: &str, zone: &str) -> PlacementCandidate {
        PlacementCandidate { node: NodeId::new(node).unwrap(), zone: zone.to_owned() }
    }

    /// Nodes of random names, each in one of up to four zones.
    fn cluster() -> impl Strategy<Value = Vec<PlacementCandidate>> {
        let nodes = prop::collection::btree_map("[a-z][a-z0-9-]{0,12}", 0..4_u8, 2..=10);
        nodes
            .prop_map(|nodes| nodes.iter().map(|(name, zone)| candidate(name, &format!("z{zone}"))).collect())
    }

    #[test]
    fn the_order_of_a_slot_never_changes_between_releases() {
        let nodes = ["ledger-0", "ledger-1", "ledger-2"].map(|name| NodeId::new(name).unwrap());
        let first: Vec<_> = slots()
            .take(8)
            .map(|slot| preference_order(slot, nodes.clone())[0].as_str()[7..].to_owned())
            .collect();
        assert_eq!(first.join(""), "11202212");
    }

    #[test]
    fn too_few_nodes_all_keep_the_slot_and_nobody_keeps_it_twice() {
        let nodes = [candidate("a", "x"), candidate("b", "y"), candidate("a", "z")];
        for slot in slots() {
            assert_eq!(preferred_members(slot, nodes.clone(), 5).len(), 2);
            assert_eq!(preferred_members(slot, nodes.clone(), 0), []);
            assert_eq!(preferred_members(slot, [], 3), []);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_order_of_input_does_not_matter(
            (nodes, shuffled) in cluster().prop_flat_map(|n| (Just(n.clone()), Just(n).prop_shuffle())),
            copies in 1..5_usize,
        ) {
            let names = |nodes: &[PlacementCandidate]| nodes.iter().map(|c| c.node.clone()).collect::<Vec<_>>();
            for slot in slots().step_by(31) {
                prop_assert_eq!(preference_order(slot, names(&nodes)), preference_order(slot, names(&shuffled)));
                prop_assert_eq!(
                    preferred_members(slot, nodes.clone(), copies),
                    preferred_members(slot, shuffled.clone(), copies)
                );
            }
        }

        #[test]
        fn without_zones_the_wanted_set_begins_the_order(nodes in cluster(), copies in 1..5_usize) {
            let nodes: Vec<_> = nodes.iter().map(|c| candidate(c.node.as_str(), "")).collect();
            for slot in slots().step_by(31) {
                let mut order = preference_order(slot, nodes.iter().map(|c| c.node.clone()));
                order.truncate(copies);
                prop_assert_eq!(preferred_members(slot, nodes.clone(), copies), order);
            }
        }

        #[test]
        fn a_node_that_goes_moves_only_the_slots_it_kept(
            (nodes, gone) in cluster().prop_flat_map(|n| (Just(n.clone()), 0..n.len())),
            copies in 1..5_usize,
        ) {
            let mut left = nodes.clone();
            let gone = left.remove(gone).node;
            for slot in slots() {
                let before: BTreeSet<_> = preferred_members(slot, nodes.clone(), copies).into_iter().collect();
                let after: BTreeSet<_> = preferred_members(slot, left.clone(), copies).into_iter().collect();
                let lost: Vec<_> = before.difference(&after).collect();
                prop_assert!(lost.is_empty() || lost == [&gone]);
                prop_assert!(after.difference(&before).count() <= usize::from(before.contains(&gone)));
            }
        }

        #[test]
        fn copies_are_in_as_many_zones_as_there_are(nodes in cluster(), copies in 1..5_usize) {
            let zone_of: BTreeMap<_, _> = nodes.iter().map(|c| (&c.node, &c.zone)).collect();
            let zones = zone_of.values().collect::<BTreeSet<_>>().len();
            for slot in slots().step_by(31) {
                let set = preferred_members(slot, nodes.clone(), copies);
                prop_assert_eq!(set.len(), copies.min(nodes.len()));
                let distinct = set.iter().map(|node| zone_of[node]).collect::<BTreeSet<_>>().len();
                prop_assert_eq!(distinct, copies.min(zones));
            }
        }

        #[test]
        fn slots_spread_evenly(nodes in cluster()) {
            let mut first = BTreeMap::new();
            for slot in slots() {
                let preferred = preference_order(slot, nodes.iter().map(|c| c.node.clone())).remove(0);
                *first.entry(preferred).or_insert(0_u32) += 1;
            }
            // Random placement of 1024 slots on 10 nodes gives 102 each, give or take 10: 60 % is six
            // standard deviations.
            let fair = f64::from(SLOTS) / nodes.len() as f64;
            prop_assert_eq!(first.len(), nodes.len());
            for (node, count) in first {
                let share = f64::from(count) / fair;
                prop_assert!((0.4..1.6).contains(&share), "{} is first for {} slots of fair {}", node, count, fair);
            }
        }
    }
}
