//! A lane stages one append.

use ledger_core::{
    ContextId, Entry, EntryId, Head, Lineage, Sequence, Size, entry::Draft, log::Stamp, replication::PeerSet,
    slot::Slot,
};

use super::Lane;
use crate::{
    Append, Appended, StoreError,
    engine::db::Db,
    engine::errors::read_error,
    engine::families::{self, RowLocation},
    engine::heads::{self, read_head},
    error::damaged,
    ids, limited,
    read::pages,
    read::prove,
    replicate::ranges::push_record,
    write::commit::{StagedCommit, StagedContext},
    write::state::ContextState,
    write::written_context::WriteOrigin,
};

/// An entry that is stored once the commit is written.
pub(super) struct Stored {
    pub(super) entry: Entry,
    /// Where an earlier entry with the same id was found; `None`: the entry is new.
    pub(super) repeated_from: Option<RepeatedFrom>,
}

/// Where an earlier entry with the same id was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RepeatedFrom {
    /// In the commit that is being staged.
    Staged,
    /// In the database.
    Stored,
}

impl Stored {
    /// Returns the result of the append, with the position of the history after it.
    pub(super) fn appended(self, db: &Db, commit: &StagedCommit) -> Result<Appended, StoreError> {
        let Self { entry, repeated_from } = self;
        let context = &entry.context_id;
        let position = if repeated_from == Some(RepeatedFrom::Stored) {
            let Some((place, head)) = read_head(db, context)? else {
                return Err(heads::lost_head(context));
            };
            prove::position_at(db, context, place, &head, Size(entry.sequence.0))?
        } else {
            // Its own position is not written yet; the newest position of the staged history includes it.
            let Some(staged_context) = commit.contexts.get(context) else { return Err(StoreError::Closed) };
            staged_context.state.head.position()
        };
        Ok(Appended { entry, position, repeated: repeated_from.is_some(), copies: 1 })
    }
}

impl Lane {
    /// Stages one append.
    pub(super) fn stage(
        &mut self,
        db: &Db,
        commit: &mut StagedCommit,
        append: Append,
    ) -> Result<Stored, StoreError> {
        let Append { context, draft, received_lamport, entry_id, epoch: expected, quorum: _ } = append;
        if !commit.contexts.contains_key(&context) {
            let origin = self.origin(&context)?;
            let staged_context = self.context_state(db, &context, origin)?;
            commit.contexts.insert(context.clone(), staged_context);
        }
        let Some(staged_context) = commit.contexts.get_mut(&context) else { return Err(StoreError::Closed) };
        let WriteOrigin::Owner(epoch, peers) = staged_context.origin else {
            return Err(StoreError::NotOwner { slot: staged_context.state.place.slot });
        };
        if expected.is_some_and(|expected| expected != epoch) {
            return Err(StoreError::NotOwner { slot: staged_context.state.place.slot });
        }
        if let Some(id) = &entry_id
            && let Some(stored) = find_by_entry_id(db, staged_context, &context, id)?
        {
            return check_repeated(stored, &draft);
        }
        let max_ahead = self.shared.options.max_lamport_ahead;
        staged_context.state.head.lamport.check_received(received_lamport, max_ahead)?;
        let stamp = Stamp {
            id: entry_id.clone().unwrap_or_else(ids::new_entry_id),
            now_ns: commit.now_ns,
            received_lamport,
            // A loaded history may have a higher epoch than this node's own.
            epoch: epoch.max(staged_context.state.head.epoch),
        };
        let buffer = &mut self.buffer;
        let is_chosen = entry_id.is_some();
        let entry =
            staged_context.state.append(db, &mut commit.batch, &context, draft, stamp, is_chosen, buffer)?;
        if is_chosen {
            staged_context.ids.insert(entry.id.clone(), entry.clone());
        }
        if !peers.is_empty() {
            push_record(&mut staged_context.records, buffer);
        }
        if let Some(watched) = &mut staged_context.watched {
            watched.push(entry.clone());
        }
        staged_context.appended += 1;
        commit.entries += 1;
        Ok(Stored { entry, repeated_from: None })
    }

    /// Returns the epoch in which this node writes appends to a context, and the peers that they are sent to.
    pub(super) fn origin(&self, context: &ContextId) -> Result<WriteOrigin, StoreError> {
        match &self.replication {
            None => Ok(WriteOrigin::Owner(self.shared.epoch(), PeerSet::default())),
            Some(copies) => {
                let (epoch, peers) = copies.serving_epoch(Slot::of(context))?;
                Ok(WriteOrigin::Owner(epoch, peers))
            }
        }
    }

    /// Returns a context's state: from the cache, from the database, or new.
    fn context_state(
        &mut self,
        db: &Db,
        context: &ContextId,
        origin: WriteOrigin,
    ) -> Result<StagedContext, StoreError> {
        let state = match self.cache.remove(context) {
            Some((_, state)) => state,
            None => match ContextState::load(db, context) {
                Ok(Some(state)) => state,
                Ok(None) => self.create(db, context)?,
                Err(error) => {
                    self.shared.quarantine.record(&error);
                    return Err(error);
                }
            },
        };
        let is_watched =
            !self.shared.publisher.tails.is_idle() && self.shared.publisher.tails.find(context).is_some();
        Ok(StagedContext::new(state, is_watched, origin))
    }

    /// Returns a location for the rows of a new context.
    pub(super) fn allocate_rows(&self, db: &Db, slot: Slot) -> Result<RowLocation, StoreError> {
        self.shared.numbers.place(db, slot, self.shared.quarantine.had_damage(slot))
    }

    fn create(&self, db: &Db, context: &ContextId) -> Result<ContextState, StoreError> {
        let place = self.allocate_rows(db, Slot::of(context))?;
        let lineage = Lineage(ids::new_id());
        Ok(ContextState::new(place, Head::new(self.shared.options.suite, lineage, ids::now_ns())))
    }
}

/// Returns the entry that has a client's id already. A client that repeats many appends makes the whole lane wait, so
/// this reads nothing of the tree.
fn find_by_entry_id(
    db: &Db,
    staged_context: &StagedContext,
    context: &ContextId,
    id: &EntryId,
) -> Result<Option<Stored>, StoreError> {
    if let Some(entry) = staged_context.ids.get(id) {
        return Ok(Some(Stored { entry: entry.clone(), repeated_from: Some(RepeatedFrom::Staged) }));
    }
    let ContextState { place, head, .. } = &staged_context.state;
    let sequence = db
        .get(families::IDS, &place.id(id), |bytes| bytes.try_into().map(u64::from_be_bytes))
        .map_err(|error| read_error(context, Sequence(0), &error))?;
    let sequence = match sequence {
        None => return Ok(None),
        // Treated as absent, the append would be stored twice.
        Some(Err(_)) => {
            return Err(damaged(context, Sequence(0), &format!("the row of entry id {id} is malformed")));
        }
        Some(Ok(sequence)) => Sequence(sequence),
    };
    if sequence > head.size().newest() {
        // The disk lost the entry and kept the row of its id. The append now overwrites the row.
        limited!(warn, %context, %id, %sequence, "an entry id is known of an entry beyond the context's end");
        return Ok(None);
    }
    let entry = pages::one(db, context, *place, head, sequence)?;
    if entry.id != *id {
        // The same, and another entry was appended at its sequence since.
        limited!(warn, %context, %id, %sequence, "an entry id is known of an entry that has another one");
        return Ok(None);
    }
    Ok(Some(Stored { entry, repeated_from: Some(RepeatedFrom::Stored) }))
}

/// Returns the first result of a repeated append; refuses an id that belongs to other content.
fn check_repeated(stored: Stored, draft: &Draft) -> Result<Stored, StoreError> {
    let Entry { context_id, id, sequence, .. } = &stored.entry;
    if stored.entry.draft() != *draft {
        let (context, id) = (context_id.clone(), id.clone());
        return Err(StoreError::EntryIdTaken { context, id, sequence: *sequence });
    }
    Ok(stored)
}
