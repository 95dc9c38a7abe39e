//! What a failed call says about where and when to try again.
//!
//! | the status | means | next |
//! | --- | --- | --- |
//! | `UNAVAILABLE` or `FAILED_PRECONDITION` with `ErrorInfo` `NOT_OWNER` | another node owns the context | the named owner at once, or a new search after a pause |
//! | `UNAVAILABLE`, or `RESOURCE_EXHAUSTED` with a delay | the node cannot serve now | another node, or this one after the delay of its `RetryInfo` |
//! | made on this side | the connection broke: nobody knows what became of the call | another node |
//! | anything else | trying again changes nothing | the caller |

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// `google.rpc.ErrorInfo.domain` of the ledger's refusals.
const DOMAIN: &str = "converge.ledger";
/// Its reason when another node owns the context.
const NOT_OWNER: &str = "NOT_OWNER";
/// The metadata that says where the owner is.
const OWNER_ADDRESS: &str = "owner_address";
/// The metadata that says how far a history is the one the caller knows.
const COMMON_SIZE: &str = "common_size";
/// The longest delay of a `RetryInfo` that is kept to.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Why a call failed, as far as it matters for trying again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Another node owns the context: the address it gave, host:port, if any.
    Moved { owner: Option<String>, wait: Duration },
    /// The node cannot serve now.
    Busy { wait: Duration },
    /// The connection failed.
    Broken,
    /// Trying again changes nothing.
    Final,
}

impl Failure {
    pub(crate) fn of(status: &Status) -> Self {
        if mistake(&whole_message(status)).is_some() {
            return Self::Final;
        }
        // What the other side sent has no source; what tonic, hyper and h2 report of the connection has.
        if std::error::Error::source(status).is_some() {
            return Self::Broken;
        }
        let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
        let wait = delay.unwrap_or_default().min(LONGEST_WAIT);
        match status.code() {
            Code::Unavailable | Code::FailedPrecondition => {}
            // It has no memory left for the call.
            Code::ResourceExhausted if delay.is_some() => return Self::Busy { wait },
            _ => return Self::Final,
        }
        let info = status.get_details_error_info();
        match info.filter(|info| info.domain == DOMAIN && info.reason == NOT_OWNER) {
            Some(mut info) => Self::Moved { owner: info.metadata.remove(OWNER_ADDRESS), wait },
            None if status.code() == Code::Unavailable => Self::Busy { wait },
            None => Self::Final,
        }
    }

    /// The same for the result of one streamed append.
    pub(crate) fn of_item(code: i32, retry_after_ms: u64) -> Self {
        if code == Code::Unavailable as i32 {
            Self::Busy { wait: Duration::from_millis(retry_after_ms).min(LONGEST_WAIT) }
        } else {
            Self::Final
        }
    }

    /// How long the node asked to be left alone.
    pub(crate) const fn wait(&self) -> Duration {
        match self {
            Self::Moved { wait, .. } | Self::Busy { wait } => *wait,
            Self::Broken | Self::Final => Duration::ZERO,
        }
    }
}

/// What the caller got wrong, where it is the address: no later try will do.
pub(crate) fn mistake(message: &str) -> Option<&'static str> {
    // Of tonic, rustls and h2: what they meet when the other side speaks something else.
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

/// A message with its causes, which a transport error hides.
pub(crate) fn whole_message(status: &Status) -> String {
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

/// Up to where the history is the one the caller knows, if the ledger says it.
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
        let wait = Duration::from_millis(70);
        for code in [Code::Unavailable, Code::FailedPrecondition] {
            let status = refused(code, NOT_OWNER, &[(OWNER_ADDRESS, "b:1"), ("owner", "b")]);
            assert_eq!(Failure::of(&status), Failure::Moved { owner: Some("b:1".to_owned()), wait });
            assert_eq!(Failure::of(&refused(code, NOT_OWNER, &[])), Failure::Moved { owner: None, wait });
        }
        assert_eq!(Failure::of(&refused(Code::Internal, NOT_OWNER, &[])), Failure::Final);
        assert_eq!(Failure::of(&refused(Code::Unavailable, "ELSE", &[])), Failure::Busy { wait });
        assert_eq!(Failure::of(&refused(Code::FailedPrecondition, "ELSE", &[])), Failure::Final);
        assert_eq!(Failure::of(&refused(Code::ResourceExhausted, "ELSE", &[])), Failure::Busy { wait });
        assert_eq!(Failure::of(&Status::resource_exhausted("too large")), Failure::Final);
    }

    #[test]
    fn a_broken_connection_is_told_from_what_a_node_says() {
        let broken = Status::from_error(Box::new(std::io::Error::other("reset by peer")));
        assert_eq!(Failure::of(&broken), Failure::Broken);
        assert_eq!(Failure::of(&Status::unknown("said the node")), Failure::Final);
        assert_eq!(Failure::of(&Status::unavailable("no")), Failure::Busy { wait: Duration::ZERO });
    }

    #[test]
    fn no_node_makes_a_client_wait_for_long() {
        let details = ErrorDetails::with_retry_info(Some(Duration::from_hours(24)));
        let status = Status::with_error_details(Code::Unavailable, "later", details);
        assert_eq!(Failure::of(&status).wait(), LONGEST_WAIT);
        assert_eq!(Failure::of_item(Code::Unavailable as i32, u64::MAX).wait(), LONGEST_WAIT);
    }

    #[test]
    fn details_that_are_not_details_are_ignored() {
        let status =
            Status::with_details(Code::Unavailable, "no", bytes::Bytes::from_static(b"\xff\xff\xff"));
        assert_eq!(Failure::of(&status), Failure::Busy { wait: Duration::ZERO });
    }

    #[test]
    fn the_common_size_is_taken_if_it_is_said() {
        let said = refused(Code::FailedPrecondition, "HISTORY_CHANGED", &[(COMMON_SIZE, "41")]);
        assert_eq!(common_size(&said), Some(41));
        assert_eq!(common_size(&refused(Code::FailedPrecondition, "X", &[(COMMON_SIZE, "-")])), None);
        assert_eq!(common_size(&Status::failed_precondition("no")), None);
    }
}
