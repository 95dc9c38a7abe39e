//! Restoring a damaged context from what another node holds of it.
//!
//! The whole history is staged apart from the rows that are there, each entry checked against its hash, until it has the
//! root that is known to be right. Then the context's lane adds what was appended meanwhile, and puts it in place: what
//! is damaged is not read again, and nothing is taken over that is not known to be right.
//!
//! | what says which history is right | when |
//! | --- | --- |
//! | this node's head | it can be read |
//! | the digest that this node kept of the context's bucket | the head cannot be read, but was counted before |
//! | the slot's owner, in a claim that is promised here | neither; or this node's copy is to be that of the owner |

use std::{collections::BTreeMap, sync::Arc};

use ledger_core::{ContextId, Head, Size, digest::TreeHead, ownership::Claim, slot::Slot};
use rocksdb::WriteBatch;
use tokio::sync::oneshot;

use crate::{
    EntryRange, Ledger, StoreError,
    engine::db::Db,
    engine::families::RowLocation,
    ledger::Inner,
    limited,
    replicate::verify::{RangeCheck, check},
    write::lane::{Command, Heal, HealProof, Healed},
    write::staging,
    write::state::{ContextState, read_head},
    write::uncommitted_loads::LoadSpan,
};

/// Staged rows are written so many bytes at once.
const BATCH_BYTES: usize = 1 << 20;

/// A damaged context being restored. Blocks; dropping it leaves the context as it is.
pub struct Healing {
    inner: Arc<Inner>,
    context: ContextId,
    /// What says which history is right.
    proof: HealProof,
    /// What the staged history is to reach.
    goal: TreeHead,
    place: RowLocation,
    /// What is staged; `None` until it is known which history it is.
    state: Option<ContextState>,
    batch: WriteBatch,
    /// What of it a load brought that the other node does not know to be stable.
    loaded: Option<LoadSpan>,
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
        let Some((from, head)) = db.committed_heads().of(context, row).filter(|(_, head)| head.size().0 > 0)
        else {
            return Ok(None);
        };
        let mut healing = Healing::begin(inner, &db, context, HealProof::Head(from), head.tree_head())?;
        let empty = Head::new(head.suite, head.lineage, head.created_at_ns);
        healing.state = Some(ContextState::new(healing.place, empty));
        Ok(Some(healing))
    }

    /// As [`Ledger::heal`], of a context whose head cannot be read, given how far another node says that it goes: it is
    /// put in place if the digest that this node kept shows that it had gone exactly so far here.
    /// Of other contexts of its bucket that cannot be read either `bucket` says the same.
    pub fn heal_by_digest(
        &self,
        context: &ContextId,
        theirs: TreeHead,
        bucket: BTreeMap<ContextId, TreeHead>,
    ) -> Result<Option<Healing>, StoreError> {
        self.heal_as(context, HealProof::Digest(bucket), theirs)
    }

    /// As [`Ledger::heal`], of a context that the slot's owner holds: its history takes the place of what cannot be read
    /// here, as long as no higher claim is promised.
    pub fn heal_in_claim(
        &self,
        context: &ContextId,
        claim: Claim,
        theirs: TreeHead,
    ) -> Result<Option<Healing>, StoreError> {
        self.heal_as(context, HealProof::Claim(claim), theirs)
    }

    fn heal_as(
        &self,
        context: &ContextId,
        proof: HealProof,
        theirs: TreeHead,
    ) -> Result<Option<Healing>, StoreError> {
        let inner = Arc::clone(self.inner());
        if inner.shared.quarantine.check(context).is_ok() || theirs.size.0 == 0 {
            return Ok(None);
        }
        let db = inner.database.get()?;
        Healing::begin(inner, &db, context, proof, theirs).map(Some)
    }

    /// Whether a context of a slot is known to be damaged: what this node has of the slot is not all that it had.
    pub fn is_slot_damaged(&self, slot: Slot) -> bool {
        self.inner().shared.quarantine.has(slot)
    }

    /// The number of damaged contexts, from now on.
    pub fn watch_damage(&self) -> tokio::sync::watch::Receiver<usize> {
        self.inner().shared.quarantine.watch()
    }
}

impl Healing {
    fn begin(
        inner: Arc<Inner>,
        db: &Db,
        context: &ContextId,
        proof: HealProof,
        goal: TreeHead,
    ) -> Result<Self, StoreError> {
        // Where no damaged block can be in the way: beside the old rows it would be hidden by what hides them.
        let place = inner.shared.numbers.place(db, Slot::of(context), true)?;
        staging::begin(db, place)?;
        Ok(Self {
            inner,
            context: context.clone(),
            proof,
            goal,
            place,
            state: None,
            batch: WriteBatch::default(),
            loaded: None,
            is_in_place: false,
            generation: db.generation(),
        })
    }

    /// What is to be fetched next: the entries after the first size, up to the second. `None` if all is staged.
    pub fn missing(&self) -> Option<(Size, Size)> {
        let after = self.state.as_ref().map_or(Size(0), |state| state.head.size());
        (after < self.goal.size).then_some((after, self.goal.size))
    }

    /// Takes entries that another node sent: those that come next. Given the size up to which they belong together, if a
    /// load brought them (see [`Ledger::range_together`]), it stays known of them here.
    ///
    /// Fails with [`StoreError::Io`] if they are not what they say, or not of the history that this node has.
    pub fn take(&mut self, range: &EntryRange, together: Option<Size>) -> Result<(), StoreError> {
        let context = &self.context;
        let other = || StoreError::Io(format!("the other node holds another history of context {context}"));
        let state = self.state.get_or_insert_with(|| {
            let empty = Head::new(range.suite, range.lineage, range.created_at_ns);
            ContextState::new(self.place, empty)
        });
        if range.after != state.extent() || range.end().max(together.unwrap_or_default()) > self.goal.size {
            return Err(other());
        }
        let RangeCheck::Continues(verified) = check(context, &state.head, range, 0)? else {
            return Err(other());
        };
        if range.end() == self.goal.size && range.root != self.goal.root {
            return Err(other());
        }
        if let Some(to) = together {
            let span = LoadSpan { after: range.after.size, to };
            self.loaded = Some(self.loaded.map_or(span, |known| known.with(span)));
        }
        let db = self.inner.database.get()?;
        state.accept_verified(&db, &mut self.batch, verified, |_| ())?;
        if self.batch.size_in_bytes() >= BATCH_BYTES {
            self.inner.database.check_space_for_load(self.batch.size_in_bytes() as u64)?;
            db.write_unsynced(std::mem::take(&mut self.batch))?;
        }
        Ok(())
    }

    /// Puts the history in place of what is damaged; whether it did. If not, the context has grown by more than
    /// can be read here: that is [`Healing::missing`] now.
    pub fn finish(&mut self) -> Result<bool, StoreError> {
        self.inner.database.get()?.write_unsynced(std::mem::take(&mut self.batch))?;
        let Some(state) = self.state.clone() else { return Ok(false) };
        let (context, proof) = (self.context.clone(), self.proof.clone());
        let (loaded, generation) = (self.loaded, self.generation);
        let heal = Heal { context, proof, state, loaded, generation };
        let (reply, healed) = oneshot::channel();
        let queue = self.inner.queue(Slot::of(&self.context))?;
        queue.blocking_send(Command::Heal(Box::new(heal), reply)).map_err(|_| StoreError::Closed)?;
        drop(queue);
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
            && let Err(error) = self.inner.database.get().and_then(|db| staging::abandon(&db, self.place))
        {
            // It is removed when the database is opened again.
            limited!(warn, context = %self.context, %error, "what was staged to heal a context stays until the database is opened anew");
        }
    }
}
