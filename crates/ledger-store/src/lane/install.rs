//! A lane puts a loaded history in place. In a cluster that is a commit like others: it is sent to the replicas, and
//! shown and acknowledged when there are enough copies.

use super::{
    Arc, Commit, ContextId, Copies, Db, Extent, Head, Install, Lane, Origin, Outgoing, Part, PeerSet,
    Sequence, Size, StoreError, WriteBatch, Written, families::Place, index, read_head, staging,
};
use crate::{
    commit::{Installed, Reached},
    ranges,
};

/// Most bytes of records that are sent in one part.
const PART_BYTES: usize = 1 << 20;
/// Most bytes of a load that are sent as it is put in place. Of more the replicas are left behind, and catch up: that
/// holds up all slots of this node for a moment, but takes no memory.
const SENT_BYTES: usize = 32 << 20;

impl Lane {
    /// Puts a staged history in place of a context's, if the context is as it was when staging began.
    pub(super) fn install(&mut self, db: &Arc<Db>, install: Install, done: Installed) {
        match self.try_install(db, install) {
            // Whoever asked may have gone: the history is in place all the same.
            Ok(None) => _ = done.try_send(Ok(())),
            Ok(Some((copies, placed))) => self.send_installed(db, &copies, &placed, done),
            Err(error) => _ = done.try_send(Err(error)),
        }
    }

    fn try_install(
        &mut self,
        db: &Arc<Db>,
        install: Install,
    ) -> Result<Option<(Arc<Copies>, Placed)>, StoreError> {
        let Install { context, base, state, epoch, generation } = install;
        staging::check(db, generation, &context)?;
        let row = read_head(db, &context)?;
        if row.as_ref().map(|(place, head)| (*place, head.frontier.size())) != base {
            let sequence = Sequence(base.map_or(0, |(_, size)| size) + 1);
            return Err(StoreError::HistoryDiffers { context, sequence });
        }
        let slot = state.place.slot;
        let copies = self.copies.clone();
        if let Some(copies) = &copies
            && Some(copies.serves(slot)?.0) != epoch
        {
            return Err(StoreError::NotOwner { slot });
        }
        let (before, now) = (row.as_ref().map(|(_, head)| head.extent()), state.head.extent());
        let appended = now.size.0 - before.map_or(0, |before| before.size.0);
        let mut batch = WriteBatch::default();
        state.put_head(db, &mut batch, &context, &mut self.buffer)?;
        match base {
            None => index::put(db, &mut batch, &context)?,
            // Until this is stable, readers are at the rows of before.
            Some((old, _)) if copies.is_some() => staging::mark(db, &mut batch, old)?,
            Some((old, _)) => staging::remove_rows(db, &mut batch, old)?,
        }
        staging::forget(db, &mut batch, state.place)?;
        if copies.is_some() && appended > 0 && self.shared.readable.is_held(slot) {
            db.stable().hold(&context, row);
        }
        // The staged rows were written without a sync: this one is for them too, whatever is configured.
        db.write(batch).and_then(|()| db.sync()).inspect_err(|error| self.shared.commit_failed(error))?;
        self.shared.quarantine.lift(&context);
        if let Some(digests) = &self.shared.digests {
            digests.replace(&context, before, Some(now));
        }
        let placed = Placed {
            context: context.clone(),
            head: state.head.clone(),
            place: state.place,
            old: base.map(|(old, _)| old),
            before,
            now,
            appended,
        };
        self.cache.remove(&context);
        self.cache.insert(context, state);
        if let Some(copies) = copies {
            return Ok(Some((copies, placed)));
        }
        if let Some(tail) = self.shared.tails.find(&placed.context) {
            tail.reach(now.size);
        }
        Ok(None)
    }

    /// Sends what was put in place, and has it acknowledged when there are enough copies.
    fn send_installed(&mut self, db: &Arc<Db>, copies: &Arc<Copies>, placed: &Placed, done: Installed) {
        let slot = placed.place.slot;
        let peers = copies.led(slot).map_or(PeerSet::default(), |(_, peers)| peers);
        let sent = if placed.appended == 0 || peers.is_empty() {
            Some(Vec::new())
        } else {
            self.parts_of(db, copies, placed)
        };
        // All of it is one commit to the slot, the last of these numbers.
        let first = copies.number() + 1;
        let count = sent.as_ref().map_or(1, Vec::len).max(1) as u64;
        copies.skip(count - 1);
        let written = Written::installed(db, placed.reached(), placed.old, done);
        let number = copies.wrote(&self.shared, vec![(slot, written)]);
        if let Some(outbox) = self.shared.carrier.get() {
            match sent {
                Some(parts) => {
                    for (number, part) in (first..).zip(parts) {
                        let commit = Arc::new(Commit { lane: self.number, number, parts: vec![part] });
                        for peer in peers.iter() {
                            outbox.send(peer, Outgoing::Commit(Arc::clone(&commit)));
                        }
                    }
                }
                None => peers.iter().for_each(|peer| outbox.restart(peer)),
            }
        }
        copies.synced(&self.shared, number);
    }

    /// The entries that were added; `None` if they are too many, or cannot be read.
    fn parts_of(&self, db: &Db, copies: &Copies, placed: &Placed) -> Option<Vec<Part>> {
        let (claim, _) = copies.led(placed.place.slot)?;
        let mut parts = Vec::new();
        let mut bytes = 0;
        let mut after = placed.before.map_or(Size(0), |before| before.size);
        while after < placed.now.size {
            let read = ranges::read(db, &placed.context, after, placed.now.size, PART_BYTES);
            let range = read.inspect_err(|error| self.shared.quarantine.note(error)).ok()?;
            bytes += range.records.len();
            if bytes > SENT_BYTES {
                return None;
            }
            after = Size(after.0 + range.count);
            parts.push(Part {
                slot: placed.place.slot,
                claim: claim.clone(),
                context: placed.context.clone(),
                range,
            });
        }
        Some(parts)
    }
}

/// A history that was put in place.
struct Placed {
    context: ContextId,
    head: Head,
    place: Place,
    /// Where it was before.
    old: Option<Place>,
    before: Option<Extent>,
    now: Extent,
    appended: u64,
}

impl Placed {
    fn reached(&self) -> Reached {
        Reached {
            context: self.context.clone(),
            place: self.place,
            head: self.head.clone(),
            now: self.now,
            watched: None,
            appended: self.appended,
            origin: Origin::Own(self.head.epoch, PeerSet::default()),
            records: Vec::new(),
            before: self.before,
        }
    }
}
