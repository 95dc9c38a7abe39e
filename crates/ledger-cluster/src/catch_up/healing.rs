//! Restores damaged contexts.
//!
//! A read or the scrub finds that stored data is not what was written
//! ([`Ledger::damage`](ledger_store::Ledger::damage)). What is tried when, from whom, and what proves that a history is
//! right, is decided in [`ledger_core::healing`]. This module reads, asks and fetches for it, and tells the slot manager
//! which slots have damage.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ledger_core::{
    ContextId, Size,
    compare::{CompareRequest, CompareResponse, ListedContext},
    digest::{Bucket, TreeHead},
    healing::{
        HealAttempt, HealEffect, HealEvent, HealOutcome, HealSchedule, HealSource, MAX_RELAPSES, heal_sources,
    },
    node::Member,
    ownership::{
        Claim,
        slot_manager::{DamagedSlots, Event},
    },
    slot::Slot,
};
use ledger_proto::ledger::v1::{FetchContext, FetchRequest};
use ledger_store::{Healing, limited};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    catch_up::rate_limiter::RateLimiter,
    catch_up::{CatchUpError, RESPONSE_TIMEOUT, blocking, client, rejected},
    ownership::routes::SlotOwner,
    peers::wire,
    shared::Shared,
};

/// Most pages of a bucket that are requested. A bucket has some four contexts for each million in the cluster.
const MAX_PAGES: usize = 16;
/// How often to look for contexts that are due.
const INTERVAL: Duration = Duration::from_millis(500);
/// Contexts that are restored at the same time: one that waits for a slow node does not stop the others.
const MAX_CONCURRENT: usize = 8;

/// Restores every damaged context once it is found; retries those that cannot be restored, ever less often.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut damage = shared.ledger.watch_damage();
    let mut tick = interval(INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begun = Instant::now();
    let now = || u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (mut schedule, mut told) = (HealSchedule::default(), DamagedSlots::default());
    let mut healing = JoinSet::new();
    // Due contexts that wait for a place among those that are being restored, and these.
    let (mut waiting, mut busy) = (Vec::new(), BTreeSet::new());
    loop {
        // Listing all damage takes long if there is much: not after each context.
        let is_due = tokio::select! {
            _ = tick.tick() => true,
            Ok(()) = damage.changed() => waiting.is_empty() && healing.is_empty(),
            Some(healed) = healing.join_next() => {
                match healed {
                    Ok((context, outcome)) => {
                        busy.remove(&context);
                        finished(&mut schedule, now(), &context, outcome);
                    }
                    Err(error) => {
                        limited!(error, %error, "restoring a damaged context failed");
                        healing.shutdown().await;
                        busy.clear();
                    }
                }
                false
            }
        };
        if is_due {
            let damaged: BTreeSet<ContextId> =
                shared.ledger.damage().into_iter().map(|found| found.context).collect();
            tell(&shared, &mut told, &damaged, &schedule, now()).await;
            waiting = schedule.due(now(), &damaged);
            waiting.reverse();
        }
        while healing.len() < MAX_CONCURRENT
            && let Some(context) = waiting.pop()
        {
            if !shared.ledger.is_damaged(&context) || !busy.insert(context.clone()) {
                continue;
            }
            let shared = Arc::clone(&shared);
            healing.spawn(async move {
                let outcome = heal(&shared, &context).await;
                (context, outcome)
            });
        }
    }
}

/// Tells the slot manager which slots have damage, if these are others than before.
async fn tell(
    shared: &Shared,
    told: &mut DamagedSlots,
    damaged: &BTreeSet<ContextId>,
    schedule: &HealSchedule,
    now: u64,
) {
    let damage =
        DamagedSlots { damaged: damaged.iter().map(Slot::of).collect(), impaired: schedule.impaired(now) };
    if damage != *told {
        let more: Vec<u16> = damage.impaired.difference(&told.impaired).map(|slot| slot.number()).collect();
        if !more.is_empty() {
            limited!(
                error, slots = ?more,
                "damaged contexts could not be restored for a while: other members take the slots over if they can"
            );
        }
        told.clone_from(&damage);
        shared.send_events(vec![Event::DamageChanged(damage)]).await;
    }
}

/// Records the outcome of an attempt.
fn finished(
    schedule: &mut HealSchedule,
    now: u64,
    context: &ContextId,
    outcome: Result<HealOutcome, CatchUpError>,
) {
    let mut random = [0; 4];
    // Without random numbers, use the longest pause.
    let random = getrandom::fill(&mut random).map_or(u32::MAX, |()| u32::from_le_bytes(random));
    let is_restored = matches!(outcome, Ok(HealOutcome::Restored { .. }));
    let times = schedule.tried(now, context, is_restored, random);
    match outcome {
        Ok(HealOutcome::Restored { source, entries }) => {
            limited!(warn, %context, %source, entries, "a damaged context was restored");
        }
        Ok(HealOutcome::NothingToDo | HealOutcome::NotRestored) => {}
        Err(error) => {
            limited!(
                error, %context, %error,
                "a damaged context cannot be restored yet: this is tried again"
            );
        }
    }
    if let Some(times) = times.filter(|times| *times >= MAX_RELAPSES) {
        limited!(
            error, %context, times,
            "a context that was restored is damaged again and again: replace this node's disk and its data directory"
        );
    }
}

/// Restores a context from the first source that can provide it.
async fn heal(shared: &Arc<Shared>, context: &ContextId) -> Result<HealOutcome, CatchUpError> {
    let (attempt, effect) = HealAttempt::begin(context.clone(), sources(shared, Slot::of(context)));
    drive(shared, attempt, effect).await
}

/// Restores a context from the owner of its slot.
pub(crate) async fn in_claim(
    shared: &Arc<Shared>,
    context: &ContextId,
    owner: &Member,
    claim: &Claim,
    theirs: TreeHead,
) -> Result<(), CatchUpError> {
    let is_complete = shared.config.write_quorum * 2 > shared.config.replication_factor;
    let (attempt, effect) =
        HealAttempt::in_claim(context.clone(), owner.clone(), claim.clone(), is_complete, theirs);
    if let HealOutcome::Restored { source, entries } = drive(shared, attempt, effect).await? {
        limited!(warn, %context, %source, entries, "a damaged context was restored from the owner of its slot");
    }
    Ok(())
}

/// Returns where a slot's contexts may be restored from.
fn sources(shared: &Shared, slot: Slot) -> Vec<HealSource> {
    let routes = shared.routes.borrow();
    let Some(route) = routes.get(slot) else { return vec![HealSource::Local] };
    let owner = match &route.owner {
        SlotOwner::Other(owner, _) => Some(owner),
        _ => None,
    };
    heal_sources(&shared.me, &route.members, owner)
}

/// Does what an attempt asks for until it is over.
///
/// # Errors
/// The last failure, if no source could provide the history.
async fn drive(
    shared: &Arc<Shared>,
    mut attempt: HealAttempt,
    mut effect: HealEffect,
) -> Result<HealOutcome, CatchUpError> {
    let mut failure = CatchUpError::Peer("no other node that keeps it is known".to_owned());
    let mut staged = None;
    loop {
        let context = attempt.context();
        let done = match effect {
            HealEffect::Finished(HealOutcome::NotRestored) => return Err(failure),
            HealEffect::Finished(outcome) => {
                if matches!(outcome, HealOutcome::Restored { .. }) {
                    shared.counters.healed.fetch_add(1, Ordering::Relaxed);
                }
                return Ok(outcome);
            }
            HealEffect::ReadHead => {
                let (ledger, of) = (shared.ledger.clone(), context.clone());
                blocking(move || ledger.damaged_head(&of)).await.map(HealEvent::Head)
            }
            HealEffect::AskBucket(member) => bucket_of(shared, context, &member).await.map(HealEvent::Bucket),
            HealEffect::Fetch { source, goal, proof, is_more } => {
                let begun = if let Some(staged) = staged.take().filter(|_| is_more) {
                    Ok(Some(staged))
                } else {
                    let (ledger, of) = (shared.ledger.clone(), context.clone());
                    blocking(move || ledger.begin_healing(&of, proof, goal)).await
                };
                match begun {
                    Ok(Some(healing)) => fetch(shared, &source, context, healing).await.map(|healing| {
                        staged = Some(healing);
                        HealEvent::Staged
                    }),
                    Ok(None) => Ok(HealEvent::Failed),
                    Err(error) => Err(error),
                }
            }
            HealEffect::Install => match staged.take() {
                Some(healing) => install(healing).await.map(|(healing, event)| {
                    staged = Some(healing);
                    event
                }),
                None => Ok(HealEvent::Failed),
            },
        };
        effect = attempt.step(done.unwrap_or_else(|error| {
            failure = error;
            HealEvent::Failed
        }));
    }
}

/// Has the lane install what is staged.
async fn install(mut healing: Healing) -> Result<(Healing, HealEvent), CatchUpError> {
    blocking(move || {
        let event = if healing.finish()? { HealEvent::Installed } else { HealEvent::Behind(healing.goal()) };
        Ok((healing, event))
    })
    .await
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
        let answer = wire::compare_response(answer).map_err(|error| rejected(shared, source, &error))?;
        let CompareResponse::Contexts(page) = answer else {
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

/// Stages what is missing, from a source.
async fn fetch(
    shared: &Arc<Shared>,
    source: &HealSource,
    context: &ContextId,
    mut healing: Healing,
) -> Result<Healing, CatchUpError> {
    match source {
        HealSource::Local => {
            blocking(move || {
                healing.take_local()?;
                Ok(healing)
            })
            .await
        }
        HealSource::Member(member) => fetch_from(shared, member, context, healing).await,
    }
}

/// Fetches what is missing from another node, and stages it.
async fn fetch_from(
    shared: &Arc<Shared>,
    source: &Member,
    context: &ContextId,
    mut healing: Healing,
) -> Result<Healing, CatchUpError> {
    let Some((after, to)) = healing.missing() else { return Ok(healing) };
    let mut client = client(shared, source)?;
    let mut pace = RateLimiter::new(shared.config.catch_up_rate);
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
        let (of, range) = wire::range(range).map_err(|error| rejected(shared, source, &error))?;
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
