//! What a replica does with a part of a commit, or with a range that was fetched.

use super::range_fit::{RangeFit, fit};
use crate::{Hash, Size, digest::TreeHead, ownership::Claim, slot::Slot};

/// A part after a larger gap than this, in entries, is not buffered: fetching the gap fetches what follows as well.
pub const MAX_OUT_OF_ORDER_GAP: u64 = 16_384;

/// Entries of one context, without the entries.
#[derive(Debug, Clone, Copy)]
pub struct PartHeader<'a> {
    /// The slot of the context.
    pub slot: Slot,
    /// The claim in which the entries are sent.
    pub claim: &'a Claim,
    /// The tree head that they come after.
    pub after: TreeHead,
    /// How many there are.
    pub count: u64,
    /// The root with them.
    pub root: Hash,
    /// How they came here.
    pub source: PartSource,
    /// Where they are.
    pub content: PartContent,
}

impl PartHeader<'_> {
    /// The size of the history with the entries.
    pub fn end(&self) -> Size {
        Size(self.after.size.0.saturating_add(self.count))
    }
}

/// How a part came to this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartSource {
    /// On the owner's stream, in the commit of this number.
    Commit(u64),
    /// The same, and it was buffered since.
    Buffered(u64),
    /// This node fetched it.
    Fetched,
}

impl PartSource {
    /// Of a commit's number; 0: it was fetched.
    pub const fn of_number(number: u64) -> Self {
        if number == 0 { Self::Fetched } else { Self::Commit(number) }
    }

    /// Number of the commit; 0: it was fetched.
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

/// Whether to take a part, before its context is read.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Its context decides.
    Admitted(Admitted),
    /// No: this became of it.
    Settled(ReplicateOutcome),
}

/// A part that is taken if it fits its context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted {
    is_strict: bool,
    hides: bool,
}

/// What is here of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalHistory {
    /// This much; a context that does not exist has size 0 and the root of nothing.
    Readable(TreeHead),
    /// Something that cannot be read.
    Unreadable,
}

/// What to do with a part that was admitted.
#[derive(Debug, PartialEq, Eq)]
pub enum PartDecision {
    /// Verify all entries but the first ones, and the root with them, then write them.
    Append {
        /// How many are here already.
        skip: u64,
    },
    /// Install the load that is staged here from the part's tree head to its end. If it is not, that is a
    /// [`PartResult::Gap`].
    Install,
    /// Keep the part until what it continues arrives, with [`super::Replica::buffer`].
    Buffer,
    /// Nothing: this is the result.
    Nothing(PartResult),
}

/// What was found of a part, or done with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartResult {
    /// The context reaches this far, with all entries of the part.
    Reaches(Size),
    /// Entries before it are missing, or it refers to a load that is not staged here.
    Gap,
    /// What is here, or what was sent, is another history.
    Diverged,
    /// What is here cannot be read.
    Unreadable(String),
    /// It is not what a node of ours would send, or it could not be written.
    Invalid(String),
}

/// What became of a part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicateOutcome {
    /// The context reaches this far now; it is durable.
    Durable(Size),
    /// It does not fit yet: entries before it are missing. It may have been kept until they come.
    Gap,
    /// What is here is another history.
    Diverged,
    /// The slot was promised to a higher claim.
    Refused {
        /// The slot.
        slot: Slot,
        /// The claim it was sent in.
        claim: Claim,
        /// The higher one.
        by: Claim,
    },
    /// It is not what a node of ours would send, or the owner counts on an entry that is missing here.
    Invalid(String),
}

impl Admitted {
    pub(super) const fn new(is_strict: bool, hides: bool) -> Self {
        Self { is_strict, hides }
    }

    /// Whether to hide the slot from readers before anything is written.
    pub const fn hides(self) -> bool {
        self.hides
    }

    /// Whether the slot is in sync with the owner, which counts this replica's acknowledgements.
    pub const fn is_strict(self) -> bool {
        self.is_strict
    }

    /// What to do with the part, given what is here of its context.
    ///
    /// Whether entries continue a history in the midst of which they begin is for the shell's verification to tell.
    pub fn place(self, part: &PartHeader<'_>, local: LocalHistory) -> PartDecision {
        let LocalHistory::Readable(here) = local else {
            return PartDecision::Nothing(PartResult::Unreadable("it cannot be read".to_owned()));
        };
        let skip = match fit(here.size, part.after.size, part.count) {
            RangeFit::Continues { skip } => skip,
            RangeFit::AlreadyHere => {
                // Beyond the part's end only a comparison tells.
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

    pub(super) fn outcome(self, result: PartResult) -> ReplicateOutcome {
        match result {
            PartResult::Reaches(size) => ReplicateOutcome::Durable(size),
            PartResult::Invalid(reason) => ReplicateOutcome::Invalid(reason),
            // The owner counts this replica's acknowledgement, so a missing entry must not be acknowledged.
            PartResult::Gap | PartResult::Diverged if self.is_strict => {
                ReplicateOutcome::Invalid("it does not continue what is here".to_owned())
            }
            PartResult::Unreadable(reason) if self.is_strict => ReplicateOutcome::Invalid(reason),
            // The context is restored before the slot gets in sync; until then what arrives has a gap before it.
            PartResult::Gap | PartResult::Unreadable(_) => ReplicateOutcome::Gap,
            PartResult::Diverged => ReplicateOutcome::Diverged,
        }
    }
}
