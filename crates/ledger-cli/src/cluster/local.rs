//! `ledgerctl cluster local`: a real cluster of processes on this machine.
//!
//! | phase | leaves it when |
//! | --- | --- |
//! | starting | every node serves → settling; one ends → stopping |
//! | settling | every slot has an owner, or that took too long → running |
//! | running | interrupted, or the last node ended → stopping |
//! | stopping | all nodes ended; who takes too long is killed |

mod guide;
mod nodes;
mod plan;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use indicatif::ProgressBar;
use ledger_client::{Client, Options};
use ledger_core::slot::SLOTS;
use ledger_proto::ledger::v1::LocateRequest;
use rustix::process::Signal;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::{
    args::Local,
    output::{Output, complain},
    progress,
};
use nodes::Nodes;
use plan::Plan;

/// How long nodes may take until they serve.
const START: Duration = Duration::from_secs(30);
/// How long slots may take to find owners before the user is told how it stands.
const SETTLE: Duration = Duration::from_mins(1);
/// How long nodes may take to stop before they are killed: longer than they wait for their clients.
const STOP: Duration = Duration::from_secs(15);
/// How often it is looked whether something came about.
const LOOK: Duration = Duration::from_millis(50);

pub(super) async fn run(command: Local, output: &Output) -> anyhow::Result<()> {
    let ledgerd =
        std::env::current_exe().context("the path of ledgerctl is not known")?.with_file_name("ledgerd");
    anyhow::ensure!(
        ledgerd.exists(),
        "{} is missing: ledgerd is started from beside ledgerctl, put both in one directory",
        ledgerd.display()
    );
    let mut signals = Signals::listen()?;
    let temporary = match &command.dir {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("ledger-cluster-").tempdir()?),
    };
    let dir = match (&command.dir, &temporary) {
        (Some(dir), _) => dir.as_path(),
        (None, Some(dir)) => dir.path(),
        (None, None) => Path::new("."),
    };
    let plan = Plan::make(&ledgerd, dir, &command)?;
    let bar = progress::slots("have an owner");
    let mut nodes = Nodes::start(&plan, &bar)?;
    let ran = tokio::select! {
        ran = serve(&plan, &mut nodes, &bar, output) => ran,
        () = signals.next() => Ok(()),
    };
    bar.finish_and_clear();
    stop(&mut nodes, &mut signals).await;
    if let Some(dir) = temporary {
        let path = dir.path().to_owned();
        dir.close().with_context(|| format!("{} cannot be removed", path.display()))?;
    }
    ran
}

/// Starts the cluster, says how to use it, and says when a node ends. Returns when none is left.
async fn serve(plan: &Plan, nodes: &mut Nodes, bar: &ProgressBar, output: &Output) -> anyhow::Result<()> {
    let started = Instant::now();
    while !nodes.all_serve() {
        tokio::select! {
            ended = nodes.next_end() => {
                anyhow::bail!("{ended} before it served: see what it printed above");
            }
            () = sleep(LOOK) => {}
        }
        anyhow::ensure!(started.elapsed() < START, "the nodes do not serve after {} s", START.as_secs());
    }
    let settled = tokio::select! {
        settled = timeout(SETTLE, settle(nodes.endpoints(), bar)) => settled.is_ok(),
        ended = nodes.next_end() => anyhow::bail!("{ended} before the slots had owners"),
    };
    bar.finish_and_clear();
    if !settled {
        let text = format!("after {} s some slots have no owner yet; the nodes run on", SETTLE.as_secs());
        complain(&format!("ledgerctl: {text}: look at `cluster status`"));
    }
    output.result(&nodes.object("ready", &plan.dir), || guide::text(plan, nodes))?;
    while nodes.any_runs() {
        let ended = nodes.next_end().await;
        let object = json!({
            "event": "ended", "node_id": ended.name, "pid": ended.pid, "exit_code": ended.code, "signal": ended.signal,
        });
        output.result(&object, || format!("{ended}"))?;
    }
    anyhow::bail!("no node is left")
}

/// Waits until every slot has an owner. Asks one node after the other.
async fn settle(endpoints: Vec<String>, bar: &ProgressBar) {
    let clients: Vec<_> = endpoints.iter().filter_map(|endpoint| client(endpoint)).collect();
    for client in clients.iter().cycle() {
        if let Ok(answer) = client.cluster_service().locate(LocateRequest::default()).await {
            let locations = answer.into_inner().locations;
            let owned = locations.iter().filter(|location| !location.owner.is_empty()).count();
            bar.set_position(owned as u64);
            if owned == usize::from(SLOTS) {
                return;
            }
        }
        sleep(LOOK).await;
    }
}

fn client(endpoint: &str) -> Option<Client> {
    Client::connect(endpoint, &Options::default()).ok()
}

/// Asks all nodes to stop, and kills those that take too long, or at once if asked again.
async fn stop(nodes: &mut Nodes, signals: &mut Signals) {
    if !nodes.any_runs() {
        return;
    }
    complain("ledgerctl: stopping the nodes");
    nodes.send(Signal::TERM);
    let ended = async {
        while nodes.any_runs() {
            let ended = nodes.next_end().await;
            if ended.code != Some(0) {
                complain(&format!("ledgerctl: {ended}"));
            }
        }
    };
    tokio::select! {
        () = ended => return,
        () = sleep(STOP) => complain(&format!("ledgerctl: not stopped within {} s: killing them", STOP.as_secs())),
        () = signals.next() => complain("ledgerctl: asked again: killing the nodes"),
    }
    nodes.send(Signal::KILL);
    while nodes.any_runs() {
        nodes.next_end().await;
    }
}

/// What asks to stop: Ctrl-C, SIGTERM, or the terminal closing.
struct Signals(mpsc::Receiver<()>);

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let (sender, receiver) = mpsc::channel(4);
        for kind in [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()] {
            let (mut signals, sender) = (signal(kind)?, sender.clone());
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    // Beyond a few nobody counts.
                    let _ = sender.try_send(());
                }
            });
        }
        Ok(Self(receiver))
    }

    async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}
