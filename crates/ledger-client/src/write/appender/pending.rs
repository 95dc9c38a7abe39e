//! Appends without a receipt: as many as the window allows, at indices that are reused.

use ledger_proto::ledger::v1::AppendItem;

use crate::write::append::Append;

/// The number of a stream to an owner. No stream is 0.
pub(super) type StreamId = u32;

/// An append without a receipt.
#[derive(Debug)]
pub(super) struct PendingAppend {
    /// The caller's tag: tags rise in the order of sending.
    pub tag: u64,
    pub append: Append,
    /// The caller gave its entry id. If not, the ledger knows the id only because the client sent it twice.
    pub has_own_id: bool,
    /// Which of the router's groups it belongs to.
    pub group: u16,
    /// The stream on which it is in flight; 0: none.
    pub stream: StreamId,
}

/// Appends without a receipt. The index of one is its tag on the wire.
#[derive(Debug, Default)]
pub(super) struct Pending {
    appends: Vec<Option<PendingAppend>>,
    free: Vec<u32>,
}

impl Pending {
    pub(super) fn insert(&mut self, append: PendingAppend) -> u32 {
        if let Some(index) = self.free.pop() {
            self.appends[index as usize] = Some(append);
            return index;
        }
        self.appends.push(Some(append));
        (self.appends.len() - 1) as u32
    }

    pub(super) fn get_mut(&mut self, index: u64) -> Option<&mut PendingAppend> {
        self.appends.get_mut(usize::try_from(index).ok()?)?.as_mut()
    }

    pub(super) fn remove(&mut self, index: u32) -> Option<PendingAppend> {
        let append = self.appends.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(append)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.appends.len()
    }

    /// The append at an index, as it goes over the wire.
    pub(super) fn item(&self, index: u32) -> Option<AppendItem> {
        let append = self.appends.get(index as usize)?.as_ref()?;
        Some(AppendItem { tag: index.into(), request: Some(append.append.request()) })
    }

    /// The appends in flight on a stream.
    pub(super) fn in_flight_on(&self, stream: StreamId) -> Vec<u32> {
        let on = |(index, append): (usize, &Option<PendingAppend>)| {
            append.as_ref().is_some_and(|append| append.stream == stream).then_some(index as u32)
        };
        self.appends.iter().enumerate().filter_map(on).collect()
    }

    /// Sorts indices in the order in which the caller sent their appends.
    pub(super) fn sort_by_tag(&self, indices: &mut [u32]) {
        indices.sort_unstable_by_key(|index| {
            self.appends.get(*index as usize).and_then(Option::as_ref).map_or(u64::MAX, |append| append.tag)
        });
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::ContextId;

    use super::*;

    fn pending_append(tag: u64, stream: StreamId) -> PendingAppend {
        let append = Append::new(&ContextId::new("c").unwrap(), "k", "").unwrap();
        PendingAppend { tag, append, has_own_id: false, group: 0, stream }
    }

    #[test]
    fn indices_are_reused_and_appends_know_their_stream() {
        let mut pending = Pending::default();
        let indices: Vec<_> =
            (0..10).map(|tag| pending.insert(pending_append(tag, 1 + tag as u32 % 2))).collect();
        for index in &indices[..5] {
            assert!(pending.remove(*index).is_some() && pending.remove(*index).is_none());
        }
        let more: Vec<_> = (10..15).map(|tag| pending.insert(pending_append(tag, 1))).collect();
        assert_eq!(pending.appends.len(), 10);
        let mut on = pending.in_flight_on(1);
        pending.sort_by_tag(&mut on);
        let tags: Vec<_> =
            on.iter().map(|index| pending.appends[*index as usize].as_ref().unwrap().tag).collect();
        assert_eq!(tags, [6, 8, 10, 11, 12, 13, 14]);
        for index in more.into_iter().chain(indices[5..].iter().copied()) {
            pending.remove(index);
        }
        assert!(pending.is_empty());
    }
}
