//! Why a request was refused, as a gRPC client sees it: the one mapping from the store's errors.
//!
//! | what happened | code | a client should |
//! | --- | --- | --- |
//! | a name, key, id, limit or option is wrong | `INVALID_ARGUMENT`, names the field | fix the request |
//! | payload over the limit; clock or sequence would overflow; answer does not fit a message | `RESOURCE_EXHAUSTED` | send less, or use the streaming form |
//! | the snapshot is not one, is cut off, too new, or over a limit | `INVALID_ARGUMENT` | send a good one |
//! | the snapshot, or stored data, does not match its hashes | `DATA_LOSS` | restore from a good copy |
//! | entry id taken; context has entries | `ALREADY_EXISTS` | choose another |
//! | histories differ, or the history changed under a resume token | `FAILED_PRECONDITION` | start over |
//! | a size or sequence the context does not have | `OUT_OF_RANGE` | ask for less |
//! | shutting down | `UNAVAILABLE`, retry after [`RETRY_SHUTDOWN`] | try again, elsewhere |
//! | disk full | `UNAVAILABLE`, retry after [`RETRY_DISK_FULL`] | try again: nothing was appended |
//! | storage failed | `INTERNAL` | retry with an entry id |
//!
//! A full disk is `UNAVAILABLE` and not `RESOURCE_EXHAUSTED`, because the latter here says that the
//! request can never succeed, and this one will, unchanged, when there is space.

use std::time::Duration;

use ledger_core::{
    entry::MetadataTooLarge, id::IdError, legacy::LegacyError, log::LogError, snapshot::SnapshotError,
};
use ledger_proto::ledger::v1::AppendError;
use ledger_store::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// When to try again a node that shuts down.
pub const RETRY_SHUTDOWN: Duration = Duration::from_secs(1);
/// When to try again after a full disk.
pub const RETRY_DISK_FULL: Duration = Duration::from_secs(5);

/// Why a request, or one entry of a batch, was refused.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The gRPC code.
    pub code: Code,
    /// What happened, to what, and what to do.
    pub message: String,
    /// The field of the request that is wrong.
    pub field: Option<&'static str>,
    /// When trying again may help.
    pub retry: Option<Duration>,
}

impl Refusal {
    /// A refusal without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None, retry: None }
    }

    /// A field of the request is wrong.
    pub fn field(field: &'static str, message: impl Into<String>) -> Self {
        Self { field: Some(field), ..Self::new(Code::InvalidArgument, message) }
    }

    /// The node is shutting down.
    pub fn shutting_down() -> Self {
        StoreError::Closed.into()
    }

    /// A part of the server failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// As the result of one entry of a batch.
    pub fn into_append_error(self) -> AppendError {
        AppendError {
            code: self.code as i32,
            message: self.message,
            retry_after_ms: self
                .retry
                .map_or(0, |delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let Refusal { code, message, field, retry } = refusal;
        let mut details = ErrorDetails::new();
        if let Some(field) = field {
            details.add_bad_request_violation(field, message.as_str());
        }
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        if field.is_none() && retry.is_none() {
            return Self::new(code, message);
        }
        Self::with_error_details(code, message, details)
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        let (code, retry) = match &error {
            StoreError::Id(error) => return error.clone().into(),
            StoreError::Metadata(error) => return (*error).into(),
            StoreError::PayloadTooLarge { .. }
            | StoreError::Log(LogError::Clock(_) | LogError::Full { .. }) => (Code::ResourceExhausted, None),
            StoreError::Log(LogError::NotNext { .. }) | StoreError::Damaged { .. } => (Code::DataLoss, None),
            StoreError::EntryIdTaken { .. } | StoreError::ContextExists { .. } => (Code::AlreadyExists, None),
            StoreError::HistoryDiffers { .. } | StoreError::HistoryChanged { .. } => {
                (Code::FailedPrecondition, None)
            }
            StoreError::Snapshot(error) => (snapshot_code(error), None),
            StoreError::Legacy(error) => (legacy_code(error), None),
            StoreError::OutOfRange { .. } => (Code::OutOfRange, None),
            StoreError::DiskFull => (Code::Unavailable, Some(RETRY_DISK_FULL)),
            StoreError::Closed => (Code::Unavailable, Some(RETRY_SHUTDOWN)),
            StoreError::Open { .. } | StoreError::Io(_) => (Code::Internal, None),
        };
        Self { code, message: error.to_string(), field: None, retry }
    }
}

impl From<IdError> for Refusal {
    fn from(error: IdError) -> Self {
        let (IdError::Empty { field, .. }
        | IdError::TooLong { field, .. }
        | IdError::ControlCharacter { field, .. }) = error;
        Self::field(field, error.to_string())
    }
}

impl From<MetadataTooLarge> for Refusal {
    fn from(error: MetadataTooLarge) -> Self {
        Self::field("metadata", error.to_string())
    }
}

/// The wrong thing was sent, or the right thing damaged.
const fn snapshot_code(error: &SnapshotError) -> Code {
    match error {
        SnapshotError::NotASnapshot
        | SnapshotError::NewerVersion { .. }
        | SnapshotError::Truncated { .. }
        | SnapshotError::TrailingBytes { .. }
        | SnapshotError::Limit { .. } => Code::InvalidArgument,
        SnapshotError::Corrupt { .. }
        | SnapshotError::RootMismatch { .. }
        | SnapshotError::Checksum { .. } => Code::DataLoss,
        SnapshotError::Zstd(_) => Code::Internal,
    }
}

/// As [`snapshot_code`], for snapshots of the predecessor.
const fn legacy_code(error: &LegacyError) -> Code {
    match error {
        LegacyError::NotLegacy
        | LegacyError::NewerVersion { .. }
        | LegacyError::Truncated { .. }
        | LegacyError::TrailingBytes { .. }
        | LegacyError::Limit { .. }
        | LegacyError::Compression { .. }
        | LegacyError::Unexpected { .. }
        | LegacyError::Field { .. }
        | LegacyError::Gap { .. }
        | LegacyError::DuplicateId { .. } => Code::InvalidArgument,
        LegacyError::HashMismatch { .. } | LegacyError::RootMismatch { .. } => Code::DataLoss,
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::ContextId;

    use super::*;

    #[test]
    fn a_refusal_that_may_pass_says_when_to_retry() {
        let status: Status = Refusal::from(StoreError::DiskFull).into();
        assert_eq!(status.code(), Code::Unavailable);
        let retry = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry, Some(RETRY_DISK_FULL));
        assert_eq!(Refusal::shutting_down().into_append_error().retry_after_ms, 1000);
    }

    #[test]
    fn a_wrong_field_is_named_in_the_details() {
        let status: Status = Refusal::from(ContextId::new("").unwrap_err()).into();
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "context_id");
        assert!(status.message().contains("context_id"));
    }
}
