//! Reads, proofs, listings and watchers.

use std::sync::Arc;

use ledger_core::{ContextId, Head, Key, Position, Sequence, Size, clock::LamportClock, slot::Slot};

use super::Ledger;
use crate::{
    Checkpointed, ContextInfo, ContextList, Covered, EntryView, Filter, Page, ProvenConsistency,
    ProvenInclusion, StoreError, Watch, engine::errors::io_error, engine::families, integrity::scrub,
    read::prove,
};

/// A page of a listing reads at most this many heads for each context that it may return …
const HEADS_PER_CONTEXT: usize = 32;
/// … but at least this many.
const LEAST_HEADS: usize = 10_000;

impl Ledger {
    /// Returns the context's head; `None` if it was never written.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the read meets damage; another [`StoreError`] if the database cannot be read, or
    /// is being reopened.
    pub fn head(&self, context: &ContextId) -> Result<Option<Head>, StoreError> {
        self.store
            .quarantine_damage(self.store.database.get().and_then(|db| db.head(context)))
            .map(|found| found.map(|(_, head)| head))
    }

    /// Returns the sequence of the newest entry; 0 if there is none.
    ///
    /// # Errors
    /// As [`Ledger::head`].
    pub fn sequence(&self, context: &ContextId) -> Result<Sequence, StoreError> {
        Ok(self.head(context)?.map_or(Sequence(0), |head| head.size().newest()))
    }

    /// Returns the context's Lamport time; 0 if it was never written.
    ///
    /// # Errors
    /// As [`Ledger::head`].
    pub fn lamport(&self, context: &ContextId) -> Result<LamportClock, StoreError> {
        Ok(self.head(context)?.map_or(LamportClock(0), |head| head.lamport))
    }

    /// Does what [`Ledger::get`] does without copying: calls `visit` with each entry. Entries that it visited before
    /// an error are good.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the read meets damage; another [`StoreError`] if the database cannot be read, or
    /// is being reopened.
    pub fn visit(
        &self,
        context: &ContextId,
        filter: &Filter,
        mut visit: impl FnMut(EntryView<'_>),
    ) -> Result<Covered, StoreError> {
        let mut visit = |view: EntryView<'_>| {
            visit(view);
            Ok(())
        };
        self.store.visit(context, filter, &mut visit)
    }

    /// Reads a page. Every record is checked against its checksum; the scrub checks the content hashes.
    ///
    /// # Errors
    /// As [`Ledger::visit`].
    pub fn get(&self, context: &ContextId, filter: &Filter) -> Result<Page, StoreError> {
        self.store.page(context, filter)
    }

    /// Watches a context: every entry after a sequence, then the live tail.
    pub fn watch(&self, context: &ContextId, key: Option<Key>, after: Sequence) -> Watch {
        Watch::new(Arc::clone(&self.store), context.clone(), key, after)
    }

    /// Returns the position at a size; `None`: the newest. A context that was never written has size 0, the root of
    /// the empty tree and a lineage of zeros.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] if the context never had that size; [`StoreError::Damaged`] if the read meets
    /// damage; another [`StoreError`] if the database cannot be read.
    pub fn checkpoint(&self, context: &ContextId, size: Option<Size>) -> Result<Checkpointed, StoreError> {
        self.store.with_quarantine(context, |db| {
            prove::checkpoint(db, context, size, self.store.shared.options.suite)
        })
    }

    /// Proves that an entry is in the tree of a size; `None`: the newest.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] if the context has no such entry, or never had that size; [`StoreError::Damaged`]
    /// if the read meets damage; another [`StoreError`] if the database cannot be read.
    pub fn prove_inclusion(
        &self,
        context: &ContextId,
        sequence: Sequence,
        size: Option<Size>,
    ) -> Result<ProvenInclusion, StoreError> {
        self.store.with_quarantine(context, |db| prove::inclusion(db, context, sequence, size))
    }

    /// Proves that the tree of one size is a prefix of the tree of another; `None`: the newest.
    ///
    /// # Errors
    /// [`StoreError::OutOfRange`] if the context never had one of the sizes; [`StoreError::Damaged`] if the read
    /// meets damage; another [`StoreError`] if the database cannot be read.
    pub fn prove_consistency(
        &self,
        context: &ContextId,
        old: Size,
        new: Option<Size>,
    ) -> Result<ProvenConsistency, StoreError> {
        self.store.with_quarantine(context, |db| prove::consistency(db, context, old, new))
    }

    /// Checks that the context's history passes through a position.
    ///
    /// # Errors
    /// [`StoreError::HistoryChanged`] if it does not; [`StoreError::Damaged`] if the read meets damage; another
    /// [`StoreError`] if the database cannot be read.
    pub fn check_position(&self, context: &ContextId, position: &Position) -> Result<(), StoreError> {
        self.store.with_quarantine(context, |db| {
            prove::check_position(db, context, position, self.store.shared.options.suite)
        })
    }

    /// Lists contexts in order of their ids: those that begin with `prefix`, after `after`, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read, or is being reopened.
    pub fn contexts(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<ContextInfo>, StoreError> {
        let mut contexts = Vec::new();
        let mut after = after.to_owned();
        while contexts.len() < limit {
            let page = self.list(prefix, &after, limit - contexts.len(), |_| true)?;
            contexts.extend(page.contexts);
            match page.next {
                Some(next) => after = next,
                None => break,
            }
        }
        Ok(contexts)
    }

    /// Lists a page of the contexts of some slots in order of their ids: those that begin with `prefix`, after
    /// `after`, at most `limit` (at least 1). It reads a bounded number of heads, so it may return few or none
    /// although more follow.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be read, or is being reopened.
    pub fn list(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
        slots: impl Fn(Slot) -> bool,
    ) -> Result<ContextList, StoreError> {
        let (mut contexts, mut read) = (Vec::new(), 0);
        let most = limit.saturating_mul(HEADS_PER_CONTEXT).max(LEAST_HEADS);
        let after_key = [after.as_bytes(), &[0]].concat();
        let first = if after.is_empty() { prefix.as_bytes() } else { prefix.as_bytes().max(&after_key) };
        let db = self.store.database.get()?;
        let (mut newest, mut is_whole) = (Vec::new(), true);
        db.scan(families::HEADS, first, &[0xff], true, |key, value| {
            if !key.starts_with(prefix.as_bytes()) {
                return false;
            }
            if contexts.len() >= limit.max(1) || read >= most {
                is_whole = false;
                return false;
            }
            read += 1;
            key.clone_into(&mut newest);
            if let Some((context, place, head)) = scrub::decode_row(&self.store.shared, key, value)
                && slots(place.slot)
                && let Some((_, head)) = db.committed_heads().of(&context, Some((place, head)))
            {
                contexts.push(ContextInfo {
                    size: head.size(),
                    context,
                    lamport: head.lamport,
                    epoch: head.epoch,
                    suite: head.suite,
                    lineage: head.lineage,
                    created_at_ns: head.created_at_ns,
                });
            }
            true
        })
        .map_err(|error| io_error(&error))?;
        let next = (!is_whole).then(|| String::from_utf8_lossy(&newest).into_owned());
        Ok(ContextList { contexts, next })
    }
}
