//! One fetch, as its ranges arrive: what of it is still to come, and what each range is used for.

use std::collections::HashMap;

use crate::{ContextId, Size, digest::TreeHead, ownership::Claim, slot::Slot};

use super::{Failure, WantedRange};

/// A range of entries that the source sent. The lane checks the entries when it writes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArrivedRange<'a> {
    /// The context.
    pub context: &'a ContextId,
    /// The size before it.
    pub after: Size,
    /// The tree head with it.
    pub end: TreeHead,
    /// If it is of a load that may be uncommitted: the size with the load.
    pub together_to: Option<Size>,
    /// If more ranges of the context follow: the tree head with all of them.
    pub whole: Option<TreeHead>,
}

/// What the shell does with a range that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeUse {
    /// Drop it: the run is done with the slot.
    Skip,
    /// Write it. If it does not become durable, report [`super::Event::Written`].
    Write {
        /// The slot.
        slot: Slot,
        /// The claim in which the shell writes it.
        claim: Claim,
        /// Whether all of it is a load, of which the shell puts in place all or nothing.
        is_load: bool,
    },
    /// Stage it, and put the load in place with its last range. Report [`super::Event::Loaded`].
    Stage {
        /// The slot.
        slot: Slot,
        /// The claim in which the shell writes it.
        claim: Claim,
        /// The size with the load.
        to: Size,
        /// Whether it is the first range of the load: finish the context's writes before it.
        is_first: bool,
        /// Whether it is the last range: put the load in place.
        is_last: bool,
    },
}

/// How a range fits what this node asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    Write {
        is_load: bool,
    },
    Stage {
        to: Size,
        is_first: bool,
        is_last: bool,
    },
    /// This node gave up the load that the range is of: the run compares the context again.
    GivenUp,
}

/// What has arrived of a fetch under way.
#[derive(Debug, Default)]
pub(super) struct FetchProgress {
    wanted: HashMap<ContextId, Wanted>,
    load: Option<Load>,
}

#[derive(Debug)]
struct Wanted {
    /// The size that the ranges so far reach.
    at: Size,
    to: Size,
    /// The tree head that the source announced for the end.
    whole: Option<TreeHead>,
}

/// A load that comes in several ranges.
#[derive(Debug)]
struct Load {
    context: ContextId,
    to: Size,
    is_given_up: bool,
}

impl FetchProgress {
    pub(super) fn begin(wanted: &[WantedRange]) -> Self {
        let of = |wanted: &WantedRange| {
            let of = Wanted { at: wanted.after, to: wanted.to, whole: None };
            (wanted.context.clone(), of)
        };
        Self { wanted: wanted.iter().map(of).collect(), load: None }
    }

    /// Takes the next range.
    ///
    /// # Errors
    /// [`Failure::Invalid`] if this node did not ask for it, it does not follow the one before it, or the source announced another.
    pub(super) fn take(&mut self, range: &ArrivedRange<'_>) -> Result<Fit, Failure> {
        let context = range.context;
        let invalid = |reason| Failure::Invalid(format!("context {context} {reason}"));
        let Some(wanted) = self.wanted.get_mut(context) else {
            return Err(invalid("was not asked for"));
        };
        if range.after != wanted.at || range.end.size <= range.after {
            return Err(invalid("comes out of order"));
        }
        if let Some(whole) = range.whole {
            if wanted.whole.is_some_and(|announced| announced.size == whole.size && announced != whole) {
                return Err(invalid("is another history than was announced"));
            }
            wanted.whole = Some(whole);
        }
        if wanted.whole.is_some_and(|whole| whole.size == range.end.size && whole != range.end) {
            return Err(invalid("is not what was announced"));
        }
        wanted.at = range.end.size;
        // A load that is cut short by another context never ends.
        self.load.take_if(|load| load.context != *context);
        let fit = self.fit(range);
        if let Some(wanted) = self.wanted.get(context)
            && wanted.at >= wanted.to
            && self.load.is_none()
        {
            self.wanted.remove(context);
        }
        Ok(fit)
    }

    fn fit(&mut self, range: &ArrivedRange<'_>) -> Fit {
        let end = range.end.size;
        let is_first = self.load.is_none();
        if is_first {
            let Some(to) = range.together_to.filter(|to| *to > end) else {
                return Fit::Write { is_load: range.together_to.is_some() };
            };
            self.load = Some(Load { context: range.context.clone(), to, is_given_up: false });
        }
        let Some(load) = &self.load else { return Fit::GivenUp };
        let (to, is_last, is_given_up) = (load.to, end >= load.to, load.is_given_up);
        if is_last {
            self.load = None;
        }
        if is_given_up { Fit::GivenUp } else { Fit::Stage { to, is_first, is_last } }
    }

    /// Ignores the rest of a load, because the context moved on here.
    pub(super) fn give_up_load(&mut self, context: &ContextId) {
        if let Some(load) = self.load.as_mut().filter(|load| load.context == *context) {
            load.is_given_up = true;
        }
    }

    /// Expects nothing more of a context. Returns whether something was expected.
    pub(super) fn forget(&mut self, context: &ContextId) -> bool {
        self.wanted.remove(context).is_some()
    }

    /// Ends the fetch. Returns the contexts that did not come whole.
    pub(super) fn end(&mut self) -> Vec<ContextId> {
        self.load = None;
        let mut rest: Vec<_> = std::mem::take(&mut self.wanted).into_keys().collect();
        rest.sort();
        rest
    }
}
