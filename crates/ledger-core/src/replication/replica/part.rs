//! What a replica does with a part of a commit, or with a range that it fetched.

use super::range_fit::{RangeFit, fit};
use crate::{
    Hash, Size,
    digest::TreeHead,
    ownership::{Claim, RefusedPart, WhyRefused},
    slot::Slot,
};

/// A part after a larger gap than this, in entries, is not buffered: fetching the gap fetches what follows as well.
pub const MAX_OUT_OF_ORDER_GAP: u64 = 16_384;

/// What a replica decides by about a part: everything of it but its entries.
#[derive(Debug, Clone, Copy)]
pub struct PartHeader<'a> {
    /// The slot of the context.
    pub slot: Slot,
    /// The claim in which the owner sends the entries.
    pub claim: &'a Claim,
    /// The tree head that the entries come after.
    pub after: TreeHead,
    /// Number of entries.
    pub count: u64,
    /// The Merkle root with these entries.
    pub root: Hash,
    /// How the entries came to this replica.
    pub source: PartSource,
    /// Where the entries are.
    pub content: PartContent,
}

impl PartHeader<'_> {
    /// Returns the size of the history with the entries.
    pub fn end(&self) -> Size {
        Size(self.after.size.0.saturating_add(self.count))
    }

    pub(super) fn refused(&self, why: WhyRefused) -> ReplicateOutcome {
        ReplicateOutcome::Refused(RefusedPart { slot: self.slot, claim: self.claim.clone(), why })
    }
}

/// How a part came to this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartSource {
    /// On the owner's stream, in the commit of this number.
    Commit(u64),
    /// On the owner's stream, in the commit of this number. The part came too early, and this replica buffered it since.
    Buffered(u64),
    /// This node fetched the entries to catch up.
    Fetched,
}

impl PartSource {
    /// Makes the source from a commit's number; 0: this node fetched the entries.
    pub const fn of_number(number: u64) -> Self {
        if number == 0 { Self::Fetched } else { Self::Commit(number) }
    }

    /// Returns the number of the commit; 0: this node fetched the entries.
    pub const fn number(self) -> u64 {
        match self {
            Self::Commit(number) | Self::Buffered(number) => number,
            Self::Fetched => 0,
        }
    }
}

/// Where the entries of a part are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartContent {
    /// In the part.
    Entries,
    /// Staged at this replica, as a load.
    Staged,
}

/// Whether a replica takes a part, decided before the shell reads the part's context.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// It does if the part fits its context.
    Admitted(Admitted),
    /// It does not; this is the answer.
    Settled(ReplicateOutcome),
}

/// A part that a replica takes if the part fits its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    is_strict: bool,
    hides: bool,
}

/// What this replica has of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalHistory {
    /// A history up to this tree head. A context that does not exist has size 0 and the root of the empty tree.
    Readable(TreeHead),
    /// Something that the replica cannot read.
    Unreadable,
}

/// What the shell does with an admitted part.
#[derive(Debug, PartialEq, Eq)]
pub enum PartDecision {
    /// Verify all entries but the first ones, and the root with them, then write them.
    Append {
        /// How many entries, the first ones of the part, this replica has already.
        skip: u64,
    },
    /// Install the load that this replica staged, from the part's tree head to its end. If it staged none, the result is
    /// [`PartResult::Gap`].
    Install,
    /// Keep the part until what it continues arrives, with [`super::Replica::buffer`].
    Buffer,
    /// Do nothing: this is the result.
    Nothing(PartResult),
}

/// The shell's report on a part, from which [`super::Replica::settle`] makes the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartResult {
    /// The context reaches this far, with all entries of the part.
    Reaches(Size),
    /// This replica lacks entries before the part, or has not staged the load that the part refers to.
    Gap,
    /// This replica's history and the owner's differ.
    Diverged,
    /// This replica cannot read what it has of the context.
    Unreadable(String),
    /// The part does not verify, or the shell could not write it.
    Invalid(String),
}

/// A replica's answer to a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicateOutcome {
    /// The context reaches this size, durably.
    Durable(Size),
    /// This replica lacks entries before the part. It may have buffered the part until they come.
    Gap,
    /// This replica has another history.
    Diverged,
    /// This replica refused the part. If the slot was in sync with the claim, it is no longer.
    Refused(RefusedPart),
}

impl Admitted {
    pub(super) const fn new(is_strict: bool, hides: bool) -> Self {
        Self { is_strict, hides }
    }

    /// Returns whether the shell hides the slot from readers before it writes the part.
    pub const fn hides(self) -> bool {
        self.hides
    }

    /// Returns whether the slot is in sync with the owner, which counts this replica's acknowledgements.
    pub const fn is_strict(self) -> bool {
        self.is_strict
    }

    /// Decides what the shell does with the part, given what this replica has of the context.
    ///
    /// If the part begins inside the history here, only the shell's verification of hashes can tell whether the two are the
    /// same.
    pub fn place(self, part: &PartHeader<'_>, local: LocalHistory) -> PartDecision {
        let LocalHistory::Readable(here) = local else {
            return PartDecision::Nothing(PartResult::Unreadable("it cannot be read".to_owned()));
        };
        let skip = match fit(here.size, part.after.size, part.count) {
            RangeFit::Continues { skip } => skip,
            RangeFit::AlreadyHere => {
                // If the history here goes beyond the part, only a comparison can tell whether they are the same.
                let is_same = here.size != part.end() || here.root == part.root;
                let result = if is_same { PartResult::Reaches(here.size) } else { PartResult::Diverged };
                return PartDecision::Nothing(result);
            }
            RangeFit::Gap { missing } => {
                let is_kept = !self.is_strict
                    && matches!(part.source, PartSource::Commit(_))
                    && part.content == PartContent::Entries
                    && missing <= MAX_OUT_OF_ORDER_GAP;
                return if is_kept { PartDecision::Buffer } else { PartDecision::Nothing(PartResult::Gap) };
            }
        };
        if skip == 0 && here.root != part.after.root {
            return PartDecision::Nothing(PartResult::Diverged);
        }
        match part.content {
            PartContent::Entries => PartDecision::Append { skip },
            PartContent::Staged if skip == 0 => PartDecision::Install,
            // A load is installed whole or not at all.
            PartContent::Staged => PartDecision::Nothing(PartResult::Gap),
        }
    }

    pub(super) fn outcome(self, part: &PartHeader<'_>, result: PartResult) -> ReplicateOutcome {
        match result {
            PartResult::Reaches(size) => ReplicateOutcome::Durable(size),
            PartResult::Invalid(reason) => part.refused(WhyRefused::Invalid(reason)),
            // The owner counts this replica's acknowledgement, so a missing entry must not be acknowledged.
            PartResult::Gap | PartResult::Diverged if self.is_strict => {
                part.refused(WhyRefused::Invalid("it does not continue what is here".to_owned()))
            }
            PartResult::Unreadable(reason) if self.is_strict => part.refused(WhyRefused::Invalid(reason)),
            // The context is restored before the slot gets in sync; until then what arrives has a gap before it.
            PartResult::Gap | PartResult::Unreadable(_) => ReplicateOutcome::Gap,
            PartResult::Diverged => ReplicateOutcome::Diverged,
        }
    }
}
