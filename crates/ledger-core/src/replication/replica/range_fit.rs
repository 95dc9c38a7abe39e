//! The replica's side of replication: whether a range of entries continues the history that the replica holds.

use crate::Size;

/// How a range of entries (a part of a commit, or what catch-up fetched) fits the history that a replica holds of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeFit {
    /// The range continues the history.
    Continues {
        /// How many entries at the start of the range the replica holds already: skip them.
        skip: u64,
    },
    /// The history reaches to the end of the range or beyond. Whether it holds the same entries the root at that size tells.
    AlreadyHere,
    /// The history ends before the range begins.
    Gap {
        /// How many entries are missing between them.
        missing: u64,
    },
}

/// Tells how `count` entries that come after size `after` fit a history of size `here`.
///
/// It compares sizes only. Whether both are the same history the caller has to tell by their roots.
pub(super) fn fit(here: Size, after: Size, count: u64) -> RangeFit {
    if after.0 > here.0 {
        return RangeFit::Gap { missing: after.0 - here.0 };
    }
    match here.0 - after.0 {
        skip if skip < count => RangeFit::Continues { skip },
        _ => RangeFit::AlreadyHere,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_fit_as_they_overlap() {
        assert_eq!(fit(Size(5), Size(5), 3), RangeFit::Continues { skip: 0 });
        assert_eq!(fit(Size(6), Size(5), 3), RangeFit::Continues { skip: 1 });
        assert_eq!(fit(Size(8), Size(5), 3), RangeFit::AlreadyHere);
        assert_eq!(fit(Size(2), Size(5), 3), RangeFit::Gap { missing: 3 });
    }
}
