//! The asking node's side: it walks from "do we differ?" to the contexts that differ.
//!
//! | what is left | next question |
//! | --- | --- |
//! | contexts of the last page without a verdict | their roots |
//! | the rest of a listing | its next page |
//! | slots that differ | the buckets of the next 64 |
//! | nothing | none: [`Effect::Done`] |

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
    vec,
};

use crate::{
    ContextId, Size,
    digest::{Bucket, ContextSummary, Digest, NodeDigest},
    limits::MAX_SEQUENCE,
    slot::Slot,
};

use super::{
    CompareError, CompareRequest, CompareResponse, ContextStatus, HistorySearch, ListedContext, Page, Roots,
    RootsRequest, Side, Verdict,
    limits::{MAX_BUCKET_SLOTS, MAX_COMPARED, MAX_PAGE, MAX_ROUNDS},
};

/// What the shell tells a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This node's own store answered [`Effect::AskLocal`].
    Local(CompareResponse),
    /// The peer answered [`Effect::AskRemote`].
    Remote(CompareResponse),
}

/// What the shell does for a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Put the question to the peer.
    AskRemote(CompareRequest),
    /// Put the question to this node's own store. Its answer may come before or after the peer's.
    AskLocal(CompareRequest),
    /// The peer, or this node, does not keep these slots (any more): the comparison says nothing of them.
    NotReplicated(BTreeSet<Slot>),
    /// A context differs.
    Found(Finding),
    /// The comparison is over.
    Done,
}

/// A context that differs, as it was when the comparison looked at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The context.
    pub context: ContextId,
    /// What this node listed.
    pub local: ContextStatus,
    /// What the peer listed.
    pub remote: ContextStatus,
    /// How the two histories relate. Never [`Verdict::InSync`]. If one side alone has the context it is ahead from size 0,
    /// provided that the other could read that it has none.
    pub verdict: Verdict,
}

/// The comparison of this node with one peer, once. Begin with [`DrillDown::start`], feed every answer to
/// [`DrillDown::step`], do what it says until [`Effect::Done`] or an error. To give up, drop it.
#[derive(Debug)]
pub struct DrillDown {
    /// The digests of our slots at the start.
    local: BTreeMap<Slot, Digest>,
    /// Slots that differ and were not looked into yet.
    slots: BTreeSet<Slot>,
    /// The rest of the listing under way.
    listing: Option<Listing>,
    /// Contexts of the last page that differ.
    comparing: Vec<Pair>,
    /// The question under way, and the answer that came first.
    request: Option<CompareRequest>,
    responses: (Option<CompareResponse>, Option<CompareResponse>),
    rounds: u32,
}

#[derive(Debug)]
struct Listing {
    buckets: BTreeMap<Slot, BTreeSet<Bucket>>,
    after: Option<ContextId>,
}

#[derive(Debug)]
struct Pair {
    local: ContextSummary,
    remote: ContextSummary,
    compare: HistorySearch,
}

/// A context's place in the order of a listing.
type ListingKey<'a> = (Slot, &'a ContextId);

fn listing_key(context: &ContextId) -> ListingKey<'_> {
    (Slot::of(context), context)
}

impl DrillDown {
    /// Begins a comparison, given the digests of the slots that this node and the peer both keep.
    pub fn start(local: BTreeMap<Slot, Digest>) -> (Self, Vec<Effect>) {
        let ask =
            CompareRequest::Node { slots: local.keys().copied().collect(), digest: NodeDigest::of(&local) };
        let mut drill = Self {
            local,
            slots: BTreeSet::new(),
            listing: None,
            comparing: Vec::new(),
            request: None,
            responses: (None, None),
            rounds: 0,
        };
        if drill.local.is_empty() {
            return (drill, vec![Effect::Done]);
        }
        // This node's side is known already: the question's digest is made of it.
        drill.responses.0 = Some(CompareResponse::InSync);
        drill.request = Some(ask.clone());
        drill.rounds = 1;
        (drill, vec![Effect::AskRemote(ask)])
    }

    /// Returns the number of questions so far: round trips to the peer.
    pub const fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Takes an answer, and says what to do next: nothing while the other side's answer is missing. After an
    /// error there is nothing more to do, and every further answer is an error as well.
    ///
    /// # Errors
    ///
    /// [`CompareError`] if the answer is not one to the question that was asked, exceeds its bounds, or is listed out of order;
    /// [`CompareError::TooManyRounds`] after [`MAX_ROUNDS`].
    pub fn step(&mut self, event: Event) -> Result<Vec<Effect>, CompareError> {
        let (side, answer) = match event {
            Event::Local(answer) => (Side::Local, answer),
            Event::Remote(answer) => (Side::Remote, answer),
        };
        let answers = match side {
            Side::Local => &mut self.responses.0,
            Side::Remote => &mut self.responses.1,
        };
        if self.request.is_none() || answers.is_some() {
            self.request = None;
            return Err(CompareError::UnexpectedResponse { side });
        }
        *answers = Some(answer);

        let mut effects = Vec::new();
        match std::mem::take(&mut self.responses) {
            (Some(ours), Some(theirs)) => {
                if let Some(asked) = self.request.take() {
                    self.on_responses(asked, ours, theirs, &mut effects)?;
                    self.next_requests(&mut effects)?;
                }
            }
            one_of_them => self.responses = one_of_them,
        }
        Ok(effects)
    }

    fn on_responses(
        &mut self,
        asked: CompareRequest,
        ours: CompareResponse,
        theirs: CompareResponse,
        effects: &mut Vec<Effect>,
    ) -> Result<(), CompareError> {
        let name = asked.name();
        let other = |side, answer: &CompareResponse| CompareError::WrongResponse {
            side,
            asked: name,
            answer: answer.name(),
        };
        match (asked, ours, theirs) {
            (CompareRequest::Node { .. }, _, CompareResponse::InSync) => Ok(()),
            (CompareRequest::Node { slots, .. }, _, CompareResponse::Slots(theirs)) => {
                self.take_slots(slots, &theirs, effects)
            }
            (
                CompareRequest::Buckets { slots },
                CompareResponse::Buckets(ours),
                CompareResponse::Buckets(theirs),
            ) => self.take_buckets(slots, &ours, &theirs, effects),
            (
                CompareRequest::Contexts { buckets, after },
                CompareResponse::Contexts(ours),
                CompareResponse::Contexts(theirs),
            ) => self.take_pages(Listing { buckets, after }, ours, theirs, effects),
            (CompareRequest::Roots(asked), CompareResponse::Roots(ours), CompareResponse::Roots(theirs)) => {
                self.take_roots(asked.len(), &ours, &theirs, effects)
            }
            // One answer is of another kind than the question: this node's own, or else the peer's.
            (asked, ours, theirs) => Err(match (&asked, &ours) {
                (CompareRequest::Node { .. }, _)
                | (CompareRequest::Buckets { .. }, CompareResponse::Buckets(_))
                | (CompareRequest::Contexts { .. }, CompareResponse::Contexts(_))
                | (CompareRequest::Roots(_), CompareResponse::Roots(_)) => other(Side::Remote, &theirs),
                _ => other(Side::Local, &ours),
            }),
        }
    }

    fn take_slots(
        &mut self,
        asked: BTreeSet<Slot>,
        theirs: &BTreeMap<Slot, Digest>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), CompareError> {
        only_asked(Side::Remote, &asked, theirs)?;
        let (kept, not_kept): (BTreeSet<_>, _) =
            asked.into_iter().partition(|slot| theirs.contains_key(slot));
        self.slots = kept.into_iter().filter(|slot| self.local.get(slot) != theirs.get(slot)).collect();
        if !not_kept.is_empty() {
            effects.push(Effect::NotReplicated(not_kept));
        }
        Ok(())
    }

    fn take_buckets(
        &mut self,
        asked: BTreeSet<Slot>,
        ours: &BTreeMap<Slot, BTreeMap<Bucket, Digest>>,
        theirs: &BTreeMap<Slot, BTreeMap<Bucket, Digest>>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), CompareError> {
        only_asked(Side::Local, &asked, ours)?;
        only_asked(Side::Remote, &asked, theirs)?;
        let is_kept = |slot: &Slot| ours.contains_key(slot) && theirs.contains_key(slot);
        // A slot that one side no longer keeps is not in sync: nothing is known of it.
        let not_kept: BTreeSet<_> = asked.into_iter().filter(|slot| !is_kept(slot)).collect();
        if !not_kept.is_empty() {
            effects.push(Effect::NotReplicated(not_kept));
        }
        let both = ours.iter().filter_map(|(slot, ours)| Some((*slot, ours, theirs.get(slot)?)));
        let buckets: BTreeMap<_, BTreeSet<_>> = both
            .map(|(slot, ours, theirs)| {
                let all = ours.keys().chain(theirs.keys()).copied();
                (slot, all.filter(|bucket| ours.get(bucket) != theirs.get(bucket)).collect())
            })
            .filter(|(_, buckets): &(_, BTreeSet<_>)| !buckets.is_empty())
            .collect();
        self.listing = (!buckets.is_empty()).then_some(Listing { buckets, after: None });
        Ok(())
    }

    fn take_pages(
        &mut self,
        listing: Listing,
        ours: Page,
        theirs: Page,
        effects: &mut Vec<Effect>,
    ) -> Result<(), CompareError> {
        let ours_to = listing.check(Side::Local, &ours)?;
        let theirs_to = listing.check(Side::Remote, &theirs)?;
        // Of what lies beyond the end of either page only one side is known: both list it again.
        let end =
            [ours_to, theirs_to].into_iter().flatten().min_by(|a, b| listing_key(a).cmp(&listing_key(b)));

        let up_to_end = |listed: &ListedContext| {
            end.as_ref().is_none_or(|end| listing_key(listed.context()) <= listing_key(end))
        };
        let ours = ours.contexts.into_iter().filter(&up_to_end);
        let theirs = theirs.contexts.into_iter().filter(&up_to_end);
        for (ours, theirs) in merge(ours, theirs) {
            match (ours, theirs) {
                (Some(ListedContext::Present(local)), Some(ListedContext::Present(remote))) => {
                    let compare = HistorySearch::new(local.tree_head(), remote.tree_head());
                    self.comparing.push(Pair { local, remote, compare });
                }
                (ours, theirs) => effects.extend(found_at_once(ours, theirs).map(Effect::Found)),
            }
        }
        self.report_verdicts(effects);
        self.listing = end.map(|end| Listing { after: Some(end), ..listing });
        Ok(())
    }

    fn take_roots(
        &mut self,
        asked: usize,
        ours: &[Roots],
        theirs: &[Roots],
        effects: &mut Vec<Effect>,
    ) -> Result<(), CompareError> {
        for (side, roots) in [(Side::Local, ours), (Side::Remote, theirs)] {
            if roots.len() != asked {
                return Err(CompareError::WrongNumberOfContexts { side, asked, actual: roots.len() });
            }
        }
        for ((pair, ours), theirs) in self.comparing.iter_mut().zip(ours).zip(theirs) {
            pair.compare.on_roots(ours, theirs)?;
        }
        self.report_verdicts(effects);
        Ok(())
    }

    /// Reports the contexts that have a verdict, and keeps the others.
    fn report_verdicts(&mut self, effects: &mut Vec<Effect>) {
        let settled = self.comparing.extract_if(.., |pair| pair.compare.verdict().is_some());
        effects.extend(settled.filter_map(|Pair { local, remote, compare }| {
            let verdict = compare.verdict().filter(|verdict| *verdict != Verdict::InSync)?;
            let context = local.context.clone();
            let (local, remote) = (ContextStatus::Present(local), ContextStatus::Present(remote));
            Some(Effect::Found(Finding { context, local, remote, verdict }))
        }));
    }

    /// Asks what is next, as in the table above.
    fn next_requests(&mut self, effects: &mut Vec<Effect>) -> Result<(), CompareError> {
        let ask = if !self.comparing.is_empty() {
            let next = self.comparing.iter().take(MAX_COMPARED);
            CompareRequest::Roots(
                next.map(|pair| RootsRequest {
                    context: pair.local.context.clone(),
                    sizes: pair.compare.sizes(),
                })
                .collect(),
            )
        } else if let Some(Listing { buckets, after }) = self.listing.take() {
            CompareRequest::Contexts { buckets, after }
        } else if !self.slots.is_empty() {
            let slots: BTreeSet<_> = self.slots.iter().copied().take(MAX_BUCKET_SLOTS).collect();
            self.slots.retain(|slot| !slots.contains(slot));
            CompareRequest::Buckets { slots }
        } else {
            effects.push(Effect::Done);
            return Ok(());
        };
        if self.rounds >= MAX_ROUNDS {
            return Err(CompareError::TooManyRounds);
        }
        self.rounds += 1;
        self.request = Some(ask.clone());
        effects.extend([Effect::AskRemote(ask.clone()), Effect::AskLocal(ask)]);
        Ok(())
    }
}

impl Listing {
    /// Checks a page, and says where it ends: `None` if the listing ends with it.
    fn check(&self, side: Side, page: &Page) -> Result<Option<ContextId>, CompareError> {
        let Page { contexts, more } = page;
        if contexts.len() > MAX_PAGE {
            return Err(CompareError::LongPage { side, contexts: contexts.len() });
        }
        let mut last = self.after.as_ref();
        for listed in contexts {
            let context = listed.context();
            let misplaced = |reason| Err(CompareError::Misplaced { side, context: context.clone(), reason });
            let asked = self.buckets.get(&Slot::of(context));
            if !asked.is_some_and(|buckets| buckets.contains(&Bucket::of(context))) {
                return misplaced("its slot or bucket was not asked for");
            }
            if last.is_some_and(|last| listing_key(context) <= listing_key(last)) {
                return misplaced("it is not after the one before it");
            }
            if matches!(listed, ListedContext::Present(summary) if summary.size > Size(MAX_SEQUENCE)) {
                return misplaced("it has more entries than a context can have");
            }
            last = Some(context);
        }
        match contexts.last() {
            _ if !more => Ok(None),
            Some(last) => Ok(Some(last.context().clone())),
            None => Err(CompareError::EmptyPage { side }),
        }
    }
}

fn only_asked<T>(
    side: Side,
    asked: &BTreeSet<Slot>,
    answered: &BTreeMap<Slot, T>,
) -> Result<(), CompareError> {
    match answered.keys().find(|slot| !asked.contains(slot)) {
        Some(slot) => Err(CompareError::WrongSlot { side, slot: *slot }),
        None => Ok(()),
    }
}

/// Returns the verdict that needs no roots, because one side does not have the context or cannot read it.
fn found_at_once(ours: Option<ListedContext>, theirs: Option<ListedContext>) -> Option<Finding> {
    let context = ours.as_ref().or(theirs.as_ref())?.context().clone();
    let from = Size(0);
    let verdict = match (&ours, &theirs) {
        (_, Some(ListedContext::Unreadable(_))) => Verdict::Unreadable(Side::Remote),
        (Some(ListedContext::Unreadable(_)), _) => Verdict::Unreadable(Side::Local),
        (Some(_), _) => Verdict::Ahead { from },
        (None, _) => Verdict::Behind { from },
    };
    let holding = |listed: Option<ListedContext>| listed.map_or(ContextStatus::Absent, ContextStatus::from);
    Some(Finding { context, local: holding(ours), remote: holding(theirs), verdict })
}

/// Pairs up two listings in the same order; what is in one only stands alone.
fn merge(
    ours: impl Iterator<Item = ListedContext>,
    theirs: impl Iterator<Item = ListedContext>,
) -> impl Iterator<Item = (Option<ListedContext>, Option<ListedContext>)> {
    let (mut ours, mut theirs) = (ours.peekable(), theirs.peekable());
    std::iter::from_fn(move || match compare_next(&mut ours, &mut theirs)? {
        Ordering::Less => Some((ours.next(), None)),
        Ordering::Greater => Some((None, theirs.next())),
        Ordering::Equal => Some((ours.next(), theirs.next())),
    })
}

/// Tells which of the next two contexts comes first. Any context comes before the end of a list.
fn compare_next(
    ours: &mut Peekable<impl Iterator<Item = ListedContext>>,
    theirs: &mut Peekable<impl Iterator<Item = ListedContext>>,
) -> Option<Ordering> {
    match (ours.peek(), theirs.peek()) {
        (Some(ours), Some(theirs)) => Some(listing_key(ours.context()).cmp(&listing_key(theirs.context()))),
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (None, None) => None,
    }
}

#[cfg(test)]
impl DrillDown {
    /// Lets the comparison believe that so many rounds have passed.
    pub(super) fn set_rounds(&mut self, rounds: u32) {
        self.rounds = rounds;
    }
}
