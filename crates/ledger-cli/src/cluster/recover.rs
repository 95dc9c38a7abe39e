//! `ledgerctl cluster recover`: going on when too many members of a slot are lost for good.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use comfy_table::{Table, presets::NOTHING};
use ledger_client::{ClientError, Epoch};
use ledger_core::node::MAX_REPLICAS;
use ledger_proto::ledger::v1::{
    ClusterMember, KnownSlot, RecoverRequest, RecoverResponse, RecoveriesRequest, Recovery, SlotApproval,
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{args::Recover, operator::Operator, reach};
use crate::{
    args::Connection,
    output::{Output, time, visible},
};

/// How long slots may take to go on.
const PATIENCE: Duration = Duration::from_mins(2);
/// How often it is looked whether they have.
const LOOKS_EVERY: Duration = Duration::from_millis(500);
/// Slots that are shown one by one to people; JSON has them all.
const SHOWN: usize = 20;

/// A member: node and data directory.
type Name = (String, String);

/// A slot that cannot go on.
struct Stuck<'a> {
    /// What the nodes say that know its newest members.
    newest: &'a KnownSlot,
    /// What each node says.
    seen: Vec<(&'a ClusterMember, &'a KnownSlot)>,
}

/// Of what two nodes know of a slot's members that of the higher rank holds.
fn rank(of: &KnownSlot) -> (bool, u64, bool) {
    (of.is_confirmed, of.placed_in, of.is_settled)
}

impl Stuck<'_> {
    /// Its members, and those before them while that is not settled.
    fn named(&self) -> impl Iterator<Item = &ClusterMember> {
        self.newest.members.iter().chain(&self.newest.before)
    }

    /// Nobody who is left knows its members: they are among the lost, all of them.
    fn is_unknown(&self) -> bool {
        self.newest.members.is_empty()
    }

    /// The lost members of it.
    fn missing<'b>(&'b self, lost: &'b BTreeSet<Name>) -> BTreeSet<&'b str> {
        if self.is_unknown() {
            return lost.iter().map(|(node, _)| node.as_str()).collect();
        }
        let members = self.named().filter(|member| lost.contains(&name(member)));
        members.map(|member| member.node_id.as_str()).collect()
    }

    /// The nodes that will be asked for what it had, those that hold the newest first.
    fn left(&self) -> Vec<(&ClusterMember, &KnownSlot)> {
        let is_member = |node: &ClusterMember| self.named().any(|member| member == node);
        let mut left: Vec<_> =
            self.seen.iter().copied().filter(|(node, of)| is_member(node) || of.entries > 0).collect();
        left.sort_by_key(|(_, of)| std::cmp::Reverse((of.is_confirmed, of.accepted)));
        left
    }

    /// That it may go on: with what is left of its newest members, or if none is left, with what one has that has the newest.
    fn approval(&self, lost: &BTreeSet<Name>) -> SlotApproval {
        let is_all_lost = self.named().all(|member| lost.contains(&name(member)));
        let heir =
            self.seen.iter().max_by_key(|(_, of)| (of.is_confirmed, of.accepted)).map(|(node, _)| *node);
        let members = if self.is_unknown() {
            let mut nodes = BTreeSet::new();
            let of_a_node_each = lost.iter().filter(|(node, _)| nodes.insert(node)).take(MAX_REPLICAS);
            of_a_node_each.map(|(node_id, storage_id)| member(node_id, storage_id)).collect()
        } else {
            self.newest.members.clone()
        };
        SlotApproval {
            slot: self.newest.slot,
            placed_in: self.newest.placed_in,
            heir: heir.filter(|_| is_all_lost).cloned(),
            members,
            before: self.newest.before.clone(),
        }
    }
}

/// What all nodes know that answered the one that was asked.
type Known = RecoverResponse;

pub(super) async fn run(connection: &Connection, command: Recover, output: &Output) -> anyhow::Result<()> {
    if command.history {
        return history(connection, output).await;
    }
    let mut node = Operator::at(connection).await?;
    let first = ask(&mut node, RecoverRequest { brief: true, ..RecoverRequest::default() }).await?;
    let silent: BTreeSet<Name> =
        first.answers.iter().flat_map(|answer| answer.silent.iter().map(name)).collect();
    let lost = chosen(&silent, &command.lost)?;
    let request = RecoverRequest {
        lost: lost.iter().map(|(node_id, storage_id)| member(node_id, storage_id)).collect(),
        ..RecoverRequest::default()
    };
    let known = if lost.is_empty() { first } else { ask(&mut node, request.clone()).await? };
    let stuck = known.stuck();
    show(output, &lost, &silent, &known, &stuck, command.apply)?;
    let obstacles = known.obstacles();
    if !command.apply || lost.is_empty() {
        return Ok(());
    }
    if !obstacles.is_empty() {
        return Err(ClientError::Invalid(format!("nothing was changed: {}", obstacles.join("; "))).into());
    }
    let slots = stuck.values().map(|stuck| stuck.approval(&lost)).collect();
    let request = RecoverRequest { slots, ..request };
    apply(&mut node, request, command.reason.unwrap_or_default(), output).await
}

fn member(node_id: &str, storage_id: &str) -> ClusterMember {
    ClusterMember { node_id: node_id.to_owned(), storage_id: storage_id.to_owned() }
}

fn name(member: &ClusterMember) -> Name {
    (member.node_id.clone(), member.storage_id.clone())
}

/// Those of the silent that were named, or all.
fn chosen(silent: &BTreeSet<Name>, named: &[String]) -> anyhow::Result<BTreeSet<Name>> {
    if named.is_empty() {
        return Ok(silent.clone());
    }
    if let Some(wrong) = named.iter().find(|named| !silent.iter().any(|(node, _)| node == *named)) {
        let message = format!(
            "{} is no member that does not answer: without --lost, all of them are shown",
            visible(wrong)
        );
        return Err(ClientError::Invalid(message).into());
    }
    Ok(silent.iter().filter(|(node, _)| named.contains(node)).cloned().collect())
}

/// Has a node ask all.
async fn ask(node: &mut Operator, request: RecoverRequest) -> anyhow::Result<Known> {
    let request = node.request("Recover", request);
    let answer = reach::within(&node.connection, node.service.recover(request)).await?;
    let refused = |status: Status| match status.code() {
        Code::FailedPrecondition => {
            ClientError::Invalid(format!("nothing was changed: {}", status.message()))
        }
        _ => ClientError::from(status),
    };
    Ok(answer.map_err(refused)?.into_inner())
}

/// Reading it.
trait Everywhere {
    fn stuck(&self) -> BTreeMap<u32, Stuck<'_>>;
    fn known(&self) -> impl Iterator<Item = (&ClusterMember, &KnownSlot)>;
    fn obstacles(&self) -> Vec<String>;
}

impl Everywhere for Known {
    /// By slot that cannot go on, what each node knows of it that knows its newest members, or holds something.
    fn stuck(&self) -> BTreeMap<u32, Stuck<'_>> {
        let mut all: BTreeMap<u32, Vec<(&ClusterMember, &KnownSlot)>> = BTreeMap::new();
        for (node, slot) in self.known() {
            all.entry(slot.slot).or_default().push((node, slot));
        }
        let stuck = all.into_iter().filter_map(|(slot, seen)| {
            let newest = seen.iter().map(|(_, of)| *of).max_by_key(|of| rank(of))?;
            // Where a node is said to own it, that one must not be stuck itself: it may wait for members that are lost.
            let is_owned = seen.iter().filter(|(_, of)| !of.owner.is_empty()).any(|(_, says)| {
                let owner = seen.iter().find(|(node, _)| node.node_id == says.owner);
                owner.is_none_or(|(_, of)| !of.is_stuck)
            });
            let is_stuck = seen.iter().any(|(_, of)| rank(of) == rank(newest) && of.is_stuck) && !is_owned;
            is_stuck.then_some((slot, Stuck { newest, seen }))
        });
        stuck.collect()
    }

    fn known(&self) -> impl Iterator<Item = (&ClusterMember, &KnownSlot)> {
        let answers = self.answers.iter().filter_map(|answer| Some((answer.node.as_ref()?, &answer.slots)));
        answers.flat_map(|(node, slots)| slots.iter().map(move |slot| (node, slot)))
    }

    /// Why nothing can be done now.
    fn obstacles(&self) -> Vec<String> {
        let failed =
            self.failed.iter().map(|failed| format!("a living node did not answer: {}", visible(failed)));
        let refused = self.answers.iter().filter(|answer| !answer.refused.is_empty());
        let refused = refused.map(|answer| {
            let node = answer.node.as_ref().map(|node| visible(&node.node_id)).unwrap_or_default();
            format!("{node}: {}", visible(&answer.refused))
        });
        failed.chain(refused).collect()
    }
}

fn shown_member((node, storage): &Name) -> String {
    format!("{} (directory {})", visible(node), visible(storage))
}

fn show(
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

async fn apply(
    node: &mut Operator,
    request: RecoverRequest,
    reason: String,
    output: &Output,
) -> anyhow::Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let decision = RecoverRequest {
        apply: true,
        brief: true,
        id: rand::random::<[u8; 16]>().to_vec().into(),
        reason,
        decided_at_ns: u64::try_from(now).unwrap_or(u64::MAX),
        ..request.clone()
    };
    let id = hex::encode(&decision.id);
    // The others hear of it from the one that was asked.
    ask(node, decision).await?;
    let request = RecoverRequest { brief: true, slots: Vec::new(), ..request };
    let until = Instant::now() + PATIENCE;
    loop {
        let known = ask(node, request.clone()).await?;
        let left = known.stuck().len();
        if left == 0 && known.failed.is_empty() {
            break;
        }
        anyhow::ensure!(
            Instant::now() < until,
            "the decision is taken and kept, and {left} slots do not go on yet: see the nodes' logs, and `ledgerctl cluster status`"
        );
        tokio::time::sleep(LOOKS_EVERY).await;
    }
    output.result(&json!({ "applied": true, "id": id }), || {
        format!("decision {id} is kept, and the slots go on with what is left; have as many nodes as copies, and see `ledgerctl cluster status`")
    })?;
    Ok(())
}

/// What was decided before, and what came of it.
async fn history(connection: &Connection, output: &Output) -> anyhow::Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_that_do_not_answer_can_be_named() {
        let member = |node: &str, storage: &str| (node.to_owned(), storage.to_owned());
        let silent = BTreeSet::from([member("a", "1"), member("b", "2"), member("b", "3")]);
        assert_eq!(chosen(&silent, &[]).unwrap(), silent);
        let of_b = chosen(&silent, &["b".to_owned()]).unwrap();
        assert_eq!(of_b, BTreeSet::from([member("b", "2"), member("b", "3")]), "with every directory it had");
        let wrong = chosen(&silent, &["c".to_owned()]).unwrap_err().to_string();
        assert!(wrong.contains("c is no member that does not answer"), "{wrong}");
    }
}
