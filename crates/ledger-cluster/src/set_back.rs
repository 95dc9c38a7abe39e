//! A node that came back with an older disk than it had: a volume that was restored, say.
//!
//! It has forgotten what it promised and accepted, and what it was counted for as a copy, while the others count on it. A node
//! with a lost disk is no such danger, because a directory gets a storage id when it is formatted, and a member is a node with
//! its storage id. So the directory is given another id: the node joins as a new member, keeps its entries, and learns.

use std::sync::Arc;

use ledger_core::node::StorageId;
use ledger_store::StoreError;

use crate::{membership::SetBack, shared::Shared};

/// The data directory turned out to be older than what the node had said of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Renewed {
    /// It is another one now.
    #[error(
        "the data directory is older than it was ({found}), as a restored volume is: it was given a new identity, {storage}, \
         and keeps its entries; start the node again to join as a new member"
    )]
    As {
        /// How it was found out.
        found: SetBack,
        /// Its id from now on.
        storage: StorageId,
    },
    /// It could not be changed.
    #[error(
        "the data directory is older than it was ({found}), as a restored volume is, and could not be given a new identity \
         ({reason}): see to its disk and start the node again, or start it with an empty directory"
    )]
    Failed {
        /// How it was found out.
        found: SetBack,
        /// Why.
        reason: StoreError,
    },
}

/// Takes part no more, gives the directory a new identity, and tells whoever started the node.
pub(crate) async fn renew(shared: &Arc<Shared>, found: SetBack) {
    let SetBack { opened, heard } = found;
    let (node, storage) = (&shared.me.node, &shared.me.storage);
    tracing::error!(%node, %storage, opened, heard, "this node came back with an older data directory: it has forgotten what it promised; giving the directory a new identity, to join as a new member");
    // Streams end, nothing is asked or claimed any more, and the lanes get no more copies.
    shared.cancel.cancel();
    let ledger = shared.ledger.clone();
    let renewed = tokio::task::spawn_blocking(move || ledger.renew()).await;
    let renewed = renewed.unwrap_or_else(|error| Err(StoreError::Io(error.to_string())));
    let renewed = match renewed {
        Ok(storage) => Renewed::As { found, storage },
        Err(reason) => Renewed::Failed { found, reason },
    };
    tracing::error!("{renewed}");
    shared.renewed.send_replace(Some(renewed));
}
