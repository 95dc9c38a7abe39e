//! Registers loads that are completely staged: those of other nodes, for the lanes, and this node's own, for other nodes.

use std::{collections::HashMap, sync::Arc};

use foldhash::fast::RandomState;
use ledger_core::{ContextId, Head, digest::TreeHead};
use parking_lot::Mutex;

use crate::{engine::families::RowLocation, write::state::ContextState};

/// A completely staged load.
#[derive(Debug)]
pub(crate) struct ReadyLoad {
    pub(crate) after: TreeHead,
    pub(crate) state: ContextState,
    /// Generation of the database that holds the staged rows.
    pub(crate) generation: u64,
    pub(super) _counted: Arc<()>,
}

/// The completely staged loads, for the lanes.
#[derive(Debug, Default)]
pub(crate) struct StagedLoads {
    contexts: Mutex<HashMap<ContextId, ReadyLoad, RandomState>>,
    pub(super) counted: Arc<()>,
}

impl StagedLoads {
    /// Takes the load that brings a context from one tree head to another.
    pub(crate) fn take(&self, context: &ContextId, after: &TreeHead, to: &TreeHead) -> Option<ReadyLoad> {
        let mut contexts = self.contexts.lock();
        let known = contexts.get(context)?;
        let is_it = same(&known.after, after) && known.state.head.tree_head() == *to;
        if is_it { contexts.remove(context) } else { None }
    }

    pub(super) fn put(&self, context: ContextId, arrived: ReadyLoad) -> Option<ReadyLoad> {
        self.contexts.lock().insert(context, arrived)
    }

    pub(super) fn remove(&self, context: &ContextId, number: u64) -> Option<ReadyLoad> {
        let mut contexts = self.contexts.lock();
        contexts.get(context).filter(|known| known.state.place.number == number)?;
        contexts.remove(context)
    }
}

/// Loads that are staged here and offered to other nodes, by the number of their rows.
#[derive(Debug, Default)]
pub(crate) struct OfferedLoads(Mutex<HashMap<u64, (ContextId, RowLocation, Head), RandomState>>);

impl OfferedLoads {
    /// Offers a load to other nodes, until the returned value is dropped.
    pub(crate) fn offer<'a>(
        &'a self,
        context: &ContextId,
        place: RowLocation,
        head: &Head,
    ) -> OfferedLoad<'a> {
        self.0.lock().insert(place.number, (context.clone(), place, head.clone()));
        OfferedLoad(self, place.number)
    }

    pub(crate) fn of(&self, number: u64) -> Option<(ContextId, RowLocation, Head)> {
        self.0.lock().get(&number).cloned()
    }
}

/// A load that is offered to other nodes; dropping it withdraws the offer.
pub(crate) struct OfferedLoad<'a>(&'a OfferedLoads, u64);

impl Drop for OfferedLoad<'_> {
    fn drop(&mut self) {
        self.0.0.lock().remove(&self.1);
    }
}

/// Returns whether two tree heads are equal. At size 0 the roots are ignored.
pub(super) fn same(one: &TreeHead, other: &TreeHead) -> bool {
    one.size == other.size && (one.size.0 == 0 || one.root == other.root)
}
