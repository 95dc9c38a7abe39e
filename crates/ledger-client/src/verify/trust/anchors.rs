//! The trust anchors of a caller: keys, and checkpoints that it accepted before.

use std::sync::Arc;

use ledger_core::checkpoint::VerifierKey;

use super::known::KnownCheckpoints;
use crate::error::ClientError;

/// What a caller trusts. Cheap to clone; clones share the known checkpoints.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Keys of nodes. Empty: any key, if what it signs continues what is known.
    pub(super) keys: Arc<[VerifierKey]>,
    pub(super) known: KnownCheckpoints,
}

impl Trust {
    /// Trusts what one of these keys has signed: give the key of each node that may answer, and, while a node's
    /// directory is being replaced, of its old one and of its new one. This value remembers what it has accepted as long as it
    /// lives, so that even these nodes cannot take anything back; see [`Trust::kept_in`] for longer.
    ///
    /// # Errors
    ///
    /// [`ClientError::Invalid`] if there is no key.
    pub fn in_keys(keys: impl IntoIterator<Item = VerifierKey>) -> Result<Self, ClientError> {
        let keys: Arc<[_]> = keys.into_iter().collect();
        if keys.is_empty() {
            let message = "no verifier key is given: `ledgerctl checkpoint` shows that of a node".to_owned();
            return Err(ClientError::Invalid(message));
        }
        Ok(Self { keys, known: KnownCheckpoints::in_memory() })
    }

    /// Trusts the first state of each context that it sees, keeps it, and from then on only what continues it.
    pub fn on_first_use(known: KnownCheckpoints) -> Self {
        Self { keys: Arc::default(), known }
    }

    /// Remembers there what it has accepted.
    #[must_use]
    pub fn kept_in(self, known: KnownCheckpoints) -> Self {
        Self { known, ..self }
    }
}
