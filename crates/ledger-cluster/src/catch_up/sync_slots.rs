//! Brings slots in sync with their owners, and requests sync offers for them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ledger_core::{
    catch_up::{Mode, NextRun, SlotOutcome, SyncSchedule},
    node::Member,
    ownership::{Claim, slot_manager::Millis},
    slot::Slot,
};
use ledger_proto::ledger::v1::{
    SlotAsk, SlotAsks, SlotNothing, replica_service_client::ReplicaServiceClient, slot_ask::Ask,
};
use ledger_store::limited;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    backoff, catch_up,
    peers::wire,
    shared::{Shared, SyncTask},
};

/// Most batches of slots that wait for one owner.
const QUEUE_LENGTH: usize = 64;
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

/// Does what the schedule of an owner's slots says.
async fn sync_with_owner(
    shared: Arc<Shared>,
    owner: Member,
    mut slots: mpsc::Receiver<BTreeMap<Slot, Claim>>,
) {
    let mut schedule = SyncSchedule::default();
    let mut counted = SharedGauge::new(&shared.counters.catching_up);
    loop {
        while let Ok(more) = slots.try_recv() {
            limited!(info, %owner, slots = more.len(), "catching up");
            schedule.add(shared.now(), more);
        }
        counted.set(schedule.len());
        let due = match schedule.next(shared.now()) {
            NextRun::Run(group) => {
                sync_group(&shared, &owner, &mut schedule, group).await;
                continue;
            }
            NextRun::At(at) => Some(pause(shared.now(), at)),
            NextRun::Nothing => None,
        };
        let more = tokio::select! {
            more = slots.recv() => more,
            () = sleep(due.unwrap_or_default()), if due.is_some() => continue,
        };
        let Some(more) = more else { return };
        limited!(info, %owner, slots = more.len(), "catching up");
        schedule.add(shared.now(), more);
    }
}

fn pause(now: Millis, at: Millis) -> Duration {
    Duration::from_millis(at.saturating_sub(now).max(1))
}

/// Brings a group of slots in sync with their owner, and requests sync offers right after: a slot counts as in sync
/// regardless of the others.
async fn sync_group(
    shared: &Arc<Shared>,
    owner: &Member,
    schedule: &mut SyncSchedule,
    group: BTreeMap<Slot, Claim>,
) {
    let mut outcomes = BTreeMap::new();
    catch_up::run(shared, owner, group, Mode::FollowOwner, |slot, outcome| {
        outcomes.insert(slot, outcome);
    })
    .await;
    let damaged: BTreeSet<Slot> =
        outcomes.keys().copied().filter(|slot| shared.ledger.is_slot_damaged(*slot)).collect();
    let slots = schedule.on_run_ended(shared.now(), &outcomes, &damaged, backoff::jitter());
    let mut has_failed = outcomes.values().any(|outcome| matches!(outcome, SlotOutcome::Failed(_)));
    if !slots.is_empty() {
        let requested = request_sync(shared, owner, &slots).await;
        if let Err(reason) = &requested {
            tracing::debug!(%owner, reason, "the owner could not be asked for an offer");
            has_failed = true;
        }
        schedule.on_offers_requested(shared.now(), requested.is_ok(), backoff::jitter());
    }
    if has_failed && (!shared.is_served(&owner.node) || shared.ledger.writable().is_err()) {
        schedule.on_owner_lost();
    }
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
