//! Remembers how far each data directory was reported to be durable, and which directories came back older than that.
//!
//! A node announces how far its directory went when this start opened it, and how far it is durable now
//! ([`ledger_store::Ledger::durable_index`]). A start that opened below what an earlier start announced as durable
//! runs on an older copy of the directory, such as a restored volume. It has forgotten promises, and entries that it
//! acknowledged.

use std::collections::{BTreeMap, HashMap};

use ledger_core::node::{Incarnation, NodeId, StorageId};

use super::limits::MAX_NODES;

/// Most directories that are remembered.
const MAX_DIRECTORIES: usize = 2 * MAX_NODES;
/// Most starts of a directory that are remembered individually.
const MAX_STARTS: usize = 8;

/// The data directory is older than it was reported to be, or is treated as if it were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", why(*opened, *heard))]
pub struct RolledBack {
    /// The durable index at which it was opened.
    pub opened: u64,
    /// The durable index that an earlier start announced.
    pub heard: u64,
}

impl RolledBack {
    /// Stands in for the announced index if an operator declared the directory lost and other nodes continued without
    /// it.
    pub const DECLARED_LOST: u64 = u64::MAX;
}

fn why(opened: u64, heard: u64) -> String {
    if heard == RolledBack::DECLARED_LOST {
        return "an operator declared the data directory lost while it was away, and the others went on without it".to_owned();
    }
    format!(
        "the data directory is older than it was, as a restored volume is: it was opened at mark {opened}, and had been durable up to \
         mark {heard}"
    )
}

/// What one start of a node announced.
#[derive(Debug, Clone, Copy, Default)]
struct StartRecord {
    opened: Option<u64>,
    durable: u64,
}

/// What is known of a directory.
#[derive(Debug, Default)]
struct DirectoryHistory {
    starts: BTreeMap<Incarnation, StartRecord>,
    /// A summary of earlier starts: the latest of them, how far they were durable, and whether one was rolled back.
    before: Option<Incarnation>,
    floor: u64,
    rolled_back: Option<RolledBack>,
    /// The observation round that last heard of it.
    heard: u64,
}

impl DirectoryHistory {
    fn hear(&mut self, incarnation: Incarnation, opened: Option<u64>, durable: Option<u64>) {
        if self.before.is_some_and(|before| incarnation <= before) {
            return;
        }
        let start = self.starts.entry(incarnation).or_default();
        start.opened = start.opened.or(opened);
        start.durable = start.durable.max(durable.unwrap_or(0));
        while self.starts.len() > MAX_STARTS
            && let Some((first, start)) = self.starts.pop_first()
        {
            self.rolled_back = self.rolled_back.or_else(|| start.rolled_back(self.floor));
            (self.before, self.floor) = (Some(first), self.floor.max(start.durable));
        }
    }

    /// Returns how far the directory was rolled back as of this start, if it was. Writing since then does not restore
    /// what it has forgotten.
    fn rolled_back(&self, incarnation: Incarnation) -> Option<RolledBack> {
        let (mut found, mut floor) = (self.rolled_back, self.floor);
        for start in self.starts.range(..=incarnation).map(|(_, start)| start) {
            found = found.or_else(|| start.rolled_back(floor));
            floor = floor.max(start.durable);
        }
        found
    }
}

impl StartRecord {
    fn rolled_back(&self, floor: u64) -> Option<RolledBack> {
        let opened = self.opened.filter(|opened| *opened < floor)?;
        Some(RolledBack { opened, heard: floor })
    }
}

/// The history of all directories. It outlives gossip's memory of dead nodes.
#[derive(Debug, Default)]
pub(super) struct DurabilityHistory {
    directories: HashMap<(NodeId, StorageId), DirectoryHistory>,
    /// Number of observation rounds so far.
    round: u64,
}

impl DurabilityHistory {
    /// Begins another observation round.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// Records what a start of a node announced. Accepts any numbers.
    pub(super) fn hear(
        &mut self,
        directory: (NodeId, StorageId),
        incarnation: Incarnation,
        opened: Option<u64>,
        durable: Option<u64>,
    ) {
        if opened.is_none() && durable.is_none() {
            return;
        }
        if self.directories.len() >= MAX_DIRECTORIES && !self.directories.contains_key(&directory) {
            let oldest = self.directories.iter().min_by_key(|(_, life)| life.heard);
            let Some(oldest) = oldest.map(|(directory, _)| directory.clone()) else { return };
            self.directories.remove(&oldest);
        }
        let life = self.directories.entry(directory).or_default();
        life.heard = self.round;
        life.hear(incarnation, opened, durable);
    }

    /// Returns how far a directory was rolled back as of a start, if it was.
    pub(super) fn rolled_back(
        &self,
        directory: &(NodeId, StorageId),
        incarnation: Incarnation,
    ) -> Option<RolledBack> {
        self.directories.get(directory)?.rolled_back(incarnation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str, storage: u8) -> (NodeId, StorageId) {
        (NodeId::new(name).unwrap(), StorageId([storage; 16]))
    }

    /// Returns the verdict on a node after its starts announced this, in this order.
    fn judged(said: &[(u64, u64, u64)], at: u64) -> Option<RolledBack> {
        let mut marks = DurabilityHistory::default();
        for (incarnation, opened, durable) in said {
            marks.hear(directory("a", 1), Incarnation(*incarnation), Some(*opened), Some(*durable));
        }
        marks.rolled_back(&directory("a", 1), Incarnation(at))
    }

    #[test]
    fn a_directory_that_opens_where_it_was_or_further_is_not_set_back() {
        assert_eq!(judged(&[(1, 0, 10), (2, 10, 20), (3, 25, 30)], 3), None);
        assert_eq!(judged(&[(1, 10, 15), (1, 10, 20)], 1), None, "its own start says nothing against it");
    }

    #[test]
    fn a_directory_that_opens_below_what_an_earlier_start_said_is_set_back() {
        let set_back = Some(RolledBack { opened: 12, heard: 20 });
        assert_eq!(judged(&[(1, 0, 20), (2, 12, 14)], 2), set_back);
        assert_eq!(judged(&[(1, 0, 20), (2, 12, 14)], 1), None, "the earlier start was as it said");
        assert_eq!(judged(&[(2, 12, 14), (1, 0, 20)], 2), set_back, "gossip brings things in any order");
        assert_eq!(judged(&[(1, 0, 10), (2, 12, 14), (1, 0, 20)], 2), set_back, "two run at once");
    }

    #[test]
    fn what_was_set_back_stays_so_whatever_it_writes_and_however_often_it_starts() {
        let set_back = Some(RolledBack { opened: 12, heard: 20 });
        assert_eq!(judged(&[(1, 0, 20), (2, 12, 40), (3, 40, 50)], 3), set_back);
        let mut said = vec![(1, 0, 20), (2, 12, 40)];
        said.extend((3..100).map(|start| (start, 40, 40)));
        assert_eq!(judged(&said, 99), set_back);
        // A start older than those remembered individually changes nothing.
        said.push((1, 0, 60));
        assert_eq!(judged(&said, 99), set_back);
        let many: Vec<_> = (1..100).map(|start| (start, start, start)).collect();
        assert_eq!(judged(&many, 99), None);
        assert_eq!(judged(&[many.as_slice(), &[(3, 0, 0)]].concat(), 99), None);
    }

    #[test]
    fn a_directory_that_says_nothing_is_not_judged_and_another_one_is_another() {
        let mut marks = DurabilityHistory::default();
        marks.hear(directory("a", 1), Incarnation(1), Some(0), Some(20));
        marks.hear(directory("a", 1), Incarnation(2), None, None);
        marks.hear(directory("a", 2), Incarnation(3), Some(0), None);
        marks.hear(directory("b", 1), Incarnation(3), Some(0), None);
        for (directory, start) in [(directory("a", 1), 2), (directory("a", 2), 3), (directory("b", 1), 3)] {
            assert_eq!(marks.rolled_back(&directory, Incarnation(start)), None);
        }
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for_and_the_longest_silent_go_first() {
        let mut marks = DurabilityHistory::default();
        for number in 0..2 * MAX_DIRECTORIES {
            marks.begin();
            let kept = directory("kept", 1);
            marks.hear(kept, Incarnation(1), Some(0), Some(9));
            marks.hear(directory(&format!("n{number}"), 1), Incarnation(1), Some(0), Some(1));
        }
        assert_eq!(marks.directories.len(), MAX_DIRECTORIES);
        marks.hear(directory("kept", 1), Incarnation(2), Some(3), None);
        let set_back = RolledBack { opened: 3, heard: 9 };
        assert_eq!(marks.rolled_back(&directory("kept", 1), Incarnation(2)), Some(set_back));
    }
}
