//! How a ledger is opened.

use std::time::Duration;

use ledger_core::{
    HashSuite,
    limits::{CLIENT_MESSAGE, DEFAULT_MAX_ENTRY, DEFAULT_MAX_LAMPORT_AHEAD},
};

/// When an append is durable enough to be acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// Synced to disk (fdatasync of the write-ahead log) before it is acknowledged.
    #[default]
    Always,
    /// Acknowledged when written; synced at this interval. A power loss may take the last interval.
    Interval(Duration),
    /// Never synced by the ledger: the operating system decides.
    Never,
}

/// How a ledger is opened. The defaults suit a node of its own.
#[derive(Debug, Clone)]
pub struct Options {
    /// When an append may be acknowledged.
    pub durability: Durability,
    /// Hash suite of new contexts.
    pub suite: HashSuite,
    /// Largest accepted entry, in bytes of its encoding in a message of the contract.
    pub max_entry: usize,
    /// Memory for loads, in bytes. A snapshot of the predecessor takes most: its format cannot be read in pieces, so
    /// a load holds it whole, first as it came and then decompressed.
    pub loads: usize,
    /// Memory for the newest entries of watched contexts, in bytes. Watchers read older entries from the store.
    pub tails: usize,
    /// In a cluster: memory for parts that arrived before what they continue, in bytes, of all lanes. Catch-up
    /// fetches the parts for which there is no memory.
    pub out_of_order: usize,
    /// How far a received Lamport time may be above the context's own.
    pub max_lamport_ahead: u64,
    /// Number of lanes; each context belongs to one. 0: one for each processor, at most 4.
    pub lanes: usize,
    /// RocksDB's block cache, in bytes.
    pub block_cache: usize,
    /// Memory for writes that are not in table files yet, in bytes. It also bounds the log that opening replays.
    pub write_buffer: usize,
    /// Memory for the states of contexts in use, in bytes.
    pub head_cache: usize,
    /// Number of table files that stay open. RocksDB opens others when it reads them.
    pub max_open_files: usize,
    /// The scrub's rate, in bytes of entries per second; 0 turns the scrub off.
    pub scrub_rate: u64,
    /// Pause between two passes of the scrub over everything.
    pub scrub_pause: Duration,
    /// Accepts that the write-ahead log was cut short, and starts with what is left up to this number, which the
    /// refusal to start names. No effect otherwise.
    pub accept_lost_writes: Option<u64>,
    /// Whether the ledger is part of a cluster: then it takes appends only for slots that it owns, and shows only
    /// what is committed.
    pub clustered: bool,
    /// For tests: a lane panics when it meets an append of the key `test-panic`.
    #[doc(hidden)]
    pub test_panic: bool,
}

impl Options {
    /// Returns the least memory for loads with which every entry can be loaded.
    pub fn least_loads(&self) -> usize {
        crate::write::load::memory::largest(self.max_loaded_payload())
    }

    /// Returns the largest payload of a loaded entry. It does not depend on `max_entry` alone, so that snapshots of
    /// older builds can always be restored.
    pub(crate) fn max_loaded_payload(&self) -> usize {
        self.max_entry.max(CLIENT_MESSAGE)
    }

    /// Returns the number of lanes.
    pub fn lanes(&self) -> usize {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if self.lanes == 0 { cpus.min(4) } else { self.lanes }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            durability: Durability::Always,
            suite: HashSuite::Blake3,
            max_entry: DEFAULT_MAX_ENTRY,
            loads: 2 << 30,
            tails: 128 << 20,
            out_of_order: 64 << 20,
            max_lamport_ahead: DEFAULT_MAX_LAMPORT_AHEAD,
            lanes: 0,
            block_cache: 128 << 20,
            write_buffer: 128 << 20,
            head_cache: 64 << 20,
            max_open_files: 1024,
            scrub_rate: 8 << 20,
            scrub_pause: Duration::from_hours(1),
            accept_lost_writes: None,
            clustered: false,
            test_panic: false,
        }
    }
}
