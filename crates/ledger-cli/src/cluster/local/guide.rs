//! What a user can do with the cluster now, as commands to copy.

use std::fmt::Write as _;

use super::{
    nodes::{Nodes, Process},
    plan::Plan,
};

/// The context of the examples.
const CONTEXT: &str = "demo";

/// The nodes and what to try.
pub(super) fn text(plan: &Plan, nodes: &Nodes) -> String {
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
    let nodes: Vec<_> = nodes.iter().collect();
    let (Some(first), Some(last)) = (nodes.first(), nodes.last()) else { return text };

    text.push_str("Try, in other terminals:\n");
    text.push_str(&on(first, &format!("watch {CONTEXT}")));
    text.push_str(&on(last, &format!("append {CONTEXT} facts 'any node takes it'")));
    text.push_str(&on(last, "cluster status --watch"));
    if nodes.len() > 2 {
        // Not who owns it now: that changes while slots find their places, and whenever a node goes.
        let _ = writeln!(
            text,
            "See who owns `{CONTEXT}`, kill that one (its pid is above), and go on with the others:"
        );
        let _ = writeln!(text, "  {ledgerctl} --endpoint {} cluster locate {CONTEXT}", all_of(&nodes));
        text.push_str("  kill -9 PID\n");
        let _ = writeln!(
            text,
            "  {ledgerctl} --endpoint {} append {CONTEXT} facts 'nothing was lost'",
            all_of(&nodes)
        );
    }
    text.push_str("Ctrl-C stops the cluster.");
    text
}

/// The addresses of all nodes, of which any that lives will do.
fn all_of(nodes: &[&Process]) -> String {
    nodes.iter().filter_map(|node| node.endpoint()).collect::<Vec<_>>().join(",")
}

/// The program as the user started it.
fn ledgerctl() -> String {
    std::env::args().next().unwrap_or_else(|| "ledgerctl".to_owned())
}
