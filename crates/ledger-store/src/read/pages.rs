//! Reads entries as pages, in sequence order, each record checked against its checksum.

use ledger_core::{ContextId, Entry, Head, Key, Sequence, Size, id::IdError, tree::tile::TILE_WIDTH};

use crate::{
    Covered, EntryView, Filter, Page, StoreError,
    engine::db::Db,
    engine::errors::read_error,
    engine::families::{self, KEYS_LEVEL, RowLocation},
    engine::heads::read_head,
    engine::keys::{KeySet, key_hash},
    engine::record::{self, RecordError},
    error::damaged,
};

/// Reads a page of a context.
pub(crate) fn page(db: &Db, context: &ContextId, filter: &Filter) -> Result<Page, StoreError> {
    loop {
        let Some((place, head)) = db.head(context)? else {
            return Ok(Page {
                entries: Vec::new(),
                latest: Size(0),
                covered: filter.after,
                more: false,
                larger: None,
            });
        };
        match page_at(db, context, place, &head, filter) {
            // Meanwhile a load may have installed another copy of the history, or its end was forked off.
            Err(StoreError::Damaged { .. }) if moved(db, context, place, &head)? => {}
            page => return page,
        }
    }
}

/// Visits the entries of a page without copying them.
pub(crate) fn visit(
    db: &Db,
    context: &ContextId,
    filter: &Filter,
    visit: &mut Visit<'_>,
) -> Result<Covered, StoreError> {
    let mut rest = filter.clone();
    loop {
        let Some((place, head)) = db.head(context)? else {
            return Ok(Covered { latest: Size(0), covered: rest.after, more: false, larger: None });
        };
        let mut cursor = Cursor::new(context, &head, &rest, visit);
        let read = cursor.read_all(db, place);
        let (covered, count, bytes) = (cursor.covered, cursor.count, cursor.bytes);
        match read {
            // Meanwhile a load may have installed another copy of the history. What was visited is the same there.
            Err(StoreError::Damaged { .. }) if moved(db, context, place, &head)? => {}
            Err(error) => return Err(error),
            Ok(()) => return Ok(covered),
        }
        rest.after = covered.covered;
        rest.limit -= count;
        rest.max_bytes = rest.max_bytes.saturating_sub(bytes);
    }
}

/// Returns whether the history that a head describes has moved: a load installed another copy of it, or its end was
/// forked off.
pub(crate) fn moved(
    db: &Db,
    context: &ContextId,
    place: RowLocation,
    head: &Head,
) -> Result<bool, StoreError> {
    let Some((now_at, now)) = read_head(db, context)? else { return Ok(true) };
    if now_at != place || now.size() < head.size() {
        return Ok(true);
    }
    // A history that was cut may have grown again. An entry of the same sequence and epoch is the same entry.
    let newest = head.size().newest();
    let epoch = db
        .get(families::ENTRIES, &place.entry(newest), |value| {
            record::view_entry(newest, value).ok().map(|entry| entry.epoch)
        })
        .map_err(|error| read_error(context, newest, &error))?;
    Ok(epoch.flatten().is_some_and(|epoch| epoch != head.epoch))
}

/// Reads a page of the history that a head describes.
pub(crate) fn page_at(
    db: &Db,
    context: &ContextId,
    place: RowLocation,
    head: &Head,
    filter: &Filter,
) -> Result<Page, StoreError> {
    let mut entries = Vec::new();
    let mut copy = |view: EntryView<'_>| {
        entries.push(view.to_entry(context)?);
        Ok(())
    };
    let mut cursor = Cursor::new(context, head, filter, &mut copy);
    cursor.read_all(db, place)?;
    let Covered { latest, covered, more, larger } = cursor.covered;
    Ok(Page { entries, latest, covered, more, larger })
}

/// Receives one entry at a time.
pub(crate) type Visit<'a> = dyn FnMut(EntryView<'_>) -> Result<(), IdError> + 'a;

/// A page that is being read.
struct Cursor<'a, 'v> {
    context: &'a ContextId,
    head: &'a Head,
    filter: &'a Filter,
    key: Option<&'a str>,
    count: usize,
    bytes: usize,
    covered: Covered,
    visit: &'a mut Visit<'v>,
}

impl<'a, 'v> Cursor<'a, 'v> {
    fn new(context: &'a ContextId, head: &'a Head, filter: &'a Filter, visit: &'a mut Visit<'v>) -> Self {
        Self {
            context,
            head,
            filter,
            key: filter.key.as_ref().map(Key::as_str),
            count: 0,
            bytes: 0,
            covered: Covered { latest: head.size(), covered: filter.after, more: false, larger: None },
            visit,
        }
    }

    /// Reads until the page is full or the context ends.
    fn read_all(&mut self, db: &Db, place: RowLocation) -> Result<(), StoreError> {
        let Some(key) = self.key.map(key_hash) else {
            return self.read(db, place, self.head.frontier.size());
        };
        while !self.covered.more && self.covered.covered.0 < self.head.frontier.size() {
            self.skip_blocks(db, place, key)?;
            self.read(db, place, self.end_of_block())?;
        }
        Ok(())
    }

    /// Reads the entries after what is covered up to `last`, until the page is full.
    fn read(&mut self, db: &Db, place: RowLocation, last: u64) -> Result<(), StoreError> {
        if self.covered.covered.0 >= last {
            return Ok(());
        }
        if self.filter.limit == 0 {
            self.covered.more = true;
            return Ok(());
        }
        let mut failure = None;
        let first = place.entry(self.next());
        let beyond = place.entry(Sequence(last + 1));
        let scanned = db.scan(families::ENTRIES, &first, &beyond, true, |row, value| {
            let sequence = self.next();
            if families::sequence_of(row) != Some(sequence) {
                return false;
            }
            match self.take(sequence, value) {
                Ok(go_on) => go_on,
                Err(error) => {
                    failure = Some(error);
                    false
                }
            }
        });
        scanned.map_err(|error| read_error(self.context, self.next(), &error))?;
        match failure {
            Some(error) => Err(error),
            None if !self.covered.more && self.covered.covered.0 < last => {
                Err(damaged(self.context, self.next(), "the entry is missing"))
            }
            None => Ok(()),
        }
    }

    fn next(&self) -> Sequence {
        Sequence(self.covered.covered.0 + 1)
    }

    /// Takes one row. Returns false when the page is full.
    fn take(&mut self, sequence: Sequence, value: &[u8]) -> Result<bool, StoreError> {
        let undecodable = |error: RecordError| damaged(self.context, sequence, &error.to_string());
        if let Some(key) = self.key
            && record::peek_entry(value).map_err(undecodable)?.0 != key
        {
            self.covered.covered = sequence;
            return Ok(true);
        }
        let view = record::view_entry(sequence, value).map_err(undecodable)?;
        let bytes = self.bytes + view.weight(self.context.as_str().len());
        if self.count == 0 && bytes > self.filter.max_first {
            (self.covered.more, self.covered.larger) = (true, Some(bytes));
            return Ok(false);
        }
        if bytes > self.filter.max_bytes && self.count > 0 {
            self.covered.more = true;
            return Ok(false);
        }
        (self.visit)(view).map_err(|error| undecodable(RecordError::new(error)))?;
        self.bytes = bytes;
        self.count += 1;
        self.covered.covered = sequence;
        let is_full = self.count >= self.filter.limit || bytes >= self.filter.max_bytes;
        self.covered.more = is_full && sequence.0 < self.head.frontier.size();
        Ok(!is_full)
    }

    /// Returns the last sequence of the block that the next entry is in, or of the context.
    fn end_of_block(&self) -> u64 {
        let block = self.covered.covered.0 / TILE_WIDTH as u64;
        self.head.frontier.size().min((block + 1) * TILE_WIDTH as u64)
    }

    /// Skips full blocks that do not have the key.
    fn skip_blocks(&mut self, db: &Db, place: RowLocation, key: u32) -> Result<(), StoreError> {
        let width = TILE_WIDTH as u64;
        let (first, full) = (self.covered.covered.0 / width, self.head.frontier.size() / width);
        let mut block = first;
        let beyond = place.tile(ledger_core::tree::TileId { level: KEYS_LEVEL, index: full });
        db.scan(families::TILES, &place.keys(first), &beyond, true, |row, value| {
            let known = row.get(11..19).and_then(|index| index.try_into().ok()).map(u64::from_be_bytes);
            if known != Some(block) || KeySet::may_contain(value, key) {
                return false;
            }
            block += 1;
            true
        })
        .map_err(|error| read_error(self.context, Sequence(block * width + 1), &error))?;
        if block > first {
            self.covered.covered = Sequence(block * width);
        }
        Ok(())
    }
}

/// Returns an entry's size for a page's byte limit: its variable parts, in bytes.
pub(crate) fn weight(entry: &Entry) -> usize {
    let metadata: usize = entry.metadata.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
    entry.payload.len() + entry.key.as_str().len() + metadata + 128 + entry.context_id.as_str().len()
}

/// Reads one entry of the history that a head describes.
pub(crate) fn one(
    db: &Db,
    context: &ContextId,
    place: RowLocation,
    head: &Head,
    sequence: Sequence,
) -> Result<Entry, StoreError> {
    let row = db
        .get(families::ENTRIES, &place.entry(sequence), |value| {
            record::decode_entry(context, sequence, value)
        })
        .map_err(|error| read_error(context, sequence, &error))?;
    let entry = row
        .ok_or_else(|| damaged(context, sequence, "the entry is missing"))?
        .map_err(|error| damaged(context, sequence, &error.to_string()))?;
    if !entry.is_intact(head.suite) {
        return Err(damaged(context, sequence, "its content does not match its content hash"));
    }
    Ok(entry)
}
