//! A lane puts what was staged of a damaged context in place of its rows.

use super::{Arc, ContextId, Db, Extent, Lane, Place, StoreError, WriteBatch, read_head, staging};
use crate::{
    ranges,
    read::damaged,
    state::ContextState,
    verify::{Checked, check},
};

/// Entries appended since are read here if they have no more bytes than this: the lane does nothing else meanwhile.
const READ_BYTES: usize = 4 << 20;

/// A damaged context's history, staged under a number of its own.
#[derive(Debug)]
pub(crate) struct Heal {
    pub(crate) context: ContextId,
    /// The rows that are damaged.
    pub(crate) from: Place,
    pub(crate) state: ContextState,
    /// The database it was staged in: of another one it may not be there.
    pub(crate) generation: u64,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Healed {
    /// It is in place, or something else was put there meanwhile.
    InPlace,
    /// The context goes so far by now, and what is missing cannot be read here.
    Behind(Extent),
}

impl Lane {
    /// Puts a staged history in place of rows that are damaged: the same history, whatever was appended since included.
    pub(super) fn heal(&mut self, db: &Arc<Db>, heal: Heal) -> Result<Healed, StoreError> {
        let Heal { context, from, mut state, generation } = heal;
        staging::check(db, generation, &context)?;
        let row = read_head(db, &context)?;
        let Some((_, head)) = row.filter(|(place, head)| *place == from && head.size() >= state.head.size())
        else {
            // A load, or the owner's history, took its place: whatever is damaged of that is found again.
            staging::abandon(db, state.place)?;
            self.shared.quarantine.lift(&context);
            return Ok(Healed::InPlace);
        };
        match add_newer(db, &context, &mut state, &head.extent()) {
            Ok(true) => {}
            Ok(false) | Err(StoreError::Damaged { .. }) => return Ok(Healed::Behind(head.extent())),
            Err(error) => return Err(error),
        }
        if state.head.frontier != head.frontier {
            return Err(damaged(
                &context,
                head.size().newest(),
                "its entries do not give the root in its head",
            ));
        }
        state.head = head;
        let mut batch = WriteBatch::default();
        state.put_head(db, &mut batch, &context, &mut self.buffer)?;
        staging::remove_rows(db, &mut batch, from)?;
        staging::forget(db, &mut batch, state.place)?;
        // Readers that are held back at an earlier size find the same rows at the new place from now on.
        db.stable().relocate(&context, from, state.place);
        db.write(batch).and_then(|()| db.sync()).inspect_err(|error| self.shared.commit_failed(error))?;
        self.shared.quarantine.lift(&context);
        self.cache.remove(&context);
        self.cache.insert(context, state);
        Ok(Healed::InPlace)
    }
}

/// Stages the entries that were appended since the others were, if they are few; whether it did.
fn add_newer(
    db: &Arc<Db>,
    context: &ContextId,
    state: &mut ContextState,
    now: &Extent,
) -> Result<bool, StoreError> {
    let mut batch = WriteBatch::default();
    while state.head.size() < now.size {
        let rest = READ_BYTES.saturating_sub(batch.size_in_bytes());
        if rest == 0 {
            return Ok(false);
        }
        let range = ranges::read(db, context, state.head.size(), now.size, rest)?;
        let Checked::Good(verified) = check(context, &state.head, &range, 0)? else {
            return Err(damaged(context, range.end().newest(), "its entries do not give its root"));
        };
        state.accept_verified(db, &mut batch, verified, |_| ())?;
    }
    db.write_unsynced(batch)?;
    Ok(true)
}
