//! Restores a damaged context from another node's copy.
//!
//! [`Healing`] stages the whole history beside the existing rows and checks each entry against its hash, until the
//! history has the root that is known to be right. Then the context's lane adds what was appended meanwhile and
//! installs it. The damaged rows are not read again, and nothing unverified is taken over.
//!
//! | what proves that the history is right | when |
//! | --- | --- |
//! | this node's head | it can be read |
//! | the digest that this node kept of the context's bucket | the head cannot be read, but the digest counted it |
//! | the slot's owner, in a claim that is promised here | neither of these; or this node's copy must equal the owner's |

use std::{collections::BTreeMap, sync::Arc};

use ledger_core::{ContextId, Head, Size, digest::TreeHead, loads::LoadSpan, ownership::Claim, slot::Slot};
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
};

/// Size of one write of staged rows, in bytes.
const BATCH_BYTES: usize = 1 << 20;

/// A damaged context that is being restored. Its methods block; dropping it leaves the context unchanged.
pub struct Healing {
    inner: Arc<Inner>,
    context: ContextId,
    /// What proves that the staged history is right.
    proof: HealProof,
    /// The tree head that the staged history must reach.
    goal: TreeHead,
    place: RowLocation,
    /// The staged history; `None` until the first range says which history it is.
    state: Option<ContextState>,
    batch: WriteBatch,
    /// The entries that a load brought and that the other node does not know to be committed.
    loaded: Option<LoadSpan>,
    is_in_place: bool,
    /// Generation of the database that holds the staged rows.
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
    /// Begins to restore a damaged context ([`Ledger::damage`]) from another node. Returns `None` if the context is
    /// not damaged, or if none of its entries is committed.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if its head cannot be read: then no head proves which history is right.
    pub fn heal(&self, context: &ContextId) -> Result<Option<Healing>, StoreError> {
        let inner = Arc::clone(self.inner());
        if inner.shared.quarantine.check(context).is_ok() {
            return Ok(None);
        }
        let db = inner.database.get()?;
        // The goal is the committed size: other nodes hold at least that.
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

    /// Does what [`Ledger::heal`] does for a context whose head cannot be read, given the tree head that another node
    /// reports. The history is installed only if the digest kept here proves that the context had exactly this tree
    /// head. `bucket` gives the other node's tree heads of other unreadable contexts in the same bucket.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read or written.
    pub fn heal_by_digest(
        &self,
        context: &ContextId,
        theirs: TreeHead,
        bucket: BTreeMap<ContextId, TreeHead>,
    ) -> Result<Option<Healing>, StoreError> {
        self.heal_as(context, HealProof::Digest(bucket), theirs)
    }

    /// Does what [`Ledger::heal`] does with the history of the slot's owner. It replaces what cannot be read here, as
    /// long as no claim higher than `claim` is promised.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read or written.
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

    /// Returns whether a context of a slot is known to be damaged, so that this node's copy of the slot is
    /// incomplete.
    pub fn is_slot_damaged(&self, slot: Slot) -> bool {
        self.inner().shared.quarantine.has(slot)
    }

    /// Watches the number of damaged contexts.
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
        // Put the rows apart: beside the old rows, a damaged block could hide them too.
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

    /// Returns what to fetch next: the entries after the first size, up to the second. `None` if everything is
    /// staged.
    pub fn missing(&self) -> Option<(Size, Size)> {
        let after = self.state.as_ref().map_or(Size(0), |state| state.head.size());
        (after < self.goal.size).then_some((after, self.goal.size))
    }

    /// Stages the next entries that another node sent. If a load brought them, `together` is the size up to which
    /// they belong together (see [`Ledger::range_together`]), and this node records it too.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the entries do not verify, or belong to another history than this node's.
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

    /// Installs the history in place of the damaged one. Returns false if the context grew meanwhile by more than the
    /// lane can read here: [`Healing::missing`] says what to fetch then.
    ///
    /// # Errors
    /// [`StoreError`] if the history is not proven to be right, or the database cannot be written.
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
            // Opening the database again removes it.
            limited!(warn, context = %self.context, %error, "what was staged to heal a context stays until the database is opened anew");
        }
    }
}
