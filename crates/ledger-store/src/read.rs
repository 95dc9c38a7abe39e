//! Reading entries: pages in sequence order, each record checked against its checksum.

use ledger_core::{ContextId, Entry, Head, Key, Sequence, tree::tile::TILE_WIDTH};

use crate::{
    Filter, Page, StoreError,
    db::{Db, read_error},
    families::{self, KEYS_LEVEL, Place},
    keys::{KeySet, key_hash},
    record,
    state::read_head,
};

/// Damage, as an error.
pub(crate) fn damaged(context: &ContextId, sequence: Sequence, reason: &str) -> StoreError {
    StoreError::Damaged { context: context.clone(), sequence, reason: reason.to_owned() }
}

/// Reads a page of a context.
pub(crate) fn page(db: &Db, context: &ContextId, filter: &Filter) -> Result<Page, StoreError> {
    loop {
        let Some((place, head)) = read_head(db, context)? else {
            return Ok(Page {
                entries: Vec::new(),
                latest: ledger_core::Size(0),
                covered: filter.after,
                more: false,
            });
        };
        match page_at(db, context, place, &head, filter) {
            // A load may have put another copy of the history in place since the head was read.
            Err(StoreError::Damaged { .. }) if moved(db, context, place)? => {}
            page => return page,
        }
    }
}

/// Whether the context's rows are no longer where they were.
pub(crate) fn moved(db: &Db, context: &ContextId, place: Place) -> Result<bool, StoreError> {
    Ok(read_head(db, context)?.is_none_or(|(now, _)| now != place))
}

/// Reads a page of the history that a head describes.
pub(crate) fn page_at(
    db: &Db,
    context: &ContextId,
    place: Place,
    head: &Head,
    filter: &Filter,
) -> Result<Page, StoreError> {
    let mut cursor = Cursor {
        context,
        head,
        filter,
        key: filter.key.as_ref().map(Key::as_str),
        bytes: 0,
        page: Page { entries: Vec::new(), latest: head.size(), covered: filter.after, more: false },
    };
    match cursor.key {
        None => cursor.read(db, place, head.frontier.size())?,
        Some(key) => {
            let key = key_hash(key);
            while !cursor.page.more && cursor.page.covered.0 < head.frontier.size() {
                cursor.skip_blocks(db, place, key)?;
                cursor.read(db, place, cursor.end_of_block())?;
            }
        }
    }
    Ok(cursor.page)
}

/// A page being read.
struct Cursor<'a> {
    context: &'a ContextId,
    head: &'a Head,
    filter: &'a Filter,
    key: Option<&'a str>,
    bytes: usize,
    page: Page,
}

impl Cursor<'_> {
    /// Reads entries after what is covered up to `last`, until the page is full.
    fn read(&mut self, db: &Db, place: Place, last: u64) -> Result<(), StoreError> {
        let next = |page: &Page| Sequence(page.covered.0 + 1);
        if self.page.covered.0 >= last {
            return Ok(());
        }
        if self.filter.limit == 0 {
            self.page.more = true;
            return Ok(());
        }
        let mut failure = None;
        let first = place.entry(next(&self.page));
        let beyond = place.entry(Sequence(last + 1));
        let scanned = db.scan(families::ENTRIES, &first, &beyond, true, |row, value| {
            let sequence = next(&self.page);
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
        scanned.map_err(|error| read_error(self.context, next(&self.page), &error))?;
        match failure {
            Some(error) => Err(error),
            None if !self.page.more && self.page.covered.0 < last => {
                Err(damaged(self.context, next(&self.page), "the entry is missing"))
            }
            None => Ok(()),
        }
    }

    /// Takes one row; false when the page is full.
    fn take(&mut self, sequence: Sequence, value: &[u8]) -> Result<bool, StoreError> {
        let undecodable = |error: record::RecordError| damaged(self.context, sequence, &error.to_string());
        if let Some(key) = self.key
            && record::peek_entry(value).map_err(undecodable)?.0 != key
        {
            self.page.covered = sequence;
            return Ok(true);
        }
        let entry = record::decode_entry(self.context, sequence, value).map_err(undecodable)?;
        let bytes = self.bytes + weight(&entry);
        if bytes > self.filter.max_bytes && !self.page.entries.is_empty() {
            self.page.more = true;
            return Ok(false);
        }
        self.bytes = bytes;
        self.page.covered = sequence;
        self.page.entries.push(entry);
        self.page.more = (self.page.entries.len() >= self.filter.limit || bytes >= self.filter.max_bytes)
            && sequence.0 < self.head.frontier.size();
        Ok(self.page.entries.len() < self.filter.limit && bytes < self.filter.max_bytes)
    }

    /// The last sequence of the block that the next entry is in, or of the context.
    fn end_of_block(&self) -> u64 {
        let block = self.page.covered.0 / TILE_WIDTH as u64;
        self.head.frontier.size().min((block + 1) * TILE_WIDTH as u64)
    }

    /// Moves past full blocks that do not have the key.
    fn skip_blocks(&mut self, db: &Db, place: Place, key: u32) -> Result<(), StoreError> {
        let width = TILE_WIDTH as u64;
        let (first, full) = (self.page.covered.0 / width, self.head.frontier.size() / width);
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
            self.page.covered = Sequence(block * width);
        }
        Ok(())
    }
}

/// What an entry counts towards a page's bytes: its variable parts.
pub(crate) fn weight(entry: &Entry) -> usize {
    let metadata: usize = entry.metadata.iter().map(|(key, value)| key.len() + value.len() + 8).sum();
    entry.payload.len() + entry.key.as_str().len() + metadata + 128 + entry.context_id.as_str().len()
}

/// Reads one entry of the history that a head describes.
pub(crate) fn one(
    db: &Db,
    context: &ContextId,
    place: Place,
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
