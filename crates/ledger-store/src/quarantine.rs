//! Contexts whose stored rows do not match their hashes. Their reads fail; nothing is deleted.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use ledger_core::ContextId;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::{Damage, StoreError};

/// The damage known, one item for each context.
#[derive(Debug, Default)]
pub(crate) struct Quarantine {
    contexts: Mutex<HashMap<ContextId, Damage>>,
    count: AtomicUsize,
    changed: watch::Sender<usize>,
}

impl Quarantine {
    /// Refuses a damaged context.
    pub(crate) fn check(&self, context: &ContextId) -> Result<(), StoreError> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        match self.contexts.lock().get(context).cloned() {
            None => Ok(()),
            Some(Damage { context, sequence, reason }) => {
                Err(StoreError::Damaged { context, sequence, reason })
            }
        }
    }

    /// Remembers an error's damage, if it is about damage.
    pub(crate) fn note(&self, error: &StoreError) {
        let StoreError::Damaged { context, sequence, reason } = error else { return };
        let mut contexts = self.contexts.lock();
        if !contexts.contains_key(context) {
            tracing::error!(%context, %sequence, %reason, "a context is damaged and quarantined");
            let damage = Damage { context: context.clone(), sequence: *sequence, reason: reason.clone() };
            contexts.insert(context.clone(), damage);
            self.counted(contexts.len());
        }
    }

    /// The context was restored.
    pub(crate) fn lift(&self, context: &ContextId) {
        let mut contexts = self.contexts.lock();
        if contexts.remove(context).is_some() {
            tracing::info!(%context, "a damaged context was restored");
            self.counted(contexts.len());
        }
    }

    /// How many there are, from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<usize> {
        self.changed.subscribe()
    }

    /// All of it.
    pub(crate) fn list(&self) -> Vec<Damage> {
        self.contexts.lock().values().cloned().collect()
    }

    fn counted(&self, count: usize) {
        self.count.store(count, Ordering::Release);
        self.changed.send_replace(count);
    }
}
