//! Row 3: a planned handover, and a restart of one node after the other, under load.

use std::time::{Duration, Instant};

use ledger_proto::ledger::v1::DrainRequest;
use serde_json::json;
use tokio::time::sleep;

use crate::cluster::{
    nodes::Nodes,
    run::{Run, explain, say},
    table::Line,
    writer::{Checked, Writer},
};

/// Contexts of the stream, and appends that it has under way.
const CONTEXTS: u64 = 64;
/// Clients that append one entry after the other.
const ONE_BY_ONE: u64 = 8;
/// Before and after each change.
const BETWEEN: Duration = Duration::from_secs(1);

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    let mut nodes = Nodes::start(&run.dir.join("handover"), &run.args.flags).await?;
    let client = nodes.client()?;
    let writers = [
        Writer::stream(&client, CONTEXTS, CONTEXTS as usize).await?,
        Writer::one_by_one(&client, ONE_BY_ONE)?,
    ];
    nodes.spread().await?;
    sleep(BETWEEN).await;
    let steady = Instant::now();
    sleep(BETWEEN).await;

    say("draining a node");
    let begin = Instant::now();
    drain(&nodes, 0, false).await?;
    sleep(BETWEEN).await;
    drain(&nodes, 0, true).await?;
    nodes.spread().await?;
    sleep(BETWEEN).await;
    let drained = Instant::now();
    for node in 0..nodes.len() {
        say(&format!("restarting node {} of {}", node + 1, nodes.len()));
        nodes.stop(node).await?;
        nodes.spawn(node)?;
        nodes.serves(node).await?;
        nodes.in_step().await?;
    }
    nodes.spread().await?;
    sleep(BETWEEN).await;
    let end = Instant::now();

    let before = longest(&writers, steady, begin);
    for (what, from, to) in [
        ("planned handover (drain and back) under load: the append that took longest", begin, drained),
        ("restart of 3 nodes, one after the other, under load: the append that took longest", drained, end),
    ] {
        let took = longest(&writers, from, to);
        let values = json!({ "seconds": took, "before_seconds": before });
        let line = Line::held(what, format!("{took:.2} s"), "under 1 s", took < 1.0, values);
        run.push(3, &line.beside(format!("the second before: {before:.3} s")));
    }
    let (mut checked, mut errors) = (Checked::default(), Vec::new());
    for mut writer in writers {
        writer.stop().await?;
        checked = checked.and(writer.check(&client).await?);
        errors.append(&mut writer.told.lock().errors);
    }
    explain(&errors);
    let text = format!("{} errors of {} appends, {} lost", errors.len(), checked.acknowledged, checked.lost);
    let values = json!({
        "errors": errors.len(), "acknowledged": checked.acknowledged, "lost": checked.lost,
        "twice": checked.twice, "gaps": checked.gaps,
    });
    let is_good = errors.is_empty() && checked.is_whole() && checked.acknowledged > 0;
    run.push(3, &Line::held("what the SDK's user saw of it", text, "no error, none lost", is_good, values));
    Ok(())
}

fn longest(writers: &[Writer], from: Instant, to: Instant) -> f64 {
    writers.iter().map(|writer| writer.longest(from, to)).max().unwrap_or_default().as_secs_f64()
}

/// As `ledgerctl cluster drain` does it.
async fn drain(nodes: &Nodes, node: usize, resume: bool) -> anyhow::Result<()> {
    let mut service = nodes.node(node).client()?.cluster_service();
    let mut progress = service.drain(DrainRequest { resume }).await?.into_inner();
    while progress.message().await?.is_some() {}
    Ok(())
}
