//! Row 1: streaming append, beside one node alone.

use serde_json::json;

use crate::cluster::{
    nodes::Nodes,
    nodes::processor::{processor, quiet},
    run::{Run, say},
    streams::{self, Shape},
    table::Line,
};
use crate::{measure::client, node::Node};

/// Contexts that are appended to.
const CONTEXTS: u64 = 64;
/// Appends under way when latencies are measured.
const FEW: usize = 64;

pub(super) async fn run(run: &mut Run<'_>) -> anyhow::Result<()> {
    let one = Node::start(&run.dir.join("one-node"))?;
    let nodes = Nodes::start(&run.dir.join("append"), &run.args.flags).await?;
    let (alone, together) = (client(one.endpoint())?, nodes.client()?);
    let shape = Shape { contexts: CONTEXTS, window: run.args.inflight, seconds: run.args.seconds };
    let (mut of_one, mut of_cluster) = (Vec::new(), Vec::new());
    // Processor time for an entry, µs: what a busy machine changes least.
    let (mut spent, mut spent_by_one) = (Vec::new(), Vec::new());
    let all = |nodes: &Nodes| (0..nodes.len()).map(|node| nodes.processor(node)).sum::<anyhow::Result<f64>>();
    // In turn, because the machine's speed drifts.
    for repetition in 1..=run.args.repetitions {
        say(&format!("streaming append, {repetition} of {}", run.args.repetitions));
        quiet(&[one.id()]).await?;
        let before = processor(one.id())?;
        let measured = streams::run(&alone, shape).await?;
        of_one.push(measured.per_second);
        spent_by_one.push((processor(one.id())? - before) / measured.total as f64 * 1e6);
        quiet(&[one.id()]).await?;
        nodes.quiet().await?;
        let before = all(&nodes)?;
        let measured = streams::run(&together, shape).await?;
        of_cluster.push(measured.per_second);
        spent.push((all(&nodes)? - before) / measured.total as f64 * 1e6);
        nodes.quiet().await?;
    }
    let (one_rate, rate) = (median(&of_one), median(&of_cluster));
    let ratio = rate / one_rate;
    let (spent, spent_by_one) = (median(&spent), median(&spent_by_one));
    let values = json!({
        "ratio": ratio, "one_node": of_one, "cluster": of_cluster, "in_flight": shape.window,
        "processor_us_per_entry": spent, "one_node_processor_us_per_entry": spent_by_one,
    });
    let what = format!("streaming append, {CONTEXTS} contexts, {} in flight", shape.window);
    let line = Line::held(what, format!("{rate:.0}/s: {ratio:.2}"), "0.3 of one node", ratio >= 0.3, values);
    let beside = format!(
        "one node: {one_rate:.0}/s; processor time for an entry: {spent:.1} µs of all nodes, {spent_by_one:.1} µs of one"
    );
    run.push(1, &line.beside(beside));

    say("latency of streaming append");
    let shape = Shape { window: FEW, ..shape };
    let lonely = streams::run(&alone, shape).await?;
    quiet(&[one.id()]).await?;
    let measured = streams::run(&together, shape).await?;
    let text = |of: &streams::Measured| {
        format!("p50 {:.1} ms, p99 {:.1} ms at {:.0}/s", of.millis(0.5), of.millis(0.99), of.per_second)
    };
    let values = json!({
        "p50_ms": measured.millis(0.5), "p99_ms": measured.millis(0.99), "per_second": measured.per_second,
        "one_node_p50_ms": lonely.millis(0.5), "one_node_p99_ms": lonely.millis(0.99),
    });
    let line = Line::plain(format!("the same, {FEW} in flight"), text(&measured), values);
    run.push(1, &line.beside(format!("one node: {}", text(&lonely))));
    Ok(())
}

/// The one in the middle, or the mean of the two that are.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    match (sorted.get(sorted.len().saturating_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(low), Some(high)) => f64::midpoint(*low, *high),
        _ => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert!((median(&[3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(&[4.0, 1.0, 2.0, 3.0]) - 2.5).abs() < 1e-9);
        assert!(median(&[]).is_nan());
    }
}
