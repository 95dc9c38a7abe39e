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

/// Whether there is a context that no measurement wrote, or may be one, for not all are listed.
async fn holds_other_data(client: &Client) -> Result<bool, ClientError> {
    let is_other = |name: &String| !name.starts_with(PREFIX);
    let (first, is_whole) = first_after(client, "").await?;
    if !is_whole || first.as_ref().is_some_and(is_other) {
        return Ok(true);
    }
    // After all names that begin with the prefix.
    let (beyond, is_whole) = first_after(client, &format!("{PREFIX}\u{10ffff}")).await?;
    Ok(!is_whole || beyond.is_some())
}

/// The first context after a name, and whether all nodes that may have one before it were heard.
async fn first_after(client: &Client, name: &str) -> Result<(Option<String>, bool), ClientError> {
    let mut after = name.to_owned();
    loop {
        let page = client.contexts("", &after, 1).await?;
        let is_whole = page.unlisted.is_empty();
        match (page.contexts.first(), page.next) {
            (Some(info), _) => return Ok((Some(info.context.as_str().to_owned()), is_whole)),
            (None, Some(next)) if is_whole => after = next,
            (None, _) => return Ok((None, is_whole)),
        }
    }
}
