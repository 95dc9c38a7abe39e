//! The buffer of a writer: its newest appends, and what it knows of the history they are in. Makes no calls.
//!
//! Invariants: appends are in the order of writing; acknowledged ones come before the others. Marks have rising sequences.
//! The buffer never drops an append that is not acknowledged to make room.

use std::collections::VecDeque;

use ledger_core::{EntryId, Epoch, Hash, Position, Sequence, Size};

use crate::{error::ClientError, write::append::Append};

/// Bytes that the buffer counts for an append beside its content.
const OVERHEAD: usize = 256;
/// Most marks. They outlast their appends, to tell how far a history is the one that the writer wrote.
const MAX_WRITER_MARKS: usize = 16 * 1024;

/// An append in the buffer.
#[derive(Debug)]
pub(super) struct BufferedAppend {
    pub append: Append,
    pub id: EntryId,
    /// Where it is stored, once the ledger acknowledged it.
    pub acknowledged: Option<StoredAt>,
    /// Where it was stored, if the ledger may have lost it.
    pub lost_from: Option<StoredAt>,
    /// The ledger has enough copies of it.
    is_safe: bool,
}

/// Where an entry is stored, and the hash of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoredAt {
    pub sequence: Sequence,
    pub content_hash: Hash,
}

/// What the writer knows of the history up to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WriterMark {
    pub stored_at: StoredAt,
    pub epoch: Epoch,
    /// The root of all entries up to this one, if the ledger stated it.
    pub root: Option<Hash>,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Buffer {
    appends: VecDeque<BufferedAppend>,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
    marks: VecDeque<WriterMark>,
    /// The newest entry of this writer that the buffer has dropped.
    newest_dropped: Sequence,
}

impl Buffer {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            appends: VecDeque::new(),
            bytes: 0,
            max_entries: max_entries.max(1),
            max_bytes,
            marks: VecDeque::new(),
            newest_dropped: Sequence(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.appends.len()
    }

    /// Adds an append that the writer is about to write, unless one with its id waits already. Makes room by dropping the
    /// oldest acknowledged ones: the buffer holds at most one more than allowed. Fails if it can drop none.
    pub(super) fn push(&mut self, append: &Append, id: &EntryId) -> Result<(), ClientError> {
        if self.waiting().any(|buffered| buffered.id == *id) {
            return Ok(());
        }
        let bytes = append.cost_bytes() + OVERHEAD;
        // A single append that waits may be one too many: its acknowledgement shows whether the buffer must keep it.
        while self.waiting_count() > 0
            && (self.appends.len() >= self.max_entries || self.bytes + bytes > self.max_bytes)
        {
            if self.appends.front().is_none_or(|oldest| oldest.acknowledged.is_none()) {
                return Err(ClientError::Exhausted(format!(
                    "this writer keeps {} appends of {} bytes that the ledger has not acknowledged, as many as \
                     it may: try again when it has",
                    self.appends.len(),
                    self.bytes
                )));
            }
            self.drop_oldest();
        }
        self.bytes += bytes;
        self.appends.push_back(BufferedAppend {
            append: append.clone(),
            id: id.clone(),
            acknowledged: None,
            lost_from: None,
            is_safe: false,
        });
        Ok(())
    }

    /// Whether an append is the newest.
    pub(super) fn is_newest(&self, id: &EntryId) -> bool {
        self.appends.back().is_some_and(|buffered| buffered.id == *id)
    }

    /// The appends that wait to be written or acknowledged, oldest first.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &BufferedAppend> {
        self.appends.iter().skip(self.first_waiting())
    }

    pub(super) fn waiting_count(&self) -> usize {
        self.appends.len() - self.first_waiting()
    }

    /// The ledger acknowledged the oldest append that waits. `is_safe`: the buffer may drop it.
    pub(super) fn acknowledge(&mut self, stored_at: StoredAt, is_safe: bool) {
        let first = self.first_waiting();
        if let Some(buffered) = self.appends.get_mut(first) {
            buffered.acknowledged = Some(stored_at);
            buffered.is_safe = is_safe;
        }
        let is_crowded = |this: &Self| this.appends.len() > this.max_entries || this.bytes > this.max_bytes;
        while let Some(oldest) = self.appends.front()
            && oldest.acknowledged.is_some()
            && (oldest.is_safe || is_crowded(self))
        {
            self.drop_oldest();
        }
    }

    /// Drops the oldest append that waits: the ledger will never store it, or did before this writer began.
    pub(super) fn discard_oldest_waiting(&mut self) -> Option<BufferedAppend> {
        let discarded = self.appends.remove(self.first_waiting())?;
        self.bytes -= discarded.append.cost_bytes() + OVERHEAD;
        Some(discarded)
    }

    /// Drops the newest append, if it is this one and waits: the ledger refused it.
    pub(super) fn discard_newest(&mut self, id: &EntryId) {
        if self.appends.back().is_some_and(|buffered| buffered.id == *id && buffered.acknowledged.is_none())
            && let Some(buffered) = self.appends.pop_back()
        {
            self.bytes -= buffered.append.cost_bytes() + OVERHEAD;
        }
    }

    /// Adds a mark. Drops those at later entries, which the history lost.
    pub(super) fn add_mark(&mut self, mark: WriterMark) {
        while self.marks.back().is_some_and(|newest| newest.stored_at.sequence >= mark.stored_at.sequence) {
            self.marks.pop_back();
        }
        if self.marks.len() == MAX_WRITER_MARKS {
            self.marks.pop_front();
        }
        self.marks.push_back(mark);
    }

    pub(super) fn marks(&self) -> &VecDeque<WriterMark> {
        &self.marks
    }

    /// The ledger's history and this writer's have only `common` entries in common: the appends after those wait to be
    /// written again. Returns how many; an error, with nothing changed, if the buffer has dropped one of them.
    pub(super) fn mark_lost_after(&mut self, common: Size) -> Result<usize, Size> {
        if self.newest_dropped.0 > common.0 {
            return Err(common);
        }
        self.marks.retain(|mark| mark.stored_at.sequence.0 <= common.0);
        let lost = |buffered: &&mut BufferedAppend| {
            buffered.acknowledged.is_some_and(|stored_at| stored_at.sequence.0 > common.0)
        };
        let lost = self
            .appends
            .iter_mut()
            .filter(lost)
            .map(|buffered| buffered.lost_from = buffered.acknowledged.take());
        Ok(lost.count())
    }

    /// Restores the marks of entries that turned out not to be lost.
    pub(super) fn restore_marks(&mut self, marks: VecDeque<WriterMark>) {
        self.marks = marks;
    }

    /// Empties the buffer, and returns its appends.
    pub(super) fn clear(&mut self) -> Vec<Append> {
        (self.bytes, self.newest_dropped) = (0, Sequence(0));
        self.marks.clear();
        self.appends.drain(..).map(|buffered| buffered.append).collect()
    }

    fn first_waiting(&self) -> usize {
        // The appends that wait are few, and come last.
        let waiting =
            self.appends.iter().rev().take_while(|buffered| buffered.acknowledged.is_none()).count();
        self.appends.len() - waiting
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.appends.pop_front() {
            self.bytes -= oldest.append.cost_bytes() + OVERHEAD;
            let sequence = oldest.acknowledged.map_or(Sequence(0), |stored_at| stored_at.sequence);
            self.newest_dropped = self.newest_dropped.max(sequence);
        }
    }
}

/// The sizes at which the writer knows the root, newest last: the position it began at, its marks, and its newest
/// position.
pub(super) fn known_roots(
    base: &Position,
    marks: &VecDeque<WriterMark>,
    position: &Position,
) -> Vec<(Size, Hash)> {
    let of_marks = marks.iter().filter_map(|mark| Some((Size(mark.stored_at.sequence.0), mark.root?)));
    let ends = [(base.size, base.root), (position.size, position.root)];
    let mut known: Vec<_> = ends.into_iter().chain(of_marks).filter(|(size, _)| size.0 > 0).collect();
    known.sort_unstable_by_key(|(size, _)| *size);
    known.dedup_by_key(|(size, _)| *size);
    known
}

#[cfg(test)]
mod tests {
    use ledger_core::ContextId;

    use super::*;

    fn append(number: u64) -> Append {
        let mut append = Append::new(&ContextId::new("c").unwrap(), "facts", vec![0; 100]).unwrap();
        append.entry_id = Some(EntryId::new(&format!("entry {number}")).unwrap());
        append
    }

    fn stored_at(sequence: u64) -> StoredAt {
        StoredAt { sequence: Sequence(sequence), content_hash: Hash([sequence as u8; 32]) }
    }

    fn mark(sequence: u64) -> WriterMark {
        WriterMark { stored_at: stored_at(sequence), epoch: Epoch(0), root: Some(Hash([0; 32])) }
    }

    fn push(buffer: &mut Buffer, number: u64) -> Result<(), ClientError> {
        let mut append = append(number);
        let id = append.assign_id();
        buffer.push(&append, &id)
    }

    /// A buffer of so many, with acknowledged entries 1 to `count`.
    fn written(max: usize, count: u64) -> Buffer {
        let mut buffer = Buffer::new(max, 1 << 20);
        for number in 1..=count {
            push(&mut buffer, number).unwrap();
            buffer.acknowledge(stored_at(number), false);
            buffer.add_mark(mark(number));
        }
        buffer
    }

    fn waiting(buffer: &Buffer) -> Vec<String> {
        buffer.waiting().map(|buffered| buffered.id.to_string()).collect()
    }

    #[test]
    fn what_was_lost_waits_again_in_order_before_what_is_new() {
        let mut buffer = written(100, 10);
        push(&mut buffer, 11).unwrap();
        assert_eq!(buffer.mark_lost_after(Size(7)), Ok(3));
        assert_eq!(waiting(&buffer), ["entry 8", "entry 9", "entry 10", "entry 11"]);
        assert_eq!(buffer.waiting().next().unwrap().lost_from, Some(stored_at(8)));
        buffer.acknowledge(stored_at(12), false);
        assert_eq!(waiting(&buffer), ["entry 9", "entry 10", "entry 11"]);
        assert_eq!(buffer.marks().len(), 7);
    }

    #[test]
    fn room_is_made_by_dropping_what_is_acknowledged_and_nothing_else() {
        let mut buffer = written(4, 10);
        assert_eq!(buffer.len(), 4);
        assert_eq!(buffer.mark_lost_after(Size(5)), Err(Size(5)), "the buffer has dropped entry 6");
        assert_eq!(buffer.mark_lost_after(Size(6)), Ok(4));
        assert!(matches!(push(&mut buffer, 11), Err(ClientError::Exhausted(_))));
        assert_eq!(waiting(&buffer).len(), 4);
        push(&mut buffer, 10).unwrap();
        assert_eq!(buffer.len(), 4, "it waits already");
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut buffer = Buffer::new(1000, 2000);
        for number in 1..100 {
            push(&mut buffer, number).unwrap();
            buffer.acknowledge(stored_at(number), false);
            assert!(buffer.bytes <= 2000);
        }
        assert!((2..10).contains(&buffer.len()));
        buffer.clear();
        assert_eq!((buffer.len(), buffer.bytes), (0, 0));
    }

    #[test]
    fn what_is_safe_is_dropped_when_nothing_before_it_is_kept() {
        let mut buffer = Buffer::new(10, 1 << 20);
        for number in 1..=3 {
            push(&mut buffer, number).unwrap();
        }
        buffer.acknowledge(stored_at(1), false);
        buffer.acknowledge(stored_at(2), true);
        assert_eq!(buffer.len(), 3);
        let mut buffer = Buffer::new(10, 1 << 20);
        push(&mut buffer, 1).unwrap();
        buffer.acknowledge(stored_at(1), true);
        assert_eq!(buffer.len(), 0);
        assert_eq!(buffer.mark_lost_after(Size(0)), Err(Size(0)));
    }

    #[test]
    fn roots_are_known_in_order_and_once_for_each_size() {
        let at = |size| Position {
            size: Size(size),
            root: Hash([0; 32]),
            epoch: Epoch(0),
            lineage: ledger_core::Lineage([0; 16]),
        };
        let buffer = written(4, 3);
        let sizes = |base, position| {
            let known = known_roots(&at(base), buffer.marks(), &at(position));
            known.into_iter().map(|(size, _)| size.0).collect::<Vec<_>>()
        };
        assert_eq!(sizes(0, 3), [1, 2, 3]);
        assert_eq!(sizes(1, 5), [1, 2, 3, 5]);
    }
}
