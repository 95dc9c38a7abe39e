//! What a run does about a context that differs.
//!
//! | it is | the owner's history counts | the source's counts | the longer one counts |
//! | --- | --- | --- | --- |
//! | behind | fetch | fetch | fetch |
//! | ahead, and the source proves that its history ends before | fork off | fork off | keep |
//! | ahead, without that proof | compare again | compare again | keep |
//! | diverged | fork off, fetch | fork off, fetch | the same if the source's is longer, else keep |
//! | unreadable here | restore from the owner | the slot is unreadable | the slot is unreadable |
//! | unreadable there | the slot is unreadable | the slot is unreadable | the slot is unreadable |

use crate::{
    ContextId, Size,
    compare::{ContextStatus, Finding, Roots, RootsRequest, Side, Verdict},
    digest::TreeHead,
    ownership::Claim,
};

use super::{ForkOrder, Mode, WantedRange};

/// What a run does about a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Do nothing: this node's history counts.
    Keep,
    /// Compare it again in the next round.
    CompareAgain,
    /// Fetch what is missing.
    Fetch(WantedRange),
    /// Move a suffix to the forks, then fetch what takes its place.
    Fork(ForkOrder, Option<WantedRange>),
    /// Restore it from the source.
    Restore(TreeHead),
    /// Nothing: this node or the source cannot read the context, and the run cannot help it.
    Unreadable,
    /// Scrub it: the stored trees contradict each other.
    Scrub,
}

/// Decides what a run does about a finding. `is_proven`: the source proved, when the run asked it again, that its history ends
/// where the finding says.
pub(super) fn decide(mode: Mode, claim: &Claim, finding: Finding, is_proven: bool) -> Action {
    let Finding { context, local, remote, verdict } = finding;
    let to = remote.size().unwrap_or_default();
    let fetch = |context: ContextId, after| WantedRange { context, after, to };
    match verdict {
        Verdict::InSync => Action::Keep,
        Verdict::Behind { from } => Action::Fetch(fetch(context, from)),
        Verdict::Ahead { .. } if mode == Mode::KeepLongest => Action::Keep,
        Verdict::Ahead { from } if is_proven => match fork(claim, &context, &local, remote, from) {
            Some(order) => Action::Fork(order, None),
            None => Action::CompareAgain,
        },
        Verdict::Diverged { .. } if mode == Mode::KeepLongest && to <= local.size().unwrap_or_default() => {
            Action::Keep
        }
        Verdict::Diverged { common } => match fork(claim, &context, &local, remote, common) {
            Some(order) => Action::Fork(order, Some(fetch(context, common))),
            None => Action::CompareAgain,
        },
        Verdict::Ahead { .. } | Verdict::Changed => Action::CompareAgain,
        Verdict::Unreadable(Side::Local) if mode == Mode::FollowOwner => match remote {
            ContextStatus::Present(theirs) => Action::Restore(theirs.tree_head()),
            ContextStatus::Absent | ContextStatus::Unreadable => Action::Unreadable,
        },
        Verdict::Unreadable(_) => Action::Unreadable,
        Verdict::Damaged { .. } => Action::Scrub,
    }
}

/// Returns what is to be forked off; `None` if one of the sides could not read what it holds, which is no evidence.
fn fork(
    claim: &Claim,
    context: &ContextId,
    local: &ContextStatus,
    remote: ContextStatus,
    common: Size,
) -> Option<ForkOrder> {
    let expected = local.summary()?.tree_head();
    let theirs = match remote {
        ContextStatus::Absent => None,
        ContextStatus::Present(theirs) => Some(theirs),
        ContextStatus::Unreadable => return None,
    };
    (common < expected.size).then(|| ForkOrder {
        context: context.clone(),
        claim: claim.clone(),
        common,
        expected,
        theirs,
    })
}

/// Returns what the run asks the source again before it acts on a finding. This side's size is known and the source's can only
/// grow, while in a busy slot a context may only have seemed to be ahead. `None` if the finding needs no evidence.
pub(super) fn evidence_request(mode: Mode, finding: &Finding) -> Option<RootsRequest> {
    let (Verdict::Ahead { .. }, false) = (finding.verdict, mode == Mode::KeepLongest) else { return None };
    let ours = finding.local.summary()?.size;
    let theirs = finding.remote.summary().map(|theirs| theirs.size).filter(|size| size.0 > 0);
    let sizes = theirs.into_iter().chain([ours]).collect();
    Some(RootsRequest { context: finding.context.clone(), sizes })
}

/// Returns whether the source's answer proves that its history ends before this node's: it could read it, and its root where it
/// ended is still the same.
pub(super) fn is_evidence(finding: &Finding, roots: &Roots) -> bool {
    match (&finding.remote, roots) {
        (ContextStatus::Absent, Roots::Absent) => true,
        (ContextStatus::Present(theirs), Roots::At(roots)) => roots.as_slice() == [theirs.root],
        _ => false,
    }
}
