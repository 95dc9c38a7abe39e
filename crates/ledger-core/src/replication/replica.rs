//! The replica's side of replication: what a lane decides about what owners send it.
//!
//! Nothing here does I/O. A lane of the store drives it with its database and the streams of other nodes, a simulation with its
//! own. The shell reads and writes what the machine asks for, verifies hashes, and does nothing of its own accord.
//!
//! | an owner sends | decided by | the shell then |
//! | --- | --- | --- |
//! | a part of a commit; catch-up fetches a range | [`Replica::admit`], [`Admitted::place`], [`Replica::settle`] | verifies and writes entries, buffers the part, answers |
//! | an offer, a promise to ask for, a confirmation | [`RecordBatch::change`], [`Replica::on_written`] | writes the slot's record, hides the slot |
//! | a lease renewal | [`Replica::sync_state`], [`RenewalAnswer::of`] | answers, tells the slot manager |
//! | digests of what it holds | [`Replica::status`], [`CheckpointAnswer::of`] | answers, or breaks the stream |
//! | anything on its stream | [`ReplicaStream`], [`refused_slots`] | answers, or breaks the stream |
//! | a comparison found another history | [`Replica::leave_history`] | hides the slot, moves what differs to a fork |
//!
//! States of a slot at a replica, for a claim:
//!
//! | state | parts of the owner's commits | left by |
//! | --- | --- | --- |
//! | refused: a higher claim was promised | are refused | – |
//! | behind | are written if they continue what is here; a gap is fetched | an offer that is accepted |
//! | in sync | are written; one that does not continue what is here is refused | a part that is refused, a new stream, a higher claim, an offer that differs |
//!
//! Invariants:
//! - A replica is in sync with a claim from the offer that it accepted until it refuses a part, or the owner's stream begins anew.
//!   The owner counts its acknowledgements in that time only. So before a replica acknowledges a commit, it names the slots whose
//!   parts it refused ([`refused_slots`]). The other slots of the commit, and the stream, go on.
//! - What cannot be read is never taken for absent. A replica with damage promises nothing, accepts no offer, and is not in sync.
//! - A promise is never taken back.

mod answers;
mod out_of_order;
mod part;
mod range_fit;
mod record_change;
mod stream;
mod sync_offer;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, hash::Hash as MapKey};

use foldhash::fast::RandomState;

pub use answers::{CheckpointAnswer, RenewalAnswer, ReplicaStatus, SyncState};
pub use out_of_order::MAX_OUT_OF_ORDER_BYTES;
pub use part::{
    Admission, Admitted, LocalHistory, MAX_OUT_OF_ORDER_GAP, PartContent, PartDecision, PartHeader,
    PartResult, PartSource, ReplicateOutcome,
};
pub use record_change::{
    ChangedFor, Offer, RecordBatch, RecordChange, RecordChangeOutcome, SlotCondition, WhyUnavailable,
};
pub use stream::{ReplicaStream, StreamError, refused_slots};
pub use sync_offer::SyncOffer;

use crate::{
    Size,
    digest::Digest,
    node::NodeId,
    ownership::{Claim, SlotRecord, WhyRefused},
    slot::Slot,
};
use out_of_order::OutOfOrderBuffer;

/// The state machine of a lane as a replica: it decides what becomes of parts, offers, promises and renewals, and remembers
/// what is not on disk. `C` names a context, `P` is a part with its entries. Raft: a follower.
#[derive(Debug)]
pub struct Replica<C, P> {
    /// The claim with whose owner each slot is in sync.
    in_sync: HashMap<Slot, Claim, RandomState>,
    out_of_order: OutOfOrderBuffer<C, P>,
}

impl<C, P> Default for Replica<C, P> {
    fn default() -> Self {
        Self { in_sync: HashMap::default(), out_of_order: OutOfOrderBuffer::default() }
    }
}

/// A slot whose epoch this replica accepted, because it holds what the owner holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The slot.
    pub slot: Slot,
    /// The owner's claim.
    pub claim: Claim,
    /// The number of the owner's newest commit before the offer.
    pub number: u64,
}

/// Whether a replica may leave what it has of a context for the history of a claim's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ForkDecision {
    /// It may: hide the slot, then move what differs to a fork.
    Leave,
    /// It may not: it promised the slot to this higher claim.
    Refused(Claim),
    /// It may not: the context is no longer what the comparison saw, or the slot is in sync by now. Compare again.
    Changed,
}

impl<C: MapKey + Eq + Clone, P> Replica<C, P> {
    /// Returns whether the slot is in sync with the claim's owner on the owner's current stream.
    pub fn is_in_sync(&self, slot: Slot, claim: &Claim) -> bool {
        self.in_sync.get(&slot) == Some(claim)
    }

    /// Decides whether this replica takes a part, before the shell reads the part's context. `is_withheld` says whether
    /// readers would see what the shell writes to the slot before the owner commits it, unless the shell pins it.
    pub fn admit(&self, part: &PartHeader<'_>, record: &SlotRecord, is_withheld: bool) -> Admission {
        if let Err(refused) = record.check_replicate(part.claim) {
            return Admission::Settled(part.refused(WhyRefused::Promised(refused.promised)));
        }
        let is_in_sync = self.is_in_sync(part.slot, part.claim);
        let is_strict = is_in_sync && matches!(part.source, PartSource::Commit(_));
        if is_in_sync && !is_strict {
            // This node fetched or buffered the part before the slot got in sync. Now it has those entries, and the stream
            // brings the rest.
            return Admission::Settled(ReplicateOutcome::Durable(part.end()));
        }
        // Such a write is not known to be committed, and no number in the stream says when it is.
        Admission::Admitted(Admitted::new(is_strict, !is_strict && is_withheld))
    }

    /// Keeps a part that [`PartDecision::Buffer`] is about until what it continues arrives. Beyond [`MAX_OUT_OF_ORDER_BYTES`] all
    /// parts of the context are dropped: catch-up fetches them. What all lanes of a node buffer together the shell bounds, by
    /// [`Replica::refuse_buffering`].
    pub fn buffer(
        &mut self,
        slot: Slot,
        context: C,
        after: Size,
        cost_bytes: usize,
        number: u64,
        part: P,
    ) -> ReplicateOutcome {
        self.out_of_order.push(slot, context, after, cost_bytes, number, part);
        ReplicateOutcome::Gap
    }

    /// Drops what is buffered of a context, because the shell has no memory for its next part: catch-up fetches both.
    pub fn refuse_buffering(&mut self, slot: Slot, context: &C) -> ReplicateOutcome {
        self.out_of_order.forget(slot, context);
        ReplicateOutcome::Gap
    }

    /// Returns whether buffered parts of a slot wait for entries before them.
    pub fn is_buffering(&self, slot: Slot) -> bool {
        self.out_of_order.has(slot)
    }

    /// Returns how many bytes the buffered parts cost; at most [`MAX_OUT_OF_ORDER_BYTES`].
    pub fn buffered_bytes(&self) -> usize {
        self.out_of_order.bytes()
    }

    /// Takes the next buffered part of a context that has this size by now. Apply it as [`PartSource::Buffered`].
    pub fn next_buffered(&mut self, slot: Slot, context: &C, size: Size) -> Option<(P, u64)> {
        self.out_of_order.next(slot, context, size)
    }

    /// Refuses a part whose slot has no readable record, or that is not of its slot.
    pub fn refuse(&mut self, part: &PartHeader<'_>, reason: String) -> ReplicateOutcome {
        self.lose_sync(part);
        part.refused(WhyRefused::Invalid(reason))
    }

    /// Makes the answer to an admitted part once the shell has carried out the decision.
    pub fn settle(
        &mut self,
        part: &PartHeader<'_>,
        context: &C,
        admitted: Admitted,
        result: PartResult,
    ) -> ReplicateOutcome {
        let outcome = admitted.outcome(part, result);
        if matches!(outcome, ReplicateOutcome::Refused(_)) {
            self.lose_sync(part);
        }
        if matches!(part.source, PartSource::Buffered(_)) && !matches!(outcome, ReplicateOutcome::Durable(_))
        {
            // Without this one those after it are useless: catch-up fetches them.
            self.out_of_order.forget(part.slot, context);
        }
        outcome
    }

    /// Takes the slot of a part that this replica refuses out of sync with the claim of the commit.
    fn lose_sync(&mut self, part: &PartHeader<'_>) {
        if matches!(part.source, PartSource::Commit(_)) && self.is_in_sync(part.slot, part.claim) {
            self.in_sync.remove(&part.slot);
        }
    }

    /// The shell wrote a batch of changes to disk: returns the slots that this replica accepted. They are in sync from now on.
    pub fn on_written(&mut self, accepted: Vec<Accepted>) -> Vec<Accepted> {
        for Accepted { slot, claim, .. } in &accepted {
            self.in_sync.insert(*slot, claim.clone());
            // The accepted history includes what the buffered parts bring.
            self.out_of_order.forget_slot(*slot);
        }
        accepted
    }

    /// A node begins a new stream: no slot is in sync with that node until this replica accepts an offer on it.
    pub fn on_stream_started(&mut self, owner: &NodeId) {
        self.in_sync.retain(|_, claim| claim.claimant != *owner);
    }

    /// This node serves the slot itself from now on. The command may come late, so the slot stays in sync with a higher claim
    /// that this replica accepted since.
    pub fn on_serving(&mut self, slot: Slot, claim: &Claim) {
        if self.in_sync.get(&slot).is_some_and(|accepted| accepted.epoch <= claim.epoch) {
            self.in_sync.remove(&slot);
        }
    }

    /// The shell reopened the database, and nobody knows which of the last writes it has: no slot is in sync.
    pub fn on_reopened(&mut self) {
        *self = Self::default();
    }

    /// Decides whether this replica leaves its history of a context for that of a claim's owner. `is_unchanged` says whether
    /// the context is still what the comparison saw. With [`ForkDecision::Leave`] the slot is out of sync.
    ///
    /// A replica leaves nothing while it is in sync with a claim that no higher promise ended: that claim's owner counts it.
    pub fn leave_history(
        &mut self,
        slot: Slot,
        context: &C,
        claim: &Claim,
        record: &SlotRecord,
        is_unchanged: bool,
    ) -> ForkDecision {
        if let Err(refused) = record.check_replicate(claim) {
            return ForkDecision::Refused(refused.promised);
        }
        let counts = |claim: &Claim| record.check_replicate(claim).is_ok();
        if !is_unchanged || self.in_sync.get(&slot).is_some_and(counts) {
            return ForkDecision::Changed;
        }
        self.on_history_replaced(slot, context);
        ForkDecision::Leave
    }

    /// The shell is about to replace a context's history by the owner's: the slot is out of sync until the next offer.
    pub fn on_history_replaced(&mut self, slot: Slot, context: &C) {
        self.in_sync.remove(&slot);
        self.out_of_order.forget(slot, context);
    }

    /// Returns whether this replica is in sync with a claim. `record` is `None` if the shell cannot read it.
    pub fn sync_state(&self, slot: Slot, claim: &Claim, record: Option<&SlotRecord>) -> SyncState {
        let Some(record) = record else { return SyncState::Unknown };
        match record.check_replicate(claim) {
            Err(refused) => SyncState::Refused(refused.promised),
            Ok(()) if record.check_append(claim).is_ok() && self.is_in_sync(slot, claim) => SyncState::InSync,
            Ok(()) => SyncState::Behind,
        }
    }

    /// Returns this replica's state of a slot, for the slot's owner. `digest` is of what it holds; `record` is `None` if the
    /// shell cannot read it.
    pub fn status(
        &self,
        slot: Slot,
        owner: &NodeId,
        record: Option<&SlotRecord>,
        digest: Option<Digest>,
    ) -> ReplicaStatus {
        // A claim that a higher promise ended gets no further parts here: what this replica holds is not what the owner sent.
        let counts = |claim: &Claim| record.is_none_or(|record| record.check_replicate(claim).is_ok());
        if self.in_sync.get(&slot).is_some_and(|claim| claim.claimant == *owner && counts(claim)) {
            return digest.map_or(ReplicaStatus::NotInSync, ReplicaStatus::InSync);
        }
        let promised = record.and_then(|record| record.promised.clone());
        let promised = promised.filter(|claim| claim.claimant != *owner);
        promised.map_or(ReplicaStatus::NotInSync, ReplicaStatus::Promised)
    }
}
