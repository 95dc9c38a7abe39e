//! `ledgerctl cluster locate`.

use std::collections::BTreeSet;

use comfy_table::{Table, presets::NOTHING};
use ledger_client::{ClientError, ContextId, Epoch};
use ledger_proto::ledger::v1::{LocateRequest, Location};
use serde_json::{Value, json};

use super::survey::{Survey, survey};
use crate::{
    args::Connection,
    exit::Partial,
    output::{Output, cell, visible},
};

/// Contexts asked for at once.
const PAGE: usize = 1000;

pub(super) async fn run(
    connection: &Connection,
    contexts: Vec<String>,
    output: &Output,
) -> anyhow::Result<()> {
    for context in &contexts {
        ContextId::new(context).map_err(ClientError::from)?;
    }
    let client = connection.client()?;
    let mut table = Table::new();
    table.load_style(NOTHING);
    table.set_header(["context", "slot", "owner", "address", "epoch", "copies"]);
    let mut silent = BTreeSet::new();
    for page in contexts.chunks(PAGE) {
        let request = LocateRequest { context_ids: page.to_vec(), slots: Vec::new() };
        let located = survey(connection, &client, request).await?;
        for location in &located.locations {
            if is_silent(location, &located) {
                silent.insert(visible(&location.owner));
            }
            if output.is_json() {
                output.result(&object(location, located.is_known(location)), String::new)?;
            } else {
                table.add_row(row(location, &located));
            }
        }
    }
    if !output.is_json() {
        output.result(&Value::Null, || table.trim_fmt())?;
    }
    if silent.is_empty() {
        return Ok(());
    }
    let silent = silent.into_iter().collect::<Vec<_>>().join(", ");
    Err(Partial(format!("{silent} did not answer: which copies of what it owns are in step is not known"))
        .into())
}

/// Whether a context has an owner, which alone knows how its copies stand, and did not answer.
fn is_silent(location: &Location, located: &Survey) -> bool {
    !location.owner.is_empty() && !located.is_known(location)
}

fn row(location: &Location, located: &Survey) -> [String; 6] {
    let owner = match (location.owner.is_empty(), location.reason.is_empty()) {
        (true, _) => format!("none: {}", visible(&location.reason)),
        (false, true) => cell(&location.owner),
        // It owns it, and takes no appends.
        (false, false) => format!("{}: {}", cell(&location.owner), visible(&location.reason)),
    };
    [
        cell(&location.context_id),
        location.slot.to_string(),
        owner,
        cell(&location.owner_address),
        Epoch(location.epoch).counter().to_string(),
        copies(location, located.is_known(location)),
    ]
}

/// Who keeps it, and who of them lacks something: where that is known.
fn copies(location: &Location, is_known: bool) -> String {
    let copy = |replica: &ledger_proto::ledger::v1::Replica| {
        let name = cell(&replica.node_id);
        match (replica.alive, is_known.then_some(replica.in_step)) {
            (false, _) => format!("{name} (away)"),
            // What an owner has is what there is.
            (true, None) if replica.node_id != location.owner => format!("{name} (?)"),
            (true, Some(false)) => format!("{name} (behind)"),
            (true, _) => name,
        }
    };
    location.replicas.iter().map(copy).collect::<Vec<_>>().join(", ")
}

fn object(location: &Location, is_known: bool) -> Value {
    let replica = |replica: &ledger_proto::ledger::v1::Replica| {
        json!({
            "node_id": replica.node_id,
            "storage_id": replica.storage_id,
            "address": replica.address,
            "alive": replica.alive,
            // Without an answer of the owner nobody knows.
            "in_step": is_known.then_some(replica.in_step),
        })
    };
    json!({
        "context_id": location.context_id,
        "slot": location.slot,
        "owner": (!location.owner.is_empty()).then_some(&location.owner),
        "owner_address": location.owner_address,
        "epoch": location.epoch,
        "replicas": location.replicas.iter().map(replica).collect::<Vec<_>>(),
        "reason": location.reason,
    })
}

#[cfg(test)]
mod tests {
    use ledger_proto::ledger::v1::Replica;

    use super::*;

    #[test]
    fn a_copy_is_behind_only_if_somebody_knows() {
        let replica = |name: &str, in_step, alive| Replica {
            node_id: name.to_owned(),
            in_step,
            alive,
            ..Replica::default()
        };
        let location = Location {
            owner: "a".into(),
            replicas: vec![replica("a", true, true), replica("b", false, true), replica("c", false, false)],
            ..Location::default()
        };
        assert_eq!(copies(&location, true), "a, b (behind), c (away)");
        assert_eq!(copies(&location, false), "a, b (?), c (away)");
        let located = Survey::default();
        assert!(is_silent(&location, &located), "said at the end, with exit code 8");
        assert!(!is_silent(&Location { owner: String::new(), ..location.clone() }, &located));
        assert_eq!(object(&location, false)["replicas"][1]["in_step"], Value::Null);
    }

    #[test]
    fn what_nobody_owns_says_why() {
        let location = Location { reason: "2 of 3 copies are away".into(), slot: 5, ..Location::default() };
        let located = Survey::default();
        assert_eq!(row(&location, &located)[2], "none: 2 of 3 copies are away");
        let halted = Location { owner: "n1".into(), reason: "appends wait".into(), ..Location::default() };
        assert_eq!(row(&halted, &located)[2], "n1: appends wait");
        assert_eq!(object(&location, false)["owner"], Value::Null);
    }
}
