//! What a user can do with the cluster now, as commands to copy.

use std::fmt::Write as _;

use super::{
    nodes::{Nodes, Process},
    plan::Plan,
};

/// The context of the examples.
pub(super) const CONTEXT: &str = "demo";

/// The nodes and what to try. `owner` is the name of the node that owns [`CONTEXT`].
pub(super) fn text(plan: &Plan, nodes: &Nodes, owner: Option<&str>) -> String {
    let mut text = String::new();
    for node in nodes.iter() {
        let (endpoint, console) = (node.endpoint().unwrap_or_default(), node.console().unwrap_or_default());
        let _ = writeln!(text, "{:<8} gRPC {endpoint}  console {console}  pid {}", node.name, node.pid);
    }
    let kept = if plan.is_temporary { "removed at the end" } else { "kept" };
    let _ = writeln!(text, "data in {} ({kept})\n", plan.dir.display());

    let ledgerctl = ledgerctl();
    let on = |node: &Process, command: &str| {
        let endpoint = node.endpoint().unwrap_or_default();
        format!("  {ledgerctl} --endpoint {endpoint} {command}\n")
    };
    let owner = nodes.iter().find(|node| Some(node.name.as_str()) == owner);
    let others: Vec<_> =
        nodes.iter().filter(|node| owner.is_none_or(|owner| owner.pid != node.pid)).collect();
    let first = others.first().copied().or(owner);
    let second = others.get(1).copied().or(first);
    let (Some(first), Some(second)) = (first, second) else { return text };

    text.push_str("Try, in other terminals:\n");
    text.push_str(&on(first, &format!("watch {CONTEXT}")));
    text.push_str(&on(second, &format!("append {CONTEXT} facts 'any node takes it'")));
    text.push_str(&on(second, "cluster status --watch"));
    if let (Some(owner), true) = (owner, others.len() > 1) {
        let _ = writeln!(text, "{} owns `{CONTEXT}` now. Kill it, and go on with the others:", owner.name);
        let _ = writeln!(text, "  kill -9 {}", owner.pid);
        text.push_str(&on(second, &format!("append {CONTEXT} facts 'nothing was lost'")));
        text.push_str(&on(second, &format!("cluster locate {CONTEXT}")));
    }
    text.push_str("Ctrl-C stops the cluster.");
    text
}

/// The program as the user started it.
fn ledgerctl() -> String {
    std::env::args().next().unwrap_or_else(|| "ledgerctl".to_owned())
}
