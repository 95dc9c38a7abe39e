//! The stream from a peer: takes what its lanes wrote, in order, and says what is durable.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::FutureExt as _;
use ledger_core::{
    node::Member,
    ownership::{
        Claim, RefusedPart, WhyRefused,
        slot_manager::{Event, LeaseRenewal, SyncOfferOutcome},
    },
    replication::replica::{
        CheckpointAnswer, RecordChangeOutcome, RenewalAnswer, ReplicaStream, StreamError, refused_slots,
    },
    slot::Slot,
};
use ledger_proto::ledger::v1::{
    ReplicaAccepted, ReplicaDurable, ReplicaReply, Replicated, SlotNothing, replica_accepted::Outcome,
    replica_reply::Body as Reply, replicated::Body,
};
use ledger_store::{PendingReplication, SyncStates, budget::Permit, limited, replicate::replica::SyncOffer};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    peers::MESSAGE_OVERHEAD,
    peers::wire,
    shared::{Shared, SyncTask},
};

/// Commits of a stream that are being written, of no more bytes than there is memory for.
const MAX_PENDING_COMMITS: usize = 256;
/// Replies that wait for the connection.
const MAX_PENDING_REPLIES: usize = 256;
/// Most offers that are accepted with one sync.
const MAX_OFFER_BATCH: usize = 1024;
/// How long the stream before may take to end.
const PREVIOUS_STREAM_TIMEOUT: Duration = Duration::from_secs(5);

/// The way to the owner.
#[derive(Debug, Clone)]
struct Replies {
    sender: mpsc::Sender<Result<ReplicaReply, Status>>,
    /// The owner takes a slot out of sync when it is told that a part was refused. One of an older build takes nothing out of sync
    /// but all slots, when the stream breaks.
    hears_refusals: bool,
}

impl Replies {
    /// Sends a reply, and waits while many wait for the connection. Returns whether the stream is still there.
    async fn send(&self, body: Reply) -> bool {
        self.sender.send(Ok(ReplicaReply { body: Some(body) })).await.is_ok()
    }

    /// Names a slot of which a part was refused. Returns whether the stream goes on.
    async fn send_refused(&self, refused: RefusedPart) -> bool {
        if self.hears_refusals {
            return self.send(Reply::Refused(wire::to_part_refused(refused))).await;
        }
        if let WhyRefused::Promised(by) = &refused.why {
            self.send(refused_offer(refused.slot, &refused.claim, by)).await;
        }
        false
    }
}

/// A commit that is being written.
#[derive(Debug)]
struct Writing {
    lane: u16,
    number: u64,
    pending_replication: PendingReplication,
    /// What it takes until it is written.
    _held: Option<Permit>,
}

/// Takes a stream in the place of the one there was from that node.
pub(crate) async fn begin(
    shared: &Arc<Shared>,
    from: Member,
    hears_refusals: bool,
    messages: Streaming<Replicated>,
) -> Result<mpsc::Receiver<Result<ReplicaReply, Status>>, Status> {
    let mut writable = shared.ledger.watch_writable();
    if !*writable.borrow_and_update() {
        return Err(Status::unavailable("this node's disk takes no writes"));
    }
    let (turn, before) = {
        let mut incoming = shared.incoming.lock();
        let known = incoming.entry(from.node.clone()).or_default();
        let ends = shared.cancel.child_token();
        (Arc::clone(&known.turn), (std::mem::replace(&mut known.ends, ends.clone()), ends))
    };
    let (before, ends) = before;
    before.cancel();
    let guard = tokio::time::timeout(PREVIOUS_STREAM_TIMEOUT, turn.lock_owned())
        .await
        .map_err(|_| Status::unavailable("the stream before has not ended yet"))?;
    let stopped = |_| Status::unavailable("the node is stopping");
    shared.ledger.stream_started(&from.node).await.map_err(stopped)?;

    let (replies, out) = mpsc::channel(MAX_PENDING_REPLIES);
    let replies = Replies { sender: replies, hears_refusals };
    // What the peer sends it sends after this.
    let stream = Arc::new(Mutex::new(ReplicaStream::begin(from.clone(), shared.now())));
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let _guard = guard;
        let (writing, written) = mpsc::channel(MAX_PENDING_COMMITS);
        let (broken, over) = (CancellationToken::new(), CancellationToken::new());
        tokio::spawn(send_durable(written, replies.clone(), broken.clone(), over.clone()));
        let ended = tokio::select! {
            ended = receive(&shared, &from, messages, writing, &replies, stream) => ended,
            () = ends.cancelled() => Err(Status::aborted("another stream took the place of this one")),
            () = broken.cancelled() => Err(Status::aborted("what was sent does not fit what is here")),
            // Whoever holds it goes on with this node as soon as it begins a stream that is taken.
            _ = writable.wait_for(|is_writable| !is_writable) => {
                Err(Status::unavailable("this node's disk takes no writes"))
            }
        };
        if let Err(status) = ended {
            tracing::debug!(%from, reason = %status, "the stream from a peer ended");
            let _ = replies.sender.try_send(Err(status));
        }
        // What is in the lanes is written before the next stream begins: they keep the order.
        over.cancel();
    });
    Ok(out)
}

/// Takes messages until the stream ends.
async fn receive(
    shared: &Arc<Shared>,
    from: &Member,
    mut messages: Streaming<Replicated>,
    writing: mpsc::Sender<Writing>,
    replies: &Replies,
    stream: Arc<Mutex<ReplicaStream>>,
) -> Result<(), Status> {
    let mut next = None;
    let unread = |error| shared.reject(&from.node, &error);
    let misfit = |error| match error {
        StreamError::Number(error) => unread(error.into()),
        error @ StreamError::ForeignClaim(_) => Status::invalid_argument(error.to_string()),
    };
    loop {
        let bounds = shared.bounds();
        let message = match next.take() {
            Some(message) => message,
            None => match messages.message().await? {
                Some(message) => message,
                None => return Ok(()),
            },
        };
        match message.body {
            Some(Body::Commit(commit)) => {
                let (lane, number, parts) = wire::commit(commit, from, bounds).map_err(unread)?;
                let claims = parts.iter().map(|part| &part.claim);
                stream.lock().on_sent(lane, number, claims).map_err(misfit)?;
                // Nothing more is read from the peer meanwhile.
                let bytes = parts.iter().map(|part| part.range.records.len() + MESSAGE_OVERHEAD).sum();
                let held = Some(shared.replicated.acquire(bytes).await);
                let pending_replication = shared.ledger.replicate(parts, number).await.map_err(stopping)?;
                if writing.send(Writing { lane, number, pending_replication, _held: held }).await.is_err() {
                    return Ok(());
                }
            }
            Some(Body::Accept(offer)) => {
                // Offers come in crowds: one sync is for all of them.
                let mut offers = vec![wire::sync_offer(&offer, from, bounds).map_err(unread)?];
                while offers.len() < MAX_OFFER_BATCH {
                    match messages.message().now_or_never() {
                        Some(Ok(Some(Replicated { body: Some(Body::Accept(offer)) }))) => {
                            offers.push(wire::sync_offer(&offer, from, bounds).map_err(unread)?);
                        }
                        Some(Ok(Some(other))) => {
                            next = Some(other);
                            break;
                        }
                        Some(Ok(None)) => return Ok(()),
                        Some(Err(status)) => return Err(status),
                        None => break,
                    }
                }
                let mut places = BTreeMap::new();
                for offer in &offers {
                    stream.lock().on_sent(offer.lane, offer.number, [&offer.claim]).map_err(misfit)?;
                    let place = places.entry(offer.lane).or_insert(0);
                    *place = offer.number.max(*place);
                }
                accept(shared, from, offers, replies).await?;
                // What is accepted is held up to the offer's place. It is said in turn: parts of commits before it may
                // still be on their way to the disk.
                for (lane, number) in places {
                    let pending_replication =
                        shared.ledger.replicate(Vec::new(), number).await.map_err(stopping)?;
                    if writing.send(Writing { lane, number, pending_replication, _held: None }).await.is_err()
                    {
                        return Ok(());
                    }
                }
            }
            Some(Body::Stable(stable)) => {
                let slots = wire::commit_indexes(&stable, bounds).map_err(unread)?;
                shared.ledger.advance_commit_index(slots).await.map_err(stopping)?;
            }
            Some(Body::Mark(mark)) => {
                let (slots, theirs) = wire::digest_checkpoint(&mark).map_err(unread)?;
                let asked = slots.into_iter().collect();
                let held = shared.ledger.replica_status(&from.node, asked).await.map_err(stopping)?;
                let slots = held.len();
                let CheckpointAnswer { promised, is_same } = CheckpointAnswer::of(held, theirs);
                for (slot, by) in promised {
                    // If the peer has gone the stream ends.
                    replies.send(refused_offer(slot, &by, &by)).await;
                }
                let Some(is_same) = is_same else { continue };
                shared.counters.count_digest_checkpoint(!is_same);
                if !is_same {
                    // With a new stream the owner does not count on this replica, until every slot is in sync.
                    limited!(warn, owner = %from, slots, "this replica does not hold what the owner holds: comparing");
                    return Err(Status::aborted("a slot differs from what its owner holds"));
                }
            }
            Some(Body::Renewal(renewal)) => {
                let slots = wire::lease_renewal(&renewal, from, bounds).map_err(unread)?;
                let claims = slots.iter().map(|of| (of.slot, of.claim.clone())).collect();
                // What was sent before is before it in the lanes' queues; nobody waits for them here.
                let states = shared.ledger.sync_states(claims).await.map_err(stopping)?;
                let (shared, from) = (Arc::clone(shared), from.clone());
                tokio::spawn(renew(shared, from, Arc::clone(&stream), slots, states, replies.clone()));
            }
            Some(Body::Hello(_)) | None => {}
        }
    }
}

/// Renews leases once the lanes have taken what was sent before, and answers.
async fn renew(
    shared: Arc<Shared>,
    from: Member,
    stream: Arc<Mutex<ReplicaStream>>,
    slots: Vec<LeaseRenewal>,
    states: SyncStates,
    replies: Replies,
) {
    // Without an answer the node stops, and the lease ends.
    let Ok(states) = states.all().await else { return };
    let RenewalAnswer { refused, in_sync } = RenewalAnswer::of(&slots, &states);
    // Before the answer leaves: what is sent after it is sent after this moment.
    let after = stream.lock().on_renewal_answered(shared.now());
    // If the peer has gone the stream ends.
    replies.send(Reply::Renewed(wire::to_refused(&refused))).await;
    shared.send_events(vec![Event::LeaseRenewed { from, after, slots: in_sync }]).await;
}

/// A slot that was promised to a higher claim.
fn refused_offer(slot: Slot, claim: &Claim, by: &Claim) -> Reply {
    Reply::Accepted(ReplicaAccepted {
        slot: u32::from(slot.number()),
        claim: Some(wire::to_claim(claim)),
        outcome: Some(Outcome::Refused(wire::to_claim(by))),
    })
}

/// Accepts offers, or begins to catch up.
async fn accept(
    shared: &Arc<Shared>,
    from: &Member,
    offers: Vec<SyncOffer>,
    replies: &Replies,
) -> Result<(), Status> {
    let mut claims = BTreeMap::new();
    let mut changes = Vec::with_capacity(offers.len());
    for offer in offers {
        claims.insert(offer.slot, offer.claim.clone());
        changes.push((offer.slot, offer.into_change()));
    }
    let changed = shared.change_slots(changes).await.map_err(stopping)?;
    let mut behind = BTreeMap::new();
    for (slot, changed) in changed {
        let Some(claim) = claims.get(&slot) else { continue };
        let outcome = match changed.outcome {
            Err(error) => Outcome::Failed(error.to_string()),
            Ok(RecordChangeOutcome::Unavailable(why)) => Outcome::Failed(why.to_string()),
            Ok(outcome) => {
                if let Some(refused) = outcome.refused_part(slot, claim) {
                    if !replies.send_refused(refused).await {
                        return Err(Status::aborted(
                            "the owner may count on a slot that differs from its own",
                        ));
                    }
                    continue;
                }
                match outcome.offer_outcome() {
                    SyncOfferOutcome::Accepted => Outcome::Done(SlotNothing {}),
                    SyncOfferOutcome::Refused(by) => Outcome::Refused(wire::to_claim(&by)),
                    SyncOfferOutcome::OtherMembers(placement) => {
                        Outcome::OtherMembers(wire::to_placement(&placement))
                    }
                    SyncOfferOutcome::Diverged => {
                        behind.insert(slot, claim.clone());
                        Outcome::Differs(SlotNothing {})
                    }
                    SyncOfferOutcome::Unavailable => Outcome::Failed("it cannot be accepted now".to_owned()),
                }
            }
        };
        let accepted = ReplicaAccepted {
            slot: u32::from(slot.number()),
            claim: Some(wire::to_claim(claim)),
            outcome: Some(outcome),
        };
        if !replies.send(Reply::Accepted(accepted)).await {
            return Ok(());
        }
    }
    tracing::debug!(owner = %from, offers = claims.len(), behind = behind.len(), "offers were answered");
    if !behind.is_empty() {
        let _ = shared.sync_tasks.send(SyncTask { owner: from.clone(), slots: behind }).await;
    }
    Ok(())
}

/// Says what is durable, in order, until the stream is over; what is still being written then counts until it is.
async fn send_durable(
    mut written: mpsc::Receiver<Writing>,
    replies: Replies,
    broken: CancellationToken,
    over: CancellationToken,
) {
    over.run_until_cancelled(say(&mut written, replies, broken)).await;
    while let Some(Writing { pending_replication, _held, .. }) = written.recv().await {
        let _ = pending_replication.durable().await;
    }
}

async fn say(written: &mut mpsc::Receiver<Writing>, replies: Replies, broken: CancellationToken) {
    while let Some(Writing { lane, number, pending_replication, _held }) = written.recv().await {
        let taken = match pending_replication.durable().await {
            Ok(taken) => taken,
            Err(error) => {
                limited!(warn, %error, "what an owner sent could not be written");
                return broken.cancel();
            }
        };
        // Before the commit is durable: what is said of it holds for its other slots.
        for refused in refused_slots(taken) {
            if let WhyRefused::Invalid(reason) = &refused.why {
                limited!(
                    warn,
                    slot = refused.slot.number(),
                    reason,
                    "what an owner sent does not fit: the slot is out of sync"
                );
            }
            if !replies.send_refused(refused).await {
                return broken.cancel();
            }
        }
        let durable = ReplicaDurable { lane: u32::from(lane), number };
        if !replies.send(Reply::Durable(durable)).await {
            return;
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what map_err hands over")]
fn stopping(error: ledger_store::StoreError) -> Status {
    Status::unavailable(error.to_string())
}
