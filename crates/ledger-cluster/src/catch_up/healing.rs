//! Restores damaged contexts from other nodes.
//!
//! A read or the scrub finds that stored data is not what was written
//! ([`Ledger::damage`](ledger_store::Ledger::damage)). This module then requests the whole history from another
//! member of the slot. The store installs it only if it is proven to be the history that this node had ([`Healing`]),
//! or is that of the slot's owner.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ledger_core::{
    ContextId, Size,
    compare::{CompareRequest, CompareResponse, ListedContext},
    digest::{Bucket, TreeHead},
    node::Member,
    ownership::Claim,
    slot::Slot,
};
use ledger_proto::ledger::v1::{FetchContext, FetchRequest, replica_service_client::ReplicaServiceClient};
use ledger_store::{Healing, StoreError, limited};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    backoff::Backoff,
    catch_up::rate_limiter::RateLimiter,
    catch_up::{CatchUpError, RESPONSE_TIMEOUT, blocking},
    ownership::routes::SlotOwner,
    peers::call_auth::client::AuthenticatedChannel,
    peers::wire,
    replicate::owner_stream::MAX_MESSAGE,
    shared::Shared,
};

/// How often a context may grow by more than the lane can add at once.
const MAX_ROUNDS: usize = 64;

/// Most pages of a bucket that are requested. A bucket has some four contexts for each million in the cluster.
const MAX_PAGES: usize = 16;
/// The pause before a context is retried, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_mins(1);
/// A context that stayed undamaged for this long after it was restored counts as healthy again.
const HEALTHY_AFTER: Duration = Duration::from_mins(10);
/// Contexts that are processed together.
const MAX_CONCURRENT: usize = 1024;
/// If a context is damaged again this often after being restored, the node's disk is unreliable.
const MAX_RELAPSES: u32 = 3;

/// A context that is damaged, or was.
struct DamagedContext {
    /// When to try it next.
    due: Instant,
    backoff: Backoff,
    restored: u32,
}

/// Restores every damaged context once it is found; retries those that cannot be restored, ever less often.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut damage = shared.ledger.watch_damage();
    let mut tick = interval(FIRST_PAUSE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut patients: HashMap<ContextId, DamagedContext> = HashMap::new();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Ok(()) = damage.changed() => {}
        }
        let now = Instant::now();
        let damaged: HashSet<ContextId> =
            shared.ledger.damage().into_iter().map(|found| found.context).collect();
        patients.retain(|context, patient| damaged.contains(context) || now < patient.due + HEALTHY_AFTER);
        for context in due(damaged, &patients, now) {
            let patient = patients.entry(context.clone()).or_insert_with(|| DamagedContext {
                due: now,
                backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE),
                restored: 0,
            });
            match heal(&shared, &context).await {
                Ok(None) => {}
                Ok(Some((source, entries))) => {
                    shared.counters.healed.fetch_add(1, Ordering::Relaxed);
                    patient.restored += 1;
                    limited!(warn, %context, %source, entries, "a damaged context was restored from another node");
                    if patient.restored >= MAX_RELAPSES {
                        limited!(
                            error, %context, times = patient.restored,
                            "a context that was restored is damaged again and again: replace this node's disk and its data directory"
                        );
                    }
                }
                Err(error) => {
                    limited!(
                        error, %context, %error,
                        "a damaged context cannot be restored from another node yet: this is tried again"
                    );
                }
            }
            // Pause after success too: a context that is damaged again at once must not occupy the node.
            patient.due = Instant::now() + patient.backoff.pause();
        }
    }
}

/// Returns the damaged contexts that are due, at most [`MAX_CONCURRENT`]: first those never tried, then those waiting
/// longest. So contexts that cannot be restored do not starve the others.
fn due(
    damaged: HashSet<ContextId>,
    patients: &HashMap<ContextId, DamagedContext>,
    now: Instant,
) -> impl Iterator<Item = ContextId> + use<> {
    let since = |context: &ContextId| patients.get(context).map(|patient| patient.due);
    let mut due: Vec<_> = damaged.into_iter().map(|context| (since(&context), context)).collect();
    due.retain(|(since, _)| since.is_none_or(|since| since <= now));
    due.sort();
    due.into_iter().map(|(_, context)| context).take(MAX_CONCURRENT)
}

/// Restores a context from the first node that can provide it. Returns the node and the number of entries; `None` if
/// the context is not damaged any more, or none of its entries is committed yet.
async fn heal(shared: &Arc<Shared>, context: &ContextId) -> Result<Option<(Member, u64)>, CatchUpError> {
    let mut failure = CatchUpError::Peer("no other node that keeps it is known".to_owned());
    for source in sources(shared, Slot::of(context)) {
        match heal_from(shared, context, &source).await {
            Ok(healed) => return Ok(healed.map(|entries| (source, entries))),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Returns the nodes that may have a slot's contexts: its owner, then its other members.
fn sources(shared: &Shared, slot: Slot) -> Vec<Member> {
    let routes = shared.routes.borrow();
    let Some(route) = routes.get(slot) else { return Vec::new() };
    let mut members: Vec<Member> =
        route.members.iter().filter(|member| **member != shared.me).cloned().collect();
    if let SlotOwner::Other(owner, _) = &route.owner {
        members.sort_by_key(|member| member.node != *owner);
    }
    members
}

async fn heal_from(
    shared: &Arc<Shared>,
    context: &ContextId,
    source: &Member,
) -> Result<Option<u64>, CatchUpError> {
    let (ledger, of) = (shared.ledger.clone(), context.clone());
    let healing = match blocking(move || ledger.heal(&of)).await {
        // This node's own head is lost: the digest that it kept proves whether the other node's tree head is the
        // same.
        Err(CatchUpError::Store(StoreError::Damaged { sequence, .. })) if sequence.0 == 0 => {
            let bucket = bucket_of(shared, context, source).await?;
            let missing = || CatchUpError::Peer("it does not have the context, or cannot read it".to_owned());
            let theirs = *bucket.get(context).ok_or_else(missing)?;
            let (ledger, of) = (shared.ledger.clone(), context.clone());
            blocking(move || ledger.heal_by_digest(&of, theirs, bucket)).await?
        }
        healing => healing?,
    };
    match healing {
        Some(healing) => finish(shared, context, source, healing).await.map(Some),
        None => Ok(None),
    }
}

/// Restores a context from the owner of its slot.
pub(crate) async fn in_claim(
    shared: &Arc<Shared>,
    context: &ContextId,
    owner: &Member,
    claim: &Claim,
    theirs: TreeHead,
) -> Result<(), CatchUpError> {
    let (ledger, of, claim) = (shared.ledger.clone(), context.clone(), claim.clone());
    let Some(healing) = blocking(move || ledger.heal_in_claim(&of, claim, theirs)).await? else {
        return Ok(());
    };
    let entries = finish(shared, context, owner, healing).await?;
    shared.counters.healed.fetch_add(1, Ordering::Relaxed);
    limited!(warn, %context, source = %owner, entries, "a damaged context was restored from the owner of its slot");
    Ok(())
}

/// Returns the tree heads of the contexts in a context's bucket at another node, as far as that can read them.
async fn bucket_of(
    shared: &Arc<Shared>,
    context: &ContextId,
    source: &Member,
) -> Result<BTreeMap<ContextId, TreeHead>, CatchUpError> {
    let mut client = client(shared, source)?;
    let buckets = BTreeMap::from([(Slot::of(context), [Bucket::of(context)].into())]);
    let (mut after, mut found) = (None, BTreeMap::new());
    for _ in 0..MAX_PAGES {
        let ask = CompareRequest::Contexts { buckets: buckets.clone(), after: after.take() };
        let answer = timeout(RESPONSE_TIMEOUT, client.compare(wire::to_compare_request(source, &ask))).await;
        let answer = answer.map_err(|_| CatchUpError::Peer("no answer in time".to_owned()))??.into_inner();
        let unread = |error: wire::RejectedMessage| {
            CatchUpError::Invalid(shared.reject(&source.node, &error).message().to_owned())
        };
        let CompareResponse::Contexts(page) = wire::compare_response(answer).map_err(unread)? else {
            return Err(CatchUpError::Peer("it answered another question".to_owned()));
        };
        after = page.contexts.last().map(|listed| listed.context().clone()).filter(|_| page.more);
        for listed in page.contexts {
            if let ListedContext::Present(summary) = listed {
                found.insert(summary.context.clone(), summary.tree_head());
            }
        }
        if after.is_none() {
            break;
        }
    }
    Ok(found)
}

fn client(
    shared: &Arc<Shared>,
    source: &Member,
) -> Result<ReplicaServiceClient<AuthenticatedChannel>, CatchUpError> {
    let peer = shared.peers.get(source).ok_or_else(|| CatchUpError::Peer("it is not known".to_owned()))?;
    let channel = shared.peers.channel(&peer).map_err(CatchUpError::Peer)?;
    Ok(ReplicaServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
}

/// Fetches the history and installs it. Returns the number of entries.
async fn finish(
    shared: &Arc<Shared>,
    context: &ContextId,
    source: &Member,
    mut healing: Healing,
) -> Result<u64, CatchUpError> {
    let mut client = client(shared, source)?;
    let mut pace = RateLimiter::new(shared.config.catch_up_rate);
    for _ in 0..MAX_ROUNDS {
        let Some((after, to)) = healing.missing() else { return Err(CatchUpError::TooFast) };
        healing = fetch(shared, source, &mut client, &mut pace, context, healing, after, to).await?;
        let is_done;
        (healing, is_done) = blocking(move || {
            let is_done = healing.finish()?;
            Ok((healing, is_done))
        })
        .await?;
        if is_done {
            return Ok(to.0);
        }
    }
    Err(CatchUpError::TooFast)
}

/// Fetches what is missing, and stages it.
#[expect(clippy::too_many_arguments, reason = "whom to ask, how, and for what")]
async fn fetch(
    shared: &Shared,
    source: &Member,
    client: &mut ReplicaServiceClient<AuthenticatedChannel>,
    pace: &mut RateLimiter,
    context: &ContextId,
    mut healing: Healing,
    after: Size,
    to: Size,
) -> Result<Healing, CatchUpError> {
    let wanted = FetchContext {
        context_id: context.as_str().to_owned(),
        after_size: after.0,
        to_size: to.0,
        staged: 0,
    };
    let request = FetchRequest { to: Some(wire::to_member(source)), contexts: vec![wanted], packs: false };
    let ranges = timeout(RESPONSE_TIMEOUT, client.fetch(request)).await;
    let mut ranges = ranges.map_err(|_| CatchUpError::Peer("no answer in time".to_owned()))??.into_inner();
    while healing.missing().is_some() {
        let range = timeout(RESPONSE_TIMEOUT, ranges.message()).await;
        let range = range.map_err(|_| CatchUpError::Peer("no range in time".to_owned()))??;
        let found = range.and_then(|found| Some((found.range?, found.together_to)));
        let (range, together) =
            found.ok_or_else(|| CatchUpError::Peer("it has less than it was asked for".to_owned()))?;
        let bytes = range.records.len() as u64;
        let (of, range) = wire::range(range).map_err(|error| {
            CatchUpError::Invalid(shared.reject(&source.node, &error).message().to_owned())
        })?;
        if of != *context {
            return Err(CatchUpError::Invalid(format!("context {of} was not asked for")));
        }
        let counters = &shared.counters;
        counters.fetched_entries.fetch_add(range.count, Ordering::Relaxed);
        counters.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
        healing = blocking(move || {
            healing.take(&range, (together > 0).then_some(Size(together)))?;
            Ok(healing)
        })
        .await?;
        pace.acquire(bytes).await;
    }
    Ok(healing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_that_cannot_be_healed_do_not_keep_others_from_their_turn() {
        let name = |number: usize| ContextId::new(format!("c-{number}")).unwrap();
        let all: HashSet<_> = (0..3 * MAX_CONCURRENT).map(name).collect();
        let (mut patients, mut tried, mut now) = (HashMap::new(), HashSet::new(), Instant::now());
        // No context is ever restored, and a turn takes longer than the pause after it.
        for _ in 0..3 {
            let turn: Vec<_> = due(all.clone(), &patients, now).collect();
            assert_eq!(turn.len(), MAX_CONCURRENT);
            now += MAX_PAUSE;
            for context in turn {
                let backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
                patients.insert(context.clone(), DamagedContext { due: now, backoff, restored: 0 });
                tried.insert(context);
            }
        }
        assert_eq!(tried.len(), all.len(), "each had its turn");
        let first: Vec<_> = due(all.clone(), &patients, now).collect();
        assert!(first.iter().all(|context| patients[context].due < now), "those that wait the longest");
        let later = now + Duration::from_millis(1);
        for patient in patients.values_mut() {
            patient.due = later;
        }
        assert_eq!(due(all, &patients, now).count(), 0, "none is tried before its time");
    }
}
