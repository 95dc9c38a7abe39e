//! Brings slots in sync with their owners, and requests sync offers for them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ledger_core::{node::Member, ownership::Claim, slot::Slot};
use ledger_proto::ledger::v1::{
    SlotAsk, SlotAsks, SlotNothing, replica_service_client::ReplicaServiceClient, slot_ask::Ask,
};
use ledger_store::limited;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    backoff::Backoff,
    catch_up::{self, CatchUpMode, CatchUpResult},
    peers::wire,
    shared::{Shared, SyncTask},
};

/// Slots that are brought in sync together: few enough that the first ones do not wait long for the others.
const GROUP_SLOTS: usize = 32;
/// Most batches of slots that wait for one owner.
const QUEUE_LENGTH: usize = 64;
/// How long to wait for more slots of the same owner.
const BATCHING_WINDOW: Duration = Duration::from_millis(20);
/// The pause after catching up failed, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(10);
/// How long a sync request may take.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);

/// Passes slots to one task per owner.
pub(crate) async fn run(shared: Arc<Shared>, mut follows: mpsc::Receiver<SyncTask>) {
    let mut owners: HashMap<Member, mpsc::Sender<BTreeMap<Slot, Claim>>> = HashMap::new();
    while let Some(follow) = follows.recv().await {
        let owner = owners.entry(follow.owner.clone()).or_insert_with(|| {
            let (sender, slots) = mpsc::channel(QUEUE_LENGTH);
            let (of, cancel) = (Arc::clone(&shared), shared.cancel.clone());
            tokio::spawn(async move {
                cancel.run_until_cancelled(sync_with_owner(of, follow.owner, slots)).await;
            });
            sender
        });
        // A task ends only when the node stops.
        let _ = owner.send(follow.slots).await;
    }
}

async fn sync_with_owner(
    shared: Arc<Shared>,
    owner: Member,
    mut slots: mpsc::Receiver<BTreeMap<Slot, Claim>>,
) {
    // Slots that damage on either side delays are retried from time to time, so that the others do not wait for them.
    let (mut delayed, mut backoff) = (BTreeMap::new(), Backoff::new(FIRST_PAUSE, MAX_PAUSE));
    let mut due = Instant::now();
    loop {
        let mut todo = tokio::select! {
            more = slots.recv() => match more {
                Some(more) => more,
                None => return,
            },
            () = sleep_until(due), if !delayed.is_empty() => BTreeMap::new(),
        };
        if todo.is_empty() {
            todo = std::mem::take(&mut delayed);
        } else {
            sleep(BATCHING_WINDOW).await;
        }
        delayed.append(&mut sync_slots(&shared, &owner, todo, &mut slots).await);
        if delayed.is_empty() {
            backoff.reset();
        } else {
            due = Instant::now() + backoff.pause();
        }
    }
}

/// Brings slots in sync with their owner, group by group, and requests sync offers right after each group: a slot
/// counts as in sync regardless of the others. Returns the slots that damage delays.
async fn sync_slots(
    shared: &Arc<Shared>,
    owner: &Member,
    mut todo: BTreeMap<Slot, Claim>,
    slots: &mut mpsc::Receiver<BTreeMap<Slot, Claim>>,
) -> BTreeMap<Slot, Claim> {
    let mut delayed = BTreeMap::new();
    let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
    let mut counted = SharedGauge::new(&shared.counters.catching_up);
    let mut last = None;
    limited!(info, %owner, slots = todo.len(), "catching up");
    while !todo.is_empty() {
        // Newer claims of the owner replace older ones.
        while let Ok(more) = slots.try_recv() {
            todo.extend(more);
        }
        delayed.retain(|slot, _| !todo.contains_key(slot));
        counted.set(todo.len() + delayed.len());
        let mut group = next_group(&todo, last);
        // A group that keeps failing must not starve the others.
        last = group.last_key_value().map(|(slot, _)| *slot);
        match catch_up::run(shared, owner, &group, CatchUpMode::FollowOwner).await {
            Ok(CatchUpResult { refused, unreadable }) => {
                // These slots have another owner by now, who offers them itself. This node refuses the previous
                // owner's offer and thereby reports the higher claim.
                for (slot, by) in refused {
                    tracing::debug!(slot = slot.number(), %owner, by = %by.claimant, "a slot has another owner by now");
                }
                let is_held_up =
                    |slot: &Slot| unreadable.contains(slot) || shared.ledger.is_slot_damaged(*slot);
                for (slot, claim) in group.extract_if(.., |slot, _| is_held_up(slot)) {
                    todo.remove(&slot);
                    delayed.insert(slot, claim);
                }
                match request_sync(shared, owner, &group).await {
                    Ok(()) => {
                        todo.retain(|slot, _| !group.contains_key(slot));
                        backoff.reset();
                        continue;
                    }
                    Err(reason) => {
                        tracing::debug!(%owner, reason, "the owner could not be asked for an offer");
                    }
                }
            }
            Err(error) => limited!(info, %owner, %error, "catching up failed: trying again"),
        }
        // Without the owner's stream nothing can be in sync, and the next stream begins by offering all slots.
        if !shared.is_served(&owner.node) || shared.ledger.writable().is_err() {
            return BTreeMap::new();
        }
        sleep(backoff.pause()).await;
    }
    delayed
}

/// Returns the next group of slots after `last`, starting over after the last slot.
fn next_group(todo: &BTreeMap<Slot, Claim>, last: Option<Slot>) -> BTreeMap<Slot, Claim> {
    let rest = todo.iter().filter(|(slot, _)| last.is_none_or(|last| **slot > last));
    let group: BTreeMap<_, _> = rest.take(GROUP_SLOTS).map(|(slot, claim)| (*slot, claim.clone())).collect();
    if group.is_empty() && last.is_some() { next_group(todo, None) } else { group }
}

/// One task's share of a shared gauge; dropping it subtracts the share.
struct SharedGauge<'a> {
    total: &'a AtomicU64,
    share: u64,
}

impl<'a> SharedGauge<'a> {
    fn new(total: &'a AtomicU64) -> Self {
        Self { total, share: 0 }
    }

    fn set(&mut self, share: usize) {
        let before = std::mem::replace(&mut self.share, share as u64);
        // The total may wrap around for a moment.
        self.total.fetch_add(self.share.wrapping_sub(before), Ordering::Relaxed);
    }
}

impl Drop for SharedGauge<'_> {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Sends the owner a sync request for each slot.
async fn request_sync(
    shared: &Arc<Shared>,
    owner: &Member,
    slots: &BTreeMap<Slot, Claim>,
) -> Result<(), String> {
    if slots.is_empty() {
        return Ok(());
    }
    let peer = shared.peers.get(owner).ok_or("it is not known")?;
    let channel = shared.peers.channel(&peer)?;
    let asks = slots.iter().map(|(slot, claim)| SlotAsk {
        slot: u32::from(slot.number()),
        claim: Some(wire::to_claim(claim)),
        ask: Some(Ask::Join(SlotNothing {})),
    });
    let asks = SlotAsks {
        from: Some(wire::to_member(&shared.me)),
        to: Some(wire::to_member(owner)),
        asks: asks.collect(),
    };
    let mut client = ReplicaServiceClient::new(channel);
    let response = timeout(RESPONSE_TIMEOUT, client.slots(asks)).await;
    response.map_err(|_| "no answer in time".to_owned())?.map_err(|status| status.to_string())?;
    Ok(())
}
