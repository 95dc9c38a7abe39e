//! Row 2: the owner is killed.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use tokio::time::sleep;

use crate::cluster::{
    nodes::Nodes,
    run::{Run, explain, say},
    table::Line,
    writer::Writer,
};

/// Contexts that are written to: about a third of them lose their owner.
const CONTEXTS: u64 = 64;
/// Appends under way.
const WINDOW: usize = 64;
/// After so long it is given up.
const TIMEOUT: Duration = Duration::from_mins(1);

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    let mut nodes = Nodes::start(&run.dir.join("takeover"), &run.args.flags).await?;
    let client = nodes.client()?;
    let mut writer = Writer::stream(&client, CONTEXTS, WINDOW).await?;
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for round in 0..run.args.rounds {
        say(&format!("killing an owner, {} of {}", round + 1, run.args.rounds));
        nodes.spread().await?;
        let victim = usize::try_from(round)? % nodes.len();
        let lost = owned_by(&nodes, &writer, victim).await;
        ensure!(!lost.is_empty(), "the node to be killed owns none of the contexts");
        // Not in sync with anything that the nodes do from time to time.
        sleep(Duration::from_millis(rand::random_range(0..1000))).await;
        let known = writer.told.lock().acks.len();
        let killed = nodes.kill(victim);
        let times = taken_over(&writer, &lost, known, killed).await?;
        first.push(times.iter().copied().fold(f64::INFINITY, f64::min));
        last.push(times.iter().copied().fold(0.0, f64::max));
        nodes.spawn(victim)?;
        nodes.serves(victim).await?;
        nodes.in_step().await?;
    }
    writer.stop().await?;
    let worst = last.iter().copied().fold(0.0, f64::max);
    let values = json!({ "first_context_seconds": first, "last_context_seconds": last });
    let what = "owner killed: the first append that its successor acknowledged, the last of its contexts";
    let text = format!("{worst:.2} s at worst of {}", last.len());
    let line = Line::held(what, text, "under 5 s", worst < 5.0, values);
    let earliest = first.iter().copied().fold(0.0, f64::max);
    run.push(2, &line.beside(format!("the first of its contexts: {earliest:.2} s at worst")));

    let checked = writer.check(&client).await?;
    let errors = writer.told.lock().errors.clone();
    let text = format!(
        "{} lost of {} acknowledged, {} stored twice, {} errors",
        checked.lost,
        checked.acknowledged,
        checked.twice,
        errors.len()
    );
    explain(&errors);
    let values = json!({
        "acknowledged": checked.acknowledged, "lost": checked.lost, "twice": checked.twice, "gaps": checked.gaps,
        "errors": errors.len(),
    });
    let is_good = checked.is_whole() && checked.acknowledged > 0 && errors.is_empty();
    run.push(
        2,
        &Line::held("what was acknowledged meanwhile, read back", text, "none lost", is_good, values),
    );
    Ok(())
}

/// The writer's contexts that a node owns, each with its epoch.
async fn owned_by(nodes: &Nodes, writer: &Writer, node: usize) -> Vec<(usize, u64)> {
    let owned = nodes.owned().await;
    let name = &nodes.node(node).name;
    let mut found = Vec::new();
    for (place, context) in writer.contexts.iter().enumerate() {
        let slot = u32::from(ledger_core::slot::Slot::of(context).number());
        let location = owned.iter().find(|location| location.slot == slot && location.owner == *name);
        found.extend(location.map(|location| (place, location.epoch)));
    }
    found
}

/// How long each context took until an append of a later epoch was acknowledged, seconds.
async fn taken_over(
    writer: &Writer,
    lost: &[(usize, u64)],
    known: usize,
    killed: Instant,
) -> anyhow::Result<Vec<f64>> {
    loop {
        let times: Vec<_> = {
            let told = writer.told.lock();
            let later = &told.acks[known..];
            let first = |(context, epoch): &(usize, u64)| {
                let ack = later.iter().find(|ack| ack.context == *context && ack.epoch > *epoch)?;
                Some((ack.at - killed).as_secs_f64())
            };
            lost.iter().filter_map(first).collect()
        };
        if times.len() == lost.len() {
            return Ok(times);
        }
        ensure!(
            killed.elapsed() < TIMEOUT,
            "{} of {} contexts have no new owner after {TIMEOUT:?}",
            lost.len() - times.len(),
            lost.len()
        );
        sleep(Duration::from_millis(100)).await;
    }
}
