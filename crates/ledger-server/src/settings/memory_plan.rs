//! How the node's memory is shared out: see [`memory`](crate::memory) for what the shares are for.

use crate::{limits, settings::units::ByteSize};

/// What the process takes before it serves anybody: the program, its threads, RocksDB's own tables, what the allocator
/// keeps.
const BASE_BYTES: u64 = 72 << 20;
/// What a thread that reads the store may keep.
const READ_THREAD_BYTES: u64 = 24 << 20;
/// Least memory to run with.
pub const MIN_MEMORY: ByteSize = ByteSize::mib(128);
/// Most that loads get: three times the largest snapshot of the predecessor.
const LOADS: u64 = 3 << 30;

/// How the budget is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// `RocksDB`'s block cache.
    pub block_cache: ByteSize,
    /// Memory for writes not yet in table files.
    pub write_buffer: ByteSize,
    /// Memory for the heads of contexts in use.
    pub head_cache: ByteSize,
    /// Appends accepted and not yet acknowledged.
    pub in_flight: ByteSize,
    /// Appends sent on to their owners.
    pub forwarding: ByteSize,
    /// Messages whose bytes are arriving.
    pub receiving: ByteSize,
    /// Answers not yet taken by their clients.
    pub answers: ByteSize,
    /// What calls take by being open.
    pub calls: ByteSize,
    /// Commits that wait for other nodes.
    pub replication: ByteSize,
    /// Commits of other nodes that are being written.
    pub replicated: ByteSize,
    /// What owners sent before what it continues arrived.
    pub out_of_order: ByteSize,
    /// Entries on their way to nodes that catch up.
    pub serving: ByteSize,
    /// The newest entries of watched contexts.
    pub tails: ByteSize,
    /// Events that wait for observers.
    pub events: ByteSize,
    /// Loads: also what is left over by the others.
    pub loads: ByteSize,
}

impl MemoryPlan {
    /// Shares out so many bytes.
    pub fn of(memory: ByteSize) -> Self {
        let rest = memory.0.max(MIN_MEMORY.0) - BASE_BYTES;
        // In whole MiB, of a hundred parts.
        let part = |parts: u64, most_mib: u64| ByteSize::mib(((rest * parts / 100) >> 20).clamp(1, most_mib));
        let mut plan = Self {
            block_cache: part(10, 128),
            write_buffer: part(12, 128),
            head_cache: part(4, 64),
            in_flight: part(11, 256),
            forwarding: part(5, 256),
            receiving: part(9, 256),
            answers: part(11, 512),
            calls: part(9, 384),
            replication: part(11, 320),
            replicated: part(4, 128),
            out_of_order: part(2, 64),
            serving: part(1, 32),
            tails: part(3, 256),
            events: part(2, 128),
            loads: ByteSize(0),
        };
        let left = rest - plan.shares().iter().map(|share| share.0).sum::<u64>();
        plan.loads = ByteSize(left.min(LOADS) >> 20 << 20);
        plan
    }

    const fn shares(&self) -> [ByteSize; 15] {
        [
            self.block_cache,
            self.write_buffer,
            self.head_cache,
            self.in_flight,
            self.forwarding,
            self.receiving,
            self.answers,
            self.calls,
            self.replication,
            self.replicated,
            self.out_of_order,
            self.serving,
            self.tails,
            self.events,
            self.loads,
        ]
    }
}

/// Reads of the store at the same time: each thread that reads keeps some MiB from one to the next.
pub fn reads(memory: ByteSize) -> usize {
    let reads = usize::try_from((memory.0.max(MIN_MEMORY.0) - BASE_BYTES) / READ_THREAD_BYTES);
    reads.map_or(limits::READS, |reads| reads.clamp(4, limits::READS))
}

/// Threads that may block: reads, loads, and what the runtime needs for itself.
pub fn blocking_threads(memory: ByteSize) -> usize {
    reads(memory) + limits::LOADS.1 + limits::OTHER_THREADS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_and_the_rest_are_the_whole() {
        for mib in [128, 192, 256, 512, 1024, 4096, 65536] {
            let plan = MemoryPlan::of(ByteSize::mib(mib));
            let sum: u64 = plan.shares().iter().map(|share| share.0).sum();
            assert!(sum + BASE_BYTES <= mib << 20, "{mib}: {plan:?}");
            // What is written at once is kept until a replica that is needed has it.
            assert!(plan.replication >= plan.in_flight, "{mib}: {plan:?}");
            assert!(plan.shares().iter().all(|share| share.0 >= 1 << 20), "{mib}: {plan:?}");
        }
        assert_eq!(MemoryPlan::of(ByteSize::mib(8192)).loads.0, LOADS, "large nodes take snapshots of 1 GiB");
        assert_eq!(MemoryPlan::of(ByteSize::mib(1)), MemoryPlan::of(MIN_MEMORY));
    }
}
