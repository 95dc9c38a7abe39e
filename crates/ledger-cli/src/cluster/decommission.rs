//! `ledgerctl cluster decommission`.

use ledger_client::ClientError;
use ledger_proto::ledger::v1::{DecommissionProgress, DecommissionRequest};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::operator::Operator;
use crate::{
    args::{Connection, Decommission},
    output::{Output, visible},
    progress, reach,
};

pub(super) async fn run(
    connection: &Connection,
    command: Decommission,
    output: &Output,
) -> anyhow::Result<()> {
    let Decommission { node, cancel, force, keep_running, until_restart } = command;
    let known = reach::members(connection, &connection.client()?).await?;
    let named = known.members.iter().find(|member| member.node_id == node);
    let Some(named) = named else {
        let names: Vec<_> = known.members.iter().map(|member| visible(&member.node_id)).collect();
        return Err(invalid(format!("no node is called {}: there are {}", visible(&node), names.join(", "))));
    };
    if !named.alive {
        return Err(invalid(format!(
            "{} does not answer, so it cannot be asked what it keeps: start it and try again; if it is gone for good, other nodes take its \
             places after placement_grace, where enough members are left (see `ledgerctl cluster status`; otherwise `ledgerctl cluster \
             recover`)",
            visible(&node)
        )));
    }
    // The node that was asked is reached the same way again: without the cluster's key it takes this from its own machine only.
    let there = if known.node_id == node {
        Some(connection.clone())
    } else {
        reach::other(connection, &named.address)
    };
    // As patient as for the node that was named: it may have much to do.
    let there = there.map(|there| Connection { timeout: connection.timeout, ..there });
    let there = there.ok_or_else(|| invalid(format!("{} does not say where it is", visible(&node))))?;
    let refused = |status: Status| match status.code() {
        Code::FailedPrecondition => invalid(status.message().to_owned()),
        _ => ClientError::from(status).into(),
    };
    let request = DecommissionRequest { cancel, force, keep_running, until_restart };
    let mut operator = Operator::at(&there).await?;
    let request = operator.request("Decommission", request);
    let asked = reach::within(&there, operator.service.decommission(request)).await?;
    let mut steps = asked.map_err(refused)?.into_inner();
    if cancel {
        return Ok(output.result(&json!({ "node_id": node, "cancelled": true }), || {
            format!("{} stays", visible(&node))
        })?);
    }
    let bar = progress::slots("count on it still");
    let mut told = None;
    let last = loop {
        let Some(step) = steps.message().await.map_err(|status| lost(&node, refused(status)))? else {
            return Err(lost(&node, anyhow::anyhow!("it said nothing more")));
        };
        bar.set_position(u64::from(step.slots) + u64::from(step.unknown));
        if output.is_json() {
            output.result(&object(&node, &step), String::new)?;
        } else if !step.waits_for.is_empty() && told.as_ref() != Some(&step.waits_for) {
            bar.suspend(|| eprintln!("it waits: {}", visible(&step.waits_for)));
            told = Some(step.waits_for.clone());
        }
        if step.done {
            break step;
        }
    };
    bar.finish_and_clear();
    if !output.is_json() {
        output.result(&Value::Null, || summary(&node, keep_running, &last))?;
    }
    Ok(())
}

fn invalid(message: String) -> anyhow::Error {
    ClientError::Invalid(message).into()
}

fn lost(node: &str, why: anyhow::Error) -> anyhow::Error {
    why.context(format!(
        "{} was not heard any more; it goes on leaving while it runs, and after a restart: ask again to see how far it is",
        visible(node)
    ))
}

fn object(node: &str, step: &DecommissionProgress) -> Value {
    json!({
        "node_id": node,
        "slots": step.slots,
        "unknown": step.unknown,
        "owned": step.owned,
        "contexts": step.contexts,
        "waits_for": step.waits_for,
        "forks": step.forks,
        "done": step.done,
    })
}

fn summary(node: &str, keep_running: bool, last: &DecommissionProgress) -> String {
    let node = visible(node);
    let end = if keep_running { "it may be stopped" } else { "the process ends by itself" };
    let text = format!("{node} has left: no slot counts on it, and {end}");
    if last.forks == 0 {
        return text;
    }
    format!(
        "{text}\nits directory holds {} histories that it left for others', and nobody else has them: read them before it is removed \
         (`ledgerctl forks --node {node}` while it runs)",
        last.forks
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_the_node_has_is_said_in_the_end() {
        let last = |forks| DecommissionProgress { done: true, forks, ..DecommissionProgress::default() };
        assert_eq!(
            summary("n-3", false, &last(0)),
            "n-3 has left: no slot counts on it, and the process ends by itself"
        );
        let text = summary("n-3", true, &last(2));
        assert!(text.contains("may be stopped") && text.contains("2 histories"), "{text}");
    }
}
