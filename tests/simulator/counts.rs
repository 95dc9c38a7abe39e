//! What happened in a run, counted: what never happens is not tried.

use std::fmt;

use super::faults::FAULTS;

named! {
    /// Something that is counted, beside the faults: what went wrong, how the cluster reacted, and what clients did.
    Counted {
        Runs = "seeds",
        Steps = "steps",
        Milliseconds = "milliseconds simulated",
        LongestHealing = "milliseconds of the longest healing",
        Lost = "messages lost",
        Cut = "messages into cut links",
        Duplicated = "messages doubled",
        Overtaken = "messages overtaken",
        WritesLost = "unsynced writes lost in crashes",
        MostLost = "losses of most of a slot's disks",
        Owned = "takeovers",
        HandedOver = "of these, handovers",
        Moved = "moves of a member",
        Left = "nodes that left with nothing counting on them",
        Reopened = "databases opened anew after a failed write",
        Recovered = "takeovers that went on without lost members",
        Forked = "histories left to forks",
        Fetched = "entries fetched to catch up",
        Restored = "damaged contexts restored",
        Reidentified = "disks that forgot what they promised",
        FetchCut = "responses to fetches that were cut short",
        Expired = "appends and loads that waited too long for their copies",
        Checkpoints = "digests that replicas in sync compared",
        Created = "entries written",
        Acknowledged = "acknowledged at m copies",
        AcknowledgedAtFewer = "acknowledged at fewer copies",
        Cancelled = "appends whose caller gave up",
        PutBack = "put back by their writers",
        Attached = "times a writer attached to a node",
        Read = "reads",
        NotRead = "reads that a node sent elsewhere",
        Unanswered = "requests of clients that do not read",
        MostKept = "entries that a node kept for clients at most",
        Watched = "entries seen by watchers",
        StartedOver = "times a watcher started over",
        Loaded = "loads acknowledged",
        LoadStaged = "loads that members staged before they were put in place",
        LoadedAgain = "loads that found everything there already",
        LoadFetched = "loads fetched before they were stable",
    }
}

/// The counts of a run: of [`Counted`], then of the faults, in the order in which they are declared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(Vec<u64>);

/// Those of which the most of all runs counts, not the sum.
const MOST: [Counted; 2] = [Counted::LongestHealing, Counted::MostKept];

fn names() -> impl Iterator<Item = &'static str> {
    Counted::ALL.iter().map(|what| what.name()).chain(FAULTS.iter().map(|(name, ..)| *name))
}

impl Counts {
    fn at(&mut self, index: usize) -> &mut u64 {
        if index >= self.0.len() {
            self.0.resize(names().count(), 0);
        }
        &mut self.0[index]
    }

    pub fn add(&mut self, what: Counted, count: u64) {
        *self.at(what as usize) += count;
    }

    /// Counts the most of something.
    pub fn most(&mut self, what: Counted, count: u64) {
        let known = self.at(what as usize);
        *known = count.max(*known);
    }

    pub fn add_fault(&mut self, fault: usize) {
        *self.at(Counted::ALL.len() + fault) += 1;
    }

    /// Adds the counts of another run.
    pub fn add_all(&mut self, other: &Self) {
        for (index, count) in other.0.iter().enumerate() {
            let is_most = MOST.iter().any(|most| *most as usize == index);
            let known = self.at(index);
            *known = if is_most { (*count).max(*known) } else { *count + *known };
        }
    }

    fn get(&self, what: Counted) -> u64 {
        self.0.get(what as usize).copied().unwrap_or_default()
    }

    fn faults(&self) -> u64 {
        self.0.iter().skip(Counted::ALL.len()).sum()
    }

    /// Formats the counts in one line.
    pub fn brief(&self) -> String {
        let (runs, steps) = (self.get(Counted::Runs), self.get(Counted::Steps));
        format!("{runs} seeds, {steps} steps, {} faults", self.faults())
    }

    /// Returns what never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        names().zip(&self.0).filter(|(_, count)| **count == 0).map(|(name, _)| name).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, count)) in names().zip(&self.0).enumerate() {
            if index == Counted::ALL.len() {
                writeln!(f, "{:>14} faults:", self.faults())?;
            }
            let margin = if index < Counted::ALL.len() { "" } else { "  " };
            writeln!(f, "{count:>14} {margin}{name}")?;
        }
        Ok(())
    }
}
