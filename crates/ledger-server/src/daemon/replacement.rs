//! A member of a cluster whose files are damaged for good has itself replaced.
//!
//! A damaged context is healed in place. A table file that RocksDB cannot compact, or a family with damage that is of no
//! context, stays: the node would go on for ever with less than it should have. So it hands over what it owns, makes sure that the
//! other nodes hold everything, and ends; the next start sets the directory aside and copies what the others hold
//! ([`crate::daemon::opening`]).

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use ledger_cluster::{Cluster, membership::Readiness, ownership::ownership_check};
use ledger_core::{
    node::Member,
    slot::{SLOTS, Slot},
};
use ledger_store::{Ledger, StoreError, limited, want_replacement};
use tokio::time::sleep;

use crate::{
    daemon::{error::DamagedForGood, opening::is_the_first_time},
    node::Node,
};

/// How often the store is asked.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Completes when the node is to end for that: after its files were damaged for as long as is configured.
pub(super) async fn wanted(node: &Node) -> DamagedForGood {
    let after = node.config.replace_damaged.0;
    let cluster = match node.mode.cluster() {
        Some(cluster) if !after.is_zero() => cluster,
        _ => return std::future::pending().await,
    };
    let mut since = None;
    loop {
        sleep(POLL_INTERVAL).await;
        let Some(why) = damage(node).await else {
            since = None;
            continue;
        };
        if since.get_or_insert_with(Instant::now).elapsed() < after {
            continue;
        }
        match prepare(node, cluster, &why).await {
            Ok(()) => return DamagedForGood { why },
            Err(why_not) => {
                limited!(warn, why, why_not, "files are damaged for good, and the node goes on as it is");
                since = None;
            }
        }
    }
}

/// What is damaged of the node's files that nothing heals.
async fn damage(node: &Node) -> Option<String> {
    // Known from memory, but RocksDB's locks may be waited for. A database that is being reopened is not damaged for that.
    let look = |ledger: &Ledger| {
        if let Err(StoreError::FileDamaged(file)) = ledger.writable() {
            return Ok(Some(file));
        }
        if !ledger.stats().compacts {
            return Ok(Some("a table file cannot be compacted".to_owned()));
        }
        let families = ledger.damaged_families();
        Ok(families.first().map(|damage| format!("the family {}: {}", damage.family, damage.reason)))
    };
    // Without an answer it is asked again.
    node.read(look).await.ok().flatten()
}

/// Hands over, and leaves word for the next start. Otherwise why not.
async fn prepare(node: &Node, cluster: &Arc<Cluster>, why: &str) -> Result<(), String> {
    let dir = node.config.data_dir.as_path();
    is_the_first_time(dir)?;
    if cluster.decommission_state().borrow().mode.is_some() {
        return Err("it leaves the cluster for good".to_owned());
    }
    let short = short_without(cluster, node.config.min_copies());
    if short > 0 {
        return Err(format!("{short} slots would have too few copies to go on"));
    }
    let was = cluster.view().borrow().get(&cluster.me().node).map(|me| me.readiness);
    cluster.drain(true).await;
    let left = request_replacement(node, cluster, dir, why).await;
    if left.is_err() && was != Some(Readiness::Draining) {
        cluster.drain(false).await;
    }
    left
}

async fn request_replacement(node: &Node, cluster: &Cluster, dir: &Path, why: &str) -> Result<(), String> {
    let tls = node.config.peer_tls().map_err(|error| error.to_string())?;
    let cluster_id = *node.ledger.cluster_id().borrow();
    ownership_check::wait_until_all_owned(&cluster.me().node, cluster_id, tls.as_ref(), dir).await?;
    let (dir, why) = (dir.to_owned(), why.to_owned());
    let written = ledger_store::blocking::spawn(move || want_replacement(&dir, &why)).await;
    written.map_err(|error| error.to_string())?.map_err(|error| format!("that cannot be noted: {error}"))
}

/// Slots of this node that would have fewer living members than an append needs.
fn short_without(cluster: &Cluster, min_copies: usize) -> usize {
    let (routes, view) = (cluster.routes(), cluster.view());
    let (routes, view) = (routes.borrow(), view.borrow());
    let me = cluster.me();
    let lives = |member: &&Member| *member != me && view.get(&member.node).is_some_and(|node| node.alive);
    let routes = (0..SLOTS).filter_map(Slot::new).filter_map(|slot| routes.get(slot));
    let of_this = routes.filter(|route| route.members.contains(me));
    of_this.filter(|route| route.members.iter().filter(lives).count() < min_copies).count()
}
