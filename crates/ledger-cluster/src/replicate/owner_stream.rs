//! The stream to a peer: what this node's lanes write, and what the peer answers.

use std::{
    future::ready,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{Stream, StreamExt as _, stream};
use ledger_core::{
    ownership::{
        WhyRefused,
        slot_manager::{Event, SyncOfferOutcome},
    },
    plausible::Implausible,
};
use ledger_proto::ledger::v1::{
    ReplicaReply, ReplicateHello, Replicated, replica_accepted::Outcome as Accepted,
    replica_reply::Body as Reply, replica_service_client::ReplicaServiceClient, replicated::Body,
};
use ledger_store::{limited, replicate::replica::Outgoing};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::{
    backoff::Backoff,
    ownership::stale_volume,
    peers::wire,
    peers::{PeerHandle, StreamReceiver, Waiting},
    shared::Shared,
};

/// The pause after a stream was lost, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// A stream that lasts so long is well: one that breaks sooner may break again for the same reason.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);
/// Most bytes of a message.
pub(crate) const MAX_MESSAGE: usize = 96 << 20;

/// Keeps a stream to a peer until told to stop.
pub(crate) async fn keep(shared: Arc<Shared>, peer: Arc<PeerHandle>, stop: CancellationToken) {
    let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
    while !stop.is_cancelled() {
        let begun = Instant::now();
        let ended = stop.run_until_cancelled(serve(&shared, &peer)).await;
        peer.restart();
        shared.peer_disconnected(&peer.member).await;
        if let Some(status) = ended {
            stale_volume::on_refusal(&shared, &status);
            shared.counters.streams_lost.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(peer = %peer.member, reason = %status, "the stream to a peer is lost");
            if begun.elapsed() >= HEALTHY_AFTER {
                backoff.reset();
            }
            stop.run_until_cancelled(sleep(backoff.pause())).await;
        }
    }
}

/// One stream, until it breaks; gives the reason.
async fn serve(shared: &Arc<Shared>, peer: &Arc<PeerHandle>) -> Status {
    match try_stream(shared, peer).await {
        Ok(()) => Status::unavailable("the stream ended"),
        Err(status) => status,
    }
}

async fn try_stream(shared: &Arc<Shared>, peer: &Arc<PeerHandle>) -> Result<(), Status> {
    let channel = shared.peers.channel(peer).map_err(Status::unavailable)?;
    let mut client = ReplicaServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let (from, to) = (Some(wire::to_member(&shared.me)), Some(wire::to_member(&peer.member)));
    let hello = Replicated { body: Some(Body::Hello(ReplicateHello { from, to, hears_refusals: true })) };
    // The connection takes what waits out of the queue itself, when it has room for it.
    let (queue, opened) = oneshot::channel();
    let rest = stream::once(opened).filter_map(|queue| ready(queue.ok())).flat_map(messages);
    let mut replies = client.replicate(stream::once(ready(hello)).chain(rest)).await?.into_inner();
    let outgoings = peer.open();
    let lost = outgoings.lost();
    queue.send(outgoings).map_err(|_| Status::unavailable("the connection has gone"))?;
    tracing::debug!(peer = %peer.member, "the stream to a peer is up");
    shared.send_events(vec![Event::PeerConnected(peer.member.clone())]).await;
    tokio::select! {
        () = lost.cancelled() => Err(Status::resource_exhausted("the peer is too slow: it has to catch up")),
        ended = listen(shared, peer, &mut replies) => ended,
    }
}

/// What the lanes put into the queue. A message counts until the next one is asked for: it is encoded then.
fn messages(outgoings: StreamReceiver) -> impl Stream<Item = Replicated> {
    stream::unfold((outgoings, None), |(mut outgoings, before)| async move {
        drop::<Option<Waiting>>(before);
        let next = outgoings.next().await?;
        let body = match &next.what {
            Outgoing::Commit(commit) => Body::Commit(wire::to_commit(commit)),
            Outgoing::SyncOffer(offer) => Body::Accept(wire::to_sync_offer(offer)),
            Outgoing::CommitIndex(slots) => Body::Stable(wire::to_commit_indexes(slots)),
            Outgoing::DigestCheckpoint(mark) => Body::Mark(wire::to_digest_checkpoint(mark)),
            Outgoing::LeaseRenewal(slots) => Body::Renewal(wire::to_lease_renewal(slots)),
        };
        Some((Replicated { body: Some(body) }, (outgoings, Some(next))))
    })
}

/// Takes the peer's answers.
async fn listen(
    shared: &Arc<Shared>,
    peer: &PeerHandle,
    replies: &mut Streaming<ReplicaReply>,
) -> Result<(), Status> {
    let unread = |error: wire::RejectedMessage| shared.reject(&peer.member.node, &error);
    while let Some(reply) = replies.message().await? {
        let bounds = shared.bounds();
        match reply.body {
            Some(Reply::Durable(durable)) => {
                let lane = u16::try_from(durable.lane).unwrap_or(u16::MAX);
                // Nobody holds what was not written: believed, all that is written from now on would count as held.
                if let Err(known) = shared.ledger.advance_peer_durable(peer.number, lane, durable.number) {
                    return Err(unread(Implausible::Number { number: durable.number, known }.into()));
                }
            }
            Some(Reply::Accepted(accepted)) => {
                let slot = wire::slot(accepted.slot).map_err(unread)?;
                // It is what this node offered.
                let claim = wire::claim_of(&shared.me, accepted.claim.as_ref(), bounds).map_err(unread)?;
                let outcome = match accepted.outcome {
                    Some(Accepted::Done(_)) => SyncOfferOutcome::Accepted,
                    Some(Accepted::Refused(by)) => {
                        SyncOfferOutcome::Refused(wire::claim(Some(&by), bounds).map_err(unread)?)
                    }
                    Some(Accepted::OtherMembers(placement)) => {
                        let placement = wire::placement(Some(&placement), bounds).map_err(unread)?;
                        placement.map_or(SyncOfferOutcome::Unavailable, SyncOfferOutcome::OtherMembers)
                    }
                    Some(Accepted::Differs(_)) => SyncOfferOutcome::Diverged,
                    Some(Accepted::Failed(reason)) => {
                        limited!(warn, peer = %peer.member, reason, "a replica could not accept a slot");
                        SyncOfferOutcome::Unavailable
                    }
                    None => SyncOfferOutcome::Unavailable,
                };
                let outcome = shared.ledger.record_offer_answer(slot, &claim, peer.number, outcome);
                let from = peer.member.clone();
                shared.send_events(vec![Event::SyncOfferAnswered { from, slot, claim, outcome }]).await;
            }
            Some(Reply::Renewed(renewed)) => {
                let (from, refused) = (peer.member.clone(), wire::refused(&renewed, bounds).map_err(unread)?);
                shared.send_events(vec![Event::LeaseRenewalAnswered { from, refused }]).await;
            }
            Some(Reply::Refused(refused)) => {
                let refused = wire::part_refused(refused, &shared.me, bounds).map_err(unread)?;
                if let WhyRefused::Invalid(reason) = &refused.why {
                    limited!(warn, peer = %peer.member, slot = refused.slot.number(), reason, "a replica refused a part of a commit: offering it the slot again");
                }
                // Before anything else that the peer says: it acknowledges the commit without this slot.
                shared.ledger.remove_refusing_peer(refused.slot, &refused.claim, peer.number);
                let from = peer.member.clone();
                shared.send_events(vec![Event::PartRefused { from, refused }]).await;
            }
            None => {}
        }
    }
    Ok(())
}
