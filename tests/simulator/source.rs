//! A node as the source of others that catch up: the reads that `ledger_core::compare` and `ledger_core::catch_up` need to
//! decide what it answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
    rc::Rc,
};

use ledger_core::{
    ContextId, Size,
    catch_up::{FetchAnswer, Missing, RangeEnd, RangeRead, WantedRange},
    compare::{self, CompareRequestError, ComparedStore, ContextStatus, Roots, RootsRequest},
    digest::{Bucket, ContextSummary, Digest, SlotDigest},
    slot::Slot,
};

use super::{
    message::{CatchUpRequest, CatchUpResponse, FetchItem},
    node::Node,
};

/// Most entries of a range.
const RANGE: u64 = 6;
/// Most ranges in one message.
const PACK: usize = 3;
/// Most responses that are kept, in case a message of them was lost.
const MAX_SERVED: usize = 64;

/// The response to one fetch, as far as it was sent.
#[derive(Debug)]
pub struct Served {
    answer: FetchAnswer,
    part: u64,
    sent: Rc<[FetchItem]>,
}

impl Node {
    /// Responds to another node's request.
    pub(super) fn reply(&mut self, question: CatchUpRequest) -> CatchUpResponse {
        match question {
            CatchUpRequest::Compare(request) => match compare::respond(self, &request) {
                Ok(answer) => CatchUpResponse::Compare(answer),
                Err(error) => panic!("a node asks {error}"),
            },
            CatchUpRequest::Fetch { number, wanted, part } => self.serve_fetch(number, &wanted, part),
            CatchUpRequest::Whole { context, .. } if self.is_damaged(context) => CatchUpResponse::Unreadable,
            CatchUpRequest::Whole { context, after, to } => {
                let loaded = self.together(context);
                CatchUpResponse::Whole(self.range(context, after, to), loaded)
            }
            CatchUpRequest::SyncOffers { from, slots } => {
                let events = slots.into_iter().map(|slot| {
                    ledger_core::ownership::slot_manager::Event::SyncRequested(from.clone(), slot)
                });
                self.events.extend(events);
                CatchUpResponse::Done
            }
        }
    }

    /// Sends the next part of a response, or the previous one again.
    fn serve_fetch(&mut self, number: u64, wanted: &[WantedRange], part: u64) -> CatchUpResponse {
        let mut served = match self.fetches.remove(&number) {
            None if part == 0 => {
                Served { answer: FetchAnswer::new(wanted.to_vec()), part: u64::MAX, sent: [].into() }
            }
            // The node that began to respond is gone.
            None => return CatchUpResponse::Cut { is_clean: false },
            Some(served) => served,
        };
        if served.part != part {
            served.part = part;
            served.sent = self.next_items(&mut served.answer).into();
        }
        let sent = Rc::clone(&served.sent);
        self.fetches.insert(number, served);
        if self.fetches.len() > MAX_SERVED {
            self.fetches.pop_first();
        }
        CatchUpResponse::Ranges(sent)
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
        let status = self.context_status(&wanted.context);
        let load = self.together(context);
        let RangeRead { after, to, together_to } = RangeRead::of(&status, load, wanted.after, wanted.to)?;
        let range = self.range(context, after.0, to.0.min(after.0 + RANGE));
        let end = Size(range.after + range.entries.len() as u64);
        let whole = (end < to).then(|| (to.0, self.disk.now.histories[context].root_at(to.0).unwrap()));
        let item = FetchItem::Range { range, together_to, whole };
        Ok((item, RangeEnd { end, together_to }))
    }

    fn context_status(&mut self, id: &ContextId) -> ContextStatus {
        let Some(context) = self.config.contexts.find(id) else { return ContextStatus::Absent };
        if self.lacks_head(context) || self.quarantine.contains(&context) {
            return ContextStatus::Unreadable;
        }
        let history = &self.disk.now.histories[context];
        let Some(head) = history.extent() else { return ContextStatus::Absent };
        let (size, root, epoch) = (head.size, head.root, history.epoch());
        ContextStatus::Present(ContextSummary { context: id.clone(), size, root, epoch })
    }
}

impl ComparedStore for Node {
    type Error = CompareRequestError;

    fn digest(&mut self, slot: Slot) -> Digest {
        Self::digest(self, slot)
    }

    fn buckets(&mut self, slot: Slot) -> BTreeMap<Bucket, Digest> {
        self.digests.get(&slot).map(|digest: &SlotDigest| digest.buckets().collect()).unwrap_or_default()
    }

    fn names(
        &mut self,
        slot: Slot,
        buckets: &BTreeSet<Bucket>,
        after: Option<&ContextId>,
        limit: usize,
    ) -> Result<Vec<ContextId>, CompareRequestError> {
        let contexts = &self.config.contexts;
        let ids: BTreeSet<&ContextId> = contexts
            .of(slot)
            .filter(|context| self.disk.now.histories[*context].size() > 0 || self.is_unreadable(*context))
            .map(|context| contexts.id(context))
            .filter(|id| buckets.contains(&Bucket::of(id)))
            .collect();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        Ok(ids
            .range::<&ContextId, _>((from.as_ref(), Bound::Unbounded))
            .take(limit)
            .map(|id| (*id).clone())
            .collect())
    }

    fn status(&mut self, context: &ContextId) -> Result<ContextStatus, CompareRequestError> {
        Ok(self.context_status(context))
    }

    fn roots(
        &mut self,
        RootsRequest { context, sizes }: &RootsRequest,
    ) -> Result<Roots, CompareRequestError> {
        let Some(of) = self.config.contexts.find(context) else { return Ok(Roots::Absent) };
        if self.lacks_roots(of) {
            return Ok(Roots::Unreadable);
        }
        Ok(match self.context_status(context) {
            ContextStatus::Unreadable => Roots::Unreadable,
            ContextStatus::Absent => Roots::Absent,
            ContextStatus::Present(_) => {
                let history = &self.disk.now.histories[of];
                Roots::At(sizes.iter().map_while(|size| history.root_at(size.0)).collect())
            }
        })
    }
}
