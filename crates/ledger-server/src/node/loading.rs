//! Loads at the same time.

use std::sync::Arc;

use ledger_store::{LOAD, budget::Share};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout_at,
};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::{grpc::call, grpc::status::Refusal, limits};

/// Loads that may run at the same time: each takes memory, and a thread now and then.
#[derive(Debug)]
pub struct Loads {
    turns: Arc<Semaphore>,
    most: usize,
}

impl Loads {
    /// As many as half of the memory for loads is enough for: the other half is for large entries.
    pub fn within(share: &Share) -> Self {
        let (least, most) = limits::LOADS;
        let most = (share.capacity() / (2 * LOAD)).clamp(least, most);
        Self { turns: Arc::new(Semaphore::new(most)), most }
    }

    /// How many run.
    pub fn running(&self) -> usize {
        self.most - self.turns.available_permits()
    }

    /// A turn for a load, until it is dropped. Refuses after a while: what came of the load is held meanwhile.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` after [`LOAD_WAIT`](limits::LOAD_WAIT), or at the deadline of the call; `UNAVAILABLE` when the node is shutting down.
    pub async fn turn(&self, draining: &CancellationToken) -> Result<OwnedSemaphorePermit, Refusal> {
        let until = call::deadline_within(limits::LOAD_WAIT);
        let turn = tokio::select! {
            biased;
            () = draining.cancelled() => return Err(Refusal::shutting_down()),
            turn = timeout_at(until, Arc::clone(&self.turns).acquire_owned()) => turn,
        };
        if let Ok(turn) = turn {
            return turn.map_err(|_| Refusal::shutting_down());
        }
        let message = format!(
            "{} loads run on this node, as many as it runs at the same time: try again when one of them has ended",
            self.most
        );
        Err(Refusal { retry: Some(limits::RETRY_LOAD), ..Refusal::new(Code::ResourceExhausted, message) })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_load_that_waits_for_its_turn_is_refused_in_time_and_learns_why() {
        let (loads, draining) = (Loads::within(&Share::new("loads", 12 << 20)), CancellationToken::new());
        let turns = [loads.turn(&draining).await.unwrap(), loads.turn(&draining).await.unwrap()];
        let third = loads.turn(&draining).await.unwrap();
        assert_eq!(loads.running(), 3);
        let began = Instant::now();
        let refusal = loads.turn(&draining).await.unwrap_err();
        assert_eq!(began.elapsed(), limits::LOAD_WAIT);
        assert_eq!((refusal.code, refusal.retry), (Code::ResourceExhausted, Some(limits::RETRY_LOAD)));
        assert!(refusal.message.starts_with("3 loads run on this node"), "{}", refusal.message);
        // Whoever waits gets the turn of the first that ends.
        let ends = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(third);
        };
        let (turn, ()) = tokio::join!(loads.turn(&draining), ends);
        drop((turn.unwrap(), turns));
        assert_eq!(loads.running(), 0);
        // A node that stops keeps nobody waiting.
        let _all = [loads.turn(&draining).await, loads.turn(&draining).await, loads.turn(&draining).await];
        draining.cancel();
        let refusal = timeout(Duration::from_secs(1), loads.turn(&draining)).await.unwrap().unwrap_err();
        assert_eq!(refusal.code, Code::Unavailable);
    }
}
