//! What a writer keeps: its newest appends, and what it knows of the history they are in. Nothing here asks
//! anybody.
//!
//! Invariants: appends are in the order of writing; those that are acknowledged come before those that are
//! not. Marks have rising sequences. What is not acknowledged is never dropped to make room.

use std::collections::VecDeque;

use ledger_core::{EntryId, Epoch, Hash, Position, Sequence, Size};

use crate::{Append, ClientError};

/// Bytes that an append is counted with beside its content.
const OVERHEAD: usize = 256;
/// Marks kept. They outlast their appends, to tell how far a history is the one that was written.
const MAX_WRITER_MARKS: usize = 16 * 1024;

/// An append that is kept.
#[derive(Debug)]
pub(super) struct BufferedAppend {
    pub append: Append,
    pub id: EntryId,
    /// Where it is stored, once that is acknowledged.
    pub written: Option<StoredAt>,
    /// Where it was stored, if the ledger may have lost it.
    pub before: Option<StoredAt>,
    /// Enough copies were made of it.
    is_safe: bool,
}

/// Where an entry is stored, and what is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StoredAt {
    pub sequence: Sequence,
    pub content_hash: Hash,
}

/// What is known of the history after an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WriterMark {
    pub place: StoredAt,
    pub epoch: Epoch,
    /// The root of all entries up to this one, if the ledger said it.
    pub root: Option<Hash>,
}

#[derive(Debug)]
pub(super) struct Buffer {
    kept: VecDeque<BufferedAppend>,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
    marks: VecDeque<WriterMark>,
    /// The newest entry of this writer that is not kept any more.
    dropped: Sequence,
}

impl Buffer {
    pub(super) fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self {
            kept: VecDeque::new(),
            bytes: 0,
            max_entries: max_entries.max(1),
            max_bytes,
            marks: VecDeque::new(),
            dropped: Sequence(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    /// Keeps an append that is about to be written. One that waits already, by its id, is not kept twice. Makes
    /// room by dropping the oldest that are acknowledged: at most one more than allowed are kept.
    pub(super) fn keep(&mut self, append: &Append, id: &EntryId) -> Result<(), ClientError> {
        if self.waiting().any(|kept| kept.id == *id) {
            return Ok(());
        }
        let bytes = append.bytes() + OVERHEAD;
        // One that waits alone may be one too many: it is not known yet whether it will be kept.
        while self.waiting_count() > 0
            && (self.kept.len() >= self.max_entries || self.bytes + bytes > self.max_bytes)
        {
            if self.kept.front().is_none_or(|oldest| oldest.written.is_none()) {
                return Err(ClientError::Exhausted(format!(
                    "this writer keeps {} appends of {} bytes that the ledger has not acknowledged, as many as \
                     it may: try again when it has",
                    self.kept.len(),
                    self.bytes
                )));
            }
            self.drop_oldest();
        }
        self.bytes += bytes;
        self.kept.push_back(BufferedAppend {
            append: append.clone(),
            id: id.clone(),
            written: None,
            before: None,
            is_safe: false,
        });
        Ok(())
    }

    /// Whether an append is the newest.
    pub(super) fn is_newest(&self, id: &EntryId) -> bool {
        self.kept.back().is_some_and(|kept| kept.id == *id)
    }

    /// The appends that are not acknowledged, oldest first.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &BufferedAppend> {
        self.kept.iter().skip(self.first_waiting())
    }

    pub(super) fn waiting_count(&self) -> usize {
        self.kept.len() - self.first_waiting()
    }

    /// The oldest append that is not acknowledged is stored. `is_safe`: it need not be kept for long.
    pub(super) fn acknowledge(&mut self, place: StoredAt, is_safe: bool) {
        let first = self.first_waiting();
        if let Some(kept) = self.kept.get_mut(first) {
            kept.written = Some(place);
            kept.is_safe = is_safe;
        }
        let is_crowded = |this: &Self| this.kept.len() > this.max_entries || this.bytes > this.max_bytes;
        while let Some(oldest) = self.kept.front()
            && oldest.written.is_some()
            && (oldest.is_safe || is_crowded(self))
        {
            self.drop_oldest();
        }
    }

    /// The oldest append that is not acknowledged will never be stored, or was before this writer began.
    pub(super) fn discard(&mut self) -> Option<BufferedAppend> {
        let discarded = self.kept.remove(self.first_waiting())?;
        self.bytes -= discarded.append.bytes() + OVERHEAD;
        Some(discarded)
    }

    /// The newest append will not be kept after all.
    pub(super) fn take_back(&mut self, id: &EntryId) {
        if self.kept.back().is_some_and(|kept| kept.id == *id && kept.written.is_none())
            && let Some(kept) = self.kept.pop_back()
        {
            self.bytes -= kept.append.bytes() + OVERHEAD;
        }
    }

    pub(super) fn mark(&mut self, mark: WriterMark) {
        while self.marks.back().is_some_and(|newest| newest.place.sequence >= mark.place.sequence) {
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

    /// The ledger's history has in common with this writer's only so many entries: what was written after that
    /// waits to be written again. Gives how many.
    pub(super) fn lose_after(&mut self, common: Size) -> Result<usize, Size> {
        if self.dropped.0 > common.0 {
            return Err(common);
        }
        self.marks.retain(|mark| mark.place.sequence.0 <= common.0);
        let lost = |kept: &&mut BufferedAppend| kept.written.is_some_and(|place| place.sequence.0 > common.0);
        let lost = self.kept.iter_mut().filter(lost).map(|kept| kept.before = kept.written.take());
        Ok(lost.count())
    }

    /// What was taken for lost is where it was.
    pub(super) fn restore_marks(&mut self, marks: VecDeque<WriterMark>) {
        self.marks = marks;
    }

    /// Gives up everything.
    pub(super) fn clear(&mut self) -> Vec<Append> {
        (self.bytes, self.dropped) = (0, Sequence(0));
        self.marks.clear();
        self.kept.drain(..).map(|kept| kept.append).collect()
    }

    fn first_waiting(&self) -> usize {
        // Those that wait are few, and last.
        let waiting = self.kept.iter().rev().take_while(|kept| kept.written.is_none()).count();
        self.kept.len() - waiting
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.kept.pop_front() {
            self.bytes -= oldest.append.bytes() + OVERHEAD;
            let sequence = oldest.written.map_or(Sequence(0), |place| place.sequence);
            self.dropped = self.dropped.max(sequence);
        }
    }
}

/// The sizes at which the root is known, newest last: of the position a writer began at, of its marks, and of its
/// newest position.
pub(super) fn known_roots(
    base: &Position,
    marks: &VecDeque<WriterMark>,
    position: &Position,
) -> Vec<(Size, Hash)> {
    let of_marks = marks.iter().filter_map(|mark| Some((Size(mark.place.sequence.0), mark.root?)));
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

    fn place(sequence: u64) -> StoredAt {
        StoredAt { sequence: Sequence(sequence), content_hash: Hash([sequence as u8; 32]) }
    }

    fn mark(sequence: u64) -> WriterMark {
        WriterMark { place: place(sequence), epoch: Epoch(0), root: Some(Hash([0; 32])) }
    }

    fn keep(buffer: &mut Buffer, number: u64) -> Result<(), ClientError> {
        let mut append = append(number);
        let id = append.identify();
        buffer.keep(&append, &id)
    }

    /// A buffer of so many, with acknowledged entries 1 to `count`.
    fn written(max: usize, count: u64) -> Buffer {
        let mut buffer = Buffer::new(max, 1 << 20);
        for number in 1..=count {
            keep(&mut buffer, number).unwrap();
            buffer.acknowledge(place(number), false);
            buffer.mark(mark(number));
        }
        buffer
    }

    fn waiting(buffer: &Buffer) -> Vec<String> {
        buffer.waiting().map(|kept| kept.id.to_string()).collect()
    }

    #[test]
    fn what_was_lost_waits_again_in_order_before_what_is_new() {
        let mut buffer = written(100, 10);
        keep(&mut buffer, 11).unwrap();
        assert_eq!(buffer.lose_after(Size(7)), Ok(3));
        assert_eq!(waiting(&buffer), ["entry 8", "entry 9", "entry 10", "entry 11"]);
        assert_eq!(buffer.waiting().next().unwrap().before, Some(place(8)));
        buffer.acknowledge(place(12), false);
        assert_eq!(waiting(&buffer), ["entry 9", "entry 10", "entry 11"]);
        assert_eq!(buffer.marks().len(), 7);
    }

    #[test]
    fn room_is_made_by_dropping_what_is_acknowledged_and_nothing_else() {
        let mut buffer = written(4, 10);
        assert_eq!(buffer.len(), 4);
        assert_eq!(buffer.lose_after(Size(5)), Err(Size(5)), "entry 6 is not kept any more");
        assert_eq!(buffer.lose_after(Size(6)), Ok(4));
        assert!(matches!(keep(&mut buffer, 11), Err(ClientError::Exhausted(_))));
        assert_eq!(waiting(&buffer).len(), 4);
        keep(&mut buffer, 10).unwrap();
        assert_eq!(buffer.len(), 4, "it waits already");
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut buffer = Buffer::new(1000, 2000);
        for number in 1..100 {
            keep(&mut buffer, number).unwrap();
            buffer.acknowledge(place(number), false);
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
            keep(&mut buffer, number).unwrap();
        }
        buffer.acknowledge(place(1), false);
        buffer.acknowledge(place(2), true);
        assert_eq!(buffer.len(), 3);
        let mut buffer = Buffer::new(10, 1 << 20);
        keep(&mut buffer, 1).unwrap();
        buffer.acknowledge(place(1), true);
        assert_eq!(buffer.len(), 0);
        assert_eq!(buffer.lose_after(Size(0)), Err(Size(0)));
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
