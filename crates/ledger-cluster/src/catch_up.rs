//! Catching up with another node: compare, leave what differs, fetch what is missing; again, until little is left.
//!
//! Every change is made in a claim, and only as long as no higher one was promised. What comes is verified by the
//! lanes, entry by entry and by the root at the end of each range.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ledger_core::{
    ContextId, Epoch, Size,
    compare::{
        Answer, Ask, CompareError, DrillDown, Effect, Event, Finding, Holding, MAX_COMPARED, Prefixes, Side,
        Verdict,
    },
    node::Member,
    ownership::Claim,
    slot::Slot,
};
use ledger_proto::ledger::v1::replica_service_client::ReplicaServiceClient;
use ledger_store::{Evidence, LeftHistory, StoreError, Tip, limited};
use prost::Message as _;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};
use tonic::Status;

use crate::{
    door::calling::Proven, healing, pace::Pace, sending::MAX_MESSAGE, service::MAX_FETCH, shared::Shared,
    wire,
};

mod fetching;

use fetching::Fetched;

/// How long a question of a comparison, or the next range, may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// Less than this in a round is not worth another one when the owner is followed: what is left comes with its stream,
/// and its offer shows whether all is the same.
const LITTLE: u64 = 4_096;
/// Most rounds: somebody writes faster than this node fetches.
const ROUNDS: usize = 64;

/// What to make of a longer history on this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// The other side owns the slots: its history is the one. What this side has beyond it goes to the forks, and what
    /// this side cannot read is restored from it.
    Follow,
    /// The other side's is the one: what this side has beyond it goes to the forks.
    Adopt,
    /// The longest of both is the one.
    Longest,
}

/// What came of catching up with a node.
#[derive(Debug, Default)]
pub(crate) struct Caught {
    /// Slots that were promised to higher claims meanwhile, each with its claim, and left as they are.
    pub(crate) refused: BTreeMap<Slot, Claim>,
    /// Slots of which one of the two sides cannot read something, or does not keep them: what is here is not known to be all
    /// there is.
    pub(crate) unreadable: BTreeSet<Slot>,
}

/// Why catching up ended early.
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

/// Does elsewhere what blocks.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, CatchUpError> {
    let done = spawn_blocking(work).await;
    Ok(done.map_err(|error| StoreError::Io(error.to_string()))??)
}

/// One catching up with one node.
struct CatchUp<'a> {
    shared: &'a Arc<Shared>,
    source: &'a Member,
    client: ReplicaServiceClient<Proven>,
    /// What is brought in step, each slot in a claim.
    claims: BTreeMap<Slot, Claim>,
    caught: Caught,
    mode: Mode,
    /// Entries fetched in this round.
    fetched: u64,
    /// Something changed while it was looked at, or did not fit.
    is_unsettled: bool,
    pace: Pace,
}

/// Brings slots in step with what a node holds, as far as it stands still and can be read.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    source: &Member,
    claims: &BTreeMap<Slot, Claim>,
    mode: Mode,
) -> Result<Caught, CatchUpError> {
    let peer = shared.peers.get(source).ok_or_else(|| CatchUpError::Peer("it is not known".to_owned()))?;
    let channel = shared.peers.channel(&peer).map_err(CatchUpError::Peer)?;
    let client = ReplicaServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let mut catch_up = CatchUp {
        shared,
        source,
        client,
        claims: claims.clone(),
        caught: Caught::default(),
        mode,
        fetched: 0,
        is_unsettled: false,
        pace: Pace::new(shared.config.catch_up_rate),
    };
    for _ in 0..ROUNDS {
        if catch_up.claims.is_empty() {
            return Ok(catch_up.caught);
        }
        (catch_up.fetched, catch_up.is_unsettled) = (0, false);
        catch_up.caught.unreadable.clear();
        catch_up.round().await?;
        if catch_up.is_enough() {
            return Ok(catch_up.caught);
        }
    }
    Err(CatchUpError::TooFast)
}

impl CatchUp<'_> {
    /// Whether another round is not needed. Whoever claims a slot has nobody to tell it what is still missing: only a
    /// comparison after which there was nothing to fetch shows that nothing is.
    fn is_enough(&self) -> bool {
        let most = if self.mode == Mode::Follow { LITTLE } else { 1 };
        self.fetched < most && !self.is_unsettled
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
                    Effect::Send(ask) => {
                        let answer = self.ask(&ask).await?;
                        todo.extend(drill.step(Event::Theirs(answer))?);
                    }
                    Effect::Look(ask) => {
                        let answer = self.look(ask).await?;
                        todo.extend(drill.step(Event::Ours(answer))?);
                    }
                    Effect::NotKept(slots) => {
                        limited!(warn, source = %self.source, slots = slots.len(), "the other node does not keep slots it should");
                        if self.mode != Mode::Follow {
                            // It promised what it has of them.
                            self.caught.unreadable.extend(slots);
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
                // Each context was looked at once: until now nothing had to wait for what was fetched to be written.
                return self.finish(fetched).await;
            }
        }
    }

    async fn ask(&mut self, ask: &Ask) -> Result<Answer, CatchUpError> {
        let question = wire::to_ask(self.source, ask);
        let asked = question.encoded_len();
        let answer = timeout(PATIENCE, self.client.compare(question)).await;
        let answer = answer.map_err(|_| CatchUpError::Peer("no answer in time".to_owned()))??.into_inner();
        let counters = &self.shared.counters;
        counters.questions.fetch_add(1, Ordering::Relaxed);
        counters.compared_bytes.fetch_add((asked + answer.encoded_len()) as u64, Ordering::Relaxed);
        wire::answer(answer).map_err(|error| self.unread(&error))
    }

    fn unread(&self, error: &wire::Unread) -> CatchUpError {
        CatchUpError::Invalid(self.shared.unread(&self.source.node, error).message().to_owned())
    }

    async fn look(&self, ask: Ask) -> Result<Answer, CatchUpError> {
        let ledger = self.shared.ledger.clone();
        blocking(move || ledger.compare(&ask, |_| true)).await
    }

    /// Leaves what differs, and fetches what is missing.
    async fn repair(&mut self, found: Vec<Finding>, fetched: &mut Fetched) -> Result<(), CatchUpError> {
        let mut missing = Vec::new();
        let ahead = self.ahead(&found).await?;
        for finding in found {
            let slot = Slot::of(&finding.context);
            if !self.claims.contains_key(&slot) {
                continue;
            }
            let Finding { context, theirs, verdict, .. } = &finding;
            let their_size = theirs.size().unwrap_or(Size(0));
            match *verdict {
                Verdict::InStep => {}
                Verdict::Behind { from } => missing.push((context.clone(), from, their_size)),
                Verdict::Ahead { .. } if self.mode == Mode::Longest => {}
                Verdict::Ahead { from } => {
                    if ahead.contains(context) {
                        self.leave(&finding, from).await?;
                    } else {
                        self.is_unsettled = true;
                    }
                }
                Verdict::Diverged { common } => {
                    if self.leave(&finding, common).await? {
                        missing.push((context.clone(), common, their_size));
                    }
                }
                Verdict::Changed => self.is_unsettled = true,
                Verdict::Unreadable(side) => self.unreadable(&finding, side).await,
                Verdict::Damaged { different, equal } => {
                    limited!(
                        error, %context, source = %self.source, different = different.0, equal = equal.0,
                        "the stored trees of two nodes contradict each other: one of them is damaged, this one is checked"
                    );
                    let (ledger, context) = (self.shared.ledger.clone(), context.clone());
                    blocking(move || ledger.scrub(&context)).await?;
                    self.caught.unreadable.insert(slot);
                }
            }
        }
        self.fetch(&missing, fetched).await
    }

    /// One side cannot read what it has of a context. Nothing is given up for that, nor taken for the best there is.
    async fn unreadable(&mut self, finding: &Finding, side: Side) {
        let Finding { context, theirs, .. } = finding;
        let slot = Slot::of(context);
        if let (Side::Ours, Mode::Follow, Holding::Held(theirs)) = (side, self.mode, theirs)
            && let Some(claim) = self.claims.get(&slot)
        {
            match healing::in_claim(self.shared, context, self.source, claim, theirs.extent()).await {
                Ok(()) => return self.is_unsettled = true,
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
        self.caught.unreadable.insert(slot);
    }

    /// The contexts whose history here goes on beyond theirs, asked now that ours is known: theirs only grows. Of a slot
    /// that is written to many may only have looked like it.
    async fn ahead(&mut self, found: &[Finding]) -> Result<HashSet<ContextId>, CatchUpError> {
        let mut ahead = HashSet::new();
        if self.mode == Mode::Longest {
            return Ok(ahead);
        }
        let looks_ahead = found.iter().filter(|finding| matches!(finding.verdict, Verdict::Ahead { .. }));
        let ours: Vec<_> =
            looks_ahead.filter_map(|finding| Some((&finding.context, finding.ours.held()?.size))).collect();
        for some in ours.chunks(MAX_COMPARED) {
            let prefixes = some
                .iter()
                .map(|(context, size)| Prefixes { context: (*context).clone(), sizes: vec![*size] });
            let Answer::Roots(roots) = self.ask(&Ask::Roots(prefixes.collect())).await? else { continue };
            // Only what they could read is evidence: a history of theirs that ends earlier, or none.
            let shorter = some.iter().zip(roots).filter(|(_, roots)| roots.is_shorter_than(1));
            ahead.extend(shorter.map(|((context, _), _)| (*context).clone()));
        }
        Ok(ahead)
    }

    /// A slot was promised to a higher claim: it is no longer for this node to change.
    fn refused(&mut self, slot: Slot, by: Claim) {
        self.claims.remove(&slot);
        self.caught.refused.insert(slot, by);
    }

    /// Moves what a context has after `common` to the forks; whether it did.
    async fn leave(&mut self, finding: &Finding, common: Size) -> Result<bool, CatchUpError> {
        let Finding { context, ours: Holding::Held(ours), theirs, .. } = finding else { return Ok(false) };
        let Some(claim) = self.claims.get(&Slot::of(context)) else { return Ok(false) };
        let theirs = match theirs {
            Holding::Absent => Tip { size: Size(0), root: ours.root, epoch: Epoch::default() },
            Holding::Held(at) => Tip { size: at.size, root: at.root, epoch: at.epoch },
            // That is no evidence of another history.
            Holding::Unreadable => return Ok(false),
        };
        let reason = format!(
            "node {} holds another history, and owns the slot or is its source (epoch {})",
            self.source.node, claim.epoch
        );
        let evidence = Evidence { theirs, reason };
        let left =
            self.shared.ledger.leave_history(context.clone(), claim.clone(), common, ours.extent(), evidence);
        let is_left = match left.await {
            // What would be left cannot be read: it stays as it is.
            Err(error @ StoreError::Damaged { .. }) => {
                limited!(warn, %context, %error, "a damaged context is not left for another history");
                self.caught.unreadable.insert(Slot::of(context));
                return Ok(false);
            }
            left => left?,
        };
        let is_left = match is_left {
            LeftHistory::At(size) => size == common,
            LeftHistory::Refused(by) => {
                self.refused(Slot::of(context), by);
                return Ok(false);
            }
        };
        if is_left {
            self.shared.counters.forks.fetch_add(1, Ordering::Relaxed);
        }
        self.is_unsettled = true;
        Ok(is_left)
    }
}
