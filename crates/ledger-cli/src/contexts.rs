//! `ledgerctl contexts`.

use comfy_table::{Table, presets::NOTHING};
use ledger_client::Client;
use serde_json::json;

use crate::{
    args,
    output::{Output, time},
};

/// Contexts asked for at once.
const PAGE: u64 = 1000;

pub(crate) async fn run(client: &Client, command: args::Contexts, output: &Output) -> anyhow::Result<()> {
    let mut left = if command.limit == 0 { u64::MAX } else { command.limit };
    let mut after = String::new();
    let mut header = true;
    while left > 0 {
        let (contexts, more) = client.contexts(&command.prefix, &after, left.min(PAGE) as u32).await?;
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
                    info.context.to_string(),
                    info.size.to_string(),
                    info.lamport.0.to_string(),
                    created,
                    info.suite.to_string(),
                ]);
            }
        }
        if !output.is_json() {
            output.result(&json!(null), || table.trim_fmt())?;
        }
        left -= (contexts.len() as u64).min(left);
        match contexts.last() {
            Some(last) if more => last.context.as_str().clone_into(&mut after),
            _ => break,
        }
    }
    Ok(())
}
