//! What is read again when the node is told to (SIGHUP): the cluster's keys, for a rotation without a restart.

use std::{path::PathBuf, sync::Arc};

use ledger_cluster::membership::seal::Keyring;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    node::Node,
    settings::cluster::read_keys,
    supervise::{Supervisor, TaskKind, TaskOutcome},
};

/// Exchanges the cluster's keys when the node is told to read them again.
///
/// # Errors
/// The signal cannot be listened for.
pub(super) fn start(supervisor: &Supervisor, node: &Arc<Node>) -> std::io::Result<()> {
    let (Some(path), Some(cluster)) = (&node.config.cluster_key_file, node.mode.cluster()) else {
        return ignore(supervisor, node.draining.clone());
    };
    let cluster = Arc::clone(cluster);
    let set = move |keyring| cluster.set_keyring(keyring);
    watch(supervisor, path.clone(), node.draining.clone(), set)
}

/// Reads the file again at every SIGHUP and hands its keys to `set`; a file that cannot be used changes
/// nothing. From the return on, the signal no longer ends the process.
fn watch(
    supervisor: &Supervisor,
    path: PathBuf,
    stop: CancellationToken,
    set: impl Fn(Keyring) + Send + Sync + 'static,
) -> std::io::Result<()> {
    // Registered before the task runs, for a signal that comes at once.
    drop(signal(SignalKind::hangup())?);
    let set = Arc::new(set);
    supervisor.spawn("cluster keys", TaskKind::BestEffort, stop.clone(), move || {
        let (path, set, stop) = (path.clone(), Arc::clone(&set), stop.clone());
        async move {
            let hangups = signal(SignalKind::hangup())?;
            stop.run_until_cancelled(reload(hangups, path, &*set)).await;
            TaskOutcome::Ok(())
        }
    });
    Ok(())
}

/// Lets the signal change nothing, for a node that has nothing to read again: by default it would end the process.
fn ignore(supervisor: &Supervisor, stop: CancellationToken) -> std::io::Result<()> {
    drop(signal(SignalKind::hangup())?);
    supervisor.spawn("hangups", TaskKind::BestEffort, stop.clone(), move || {
        let stop = stop.clone();
        async move {
            let mut hangups = signal(SignalKind::hangup())?;
            let ignoring = async {
                while hangups.recv().await.is_some() {
                    tracing::info!("SIGHUP: there are no cluster keys to read again, nothing changes");
                }
            };
            stop.run_until_cancelled(ignoring).await;
            TaskOutcome::Ok(())
        }
    });
    Ok(())
}

async fn reload(mut hangups: Signal, path: PathBuf, set: &(impl Fn(Keyring) + Sync)) {
    while hangups.recv().await.is_some() {
        let reading = path.clone();
        let read = ledger_store::blocking::spawn(move || read_keys(&reading)).await;
        match read {
            Ok(Ok(keyring)) => {
                tracing::info!(file = %path.display(), ?keyring, "the cluster's keys were read again");
                set(keyring);
            }
            Ok(Err(error)) => tracing::error!(%error, "the cluster's keys stay as they were"),
            Err(error) => tracing::error!(%error, "the cluster's keys stay as they were"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{process::Command, time::Duration};

    use tokio::{sync::mpsc, time::timeout};

    use super::*;
    use crate::metrics::Metrics;

    fn hang_up() {
        let pid = std::process::id().to_string();
        assert!(Command::new("kill").args(["-HUP", &pid]).status().unwrap().success());
    }

    #[tokio::test]
    async fn keys_are_read_again_at_a_signal_and_wrong_ones_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        let keys = |count: usize| (0..count).map(|n| format!("{n:064x}")).collect::<Vec<_>>().join("\n");
        let supervisor = Supervisor::new(Arc::new(Metrics::new()));
        let (stop, (sender, mut set)) = (CancellationToken::new(), mpsc::unbounded_channel());
        std::fs::write(&path, keys(1)).unwrap();
        watch(&supervisor, path.clone(), stop.clone(), move |keyring| {
            sender.send(format!("{keyring:?}")).unwrap();
        })
        .unwrap();
        // A signal before the task listens is lost.
        let first = loop {
            hang_up();
            if let Ok(first) = timeout(Duration::from_millis(100), set.recv()).await {
                break first.unwrap();
            }
        };
        assert_eq!(first, "Keyring(1 keys)");
        for (text, count) in [("not a key".to_owned(), None), (keys(3), Some(3))] {
            std::fs::write(&path, text).unwrap();
            hang_up();
            let Some(count) = count else { continue };
            let expected = format!("Keyring({count} keys)");
            while timeout(Duration::from_secs(20), set.recv()).await.unwrap().unwrap() != expected {}
        }
        stop.cancel();
        supervisor.stop().await;
    }
}
