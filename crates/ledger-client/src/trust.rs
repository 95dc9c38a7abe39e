//! What a caller trusts of a ledger, and checkpoints that were held against it.
//!
//! A node's word proves nothing of itself: whoever can answer in its place can make up roots, and a node can show one
//! history to one caller and another to the next. So a [`TrustedCheckpoint`] is made in this module only, and only
//! when what it states was held against
//!
//! | the caller has | what is checked | what it rests on |
//! | --- | --- | --- |
//! | verifier keys ([`Trust::in_keys`]) | the checkpoint is signed by one of them, and is of this cluster and context | who gave the caller the keys |
//! | a checkpoint that it kept ([`KnownCheckpoints`]) | the one is proven to be the beginning of the other | the first one, which was taken on trust |
//!
//! Both can be had at once. [`Basis`] says which it was, so that a first use is never taken for more.

mod checkpoint;
mod file;
mod known;

use std::sync::Arc;

use ledger_core::checkpoint::VerifierKey;

use crate::ClientError;

pub use self::{
    checkpoint::{Basis, TrustedCheckpoint},
    known::KnownCheckpoints,
};

/// What a caller trusts. Cheap to clone; clones share what they learn.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Keys of nodes. Empty: any key, if what it signs continues what is known.
    keys: Arc<[VerifierKey]>,
    known: KnownCheckpoints,
}

impl Trust {
    /// Trusts what one of these keys has signed: give the key of each node that may answer, and, while a node's
    /// directory is being replaced, of its old one and of its new one. What was seen is remembered as long as this value
    /// lives, so that even these nodes cannot take anything back; see [`Trust::kept_in`] for longer.
    pub fn in_keys(keys: impl IntoIterator<Item = VerifierKey>) -> Result<Self, ClientError> {
        let keys: Arc<[_]> = keys.into_iter().collect();
        if keys.is_empty() {
            let message = "no verifier key is given: `ledgerctl checkpoint` shows that of a node".to_owned();
            return Err(ClientError::Invalid(message));
        }
        Ok(Self { keys, known: KnownCheckpoints::in_memory() })
    }

    /// Trusts the first state of each context that is seen, keeps it, and from then on only what continues it.
    pub fn on_first_use(known: KnownCheckpoints) -> Self {
        Self { keys: Arc::default(), known }
    }

    /// Remembers what was seen there.
    #[must_use]
    pub fn kept_in(self, known: KnownCheckpoints) -> Self {
        Self { known, ..self }
    }
}
