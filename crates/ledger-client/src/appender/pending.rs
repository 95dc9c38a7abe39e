//! What was sent and has no receipt yet. As many as the window allows, in places that are used again.

use ledger_proto::ledger::v1::AppendItem;

use crate::Append;

/// The number of a stream to an owner. No stream is 0.
pub(super) type StreamId = u32;

/// An append without a receipt.
#[derive(Debug)]
pub(super) struct PendingAppend {
    /// The caller's tag: tags rise in the order of sending.
    pub tag: u64,
    pub append: Append,
    /// Its entry id was made here: if the ledger knows it, then because it was sent twice.
    pub made: bool,
    /// Which of the router's groups it belongs to.
    pub group: u16,
    /// The stream it is under way on; 0: none.
    pub stream: StreamId,
}

/// Appends without a receipt. The place of one is its tag on the wire.
#[derive(Debug, Default)]
pub(super) struct Pending {
    places: Vec<Option<PendingAppend>>,
    free: Vec<u32>,
}

impl Pending {
    pub(super) fn insert(&mut self, kept: PendingAppend) -> u32 {
        if let Some(place) = self.free.pop() {
            self.places[place as usize] = Some(kept);
            return place;
        }
        self.places.push(Some(kept));
        (self.places.len() - 1) as u32
    }

    pub(super) fn get_mut(&mut self, place: u64) -> Option<&mut PendingAppend> {
        self.places.get_mut(usize::try_from(place).ok()?)?.as_mut()
    }

    pub(super) fn remove(&mut self, place: u32) -> Option<PendingAppend> {
        let kept = self.places.get_mut(place as usize)?.take()?;
        self.free.push(place);
        Some(kept)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.places.len()
    }

    /// The append at a place, as it goes over the wire.
    pub(super) fn item(&self, place: u32) -> Option<AppendItem> {
        let kept = self.places.get(place as usize)?.as_ref()?;
        Some(AppendItem { tag: place.into(), request: Some(kept.append.request()) })
    }

    /// Those under way on a stream.
    pub(super) fn on(&self, stream: StreamId) -> Vec<u32> {
        let on = |(place, kept): (usize, &Option<PendingAppend>)| {
            kept.as_ref().is_some_and(|kept| kept.stream == stream).then_some(place as u32)
        };
        self.places.iter().enumerate().filter_map(on).collect()
    }

    /// Puts places in the order in which they were sent.
    pub(super) fn sort(&self, places: &mut [u32]) {
        places.sort_unstable_by_key(|place| {
            self.places.get(*place as usize).and_then(Option::as_ref).map_or(u64::MAX, |kept| kept.tag)
        });
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::ContextId;

    use super::*;

    fn kept(tag: u64, stream: StreamId) -> PendingAppend {
        let append = Append::new(&ContextId::new("c").unwrap(), "k", "").unwrap();
        PendingAppend { tag, append, made: true, group: 0, stream }
    }

    #[test]
    fn places_are_used_again_and_know_what_is_under_way() {
        let mut pending = Pending::default();
        let places: Vec<_> = (0..10).map(|tag| pending.insert(kept(tag, 1 + tag as u32 % 2))).collect();
        for place in &places[..5] {
            assert!(pending.remove(*place).is_some() && pending.remove(*place).is_none());
        }
        let more: Vec<_> = (10..15).map(|tag| pending.insert(kept(tag, 1))).collect();
        assert_eq!(pending.places.len(), 10);
        let mut on = pending.on(1);
        pending.sort(&mut on);
        let tags: Vec<_> =
            on.iter().map(|place| pending.places[*place as usize].as_ref().unwrap().tag).collect();
        assert_eq!(tags, [6, 8, 10, 11, 12, 13, 14]);
        for place in more.into_iter().chain(places[5..].iter().copied()) {
            pending.remove(place);
        }
        assert!(pending.is_empty());
    }
}
