//! What a node does now and then: it measures its load, and bounds the memory of its histograms.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

use crate::{
    node::Node,
    supervise::{Supervisor, TaskKind},
};

/// How often histograms are emptied into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Starts it.
pub(super) fn start(supervisor: &Supervisor, node: &Arc<Node>) {
    let node = Arc::clone(node);
    supervisor.spawn("upkeep", TaskKind::BestEffort, CancellationToken::new(), move || {
        let node = Arc::clone(&node);
        async move {
            loop {
                // Nobody is told of a failure: a store that cannot say how it is says so to /metrics.
                if let Ok(stats) = node.read(|ledger| Ok(ledger.stats())).await {
                    let load = node.meter.sample(Instant::now(), &stats);
                    if let Some(cluster) = node.mode.cluster() {
                        cluster.membership().set_load(load);
                    }
                }
                tokio::time::sleep(UPKEEP).await;
                node.metrics.upkeep();
            }
        }
    });
}
