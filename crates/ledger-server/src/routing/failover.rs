//! How long, and in which order, a stream goes from one source to the next before it ends.
//!
//! A source is this node's own store, or another node. One that ends as soon as it begins has not served the stream: only
//! what it delivers counts, or that it held for long.

use std::time::Duration;

use tokio::time::Instant;

/// How long a stream looks for a source that serves it. Its client begins again, elsewhere maybe.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after a source said that the context is damaged there, at first and at most.
const PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What went wrong since a source last served a stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct Failover {
    /// When the stream ends if that goes on.
    until: Option<Instant>,
    /// How many sources failed since the first that said that the context is damaged there.
    damaged: usize,
    /// When the source of now began.
    began: Option<Instant>,
}

impl Failover {
    /// A source was found.
    pub fn begin(&mut self) {
        self.began = Some(Instant::now());
    }

    /// It delivered something.
    pub fn served(&mut self) {
        (self.until, self.damaged) = (None, 0);
    }

    /// A source ended, or there is none: until when another one is looked for.
    pub fn ended(&mut self) -> Instant {
        if self.began.take().is_some_and(|began| began.elapsed() >= TIMEOUT) {
            self.served();
        }
        *self.until.get_or_insert_with(|| Instant::now() + TIMEOUT)
    }

    /// The source that ended said that the context is damaged there: until when to wait before the next one is asked.
    pub fn damaged(&mut self) -> Instant {
        let until = self.ended();
        self.damaged += 1;
        let pause = PAUSE.saturating_mul(1 << self.damaged.min(6)).min(LONGEST_PAUSE);
        until.min(Instant::now() + pause)
    }

    /// The source that ended does not answer, or does not show the context now. Where the context is damaged elsewhere, the
    /// next replica is asked: one that is away must not keep the watch from the one that has it.
    pub fn unavailable(&mut self) {
        if self.damaged > 0 {
            self.damaged += 1;
        }
    }

    /// Which of so many other replicas is asked. `None`: whoever is asked at first, as long as not more than one failed.
    pub fn turn(&self, others: usize) -> Option<usize> {
        (self.damaged > 1 && others > 0).then(|| (self.damaged - 1) % others)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_source_that_ends_as_soon_as_it_begins_has_not_served() {
        let mut failover = Failover::default();
        let until = failover.ended();
        assert_eq!(until, Instant::now() + TIMEOUT);
        for _ in 0..5 {
            failover.begin();
            advance(Duration::from_secs(5)).await;
            assert_eq!(failover.ended(), until, "the end does not move");
        }
        failover.begin();
        failover.served();
        advance(Duration::from_secs(3)).await;
        assert_eq!(failover.ended(), Instant::now() + TIMEOUT, "one that delivered has served");
        failover.begin();
        advance(TIMEOUT).await;
        assert_eq!(failover.ended(), Instant::now() + TIMEOUT, "so has one that held for long");
    }

    #[tokio::test(start_paused = true)]
    async fn the_other_replicas_are_asked_in_turn_with_pauses_that_grow() {
        let mut failover = Failover::default();
        assert_eq!(failover.turn(2), None);
        let (mut pauses, mut turns) = (Vec::new(), Vec::new());
        let until = failover.ended();
        for _ in 0..7 {
            failover.begin();
            let pause = failover.damaged() - Instant::now();
            pauses.push(pause.as_millis());
            turns.push(failover.turn(2));
            advance(pause).await;
        }
        assert_eq!(pauses, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(turns, [None, Some(1), Some(0), Some(1), Some(0), Some(1), Some(0)]);
        assert_eq!(failover.turn(0), None, "there is nobody else");
        failover.unavailable();
        assert_eq!(failover.turn(2), Some(1), "one that is away is not asked for ever");
        advance((until - Instant::now()).saturating_sub(Duration::from_millis(10))).await;
        assert_eq!(failover.damaged(), until, "no pause goes beyond the end");
        failover.served();
        failover.unavailable();
        assert_eq!(failover.turn(2), None, "nothing is damaged");
    }
}
