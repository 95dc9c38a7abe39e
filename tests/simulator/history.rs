//! Lightweight histories: an entry is its epoch, id and sequence, and the root is a chain of hashes. Real Merkle
//! trees have their own tests; here it only matters that equal roots mean equal histories.

use std::sync::OnceLock;

use ledger_core::{
    ContextId, Epoch, Hash, Size,
    digest::TreeHead,
    hash::{Blake3, Hasher as _},
    slot::Slot,
};

/// A context's number in the simulation.
pub type Context = usize;

/// An entry, with the root of the history up to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub epoch: Epoch,
    pub sequence: u64,
    pub id: u64,
    pub root: Hash,
}

/// A context's history.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History(pub Vec<Entry>);

const EMPTY: Hash = Hash([0; 32]);

impl History {
    pub fn size(&self) -> u64 {
        self.0.len() as u64
    }

    pub fn root(&self) -> Hash {
        self.0.last().map_or(EMPTY, |entry| entry.root)
    }

    /// Returns the root at an earlier size, if the history is that long.
    pub fn root_at(&self, size: u64) -> Option<Hash> {
        match size.checked_sub(1) {
            None => Some(EMPTY),
            Some(last) => self.0.get(last as usize).map(|entry| entry.root),
        }
    }

    pub fn head(&self) -> TreeHead {
        TreeHead { size: Size(self.size()), root: self.root() }
    }

    /// Returns the sequence of the entry with an id.
    pub fn find(&self, id: u64) -> Option<u64> {
        self.0.iter().rev().find(|entry| entry.id == id).map(|entry| entry.sequence)
    }

    /// Returns the epoch of the newest entry.
    pub fn epoch(&self) -> Epoch {
        self.0.last().map_or(Epoch::default(), |entry| entry.epoch)
    }

    /// Returns the entry that would come next.
    pub fn next(&self, epoch: Epoch, id: u64) -> Entry {
        let sequence = self.size() + 1;
        Entry { epoch, sequence, id, root: chain(&self.root(), epoch, sequence, id) }
    }

    /// Returns whether an entry comes next.
    pub fn continues(&self, entry: &Entry) -> bool {
        *entry == self.next(entry.epoch, entry.id)
    }

    /// Returns whether another history is a prefix of this one.
    pub fn starts_with(&self, other: &Self) -> bool {
        self.root_at(other.size()) == Some(other.root())
    }
}

fn chain(before: &Hash, epoch: Epoch, sequence: u64, id: u64) -> Hash {
    let mut input = [0; 56];
    input[..32].copy_from_slice(&before.0);
    for (field, chunk) in [epoch.0, sequence, id].iter().zip(input[32..].chunks_exact_mut(8)) {
        chunk.copy_from_slice(&field.to_be_bytes());
    }
    Blake3::digest(&input)
}

/// The contexts of a simulation, in a few slots.
#[derive(Debug, Clone, Default)]
pub struct Contexts {
    pub slots: Vec<Slot>,
    all: Vec<(ContextId, Slot)>,
}

/// The slots of all simulations.
const SLOTS: [u16; 4] = [3, 257, 600, 1023];

impl Contexts {
    /// Creates contexts in slots, at most 6 in each of 4.
    pub fn new(contexts: usize, slots: usize) -> Self {
        /// Names of six contexts of each slot: to find them takes a while.
        static NAMES: OnceLock<Vec<Vec<ContextId>>> = OnceLock::new();
        let names = NAMES.get_or_init(|| {
            let names = |slot: &u16| {
                let ids = (0..).map(|number| ContextId::new(format!("context-{number}")).unwrap());
                ids.filter(|id| Slot::of(id).number() == *slot).take(6).collect()
            };
            SLOTS.iter().map(names).collect()
        });
        let slots: Vec<Slot> = SLOTS.into_iter().filter_map(Slot::new).take(slots).collect();
        let context = |number: usize| {
            let slot = number % slots.len();
            (names[slot][number / slots.len()].clone(), slots[slot])
        };
        Self { all: (0..contexts).map(context).collect(), slots }
    }

    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn slot(&self, context: Context) -> Slot {
        self.all[context].1
    }

    pub fn id(&self, context: Context) -> &ContextId {
        &self.all[context].0
    }

    pub fn find(&self, id: &ContextId) -> Option<Context> {
        self.all.iter().position(|(known, _)| known == id)
    }

    /// Returns the contexts of a slot.
    pub fn of(&self, slot: Slot) -> impl Iterator<Item = Context> + '_ {
        (0..self.all.len()).filter(move |context| self.all[*context].1 == slot)
    }
}
