//! One attempt to restore one context, as a state machine without I/O: it asks one source after the other until one has
//! the history that is proven to be right.
//!
//! | state | waits for | then |
//! | --- | --- | --- |
//! | `ReadingHead` | this node's head | `Fetching` with the head as proof; or, if the head is lost, `AskingBucket` |
//! | `AskingBucket` | the source's tree heads of the context's bucket | `Fetching` with the digest as proof |
//! | `Fetching` | the history to be staged up to the goal | `Installing` |
//! | `Installing` | the lane's decision | `Finished`; or `Fetching` again if the context grew meanwhile |
//!
//! Whatever fails, the next source is tried from the beginning. Each source is tried once.

use std::collections::{BTreeMap, VecDeque};

use super::{HealProof, HealSource};
use crate::{ContextId, digest::TreeHead, node::Member, ownership::Claim};

/// How often a context may grow by more than the lane adds itself before the attempt gives up.
const MAX_EXTENSIONS: u32 = 64;

/// This node's head of a damaged context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalHead {
    /// The context is not damaged any more.
    NotDamaged,
    /// The context has no committed entries: no other node need have any.
    NothingCommitted,
    /// The node cannot read the head.
    Unreadable,
    /// The node can read the head. This much of it is committed, so other nodes have at least that.
    Committed(TreeHead),
}

/// What the shell tells an attempt: the outcome of the last [`HealEffect`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealEvent {
    /// The shell did [`HealEffect::ReadHead`].
    Head(LocalHead),
    /// The source answered [`HealEffect::AskBucket`] with the tree heads of the contexts that it can read.
    Bucket(BTreeMap<ContextId, TreeHead>),
    /// The shell did [`HealEffect::Fetch`]: it staged everything up to the goal.
    Staged,
    /// The lane did [`HealEffect::Install`]: the history is in place, or something else replaced the damaged rows.
    Installed,
    /// The context grew up to this tree head, and the lane could not add the entries itself.
    Behind(TreeHead),
    /// The shell, the source or the lane failed to do the last effect, or refused it.
    Failed,
}

/// What an attempt asks the shell to do, one at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealEffect {
    /// Read this node's head of the context.
    ReadHead,
    /// Ask a member for the tree heads of the contexts in the context's bucket.
    AskBucket(Member),
    /// Fetch the history up to `goal` and stage it beside the damaged rows. If `is_more`, go on with the rows staged before;
    /// else begin anew.
    Fetch {
        /// The source.
        source: HealSource,
        /// The tree head that the history must reach.
        goal: TreeHead,
        /// What proves that the goal is right.
        proof: HealProof,
        /// Whether the shell goes on with what it staged for the last goal.
        is_more: bool,
    },
    /// Hand the staged history to the lane, which decides about it ([`InstallCase::decide`](super::InstallCase::decide)) and
    /// installs it.
    Install,
    /// The attempt is over.
    Finished(HealOutcome),
}

/// The outcome of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealOutcome {
    /// The context is restored.
    Restored {
        /// Where the entries came from.
        source: HealSource,
        /// Number of entries.
        entries: u64,
    },
    /// There is nothing to restore now.
    NothingToDo,
    /// No source that answers has the history.
    NotRestored,
}

#[derive(Debug, Clone)]
enum State {
    ReadingHead,
    AskingBucket,
    Fetching { goal: TreeHead },
    Installing { goal: TreeHead },
    Finished(HealOutcome),
}

/// The state machine of one attempt to restore one damaged context. Begin it with the sources to ask, do its effects, tell it
/// how each ended.
#[derive(Debug, Clone)]
pub struct HealAttempt {
    context: ContextId,
    /// The sources that are left. The attempt is trying the first.
    sources: VecDeque<HealSource>,
    proof: HealProof,
    extensions: u32,
    state: State,
}

impl HealAttempt {
    /// Begins to restore a context from the first of these sources that has it.
    pub fn begin(context: ContextId, sources: impl IntoIterator<Item = HealSource>) -> (Self, HealEffect) {
        let mut attempt = Self {
            context,
            sources: sources.into_iter().collect(),
            proof: HealProof::Head,
            extensions: 0,
            state: State::ReadingHead,
        };
        let effect = attempt.try_source();
        (attempt, effect)
    }

    /// Begins to restore a context with the history of the slot's owner, which reported this tree head.
    /// `is_complete`: the owner has everything that was ever acknowledged.
    pub fn in_claim(
        context: ContextId,
        owner: Member,
        claim: Claim,
        is_complete: bool,
        goal: TreeHead,
    ) -> (Self, HealEffect) {
        let mut attempt = Self {
            context,
            sources: [HealSource::Member(owner)].into(),
            proof: HealProof::Claim { claim, is_complete },
            extensions: 0,
            state: State::ReadingHead,
        };
        let effect = if goal.size.0 == 0 {
            attempt.finish(HealOutcome::NothingToDo)
        } else {
            attempt.fetch(goal, false)
        };
        (attempt, effect)
    }

    /// Returns the context.
    pub const fn context(&self) -> &ContextId {
        &self.context
    }

    /// Takes the outcome of the last effect, and returns the next. An event that does not belong to the last effect
    /// counts as its failure.
    pub fn step(&mut self, event: HealEvent) -> HealEffect {
        match (self.state.clone(), event) {
            (State::Finished(outcome), _) => HealEffect::Finished(outcome),
            (State::ReadingHead, HealEvent::Head(head)) => self.on_head(head),
            (State::AskingBucket, HealEvent::Bucket(bucket)) => match bucket.get(&self.context).copied() {
                Some(goal) if goal.size.0 > 0 => {
                    self.proof = HealProof::Digest(bucket);
                    self.fetch(goal, false)
                }
                // The source does not have the context, or cannot read it.
                _ => self.next_source(),
            },
            (State::Fetching { goal }, HealEvent::Staged) => {
                self.state = State::Installing { goal };
                HealEffect::Install
            }
            (State::Installing { goal }, HealEvent::Installed) => match self.sources.pop_front() {
                Some(source) => self.finish(HealOutcome::Restored { source, entries: goal.size.0 }),
                None => self.finish(HealOutcome::NotRestored),
            },
            (State::Installing { goal }, HealEvent::Behind(now))
                if now.size > goal.size && self.extensions < MAX_EXTENSIONS =>
            {
                self.extensions += 1;
                self.fetch(now, true)
            }
            _ => self.next_source(),
        }
    }

    fn on_head(&mut self, head: LocalHead) -> HealEffect {
        match (head, self.sources.front()) {
            (LocalHead::NotDamaged | LocalHead::NothingCommitted, _) => self.finish(HealOutcome::NothingToDo),
            (LocalHead::Committed(goal), Some(_)) if goal.size.0 > 0 => self.fetch(goal, false),
            (LocalHead::Unreadable, Some(HealSource::Member(member))) => {
                self.state = State::AskingBucket;
                HealEffect::AskBucket(member.clone())
            }
            // Without the head nobody knows here which of its entries belong to the history.
            _ => self.next_source(),
        }
    }

    fn fetch(&mut self, goal: TreeHead, is_more: bool) -> HealEffect {
        let Some(source) = self.sources.front().cloned() else {
            return self.finish(HealOutcome::NotRestored);
        };
        self.state = State::Fetching { goal };
        HealEffect::Fetch { source, goal, proof: self.proof.clone(), is_more }
    }

    fn next_source(&mut self) -> HealEffect {
        self.sources.pop_front();
        self.try_source()
    }

    /// Begins with the first source that is left, by reading the head again: the last source may have been slow.
    fn try_source(&mut self) -> HealEffect {
        if self.sources.is_empty() {
            return self.finish(HealOutcome::NotRestored);
        }
        (self.proof, self.extensions, self.state) = (HealProof::Head, 0, State::ReadingHead);
        HealEffect::ReadHead
    }

    fn finish(&mut self, outcome: HealOutcome) -> HealEffect {
        self.state = State::Finished(outcome.clone());
        HealEffect::Finished(outcome)
    }
}
