//! Tasks that keep running: each is restarted by itself when it fails or panics (one for one).
//!
//! | state | leaves it when |
//! | --- | --- |
//! | running | the task returns, fails or panics → waiting, or ended if the supervisor stops |
//! | waiting | the back-off has passed → running |
//! | given up | never: an essential task failed [`MAX_FAILURES`] times in a row, and the node ends |

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use ledger_store::limited;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::metrics::Metrics;

/// First pause before a restart; doubles with each failure in a row.
pub const FIRST_BACKOFF: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 100 });
/// Longest pause before a restart.
pub const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// A task that ran so long is healthy: its failures are counted anew.
pub const HEALTHY_AFTER: Duration = Duration::from_mins(1);
/// After so many failures in a row of an essential task the node ends, for the platform to restart it.
pub const MAX_FAILURES: u32 = 8;

/// What a task ends with.
pub type TaskOutcome = anyhow::Result<()>;
/// A task that can be started any number of times.
type Factory = Box<dyn Fn() -> Pin<Box<dyn Future<Output = TaskOutcome> + Send>> + Send + Sync>;

/// Whether the node can do without a task for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    /// If it keeps failing, the node ends.
    Essential,
    /// It is restarted for ever.
    BestEffort,
}

/// Starts tasks and restarts them.
#[derive(Debug, Clone)]
pub struct Supervisor {
    tasks: TaskTracker,
    stop: CancellationToken,
    failed: CancellationToken,
    metrics: Arc<Metrics>,
}

impl Supervisor {
    /// A supervisor without tasks.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            failed: CancellationToken::new(),
            metrics,
        }
    }

    /// Starts a task, and restarts it until `until` is cancelled: then its next end is its last. A task
    /// that should end must watch `until` itself.
    pub fn spawn<F>(
        &self,
        name: &'static str,
        need: TaskKind,
        until: CancellationToken,
        factory: impl Fn() -> F + Send + Sync + 'static,
    ) -> tokio::task::JoinHandle<()>
    where
        F: Future<Output = TaskOutcome> + Send + 'static,
    {
        let factory: Factory = Box::new(move || Box::pin(factory()));
        self.tasks.spawn(self.clone().keep(name, need, until, factory))
    }

    /// Completes when an essential task is given up.
    pub async fn failed(&self) {
        self.failed.cancelled().await;
    }

    /// Ends what still runs, and waits for it.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn keep(self, name: &'static str, need: TaskKind, until: CancellationToken, factory: Factory) {
        let mut failures = 0;
        loop {
            let started = Instant::now();
            let mut task = tokio::spawn(factory());
            let ended = tokio::select! {
                ended = &mut task => ended,
                () = self.stop.cancelled() => {
                    task.abort();
                    let _ = task.await;
                    return;
                }
            };
            if until.is_cancelled() {
                return;
            }
            let reason = match ended {
                Ok(Ok(())) => "it ended".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(error) if error.is_panic() => {
                    let panic = error.into_panic();
                    let text = panic.downcast_ref::<&str>().copied();
                    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
                    format!("it panicked: {}", text.unwrap_or("without a message"))
                }
                Err(_) => return,
            };
            failures = if started.elapsed() >= HEALTHY_AFTER { 1 } else { failures + 1 };
            self.metrics.task_restarted(name);
            if need == TaskKind::Essential && failures >= MAX_FAILURES {
                tracing::error!(task = name, failures, reason, "an essential task keeps failing: giving up");
                self.failed.cancel();
                return;
            }
            let pause = FIRST_BACKOFF.saturating_mul(1 << (failures - 1).min(10)).min(MAX_BACKOFF);
            limited!(
                error,
                task = name,
                failures,
                reason,
                pause_ms = pause.as_millis(),
                "task failed: restarting"
            );
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = until.cancelled() => return,
                () = self.stop.cancelled() => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn supervisor() -> Supervisor {
        Supervisor::new(Arc::new(Metrics::new()))
    }

    #[tokio::test]
    async fn a_task_that_panics_is_restarted_and_others_go_on() {
        let (supervisor, until) = (supervisor(), CancellationToken::new());
        let starts = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&starts);
        let bad = supervisor.spawn("bad", TaskKind::BestEffort, until.clone(), move || {
            let start = counted.fetch_add(1, Ordering::SeqCst);
            async move {
                assert!(start >= 2, "deliberate");
                std::future::pending().await
            }
        });
        let good = supervisor.spawn("good", TaskKind::Essential, until, std::future::pending::<TaskOutcome>);
        while starts.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(!bad.is_finished() && !good.is_finished());
        supervisor.stop().await;
        assert!(bad.is_finished() && good.is_finished());
    }

    #[tokio::test]
    async fn an_essential_task_that_keeps_failing_ends_the_node() {
        let supervisor = supervisor();
        supervisor.spawn("grpc", TaskKind::Essential, CancellationToken::new(), || async {
            anyhow::bail!("no socket")
        });
        supervisor.failed().await;
    }

    #[tokio::test]
    async fn a_task_whose_time_is_over_is_not_restarted() {
        let (supervisor, until) = (supervisor(), CancellationToken::new());
        until.cancel();
        supervisor.spawn("done", TaskKind::Essential, until, || async { Ok(()) }).await.unwrap();
    }
}
