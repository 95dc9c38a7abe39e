//! Row 6: two histories of one very long context part, and nobody knows where.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use ledger_client::{ContextId, Key};
use ledger_store::{Append, Draft, Ledger};
use serde_json::json;
use tokio::sync::mpsc;

use crate::cluster::{
    nodes::Nodes,
    nodes::metrics::sum,
    run::{Run, say},
    streams,
    table::Line,
};

/// The node whose history differs.
const DIFFERENT: usize = 2;
/// Entries handed over at once.
const BATCH: u64 = 4096;
/// Entries handed over and not yet stored.
const WINDOW: u64 = 64 * 1024;
/// Bytes of each payload: what matters here is how many there are.
const PAYLOAD: usize = 16;

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    let entries = run.args.depth;
    // Within the last tenth, so that little has to be fetched afterwards. The search takes as long everywhere.
    let common = rand::random_range(entries * 9 / 10..entries);
    let context = ContextId::new("long")?;
    let mut nodes = Nodes::prepare(&run.dir.join("search"), &run.args.flags)?;
    say(&format!("writing a context of {entries} entries"));
    write(&nodes.node(0).data_dir(), &context, common).await?;
    for node in 1..nodes.len() {
        copy(&nodes.node(0).data_dir(), &nodes.node(node).data_dir())?;
    }
    say("forming a cluster that holds it");
    nodes.start_all().await?;
    nodes.kill_all();
    say(&format!("writing two histories that part after entry {common}"));
    for node in [0, DIFFERENT] {
        write(&nodes.node(node).data_dir(), &context, entries - common).await?;
    }
    say("starting those that have one of them");
    for node in (0..nodes.len()).filter(|node| *node != DIFFERENT) {
        nodes.spawn(node)?;
        nodes.serves(node).await?;
    }
    nodes.in_step().await?;
    say("starting the one that has the other");
    nodes.spawn(DIFFERENT)?;
    nodes.serves(DIFFERENT).await?;
    nodes.in_step().await?;
    let metrics = nodes.node(DIFFERENT).metrics().await?;
    let of = |name| sum(&metrics, name);
    ensure!((of("ledger_cluster_forks_total") - 1.0).abs() < 0.5, "the history that differs was not left");
    let forks = nodes.node(DIFFERENT).client()?.forks(Some(&context), None, 10).await?;
    let fork = forks.0.first().context("there is no fork")?;
    ensure!(fork.common.0 == common, "the histories part after {common}, and {} was found", fork.common);
    let (questions, micros) =
        (of("ledger_cluster_questions_total"), of("ledger_cluster_comparing_microseconds_total"));
    let line = Line::held(
        format!("difference at an unknown place in a context of {entries} entries"),
        format!("{questions} round trips"),
        "under 30",
        questions < 30.0,
        json!({ "questions": questions, "common": common, "comparing_us": micros }),
    );
    run.push(6, &line.beside(format!("comparing took {:.1} ms", micros / 1000.0)));
    Ok(())
}

/// Appends to a context of a data directory that no node has open.
async fn write(dir: &Path, context: &ContextId, entries: u64) -> anyhow::Result<()> {
    let ledger = Ledger::open(dir)?;
    let (results, mut stored) = mpsc::unbounded_channel();
    let draft = Draft { key: Key::new("facts")?, payload: streams::payload(PAYLOAD), metadata: [].into() };
    let append = Append::new(context.clone(), draft);
    let (mut sent, mut done) = (0, 0);
    while done < entries {
        while sent < entries && sent - done < WINDOW {
            let batch =
                (sent..entries.min(sent + BATCH)).map(|tag| (tag, append.clone())).collect::<Vec<_>>();
            sent += batch.len() as u64;
            ledger.submit(batch, ledger_store::AppendConditions::default(), results.clone()).await?;
        }
        let batch = stored.recv().await.context("the ledger closed")?;
        done += batch.results.len() as u64;
        for result in batch.results {
            result.result?;
        }
    }
    tokio::task::spawn_blocking(move || ledger.close()).await??;
    Ok(())
}

/// Makes another data directory with the same content. Table files never change: both may have the same.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, target): (PathBuf, _) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&path, &target)?;
        } else if path.extension().is_some_and(|extension| extension == "sst") {
            fs::hard_link(&path, &target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}
