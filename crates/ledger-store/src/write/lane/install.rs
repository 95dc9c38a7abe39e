//! A lane puts a loaded history in place: a commit like others. Its replicas are sent what is little; of a large one they
//! are only told, for those that count have staged it before.

use super::{
    Arc, ContextId, Db, Epoch, Lane, PeerSet, Sequence, Slot, StagedCommit, StagedContext, StoreError,
    Waiter, WriteBatch, WriteOrigin, families::RowLocation, read_head, staging,
};
use crate::{limited, write::commit::Installed, write::state::ContextState};

/// A history staged under a number of its own, to take a context's place.
#[derive(Debug)]
pub(crate) struct Install {
    pub(crate) context: ContextId,
    /// Where the context's rows were, and how many, when staging began; `None`: it did not exist.
    pub(crate) base: Option<(RowLocation, u64)>,
    pub(crate) state: ContextState,
    /// In a cluster: only if the slot is still owned in this epoch.
    pub(crate) epoch: Option<Epoch>,
    /// The records that were added, to be sent; empty: the peers that count must have staged it.
    pub(crate) records: Vec<u8>,
    /// The peers that have staged it.
    pub(crate) staged_at: PeerSet,
    /// Peers that could not: their streams begin anew, and they catch up.
    pub(crate) stale_peers: PeerSet,
    /// The database it was staged in: of another one it may not be there.
    pub(crate) generation: u64,
}

impl Install {
    /// Whether it adds entries. If not, it heals those that are there.
    fn adds(&self) -> bool {
        self.state.head.frontier.size() > self.base.map_or(0, |(_, size)| size)
    }
}

impl Lane {
    /// Puts a staged history in place of a context's, if the context is as it was when staging began; if not, and it is not
    /// given back to be tried again, its rows are removed.
    pub(super) fn install(&mut self, db: &Arc<Db>, install: Install, done: Installed) {
        // Whoever asked may have gone: what is in place is in place all the same.
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

    /// Says when all that was written of a slot has its copies.
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

    /// In what epoch it is put in place, and who is told; `None` if a peer counts that has not staged it.
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
        let mut able = install.staged_at;
        able.extend(install.stale_peers);
        let is_sent = !install.records.is_empty() || !install.adds();
        let is_staged = is_sent || counting.without(able).is_empty();
        Ok(is_staged.then_some(origin))
    }

    fn commit_load(&mut self, db: &Arc<Db>, install: Install, origin: WriteOrigin, done: Installed) {
        let Install { context, state, records, stale_peers, .. } = install;
        if records.is_empty()
            && let Some(outbox) = self.shared.outbox.get()
        {
            // Before it is sent: they are sent nothing more on the streams of now.
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

    /// Puts a staged history in place of the same one, of which something was damaged.
    fn replace(&mut self, db: &Arc<Db>, install: Install) -> Result<(), StoreError> {
        let Install { context, base, state, .. } = install;
        let Some((old, _)) = base else { return Ok(()) };
        let mut batch = WriteBatch::default();
        state.put_head(db, &mut batch, &context, &mut self.buffer)?;
        staging::remove_rows(db, &mut batch, old)?;
        staging::forget(db, &mut batch, state.place)?;
        self.shared.uncommitted_loads.relocate(db, &mut batch, old, state.place)?;
        // Readers that are held back at an earlier size find the same rows at the new place from now on.
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

/// Removes what is staged.
fn abandon(db: &Db, context: &ContextId, place: RowLocation) {
    if let Err(error) = staging::abandon(db, place) {
        // It is removed when the ledger is opened again.
        limited!(warn, %context, %error, "what a refused load staged stays until restart");
    }
}
