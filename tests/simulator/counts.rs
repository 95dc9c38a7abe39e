//! What happened in a run, counted: what never happens is not tried.

use std::fmt;

use super::{faults::FAULTS, prelude::*};

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
        Recovered = "takeovers that went on without lost members",
        Forked = "histories left to forks",
        Fetched = "entries fetched to catch up",
        Restored = "damaged contexts restored",
        Reidentified = "disks that forgot what they promised",
        FetchCut = "responses to fetches that were cut short",
        Created = "entries written",
        Acknowledged = "acknowledged at m copies",
        AcknowledgedAtFewer = "acknowledged at fewer copies",
        PutBack = "put back by their writers",
        Attached = "times a writer attached to a node",
        Read = "reads",
        NotRead = "reads that a node sent elsewhere",
        Watched = "entries seen by watchers",
        StartedOver = "times a watcher started over",
        Loaded = "loads acknowledged",
        LoadStaged = "loads that members staged before they were put in place",
        LoadedAgain = "loads that found everything there already",
        LoadFetched = "loads fetched before they were stable",
    }
}

/// The counts of a run, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts(BTreeMap<&'static str, u64>);

impl Counts {
    pub fn add(&mut self, what: Counted, count: u64) {
        self.add_named(what.name(), count);
    }

    pub fn add_named(&mut self, name: &'static str, count: u64) {
        *self.0.entry(name).or_default() += count;
    }

    /// Adds the counts of another run.
    pub fn add_all(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            let known = self.0.entry(name).or_default();
            let is_longest = *name == Counted::LongestHealing.name();
            *known = if is_longest { (*count).max(*known) } else { *count + *known };
        }
    }

    fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    fn faults(&self) -> u64 {
        FAULTS.iter().map(|(name, ..)| self.get(name)).sum()
    }

    /// Formats the counts in one line.
    pub fn brief(&self) -> String {
        let [runs, steps] = [Counted::Runs, Counted::Steps].map(|what| self.get(what.name()));
        format!("{runs} seeds, {steps} steps, {} faults", self.faults())
    }

    /// Returns what never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        let names = Counted::ALL.iter().map(|what| what.name()).chain(FAULTS.iter().map(|(name, ..)| *name));
        names.filter(|name| self.get(name) == 0).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for what in Counted::ALL {
            writeln!(f, "{:>14} {}", self.get(what.name()), what.name())?;
        }
        writeln!(f, "{:>14} faults:", self.faults())?;
        FAULTS.iter().try_for_each(|(name, ..)| writeln!(f, "{:>14}   {name}", self.get(name)))
    }
}
