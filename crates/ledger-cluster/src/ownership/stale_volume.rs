//! A node that returns with an older disk than it had, such as a restored volume.
//!
//! The node has forgotten what it promised and accepted, and which entries it acknowledged, while other nodes rely on
//! them. A lost disk is less dangerous: formatting gives the directory a new storage id, and a member is a node
//! together with its storage id. So an old directory gets a new id too. The node joins as a new member, keeps its
//! entries, and catches up.
//!
//! The same happens to a directory that returns after an operator declared it lost: see [`super::recovery`].

use std::sync::Arc;

use ledger_core::node::{Member, StorageId};
use ledger_store::{Ledger, StoreError};
use tonic::{
    Status,
    metadata::{BinaryMetadataKey, MetadataValue},
};

use crate::{membership::RolledBack, shared::Shared};

/// Metadata key that carries to a node how far its directory was reported to be durable. The value is sealed with the
/// cluster's key, which authenticates it. Replaying it is harmless, because it remains true.
const HEARD: &str = "converge-set-back-bin";

/// The outcome of re-identifying a directory that is older than the node had announced.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Reidentified {
    /// The directory has a new identity.
    #[error(
        "{found}; it was given a new identity, {storage}, and keeps its entries: start the node again to join as a new member"
    )]
    Stale {
        /// How the rollback was detected.
        found: RolledBack,
        /// Its id from now on.
        storage: StorageId,
    },
    /// Damage destroyed records of what was promised for slots, and the directory has a new identity.
    #[error(
        "the data directory has lost what it promised of {slots} slots, by damage of its disk: it was given a new identity, \
         {storage}, and keeps its entries; start the node again to join as a new member, and look at the disk"
    )]
    RecordsLost {
        /// Number of slots with a lost record.
        slots: usize,
        /// Its id from now on.
        storage: StorageId,
    },
    /// Damage destroyed such records, and re-identifying the directory failed.
    #[error(
        "the data directory has lost what it promised of {slots} slots, by damage of its disk, and could not be given a new \
         identity ({reason}): start the node with an empty directory"
    )]
    RecordsUnreadable {
        /// Number of slots with a lost record.
        slots: usize,
        /// The error.
        reason: StoreError,
    },
    /// The directory was rolled back, and re-identifying it failed.
    #[error(
        "{found}; it could not be given a new identity ({reason}): see to its disk and start the node again, or start it with an \
         empty directory"
    )]
    Failed {
        /// How the rollback was detected.
        found: RolledBack,
        /// The error.
        reason: StoreError,
    },
}

/// Returns the refusal for a node whose directory was rolled back. The node itself may not know: gossip forgets dead
/// nodes sooner than this node does.
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

/// Returns the sealed text. No other sealed text has this many parts, so none can be confused with it.
fn text(member: &Member, heard: u64) -> String {
    format!("set-back/{}/{}/{heard}", member.node, member.storage)
}

/// Returns how far another node had heard that this node's directory was durable, if it refuses this node because of
/// that.
fn heard(shared: &Shared, refusal: &Status) -> Option<u64> {
    let sealed = refusal.metadata().get_bin(HEARD)?.to_bytes().ok()?;
    let said = String::from_utf8(shared.credentials.sealer.read().open(&sealed).ok()?).ok()?;
    let heard = said.rsplit('/').next()?.parse().ok()?;
    (said == text(&shared.me, heard)).then_some(heard)
}

/// Handles a peer's refusal: the peer may remember what this node has forgotten.
pub(crate) fn on_refusal(shared: &Arc<Shared>, refusal: &Status) {
    if let (Some(heard), Some(opened)) = (heard(shared, refusal), shared.config.facts.opened)
        && opened < heard
    {
        // Re-identifying ends the task that was refused, so run it in another one.
        let shared = Arc::clone(shared);
        tokio::spawn(async move { reidentify(&shared, RolledBack { opened, heard }).await });
    }
}

/// Ends this node's part in the cluster, gives the directory a new identity, and notifies the server.
pub(crate) async fn reidentify(shared: &Arc<Shared>, found: RolledBack) {
    if shared.rolled_back.set(found).is_err() {
        // Another task does it already.
        return;
    }
    let RolledBack { opened, heard } = found;
    let (node, storage) = (&shared.me.node, &shared.me.storage);
    tracing::error!(%node, %storage, opened, heard, "{found}: what this node promised holds no longer; giving the directory a new identity, to join as a new member");
    // This ends all streams and requests, and the lanes get no more acknowledgements.
    shared.cancel.cancel();
    let ledger = shared.ledger.clone();
    let renewed = ledger_store::blocking::spawn(move || ledger.reidentify()).await;
    let renewed = renewed.unwrap_or_else(|error| Err(StoreError::Io(error.to_string())));
    let renewed = match renewed {
        Ok(storage) => Reidentified::Stale { found, storage },
        Err(reason) => Reidentified::Failed { found, reason },
    };
    tracing::error!("{renewed}");
    shared.reidentified.send_replace(Some(renewed));
}

/// Gives a new identity to a directory that lost what it promised for slots, so that no node relies on the promises.
/// Blocks.
pub(crate) fn reidentify_forgotten(ledger: &Ledger, slots: usize) -> Reidentified {
    let renewed = match ledger.reidentify() {
        Ok(storage) => Reidentified::RecordsLost { slots, storage },
        Err(reason) => Reidentified::RecordsUnreadable { slots, reason },
    };
    tracing::error!("{renewed}");
    renewed
}

/// Waits until a record turns out to be lost while the node runs, and then ends its part in the cluster.
pub(crate) async fn watch_records(shared: Arc<Shared>) {
    let mut lost = shared.ledger.watch_lost_slots();
    let Ok(slots) = lost.wait_for(|slots| !slots.is_empty()).await.map(|slots| slots.len()) else { return };
    shared.cancel.cancel();
    let ledger = shared.ledger.clone();
    let renewed = ledger_store::blocking::spawn(move || reidentify_forgotten(&ledger, slots)).await;
    let failed = |error: tokio::task::JoinError| Reidentified::RecordsUnreadable {
        slots,
        reason: StoreError::Io(error.to_string()),
    };
    shared.reidentified.send_replace(Some(renewed.unwrap_or_else(failed)));
}
