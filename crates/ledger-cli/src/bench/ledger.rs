//! The contexts that measurements write: under one prefix, for they cannot be removed.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};

use ledger_client::{Client, ClientError};

use crate::output::Output;

/// What the name of every context that is written begins with.
pub(crate) const PREFIX: &str = "ledgerctl-bench/";

/// What the names of the contexts of a new run begin with.
pub(crate) fn run(name: &str) -> String {
    format!("{PREFIX}{name}/{}", uuid::Uuid::now_v7().simple())
}

/// Warns of what is written, and asks before it is written beside other data.
pub(crate) async fn allow(client: &Client, yes: bool, output: &Output) -> anyhow::Result<()> {
    let warning = format!("what bench appends stays: contexts under {PREFIX} cannot be removed");
    if yes || !holds_other_data(client).await? {
        output.note(&warning);
        return Ok(());
    }
    let refuse = |reason: &str| -> anyhow::Result<()> {
        let message = format!(
            "{reason}: this ledger holds other data, and {warning}. Measure one of its own, or say --yes"
        );
        Err(ClientError::Invalid(message).into())
    };
    if output.is_json() || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return refuse("not measured");
    }
    let question = format!("This ledger holds other data, and {warning}. Go on? [y/N] ");
    let answered = tokio::task::spawn_blocking(move || {
        let mut answer = String::new();
        write!(io::stderr(), "{question}")?;
        io::stdin().lock().read_line(&mut answer)?;
        io::Result::Ok(answer)
    });
    let answer = answered.await??;
    if answer.trim().eq_ignore_ascii_case("y") || answer.trim().eq_ignore_ascii_case("yes") {
        return Ok(());
    }
    refuse("not confirmed")
}

/// Whether there is a context that no measurement wrote.
async fn holds_other_data(client: &Client) -> Result<bool, ClientError> {
    let (first, _) = client.contexts("", "", 1).await?;
    if first.first().is_none_or(|info| !info.context.as_str().starts_with(PREFIX)) {
        return Ok(!first.is_empty());
    }
    // After all names that begin with the prefix.
    let (beyond, _) = client.contexts("", &format!("{PREFIX}\u{10ffff}"), 1).await?;
    Ok(!beyond.is_empty())
}
