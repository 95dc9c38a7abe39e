//! One context: how much of two histories is the same.
//!
//! Merkle roots make this a search. If the roots at a size are equal, so are all entries up to it, and the
//! roots at all smaller sizes; if they differ, they differ at all larger sizes. So there is one size up to which
//! histories are the same.
//!
//! | state | asks for the roots at | equal | different |
//! | --- | --- | --- | --- |
//! | `Shorter` | the smaller of both sizes | the rest is a plain suffix: done | `Between` 0 and that size |
//! | `Between` | both ends, and 15 sizes that cut what lies between in 16 | moves the lower end up | moves the upper end down |
//! | `Ended` | nothing | | |
//!
//! If a side cannot read its roots, the search ends with that.
//!
//! Ends are asked for again with every cut, so that the last answer shows by itself where histories part, and
//! a history that was replaced meanwhile is noticed. 10 million entries take at most 7 round trips, the
//! largest context there can be at most [`super::MAX_COMPARE_ROUNDS`].

use std::cmp::Ordering;

use crate::{Hash, Size, digest::TreeHead};

use super::{CompareError, Roots, Side, limits::MAX_PIVOTS};

/// How two nodes' histories of a context relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Both have the same history.
    InSync,
    /// They have ours and more: everything after `from` is missing here.
    Behind {
        /// The size of our history.
        from: Size,
    },
    /// We have theirs and more: everything after `from` is missing there.
    Ahead {
        /// The size of their history.
        from: Size,
    },
    /// The histories part: both go on after `common`, with different entries.
    Diverged {
        /// The length of what is the same.
        common: Size,
    },
    /// The roots contradict each other, which roots of two histories can't: one side's stored tree is damaged, or
    /// lies. Scrub the context on both.
    Damaged {
        /// A size at which the roots differ.
        different: Size,
        /// A larger size at which they are equal.
        equal: Size,
    },
    /// A side replaced or shortened its history during the comparison. Compare it again.
    Changed,
    /// A side cannot read what it has (theirs, if both cannot): nothing is known of how the histories relate.
    Unreadable(Side),
}

/// The search for the length of the common prefix of two histories. See the table above.
#[derive(Debug, Clone)]
pub struct HistorySearch {
    local: Size,
    remote: Size,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Shorter,
    /// The first `common` entries are the same, the first `different` are not; they are more than 1 apart.
    Between {
        common: u64,
        different: u64,
    },
    Ended(Verdict),
}

impl HistorySearch {
    /// Begins with how far the histories go. Often that is enough to know.
    pub fn new(ours: TreeHead, theirs: TreeHead) -> Self {
        let shorter = ours.size.min(theirs.size);
        let mut compare = Self { local: ours.size, remote: theirs.size, state: State::Shorter };
        if ours.size == theirs.size {
            compare.shorter_is(ours.root == theirs.root);
        } else if shorter == Size(0) {
            compare.shorter_is(true);
        }
        compare
    }

    /// Returns the verdict, once there is one.
    pub const fn verdict(&self) -> Option<Verdict> {
        match self.state {
            State::Ended(verdict) => Some(verdict),
            _ => None,
        }
    }

    /// Returns the sizes at which to look up the roots on both sides: at most [`super::MAX_SIZES`], rising. None if there is a
    /// verdict.
    pub fn sizes(&self) -> Vec<Size> {
        match self.state {
            State::Ended(_) => Vec::new(),
            State::Shorter => vec![self.local.min(self.remote)],
            State::Between { common, different } => {
                let lower_end = Some(common).filter(|common| *common > 0);
                let sizes = lower_end.into_iter().chain(pivots(common, different)).chain([different]);
                sizes.map(Size).collect()
            }
        }
    }

    /// Takes what is known of the roots at [`HistorySearch::sizes`] on both sides. A list that ends early is of a history that is
    /// shorter than it was; one that is too long is an error, and changes nothing.
    ///
    /// # Errors
    ///
    /// [`CompareError::TooManyRoots`] if a side gave more roots than sizes were asked for.
    pub fn on_roots(&mut self, ours: &Roots, theirs: &Roots) -> Result<(), CompareError> {
        let sizes = self.sizes();
        let (ours, theirs) = match (ours, theirs) {
            (_, Roots::Unreadable) => {
                self.unreadable(Side::Remote);
                return Ok(());
            }
            (Roots::Unreadable, _) => {
                self.unreadable(Side::Local);
                return Ok(());
            }
            (ours, theirs) => (at(ours), at(theirs)),
        };
        for (side, roots) in [(Side::Local, ours), (Side::Remote, theirs)] {
            if roots.len() > sizes.len() {
                return Err(CompareError::TooManyRoots { side, asked: sizes.len(), actual: roots.len() });
            }
        }
        let equal: Vec<bool> = ours.iter().zip(theirs).map(|(ours, theirs)| ours == theirs).collect();
        if equal.len() < sizes.len() {
            self.state = State::Ended(Verdict::Changed);
            return Ok(());
        }
        match self.state {
            State::Ended(_) => {}
            State::Shorter => self.shorter_is(equal == [true]),
            State::Between { common, .. } => self.narrow(common, &sizes, &equal),
        }
        Ok(())
    }

    fn unreadable(&mut self, side: Side) {
        self.state = State::Ended(Verdict::Unreadable(side));
    }

    /// The roots at the smaller of both sizes are equal or not.
    fn shorter_is(&mut self, equal: bool) {
        if !equal {
            return self.between(0, self.local.min(self.remote).0);
        }
        self.state = State::Ended(match self.local.cmp(&self.remote) {
            Ordering::Equal => Verdict::InSync,
            Ordering::Less => Verdict::Behind { from: self.local },
            Ordering::Greater => Verdict::Ahead { from: self.remote },
        });
    }

    fn between(&mut self, common: u64, different: u64) {
        self.state = if different - common > 1 {
            State::Between { common, different }
        } else {
            State::Ended(Verdict::Diverged { common: Size(common) })
        };
    }

    /// `equal` says for each of the sizes asked for whether the roots there are equal.
    fn narrow(&mut self, common: u64, sizes: &[Size], equal: &[bool]) {
        let last_equal = equal.iter().rposition(|equal| *equal);
        let Some(first_different) = equal.iter().position(|equal| !*equal) else {
            // The upper end was different.
            self.state = State::Ended(Verdict::Changed);
            return;
        };
        match last_equal {
            Some(last_equal) if last_equal > first_different => {
                self.state = State::Ended(Verdict::Damaged {
                    different: sizes[first_different],
                    equal: sizes[last_equal],
                });
            }
            Some(last_equal) => self.between(sizes[last_equal].0, sizes[first_different].0),
            // The roots at `common` were equal, and no root is equal now: a history was replaced meanwhile.
            None if common > 0 => self.state = State::Ended(Verdict::Changed),
            None => self.between(0, sizes[first_different].0),
        }
    }
}

/// Returns the roots; none if the context is no more.
fn at(roots: &Roots) -> &[Hash] {
    match roots {
        Roots::At(roots) => roots,
        Roots::Absent | Roots::Unreadable => &[],
    }
}

/// Up to [`MAX_PIVOTS`] sizes between two that are more than 1 apart: all of them if they are so few, else
/// evenly spread.
fn pivots(common: u64, different: u64) -> impl Iterator<Item = u64> {
    let distance = u128::from(different - common);
    let parts = distance.min(MAX_PIVOTS as u128 + 1);
    // At most `distance`, so it fits.
    (1..parts).map(move |part| common + (distance * part / parts) as u64)
}
