//! What lanes were asked and did not answer yet.

use std::collections::BTreeMap;

use ledger_core::slot::Slot;
use tokio::sync::oneshot;

use crate::{
    StoreError,
    replicate::replica::{ReplicateOutcome, SyncState},
};

/// Parts that lanes are writing: resolves to the outcome of each part, once it is durable.
#[derive(Debug)]
pub struct PendingReplication(pub(crate) Vec<oneshot::Receiver<Result<Vec<ReplicateOutcome>, StoreError>>>);

impl PendingReplication {
    /// Waits until all parts are durable. The outcomes come in no particular order.
    ///
    /// # Errors
    /// [`StoreError`] if a lane failed to write, or the ledger closed.
    pub async fn durable(self) -> Result<Vec<ReplicateOutcome>, StoreError> {
        let mut all = Vec::new();
        for lane in self.0 {
            all.extend(lane.await.map_err(|_| StoreError::Closed)??);
        }
        Ok(all)
    }
}

/// Fetched ranges that lanes are writing, with the slot of each.
#[derive(Debug)]
pub struct PendingFetched(pub(crate) Vec<FetchedOfLane>);

pub(crate) type FetchedOfLane = (Vec<Slot>, oneshot::Receiver<Result<Vec<ReplicateOutcome>, StoreError>>);

impl PendingFetched {
    /// Waits until all ranges are durable, or failed. Returns the outcome of each range with its slot: a lane that failed to write
    /// fails its own ranges only.
    pub async fn durable(self) -> Vec<(Slot, Result<ReplicateOutcome, StoreError>)> {
        let mut all = Vec::new();
        for (slots, lane) in self.0 {
            match lane.await.unwrap_or(Err(StoreError::Closed)) {
                // A lane answers in the order in which it was given the ranges.
                Ok(outcomes) => all.extend(slots.into_iter().zip(outcomes.into_iter().map(Ok))),
                Err(error) => all.extend(slots.into_iter().map(|slot| (slot, Err(error.clone())))),
            }
        }
        all
    }
}

/// The state of claims at this replica, being collected from the lanes.
#[derive(Debug)]
pub struct SyncStates(pub(crate) Vec<oneshot::Receiver<Vec<(Slot, SyncState)>>>);

impl SyncStates {
    /// Waits for all lanes.
    ///
    /// # Errors
    /// [`StoreError::Closed`] if the ledger closed.
    pub async fn all(self) -> Result<BTreeMap<Slot, SyncState>, StoreError> {
        all_of(self.0).await
    }
}

/// Collects the responses of several lanes.
pub(crate) async fn all_of<T>(
    waiting: Vec<oneshot::Receiver<Vec<(Slot, T)>>>,
) -> Result<BTreeMap<Slot, T>, StoreError> {
    let mut all = BTreeMap::new();
    for answer in waiting {
        all.extend(answer.await.map_err(|_| StoreError::Closed)?);
    }
    Ok(all)
}
