//! A node that came back with an older disk than it had: a volume that was restored, say.
//!
//! It has forgotten what it promised and accepted, and what it was counted for as a copy, while the others count on it. A node
//! with a lost disk is no such danger, because a directory gets a storage id when it is formatted, and a member is a node with
//! its storage id. So the directory is given another id: the node joins as a new member, keeps its entries, and learns.
//!
//! The same is done with a directory that an operator declared lost and that is back: see `recovering`.

use std::sync::Arc;

use ledger_core::node::{Member, StorageId};
use ledger_store::{Ledger, StoreError};
use tonic::{
    Status,
    metadata::{BinaryMetadataKey, MetadataValue},
};

use crate::{membership::RolledBack, shared::Shared};

/// Carries what is remembered of a directory to a node that has forgotten it: sealed with the cluster's key, as what one node
/// says of another. It may be heard again at any time, because how far a directory was durable stays true.
const HEARD: &str = "converge-set-back-bin";

/// The data directory turned out to be older than what the node had said of it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Reidentified {
    /// It is another one now.
    #[error(
        "{found}; it was given a new identity, {storage}, and keeps its entries: start the node again to join as a new member"
    )]
    Stale {
        /// How it was found out.
        found: RolledBack,
        /// Its id from now on.
        storage: StorageId,
    },
    /// Records of what was promised of slots were damaged, and it is another one now.
    #[error(
        "the data directory has lost what it promised of {slots} slots, by damage of its disk: it was given a new identity, \
         {storage}, and keeps its entries; start the node again to join as a new member, and look at the disk"
    )]
    RecordsLost {
        /// Of how many slots.
        slots: usize,
        /// Its id from now on.
        storage: StorageId,
    },
    /// The same, and it could not be changed.
    #[error(
        "the data directory has lost what it promised of {slots} slots, by damage of its disk, and could not be given a new \
         identity ({reason}): start the node with an empty directory"
    )]
    RecordsUnreadable {
        /// Of how many slots.
        slots: usize,
        /// Why.
        reason: StoreError,
    },
    /// It could not be changed.
    #[error(
        "{found}; it could not be given a new identity ({reason}): see to its disk and start the node again, or start it with an \
         empty directory"
    )]
    Failed {
        /// How it was found out.
        found: RolledBack,
        /// Why.
        reason: StoreError,
    },
}

/// What a node is refused with whose directory is older than what was heard of it. It need not know: gossip forgets the dead
/// sooner than this node does.
pub(crate) fn stale_refusal(shared: &Shared, member: &Member, found: RolledBack) -> Status {
    let mut status =
        Status::failed_precondition(format!("{member} counts for nothing until it joins anew: {found}"));
    let sealed = shared.credentials.sealer.read().seal(text(member, found.heard).as_bytes());
    if let Ok(sealed) = sealed {
        let key = BinaryMetadataKey::from_static(HEARD);
        status.metadata_mut().insert_bin(key, MetadataValue::from_bytes(&sealed));
    }
    status
}

/// No other text that is sealed has so many parts.
fn text(member: &Member, heard: u64) -> String {
    format!("set-back/{}/{}/{heard}", member.node, member.storage)
}

/// How far another node heard that this node's directory was durable, if it refuses it for that.
fn heard(shared: &Shared, refusal: &Status) -> Option<u64> {
    let sealed = refusal.metadata().get_bin(HEARD)?.to_bytes().ok()?;
    let said = String::from_utf8(shared.credentials.sealer.read().open(&sealed).ok()?).ok()?;
    let heard = said.rsplit('/').next()?.parse().ok()?;
    (said == text(&shared.me, heard)).then_some(heard)
}

/// A peer refuses this node: it may know what this node has forgotten.
pub(crate) fn on_refusal(shared: &Arc<Shared>, refusal: &Status) {
    if let (Some(heard), Some(opened)) = (heard(shared, refusal), shared.config.facts.opened)
        && opened < heard
    {
        // Whoever is refused is ended by it.
        let shared = Arc::clone(shared);
        tokio::spawn(async move { reidentify(&shared, RolledBack { opened, heard }).await });
    }
}

/// Takes part no more, gives the directory a new identity, and tells whoever started the node.
pub(crate) async fn reidentify(shared: &Arc<Shared>, found: RolledBack) {
    if shared.rolled_back.set(found).is_err() {
        // Somebody does it.
        return;
    }
    let RolledBack { opened, heard } = found;
    let (node, storage) = (&shared.me.node, &shared.me.storage);
    tracing::error!(%node, %storage, opened, heard, "{found}: what this node promised holds no longer; giving the directory a new identity, to join as a new member");
    // Streams end, nothing is asked or claimed any more, and the lanes get no more copies.
    shared.cancel.cancel();
    let ledger = shared.ledger.clone();
    let renewed = tokio::task::spawn_blocking(move || ledger.reidentify()).await;
    let renewed = renewed.unwrap_or_else(|error| Err(StoreError::Io(error.to_string())));
    let renewed = match renewed {
        Ok(storage) => Reidentified::Stale { found, storage },
        Err(reason) => Reidentified::Failed { found, reason },
    };
    tracing::error!("{renewed}");
    shared.reidentified.send_replace(Some(renewed));
}

/// What a directory promised of slots is lost: it is given a new identity, so that nobody counts on what it forgot. Blocks.
pub(crate) fn reidentify_forgotten(ledger: &Ledger, slots: usize) -> Reidentified {
    let renewed = match ledger.reidentify() {
        Ok(storage) => Reidentified::RecordsLost { slots, storage },
        Err(reason) => Reidentified::RecordsUnreadable { slots, reason },
    };
    tracing::error!("{renewed}");
    renewed
}

/// Waits until a record turns out to be lost while the node runs, and ends its part in the cluster then.
pub(crate) async fn watch_records(shared: Arc<Shared>) {
    let mut lost = shared.ledger.watch_lost_slots();
    let Ok(slots) = lost.wait_for(|slots| !slots.is_empty()).await.map(|slots| slots.len()) else { return };
    shared.cancel.cancel();
    let ledger = shared.ledger.clone();
    let renewed = tokio::task::spawn_blocking(move || reidentify_forgotten(&ledger, slots)).await;
    let failed = |error: tokio::task::JoinError| Reidentified::RecordsUnreadable {
        slots,
        reason: StoreError::Io(error.to_string()),
    };
    shared.reidentified.send_replace(Some(renewed.unwrap_or_else(failed)));
}
