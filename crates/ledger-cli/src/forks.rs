//! `ledgerctl forks`: each node keeps its own, so all of them are asked.

use std::path::Path;

use comfy_table::{Table, presets::NOTHING};
use ledger_client::{Client, ClientError, ContextId, Fork, Tip};
use ledger_proto::ledger::v1::Member;
use serde_json::{Value, json};
use tokio::fs::File;

use crate::{
    args::{self, Connection},
    exit::Partial,
    output::{Output, cell, time, visible},
    progress, reach, transfer,
};

/// Forks asked for at once.
const PAGE: u64 = 1000;

/// A node to ask.
struct Node {
    id: String,
    client: Client,
}

pub(crate) async fn run(
    connection: &Connection,
    command: args::Forks,
    output: &Output,
) -> anyhow::Result<()> {
    let context = command.context.as_ref().map(ContextId::new).transpose().map_err(ClientError::from)?;
    let (nodes, mut silent) = nodes(connection, command.node.as_deref()).await?;
    let all = nodes.len() + silent.len();
    let found = match (command.export, &context) {
        (Some(number), Some(context)) => {
            let (node, fork) = find(&nodes, context, number, &mut silent).await?;
            export(node, &fork, &command, output).await?;
            if silent.is_empty() {
                return Ok(());
            }
            let silent = silent.join(", ");
            let message = format!(
                "{silent} did not answer, and may have a fork {number} of context {context} too: this is that of {}; choose one \
                 with --node",
                node.id
            );
            return Err(Partial(message).into());
        }
        _ => list(&nodes, context.as_ref(), command.limit, output, &mut silent).await?,
    };
    if !found && silent.is_empty() && !output.is_json() {
        output.result(&Value::Null, || "no node left a history".to_owned())?;
    }
    if silent.is_empty() {
        return Ok(());
    }
    let message = format!("{} did not answer: what they left is not listed", silent.join(", "));
    if silent.len() < all {
        Err(Partial(message).into())
    } else {
        Err(ClientError::Unavailable(message.into()).into())
    }
}

/// The nodes to ask, and those that cannot be: all that are known, or the one of that name.
async fn nodes(connection: &Connection, name: Option<&str>) -> anyhow::Result<(Vec<Node>, Vec<String>)> {
    let asked = connection.client()?;
    let members = reach::members(connection, &asked).await?;
    if name.is_some_and(|name| !members.members.iter().any(|member| member.node_id == name)) {
        let message =
            format!("no node is called {}: see ledgerctl cluster members", name.unwrap_or_default());
        return Err(ClientError::Invalid(message).into());
    }
    let wanted = members.members.iter().filter(|member| name.is_none_or(|name| member.node_id == name));
    let (mut nodes, mut silent) = (Vec::new(), Vec::new());
    for member in wanted {
        let id = visible(&member.node_id);
        match client(connection, &asked, member, member.node_id == members.node_id)? {
            Some(client) => nodes.push(Node { id, client }),
            None => silent.push(id),
        }
    }
    Ok((nodes, silent))
}

/// The way to a node; `None` if it is not there.
fn client(
    connection: &Connection,
    asked: &Client,
    member: &Member,
    is_asked: bool,
) -> anyhow::Result<Option<Client>> {
    // The address by which it is known among nodes need not be one that leads there from here.
    if is_asked && !connection.endpoint.contains(',') {
        return Ok(Some(asked.clone()));
    }
    let other = reach::other(connection, &member.address).filter(|_| member.alive);
    other.map(|connection| connection.client()).transpose()
}

/// Lists the forks of every node; whether there was one.
async fn list(
    nodes: &[Node],
    context: Option<&ContextId>,
    limit: u64,
    output: &Output,
    silent: &mut Vec<String>,
) -> anyhow::Result<bool> {
    let mut header = true;
    for node in nodes {
        let mut left = if limit == 0 { u64::MAX } else { limit };
        let mut after = None;
        while left > 0 {
            let (forks, next) = match node.client.forks(context, after, left.min(PAGE) as u32).await {
                Ok(page) => page,
                Err(error) if is_silence(&error) => {
                    silent.push(node.id.clone());
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            if output.is_json() {
                for fork in &forks {
                    output.result(&object(&node.id, fork), String::new)?;
                }
            } else if !forks.is_empty() {
                let mut table = Table::new();
                table.load_style(NOTHING);
                if std::mem::take(&mut header) {
                    table.set_header(HEADER);
                }
                for fork in &forks {
                    table.add_row(row(&node.id, fork));
                }
                output.result(&Value::Null, || table.trim_fmt())?;
            }
            header &= forks.is_empty();
            left -= (forks.len() as u64).min(left);
            after = next;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(!header)
}

fn is_silence(error: &ClientError) -> bool {
    matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_))
}

/// The fork of a context that has a number: each node counts its own.
async fn find<'a>(
    nodes: &'a [Node],
    context: &ContextId,
    number: u64,
    silent: &mut Vec<String>,
) -> anyhow::Result<(&'a Node, Fork)> {
    let mut found = None;
    for node in nodes {
        let mut after = None;
        loop {
            let (forks, next) = match node.client.forks(Some(context), after, PAGE as u32).await {
                Ok(page) => page,
                Err(error) if is_silence(&error) => {
                    silent.push(node.id.clone());
                    break;
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(fork) = forks.into_iter().find(|fork| fork.number == number) {
                if let Some((other, _)) = found.replace((node, fork)) {
                    let message = format!(
                        "nodes {} and {} both have a fork {number} of context {context}: choose one with --node",
                        other.id, node.id
                    );
                    return Err(ClientError::Invalid(message).into());
                }
                break;
            }
            after = next;
            if after.is_none() {
                break;
            }
        }
    }
    let missing = || match silent.as_slice() {
        [] => ClientError::Invalid(format!("context {context} has no fork {number}: see ledgerctl forks")),
        silent => ClientError::Unavailable(format!("{} did not answer", silent.join(", ")).into()),
    };
    Ok(found.ok_or_else(missing)?)
}

async fn export(node: &Node, fork: &Fork, command: &args::Forks, output: &Output) -> anyhow::Result<()> {
    if let Some(path) = &command.output {
        return snapshot(node, fork, path, output).await;
    }
    let mut pages = node.client.fork_entries(fork).await?;
    let mut read = 0;
    while let Some(page) = pages.next().await? {
        for entry in page {
            if !entry.is_intact(fork.suite) {
                let message =
                    format!("the content of entry {} does not match its content hash", entry.sequence);
                return Err(ClientError::NotVerified(message).into());
            }
            output.entry(&entry, command.payload)?;
            read += 1;
        }
    }
    if read != fork.entries() {
        let message = format!("the fork has {} entries, and {read} came", fork.entries());
        return Err(ClientError::NotVerified(message).into());
    }
    Ok(())
}

async fn snapshot(node: &Node, fork: &Fork, path: &Path, output: &Output) -> anyhow::Result<()> {
    let bar = progress::bytes(None);
    let write =
        async |file: &mut File| node.client.fork_snapshot(fork, file, |bytes| bar.set_position(bytes)).await;
    let info = transfer::to_file(path, write).await?;
    bar.finish_and_clear();
    let mut object = transfer::object(&fork.context, &info);
    object["fork"] = fork.number.into();
    output.result(&object, || transfer::line(&fork.context, &info))?;
    Ok(())
}

/// What the columns of [`row`] are.
const HEADER: [&str; 8] = ["node", "context", "fork", "entries", "epoch", "instead of", "left", "reason"];

/// A fork for people.
fn row(node: &str, fork: &Fork) -> [String; 8] {
    [
        cell(node),
        cell(fork.context.as_str()),
        fork.number.to_string(),
        format!("{} after {}", fork.entries(), fork.common),
        fork.ours.epoch.to_string(),
        format!("{} of epoch {}", fork.theirs.size, fork.theirs.epoch),
        time(fork.left_at_ns),
        cell(&fork.reason),
    ]
}

/// A fork as an object: every field.
fn object(node: &str, fork: &Fork) -> Value {
    let tip = |tip: &Tip| json!({ "size": tip.size.0, "root": tip.root.to_string(), "epoch": tip.epoch.0 });
    json!({
        "node_id": node,
        "context_id": fork.context.as_str(),
        "fork": fork.number,
        "common_size": fork.common.0,
        "entries": fork.entries(),
        "ours": tip(&fork.ours),
        "theirs": tip(&fork.theirs),
        "lineage": hex::encode(fork.lineage.0),
        "hash_suite": fork.suite.name(),
        "left_at_ns": fork.left_at_ns,
        "reason": fork.reason,
    })
}
