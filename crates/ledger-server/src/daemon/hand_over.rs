//! A node that stops hands over what it owns, while it still serves.

use std::time::Duration;

use ledger_cluster::{
    Cluster,
    membership::{Readiness, ViewMember},
    ownership::routes::Routes,
};

/// Hands over what the node owns, for at most `grace`. Whoever writes hears of a new owner, and of no failure.
pub(super) async fn hand_over(cluster: &Cluster, grace: Duration) {
    cluster.drain(true).await;
    let (mut routes, mut view) = (cluster.routes(), cluster.view());
    let me = &cluster.me().node;
    let takes_over = |other: &ViewMember| {
        other.alive
            && other.node_id != *me
            && matches!(other.readiness, Readiness::Joining | Readiness::Ready)
    };
    let handed_over = async {
        // Whoever takes a slot may need this node's copy until it owns it.
        let is_left = |routes: &Routes| routes.owned() + routes.unowned() > 0;
        while is_left(&routes.borrow_and_update()) && view.borrow_and_update().members.iter().any(takes_over)
        {
            tokio::select! {
                Ok(()) = routes.changed() => {}
                Ok(()) = view.changed() => {}
                else => return,
            }
        }
    };
    let in_time = tokio::time::timeout(grace, handed_over).await.is_ok();
    let owned = cluster.routes().borrow().owned();
    match owned {
        0 => tracing::info!("handed over"),
        _ if in_time => tracing::info!(owned, "there is no other node to hand over to"),
        _ => tracing::warn!(owned, "some slots were not handed over in time: others will take them over"),
    }
}
