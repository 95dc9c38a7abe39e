//! Stages the history of a damaged context, from another node's copy or from this node's own entries.
//!
//! [`Healing`] stages the whole history beside the existing rows and checks each entry against its hash, until the
//! history has the root that is known to be right. Then the context's lane adds what was appended meanwhile and
//! installs it. Nothing unverified is taken over. What is tried when, and which proof allows what, is decided in
//! [`ledger_core::healing`].

use std::sync::Arc;

use ledger_core::{
    ContextId, Head, Size,
    digest::TreeHead,
    healing::{HealProof, HealRefusal, check_staged},
    loads::LoadSpan,
    slot::Slot,
};
use rocksdb::WriteBatch;
use tokio::sync::oneshot;

use crate::{
    EntryRange, StoreError,
    engine::families::RowLocation,
    engine::heads::read_head,
    replicate::ranges,
    replicate::verify::{RangeCheck, check, verify},
    store::Store,
    write::command::{Command, Heal, Healed},
    write::staging,
    write::state::{ContextState, VerifiedEntries},
};

/// Size of one write of staged rows, in bytes.
const BATCH_BYTES: usize = 1 << 20;

/// A damaged context that is being restored. Its methods block; dropping it leaves the context unchanged.
pub struct Healing {
    store: Arc<Store>,
    context: ContextId,
    /// What proves that the staged history is right.
    proof: HealProof,
    /// The tree head that the staged history must reach.
    goal: TreeHead,
    place: RowLocation,
    /// Location of the damaged rows, if the head is the proof.
    from: Option<RowLocation>,
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

impl Healing {
    /// Begins to restore a damaged context; see [`Ledger::begin_healing`](crate::Ledger::begin_healing).
    pub(crate) fn begin(
        store: Arc<Store>,
        context: &ContextId,
        proof: HealProof,
        goal: TreeHead,
    ) -> Result<Option<Self>, StoreError> {
        if store.shared.quarantine.check(context).is_ok() || goal.size.0 == 0 {
            return Ok(None);
        }
        let db = store.database.get()?;
        let known = match proof {
            HealProof::Head => match read_head(&db, context)? {
                Some(row) => Some(row),
                None => return Ok(None),
            },
            HealProof::Digest(_) | HealProof::Claim { .. } => None,
        };
        // Put the rows apart: beside the old rows, a damaged block could hide them too.
        let place = store.shared.numbers.place(&db, Slot::of(context), true)?;
        staging::begin(&db, place)?;
        let (from, state) = known
            .map(|(from, head)| {
                let empty = Head::new(head.suite, head.lineage, head.created_at_ns);
                (from, ContextState::new(place, empty))
            })
            .unzip();
        let generation = db.generation();
        drop(db);
        Ok(Some(Self {
            store,
            context: context.clone(),
            proof,
            goal,
            place,
            from,
            state,
            batch: WriteBatch::default(),
            loaded: None,
            is_in_place: false,
            generation,
        }))
    }

    /// Returns the tree head that the staged history must reach.
    pub const fn goal(&self) -> TreeHead {
        self.goal
    }

    /// Returns what to fetch next: the entries after the first size, up to the second. `None` if everything is
    /// staged.
    pub fn missing(&self) -> Option<(Size, Size)> {
        let after = self.state.as_ref().map_or(Size(0), |state| state.head.size());
        (after < self.goal.size).then_some((after, self.goal.size))
    }

    /// Stages the next entries that another node sent. If a load brought them, `together` is the size up to which
    /// they belong together (see [`Ledger::range_to_send`]), and this node records it too.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the entries do not verify, or belong to another history than this node's.
    pub fn take(&mut self, range: &EntryRange, together: Option<Size>) -> Result<(), StoreError> {
        let context = &self.context;
        let state = self.state.get_or_insert_with(|| {
            let empty = Head::new(range.suite, range.lineage, range.created_at_ns);
            ContextState::new(self.place, empty)
        });
        let end = TreeHead { size: range.end(), root: range.root };
        check_staged(self.goal, state.extent(), range.after, end, together)
            .map_err(|refused| not_restored(context, &refused))?;
        let RangeCheck::Continues(verified) = check(context, &state.head, range, 0)? else {
            return Err(not_restored(context, &HealRefusal::OtherHistory));
        };
        if let Some(to) = together {
            let span = LoadSpan { after: range.after.size, to };
            self.loaded = Some(self.loaded.map_or(span, |known| known.with(span)));
        }
        self.stage(verified)
    }

    /// Stages this node's own entries up to the goal: the damage may be in what is computed from them. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the entries cannot be read, or are not what the goal proves.
    pub fn take_local(&mut self) -> Result<(), StoreError> {
        let refused = |context: &ContextId| not_restored(context, &HealRefusal::OtherHistory);
        while let (Some((after, to)), Some(from), Some(state)) = (self.missing(), self.from, &mut self.state)
        {
            let context = &self.context;
            let db = self.store.database.get()?;
            let (records, end) =
                ranges::read_records(&db.snapshot(), context, from, to, after, to, BATCH_BYTES)?;
            // The tree is what may be damaged: the root comes from the entries, and the goal proves it in the end.
            let range = EntryRange {
                lineage: state.head.lineage,
                suite: state.head.suite,
                created_at_ns: state.head.created_at_ns,
                after: state.extent(),
                count: end.0 - after.0,
                root: self.goal.root,
                records: records.into(),
            };
            let verified = verify(context, &state.head, &range, 0)?.ok_or_else(|| refused(context))?;
            let end = TreeHead { size: end, root: verified.root };
            check_staged(self.goal, range.after, range.after, end, None)
                .map_err(|refused| not_restored(context, &refused))?;
            drop(db);
            self.stage(verified)?;
        }
        Ok(())
    }

    fn stage(&mut self, verified: VerifiedEntries) -> Result<(), StoreError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let db = self.store.database.get()?;
        state.accept_verified(&db, &mut self.batch, verified, |_| ())?;
        if self.batch.size_in_bytes() >= BATCH_BYTES {
            self.store.database.check_space_for_load(self.batch.size_in_bytes() as u64)?;
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
        self.store.database.get()?.write_unsynced(std::mem::take(&mut self.batch))?;
        let Some(state) = self.state.clone() else { return Ok(false) };
        let (context, proof) = (self.context.clone(), self.proof.clone());
        let (from, loaded, generation) = (self.from, self.loaded, self.generation);
        let heal = Heal { context, proof, from, state, loaded, generation };
        let (reply, healed) = oneshot::channel();
        let queue = self.store.queue(Slot::of(&self.context))?;
        queue.blocking_send(Command::Heal(Box::new(heal), reply)).map_err(|_| StoreError::Closed)?;
        drop(queue);
        match healed.blocking_recv().map_err(|_| StoreError::Closed)?? {
            Healed::InPlace => self.is_in_place = true,
            Healed::Behind(goal) => self.goal = goal,
        }
        Ok(self.is_in_place)
    }
}

fn not_restored(context: &ContextId, refused: &HealRefusal) -> StoreError {
    StoreError::Io(format!("context {context} is not restored: {refused}"))
}

impl Drop for Healing {
    fn drop(&mut self) {
        if !self.is_in_place {
            self.store.abandon(&self.context, self.place);
        }
    }
}
