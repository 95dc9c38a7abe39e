//! Row 4: a node that was away catches up, on an idle cluster and under load.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tokio::time::sleep;

use crate::cluster::{
    nodes::metrics::sum,
    nodes::{Nodes, Standing},
    run::{Run, say},
    streams::Pump,
    table::Line,
};
use crate::measure;

/// Contexts that are appended to.
const CONTEXTS: u64 = 64;
/// The node that is away.
const AWAY: usize = 2;
/// How often it is looked how far the node is.
const LOOK: Duration = Duration::from_millis(20);
/// How long after a node is in sync the rate is measured again.
const SETTLE: Duration = Duration::from_secs(1);
/// How long catching up may take.
const TIMEOUT: Duration = Duration::from_mins(2);

/// How a node caught up.
#[derive(Debug)]
struct CaughtUp {
    /// When it was first seen to compare.
    begin: Instant,
    /// When its owners first said that it is in sync.
    end: Instant,
    /// Entries that it fetched.
    fetched: f64,
    /// Entries acknowledged to clients when it began, and when it ended.
    acknowledged: (u64, u64),
}

impl CaughtUp {
    fn seconds(&self) -> f64 {
        (self.end - self.begin).as_secs_f64()
    }
}

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    idle(run).await?;
    under_load(run).await
}

async fn idle(run: &mut Run<'_>) -> anyhow::Result<()> {
    let mut nodes = Nodes::start(&run.dir.join("catch-up"), &run.args.flags).await?;
    let client = nodes.client()?;
    nodes.stop(AWAY).await?;
    say(&format!("appending {} entries while a node is away", run.args.entries));
    measure::fill(&client, "behind", CONTEXTS, run.args.entries, |_| "facts").await?;
    nodes.quiet().await?;
    say("the node catches up");
    nodes.spawn(AWAY)?;
    nodes.serves(AWAY).await?;
    let sources = |nodes: &Nodes| {
        (0..nodes.len())
            .filter(|node| *node != AWAY)
            .map(|node| nodes.processor(node))
            .sum::<anyhow::Result<f64>>()
    };
    let (by_replica, by_sources) = (nodes.processor(AWAY)?, sources(&nodes)?);
    let caught_up = watch(&nodes, || 0).await?;
    let (by_replica, by_sources) = (nodes.processor(AWAY)? - by_replica, sources(&nodes)? - by_sources);
    ensure!(
        caught_up.fetched >= run.args.entries as f64,
        "the node is in step and fetched only {} entries",
        caught_up.fetched
    );
    let (rate, seconds) = (caught_up.fetched / caught_up.seconds(), caught_up.seconds());
    let what = format!("catch-up of a replica {} entries behind, idle cluster", run.args.entries);
    let values = json!({
        "per_second": rate, "seconds": seconds, "entries": caught_up.fetched, "replica_processor_seconds": by_replica,
        "source_processor_seconds": by_sources,
    });
    let text = format!("{rate:.0}/s, {seconds:.1} s");
    let line = Line::held(what, text, "250000/s", rate >= 250_000.0, values);
    run.push(
        4,
        &line.beside(format!("processor time: replica {by_replica:.1} s, sources {by_sources:.1} s")),
    );
    Ok(())
}

async fn under_load(run: &mut Run<'_>) -> anyhow::Result<()> {
    let mut nodes = Nodes::start(&run.dir.join("catch-up-under-load"), &run.args.flags).await?;
    let client = nodes.client()?;
    say("appending at full speed");
    let pump = Pump::start(&client, CONTEXTS, run.args.inflight).await?;
    // What is kept is held against the same three nodes, all in step, when they compact what they wrote.
    reach(&pump, run.args.entries).await?;
    let usual = pump.rate(run.args.seconds).await?;
    nodes.stop(AWAY).await?;
    say("appending at full speed while a node is away");
    let gone = pump.acknowledged();
    reach(&pump, gone + run.args.entries).await?;
    let away = pump.rate(run.args.seconds.min(2.0)).await?;
    say("the node catches up under load");
    nodes.spawn(AWAY)?;
    nodes.serves(AWAY).await?;
    let watched = watch(&nodes, || pump.acknowledged()).await;
    let caught_up = match watched {
        Ok(caught_up) => caught_up,
        Err(error) => {
            let text = format!("not in step: {error:#}");
            run.push(4, &Line::held("catch-up under full append load", text, "gains", false, json!(null)));
            return Ok(());
        }
    };
    pump.works()?;
    let (before, after) = caught_up.acknowledged;
    let during = (after - before) as f64 / caught_up.seconds();
    sleep(SETTLE).await;
    let later = pump.rate(run.args.seconds).await?;
    pump.stop().await?;

    let behind = before.saturating_sub(gone);
    let gained = caught_up.fetched / caught_up.seconds();
    let values = json!({
        "behind": behind, "seconds": caught_up.seconds(), "fetched": caught_up.fetched, "fetched_per_second": gained,
        "appended_per_second": during,
    });
    let text = format!("in step after {:.1} s", caught_up.seconds());
    let line = Line::held(
        format!("catch-up of a replica {behind} entries behind, full append load"),
        text,
        "gains on the owner",
        true,
        values,
    );
    run.push(4, &line.beside(format!("{gained:.0}/s fetched, {during:.0}/s appended meanwhile")));
    let kept = during / usual;
    let values = json!({ "ratio": kept, "during": during, "before": usual, "after": later, "away": away });
    let line = Line::held(
        "streaming append while a replica catches up",
        format!("{during:.0}/s: {kept:.2}"),
        "0.6 of without",
        kept >= 0.6,
        values,
    );
    run.push(
        4,
        &line.beside(format!(
            "all in step: before {usual:.0}/s, after {later:.0}/s; the node away: {away:.0}/s"
        )),
    );
    Ok(())
}

/// Waits until so many appends are acknowledged.
async fn reach(pump: &Pump, count: u64) -> anyhow::Result<()> {
    let (mut at, mut known) = (Instant::now(), pump.acknowledged());
    while pump.acknowledged() < count {
        pump.works()?;
        sleep(LOOK).await;
        if at.elapsed() > TIMEOUT {
            let now = pump.acknowledged();
            ensure!(now > known, "no append is acknowledged any more");
            (at, known) = (Instant::now(), now);
        }
    }
    Ok(())
}

/// Watches the node until it is in sync.
async fn watch(nodes: &Nodes, acknowledged: impl Fn() -> u64) -> anyhow::Result<CaughtUp> {
    let start = Instant::now();
    let mut begin = None;
    loop {
        let now = Instant::now();
        let metrics = nodes.node(AWAY).metrics().await?;
        let is_comparing = sum(&metrics, "ledger_cluster_comparisons_total") > 0.0;
        if is_comparing && begin.is_none() {
            begin = Some((now, acknowledged()));
        }
        if let Some((begin, before)) = begin
            && sum(&metrics, "ledger_cluster_slots_catching_up") < 1.0
            && nodes.standing().await == Standing::ALL
        {
            let end = Instant::now();
            let fetched = nodes.node(AWAY).metric("ledger_cluster_fetched_entries_total").await?;
            return Ok(CaughtUp { begin, end, fetched, acknowledged: (before, acknowledged()) });
        }
        ensure!(
            start.elapsed() < TIMEOUT,
            "after {TIMEOUT:?} {} slots are not in step",
            sum(&metrics, "ledger_cluster_slots_catching_up")
        );
        sleep(LOOK).await;
    }
}
