//! The incarnations that chitchat may know.
//!
//! Every start of a node is another incarnation, and chitchat keeps each for the dead node grace. It names all that it
//! knows in every message, so their number must stay far below what fits into one: a node that starts again every few
//! seconds makes a thousand in an hour. Therefore
//! - [`KnownIncarnations`] admits an unknown incarnation only while there is room;
//! - [`forget_superseded`] makes chitchat forget those that a later start of the same node has superseded, once there are
//!   many, and they are not admitted again. The node's last incarnation stays, dead or alive.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chitchat::{Chitchat, ChitchatId, NodeState, Serializable as _, VersionedValue};
use ledger_core::node::MAX_NODE_ID;

use super::check::IncarnationBytes;

/// Most bytes of all ids with their numbers in a digest: a message of 65 507 bytes keeps room for values.
const MAX_DIGEST: usize = 40 << 10;
/// Bytes of superseded incarnations in a digest from which on they are forgotten.
const MAX_SUPERSEDED: usize = 8 << 10;
/// Bytes of an incarnation's heartbeat and versions in a digest.
const NUMBERS: usize = 24;
/// Most nodes whose earlier incarnations are remembered as forgotten.
const MAX_FORGOTTEN: usize = 1024;

/// The incarnations that chitchat knows, and those that it must not learn of again.
#[derive(Debug, Default)]
pub(in crate::membership) struct KnownIncarnations {
    me: Option<ChitchatId>,
    /// Their ids, as they are in messages.
    known: HashSet<Vec<u8>>,
    /// Bytes that they take in a digest.
    len: usize,
    /// Incarnations of a node below this generation were forgotten.
    forgotten: HashMap<Arc<str>, u64>,
}

impl KnownIncarnations {
    /// Sets this node's own incarnation.
    pub(in crate::membership) fn set_me(&mut self, me: ChitchatId) {
        self.me = Some(me);
    }

    /// Whether an incarnation is this node's own.
    pub(super) fn is_me(&self, id: &IncarnationBytes<'_>) -> bool {
        self.me.as_ref().is_some_and(|me| me.serialize_to_vec() == id.bytes)
    }

    /// Whether chitchat may know an incarnation. If it may, it counts as known.
    pub(super) fn admit(&mut self, id: &IncarnationBytes<'_>) -> bool {
        if self.known.contains(id.bytes) || self.is_me(id) {
            return true;
        }
        let len = id.bytes.len() + NUMBERS;
        let is_forgotten = self.forgotten.get(id.node).is_some_and(|first| id.generation < *first);
        if is_forgotten || id.node.len() > MAX_NODE_ID || self.len + len > MAX_DIGEST {
            return false;
        }
        self.len += len;
        self.known.insert(id.bytes.to_vec())
    }

    /// Sets what chitchat knows now.
    pub(in crate::membership) fn set_known<'a>(&mut self, ids: impl Iterator<Item = &'a ChitchatId>) {
        self.known = ids.map(chitchat::Serializable::serialize_to_vec).collect();
        self.len = self.known.iter().map(|id| id.len() + NUMBERS).sum();
    }

    fn forget_before(&mut self, id: &ChitchatId) {
        if self.forgotten.len() >= MAX_FORGOTTEN && !self.forgotten.contains_key(&id.node_id) {
            // They may come back from others, and are forgotten again.
            self.forgotten.clear();
        }
        let first = self.forgotten.entry(Arc::clone(&id.node_id)).or_default();
        *first = id.generation_id.max(*first);
    }
}

/// Makes chitchat forget superseded incarnations if there are many. `fresh` makes a chitchat of the same node that knows
/// nothing: chitchat itself forgets a node only when its grace is over. Returns how many were forgotten.
///
/// Versions and the node's own heartbeat go on from where they were, so that other nodes take what is published next. Heartbeats
/// of other nodes are learned anew with the next message that names them.
pub(in crate::membership) fn forget_superseded(
    chitchat: &mut Chitchat,
    known: &mut KnownIncarnations,
    fresh: impl FnOnce() -> Chitchat,
) -> usize {
    let (superseded, newest) = superseded(chitchat);
    let len: usize = superseded.iter().map(|id| id.serialized_len() + NUMBERS).sum();
    if len <= MAX_SUPERSEDED {
        return 0;
    }
    for id in &newest {
        known.forget_before(id);
    }
    let mut next = fresh();
    let state = chitchat.self_node_state();
    let own = next.self_node_state();
    own.try_set_heartbeat(state.heartbeat());
    own.set_max_version(state.max_version());
    state.key_values().for_each(|(key, value)| own.set(key, value));
    for (id, state) in chitchat.node_states() {
        if id != chitchat.self_chitchat_id() && !superseded.contains(id) {
            let versions = (state.max_version(), state.last_gc_version());
            next.reset_node_state_if_update(id, values(state), versions.0, versions.1);
        }
    }
    *chitchat = next;
    superseded.len()
}

fn values(state: &NodeState) -> impl Iterator<Item = (String, VersionedValue)> {
    state.key_values_including_deleted().map(|(key, value)| (key.to_owned(), value.clone()))
}

/// Returns the incarnations that are not heard and have a later one, and the newest incarnations of their nodes.
fn superseded(chitchat: &Chitchat) -> (HashSet<ChitchatId>, Vec<ChitchatId>) {
    let live: HashSet<&ChitchatId> = chitchat.live_nodes().collect();
    let (mut superseded, mut newest) = (HashSet::new(), Vec::new());
    // In order of names and generations, the highest first.
    let mut last: Option<&ChitchatId> = None;
    for id in chitchat.node_states().keys().rev() {
        match last {
            Some(later) if later.node_id == id.node_id && later.generation_id > id.generation_id => {
                if !live.contains(id) {
                    superseded.insert(id.clone());
                    newest.push(later.clone());
                }
            }
            _ => last = Some(id),
        }
    }
    newest.dedup();
    (superseded, newest)
}
