//! Opening the data directory. A member's that lost something, or is damaged for good, is set aside, once, if the other nodes
//! hold everything.

use std::path::Path;

use ledger_cluster::ownership::ownership_check;
use ledger_core::node::NodeId;
use ledger_store::{Ledger, Options, StoreError, set_aside, set_aside_before, wants_replacement};

use crate::{daemon::error::StartError, settings::config::Config};

/// Opens the ledger of a node.
///
/// # Errors
/// Why the directory cannot be opened, and why it was not set aside.
pub(super) async fn open(config: &Config, options: Options) -> Result<Ledger, StartError> {
    let dir = config.data_dir.as_path();
    if let (Ok(Some(why)), Some(node)) = (wants_replacement(dir), &config.node_id)
        && let Err(why_not) = replace(config, node, &why).await
    {
        tracing::warn!(
            why,
            why_not,
            "the data directory was to be set aside for a new one, and is opened as it is"
        );
    }
    let ledger = match (try_open(dir, options.clone()).await, &config.node_id) {
        (Err(StartError::Store(StoreError::NotWhole { path, reason })), Some(node)) => {
            tracing::error!(path, reason, "the data directory cannot be opened");
            let refused = |why_not: String| {
                let reason = format!("{reason}. It was not set aside for a new one: {why_not}");
                StartError::Store(StoreError::NotWhole { path, reason })
            };
            match replace(config, node, &reason).await {
                Ok(()) => try_open(dir, options).await?,
                Err(why_not) => return Err(refused(why_not)),
            }
        }
        (opened, _) => opened?,
    };
    if let Ok(Some(kept)) = set_aside_before(dir) {
        let path = kept.path.display();
        tracing::warn!(%path, why = kept.why, "a data directory that could not be opened is kept: remove it when it is not needed");
    }
    Ok(ledger)
}

async fn try_open(dir: &Path, options: Options) -> Result<Ledger, StartError> {
    let dir = dir.to_owned();
    let opened = ledger_store::blocking::spawn(move || Ledger::open_with(dir, options)).await;
    Ok(opened.map_err(|error| StartError::Services(error.to_string()))??)
}

/// Sets a directory aside, so that the node joins as a new one. Otherwise why not.
async fn replace(config: &Config, node: &str, reason: &str) -> Result<(), String> {
    let dir = config.data_dir.as_path();
    is_the_first_time(dir)?;
    let node = NodeId::new(node).map_err(|error| error.to_string())?;
    let tls = config.peer_tls().map_err(|error| error.to_string())?;
    let others = ownership_check::wait_until_all_owned(&node, None, tls.as_ref(), dir).await?;
    let (below, why) = (dir.to_owned(), reason.to_owned());
    let kept = ledger_store::blocking::spawn(move || set_aside(&below, &why))
        .await
        .map_err(|error| error.to_string())?;
    let kept = kept.map_err(|error| format!("it cannot be moved: {error}"))?;
    tracing::error!(
        path = %kept.path.display(),
        ?others,
        "the data directory is set aside: the other nodes hold everything, and this one joins as a new member"
    );
    Ok(())
}

/// Whether nothing is set aside in a directory yet. Otherwise why it is not done again.
pub(super) fn is_the_first_time(dir: &Path) -> Result<(), String> {
    match set_aside_before(dir) {
        Ok(None) => Ok(()),
        Ok(Some(before)) => Err(format!(
            "that was done before ({}, which is kept in {}), so it may be the disk: put the node on another one, or remove what is \
             kept to have it done again",
            before.why,
            before.path.display()
        )),
        Err(error) => Err(format!("whether that was done before cannot be read: {error}")),
    }
}
