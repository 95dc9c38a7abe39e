//! What is tried again, and when.
//!
//! Only calls that failed with UNAVAILABLE are, and only those that are safe to repeat: reads, and
//! appends, whose entry id makes the ledger answer a repetition with the first result.

use std::{future::Future, time::Duration};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{ClientError, Options};

/// The longest pause before the second try; it doubles with every try.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause at all.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Runs a call, again after a pause while it fails with UNAVAILABLE, within the tries and the time allowed.
pub(crate) async fn with_retries<T, F>(
    options: &Options,
    mut call: impl FnMut() -> F,
) -> Result<T, ClientError>
where
    F: Future<Output = Result<T, Status>>,
{
    let tries = async {
        let mut tried = 0;
        loop {
            let status = match call().await {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            tried += 1;
            if tried >= options.tries || !is_unavailable(&status) {
                return Err(status.into());
            }
            tokio::time::sleep(pause(tried, &status)).await;
        }
    };
    match tokio::time::timeout(options.timeout, tries).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::TimedOut(format!("within {:?}", options.timeout))),
    }
}

/// Whether a status says that another try may succeed.
pub(crate) fn is_unavailable(status: &Status) -> bool {
    matches!(ClientError::from(status.clone()), ClientError::Unavailable(_))
        || status.code() == Code::Unavailable
}

/// Full jitter below a bound that doubles (Brooker, "Exponential Backoff And Jitter"), and at least what
/// the ledger asks for.
pub(crate) fn pause(tried: u32, status: &Status) -> Duration {
    let asked = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or_default();
    let bound = FIRST_PAUSE.saturating_mul(1 << tried.min(10)).min(LONGEST_PAUSE);
    asked.min(LONGEST_PAUSE) + bound.mul_f64(jitter())
}

/// 0 to 1, different each time: from the random bits of a version 4 UUID.
fn jitter() -> f64 {
    let bits = uuid::Uuid::new_v4().as_u128() as u32;
    f64::from(bits) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn options(tries: u32) -> Options {
        Options { tries, ..Options::default() }
    }

    #[tokio::test]
    async fn only_unavailable_is_tried_again_and_not_for_ever() {
        for (code, expected) in [(Code::Unavailable, 4), (Code::InvalidArgument, 1), (Code::DataLoss, 1)] {
            let calls = AtomicU32::new(0);
            let options = options(4);
            let result = with_retries(&options, || async {
                calls.fetch_add(1, Ordering::SeqCst);
                Err::<(), _>(Status::new(code, "no"))
            });
            assert!(result.await.is_err());
            assert_eq!(calls.load(Ordering::SeqCst), expected, "{code:?}");
        }
    }

    #[tokio::test]
    async fn a_call_that_never_ends_times_out() {
        let options = Options { timeout: Duration::from_millis(20), ..Options::default() };
        let never = with_retries(&options, std::future::pending::<Result<(), Status>>).await;
        assert!(matches!(never, Err(ClientError::TimedOut(_))));
    }

    #[test]
    fn pauses_grow_to_a_bound() {
        let status = Status::unavailable("no");
        assert!((0..100).all(|_| pause(1, &status) <= FIRST_PAUSE * 2));
        assert!((0..100).all(|_| pause(40, &status) <= LONGEST_PAUSE));
    }
}
