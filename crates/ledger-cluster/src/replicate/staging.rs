//! Has the members of a slot stage a load before any node installs it: the owner's request, and a member's work on
//! it.

use std::{sync::Arc, time::Duration};

use ledger_core::{loads::StagingProgress, node::Member, replication::Peer, slot::Slot};
use ledger_proto::ledger::v1::{
    FetchContext, FetchRequest, StageProgress, replica_service_client::ReplicaServiceClient,
};
use ledger_store::{IncomingLoad, StagedLoad, StoreError, limited, replicate::replica::StagingRequest};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tonic::Status;

use crate::{
    catch_up::rate_limiter::RateLimiter,
    catch_up::{CatchUpError, RESPONSE_TIMEOUT, blocking, client},
    peers::wire::{self, WantedLoad},
    shared::Shared,
};

/// Most progress messages that wait to be sent.
const PROGRESS: usize = 4;
/// How long a member keeps a staged load after the owner's request ended: the commit that installs it may be on its
/// way.
const STAGED_LINGER: Duration = Duration::from_secs(10);

/// Requests that a peer stages a load, and forwards its progress until the load is installed or cancelled.
pub(crate) async fn request_staging(shared: Arc<Shared>, peer: Peer, spread: StagingRequest) {
    let (events, mut until) = (spread.events.clone(), spread.cancelled.clone());
    let request = async {
        let why = try_ask(&shared, peer, &spread).await.unwrap_or_else(|status| status.to_string());
        tracing::debug!(context = %spread.context, reason = why, "a replica does not stage a load");
        // The loader may have finished already.
        let _ = events.send((peer, StagingProgress::Failed));
    };
    tokio::select! {
        () = request => {}
        // The channel carries no messages: a change means that the load is over.
        _ = until.changed() => {}
        () = shared.cancel.cancelled() => {}
    }
}

/// Returns why the request ended.
async fn try_ask(shared: &Arc<Shared>, peer: Peer, spread: &StagingRequest) -> Result<String, Status> {
    let peer_state = shared.peers.numbered(peer).ok_or_else(|| Status::unavailable("it is not known"))?;
    let channel = shared.peers.channel(&peer_state).map_err(Status::unavailable)?;
    let mut client = ReplicaServiceClient::new(channel);
    let request = wire::to_load(&shared.me, &peer_state.member, spread);
    let response = timeout(RESPONSE_TIMEOUT, client.stage(request)).await;
    let mut progress = response.map_err(|_| Status::deadline_exceeded("no answer in time"))??.into_inner();
    while let Some(StageProgress { is_staged }) = progress.message().await? {
        let event = if is_staged { StagingProgress::Staged } else { StagingProgress::Advanced };
        let _ = spread.events.send((peer, event));
    }
    Ok("it ended".to_owned())
}

/// Stages a load of another node, as long as that node keeps listening.
pub(crate) fn begin(
    shared: &Arc<Shared>,
    from: Member,
    wanted: WantedLoad,
) -> mpsc::Receiver<Result<StageProgress, Status>> {
    let (progress, updates) = mpsc::channel(PROGRESS);
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let context = wanted.context.clone();
        let staged = tokio::select! {
            staged = stage(&shared, &from, wanted, &progress) => staged,
            () = progress.closed() => return,
            () = shared.cancel.cancelled() => return,
        };
        let staged = match staged {
            Ok(staged) => staged,
            Err(error) => {
                limited!(info, %context, %from, %error, "another node's load cannot be staged here");
                let _ = progress.send(Err(Status::unavailable(error.to_string()))).await;
                return;
            }
        };
        if progress.send(Ok(StageProgress { is_staged: true })).await.is_ok() {
            tokio::select! {
                () = progress.closed() => {}
                () = shared.cancel.cancelled() => {}
            }
        }
        tokio::select! {
            () = sleep(STAGED_LINGER) => {}
            () = shared.cancel.cancelled() => {}
        }
        let _ = blocking(move || {
            drop(staged);
            Ok(())
        })
        .await;
    });
    updates
}

/// Fetches and stages the whole load. Dropping the future removes what is staged.
async fn stage(
    shared: &Arc<Shared>,
    from: &Member,
    wanted: WantedLoad,
    progress: &mpsc::Sender<Result<StageProgress, Status>>,
) -> Result<StagedLoad, CatchUpError> {
    let WantedLoad { claim, number, context, announced } = wanted;
    let (ledger, of) = (shared.ledger.clone(), context.clone());
    let arriving = blocking(move || {
        let slot = Slot::of(&of);
        if ledger.slot_record(slot)?.check_replicate(&claim).is_err() {
            return Err(StoreError::NotOwner { slot });
        }
        ledger.stage_load(&of, announced)
    });
    let Some(arriving) = arriving.await? else {
        return Err(CatchUpError::Invalid("the context is not what the load comes after".to_owned()));
    };
    let Some((after, to)) = arriving.missing() else {
        return Err(CatchUpError::Invalid("the load brings nothing".to_owned()));
    };
    let mut client = client(shared, from)?;
    let wanted = FetchContext {
        context_id: context.as_str().to_owned(),
        after_size: after.0,
        to_size: to.0,
        staged: number,
    };
    let request = FetchRequest { to: Some(wire::to_member(from)), contexts: vec![wanted], packs: false };
    let ranges = timeout(RESPONSE_TIMEOUT, client.fetch(request)).await;
    let mut ranges = ranges.map_err(|_| CatchUpError::Peer("no answer in time".to_owned()))??.into_inner();
    let mut pace = RateLimiter::new(shared.config.catch_up_rate);
    let mut arriving: IncomingLoad = arriving;
    while arriving.missing().is_some() {
        let message = timeout(RESPONSE_TIMEOUT, ranges.message()).await;
        let message = message.map_err(|_| CatchUpError::Peer("no range in time".to_owned()))??;
        let Some(range) = message.and_then(|message| message.range) else {
            return Err(CatchUpError::Peer("it has less than it announced".to_owned()));
        };
        let (of, range) = wire::range(range).map_err(|error| CatchUpError::Invalid(error.to_string()))?;
        if of != context {
            return Err(CatchUpError::Invalid(format!("context {of} was not asked for")));
        }
        let bytes = range.records.len() as u64;
        arriving = blocking(move || {
            arriving.take(&range)?;
            Ok(arriving)
        })
        .await?;
        // If the channel is full, the message already in it reports the progress.
        let _ = progress.try_send(Ok(StageProgress { is_staged: false }));
        pace.acquire(bytes).await;
    }
    blocking(move || arriving.finish()).await
}
