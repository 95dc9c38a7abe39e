//! Restoring a damaged context from what another node holds of it.
//!
//! The whole history is staged beside the rows that are there, each entry checked against its hash, until it has the
//! root that this node's head has. Then the context's lane adds what was appended meanwhile, and puts it in place: what
//! is damaged is not read again, and nothing is taken over that this node did not have.

use std::sync::Arc;

use ledger_core::{ContextId, Head, Size, digest::Extent, slot::Slot};
use rocksdb::WriteBatch;
use tokio::sync::oneshot;

use crate::{
    Ledger, Range, StoreError,
    families::Place,
    lane::{Command, Heal, Healed},
    ledger::Inner,
    staging,
    state::{ContextState, read_head},
    verify::{Checked, check},
};

/// Staged rows are written so many bytes at once.
const BATCH_BYTES: usize = 1 << 20;

/// A damaged context being restored. Blocks; dropping it leaves the context as it is.
pub struct Healing {
    inner: Arc<Inner>,
    context: ContextId,
    /// The rows that are damaged.
    from: Place,
    /// What the staged history is to reach.
    goal: Extent,
    state: ContextState,
    batch: WriteBatch,
    is_in_place: bool,
    /// The database it is staged in.
    generation: u64,
}

impl std::fmt::Debug for Healing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Healing")
            .field("context", &self.context)
            .field("goal", &self.goal)
            .finish_non_exhaustive()
    }
}

impl Ledger {
    /// Begins to restore a context that is damaged ([`Ledger::damage`]) from another node. `None` if it is not, or if
    /// nothing of it is stable.
    ///
    /// Fails with [`StoreError::Damaged`] if its head cannot be read: then nothing here says what it has to be.
    pub fn heal(&self, context: &ContextId) -> Result<Option<Healing>, StoreError> {
        let inner = Arc::clone(self.inner());
        if inner.shared.quarantine.check(context).is_ok() {
            return Ok(None);
        }
        let db = inner.database.get()?;
        // Other nodes hold what is stable, if not more.
        let row = read_head(&db, context)?;
        let Some((from, head)) = db.stable().of(context, row).filter(|(_, head)| head.size().0 > 0) else {
            return Ok(None);
        };
        let place = Place { slot: Slot::of(context), number: inner.shared.numbers.next(&db)? };
        staging::begin(&db, place)?;
        let state = ContextState::new(place, Head::new(head.suite, head.lineage, head.created_at_ns));
        let (context, goal) = (context.clone(), head.extent());
        Ok(Some(Healing {
            inner,
            context,
            from,
            goal,
            state,
            batch: WriteBatch::default(),
            is_in_place: false,
            generation: db.generation(),
        }))
    }

    /// The number of damaged contexts, from now on.
    pub fn watch_damage(&self) -> tokio::sync::watch::Receiver<usize> {
        self.inner().shared.quarantine.watch()
    }
}

impl Healing {
    /// What is to be fetched next: the entries after the first size, up to the second. `None` if all is staged.
    pub fn missing(&self) -> Option<(Size, Size)> {
        let after = self.state.head.size();
        (after < self.goal.size).then_some((after, self.goal.size))
    }

    /// Takes entries that another node sent: those that come next.
    ///
    /// Fails with [`StoreError::Io`] if they are not what they say, or not of the history that this node has.
    pub fn take(&mut self, range: &Range) -> Result<(), StoreError> {
        let context = &self.context;
        let other = || StoreError::Io(format!("the other node holds another history of context {context}"));
        if range.after != self.state.extent() || range.end() > self.goal.size {
            return Err(other());
        }
        let Checked::Good(verified) = check(context, &self.state.head, range, 0)? else {
            return Err(other());
        };
        if range.end() == self.goal.size && range.root != self.goal.root {
            return Err(other());
        }
        let db = self.inner.database.get()?;
        self.state.accept_verified(&db, &mut self.batch, verified, |_| ())?;
        if self.batch.size_in_bytes() >= BATCH_BYTES {
            db.write_unsynced(std::mem::take(&mut self.batch))?;
        }
        Ok(())
    }

    /// Puts the history in place of what is damaged; whether it did. If not, the context has grown by more than
    /// can be read here: that is [`Healing::missing`] now.
    pub fn finish(&mut self) -> Result<bool, StoreError> {
        self.inner.database.get()?.write_unsynced(std::mem::take(&mut self.batch))?;
        let heal = Heal {
            context: self.context.clone(),
            from: self.from,
            state: self.state.clone(),
            generation: self.generation,
        };
        let (reply, healed) = oneshot::channel();
        let queue = self.inner.queue(&self.context)?;
        queue.blocking_send(Command::Heal(Box::new(heal), reply)).map_err(|_| StoreError::Closed)?;
        match healed.blocking_recv().map_err(|_| StoreError::Closed)?? {
            Healed::InPlace => self.is_in_place = true,
            Healed::Behind(goal) => self.goal = goal,
        }
        Ok(self.is_in_place)
    }
}

impl Drop for Healing {
    fn drop(&mut self) {
        if !self.is_in_place
            && let Err(error) =
                self.inner.database.get().and_then(|db| staging::abandon(&db, self.state.place))
        {
            // It is removed when the ledger is opened again.
            tracing::warn!(context = %self.context, %error, "what was staged to heal a context stays until restart");
        }
    }
}
