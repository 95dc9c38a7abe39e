//! `ledgerctl cluster drain`.

use ledger_client::ClientError;
use ledger_proto::ledger::v1::DrainRequest;
use serde_json::json;
use tonic::{Code, Status};

use super::operator::Operator;
use crate::{args::Connection, output::Output, progress, reach};

pub(super) async fn run(connection: &Connection, resume: bool, output: &Output) -> anyhow::Result<()> {
    if connection.endpoint.contains(',') {
        let message = "several endpoints are given: name the one node to drain with --endpoint";
        return Err(ClientError::Invalid(message.to_owned()).into());
    }
    let mut node = Operator::at(connection).await?;
    let refused = |status: Status| match status.code() {
        // Nothing to do with a history: this node cannot be drained.
        Code::FailedPrecondition => ClientError::Invalid(status.message().to_owned()),
        _ => status.into(),
    };
    let request = node.request("Drain", DrainRequest { resume });
    let asked = reach::within(connection, node.service.drain(request)).await?;
    let mut steps = asked.map_err(refused)?.into_inner();
    let bar = progress::slots("still owned");
    let mut owned = 0;
    while let Some(step) = steps.message().await.map_err(refused)? {
        owned = step.owned;
        bar.set_position(owned.into());
        if output.is_json() {
            output.result(&json!({ "owned": owned, "resume": resume }), String::new)?;
        }
    }
    bar.finish_and_clear();
    anyhow::ensure!(resume || owned == 0, "the node stopped to hand over, and still owns {owned} slots");
    if !output.is_json() {
        output.result(&json!(null), || {
            if resume {
                format!("the node takes slots again; it owns {owned} now")
            } else {
                "drained: the node owns no slot, and takes none until it is started anew, or told to with --resume"
                    .to_owned()
            }
        })?;
    }
    Ok(())
}
