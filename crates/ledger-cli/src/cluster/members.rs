//! `ledgerctl cluster members`.

use comfy_table::{Table, presets::NOTHING};
use ledger_proto::ledger::v1::{Member, MembersResponse};
use serde_json::{Value, json};

use crate::{
    args::Connection,
    output::{Output, cell},
    reach,
};

pub(super) async fn run(connection: &Connection, output: &Output) -> anyhow::Result<()> {
    let answer = reach::members(connection, &connection.client()?).await?;
    if output.is_json() {
        for member in &answer.members {
            output.result(&object(member), String::new)?;
        }
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(NOTHING);
    let more = ["zone", "start", "storage"];
    table.set_header(HEADER.into_iter().chain(more));
    for member in &answer.members {
        let start = member.incarnation.to_string();
        let more = [cell(&member.zone), start, cell(&member.storage_id)];
        table.add_row(row(member, &answer).into_iter().chain(more));
    }
    output.result(&Value::Null, || table.trim_fmt())?;
    Ok(())
}

/// What the columns of [`row`] are.
pub(super) const HEADER: [&str; 6] = ["node", "address", "state", "slots", "entries/s", "contexts"];

/// A node for people; the one that answered is marked.
pub(super) fn row(member: &Member, answer: &MembersResponse) -> [String; 6] {
    let mark = if member.node_id == answer.node_id { " *" } else { "" };
    [
        format!("{}{mark}", cell(&member.node_id)),
        cell(&member.address),
        state(member).to_owned(),
        match member.slots_halted {
            0 => member.slots_owned.to_string(),
            halted => format!("{} (+{halted} short)", member.slots_owned),
        },
        member.entries_per_second.to_string(),
        member.contexts.to_string(),
    ]
}

/// What a node is ready for, or that it is not heard.
fn state(member: &Member) -> &str {
    // Known words only: they come from other nodes.
    let words = ["joining", "ready", "draining", "decommissioning", "read-only", "leaving", "set-back"];
    let word = words.into_iter().find(|word| *word == member.readiness);
    match (member.alive, word) {
        (true, Some(word)) => word,
        (true, None) => "?",
        (false, Some("leaving")) => "left",
        (false, _) => "dead",
    }
}

/// A node as an object: every field.
pub(super) fn object(member: &Member) -> Value {
    json!({
        "node_id": member.node_id,
        "storage_id": member.storage_id,
        "incarnation": member.incarnation,
        "address": member.address,
        "readiness": member.readiness,
        "zone": member.zone,
        "format": member.format,
        "alive": member.alive,
        "slots_owned": member.slots_owned,
        "slots_halted": member.slots_halted,
        "entries_per_second": member.entries_per_second,
        "contexts": member.contexts,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_heard_is_dead_unless_it_said_goodbye() {
        let member =
            |readiness: &str, alive| Member { readiness: readiness.to_owned(), alive, ..Member::default() };
        for (readiness, alive, shown) in [
            ("ready", true, "ready"),
            ("draining", true, "draining"),
            ("set-back", true, "set-back"),
            ("\x1b[2J", true, "?"),
            ("ready", false, "dead"),
            ("leaving", false, "left"),
        ] {
            assert_eq!(state(&member(readiness, alive)), shown);
        }
    }
}
