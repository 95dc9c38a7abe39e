//! The part of a history that a load brought, until the load is committed.

use crate::Size;

/// The entries that a load brought to a context: those after one size, up to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadSpan {
    /// The size before the load.
    pub after: Size,
    /// The size with the load.
    pub to: Size,
}

/// Whether a load is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadSpanState {
    /// It may be uncommitted: a node that fetches it installs all of it or nothing.
    Uncommitted,
    /// It is committed: enough nodes have all of it.
    Committed,
    /// The history that it was part of was forked off.
    ForkedOff,
}

impl LoadSpan {
    /// Merges an earlier load that may be uncommitted, too: both belong together.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self { after: self.after.min(other.after), to: self.to.max(other.to) }
    }

    /// Returns whether the load is committed, from the size of this node's history and the size that readers may see (`None`:
    /// nothing).
    ///
    /// Only what readers may see is known to be committed.
    pub fn state(self, here: Size, readable: Option<Size>) -> LoadSpanState {
        if self.to > here {
            LoadSpanState::ForkedOff
        } else if readable.is_some_and(|readable| readable >= self.to) {
            LoadSpanState::Committed
        } else {
            LoadSpanState::Uncommitted
        }
    }

    /// Returns up to which size to send a node that asks for the entries after one size up to another, and the size up to
    /// which it must install them together, if it must.
    ///
    /// A range ends before the load begins, or contains the load up to its end, even beyond what was asked for.
    pub fn range(uncommitted: Option<Self>, after: Size, to: Size) -> (Size, Option<Size>) {
        match uncommitted {
            Some(span) if after < span.after => (to.min(span.after), None),
            Some(span) if after < span.to && span.after < to => (to.max(span.to), Some(span.to)),
            _ => (to, None),
        }
    }
}
