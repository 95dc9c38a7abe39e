//! Damage, healing and forks.

use std::sync::Arc;

use ledger_core::{
    ContextId,
    digest::TreeHead,
    healing::{HealProof, LocalHead},
    slot::Slot,
};

use super::Ledger;
use crate::{
    Damage, FamilyDamage, Filter, ForkCursor, ForkList, Healing, Page, StoreError, engine::heads::read_head,
    integrity::forks, integrity::scrub,
};

impl Ledger {
    /// Lists forks, of one context or of all, in an arbitrary but stable order: after a cursor, at most `limit` (at
    /// least 1).
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read, or is being reopened.
    pub fn forks(
        &self,
        context: Option<&ContextId>,
        after: Option<ForkCursor>,
        limit: usize,
    ) -> Result<ForkList, StoreError> {
        forks::list(&*self.store.database.get()?, context, after, limit)
    }

    /// Reads a page of a fork's entries, which come after what it shares with the history that took its place. The
    /// page's `latest` is the size that the history had when it was forked off.
    ///
    /// # Errors
    /// [`StoreError::NoSuchFork`] if the context has no fork of that number; another [`StoreError`] if the database
    /// cannot be read.
    pub fn fork_entries(&self, context: &ContextId, fork: u64, filter: &Filter) -> Result<Page, StoreError> {
        forks::entries(&*self.store.database.get()?, context, fork, filter)
    }

    /// Lists the damage that reads and the scrub found so far.
    pub fn damage(&self) -> Vec<Damage> {
        self.store.shared.quarantine.list()
    }

    /// Lists the damage found so far that belongs to no context.
    pub fn damaged_families(&self) -> Vec<FamilyDamage> {
        self.store.shared.quarantine.families()
    }

    /// Returns whether a context is known to be damaged.
    pub fn is_damaged(&self, context: &ContextId) -> bool {
        self.store.shared.quarantine.check(context).is_err()
    }

    /// Checks everything that is stored of a context now: quarantines damage, which [`Ledger::damage`] then lists.
    /// Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read, or is being reopened.
    pub fn scrub(&self, context: &ContextId) -> Result<(), StoreError> {
        scrub::check(&self.store.database, &self.store.shared, context)
    }

    /// Reads the head of a damaged context ([`Ledger::damage`]): how far its history goes, as far as it is committed.
    /// Blocks.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read. A head that cannot be read is no error.
    pub fn damaged_head(&self, context: &ContextId) -> Result<LocalHead, StoreError> {
        let store = &self.store;
        if store.shared.quarantine.check(context).is_ok() {
            return Ok(LocalHead::NotDamaged);
        }
        let db = store.database.get()?;
        match read_head(&db, context) {
            // Other nodes have at least the committed entries.
            Ok(row) => Ok(match db.committed_heads().of(context, row) {
                Some((_, head)) if head.size().0 > 0 => LocalHead::Committed(head.tree_head()),
                _ => LocalHead::NothingCommitted,
            }),
            Err(StoreError::Damaged { .. }) => Ok(LocalHead::Unreadable),
            Err(error) => Err(error),
        }
    }

    /// Begins to restore a damaged context up to a tree head. `proof` decides whether the history is installed in the
    /// end. Returns `None` if there is nothing to restore (any more). Blocks.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the head is to prove it and cannot be read; another [`StoreError`] if the database
    /// cannot be read or written.
    pub fn begin_healing(
        &self,
        context: &ContextId,
        proof: HealProof,
        goal: TreeHead,
    ) -> Result<Option<Healing>, StoreError> {
        Healing::begin(Arc::clone(&self.store), context, proof, goal)
    }

    /// Returns whether a context of a slot is known to be damaged, so that this node's copy of the slot is
    /// incomplete.
    pub fn is_slot_damaged(&self, slot: Slot) -> bool {
        self.store.shared.quarantine.has(slot)
    }

    /// Watches the number of damaged contexts.
    pub fn watch_damage(&self) -> tokio::sync::watch::Receiver<usize> {
        self.store.shared.quarantine.watch()
    }
}
