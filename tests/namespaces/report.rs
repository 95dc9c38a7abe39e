//! What came of a round, and of all rounds of a scenario, for people.

use std::{fmt, time::Duration};

/// What came of a round.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) took: Duration,
    /// Entries that writers were told of.
    pub(crate) acknowledged: usize,
    /// Entries in the history that all agree on.
    pub(crate) stored: usize,
    /// Entries that watchers were shown, and the reader.
    pub(crate) watched: usize,
    pub(crate) read: u64,
    /// The longest time without an acknowledgement in any context.
    pub(crate) pause: Duration,
    /// Histories that were left, and their entries.
    pub(crate) forks: usize,
    pub(crate) forked: usize,
    /// Errors that reached a user of the SDK.
    pub(crate) errors: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { took, acknowledged, stored, watched, read, pause, forks, forked, errors } = self;
        write!(
            f,
            "{:.1} s; {acknowledged} acknowledged, {stored} stored, {watched} watched, {read} read; longest pause {:.3} \
             s; {forks} forks of {forked} entries; {errors} errors reached a user",
            took.as_secs_f64(),
            pause.as_secs_f64(),
        )
    }
}

/// What came of all rounds that did not fail.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    acknowledged: usize,
    watched: usize,
    read: u64,
    forks: usize,
    forked: usize,
    errors: usize,
    pauses: Vec<Duration>,
    took: Duration,
}

impl Summary {
    pub(crate) fn add(&mut self, report: &Report) {
        self.acknowledged += report.acknowledged;
        self.watched += report.watched;
        self.read += report.read;
        self.forks += report.forks;
        self.forked += report.forked;
        self.errors += report.errors;
        self.took += report.took;
        self.pauses.push(report.pause);
    }

    /// In seconds: the longest pause of the middle one of the rounds, and of all.
    fn median_and_longest(&self) -> (f64, f64) {
        let mut pauses: Vec<_> = self.pauses.iter().map(Duration::as_secs_f64).collect();
        pauses.sort_by(f64::total_cmp);
        let at = |index: usize| pauses.get(index).copied().unwrap_or_default();
        (at(pauses.len() / 2), at(pauses.len().saturating_sub(1)))
    }

    /// A row of the table in docs/reliability.md: scenario, rounds, acknowledged, watched, pauses, forks.
    pub(crate) fn row(&self, scenario: &str) -> String {
        let (median, longest) = self.median_and_longest();
        let Self { acknowledged, watched, forks, forked, pauses, .. } = self;
        let forked = if *forks == 0 { String::new() } else { format!(" ({forked})") };
        format!(
            "| `{scenario}` | {} | {acknowledged} | {watched} | {median:.2} s, {longest:.2} s | {forks}{forked} |",
            pauses.len()
        )
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acknowledged, watched, read, forks, forked, errors, pauses, took } = self;
        let (median, longest) = self.median_and_longest();
        write!(
            f,
            "{} rounds in {:.0} s without a violation; {acknowledged} acknowledged, {watched} watched, {read} read; \
             longest pause {longest:.2} s (median of the rounds {median:.2} s); {forks} forks of {forked} entries; {errors} errors \
             reached a user",
            pauses.len(),
            took.as_secs_f64(),
        )
    }
}
