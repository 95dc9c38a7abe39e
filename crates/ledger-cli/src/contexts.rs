//! `ledgerctl contexts`.

use std::collections::BTreeSet;

use comfy_table::{Table, presets::NOTHING};
use ledger_client::{Client, Unlisted};
use serde_json::json;

use crate::{
    args,
    exit::Partial,
    output::{Output, cell, time, visible},
};

/// Contexts asked for at once.
const PAGE: u64 = 1000;

pub(crate) async fn run(client: &Client, command: args::Contexts, output: &Output) -> anyhow::Result<()> {
    let mut left = if command.limit == 0 { u64::MAX } else { command.limit };
    let mut after = String::new();
    let mut header = true;
    let mut missing = BTreeSet::new();
    while left > 0 {
        let page = client.contexts(&command.prefix, &after, left.min(PAGE) as u32).await?;
        let contexts = page.contexts;
        missing.extend(page.unlisted.iter().map(missed));
        let mut table = Table::new();
        table.load_style(NOTHING);
        if std::mem::take(&mut header) {
            table.set_header(["context", "entries", "lamport", "created", "suite"]);
        }
        for info in &contexts {
            let created = time(info.created_at_ns);
            if output.is_json() {
                let object = json!({
                    "context_id": info.context.as_str(), "size": info.size.0, "lamport_clock": info.lamport.0,
                    "epoch": info.epoch.0, "created_at_ns": info.created_at_ns, "hash_suite": info.suite.name(),
                });
                output.result(&object, String::new)?;
            } else {
                table.add_row([
                    cell(info.context.as_str()),
                    info.size.to_string(),
                    info.lamport.0.to_string(),
                    created,
                    info.suite.to_string(),
                ]);
            }
        }
        let is_between = contexts.is_empty() && page.next.is_some();
        if !output.is_json() && !is_between {
            output.result(&json!(null), || table.trim_fmt())?;
        }
        left -= (contexts.len() as u64).min(left);
        match page.next {
            Some(next) => after = next,
            None => break,
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let missing = Vec::from_iter(missing).join("; ");
    Err(Partial(format!("the listing is not whole: the contexts of {missing}: see ledgerctl cluster status"))
        .into())
}

/// What is missing from a listing, for people.
fn missed(of: &Unlisted) -> String {
    let node = of.node.as_ref().map_or_else(|| "any node".to_owned(), |node| visible(node));
    format!("{} of 1024 slots were not listed by {node} ({})", of.slots, visible(&of.reason))
}
