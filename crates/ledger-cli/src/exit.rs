//! How a run ends: the message and the exit code.

use std::{io, process::ExitCode};

use ledger_client::ClientError;

use crate::{escape, output};

/// Nothing was wrong with the request, but what it is about does not verify.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct NotVerified(pub String);

/// Something was answered, but not all of it: some nodes did not answer.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Partial(pub String);

/// It was looked at, and is not as it should be.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unwell(pub String);

/// What was asked for is not there.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Absent(pub String);

/// The user ended it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Interrupted(pub String);

/// Reports an error, and gives the exit code that `--help` documents.
pub(crate) fn code(ran: anyhow::Result<()>, json: bool, endpoint: &str) -> ExitCode {
    let Err(mut error) = ran else { return ExitCode::SUCCESS };
    if is_broken_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    let (number, kind) = classify(&error);
    if kind == "unavailable" {
        error = error.context(format!("{endpoint} (choose the node with --endpoint or LEDGER_ENDPOINT)"));
    }
    report(&format!("{error:#}"), kind, number, json);
    ExitCode::from(number)
}

/// The command line makes no sense, or asks for help.
pub(crate) fn usage(error: &clap::Error, json: bool) -> ExitCode {
    if !error.use_stderr() {
        // Whoever read the help has seen enough.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    if json {
        let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
        report(text, "usage", 2, true);
    } else if text.chars().any(|c| c != '\n' && escape::is_control(c)) {
        output::complain(text.trim_end());
    } else {
        let _ = error.print();
    }
    ExitCode::from(2)
}

fn report(text: &str, kind: &str, number: u8, json: bool) {
    if json {
        let object = serde_json::json!({ "error": text, "kind": kind, "exit_code": number });
        output::complain(&output::json_line(object));
    } else {
        output::complain(&format!("ledgerctl: {text}"));
    }
}

fn classify(error: &anyhow::Error) -> (u8, &'static str) {
    let is = |test: fn(&(dyn std::error::Error + 'static)) -> bool| error.chain().any(test);
    if is(<dyn std::error::Error>::is::<Interrupted>) {
        return (130, "interrupted");
    }
    if is(<dyn std::error::Error>::is::<NotVerified>) {
        return (4, "not_verified");
    }
    if error.chain().any(<dyn std::error::Error>::is::<Partial>) {
        return (8, "partial");
    }
    if is(<dyn std::error::Error>::is::<Unwell>) {
        return (9, "unwell");
    }
    if is(<dyn std::error::Error>::is::<Absent>) {
        return (7, "absent");
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<ClientError>()) {
        Some(ClientError::Endpoint { .. } | ClientError::Id(_) | ClientError::Invalid(_)) => (2, "invalid"),
        Some(ClientError::Unavailable(_) | ClientError::TimedOut(_)) => (3, "unavailable"),
        Some(ClientError::NotVerified(_)) => (4, "not_verified"),
        Some(ClientError::NotExtended(_)) => (4, "not_extended"),
        Some(ClientError::DataLoss(_)) => (4, "data_loss"),
        Some(ClientError::AlreadyExists(_)) => (5, "already_exists"),
        Some(ClientError::HistoryChanged { .. } | ClientError::Missing { .. }) => (5, "failed_precondition"),
        Some(ClientError::Exhausted(_)) => (6, "resource_exhausted"),
        Some(ClientError::Io(_) | ClientError::Other { .. }) | None => (1, "failed"),
    }
}

/// Whoever read our output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        let client = match cause.downcast_ref::<ClientError>() {
            Some(ClientError::Io(error)) => Some(error),
            _ => None,
        };
        io.or(client).is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_exit_codes_that_help_documents() {
        let of =
            |error: ClientError| classify(&anyhow::Error::from(error).context("while doing something")).0;
        assert_eq!(of(ClientError::Invalid("no".into())), 2);
        assert_eq!(of(ClientError::Unavailable("no".into())), 3);
        assert_eq!(of(ClientError::DataLoss("no".into())), 4);
        assert_eq!(of(ClientError::AlreadyExists("no".into())), 5);
        assert_eq!(of(ClientError::Exhausted("no".into())), 6);
        assert_eq!(classify(&anyhow::anyhow!("else")).0, 1);
        assert_eq!(classify(&NotVerified("no".into()).into()).0, 4);
        assert_eq!(classify(&Partial("no".into()).into()), (8, "partial"));
        assert_eq!(classify(&Unwell("no".into()).into()), (9, "unwell"));
        assert_eq!(classify(&Absent("no".into()).into()).0, 7);
        assert_eq!(classify(&Interrupted("no".into()).into()).0, 130);
    }
}
