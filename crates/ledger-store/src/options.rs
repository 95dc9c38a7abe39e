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
    /// Never synced by us: the operating system decides.
    Never,
}

/// How a ledger is opened. The defaults just work.
#[derive(Debug, Clone)]
pub struct Options {
    /// When an append may be acknowledged.
    pub durability: Durability,
    /// Hash suite of contexts created from now on.
    pub suite: HashSuite,
    /// Largest entry accepted, bytes as it is encoded in a message of the contract.
    pub max_entry: usize,
    /// Memory for loads, bytes. A snapshot of the predecessor takes most: its format cannot be read in pieces, so that it is
    /// held whole, as it comes and decompressed.
    pub loads: usize,
    /// Memory for the newest entries of watched contexts, bytes: what is not kept is read from the store.
    pub tails: usize,
    /// How far above a context's own Lamport time the time received with an append may be.
    pub max_lamport_ahead: u64,
    /// Writer threads; each context belongs to one. 0: one per CPU, at most 4.
    pub lanes: usize,
    /// RocksDB's block cache, bytes.
    pub block_cache: usize,
    /// Memory for writes not yet in table files, bytes. Also bounds the log replayed when opening.
    pub write_buffer: usize,
    /// Memory for the heads of contexts in use, bytes.
    pub head_cache: usize,
    /// Table files that are kept open. Others are opened when they are read.
    pub max_open_files: usize,
    /// How fast the background scrub re-reads entries, bytes per second; 0 turns it off.
    pub scrub_rate: u64,
    /// Pause between two passes of the scrub over everything.
    pub scrub_pause: Duration,
    /// If the write-ahead log was cut short: start all the same with what is left up to this number, which the refusal
    /// names. Without effect otherwise.
    pub accept_lost_writes: Option<u64>,
    /// The ledger is part of a cluster: it takes appends only to slots it owns, and shows only what is stable.
    pub clustered: bool,
    /// For tests: a lane panics when it meets an append of the key `test-panic`.
    #[doc(hidden)]
    pub test_panic: bool,
}

impl Options {
    /// The least memory for loads with which every entry can be loaded.
    pub fn least_loads(&self) -> usize {
        crate::write::load::largest(self.max_loaded_payload())
    }

    /// Largest payload of an entry that is loaded: what older builds took can always be restored.
    pub(crate) fn max_loaded_payload(&self) -> usize {
        self.max_entry.max(CLIENT_MESSAGE)
    }

    /// How many writer threads there will be.
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
