//! How the store is opened, by the settings.

use ledger_core::HashSuite;

use crate::{
    limits,
    settings::{
        config::{Config, DurabilityMode, Suite, TestPanic},
        memory_plan::MemoryPlan,
    },
};

impl Config {
    /// How the store is opened.
    pub fn store_options(&self) -> ledger_store::Options {
        let plan = MemoryPlan::of(self.memory);
        let options = ledger_store::Options {
            durability: match self.durability {
                DurabilityMode::Always => ledger_store::Durability::Always,
                DurabilityMode::Interval => ledger_store::Durability::Interval(self.sync_interval.0),
                DurabilityMode::Never => ledger_store::Durability::Never,
            },
            suite: match self.hash_suite {
                Suite::Blake3 => HashSuite::Blake3,
                Suite::Sha256 => HashSuite::Sha256,
            },
            max_entry: self.max_entry.get(),
            loads: plan.loads.get(),
            tails: plan.tails.get(),
            out_of_order: plan.out_of_order.get(),
            max_lamport_ahead: self.max_lamport_ahead,
            lanes: self.lanes,
            block_cache: self.block_cache.get(),
            write_buffer: self.write_buffer.get(),
            head_cache: self.head_cache.get(),
            // Starting shares out the file descriptors.
            max_open_files: limits::MAX_OPEN_FILES,
            scrub_rate: self.scrub_rate.0,
            scrub_pause: self.scrub_pause.0,
            accept_lost_writes: self.accept_lost_writes,
            clustered: self.node_id.is_some(),
            test_panic: self.test_panic == Some(TestPanic::Lane),
        };
        ledger_store::Options { loads: options.loads.max(options.least_loads()), ..options }
    }
}
