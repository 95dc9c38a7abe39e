//! What recovering would do, in words and as JSON.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::{Table, presets::NOTHING};
use ledger_client::Epoch;
use serde_json::{Value, json};

use super::stuck::{Everywhere as _, Known, Name, Stuck};
use crate::output::{Output, visible};

/// Slots that are shown one by one to people; JSON has them all.
pub(super) const SHOWN: usize = 20;

/// A member, to people.
pub(super) fn shown_member((node, storage): &Name) -> String {
    format!("{} (directory {})", visible(node), visible(storage))
}

/// Shows what is lost, which slots need it, and what is left of these.
pub(super) fn show(
    output: &Output,
    lost: &BTreeSet<Name>,
    silent: &BTreeSet<Name>,
    known: &Known,
    stuck: &BTreeMap<u32, Stuck<'_>>,
    applies: bool,
) -> anyhow::Result<()> {
    let lost_names: Vec<_> =
        lost.iter().map(|(node, storage)| json!({ "node_id": node, "storage_id": storage })).collect();
    if output.is_json() {
        for (slot, seen) in stuck {
            output.result(&object(*slot, seen, lost), String::new)?;
        }
        let summary = json!({
            "lost": lost_names,
            "stuck_slots": stuck.len(),
            "asked": known.answers.iter().filter_map(|answer| Some(&answer.node.as_ref()?.node_id)).collect::<Vec<_>>(),
            "obstacles": known.obstacles(),
            "applied": false,
        });
        return Ok(output.result(&summary, String::new)?);
    }
    if lost.is_empty() {
        return Ok(output
            .result(&Value::Null, || "every member that is known answers: nothing is lost".to_owned())?);
    }
    let text = || {
        let mut lines = vec!["lost for good, with all that only they held:".to_owned()];
        lines.extend(lost.iter().map(|lost| format!("  {}", shown_member(lost))));
        lines.extend(
            silent
                .difference(lost)
                .map(|silent| format!("  (not named, and silent: {})", shown_member(silent))),
        );
        lines.push(String::new());
        if stuck.is_empty() {
            lines.push(
                "no slot needs them: where enough members are left, slots go on by themselves".to_owned(),
            );
        } else {
            lines.push(format!("{} slots cannot go on without them. What is left of these:", stuck.len()));
            lines.push(table(stuck, lost));
            if stuck.len() > SHOWN {
                lines.push(format!("… and {} more: --json has them all", stuck.len() - SHOWN));
            }
            lines.push(String::new());
            lines.push(
                "What the lost members acknowledged after that cannot be known, and is gone. What is left becomes the history, at a new \
                 epoch; that it did, and why, is kept (`ledgerctl cluster recover --history`). Should the lost come back, they join as new \
                 members, and what differs goes to the forks."
                    .to_owned(),
            );
        }
        lines.extend(known.obstacles().into_iter().map(|obstacle| format!("not possible yet: {obstacle}")));
        if !applies {
            lines.push("nothing was changed; to go on, say so with --apply".to_owned());
        }
        lines.join("\n")
    };
    Ok(output.result(&Value::Null, text)?)
}

fn object(slot: u32, stuck: &Stuck<'_>, lost: &BTreeSet<Name>) -> Value {
    let survivors = stuck.left().into_iter().map(|(node, of)| {
        json!({
            "node_id": node.node_id,
            "is_member": stuck.named().any(|member| member == node),
            "placed_in": of.placed_in,
            "accepted_epoch": of.accepted,
            "promised_epoch": of.promised,
            "contexts": of.contexts,
            "entries": of.entries,
            "digest": hex::encode(&of.digest),
        })
    });
    json!({ "slot": slot, "survivors": survivors.collect::<Vec<_>>(), "missing": stuck.missing(lost) })
}

fn table(stuck: &BTreeMap<u32, Stuck<'_>>, lost: &BTreeSet<Name>) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["slot", "left on", "contexts", "entries", "of epoch", "members of epoch", "missing"]);
    for (slot, stuck) in stuck.iter().take(SHOWN) {
        let missing: Vec<_> = stuck.missing(lost).into_iter().map(visible).collect();
        let missing = missing.join(", ");
        let left = stuck.left();
        if left.is_empty() {
            table.add_row([&slot.to_string(), "nobody", "", "", "", "", &missing]);
        }
        for (node, of) in left {
            let mark = if stuck.named().any(|member| member == node) { "" } else { " (no member)" };
            table.add_row([
                slot.to_string(),
                format!("{}{mark}", visible(&node.node_id)),
                of.contexts.to_string(),
                of.entries.to_string(),
                Epoch(of.accepted).counter().to_string(),
                Epoch(of.placed_in).counter().to_string(),
                missing.clone(),
            ]);
        }
    }
    table.trim_fmt()
}
