//! `ledgerctl cluster recover --history`: what was decided before, and what came of it.

use ledger_client::{ClientError, Epoch};
use ledger_proto::ledger::v1::{RecoveriesRequest, Recovery};
use serde_json::{Value, json};

use super::showing::{SHOWN, shown_member};
use crate::{
    args::Connection,
    output::{Output, time, visible},
    reach,
};

/// Shows all of it.
pub(super) async fn history(connection: &Connection, output: &Output) -> anyhow::Result<()> {
    let mut service = connection.client()?.integrity_service();
    let answer = reach::within(connection, service.recoveries(RecoveriesRequest {})).await?;
    let recoveries = answer.map_err(ClientError::from)?.into_inner().recoveries;
    if output.is_json() {
        for recovery in &recoveries {
            output.result(&decision_object(recovery), String::new)?;
        }
        return Ok(());
    }
    if recoveries.is_empty() {
        return Ok(output.result(&Value::Null, || "nothing was ever recovered".to_owned())?);
    }
    for recovery in &recoveries {
        output.result(&Value::Null, || decision_text(recovery))?;
    }
    Ok(())
}

fn decision_object(recovery: &Recovery) -> Value {
    let slots = recovery.slots.iter().map(|slot| {
        json!({
            "slot": slot.slot,
            "epoch": slot.epoch,
            "claimant": slot.claimant,
            "missing": slot.missing.iter().map(|member| json!({ "node_id": member.node_id, "storage_id": member.storage_id })).collect::<Vec<_>>(),
            "heard": slot.heard.iter().map(|member| json!({
                "node_id": member.node_id, "storage_id": member.storage_id, "accepted_epoch": member.accepted,
            })).collect::<Vec<_>>(),
            "digest": hex::encode(&slot.digest),
            "recovered_at": time(slot.recovered_at_ns),
        })
    });
    json!({
        "id": hex::encode(&recovery.id),
        "decided_at": time(recovery.decided_at_ns),
        "reason": recovery.reason,
        "lost": recovery.lost.iter().map(|member| json!({ "node_id": member.node_id, "storage_id": member.storage_id })).collect::<Vec<_>>(),
        "slots": slots.collect::<Vec<_>>(),
    })
}

fn decision_text(recovery: &Recovery) -> String {
    let lost = recovery.lost.iter().map(|member| (member.node_id.clone(), member.storage_id.clone()));
    let lost: Vec<_> = lost.map(|member| format!("  lost: {}", shown_member(&member))).collect();
    let mut lines = vec![format!(
        "{}  {}  {}",
        time(recovery.decided_at_ns),
        hex::encode(&recovery.id),
        visible(&recovery.reason)
    )];
    lines.extend(lost);
    lines.push(format!("  {} slots went on with what was left:", recovery.slots.len()));
    for slot in recovery.slots.iter().take(SHOWN) {
        let heard: Vec<_> = slot
            .heard
            .iter()
            .map(|member| {
                format!("{} (of epoch {})", visible(&member.node_id), Epoch(member.accepted).counter())
            })
            .collect();
        lines.push(format!(
            "    slot {} in epoch {} of {}, which heard {}",
            slot.slot,
            slot.epoch,
            visible(&slot.claimant),
            heard.join(", ")
        ));
    }
    if recovery.slots.len() > SHOWN {
        lines.push(format!("    … and {} more: --json has them all", recovery.slots.len() - SHOWN));
    }
    lines.join("\n")
}
