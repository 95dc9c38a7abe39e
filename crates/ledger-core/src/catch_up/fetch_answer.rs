//! The source's side of a fetch: what it reads next, and what it says of it.
//!
//! | what the source has of the context | it sends |
//! | --- | --- |
//! | the entries up to the size asked for | ranges up to there, each but the last with the tree head up to which they will go |
//! | a part of them in a load that may be uncommitted | the load whole, even beyond that size, and in ranges of its own |
//! | less, or nothing | [`Missing::Shorter`] |
//! | something that it cannot read | [`Missing::Unreadable`] |
//! | it failed to read | [`Missing::Failed`] |
//!
//! Each context ends by itself; the others go on. After the last one the source says that it is the end.

use std::vec;

use crate::{Size, compare::ContextStatus, loads::LoadSpan};

use super::WantedRange;

/// Why a source sends nothing more of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// The source could read its history, which ends before the size asked for, or is empty.
    Shorter,
    /// The source has something, and cannot read what: its disk is damaged.
    Unreadable,
    /// The source failed to read it, for now.
    Failed,
}

/// The range that the source reads next of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeRead {
    /// Only entries after this size.
    pub after: Size,
    /// Only entries up to this size.
    pub to: Size,
    /// If these entries are of a load: the size with the whole load.
    pub together_to: Option<Size>,
}

/// Where a range ends that the source read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeEnd {
    /// The size with the range.
    pub end: Size,
    /// If the range is of a load: the size with the whole load.
    pub together_to: Option<Size>,
}

impl RangeRead {
    /// Decides what to read of a context that is asked for after one size, up to another.
    ///
    /// # Errors
    /// [`Missing`] if there is nothing to read: `status` says that the context is absent, shorter or unreadable.
    pub fn of(
        status: &ContextStatus,
        load: Option<LoadSpan>,
        after: Size,
        to: Size,
    ) -> Result<Self, Missing> {
        let size = status.size().ok_or(Missing::Unreadable)?;
        if after >= to || to > size {
            return Err(Missing::Shorter);
        }
        let (to, together_to) = LoadSpan::range(load, after, to);
        Ok(Self { after, to, together_to })
    }
}

/// The source's answer to one fetch: which contexts it still has to send, and up to where.
#[derive(Debug, Clone)]
pub struct FetchAnswer {
    current: Option<WantedRange>,
    rest: vec::IntoIter<WantedRange>,
}

impl FetchAnswer {
    /// Begins to answer.
    pub fn new(wanted: Vec<WantedRange>) -> Self {
        let mut rest = wanted.into_iter();
        Self { current: rest.next(), rest }
    }

    /// Returns what to read next; `None`: say that it is the end.
    pub fn wanted(&self) -> Option<&WantedRange> {
        self.current.as_ref()
    }

    /// The source read and sent a range. Returns whether the context ends with it.
    pub fn on_range(&mut self, range: RangeEnd) -> bool {
        let Some(current) = &mut self.current else { return true };
        // The source sends a load up to its end, even beyond the size asked for.
        current.to = range.together_to.map_or(current.to, |together| current.to.max(together));
        // The source would read a range that makes no progress forever.
        let is_last = range.end >= current.to || range.end <= current.after;
        current.after = range.end;
        if is_last {
            self.current = self.rest.next();
        }
        is_last
    }

    /// The source said that it sends nothing more of the context.
    pub fn on_missing(&mut self) {
        self.current = self.rest.next();
    }
}
