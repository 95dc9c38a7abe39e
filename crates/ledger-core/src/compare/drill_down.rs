//! From "do we differ?" to the contexts that do: the walk of the one who asks.
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
    Answer, Ask, Compare, CompareError, Holding, Listed, MAX_BUCKET_SLOTS, MAX_COMPARED, MAX_PAGE, Page,
    Prefixes, Roots, Side, Verdict,
};

/// Most rounds (a question, and both answers) of one drill-down. At 512 contexts a page that is enough for some
/// ten million that differ, and a peer that goes on listing for ever comes to an end.
pub const MAX_ROUNDS: u32 = 100_000;

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This node's own store answered [`Effect::Look`].
    Ours(Answer),
    /// The peer answered [`Effect::Send`].
    Theirs(Answer),
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Put the question to the peer.
    Send(Ask),
    /// Put the question to this node's own store. Its answer may come before or after the peer's.
    Look(Ask),
    /// The peer does not keep these slots: what it was believed to share is out of date.
    NotKept(BTreeSet<Slot>),
    /// A context differs.
    Found(Finding),
    /// Everything was looked at. Nothing follows.
    Done,
}

/// A context that differs, as it was when it was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The context.
    pub context: ContextId,
    /// What this node listed.
    pub ours: Holding,
    /// What the peer listed.
    pub theirs: Holding,
    /// How they relate. Never [`Verdict::InStep`]. One that has the context alone is ahead from size 0, if the other
    /// could read that it has not.
    pub verdict: Verdict,
}

/// The comparison of this node with one peer, once. Begin with [`DrillDown::start`], feed every answer to
/// [`DrillDown::step`], do what it says until [`Effect::Done`] or an error. To give up, drop it.
#[derive(Debug)]
pub struct DrillDown {
    /// The digests of our slots at the start.
    ours: BTreeMap<Slot, Digest>,
    /// Slots that differ and were not looked into yet.
    slots: BTreeSet<Slot>,
    /// The rest of the listing under way.
    listing: Option<Listing>,
    /// Contexts of the last page that differ.
    comparing: Vec<Pair>,
    /// The question under way, and the answer that came first.
    asked: Option<Ask>,
    answers: (Option<Answer>, Option<Answer>),
    rounds: u32,
}

#[derive(Debug)]
struct Listing {
    buckets: BTreeMap<Slot, BTreeSet<Bucket>>,
    after: Option<ContextId>,
}

#[derive(Debug)]
struct Pair {
    ours: ContextSummary,
    theirs: ContextSummary,
    compare: Compare,
}

/// Where a context comes in a listing.
type Place<'a> = (Slot, &'a ContextId);

fn place(context: &ContextId) -> Place<'_> {
    (Slot::of(context), context)
}

impl DrillDown {
    /// Begins a comparison, given the digests of the slots that this node and the peer both keep.
    pub fn start(ours: BTreeMap<Slot, Digest>) -> (Self, Vec<Effect>) {
        let ask = Ask::Node { slots: ours.keys().copied().collect(), digest: NodeDigest::of(&ours) };
        let mut drill = Self {
            ours,
            slots: BTreeSet::new(),
            listing: None,
            comparing: Vec::new(),
            asked: None,
            answers: (None, None),
            rounds: 0,
        };
        if drill.ours.is_empty() {
            return (drill, vec![Effect::Done]);
        }
        // Our side of this one is known already: it is what the digest was made of.
        drill.answers.0 = Some(Answer::InStep);
        drill.asked = Some(ask.clone());
        drill.rounds = 1;
        (drill, vec![Effect::Send(ask)])
    }

    /// Number of questions so far: round trips to the peer.
    pub const fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Takes an answer, and says what to do next: nothing while the other side's answer is missing. After an
    /// error there is nothing more to do, and every further answer is an error as well.
    pub fn step(&mut self, event: Event) -> Result<Vec<Effect>, CompareError> {
        let (side, answer) = match event {
            Event::Ours(answer) => (Side::Ours, answer),
            Event::Theirs(answer) => (Side::Theirs, answer),
        };
        let answers = match side {
            Side::Ours => &mut self.answers.0,
            Side::Theirs => &mut self.answers.1,
        };
        if self.asked.is_none() || answers.is_some() {
            self.asked = None;
            return Err(CompareError::NotAsked { side });
        }
        *answers = Some(answer);

        let mut effects = Vec::new();
        match std::mem::take(&mut self.answers) {
            (Some(ours), Some(theirs)) => {
                if let Some(asked) = self.asked.take() {
                    self.answered(asked, ours, theirs, &mut effects)?;
                    self.go_on(&mut effects)?;
                }
            }
            one_of_them => self.answers = one_of_them,
        }
        Ok(effects)
    }

    fn answered(
        &mut self,
        asked: Ask,
        ours: Answer,
        theirs: Answer,
        effects: &mut Vec<Effect>,
    ) -> Result<(), CompareError> {
        let name = asked.name();
        let other =
            |side, answer: &Answer| CompareError::OtherAnswer { side, asked: name, answer: answer.name() };
        match (asked, ours, theirs) {
            (Ask::Node { .. }, _, Answer::InStep) => Ok(()),
            (Ask::Node { slots, .. }, _, Answer::Slots(theirs)) => self.take_slots(slots, &theirs, effects),
            (Ask::Buckets { slots }, Answer::Buckets(ours), Answer::Buckets(theirs)) => {
                self.take_buckets(&slots, &ours, &theirs)
            }
            (Ask::Contexts { buckets, after }, Answer::Contexts(ours), Answer::Contexts(theirs)) => {
                self.take_pages(Listing { buckets, after }, ours, theirs, effects)
            }
            (Ask::Roots(asked), Answer::Roots(ours), Answer::Roots(theirs)) => {
                self.take_roots(asked.len(), &ours, &theirs, effects)
            }
            // One of them is of another kind: ours if it is not what was asked for.
            (asked, ours, theirs) => Err(match (&asked, &ours) {
                (Ask::Node { .. }, _)
                | (Ask::Buckets { .. }, Answer::Buckets(_))
                | (Ask::Contexts { .. }, Answer::Contexts(_))
                | (Ask::Roots(_), Answer::Roots(_)) => other(Side::Theirs, &theirs),
                _ => other(Side::Ours, &ours),
            }),
        }
    }

    fn take_slots(
        &mut self,
        asked: BTreeSet<Slot>,
        theirs: &BTreeMap<Slot, Digest>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), CompareError> {
        only_asked(Side::Theirs, &asked, theirs)?;
        let (kept, not_kept): (BTreeSet<_>, _) =
            asked.into_iter().partition(|slot| theirs.contains_key(slot));
        self.slots = kept.into_iter().filter(|slot| self.ours.get(slot) != theirs.get(slot)).collect();
        if !not_kept.is_empty() {
            effects.push(Effect::NotKept(not_kept));
        }
        Ok(())
    }

    fn take_buckets(
        &mut self,
        asked: &BTreeSet<Slot>,
        ours: &BTreeMap<Slot, BTreeMap<Bucket, Digest>>,
        theirs: &BTreeMap<Slot, BTreeMap<Bucket, Digest>>,
    ) -> Result<(), CompareError> {
        only_asked(Side::Ours, asked, ours)?;
        only_asked(Side::Theirs, asked, theirs)?;
        // A slot that one of them no longer keeps has nothing to compare.
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
        let ours_to = listing.check(Side::Ours, &ours)?;
        let theirs_to = listing.check(Side::Theirs, &theirs)?;
        // What lies beyond the end of either page is known of one side only, and listed again.
        let end = [ours_to, theirs_to].into_iter().flatten().min_by(|a, b| place(a).cmp(&place(b)));

        let up_to_end =
            |listed: &Listed| end.as_ref().is_none_or(|end| place(listed.context()) <= place(end));
        let ours = ours.contexts.into_iter().filter(&up_to_end);
        let theirs = theirs.contexts.into_iter().filter(&up_to_end);
        for (ours, theirs) in merge(ours, theirs) {
            match (ours, theirs) {
                (Some(Listed::Held(ours)), Some(Listed::Held(theirs))) => {
                    let compare = Compare::new(ours.extent(), theirs.extent());
                    self.comparing.push(Pair { ours, theirs, compare });
                }
                (ours, theirs) => effects.extend(found_at_once(ours, theirs).map(Effect::Found)),
            }
        }
        self.settle(effects);
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
        for (side, roots) in [(Side::Ours, ours), (Side::Theirs, theirs)] {
            if roots.len() != asked {
                return Err(CompareError::WrongNumberOfContexts { side, asked, actual: roots.len() });
            }
        }
        for ((pair, ours), theirs) in self.comparing.iter_mut().zip(ours).zip(theirs) {
            pair.compare.answered(ours, theirs)?;
        }
        self.settle(effects);
        Ok(())
    }

    /// Reports the contexts that have a verdict, and keeps the others.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        let settled = self.comparing.extract_if(.., |pair| pair.compare.verdict().is_some());
        effects.extend(settled.filter_map(|Pair { ours, theirs, compare }| {
            let verdict = compare.verdict().filter(|verdict| *verdict != Verdict::InStep)?;
            let context = ours.context.clone();
            let (ours, theirs) = (Holding::Held(ours), Holding::Held(theirs));
            Some(Effect::Found(Finding { context, ours, theirs, verdict }))
        }));
    }

    /// Asks what is next, as in the table above.
    fn go_on(&mut self, effects: &mut Vec<Effect>) -> Result<(), CompareError> {
        let ask = if !self.comparing.is_empty() {
            let next = self.comparing.iter().take(MAX_COMPARED);
            Ask::Roots(
                next.map(|pair| Prefixes { context: pair.ours.context.clone(), sizes: pair.compare.sizes() })
                    .collect(),
            )
        } else if let Some(Listing { buckets, after }) = self.listing.take() {
            Ask::Contexts { buckets, after }
        } else if !self.slots.is_empty() {
            let slots: BTreeSet<_> = self.slots.iter().copied().take(MAX_BUCKET_SLOTS).collect();
            self.slots.retain(|slot| !slots.contains(slot));
            Ask::Buckets { slots }
        } else {
            effects.push(Effect::Done);
            return Ok(());
        };
        if self.rounds >= MAX_ROUNDS {
            return Err(CompareError::TooManyRounds);
        }
        self.rounds += 1;
        self.asked = Some(ask.clone());
        effects.extend([Effect::Send(ask.clone()), Effect::Look(ask)]);
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
            if last.is_some_and(|last| place(context) <= place(last)) {
                return misplaced("it is not after the one before it");
            }
            if matches!(listed, Listed::Held(summary) if summary.size > Size(MAX_SEQUENCE)) {
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
        Some(slot) => Err(CompareError::OtherSlot { side, slot: *slot }),
        None => Ok(()),
    }
}

/// What needs no look at roots: one side does not have the context, or cannot read it.
fn found_at_once(ours: Option<Listed>, theirs: Option<Listed>) -> Option<Finding> {
    let context = ours.as_ref().or(theirs.as_ref())?.context().clone();
    let from = Size(0);
    let verdict = match (&ours, &theirs) {
        (_, Some(Listed::Unreadable(_))) => Verdict::Unreadable(Side::Theirs),
        (Some(Listed::Unreadable(_)), _) => Verdict::Unreadable(Side::Ours),
        (Some(_), _) => Verdict::Ahead { from },
        (None, _) => Verdict::Behind { from },
    };
    let holding = |listed: Option<Listed>| listed.map_or(Holding::Absent, Holding::from);
    Some(Finding { context, ours: holding(ours), theirs: holding(theirs), verdict })
}

/// Pairs up two listings in the same order; what is in one only stands alone.
fn merge(
    ours: impl Iterator<Item = Listed>,
    theirs: impl Iterator<Item = Listed>,
) -> impl Iterator<Item = (Option<Listed>, Option<Listed>)> {
    let (mut ours, mut theirs) = (ours.peekable(), theirs.peekable());
    std::iter::from_fn(move || match compare_next(&mut ours, &mut theirs)? {
        Ordering::Less => Some((ours.next(), None)),
        Ordering::Greater => Some((None, theirs.next())),
        Ordering::Equal => Some((ours.next(), theirs.next())),
    })
}

/// Which of the next two comes first; one that is there comes before none.
fn compare_next(
    ours: &mut Peekable<impl Iterator<Item = Listed>>,
    theirs: &mut Peekable<impl Iterator<Item = Listed>>,
) -> Option<Ordering> {
    match (ours.peek(), theirs.peek()) {
        (Some(ours), Some(theirs)) => Some(place(ours.context()).cmp(&place(theirs.context()))),
        (Some(_), None) => Some(Ordering::Less),
        (None, Some(_)) => Some(Ordering::Greater),
        (None, None) => None,
    }
}

#[cfg(test)]
impl DrillDown {
    /// As if so many rounds had passed.
    pub(super) fn set_rounds(&mut self, rounds: u32) {
        self.rounds = rounds;
    }
}
