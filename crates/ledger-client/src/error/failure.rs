//! What a failed call says about where and when to retry it.
//!
//! | the status | means | next |
//! | --- | --- | --- |
//! | `UNAVAILABLE` or `FAILED_PRECONDITION` with `ErrorInfo` `NOT_OWNER` | another node owns the context | the named owner at once, or a new search after a delay |
//! | `UNAVAILABLE`, or `RESOURCE_EXHAUSTED` with a delay | the node cannot serve now | another node, or this one after the delay of its `RetryInfo` |
//! | made on this side | the connection broke: the node may have done what the call asked | another node |
//! | anything else | a retry changes nothing | the caller |

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// `google.rpc.ErrorInfo.domain` of the ledger's refusals.
const DOMAIN: &str = "converge.ledger";
/// Its reason when another node owns the context.
const NOT_OWNER: &str = "NOT_OWNER";
/// The metadata key of the owner's address.
const OWNER_ADDRESS: &str = "owner_address";
/// The metadata key of the size up to which the node's history is the one the caller knows.
const COMMON_SIZE: &str = "common_size";
/// The longest delay of a `RetryInfo` that the client respects.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Why a call failed, as far as it matters for a retry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Another node owns the context: its address, host:port, if the node named one.
    NotOwner { owner: Option<String>, retry_after: Duration },
    /// The node cannot serve the call now.
    NotReady { retry_after: Duration },
    /// The connection failed.
    ConnectionLost,
    /// A retry changes nothing.
    Permanent,
}

impl Failure {
    pub(crate) fn of(status: &Status) -> Self {
        if wrong_address(&message_with_causes(status)).is_some() {
            return Self::Permanent;
        }
        // A status that a node sent has no source; one that tonic, hyper or h2 made of a connection error has.
        if std::error::Error::source(status).is_some() {
            return Self::ConnectionLost;
        }
        let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let retry_after = delay.unwrap_or_default().min(LONGEST_RETRY_AFTER);
        match status.code() {
            Code::Unavailable | Code::FailedPrecondition => {}
            // The node has no memory left for the call.
            Code::ResourceExhausted if delay.is_some() => return Self::NotReady { retry_after },
            _ => return Self::Permanent,
        }
        let info = status.get_details_error_info();
        match info.filter(|info| info.domain == DOMAIN && info.reason == NOT_OWNER) {
            Some(mut info) => Self::NotOwner { owner: info.metadata.remove(OWNER_ADDRESS), retry_after },
            None if status.code() == Code::Unavailable => Self::NotReady { retry_after },
            None => Self::Permanent,
        }
    }

    /// The same, for the result of one streamed append.
    pub(crate) fn of_item(code: i32, retry_after_ms: u64) -> Self {
        if code == Code::Unavailable as i32 {
            Self::NotReady { retry_after: Duration::from_millis(retry_after_ms).min(LONGEST_RETRY_AFTER) }
        } else {
            Self::Permanent
        }
    }

    /// How long the node asked the client to stay away.
    pub(crate) const fn retry_after(&self) -> Duration {
        match self {
            Self::NotOwner { retry_after, .. } | Self::NotReady { retry_after } => *retry_after,
            Self::ConnectionLost | Self::Permanent => Duration::ZERO,
        }
    }
}

/// What is wrong with the address the caller gave, if that is why the call failed: no retry helps.
pub(crate) fn wrong_address(message: &str) -> Option<&'static str> {
    // Messages of tonic, rustls and h2 when the other side speaks another protocol.
    if message.contains("grpc-status header missing") {
        return Some(
            "what answers at this address speaks HTTP, but no gRPC: is this the port of the ledger's console and \
             metrics (50080 by default)? Give the gRPC port (50051 by default)",
        );
    }
    if message.contains("InvalidContentType") {
        return Some(
            "what answers at this address speaks no TLS: the address begins with https://, and the node serves \
             plaintext. Write http://, or configure tls_cert and tls_key of the node",
        );
    }
    None
}

/// The message of a status with its causes, which a transport error hides.
pub(crate) fn message_with_causes(status: &Status) -> String {
    let mut message = status.message().to_owned();
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    message
}

/// Up to which size the node's history is the one the caller knows, if the node says it.
pub(crate) fn common_size(status: &Status) -> Option<u64> {
    let info = status.get_details_error_info()?;
    (info.domain == DOMAIN).then(|| info.metadata.get(COMMON_SIZE)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use tonic_types::ErrorDetails;

    use super::*;

    fn refused(code: Code, reason: &str, names: &[(&str, &str)]) -> Status {
        let names = names.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, names.collect::<HashMap<_, _>>());
        details.set_retry_info(Some(Duration::from_millis(70)));
        Status::with_error_details(code, "refused", details)
    }

    #[test]
    fn a_refusal_that_names_the_owner_redirects() {
        let retry_after = Duration::from_millis(70);
        for code in [Code::Unavailable, Code::FailedPrecondition] {
            let status = refused(code, NOT_OWNER, &[(OWNER_ADDRESS, "b:1"), ("owner", "b")]);
            assert_eq!(
                Failure::of(&status),
                Failure::NotOwner { owner: Some("b:1".to_owned()), retry_after }
            );
            assert_eq!(
                Failure::of(&refused(code, NOT_OWNER, &[])),
                Failure::NotOwner { owner: None, retry_after }
            );
        }
        assert_eq!(Failure::of(&refused(Code::Internal, NOT_OWNER, &[])), Failure::Permanent);
        assert_eq!(Failure::of(&refused(Code::Unavailable, "ELSE", &[])), Failure::NotReady { retry_after });
        assert_eq!(Failure::of(&refused(Code::FailedPrecondition, "ELSE", &[])), Failure::Permanent);
        assert_eq!(
            Failure::of(&refused(Code::ResourceExhausted, "ELSE", &[])),
            Failure::NotReady { retry_after }
        );
        assert_eq!(Failure::of(&Status::resource_exhausted("too large")), Failure::Permanent);
    }

    #[test]
    fn a_broken_connection_is_distinguished_from_a_status_of_a_node() {
        let broken = Status::from_error(Box::new(std::io::Error::other("reset by peer")));
        assert_eq!(Failure::of(&broken), Failure::ConnectionLost);
        assert_eq!(Failure::of(&Status::unknown("said the node")), Failure::Permanent);
        assert_eq!(
            Failure::of(&Status::unavailable("no")),
            Failure::NotReady { retry_after: Duration::ZERO }
        );
    }

    #[test]
    fn no_node_makes_a_client_wait_for_long() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_hours(24)));
        let status = Status::with_error_details(Code::Unavailable, "later", details);
        assert_eq!(Failure::of(&status).retry_after(), LONGEST_RETRY_AFTER);
        assert_eq!(Failure::of_item(Code::Unavailable as i32, u64::MAX).retry_after(), LONGEST_RETRY_AFTER);
    }

    #[test]
    fn details_that_are_not_details_are_ignored() {
        let status =
            Status::with_details(Code::Unavailable, "no", bytes::Bytes::from_static(b"\xff\xff\xff"));
        assert_eq!(Failure::of(&status), Failure::NotReady { retry_after: Duration::ZERO });
    }

    #[test]
    fn the_common_size_is_taken_if_it_is_said() {
        let said = refused(Code::FailedPrecondition, "HISTORY_CHANGED", &[(COMMON_SIZE, "41")]);
        assert_eq!(common_size(&said), Some(41));
        assert_eq!(common_size(&refused(Code::FailedPrecondition, "X", &[(COMMON_SIZE, "-")])), None);
        assert_eq!(common_size(&Status::failed_precondition("no")), None);
    }
}
