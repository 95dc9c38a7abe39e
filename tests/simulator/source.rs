//! A node as the source of others that catch up: the reads that `ledger_core::compare` and `ledger_core::catch_up`
//! need to decide what it answers.

use std::ops::Bound;

use ledger_core::{
    catch_up::{FetchAnswer, Missing, RangeEnd, RangeRead, WantedRange},
    compare::{self, CompareRequestError, ComparedStore, ContextStatus, Roots, RootsRequest},
    digest::ContextSummary,
};

use super::prelude::*;

/// Most entries of a range.
const RANGE: u64 = 3;
/// Most ranges in one message.
const PACK: usize = 2;
/// Most responses that are kept, in case a message of them was lost.
pub const MAX_SERVED: usize = 64;

/// The response to one fetch, as far as it was sent.
#[derive(Debug)]
pub struct Served {
    answer: FetchAnswer,
    part: Option<u64>,
    sent: Rc<[FetchItem]>,
}

impl Node {
    /// Responds to another node's request.
    pub(super) fn reply(&mut self, question: PeerRequest) -> PeerResponse {
        match question {
            PeerRequest::Compare(request) => {
                PeerResponse::Compare(compare::respond(self, &request).expect("a node asks what it may"))
            }
            PeerRequest::Fetch { number, wanted, part } => self.serve_fetch(number, &wanted, part),
            PeerRequest::SyncOffers(from, slots) => {
                let events = slots.into_iter().map(|slot| Event::SyncRequested(from.clone(), slot));
                self.events.extend(events);
                PeerResponse::Done
            }
            PeerRequest::Stage(slot, claim, range) => self.stage(slot, &claim, range),
        }
    }

    /// Sends the next part of a response, or the previous one again.
    fn serve_fetch(&mut self, number: u64, wanted: &[WantedRange], part: u64) -> PeerResponse {
        let mut served = match self.fetches.remove(&number) {
            Some(served) => served,
            None if part == 0 => {
                Served { answer: FetchAnswer::new(wanted.to_vec()), part: None, sent: [].into() }
            }
            // The node that began to respond is gone.
            None => return PeerResponse::Cut { is_clean: false },
        };
        if served.part != Some(part) {
            (served.part, served.sent) = (Some(part), self.next_items(&mut served.answer).into());
        }
        let sent = Rc::clone(&served.sent);
        self.fetches.insert(number, served);
        if self.fetches.len() > MAX_SERVED {
            self.fetches.pop_first();
        }
        PeerResponse::Ranges(sent)
    }

    fn next_items(&mut self, answer: &mut FetchAnswer) -> Vec<FetchItem> {
        let mut items = Vec::new();
        while items.len() < PACK {
            let Some(wanted) = answer.wanted().cloned() else {
                items.push(FetchItem::End);
                break;
            };
            match self.read_range(&wanted) {
                Ok((item, end)) => {
                    items.push(item);
                    answer.on_range(end);
                }
                Err(missing) => {
                    items.push(FetchItem::Missing(wanted.context, missing));
                    answer.on_missing();
                }
            }
        }
        items
    }

    fn read_range(&mut self, wanted: &WantedRange) -> Result<(FetchItem, RangeEnd), Missing> {
        let context = self.config.contexts.find(&wanted.context).ok_or(Missing::Shorter)?;
        if self.is_damaged(context) {
            return Err(Missing::Unreadable);
        }
        let (status, load) = (self.status(&wanted.context).unwrap(), self.together(context));
        let RangeRead { after, to, together_to } = RangeRead::of(&status, load, wanted.after, wanted.to)?;
        let range = self.range(context, after.0, to.0.min(after.0 + RANGE));
        let (end, root) = (range.end.size, self.history(context).root_at(to.0).unwrap());
        let whole = (end < to).then_some(TreeHead { size: to, root });
        Ok((FetchItem::Range { range, together_to, whole }, RangeEnd { end, together_to }))
    }
}

impl ComparedStore for Node {
    type Error = CompareRequestError;

    fn digest(&mut self, slot: Slot) -> Digest {
        Self::digest(self, slot)
    }

    fn buckets(&mut self, slot: Slot) -> BTreeMap<Bucket, Digest> {
        self.digests.get(&slot).map(|digest| digest.buckets().collect()).unwrap_or_default()
    }

    fn names(
        &mut self,
        slot: Slot,
        buckets: &BTreeSet<Bucket>,
        after: Option<&ContextId>,
        limit: usize,
    ) -> Result<Vec<ContextId>, CompareRequestError> {
        let contexts = self.config.contexts.of(slot);
        let is_here = |of: &Context| self.history(*of).size() > 0 || self.is_unreadable(*of);
        let ids: BTreeSet<ContextId> = contexts.filter(is_here).map(|context| self.id(context)).collect();
        let after = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ids = ids.range((after, Bound::Unbounded)).filter(|id| buckets.contains(&Bucket::of(id)));
        Ok(ids.take(limit).cloned().collect())
    }

    fn status(&mut self, id: &ContextId) -> Result<ContextStatus, CompareRequestError> {
        let Some(context) = self.config.contexts.find(id) else { return Ok(ContextStatus::Absent) };
        if self.fails(context, Read::Head) || self.quarantine.contains(&context) {
            return Ok(ContextStatus::Unreadable);
        }
        let history = self.history(context);
        let (TreeHead { size, root }, epoch) = (history.head(), history.epoch());
        let present = ContextStatus::Present(ContextSummary { context: id.clone(), size, root, epoch });
        Ok(if size.0 == 0 { ContextStatus::Absent } else { present })
    }

    fn roots(&mut self, request: &RootsRequest) -> Result<Roots, CompareRequestError> {
        let of = self.config.contexts.find(&request.context);
        let Some(of) = of.filter(|of| !self.fails(*of, Read::Roots)) else {
            return Ok(if of.is_some() { Roots::Unreadable } else { Roots::Absent });
        };
        let history = self.history(of);
        let roots = request.sizes.iter().map_while(|size| history.root_at(size.0)).collect();
        Ok(if history.size() == 0 { Roots::Absent } else { Roots::At(roots) })
    }
}
