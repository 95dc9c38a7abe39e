//! What is tried again, when, and for how long.
//!
//! Tried again is what failed because of a connection or a node, not because of the request, and only what is
//! safe to repeat: reads, and appends, whose entry id makes the ledger answer a repetition with the first result.

use std::{future::Future, time::Duration};

use tokio::time::Instant;
use tonic::Status;

use crate::{ClientError, Options, address::Address, nodes::LeftAlone, refusal::Failure};

/// The longest pause before the second try; it doubles with every try.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// The longest pause at all: what is available again is found within this.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How often a call follows a node's word to another in a row before it pauses: two nodes may each believe that
/// the other is the owner.
const HOPS: u32 = 3;

/// A call to a node that failed.
#[derive(Debug, Clone)]
pub(crate) struct Failed {
    /// The node.
    pub at: Address,
    pub status: Status,
    pub failure: Failure,
}

impl Failed {
    pub(crate) fn new(at: Address, status: Status) -> Self {
        Self { failure: Failure::of(&status), at, status }
    }
}

/// The tries of one call.
#[derive(Debug)]
pub(crate) struct Attempts {
    started: Instant,
    timeout: Duration,
    /// 0: no limit.
    limit: u32,
    tried: u32,
    hops: u32,
    /// What the last try failed with.
    last: Option<String>,
    pub(crate) left_alone: LeftAlone,
}

impl Attempts {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            started: Instant::now(),
            timeout: options.timeout,
            limit: options.tries,
            tried: 0,
            hops: 0,
            last: None,
            left_alone: LeftAlone::default(),
        }
    }

    /// Takes a step of the call, while there is time.
    pub(crate) async fn within<T>(&self, step: impl Future<Output = T>) -> Result<T, ClientError> {
        match tokio::time::timeout_at(self.started + self.timeout, step).await {
            Ok(result) => Ok(result),
            Err(_) => Err(self.timed_out()),
        }
    }

    /// Pauses after a try that failed; an error if there is to be no other.
    pub(crate) async fn after(&mut self, failed: Failed) -> Result<(), ClientError> {
        let pause = self.next(failed)?;
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// How long to pause after a try that failed; an error if there is to be no other.
    pub(crate) fn next(&mut self, failed: Failed) -> Result<Duration, ClientError> {
        let Failed { at, status, failure } = failed;
        let wait = failure.wait();
        let is_final = failure == Failure::Final;
        if let Failure::Moved { owner: Some(_), .. } = failure
            && self.hops < HOPS
        {
            self.hops += 1;
            return Ok(Duration::ZERO);
        }
        self.hops = 0;
        self.tried = self.tried.saturating_add(1);
        let pause = pause(self.tried);
        let left = self.timeout.saturating_sub(self.started.elapsed());
        if is_final || self.tried == self.limit || pause >= left {
            return Err(status.into());
        }
        self.left_alone.add(&at, wait, Instant::now());
        self.last = Some(ClientError::from(status).to_string());
        Ok(pause)
    }

    /// Waits for as long as a node asked to be left alone.
    pub(crate) async fn keep_from(&self, node: &Address) {
        if let Some(until) = self.left_alone.until(node) {
            tokio::time::sleep_until(until).await;
        }
    }

    fn timed_out(&self) -> ClientError {
        let timeout = self.timeout;
        let text = match &self.last {
            Some(last) => format!("within {timeout:?}; the last try failed: {last}"),
            None => format!("within {timeout:?}"),
        };
        ClientError::TimedOut(text.into())
    }
}

/// Full jitter below a bound that doubles (Brooker, "Exponential Backoff And Jitter").
pub(crate) fn pause(tried: u32) -> Duration {
    let bound = FIRST_PAUSE.saturating_mul(1 << tried.saturating_sub(1).min(10)).min(LONGEST_PAUSE);
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

    fn failed(status: Status) -> Failed {
        Failed::new(Address::new("http://a:1").unwrap(), status)
    }

    #[tokio::test]
    async fn only_what_may_pass_is_tried_again_and_as_often_as_allowed() {
        for (code, expected) in [(Code::Unavailable, 4), (Code::InvalidArgument, 1), (Code::DataLoss, 1)] {
            let (mut attempts, mut calls) = (attempts(4), 0);
            loop {
                calls += 1;
                if attempts.after(failed(Status::new(code, "no"))).await.is_err() {
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
            if let Err(error) = attempts.after(failed(Status::unavailable("gone"))).await {
                break error;
            }
        };
        assert!(matches!(error, ClientError::Unavailable(_)), "{error}");
        assert!(attempts.tried > 2 && begin.elapsed() < 100 * timeout, "{attempts:?}");
    }

    #[tokio::test]
    async fn a_call_that_never_ends_times_out_and_says_what_failed_before() {
        let mut attempts = hasty(Duration::from_millis(200));
        attempts.after(failed(Status::unavailable("gone"))).await.unwrap();
        let never = attempts.within(std::future::pending::<()>()).await.unwrap_err();
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
            pauses += u32::from(!attempts.next(moved()).unwrap().is_zero());
        }
        assert_eq!(pauses, 100 / (HOPS + 1));
    }

    #[tokio::test]
    async fn a_node_that_asks_for_it_is_left_alone() {
        let mut attempts = attempts(0);
        let wait = Duration::from_millis(100);
        let details = ErrorDetails::with_retry_info(Some(wait));
        let busy = failed(Status::with_error_details(Code::Unavailable, "later", details));
        let (node, begin) = (busy.at.clone(), Instant::now());
        attempts.after(busy).await.unwrap();
        attempts.keep_from(&node).await;
        assert!(begin.elapsed() >= wait);
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        assert!((0..100).all(|_| pause(1) <= FIRST_PAUSE));
        assert!((0..100).all(|_| pause(u32::MAX) <= LONGEST_PAUSE));
        assert!((0..100).any(|_| pause(20) > LONGEST_PAUSE / 2));
    }
}
