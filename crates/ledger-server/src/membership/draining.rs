//! A node hands over all of its slots and owns no more, or owns slots again.

use std::{sync::Arc, time::Duration};

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use ledger_cluster::ownership::routes::Routes;
use ledger_core::slot::SLOTS;
use ledger_proto::ledger::v1::DrainProgress;
use tokio::{sync::watch, time::timeout};
use tonic::Code;

use crate::{grpc::status::Refusal, node::Node, node::mode::NodeMode};

/// How long a drain waits for others to own what was handed over.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);

impl Node {
    /// Hands over all slots and owns no more, or owns slots again: how many it owns, until there are none.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION`: there is no other node, or the node leaves the cluster for good.
    pub async fn drain(
        &self,
        resume: bool,
    ) -> Result<BoxStream<'static, Result<DrainProgress, Refusal>>, Refusal> {
        match &self.mode {
            NodeMode::Standalone(_) if resume => {
                Ok(stream::iter([Ok(DrainProgress { owned: SLOTS.into() })]).boxed())
            }
            NodeMode::Standalone(_) => {
                let message = "this node is by itself: there is no other node to hand its slots to; to stop it, stop \
                               the process";
                Err(Refusal::new(Code::FailedPrecondition, message))
            }
            NodeMode::Clustered(cluster)
                if resume && cluster.decommission_state().borrow().mode.is_some() =>
            {
                let message = "this node leaves the cluster for good: to have it stay, cancel that with `ledgerctl cluster \
                               decommission NODE --cancel`";
                Err(Refusal::new(Code::FailedPrecondition, message))
            }
            NodeMode::Clustered(cluster) => {
                cluster.drain(!resume).await;
                Ok(left(cluster.routes(), resume).map(Ok).boxed())
            }
        }
    }
}

/// How many slots the node owns, whenever that changes, until there are none; of one that resumes, once. Slots
/// that nobody owns for a moment, because another node is taking them over, are waited for, but not for long.
fn left(routes: watch::Receiver<Arc<Routes>>, resume: bool) -> impl Stream<Item = DrainProgress> + Send {
    stream::unfold(Some((routes, None)), move |state| async move {
        let (mut routes, last) = state?;
        let owned = loop {
            let owned = routes.borrow_and_update().owned();
            if last != Some(owned) {
                break owned;
            }
            routes.changed().await.ok()?;
        };
        let is_last = resume || owned == 0;
        if is_last && !resume {
            // Whoever goes on without them finds out by itself.
            let _ = timeout(HANDOVER_TIMEOUT, routes.wait_for(|routes| routes.unowned() == 0)).await;
        }
        let progress = DrainProgress { owned: u32::try_from(owned).unwrap_or(u32::MAX) };
        Some((progress, (!is_last).then_some((routes, Some(owned)))))
    })
}
