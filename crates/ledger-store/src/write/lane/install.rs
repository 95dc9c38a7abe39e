//! A lane installs a loaded history as a commit like any other. It sends a small load to the replicas with the
//! commit. Of a large one it sends only a reference, because the replicas that count have staged it before.

use std::sync::Arc;

use ledger_core::{ContextId, Epoch, Sequence, loads::StagingCoordinator, slot::Slot};
use rocksdb::WriteBatch;

use super::Lane;
use crate::{
    StoreError,
    engine::db::Db,
    engine::families::RowLocation,
    engine::heads::read_head,
    limited,
    write::command::{Install, Installed},
    write::commit::{StagedCommit, StagedContext},
    write::staging,
    write::waiters::Waiter,
    write::written_context::WriteOrigin,
};

impl Lane {
    /// Installs a staged history if the context is unchanged since staging began. Otherwise removes its rows, unless
    /// it returns the load to be retried.
    pub(super) fn install(&mut self, db: &Arc<Db>, install: Install, done: Installed) {
        // The caller may be gone; the history is installed nevertheless.
        match self.origin_of(db, &install) {
            Err(error) => refuse(db, &install, &done, error),
            Ok(None) => _ = done.try_send(Ok(false)),
            Ok(Some(_)) if !install.adds() => {
                self.syncer.drain();
                _ = done.try_send(self.replace(db, install).map(|()| true));
            }
            Ok(Some(origin)) => self.commit_load(db, install, origin, done),
        }
    }

    /// Reports when everything written to a slot is committed.
    pub(super) fn await_committed(&mut self, db: &Arc<Db>, slot: Slot, epoch: Epoch, done: Installed) {
        let owned = match &self.replication {
            Some(copies) => copies.serving_epoch(slot).map(|(now, _)| now == epoch),
            None => Ok(true),
        };
        match owned {
            Ok(true) => {
                let mut staged = StagedCommit::new();
                staged.waiters.push(Waiter::Load(slot, done));
                self.write(db, staged, false);
            }
            Ok(false) => _ = done.try_send(Err(StoreError::NotOwner { slot })),
            Err(error) => _ = done.try_send(Err(error)),
        }
    }

    /// Returns the epoch in which to install it and the peers that receive it; `None` if a peer that counts has not
    /// staged it.
    fn origin_of(&mut self, db: &Db, install: &Install) -> Result<Option<WriteOrigin>, StoreError> {
        let Install { context, base, state, epoch, generation, .. } = install;
        staging::check(db, *generation, context)?;
        let row = read_head(db, context)?;
        if row.as_ref().map(|(place, head)| (*place, head.frontier.size())) != *base {
            let sequence = Sequence(base.map_or(0, |(_, size)| size) + 1);
            return Err(StoreError::HistoryDiffers { context: context.clone(), sequence });
        }
        let origin = self.origin(context)?;
        let Some(copies) = &self.replication else { return Ok(Some(origin)) };
        let slot = state.place.slot;
        if copies.serving_epoch(slot)?.0 != epoch.unwrap_or_default() {
            return Err(StoreError::NotOwner { slot });
        }
        let (_, counting) = copies.quorum_and_in_sync(slot);
        let is_sent = !install.records.is_empty() || !install.adds();
        let may_install =
            is_sent || StagingCoordinator::may_install(counting, install.staged_at, install.stale_peers);
        Ok(may_install.then_some(origin))
    }

    fn commit_load(&mut self, db: &Arc<Db>, install: Install, origin: WriteOrigin, done: Installed) {
        let Install { context, state, records, stale_peers, .. } = install;
        if records.is_empty()
            && let Some(outbox) = self.shared.publisher.outbox.get()
        {
            // Restart their streams first, so that this commit is not sent on the current ones.
            stale_peers.iter().for_each(|peer| outbox.restart(peer));
        }
        let slot = state.place.slot;
        let row = match read_head(db, &context) {
            Ok(row) => row,
            Err(error) => {
                abandon(db, &context, state.place);
                _ = done.try_send(Err(error));
                return;
            }
        };
        let mut staged_context = StagedContext::loaded(row, state, origin);
        staged_context.records = records;
        let mut staged = StagedCommit::new();
        staged.entries += usize::try_from(staged_context.appended).unwrap_or(usize::MAX);
        staged.contexts.insert(context, staged_context);
        staged.waiters.push(Waiter::Load(slot, done));
        self.write(db, staged, false);
    }

    /// Replaces a damaged history by the staged copy of the same one.
    fn replace(&mut self, db: &Arc<Db>, install: Install) -> Result<(), StoreError> {
        let Install { context, base, state, .. } = install;
        let Some((old, _)) = base else { return Ok(()) };
        let mut batch = WriteBatch::default();
        state.put_head(db, &mut batch, &context, &mut self.buffer)?;
        staging::remove_rows(db, &mut batch, old)?;
        staging::forget(db, &mut batch, state.place)?;
        self.shared.publisher.uncommitted_loads.relocate(db, &mut batch, old, state.place)?;
        // Readers with a pinned head find the same entries at the new location from now on.
        db.committed_heads().relocate(&context, old, state.place);
        db.write(batch).and_then(|()| db.sync()).inspect_err(|error| self.shared.commit_failed(error))?;
        self.shared.quarantine.release(&context);
        self.cache.remove(&context);
        self.cache.insert(context, state);
        Ok(())
    }
}

fn refuse(db: &Db, install: &Install, done: &Installed, error: StoreError) {
    abandon(db, &install.context, install.state.place);
    _ = done.try_send(Err(error));
}

/// Removes staged rows.
fn abandon(db: &Db, context: &ContextId, place: RowLocation) {
    if let Err(error) = staging::abandon(db, place) {
        // Opening the ledger again removes them.
        limited!(warn, %context, %error, "what a refused load staged stays until restart");
    }
}
