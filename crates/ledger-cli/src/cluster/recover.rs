//! `ledgerctl cluster recover`: going on when too many members of a slot are lost for good.

mod history;
mod showing;
mod stuck;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ledger_client::ClientError;
use ledger_proto::ledger::v1::RecoverRequest;
use serde_json::json;
use tonic::{Code, Status};

use self::{
    history::history,
    showing::show,
    stuck::{Everywhere as _, Known, Name, member, name},
};
use super::operator::Operator;
use crate::{
    args::{Connection, Recover},
    output::{Output, visible},
    reach,
};

/// How long slots may take to go on.
const TIMEOUT: Duration = Duration::from_mins(2);
/// How often it is looked whether they have.
const LOOKS_EVERY: Duration = Duration::from_millis(500);
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
    let until = Instant::now() + TIMEOUT;
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
