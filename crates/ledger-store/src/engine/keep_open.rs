//! Reopens the database after a failed write, once a write is likely to succeed.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use crate::{StoreError, engine::reopenable_db::ReopenableDb, engine::space, limited, shared::Shared};

/// How often the thread checks whether the database failed.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// How long to wait before reopening a database that failed again soon after the previous reopening, at first and at
/// most.
const FIRST_BACKOFF: Duration = Duration::from_secs(2);
const MAX_BACKOFF: Duration = Duration::from_mins(1);
/// How often damaged files may cause a reopening before the database counts as failed permanently.
const MAX_DAMAGED_REOPENS: u32 = 3;

/// Runs the thread that reopens the database after a failed write, until `stop`.
pub(crate) fn run(database: &ReopenableDb, shared: &Shared, stop: &Receiver<()>) {
    let mut tries = ReopenBackoff::default();
    let mut damaged = 0;
    while stop.recv_timeout(POLL_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        // The first failure may have been a write other than a commit.
        if shared.failure().is_none()
            && let Some(error) = database.failure()
        {
            shared.commit_failed(&error);
        }
        let due = match shared.failure() {
            None => continue,
            Some(StoreError::DiskFull { .. }) => {
                let needed = database.needed();
                let has_space = database.free() >= needed;
                if !has_space {
                    shared.is_short_of(Some(needed));
                }
                has_space.then_some(needed)
            }
            Some(_) => Some(space::HEADROOM),
        };
        let Some(needed) = due.filter(|_| tries.are_due(Instant::now())) else { continue };
        // Readers lose this database while it is reopened, so probe the disk before closing it.
        if let Err(error) = space::probe(database.directory(), needed) {
            tries.wait(Instant::now());
            if space::is_no_space_io(&error) {
                shared.is_short_of(None);
            }
            limited!(
                warn, %error,
                "the data directory takes no new files, whatever space there is (look at inodes and quotas): appends wait, and reads go \
                 on"
            );
            continue;
        }
        tries.begin(Instant::now());
        if matches!(shared.failure(), Some(StoreError::FileDamaged(_))) {
            damaged += 1;
            if damaged > MAX_DAMAGED_REOPENS {
                // Operations other than compaction meet the damage too.
                database.fail_for_good();
                return;
            }
            database.stop_compacting();
        }
        match database.reopen() {
            Ok(()) => {
                shared.on_reopened();
                limited!(info, "the database was opened anew after a failure: appends go on");
            }
            Err(error) => limited!(error, %error, "the database cannot be opened anew yet"),
        }
    }
}

/// Decides when to reopen the database: at once, then ever less often if it keeps failing.
#[derive(Debug, Default)]
struct ReopenBackoff {
    /// The last attempt, and how long after it the next one must wait.
    last: Option<(Instant, Duration)>,
}

impl ReopenBackoff {
    fn are_due(&self, now: Instant) -> bool {
        self.last.is_none_or(|(at, pause)| now.saturating_duration_since(at) >= pause)
    }

    /// Records a reopening that begins now.
    fn begin(&mut self, now: Instant) {
        let lately = |(at, _): &(Instant, _)| now.saturating_duration_since(*at) < 2 * MAX_BACKOFF;
        let pause = self.last.filter(lately).map_or(FIRST_BACKOFF, |(_, pause)| (2 * pause).min(MAX_BACKOFF));
        self.last = Some((now, pause));
    }

    /// Records that the disk did not allow an attempt: the next one waits only the shortest pause.
    fn wait(&mut self, now: Instant) {
        self.last = Some((now, FIRST_BACKOFF));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_that_fails_again_and_again_is_opened_less_and_less_often() {
        let (mut tries, start) = (ReopenBackoff::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(tries.are_due(start), "the first time at once");
        let (mut now, mut pauses) = (0, Vec::new());
        for _ in 0..8 {
            tries.begin(at(now));
            let due = (now..=now + 60).find(|second| tries.are_due(at(*second))).unwrap();
            pauses.push(due - now);
            now = due;
        }
        assert_eq!(pauses, [2, 4, 8, 16, 32, 60, 60, 60]);
        tries.begin(at(now + 600));
        assert!(tries.are_due(at(now + 602)), "one that went well for long is as any other");
    }
}
