//! Why a request was refused, as a gRPC client sees it: the one mapping from the store's errors.
//!
//! | what happened | code | a client should |
//! | --- | --- | --- |
//! | a name, key, id, limit or option is wrong; a received Lamport time is too far ahead | `INVALID_ARGUMENT`, names the field | fix the request |
//! | entry or message over the limit; clock or sequence would overflow; answer does not fit a message | `RESOURCE_EXHAUSTED` | send less, or use the streaming form |
//! | the snapshot is not one, is cut off, too new, or over a limit | `INVALID_ARGUMENT` | send a good one |
//! | the snapshot, or stored data, does not match its hashes | `DATA_LOSS` | restore from a good copy |
//! | too many observers of a context, or on the node | `RESOURCE_EXHAUSTED` | join when some have left |
//! | another observer joined by the same name | `ABORTED` | choose another name |
//! | entry id taken; context has entries | `ALREADY_EXISTS` | choose another |
//! | histories differ, or the history changed under a resume token | `FAILED_PRECONDITION` | start over |
//! | a size or sequence the context does not have | `OUT_OF_RANGE` | ask for less |
//! | no such fork | `NOT_FOUND` | list the forks |
//! | no memory left for it at the moment | `RESOURCE_EXHAUSTED`, retry after [`RETRY_MEMORY`](limits::RETRY_MEMORY) | try again, with less at once |
//! | not done before the call's deadline | `DEADLINE_EXCEEDED`, says what it waited for | an append may be stored: repeat it with its id |
//! | shutting down | `UNAVAILABLE`, retry after [`RETRY_SHUTDOWN`] | try again, elsewhere |
//! | disk full | `UNAVAILABLE`, retry after [`RETRY_DISK_FULL`] | try again: nothing was appended |
//! | another node owns it, or none | `UNAVAILABLE`, retry after [`RETRY_NOT_OWNER`], `ErrorInfo` names the owner | go to the owner at once, or try again |
//! | storage failed | `INTERNAL` | retry with an entry id |
//!
//! A full disk is `UNAVAILABLE` and not `RESOURCE_EXHAUSTED`: without a delay to retry after, the latter here says that
//! the request can never succeed, and this one will, unchanged, when there is space.

use std::{collections::HashMap, time::Duration};

use ledger_core::{
    entry::MetadataTooLarge, id::IdError, legacy::LegacyError, log::LogError, snapshot::SnapshotError,
};
use ledger_proto::ledger::v1::AppendError;
use ledger_store::StoreError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

#[cfg(doc)]
use crate::limits;

/// When to try again a node that shuts down.
pub const RETRY_SHUTDOWN: Duration = Duration::from_secs(1);
/// When to try again after a full disk.
pub const RETRY_DISK_FULL: Duration = Duration::from_secs(5);
/// When to try again a context whose owner is not known, or cannot be reached where it is said to be.
pub const RETRY_NOT_OWNER: Duration = Duration::from_millis(100);

/// `google.rpc.ErrorInfo` of a refusal by a node that is not the owner: its domain and reason, and the metadata
/// that name the owner's gRPC address (host:port) and its node id.
pub const ERROR_DOMAIN: &str = "converge.ledger";
/// See [`ERROR_DOMAIN`].
pub const NOT_OWNER: &str = "NOT_OWNER";
/// See [`ERROR_DOMAIN`].
pub const OWNER_ADDRESS: &str = "owner_address";
/// See [`ERROR_DOMAIN`].
pub const OWNER: &str = "owner";

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
    /// This node is not the owner: who is.
    pub owner: Option<OwnerHint>,
    /// It has been so for long: waiting a moment changes nothing.
    pub is_permanent: bool,
}

/// The node to go to instead. Both are empty if there is none at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnerHint {
    /// Its node id.
    pub node: String,
    /// Where its gRPC services are: host:port.
    pub address: String,
}

impl Refusal {
    /// A refusal without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), field: None, retry: None, owner: None, is_permanent: false }
    }

    /// A field of the request is wrong.
    pub fn field(field: &'static str, message: impl Into<String>) -> Self {
        Self { field: Some(field), ..Self::new(Code::InvalidArgument, message) }
    }

    /// The node is shutting down.
    pub fn shutting_down() -> Self {
        StoreError::Closed.into()
    }

    /// Another node takes appends to this context, or no node does at the moment: then both are empty.
    pub fn not_owner(owner: &str, owner_address: &str) -> Self {
        let message = if owner.is_empty() {
            "no node owns this context at the moment: try again".to_owned()
        } else {
            format!("node {owner} at {owner_address} owns this context: append there")
        };
        Self {
            retry: Some(RETRY_NOT_OWNER),
            owner: Some(OwnerHint { node: owner.to_owned(), address: owner_address.to_owned() }),
            ..Self::new(Code::Unavailable, message)
        }
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
        let Refusal { code, message, field, retry, owner, is_permanent: _ } = refusal;
        let mut details = ErrorDetails::new();
        if let Some(field) = field {
            details.add_bad_request_violation(field, message.as_str());
        }
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        if let Some(OwnerHint { node, address }) = owner {
            let names = [(OWNER, node), (OWNER_ADDRESS, address)];
            let names = names.into_iter().filter(|(_, value)| !value.is_empty());
            let names = names.map(|(name, value)| (name.to_owned(), value)).collect::<HashMap<_, _>>();
            details.set_error_info(NOT_OWNER, ERROR_DOMAIN, names);
        } else if field.is_none() && retry.is_none() {
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
            StoreError::Lamport(error) => return Self::field("received_lamport", error.to_string()),
            StoreError::EntryTooLarge { .. }
            | StoreError::Log(LogError::Clock(_) | LogError::Full { .. }) => (Code::ResourceExhausted, None),
            StoreError::Log(LogError::NotNext { .. }) | StoreError::Damaged { .. } => (Code::DataLoss, None),
            StoreError::EntryIdTaken { .. } | StoreError::ContextExists { .. } => (Code::AlreadyExists, None),
            StoreError::HistoryDiffers { .. } | StoreError::HistoryChanged { .. } => {
                (Code::FailedPrecondition, None)
            }
            StoreError::Snapshot(error) => (snapshot_code(error), None),
            StoreError::Legacy(error) => (legacy_code(error), None),
            StoreError::OutOfRange { .. } => (Code::OutOfRange, None),
            StoreError::NotOwner { .. }
            | StoreError::Moving
            | StoreError::NotAcknowledged
            | StoreError::Restoring { .. }
            | StoreError::NotInStep { .. } => (Code::Unavailable, Some(RETRY_NOT_OWNER)),
            StoreError::NoLoadMemory { needed, all } if needed > all => (Code::ResourceExhausted, None),
            StoreError::OneAtATime | StoreError::NoLoadMemory { .. } => {
                (Code::ResourceExhausted, Some(RETRY_NOT_OWNER))
            }
            StoreError::NotCopied { .. } => (Code::DeadlineExceeded, None),
            StoreError::NoSuchFork { .. } => (Code::NotFound, None),
            StoreError::Ask(_) => (Code::InvalidArgument, None),
            StoreError::DiskFull { .. } => (Code::Unavailable, Some(RETRY_DISK_FULL)),
            StoreError::Closed => (Code::Unavailable, Some(RETRY_SHUTDOWN)),
            StoreError::Open { .. }
            | StoreError::NotWhole { .. }
            | StoreError::FileDamaged(_)
            | StoreError::SlotDamaged { .. }
            | StoreError::Io(_) => (Code::Internal, None),
        };
        Self { code, message: error.to_string(), field: None, retry, owner: None, is_permanent: false }
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
        LegacyError::NoRoom => Code::ResourceExhausted,
        LegacyError::HashMismatch { .. } | LegacyError::RootMismatch { .. } => Code::DataLoss,
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::ContextId;

    use super::*;

    #[test]
    fn a_refusal_that_may_pass_says_when_to_retry() {
        let status: Status = Refusal::from(StoreError::DiskFull { needed: None }).into();
        assert_eq!(status.code(), Code::Unavailable);
        let retry = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry, Some(RETRY_DISK_FULL));
        assert_eq!(Refusal::shutting_down().into_append_error().retry_after_ms, 1000);
    }

    #[test]
    fn a_node_that_is_not_the_owner_names_the_owner() {
        let status: Status = Refusal::not_owner("ledger-2", "10.0.0.2:50051").into();
        assert_eq!(status.code(), Code::Unavailable);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.domain.as_str(), info.reason.as_str()), (ERROR_DOMAIN, NOT_OWNER));
        assert_eq!((&*info.metadata[OWNER], &*info.metadata[OWNER_ADDRESS]), ("ledger-2", "10.0.0.2:50051"));
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(RETRY_NOT_OWNER));

        let status: Status = Refusal::not_owner("", "").into();
        assert_eq!(status.get_error_details().error_info().unwrap().metadata, HashMap::new());
        assert_eq!(Refusal::not_owner("", "").into_append_error().retry_after_ms, 100);
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
