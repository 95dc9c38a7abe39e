//! Catching up: how a node obtains what another node, the *source*, holds of slots.
//!
//! | question | answered by |
//! | --- | --- |
//! | Which slots of an owner are brought in sync next, and when are the others tried again? | [`SyncSchedule`] |
//! | From which nodes does a claimant fetch, and when is it complete? | [`ClaimSources`] |
//! | What is to be done until the slots are in sync with one source? | [`CatchUp`] |
//! | What does the source send of the contexts that it is asked for? | [`FetchAnswer`] |
//!
//! [`CatchUp`] goes round by round: compare ([`crate::compare`]), leave to forks what the source proves to be another history,
//! fetch what is missing, and compare again. It corresponds to the log reconciliation of a Raft follower (Ongaro,
//! "Consensus: Bridging Theory and Practice", 2014, §3.5), with Merkle roots in place of `prevLogTerm`.
//!
//! Invariants:
//!
//! - **Only a comparison that found nothing ends it** ([`SlotOutcome::InSync`]). The one exception is a replica that follows an
//!   owner and fetched little ([`SlotOutcome::NearlyInSync`]): the owner's sync offer, which is accepted only if the digest of the
//!   whole slot is equal at its place in the owner's stream, is then that comparison.
//! - **The end of a fetch proves nothing.** A context that did not arrive up to the size that was asked for fails its slot, however
//!   the response ended.
//! - **Unknown is a value.** A context is absent, unreadable or present at either side. What a side cannot read ends the slot as
//!   [`SlotOutcome::Unreadable`]; nothing is left to a fork because of it.
//! - **A fork needs evidence**: a root of the source, read when the source was asked again, that contradicts this node's history, or
//!   shows where the source's ends.
//! - **A slot fails alone.** A refused, unreadable or failed slot is done; the others go on. Only the loss of the source, or of this
//!   node's disk, ends all.
//! - Every slot is done exactly once ([`Effect::Done`]). Nothing follows after the last.

mod claim;
mod effect;
mod event;
mod fetch_answer;
mod fetch_plan;
mod fetch_progress;
mod findings;
mod mode;
mod open_slots;
mod run;
mod schedule;
#[cfg(test)]
mod tests;

pub use claim::{ClaimRun, ClaimSources};
pub use effect::{Effect, Failure, ForkOrder, SlotOutcome};
pub use event::{Event, ForkResult, LoadResult, RestoreResult, WriteResult};
pub use fetch_answer::{FetchAnswer, Missing, RangeEnd, RangeRead};
pub use fetch_plan::{MAX_FETCH, WantedRange};
pub use fetch_progress::{ArrivedRange, RangeUse};
pub use mode::Mode;
pub use run::CatchUp;
pub use schedule::{NextRun, SyncSchedule};
