//! Catching up with another node: carries out what [`ledger_core::catch_up`] decides, with gRPC and the store.
//!
//! Every change is made in a claim, and only while no higher one is promised. The lanes verify what arrives: each
//! entry, and the root at the end of each range.

pub(crate) mod healing;
pub(crate) mod range_sender;
pub(crate) mod rate_limiter;
pub(crate) mod sync_slots;
pub(crate) mod throttle;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ledger_core::{
    Epoch, Size,
    catch_up::{CatchUp, Effect, Event, Failure, ForkOrder, ForkResult, Mode, RestoreResult, SlotOutcome},
    compare::{CompareRequest, CompareResponse},
    digest::{ContextSummary, TreeHead},
    node::Member,
    ownership::Claim,
    slot::Slot,
};
use ledger_proto::ledger::v1::replica_service_client::ReplicaServiceClient;
use ledger_store::{Evidence, ForkOutcome, StoreError, Tip, limited};
use prost::Message as _;
use tokio::time::{Instant, timeout};
use tonic::Status;

use crate::{
    catch_up::rate_limiter::RateLimiter, peers::call_auth::client::AuthenticatedChannel, peers::wire,
    replicate::owner_stream::MAX_MESSAGE, shared::Shared,
};

mod fetching;

use fetching::Fetched;

/// How long a comparison response, or the next range, may take.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why catching up stopped early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatchUpError {
    #[error("the other node cannot be asked: {0}")]
    Peer(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("what the other node sends is refused: {0}")]
    Invalid(String),
}

impl From<Status> for CatchUpError {
    fn from(status: Status) -> Self {
        Self::Peer(status.to_string())
    }
}

/// Runs blocking work on another thread.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, CatchUpError> {
    let done = ledger_store::blocking::spawn(work).await;
    Ok(done.map_err(|error| StoreError::Io(error.to_string()))??)
}

/// One run of catching up with one node.
struct Run<'a> {
    shared: &'a Arc<Shared>,
    source: &'a Member,
    client: ReplicaServiceClient<AuthenticatedChannel>,
    machine: CatchUp,
    /// What the machine said, and is not done yet.
    todo: VecDeque<Effect>,
    fetched: Fetched,
    rate_limiter: RateLimiter,
}

/// Brings slots in sync with a node's copy, and says at once how each of them ended.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    source: &Member,
    claims: BTreeMap<Slot, Claim>,
    mode: Mode,
    mut done: impl FnMut(Slot, SlotOutcome),
) {
    let slots = claims.len();
    let (machine, effects) = CatchUp::start(claims, mode);
    let mut run = match client(shared, source) {
        Ok(client) => Run {
            shared,
            source,
            client,
            machine,
            todo: effects.into(),
            fetched: Fetched::default(),
            rate_limiter: RateLimiter::new(shared.config.catch_up_rate),
        },
        Err(reason) => {
            let (mut machine, reason) = (machine, reason.to_string());
            return finish(machine.step(Event::SourceLost(reason)), source, slots, &mut done);
        }
    };
    while let Some(effect) = run.todo.pop_front() {
        match effect {
            Effect::Done(slot, outcome) => {
                finish(vec![Effect::Done(slot, outcome)], source, slots, &mut done);
            }
            effect => run.perform(effect).await,
        }
    }
    debug_assert!(run.machine.is_over(), "a run waits for nothing");
    // Nothing is read of what is still being written, but it counts as memory until it is.
    run.finish_writes().await;
}

/// Tells how slots ended.
fn finish(effects: Vec<Effect>, source: &Member, slots: usize, done: &mut impl FnMut(Slot, SlotOutcome)) {
    for effect in effects {
        let Effect::Done(slot, outcome) = effect else { continue };
        match &outcome {
            SlotOutcome::Failed(failure) => {
                limited!(info, %source, slots, error = %failure, "catching up failed: trying again");
            }
            SlotOutcome::Unreadable => {
                limited!(
                    warn, %source, slot = slot.number(),
                    "something of a slot cannot be read: it cannot be brought in step before that is restored"
                );
            }
            _ => {}
        }
        done(slot, outcome);
    }
}

/// Returns a client of a source's replica service.
pub(crate) fn client(
    shared: &Shared,
    source: &Member,
) -> Result<ReplicaServiceClient<AuthenticatedChannel>, CatchUpError> {
    let peer = shared.peers.get(source).ok_or_else(|| CatchUpError::Peer("it is not known".to_owned()))?;
    let channel = shared.peers.channel(&peer).map_err(CatchUpError::Peer)?;
    Ok(ReplicaServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE))
}

/// Counts a message of a source that makes no sense, and returns why it does not.
fn rejected(shared: &Shared, source: &Member, error: &wire::RejectedMessage) -> CatchUpError {
    CatchUpError::Invalid(shared.reject(&source.node, error).message().to_owned())
}

impl Run<'_> {
    fn step(&mut self, event: Event) {
        self.todo.extend(self.machine.step(event));
    }

    /// Does what the machine said, and tells it what came of it.
    async fn perform(&mut self, effect: Effect) {
        let event = match effect {
            Effect::ReadDigests(slots) => {
                self.shared.counters.comparisons.fetch_add(1, Ordering::Relaxed);
                match self.shared.ledger.digests(slots.into_iter().collect()).await {
                    Ok(digests) => Event::Digests(digests),
                    Err(error) => Event::DiskRefuses(error.to_string()),
                }
            }
            Effect::AskRemote(request) => match self.ask(&request).await {
                Ok(answer) => Event::Remote(answer),
                Err(error) => Event::SourceLost(error.to_string()),
            },
            Effect::AskLocal(request) => match self.ask_local(request).await {
                Ok(answer) => Event::Local(answer),
                Err(error) => Event::DiskRefuses(error.to_string()),
            },
            Effect::Fork(order) => Event::Forked(order.context.clone(), self.fork(order).await),
            Effect::Restore { context, claim, theirs } => {
                let restored = healing::in_claim(self.shared, &context, self.source, &claim, theirs).await;
                let result = match restored {
                    Ok(()) => RestoreResult::Restored,
                    Err(error) => {
                        limited!(warn, %context, source = %self.source, %error, "a damaged context cannot be restored from the owner yet");
                        RestoreResult::NotYet
                    }
                };
                Event::Restored(context, result)
            }
            Effect::Scrub(context) => {
                limited!(
                    error, %context, source = %self.source,
                    "the stored trees of two nodes contradict each other: one of them is damaged, this one is checked"
                );
                let ledger = self.shared.ledger.clone();
                if let Err(error) = blocking(move || ledger.scrub(&context)).await {
                    limited!(warn, %error, "a context could not be checked");
                }
                return;
            }
            Effect::Fetch(wanted) => return self.fetch(wanted).await,
            Effect::FinishWrites => {
                self.finish_writes().await;
                Event::WritesFinished
            }
            Effect::Done(..) => return,
        };
        self.step(event);
    }

    async fn ask(&mut self, request: &CompareRequest) -> Result<CompareResponse, CatchUpError> {
        let begin = Instant::now();
        let question = wire::to_compare_request(self.source, request);
        let request_bytes = question.encoded_len();
        let answer = timeout(RESPONSE_TIMEOUT, self.client.compare(question)).await;
        let answer = answer.map_err(|_| CatchUpError::Peer("no answer in time".to_owned()))??.into_inner();
        let counters = &self.shared.counters;
        counters.questions.fetch_add(1, Ordering::Relaxed);
        counters.compared_bytes.fetch_add((request_bytes + answer.encoded_len()) as u64, Ordering::Relaxed);
        self.count_comparing(begin);
        wire::compare_response(answer).map_err(|error| self.rejected(&error))
    }

    async fn ask_local(&mut self, request: CompareRequest) -> Result<CompareResponse, CatchUpError> {
        let begin = Instant::now();
        let ledger = self.shared.ledger.clone();
        let answer = blocking(move || ledger.compare(&request)).await;
        self.count_comparing(begin);
        answer
    }

    fn count_comparing(&self, begin: Instant) {
        let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.shared.counters.comparing_us.fetch_add(micros, Ordering::Relaxed);
    }

    fn rejected(&self, error: &wire::RejectedMessage) -> CatchUpError {
        rejected(self.shared, self.source, error)
    }

    /// Moves a suffix to the forks.
    async fn fork(&mut self, order: ForkOrder) -> ForkResult {
        let ForkOrder { context, claim, common, expected, theirs } = order;
        let evidence = Evidence {
            reason: format!(
                "node {} holds another history, and owns the slot or is its source (epoch {})",
                self.source.node, claim.epoch
            ),
            theirs: tip(theirs.as_ref(), &expected),
        };
        let forked =
            self.shared.ledger.fork_history(context.clone(), claim, common, expected, evidence).await;
        match forked {
            Ok(ForkOutcome::Forked(size)) if size == common => {
                self.shared.counters.forks.fetch_add(1, Ordering::Relaxed);
                self.shared.counters.differing.fetch_add(1, Ordering::Relaxed);
                ForkResult::Forked
            }
            Ok(ForkOutcome::Forked(_)) => ForkResult::Moved,
            Ok(ForkOutcome::Refused(by)) => ForkResult::Refused(by),
            // The suffix cannot be read: leave the context unchanged.
            Err(error @ StoreError::Damaged { .. }) => {
                limited!(warn, %context, %error, "a damaged context is not left for another history");
                ForkResult::Unreadable
            }
            Err(error) => ForkResult::Failed(Failure::Store(error.to_string())),
        }
    }
}

/// Returns what the source holds, as evidence.
fn tip(theirs: Option<&ContextSummary>, ours: &TreeHead) -> Tip {
    match theirs {
        Some(theirs) => Tip { size: theirs.size, root: theirs.root, epoch: theirs.epoch },
        None => Tip { size: Size(0), root: ours.root, epoch: Epoch::default() },
    }
}
