//! Rows 5 and 7: nodes in step that hold very many contexts.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use ledger_client::{Append, ContextId, Key};
use ledger_store::{Draft, Ledger};
use serde_json::json;
use tokio::time::sleep;

use crate::cluster::{
    nodes::Nodes,
    nodes::metrics::sum,
    nodes::wire::Proxy,
    run::{Run, say},
    table::Line,
};
use crate::measure;

/// How often nodes compare: the default.
const INTERVAL: Duration = Duration::from_secs(10);
/// Rounds that are counted.
const ROUNDS: u32 = 2;
/// The node that is made to differ.
const DIFFERENT: usize = 2;
/// What names of contexts begin with.
const PREFIX: &str = "many";
/// How often it is looked whether something was found.
const LOOK: Duration = Duration::from_millis(5);
/// How long finding may take.
const TIMEOUT: Duration = Duration::from_mins(1);

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    let contexts = run.args.contexts;
    let mut nodes = Nodes::start(&run.dir.join("many"), &run.args.flags).await?;
    say(&format!("making {contexts} contexts"));
    measure::fill(&nodes.client()?, PREFIX, contexts, contexts, |_| "facts").await?;
    nodes.in_step().await?;
    if run.wants(7) {
        gossip(run, &nodes).await?;
    }
    if run.wants(5) {
        bytes(run, &mut nodes).await?;
        difference(run, &mut nodes).await?;
    }
    Ok(())
}

/// Row 7: what gossip carries for each node.
async fn gossip(run: &mut Run<'_>, nodes: &Nodes) -> anyhow::Result<()> {
    let (mut most, mut fewest) = (0.0_f64, f64::INFINITY);
    for node in 0..nodes.len() {
        let metrics = nodes.node(node).metrics().await?;
        most = most.max(sum(&metrics, "ledger_gossip_keys"));
        fewest = fewest.min(sum(&metrics, "ledger_cluster_slots_owned"));
    }
    ensure!(most > 0.0, "the nodes do not say how many keys gossip carries");
    let contexts = run.args.contexts;
    let line = Line::held(
        format!("gossip at {contexts} contexts: keys of the node with most of them"),
        format!("{most}"),
        "slots owned and a dozen",
        most <= fewest + 12.0,
        json!({ "keys": most, "slots_owned": fewest }),
    );
    run.push(7, &line.beside(format!("slots owned, the node with fewest: {fewest}")));
    Ok(())
}

/// Row 5: what two nodes exchange while nothing happens. Everything that the connections between them carry is counted:
/// HTTP/2, its pings, and what else there may be.
async fn bytes(run: &mut Run<'_>, nodes: &mut Nodes) -> anyhow::Result<()> {
    say("starting the nodes again, with proxies between them");
    let mut proxies = Vec::new();
    nodes.kill_all();
    for node in 0..nodes.len() {
        let proxy = Proxy::start(nodes.node(node).grpc()).await?;
        nodes.node_mut(node).advertised = Some(proxy.address());
        proxies.push(proxy);
    }
    nodes.start_all().await?;
    nodes.spread().await?;
    let counted = || proxies.iter().map(Proxy::bytes).sum::<u64>();
    let up = counted();
    let pairs = nodes.len() * (nodes.len() - 1) / 2;
    // What slots that changed their owners had to say is over when nothing more is said.
    nodes.quiet().await?;
    sleep(INTERVAL).await;
    say(&format!("counting what nodes in step exchange in {:?}", INTERVAL * ROUNDS));
    let before = counted();
    sleep(INTERVAL * ROUNDS).await;
    let exchanged = (counted() - before) as f64 / f64::from(ROUNDS) / pairs as f64;
    let contexts = run.args.contexts;
    let values =
        json!({ "bytes": exchanged, "contexts": contexts, "starting_bytes": up as f64 / pairs as f64 });
    let line = Line::held(
        format!("two nodes in step holding {contexts} contexts: exchanged per round"),
        format!("{exchanged:.0} bytes"),
        "under 4 KiB",
        exchanged > 0.0 && exchanged < 4096.0,
        values,
    );
    let beside =
        format!("until they are in step after a start: {:.0} KiB", up as f64 / pairs as f64 / 1024.0);
    run.push(5, &line.beside(beside));
    nodes.kill_all();
    for node in 0..nodes.len() {
        nodes.node_mut(node).advertised = None;
    }
    Ok(())
}

/// Row 5: one context of them all differs.
async fn difference(run: &mut Run<'_>, nodes: &mut Nodes) -> anyhow::Result<()> {
    say("making one context differ");
    nodes.kill_all();
    let context = ContextId::new(format!("{PREFIX}-{}", run.args.contexts / 3))?;
    let (dir, changed) = (nodes.node(DIFFERENT).data_dir(), context.clone());
    tokio::task::spawn_blocking(move || {
        let ledger = Ledger::open(dir)?;
        let draft =
            Draft { key: Key::new("facts")?, payload: "nobody else has this".into(), metadata: [].into() };
        ledger.append(&changed, draft)?;
        anyhow::Ok(ledger.close()?)
    })
    .await??;
    let others: Vec<_> = (0..nodes.len()).filter(|node| *node != DIFFERENT).collect();
    for node in &others {
        nodes.spawn(*node)?;
    }
    for node in &others {
        nodes.serves(*node).await?;
    }
    nodes.in_step().await?;
    // The others go on without what only this one has.
    let append = Append::new(&context, "facts", "what the others have")?;
    nodes.client()?.append(append).await?;
    nodes.quiet().await?;

    nodes.spawn(DIFFERENT)?;
    nodes.serves(DIFFERENT).await?;
    let start = Instant::now();
    let mut compared_at = None;
    let (found, served) = loop {
        let now = Instant::now();
        let metrics = nodes.node(DIFFERENT).metrics().await?;
        if sum(&metrics, "ledger_cluster_comparisons_total") < 1.0 {
            compared_at = Some(now);
        }
        if sum(&metrics, "ledger_cluster_forks_total") > 0.0 {
            break (compared_at.unwrap_or(start).elapsed(), start.elapsed());
        }
        ensure!(start.elapsed() < TIMEOUT, "the differing context is not found within {TIMEOUT:?}");
        sleep(LOOK).await;
    };
    nodes.in_step().await?;
    let metrics = nodes.node(DIFFERENT).metrics().await?;
    let of = |name| sum(&metrics, name);
    ensure!(
        (of("ledger_cluster_forks_total") - 1.0).abs() < 0.5,
        "{} histories were left, and one was made to differ",
        of("ledger_cluster_forks_total")
    );
    let page = nodes.client()?.get(&context, ledger_client::Selection::default()).collect().await?;
    let newest = page.last().context("the context has no entries")?;
    ensure!(newest.payload == "what the others have", "the history that was left is still shown");
    let served = served.as_secs_f64();
    let (seconds, questions) = (found.as_secs_f64(), of("ledger_cluster_questions_total"));
    let (bytes, micros) =
        (of("ledger_cluster_compared_bytes_total"), of("ledger_cluster_comparing_microseconds_total"));
    let contexts = run.args.contexts;
    let line = Line::held(
        format!("one differing context of {contexts}: found and repaired after the comparison began"),
        format!("{seconds:.2} s"),
        "under 1 s",
        seconds < 1.0,
        json!({ "seconds": seconds, "after_serving_seconds": served, "questions": questions, "bytes": bytes, "comparing_us": micros }),
    );
    let beside = format!(
        "{served:.2} s after the node served; all comparing, that after the repair too: {:.1} ms, {questions} round trips, {:.1} KiB",
        micros / 1000.0,
        bytes / 1024.0
    );
    run.push(5, &line.beside(beside));
    Ok(())
}
