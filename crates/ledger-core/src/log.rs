//! The rules of appending to a context.
//!
//! Invariants of a [`Head`]: sequences are 1..=size without a gap; Lamport times rise with every entry;
//! the frontier commits to the content hash of every entry, in order.

use crate::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Lineage, Sequence, Size,
    clock::{ClockOverflow, LamportClock},
    digest::TreeHead,
    entry::{Draft, Fields, content_hash, metadata_hash},
    hash::Hasher,
    limits::MAX_SEQUENCE,
    tree::{Frontier, RightEdge, TileId},
    with_suite,
};

/// Why a head does not take an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The Lamport clock would wrap.
    #[error(transparent)]
    Clock(#[from] ClockOverflow),
    /// The context is full.
    #[error("context {context} is full: it has {MAX_SEQUENCE} entries, the most a context can hold")]
    Full {
        /// The context.
        context: ContextId,
    },
    /// An entry that came from elsewhere does not continue the history.
    #[error("entry {sequence} of context {context} does not continue the history: {reason}")]
    NotNext {
        /// The context.
        context: ContextId,
        /// The entry's sequence.
        sequence: Sequence,
        /// Why the entry does not continue the history.
        reason: &'static str,
    },
}

/// A place in a context's history: its tree head, epoch and lineage. A client that resumes from it notices if the history is
/// another one by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Number of entries.
    pub size: Size,
    /// Merkle root at that size.
    pub root: Hash,
    /// The epoch of the newest entry; 0 if there is none.
    pub epoch: Epoch,
    /// The lineage of the context.
    pub lineage: Lineage,
}

/// What appending needs of a context, without its entries: the edge of its tree, its Lamport time, epoch and lineage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The hash suite, chosen at creation.
    pub suite: HashSuite,
    /// The time of the newest entry.
    pub lamport: LamportClock,
    /// The epoch of the newest entry; 0 if there is none.
    pub epoch: Epoch,
    /// The right edge of the tree, and with it the size.
    pub frontier: Frontier,
    /// The lineage of the context.
    pub lineage: Lineage,
    /// Wall-clock time of creation, nanoseconds since the Unix epoch.
    pub created_at_ns: u64,
}

/// What the caller gives an append besides its draft: the core draws no time and no randomness.
#[derive(Debug, Clone)]
pub struct Stamp {
    /// The entry's id.
    pub id: EntryId,
    /// Wall-clock time, nanoseconds since the Unix epoch.
    pub now_ns: u64,
    /// Lamport time received with the append; 0 if none.
    pub received_lamport: u64,
    /// The owner's epoch.
    pub epoch: Epoch,
}

impl Head {
    /// Makes the head of a new, empty context.
    pub fn new(suite: HashSuite, lineage: Lineage, created_at_ns: u64) -> Self {
        Self {
            suite,
            lamport: LamportClock::default(),
            epoch: Epoch::default(),
            frontier: Frontier::default(),
            lineage,
            created_at_ns,
        }
    }

    /// Returns the number of entries.
    pub const fn size(&self) -> Size {
        Size(self.frontier.size())
    }

    /// Returns the Merkle root.
    pub fn root(&self) -> Hash {
        with_suite!(self.suite, H => self.frontier.root::<H>())
    }

    /// Returns the size and the Merkle root.
    pub fn tree_head(&self) -> TreeHead {
        TreeHead { size: self.size(), root: self.root() }
    }

    /// Returns the position of the newest entry.
    pub fn position(&self) -> Position {
        Position { size: self.size(), root: self.root(), epoch: self.epoch, lineage: self.lineage }
    }

    /// Appends a draft: gives it the next sequence and Lamport time, hashes it and extends the tree.
    /// Calls `write(tile, hashes)` for every tile to be stored. Nothing changes if this fails.
    ///
    /// # Errors
    ///
    /// [`LogError::Clock`] if the Lamport time would overflow; [`LogError::Full`] if the context holds [`MAX_SEQUENCE`] entries.
    pub fn append(
        &mut self,
        edge: &mut RightEdge,
        context: &ContextId,
        draft: Draft,
        stamp: Stamp,
        write: &mut impl FnMut(TileId, &[Hash]),
    ) -> Result<Entry, LogError> {
        with_suite!(self.suite, H => self.append_with::<H>(edge, context, draft, stamp, write))
    }

    /// Does what [`Head::append`] does, with the suite known at compile time.
    ///
    /// # Errors
    ///
    /// As [`Head::append`].
    pub fn append_with<H: Hasher>(
        &mut self,
        edge: &mut RightEdge,
        context: &ContextId,
        draft: Draft,
        stamp: Stamp,
        write: &mut impl FnMut(TileId, &[Hash]),
    ) -> Result<Entry, LogError> {
        let lamport = self.lamport.next(stamp.received_lamport)?;
        let sequence = self.next_sequence(context)?;
        let content_hash = content_hash::<H>(&Fields {
            context_id: context,
            sequence,
            id: &stamp.id,
            key: &draft.key,
            lamport,
            appended_at_ns: stamp.now_ns,
            epoch: stamp.epoch,
            payload_hash: H::digest(&draft.payload),
            metadata_hash: metadata_hash::<H>(&draft.metadata),
        });
        let entry = Entry {
            context_id: context.clone(),
            sequence,
            id: stamp.id,
            key: draft.key,
            payload: draft.payload,
            metadata: draft.metadata,
            appended_at_ns: stamp.now_ns,
            lamport,
            epoch: stamp.epoch,
            content_hash,
        };
        self.push::<H>(edge, &entry, write);
        Ok(entry)
    }

    /// Takes an entry that was written elsewhere, as it is, if it continues this history: the next
    /// sequence, a later Lamport time, no earlier epoch, and the content hash of its fields.
    ///
    /// # Errors
    ///
    /// [`LogError::NotNext`] if the entry does not continue this history; [`LogError::Full`] if the context holds
    /// [`MAX_SEQUENCE`] entries. Nothing changes then.
    pub fn accept(
        &mut self,
        edge: &mut RightEdge,
        context: &ContextId,
        entry: &Entry,
        write: &mut impl FnMut(TileId, &[Hash]),
    ) -> Result<(), LogError> {
        self.check_next(context, entry)?;
        with_suite!(self.suite, H => self.push::<H>(edge, entry, write));
        Ok(())
    }

    /// Does what [`Head::accept`] does, without the tree's tiles: the caller verifies many entries up to a known root before
    /// it takes any of them. Calls `completed(height, hash)` for each full subtree. Once the caller takes the entries it
    /// passes these to [`RightEdge::completed`].
    ///
    /// # Errors
    ///
    /// As [`Head::accept`].
    pub fn verify_next(
        &mut self,
        context: &ContextId,
        entry: &Entry,
        completed: impl FnMut(u32, Hash),
    ) -> Result<(), LogError> {
        self.check_next(context, entry)?;
        with_suite!(self.suite, H => self.frontier.push::<H>(H::leaf(&entry.content_hash), completed));
        (self.lamport, self.epoch) = (entry.lamport, entry.epoch);
        Ok(())
    }

    fn check_next(&self, context: &ContextId, entry: &Entry) -> Result<(), LogError> {
        let not_next =
            |reason| LogError::NotNext { context: context.clone(), sequence: entry.sequence, reason };
        if entry.context_id != *context {
            return Err(not_next("it belongs to another context"));
        }
        if entry.sequence != self.next_sequence(context)? {
            return Err(not_next("its sequence is not the next one"));
        }
        if entry.lamport <= self.lamport {
            return Err(not_next("its Lamport time is not later than that of the entry before it"));
        }
        if entry.epoch < self.epoch {
            return Err(not_next("its epoch is lower than that of the entry before it"));
        }
        if !entry.is_intact(self.suite) {
            return Err(not_next("its content does not match its content hash"));
        }
        Ok(())
    }

    fn next_sequence(&self, context: &ContextId) -> Result<Sequence, LogError> {
        let size = self.frontier.size();
        if size >= MAX_SEQUENCE {
            return Err(LogError::Full { context: context.clone() });
        }
        Ok(Sequence(size + 1))
    }

    fn push<H: Hasher>(
        &mut self,
        edge: &mut RightEdge,
        entry: &Entry,
        write: &mut impl FnMut(TileId, &[Hash]),
    ) {
        self.frontier.push::<H>(H::leaf(&entry.content_hash), |height, hash| {
            edge.completed(entry.sequence.0, height, hash, write);
        });
        self.lamport = entry.lamport;
        self.epoch = entry.epoch;
    }
}
