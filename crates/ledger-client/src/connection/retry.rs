//! Whether a failed call is retried, when, and for how long.
//!
//! The client retries a call that failed because of a connection or a node, not because of the request, and only a
//! call that is safe to repeat: a read, or an append, for whose entry id the ledger returns the first result again.

use std::{future::Future, time::Duration};

use tokio::time::Instant;
use tonic::Status;

use super::{address::Address, nodes::RetryAfter};
use crate::{
    error::{ClientError, failure::Failure},
    options::Options,
};

/// The longest delay before the second attempt; the bound doubles with every attempt.
const FIRST_DELAY: Duration = Duration::from_millis(20);
/// The longest delay at all: the client finds a node that is back within this.
const LONGEST_DELAY: Duration = Duration::from_millis(500);
/// How many redirects in a row a call follows before it backs off: two nodes may each believe that the other is the
/// owner.
const MAX_REDIRECTS: u32 = 3;

/// A call to a node that failed.
#[derive(Debug, Clone)]
pub(crate) struct FailedCall {
    pub node: Address,
    pub status: Status,
    pub failure: Failure,
}

impl FailedCall {
    pub(crate) fn new(node: Address, status: Status) -> Self {
        Self { failure: Failure::of(&status), node, status }
    }
}

/// The attempts of one call.
#[derive(Debug)]
pub(crate) struct Attempts {
    started: Instant,
    timeout: Duration,
    /// 0: no limit.
    limit: u32,
    failures: u32,
    redirects: u32,
    /// The error of the last attempt.
    last_error: Option<String>,
    /// The nodes that asked this call to come back later.
    pub(crate) retry_after: RetryAfter,
}

impl Attempts {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            started: Instant::now(),
            timeout: options.timeout,
            limit: options.tries,
            failures: 0,
            redirects: 0,
            last_error: None,
            retry_after: RetryAfter::default(),
        }
    }

    /// Awaits a step of the call until the deadline of the call.
    pub(crate) async fn within_deadline<T>(&self, step: impl Future<Output = T>) -> Result<T, ClientError> {
        match tokio::time::timeout_at(self.started + self.timeout, step).await {
            Ok(result) => Ok(result),
            Err(_) => Err(self.timed_out()),
        }
    }

    /// Sleeps after an attempt that failed; an error if the call is not to be retried.
    pub(crate) async fn back_off(&mut self, failed: FailedCall) -> Result<(), ClientError> {
        let delay = self.next_delay(failed)?;
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// How long to sleep after an attempt that failed; an error if the call is not to be retried.
    pub(crate) fn next_delay(&mut self, failed: FailedCall) -> Result<Duration, ClientError> {
        let FailedCall { node, status, failure } = failed;
        let retry_after = failure.retry_after();
        let is_permanent = failure == Failure::Permanent;
        if let Failure::NotOwner { owner: Some(_), .. } = failure
            && self.redirects < MAX_REDIRECTS
        {
            self.redirects += 1;
            return Ok(Duration::ZERO);
        }
        self.redirects = 0;
        self.failures = self.failures.saturating_add(1);
        let delay = backoff_delay(self.failures);
        let left = self.timeout.saturating_sub(self.started.elapsed());
        if is_permanent || self.failures == self.limit || delay >= left {
            return Err(status.into());
        }
        self.retry_after.add(&node, retry_after, Instant::now());
        self.last_error = Some(ClientError::from(status).to_string());
        Ok(delay)
    }

    /// Sleeps for as long as the node asked this call to stay away.
    pub(crate) async fn wait_retry_after(&self, node: &Address) {
        if let Some(until) = self.retry_after.until(node) {
            tokio::time::sleep_until(until).await;
        }
    }

    fn timed_out(&self) -> ClientError {
        let timeout = self.timeout;
        let text = match &self.last_error {
            Some(last) => format!("within {timeout:?}; the last try failed: {last}"),
            None => format!("within {timeout:?}"),
        };
        ClientError::TimedOut(text.into())
    }
}

/// Full jitter below a bound that doubles (Brooker, "Exponential Backoff And Jitter").
pub(crate) fn backoff_delay(attempt: u32) -> Duration {
    let bound = FIRST_DELAY.saturating_mul(1 << attempt.saturating_sub(1).min(10)).min(LONGEST_DELAY);
    bound.mul_f64(jitter())
}

/// 0 to 1, different each time: from the random bits of a version 4 UUID.
fn jitter() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn attempts(tries: u32) -> Attempts {
        Attempts::new(&Options { tries, ..Options::default() })
    }

    fn hasty(timeout: Duration) -> Attempts {
        Attempts::new(&Options { timeout, ..Options::default() })
    }

    fn failed(status: Status) -> FailedCall {
        FailedCall::new(Address::new("http://a:1").unwrap(), status)
    }

    #[tokio::test]
    async fn only_what_may_pass_is_tried_again_and_as_often_as_allowed() {
        for (code, expected) in [(Code::Unavailable, 4), (Code::InvalidArgument, 1), (Code::DataLoss, 1)] {
            let (mut attempts, mut calls) = (attempts(4), 0);
            loop {
                calls += 1;
                if attempts.back_off(failed(Status::new(code, "no"))).await.is_err() {
                    break;
                }
            }
            assert_eq!(calls, expected, "{code:?}");
        }
    }

    #[tokio::test]
    async fn without_a_limit_it_goes_on_until_the_time_is_up() {
        let timeout = Duration::from_millis(200);
        let (mut attempts, begin) = (hasty(timeout), Instant::now());
        let error = loop {
            if let Err(error) = attempts.back_off(failed(Status::unavailable("gone"))).await {
                break error;
            }
        };
        assert!(matches!(error, ClientError::Unavailable(_)), "{error}");
        assert!(attempts.failures > 2 && begin.elapsed() < 100 * timeout, "{attempts:?}");
    }

    #[tokio::test]
    async fn a_call_that_never_ends_times_out_and_says_what_failed_before() {
        let mut attempts = hasty(Duration::from_millis(200));
        attempts.back_off(failed(Status::unavailable("gone"))).await.unwrap();
        let never = attempts.within_deadline(std::future::pending::<()>()).await.unwrap_err();
        assert!(matches!(&never, ClientError::TimedOut(why) if why.message.contains("gone")), "{never}");
    }

    #[tokio::test]
    async fn a_redirection_is_followed_at_once_but_not_for_ever() {
        let moved = || {
            let names = [("owner_address".to_owned(), "b:1".to_owned())];
            let details = ErrorDetails::with_error_info("NOT_OWNER", "converge.ledger", names);
            failed(Status::with_error_details(Code::Unavailable, "b", details))
        };
        let (mut attempts, mut pauses) = (attempts(0), 0);
        for _ in 0..100 {
            pauses += u32::from(!attempts.next_delay(moved()).unwrap().is_zero());
        }
        assert_eq!(pauses, 100 / (MAX_REDIRECTS + 1));
    }

    #[tokio::test]
    async fn a_call_waits_for_as_long_as_a_node_asks() {
        let mut attempts = attempts(0);
        let wait = Duration::from_millis(100);
        let details = ErrorDetails::with_retry_info(Some(wait));
        let busy = failed(Status::with_error_details(Code::Unavailable, "later", details));
        let (node, begin) = (busy.node.clone(), Instant::now());
        attempts.back_off(busy).await.unwrap();
        attempts.wait_retry_after(&node).await;
        assert!(begin.elapsed() >= wait);
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        assert!((0..100).all(|_| backoff_delay(1) <= FIRST_DELAY));
        assert!((0..100).all(|_| backoff_delay(u32::MAX) <= LONGEST_DELAY));
        assert!((0..100).any(|_| backoff_delay(20) > LONGEST_DELAY / 2));
    }
}
