//! Lists forks and their entries.

use ledger_core::{ContextId, Entry, Sequence, slot::Slot};

use super::{
    evidence::{ForkInfo, decode},
    rows::{BEYOND, ForkRows},
};
use crate::{
    Filter, Page, StoreError,
    engine::db::Db,
    engine::errors::io_error,
    engine::families::{self, RowLocation},
    engine::record,
    limited,
};

/// Where a listing of forks continues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkCursor([u8; 18]);

/// A page of a listing of forks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForkList {
    /// The forks.
    pub forks: Vec<ForkInfo>,
    /// Where the listing continues; `None` at the end.
    pub next: Option<ForkCursor>,
}

/// Lists forks in an arbitrary but stable order: of one context or of all, after a cursor, at most `limit`.
pub(crate) fn list(
    db: &Db,
    context: Option<&ContextId>,
    after: Option<ForkCursor>,
    limit: usize,
) -> Result<ForkList, StoreError> {
    let mut list = ForkList::default();
    let mut last = None;
    walk(db, context, after, |fork, info| {
        if list.forks.len() == limit.max(1) {
            list.next = last;
            return false;
        }
        list.forks.push(info);
        last = Some(ForkCursor(fork.first()));
        true
    })?;
    Ok(list)
}

/// Returns a page of a fork's entries that a filter selects, in order; its `latest` is the size that the history had.
pub(crate) fn entries(db: &Db, context: &ContextId, fork: u64, filter: &Filter) -> Result<Page, StoreError> {
    let mut found = None;
    walk(db, Some(context), None, |at, info| {
        if at.number == fork {
            found = Some((at, info));
        }
        found.is_none()
    })?;
    let no_such_fork = || StoreError::NoSuchFork { context: context.clone(), fork };
    let (at, info) = found.ok_or_else(no_such_fork)?;
    let mut reading = Reading {
        covered: filter.after.max(info.common.newest()),
        info: &info,
        filter,
        entries: Vec::new(),
        bytes: 0,
    };
    let mut has_room = Ok(filter.limit > 0);
    if filter.limit > 0 && reading.is_short() {
        let (first, (_, beyond)) = (at.row(reading.next()), at.range());
        db.scan(families::FORKS, &first, &beyond, false, |row, value| {
            has_room = reading.take(families::fork_of(row), value);
            matches!(has_room, Ok(true))
        })
        .map_err(|error| io_error(&error))?;
    }
    let more = reading.is_short();
    if has_room? && more {
        return Err(reading.damaged("the entry is missing"));
    }
    Ok(Page {
        latest: info.ours.size,
        covered: reading.covered,
        more,
        larger: None,
        entries: reading.entries,
    })
}

/// A page of a fork's entries that is being read.
struct Reading<'a> {
    info: &'a ForkInfo,
    filter: &'a Filter,
    entries: Vec<Entry>,
    bytes: usize,
    covered: Sequence,
}

impl Reading<'_> {
    fn next(&self) -> Sequence {
        Sequence(self.covered.0 + 1)
    }

    /// Returns whether there are entries after what is covered.
    fn is_short(&self) -> bool {
        self.covered.0 < self.info.ours.size.0
    }

    /// Takes one row. Returns false when the page is full.
    fn take(&mut self, key: Option<(RowLocation, u64, Sequence)>, value: &[u8]) -> Result<bool, StoreError> {
        let next = self.next();
        if key.is_none_or(|(.., sequence)| sequence != next) {
            return Err(self.damaged("the entry is missing"));
        }
        let view = record::view_entry(next, value).map_err(|error| self.damaged(&error.to_string()))?;
        if self.filter.key.as_ref().is_none_or(|key| key.as_str() == view.key) {
            let bytes = self.bytes.saturating_add(view.weight(self.info.context.as_str().len()));
            if bytes > self.filter.max_bytes && !self.entries.is_empty() {
                return Ok(false);
            }
            let entry =
                view.to_entry(&self.info.context).map_err(|error| self.damaged(&error.to_string()))?;
            self.entries.push(entry);
            self.bytes = bytes;
        }
        self.covered = next;
        Ok(self.entries.len() < self.filter.limit)
    }

    /// Returns an error about the fork's next entry. It must not name the context as damaged, because that would
    /// quarantine it.
    fn damaged(&self, reason: &str) -> StoreError {
        let (sequence, ForkInfo { context, fork, .. }) = (self.next(), self.info);
        StoreError::Io(format!("entry {sequence} of fork {fork} of context {context} is damaged: {reason}"))
    }
}

/// Calls `visit` with the forks of one context, or of all, until it returns false. Reads one row of each fork.
fn walk(
    db: &Db,
    context: Option<&ContextId>,
    after: Option<ForkCursor>,
    mut visit: impl FnMut(ForkRows, ForkInfo) -> bool,
) -> Result<(), StoreError> {
    let slot = context.map(|context| Slot::of(context).number());
    let mut first = slot.map_or(Vec::new(), |slot| slot.to_be_bytes().to_vec());
    let beyond = slot.map_or(vec![0xff], |slot| (slot + 1).to_be_bytes().to_vec());
    if let Some(ForkCursor(after)) = after {
        first = first.max([&after[..], &BEYOND].concat());
    }
    loop {
        let mut row = None;
        db.scan(families::FORKS, &first, &beyond, true, |key, value| {
            row = Some((key.to_vec(), decode(key, value)));
            false
        })
        .map_err(|error| io_error(&error))?;
        let Some((key, decoded)) = row else { return Ok(()) };
        first = match families::fork_of(&key) {
            // The rows of another fork begin there.
            Some((place, number, _)) => ForkRows { place, number }.range().1.to_vec(),
            None => [&key[..], &[0]].concat(),
        };
        match decoded {
            Ok(Some((fork, info))) => {
                if context.is_none_or(|context| info.context == *context) && !visit(fork, info) {
                    return Ok(());
                }
            }
            // The fork is still in progress.
            Ok(None) => {}
            Err(error) => limited!(error, ?key, %error, "the evidence of a fork cannot be read"),
        }
    }
}

impl ForkCursor {
    /// Returns the cursor as bytes.
    pub const fn to_bytes(self) -> [u8; 18] {
        self.0
    }

    /// Restores a cursor from bytes; any 18 bytes are valid.
    pub const fn from_bytes(bytes: [u8; 18]) -> Self {
        Self(bytes)
    }
}
