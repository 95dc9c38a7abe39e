//! Catching up with another node: compare, fork off what differs, fetch what is missing, and repeat until little is
//! left.
//!
//! Every change is made in a claim, and only while no higher one is promised. The lanes verify what arrives: each
//! entry, and the root at the end of each range.

pub(crate) mod healing;
pub(crate) mod range_sender;
pub(crate) mod rate_limiter;
pub(crate) mod sync_slots;
pub(crate) mod throttle;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ledger_core::{
    ContextId, Epoch, Size,
    compare::{
        CompareError, CompareRequest, CompareResponse, ContextStatus, DrillDown, Effect, Event, Finding,
        MAX_COMPARED, RootsRequest, Side, Verdict,
    },
    node::Member,
    ownership::Claim,
    slot::Slot,
};
use ledger_proto::ledger::v1::replica_service_client::ReplicaServiceClient;
use ledger_store::{Evidence, ForkOutcome, StoreError, Tip, limited};
use prost::Message as _;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tonic::Status;

use crate::{
    catch_up::rate_limiter::RateLimiter, peers::call_auth::client::AuthenticatedChannel,
    peers::service::MAX_FETCH, peers::wire, replicate::owner_stream::MAX_MESSAGE, shared::Shared,
};

mod fetching;

use fetching::Fetched;

/// How long a comparison response, or the next range, may take.
pub(crate) const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// If a round fetches fewer entries than this, a follower of the owner needs no further one: the owner's stream
/// brings the rest, and its sync offer detects any difference.
const ENOUGH_ENTRIES: u64 = 4_096;
/// Most rounds. Reaching it means that the source is written to faster than this node fetches.
const MAX_ROUNDS: usize = 64;

/// What happens to a longer history on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CatchUpMode {
    /// The other side owns the slots, so its history counts. What this side has beyond it goes to the forks, and what
    /// this side cannot read is restored from it.
    FollowOwner,
    /// The other side's history counts; what this side has beyond it goes to the forks.
    AdoptRemote,
    /// The longer history counts.
    KeepLongest,
}

/// The outcome of catching up with a node.
#[derive(Debug, Default)]
pub(crate) struct CatchUpResult {
    /// Slots that were promised to higher claims meanwhile, each with its claim; they are unchanged.
    pub(crate) refused: BTreeMap<Slot, Claim>,
    /// Slots that one of the sides does not keep, or cannot read completely: this node's copy may be incomplete.
    pub(crate) unreadable: BTreeSet<Slot>,
}

/// Why catching up stopped early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CatchUpError {
    #[error("the other node cannot be asked: {0}")]
    Peer(String),
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("what the other node sends is refused: {0}")]
    Invalid(String),
    #[error("the other node writes faster than this one can fetch")]
    TooFast,
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
    let done = spawn_blocking(work).await;
    Ok(done.map_err(|error| StoreError::Io(error.to_string()))??)
}

/// One run of catching up with one node.
struct CatchUp<'a> {
    shared: &'a Arc<Shared>,
    source: &'a Member,
    client: ReplicaServiceClient<AuthenticatedChannel>,
    /// The slots to bring in sync, each in a claim.
    claims: BTreeMap<Slot, Claim>,
    result: CatchUpResult,
    mode: CatchUpMode,
    /// Entries fetched in this round.
    fetched: u64,
    /// Set if something changed while it was compared, or did not fit.
    has_changed: bool,
    rate_limiter: RateLimiter,
}

/// Brings slots in sync with a node's copy, as far as that is readable and not being written to.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    source: &Member,
    claims: &BTreeMap<Slot, Claim>,
    mode: CatchUpMode,
) -> Result<CatchUpResult, CatchUpError> {
    let peer = shared.peers.get(source).ok_or_else(|| CatchUpError::Peer("it is not known".to_owned()))?;
    let channel = shared.peers.channel(&peer).map_err(CatchUpError::Peer)?;
    let client = ReplicaServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut catch_up = CatchUp {
        shared,
        source,
        client,
        claims: claims.clone(),
        result: CatchUpResult::default(),
        mode,
        fetched: 0,
        has_changed: false,
        rate_limiter: RateLimiter::new(shared.config.catch_up_rate),
    };
    for _ in 0..MAX_ROUNDS {
        if catch_up.claims.is_empty() {
            return Ok(catch_up.result);
        }
        (catch_up.fetched, catch_up.has_changed) = (0, false);
        catch_up.result.unreadable.clear();
        catch_up.round().await?;
        if catch_up.is_enough() {
            return Ok(catch_up.result);
        }
    }
    Err(CatchUpError::TooFast)
}

impl CatchUp<'_> {
    /// Returns whether no further round is needed. Nobody sends a claimant what it still lacks, so only a comparison
    /// with nothing to fetch proves that it lacks nothing.
    fn is_enough(&self) -> bool {
        let most = if self.mode == CatchUpMode::FollowOwner { ENOUGH_ENTRIES } else { 1 };
        self.fetched < most && !self.has_changed
    }

    /// Compares once, and repairs what differs.
    async fn round(&mut self) -> Result<(), CatchUpError> {
        self.shared.counters.comparisons.fetch_add(1, Ordering::Relaxed);
        let ours = self.shared.ledger.digests(self.claims.keys().copied().collect()).await?;
        let (mut drill, effects) = DrillDown::start(ours);
        let mut todo: VecDeque<Effect> = effects.into();
        let mut fetched = Fetched::default();
        loop {
            let mut found = Vec::new();
            let begin = Instant::now();
            let mut is_done = false;
            while let Some(effect) = todo.pop_front() {
                match effect {
                    Effect::AskRemote(ask) => {
                        let answer = self.ask(&ask).await?;
                        todo.extend(drill.step(Event::Remote(answer))?);
                    }
                    Effect::AskLocal(ask) => {
                        let answer = self.ask_local(ask).await?;
                        todo.extend(drill.step(Event::Local(answer))?);
                    }
                    Effect::NotReplicated(slots) => {
                        limited!(warn, source = %self.source, slots = slots.len(), "the other node does not keep slots it should");
                        if self.mode != CatchUpMode::FollowOwner {
                            // This node relies on the source's promise, which covers these slots.
                            self.result.unreadable.extend(slots);
                        }
                    }
                    Effect::Found(finding) => found.push(finding),
                    Effect::Done => is_done = true,
                }
                if is_done || found.len() >= MAX_FETCH {
                    break;
                }
            }
            let counters = &self.shared.counters;
            let micros = u64::try_from(begin.elapsed().as_micros()).unwrap_or(u64::MAX);
            counters.comparing_us.fetch_add(micros, Ordering::Relaxed);
            counters.differing.fetch_add(found.len() as u64, Ordering::Relaxed);
            self.repair(found, &mut fetched).await?;
            if is_done {
                // Each context is compared once per round, so only now must the fetched entries be written.
                return self.finish(fetched).await;
            }
        }
    }

    async fn ask(&mut self, ask: &CompareRequest) -> Result<CompareResponse, CatchUpError> {
        let question = wire::to_compare_request(self.source, ask);
        let request_bytes = question.encoded_len();
        let answer = timeout(RESPONSE_TIMEOUT, self.client.compare(question)).await;
        let answer = answer.map_err(|_| CatchUpError::Peer("no answer in time".to_owned()))??.into_inner();
        let counters = &self.shared.counters;
        counters.questions.fetch_add(1, Ordering::Relaxed);
        counters.compared_bytes.fetch_add((request_bytes + answer.encoded_len()) as u64, Ordering::Relaxed);
        wire::compare_response(answer).map_err(|error| self.unread(&error))
    }

    fn unread(&self, error: &wire::RejectedMessage) -> CatchUpError {
        CatchUpError::Invalid(self.shared.reject(&self.source.node, error).message().to_owned())
    }

    async fn ask_local(&self, ask: CompareRequest) -> Result<CompareResponse, CatchUpError> {
        let ledger = self.shared.ledger.clone();
        blocking(move || ledger.compare(&ask, |_| true)).await
    }

    /// Forks off what differs, and fetches what is missing.
    async fn repair(&mut self, found: Vec<Finding>, fetched: &mut Fetched) -> Result<(), CatchUpError> {
        let mut missing = Vec::new();
        let ahead = self.ahead(&found).await?;
        for finding in found {
            let slot = Slot::of(&finding.context);
            if !self.claims.contains_key(&slot) {
                continue;
            }
            let Finding { context, remote, verdict, .. } = &finding;
            let their_size = remote.size().unwrap_or(Size(0));
            match *verdict {
                Verdict::InSync => {}
                Verdict::Behind { from } => missing.push((context.clone(), from, their_size)),
                Verdict::Ahead { .. } if self.mode == CatchUpMode::KeepLongest => {}
                Verdict::Ahead { from } => {
                    if ahead.contains(context) {
                        self.leave(&finding, from).await?;
                    } else {
                        self.has_changed = true;
                    }
                }
                Verdict::Diverged { common } => {
                    if self.leave(&finding, common).await? {
                        missing.push((context.clone(), common, their_size));
                    }
                }
                Verdict::Changed => self.has_changed = true,
                Verdict::Unreadable(side) => self.unreadable(&finding, side).await,
                Verdict::Damaged { different, equal } => {
                    limited!(
                        error, %context, source = %self.source, different = different.0, equal = equal.0,
                        "the stored trees of two nodes contradict each other: one of them is damaged, this one is checked"
                    );
                    let (ledger, context) = (self.shared.ledger.clone(), context.clone());
                    blocking(move || ledger.scrub(&context)).await?;
                    self.result.unreadable.insert(slot);
                }
            }
        }
        self.fetch(&missing, fetched).await
    }

    /// Handles a context that one side cannot read: discards nothing because of it, and does not treat either copy as
    /// the best.
    async fn unreadable(&mut self, finding: &Finding, side: Side) {
        let Finding { context, remote, .. } = finding;
        let slot = Slot::of(context);
        if let (Side::Local, CatchUpMode::FollowOwner, ContextStatus::Present(theirs)) =
            (side, self.mode, remote)
            && let Some(claim) = self.claims.get(&slot)
        {
            match healing::in_claim(self.shared, context, self.source, claim, theirs.tree_head()).await {
                Ok(()) => return self.has_changed = true,
                Err(error) => {
                    limited!(warn, %context, source = %self.source, %error, "a damaged context cannot be restored from the owner yet");
                }
            }
        } else {
            limited!(
                warn, %context, source = %self.source, unreadable = %side,
                "a context cannot be read: its slot cannot be brought in step before it is restored"
            );
        }
        self.result.unreadable.insert(slot);
    }

    /// Asks again which contexts go further here than at the source, now that this side's size is known and the
    /// source's can only grow. In a busy slot a context may only have seemed to be ahead.
    async fn ahead(&mut self, found: &[Finding]) -> Result<HashSet<ContextId>, CatchUpError> {
        let mut ahead = HashSet::new();
        if self.mode == CatchUpMode::KeepLongest {
            return Ok(ahead);
        }
        let looks_ahead = found.iter().filter(|finding| matches!(finding.verdict, Verdict::Ahead { .. }));
        let ours: Vec<_> = looks_ahead
            .filter_map(|finding| Some((&finding.context, finding.local.summary()?.size)))
            .collect();
        for some in ours.chunks(MAX_COMPARED) {
            let prefixes = some
                .iter()
                .map(|(context, size)| RootsRequest { context: (*context).clone(), sizes: vec![*size] });
            let CompareResponse::Roots(roots) = self.ask(&CompareRequest::Roots(prefixes.collect())).await?
            else {
                continue;
            };
            // Count only what the source could read as evidence: a shorter history, or none.
            let shorter = some.iter().zip(roots).filter(|(_, roots)| roots.is_shorter_than(1));
            ahead.extend(shorter.map(|((context, _), _)| (*context).clone()));
        }
        Ok(ahead)
    }

    /// Drops a slot that was promised to a higher claim, because this claim may no longer change it.
    fn refused(&mut self, slot: Slot, by: Claim) {
        self.claims.remove(&slot);
        self.result.refused.insert(slot, by);
    }

    /// Moves what a context has after `common` to the forks. Returns whether it did.
    async fn leave(&mut self, finding: &Finding, common: Size) -> Result<bool, CatchUpError> {
        let Finding { context, local: ContextStatus::Present(ours), remote, .. } = finding else {
            return Ok(false);
        };
        let Some(claim) = self.claims.get(&Slot::of(context)) else { return Ok(false) };
        let theirs = match remote {
            ContextStatus::Absent => Tip { size: Size(0), root: ours.root, epoch: Epoch::default() },
            ContextStatus::Present(at) => Tip { size: at.size, root: at.root, epoch: at.epoch },
            // An unreadable context is no evidence of another history.
            ContextStatus::Unreadable => return Ok(false),
        };
        let reason = format!(
            "node {} holds another history, and owns the slot or is its source (epoch {})",
            self.source.node, claim.epoch
        );
        let evidence = Evidence { theirs, reason };
        let left = self.shared.ledger.fork_history(
            context.clone(),
            claim.clone(),
            common,
            ours.tree_head(),
            evidence,
        );
        let is_left = match left.await {
            // The part to fork off cannot be read: leave the context unchanged.
            Err(error @ StoreError::Damaged { .. }) => {
                limited!(warn, %context, %error, "a damaged context is not left for another history");
                self.result.unreadable.insert(Slot::of(context));
                return Ok(false);
            }
            left => left?,
        };
        let is_left = match is_left {
            ForkOutcome::Forked(size) => size == common,
            ForkOutcome::Refused(by) => {
                self.refused(Slot::of(context), by);
                return Ok(false);
            }
        };
        if is_left {
            self.shared.counters.forks.fetch_add(1, Ordering::Relaxed);
        }
        self.has_changed = true;
        Ok(is_left)
    }
}
