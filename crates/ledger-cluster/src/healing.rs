//! Damaged contexts are restored from other nodes that keep them.
//!
//! A read or the scrub finds that what is stored is not what was written ([`Ledger::damage`](ledger_store::Ledger::damage)).
//! Another member of the slot is asked for the whole history, which is taken if it has the root that this node has.

use std::{
    collections::HashSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ledger_core::{ContextId, Size, node::Member, slot::Slot};
use ledger_proto::ledger::v1::{FetchContext, FetchRequest, replica_service_client::ReplicaServiceClient};
use ledger_store::{Healing, StoreError};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::{
    catch_up::{CatchUpError, PATIENCE, blocking},
    door::calling::Proven,
    pace::Pace,
    routes::RouteTo,
    sending::MAX_MESSAGE,
    shared::Shared,
    wire,
};

/// Most times that a context may grow by more than can be added at once.
const ROUNDS: usize = 64;

/// Heals whatever is found to be damaged, from when it is found; what cannot be healed is tried again from time to time.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut damage = shared.ledger.watch_damage();
    let mut tick = interval(shared.config.anti_entropy_interval.max(Duration::from_millis(100)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Of those it was said that they cannot be healed yet.
    let mut given_up = HashSet::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = damage.changed() => {}
        }
        let damaged: Vec<ContextId> = shared.ledger.damage().into_iter().map(|found| found.context).collect();
        given_up.retain(|context| damaged.contains(context));
        for context in damaged {
            match heal(&shared, &context).await {
                Ok(None) => {}
                Ok(Some((source, entries))) => {
                    shared.counters.healed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(%context, %source, entries, "a damaged context was restored from another node");
                }
                Err(error) => {
                    if given_up.insert(context.clone()) {
                        tracing::error!(
                            %context, %error,
                            "a damaged context cannot be restored from another node yet: this is tried again"
                        );
                    }
                }
            }
        }
    }
}

/// Restores a context from the first node that can give it; that node, and how many entries it has. `None`: it is not
/// damaged any more, or nothing of it is stable yet.
async fn heal(shared: &Arc<Shared>, context: &ContextId) -> Result<Option<(Member, u64)>, CatchUpError> {
    let mut failure = CatchUpError::Peer("no other node that keeps it is known".to_owned());
    for source in sources(shared, Slot::of(context)) {
        match heal_from(shared, context, &source).await {
            Ok(healed) => return Ok(healed.map(|entries| (source, entries))),
            // Without this node's own head, or disk, nobody helps.
            Err(error @ CatchUpError::Store(StoreError::Damaged { sequence, .. })) if sequence.0 == 0 => {
                return Err(error);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Who may have a slot's contexts: its owner, then its other members.
fn sources(shared: &Shared, slot: Slot) -> Vec<Member> {
    let routes = shared.routes.borrow();
    let Some(route) = routes.get(slot) else { return Vec::new() };
    let mut members: Vec<Member> =
        route.members.iter().filter(|member| **member != shared.me).cloned().collect();
    if let RouteTo::Other(owner, _) = &route.owner {
        members.sort_by_key(|member| member.node != *owner);
    }
    members
}

async fn heal_from(
    shared: &Arc<Shared>,
    context: &ContextId,
    source: &Member,
) -> Result<Option<u64>, CatchUpError> {
    let peer = shared.peers.get(source).ok_or_else(|| CatchUpError::Peer("it is not known".to_owned()))?;
    let channel = shared.peers.channel(&peer).map_err(CatchUpError::Peer)?;
    let mut client = ReplicaServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut pace = Pace::new(shared.config.catch_up_rate);
    let (ledger, of) = (shared.ledger.clone(), context.clone());
    let Some(mut healing) = blocking(move || ledger.heal(&of)).await? else { return Ok(None) };
    for _ in 0..ROUNDS {
        let Some((after, to)) = healing.missing() else { return Err(CatchUpError::TooFast) };
        healing = fetch(shared, source, &mut client, &mut pace, context, healing, after, to).await?;
        let is_done;
        (healing, is_done) = blocking(move || {
            let is_done = healing.finish()?;
            Ok((healing, is_done))
        })
        .await?;
        if is_done {
            return Ok(Some(to.0));
        }
    }
    Err(CatchUpError::TooFast)
}

/// Fetches what is missing, and stages it.
#[expect(clippy::too_many_arguments, reason = "whom to ask, how, and for what")]
async fn fetch(
    shared: &Shared,
    source: &Member,
    client: &mut ReplicaServiceClient<Proven>,
    pace: &mut Pace,
    context: &ContextId,
    mut healing: Healing,
    after: Size,
    to: Size,
) -> Result<Healing, CatchUpError> {
    let wanted = FetchContext { context_id: context.as_str().to_owned(), after_size: after.0, to_size: to.0 };
    let request = FetchRequest { to: Some(wire::to_member(source)), contexts: vec![wanted] };
    let ranges = timeout(PATIENCE, client.fetch(request)).await;
    let mut ranges = ranges.map_err(|_| CatchUpError::Peer("no answer in time".to_owned()))??.into_inner();
    while healing.missing().is_some() {
        let range = timeout(PATIENCE, ranges.message()).await;
        let range = range.map_err(|_| CatchUpError::Peer("no range in time".to_owned()))??;
        let range = range.and_then(|range| range.range);
        let range =
            range.ok_or_else(|| CatchUpError::Peer("it has less than it was asked for".to_owned()))?;
        let bytes = range.records.len() as u64;
        let (of, range) = wire::range(range).map_err(|error| {
            CatchUpError::Invalid(shared.unread(&source.node, &error).message().to_owned())
        })?;
        if of != *context {
            return Err(CatchUpError::Invalid(format!("context {of} was not asked for")));
        }
        let counters = &shared.counters;
        counters.fetched_entries.fetch_add(range.count, Ordering::Relaxed);
        counters.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
        healing = blocking(move || {
            healing.take(&range)?;
            Ok(healing)
        })
        .await?;
        pace.pay(bytes).await;
    }
    Ok(healing)
}
