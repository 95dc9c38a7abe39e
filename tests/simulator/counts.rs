//! Counts what happened in a run: a fault that never happens finds nothing.

use std::{collections::BTreeMap, fmt};

use super::faults::Fault;

/// Something that is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    Runs,
    Steps,
    /// Simulated time.
    Milliseconds,
    /// The longest time from the last fault until everything was well again.
    LongestHealing,
    // What went wrong, beside the faults.
    Lost,
    Cut,
    Duplicated,
    Overtaken,
    WritesLost,
    // How the cluster reacted.
    Owned,
    HandedOver,
    Moved,
    Left,
    Recovered,
    Forked,
    Fetched,
    Restored,
    Reidentified,
    FetchCut,
    // What clients did.
    Created,
    Acknowledged,
    AcknowledgedAtFewer,
    PutBack,
    Attached,
    Read,
    NotRead,
    Watched,
    Loaded,
    LoadStaged,
    LoadedAgain,
    LoadFetched,
}

impl Counted {
    const ALL: [(Self, &'static str); 31] = [
        (Self::Runs, "seeds"),
        (Self::Steps, "steps"),
        (Self::Milliseconds, "milliseconds simulated"),
        (Self::LongestHealing, "milliseconds of the longest healing"),
        (Self::Lost, "messages lost"),
        (Self::Cut, "messages into cut links"),
        (Self::Duplicated, "messages doubled"),
        (Self::Overtaken, "messages overtaken"),
        (Self::WritesLost, "unsynced writes lost in crashes"),
        (Self::Owned, "takeovers"),
        (Self::HandedOver, "of these, handovers"),
        (Self::Moved, "moves of a member"),
        (Self::Left, "nodes that left with nothing counting on them"),
        (Self::Recovered, "takeovers that went on without lost members"),
        (Self::Forked, "histories left to forks"),
        (Self::Fetched, "entries fetched to catch up"),
        (Self::Restored, "damaged contexts restored"),
        (Self::Reidentified, "disks that forgot what they promised"),
        (Self::FetchCut, "responses to fetches that were cut short"),
        (Self::Created, "entries written"),
        (Self::Acknowledged, "acknowledged at m copies"),
        (Self::AcknowledgedAtFewer, "acknowledged at fewer copies"),
        (Self::PutBack, "put back by their writers"),
        (Self::Attached, "times a writer attached to a node"),
        (Self::Read, "reads"),
        (Self::NotRead, "reads that a node sent elsewhere"),
        (Self::Watched, "entries seen by watchers"),
        (Self::Loaded, "loads acknowledged"),
        (Self::LoadStaged, "loads that members staged before they were put in place"),
        (Self::LoadedAgain, "loads that found everything there already"),
        (Self::LoadFetched, "loads fetched before they were stable"),
    ];
}

/// The counts of a run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    counts: BTreeMap<Counted, u64>,
    faults: BTreeMap<Fault, u64>,
}

impl Counts {
    pub fn add(&mut self, what: Counted, count: u64) {
        *self.counts.entry(what).or_default() += count;
    }

    pub fn fault(&mut self, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
    }

    /// Adds the counts of another run.
    pub fn add_all(&mut self, other: &Self) {
        for (what, count) in &other.counts {
            let known = self.counts.entry(*what).or_default();
            let is_longest = *what == Counted::LongestHealing;
            *known = if is_longest { (*count).max(*known) } else { *count + *known };
        }
        for (fault, count) in &other.faults {
            *self.faults.entry(*fault).or_default() += count;
        }
    }

    pub fn get(&self, what: Counted) -> u64 {
        self.counts.get(&what).copied().unwrap_or_default()
    }

    pub fn faults(&self) -> u64 {
        self.faults.values().sum()
    }

    /// Formats the counts in one line.
    pub fn brief(&self) -> String {
        let (runs, steps) = (self.get(Counted::Runs), self.get(Counted::Steps));
        format!("{runs} seeds, {steps} steps, {} faults", self.faults())
    }

    /// Returns what never happened, in words.
    pub fn missing(&self) -> Vec<&'static str> {
        let faults = Fault::ALL.into_iter().filter(|fault| !self.faults.contains_key(fault));
        let counts = Counted::ALL.into_iter().filter(|(what, _)| self.get(*what) == 0);
        faults.map(Fault::name).chain(counts.map(|(_, name)| name)).collect()
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, name) in Counted::ALL {
            writeln!(f, "{:>14} {name}", self.get(what))?;
        }
        writeln!(f, "{:>14} faults:", self.faults())?;
        for fault in Fault::ALL {
            let count = self.faults.get(&fault).copied().unwrap_or_default();
            writeln!(f, "{count:>14}   {}", fault.name())?;
        }
        Ok(())
    }
}
