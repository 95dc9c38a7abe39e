//! The node's memory, shared out: one budget, from which everything that grows with use takes its part.
//!
//! | share | holds | over it |
//! | --- | --- | --- |
//! | block cache, write buffer, head cache | what the store keeps in memory | it keeps less |
//! | `in_flight` | appends accepted and not yet acknowledged | appends wait, then are refused |
//! | `forwarding` | appends sent on to their owners | they wait |
//! | `receiving` | messages whose bytes are arriving | clients are read later, then refused |
//! | `answers` | answers built, and not yet taken by their clients | calls wait; who takes nothing is ended |
//! | `calls` | what a call takes by being open | calls are refused |
//! | `replication` | commits that wait for other nodes | the slowest of them catches up instead |
//! | `replicated` | commits of other nodes that are being written | their streams are read no further |
//! | `tails` | the newest entries of watched contexts | watchers read the store |
//! | `events` | events that wait for observers | broadcasts are dropped, who is there is told anew |
//! | `loads` | what loads read, and snapshots of the predecessor as a whole | they are refused |
//!
//! A share is never lent to another: calls hold one while they wait for the next, always in this order (receiving, in
//! flight), so that none of them waits for itself.

use std::{
    collections::HashMap,
    fs,
    path::Path,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ledger_store::budget::{Permit, Share};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    grpc::call::{self, Call},
    limits,
    settings::config::Config,
    settings::units::ByteSize,
};

/// What the process takes before it serves anybody: the program, its threads, RocksDB's own tables, what the allocator
/// keeps.
const BASE_BYTES: u64 = 72 << 20;
/// What a thread that reads the store may keep.
const READ_THREAD_BYTES: u64 = 24 << 20;
/// Least memory to run with.
pub const MIN_MEMORY: ByteSize = ByteSize::mib(128);
/// Most that loads get: three times the largest snapshot of the predecessor.
const LOADS: u64 = 3 << 30;
/// Most that a node takes of a machine unless it is told to: its shares reach their largest sizes with less.
const MAX_DEFAULT_MEMORY: u64 = 8 << 30;

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
            block_cache: part(11, 128),
            write_buffer: part(12, 128),
            head_cache: part(4, 64),
            in_flight: part(11, 256),
            forwarding: part(5, 256),
            receiving: part(10, 256),
            answers: part(12, 512),
            calls: part(9, 384),
            replication: part(11, 320),
            replicated: part(4, 128),
            tails: part(3, 256),
            events: part(2, 128),
            loads: ByteSize(0),
        };
        let left = rest - plan.shares().iter().map(|share| share.0).sum::<u64>();
        plan.loads = ByteSize(left.min(LOADS) >> 20 << 20);
        plan
    }

    const fn shares(&self) -> [ByteSize; 13] {
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
            self.tails,
            self.events,
            self.loads,
        ]
    }
}

/// The memory that the node may take unless it is told: half of what its control group allows, or of the machine's. What
/// allocators keep, and what RocksDB takes for work in the background, comes on top of it.
pub fn default_size() -> ByteSize {
    let machine = machine_bytes().unwrap_or(2 << 30);
    let bytes = match group_bytes(Path::new("/proc/self/cgroup"), Path::new("/sys/fs/cgroup")) {
        Some(limit) => limit.min(machine) / 2,
        None => machine / 2,
    };
    ByteSize((bytes.clamp(MIN_MEMORY.0, MAX_DEFAULT_MEMORY) >> 20) << 20)
}

fn machine_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The lowest limit of the process's control group and those above it: of version 2 (`memory.max`), or of version 1
/// (`memory.limit_in_bytes`).
fn group_bytes(groups: &Path, root: &Path) -> Option<u64> {
    let text = fs::read_to_string(groups).ok()?;
    let limits = text.lines().flat_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let (root, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            _ if controllers.split(',').any(|name| name == "memory") => {
                (root.join("memory"), "memory.limit_in_bytes")
            }
            _ => return Vec::new(),
        };
        let group = Path::new(group.trim_start_matches('/'));
        // "max", or nothing to read, is no limit.
        let limit = |group: &Path| -> Option<u64> {
            fs::read_to_string(root.join(group).join(file)).ok()?.trim().parse().ok()
        };
        group.ancestors().filter_map(limit).collect()
    });
    limits.min()
}

/// The shares of what clients make the node hold.
#[derive(Debug)]
pub struct Memory {
    /// Bytes of appends accepted and not yet acknowledged.
    pub in_flight: Arc<Share>,
    /// Bytes of appends sent on to their owners. Apart from the others: two nodes that send on to each other would wait
    /// for each other.
    pub forwarding: Arc<Share>,
    /// Bytes of messages that are arriving.
    pub receiving: Arc<Share>,
    /// Bytes of answers that are not yet taken.
    pub answers: Arc<Share>,
    /// Those of them that large ones may take: small ones do not wait behind them.
    large: Arc<Share>,
    /// Bytes that open calls take.
    pub calls: Arc<Share>,
    /// Bytes of events that wait for observers.
    pub events: Arc<Share>,
    /// What the store and the cluster hold within shares of their own.
    others: Vec<Arc<Share>>,
    /// Reads of the store at the same time: each thread that reads keeps some MiB from one to the next.
    pub reads: usize,
    /// Calls that hold bytes of answers: who takes nothing of them may be ended.
    unread: Mutex<HashMap<u64, Weak<Call>>>,
    /// The newest call's number.
    number: AtomicU64,
}

/// What one connection may take of the shares: a part, so that others go on.
#[derive(Debug)]
pub struct ClientMemory {
    /// Bytes of its messages that are arriving.
    pub receiving: Arc<Share>,
    /// Bytes of answers that it has not yet taken.
    pub answers: Arc<Share>,
    /// Those of them that large ones may take.
    large: Arc<Share>,
}

/// What is held of a connection's part and of the whole.
#[derive(Debug)]
pub struct Charge {
    /// Of the connection and of all, what large ones may take: nothing, of a small one.
    large: [Permit; 2],
    /// Of the connection and of all.
    all: [Permit; 2],
}

impl Charge {
    /// How much is held.
    pub const fn amount(&self) -> usize {
        self.all[1].amount()
    }

    /// Holds what another charge held, too.
    pub fn merge(&mut self, other: Self) {
        let both = |held: &mut [Permit; 2], others: [Permit; 2]| {
            held.iter_mut().zip(others).for_each(|(held, other)| held.merge(other));
        };
        both(&mut self.large, other.large);
        both(&mut self.all, other.all);
    }

    /// Holds so much from now on.
    pub fn resize(&mut self, amount: usize) {
        self.large.iter_mut().filter(|large| large.amount() > 0).for_each(|large| large.resize(amount));
        self.all.iter_mut().for_each(|all| all.resize(amount));
    }

    /// Takes a part off, if it holds so much.
    pub fn split(&mut self, amount: usize) -> Option<Self> {
        if self.all.iter().any(|all| amount > all.amount()) {
            return None;
        }
        let large = |large: &mut Permit| large.split(amount.min(large.amount()));
        let [one, other] = &mut self.large;
        let large = [large(one)?, large(other)?];
        let [one, other] = &mut self.all;
        Some(Self { large, all: [one.split(amount)?, other.split(amount)?] })
    }
}

/// Which of the shares that a connection has a part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientShare {
    /// Messages that are arriving.
    Receiving,
    /// Answers that are not yet taken.
    Answers,
    /// The same of appends: however many there are, they do not wait behind large ones.
    Results,
}

impl ClientMemory {
    fn share(&self, of: ClientShare) -> &Arc<Share> {
        match of {
            ClientShare::Receiving => &self.receiving,
            ClientShare::Answers | ClientShare::Results => &self.answers,
        }
    }
}

impl Memory {
    /// The shares of a node.
    pub fn new(config: &Config, others: Vec<Arc<Share>>) -> Self {
        let plan = MemoryPlan::of(config.memory);
        let answers = plan.answers.get().max(2 * config.max_entry.get());
        Self {
            in_flight: Share::new("in_flight", config.max_in_flight.get()),
            forwarding: Share::new("forwarding", plan.forwarding.get().max(config.max_entry.get())),
            receiving: Share::new("receiving", plan.receiving.get().max(2 * config.max_entry.get())),
            answers: Share::new("answers", answers),
            large: Share::new("large answers", large_part(answers)),
            calls: Share::new("calls", plan.calls.get()),
            events: Share::new("events", plan.events.get()),
            others,
            reads: reads(config.memory),
            unread: Mutex::default(),
            number: AtomicU64::new(0),
        }
    }

    /// All shares, for metrics.
    pub fn shares(&self) -> impl Iterator<Item = &Arc<Share>> {
        let own =
            [&self.in_flight, &self.forwarding, &self.receiving, &self.answers, &self.calls, &self.events];
        own.into_iter().chain(&self.others)
    }

    /// The HTTP/2 windows for what clients send ahead, of a connection and of a stream: what arrives while a message
    /// waits for its memory stays in them.
    pub fn windows(&self) -> (u32, u32) {
        let connection = (self.receiving.capacity() / 16)
            .clamp(limits::SMALL_WINDOW as usize, limits::CONNECTION_WINDOW as usize);
        let connection = u32::try_from(connection).unwrap_or(limits::SMALL_WINDOW);
        (connection, (connection / 4).min(limits::STREAM_WINDOW))
    }

    /// Bytes of a page for the current call: fewer while there is little left.
    pub fn page(&self, most: usize) -> usize {
        self.page_for(call::current().as_deref(), most)
    }

    /// The same for a call.
    pub fn page_for(&self, call: Option<&Call>, most: usize) -> usize {
        self.part_of_free(call, [32, 8], most)
    }

    /// Bytes of an answer of the current call that is built at once: fewer while there is little left.
    pub fn answer(&self, most: usize) -> usize {
        self.part_of_free(call::current().as_deref(), [4, 2], most)
    }

    /// The most that a large answer may hold without waiting for more than there is.
    pub fn largest_answer(&self) -> usize {
        large_part(self.answers.capacity() / 4)
    }

    /// Such a part of what is free, and of what is free of a call's connection. What waits for nobody while others wait with
    /// large answers is small.
    fn part_of_free(&self, call: Option<&Call>, [of_all, of_its]: [usize; 2], most: usize) -> usize {
        let free = |share: &Share| share.capacity().saturating_sub(share.used());
        let all = free(&self.answers).min(free(&self.large)) / of_all;
        let its =
            call.map(Call::client).map(|client| free(&client.answers).min(free(&client.large)) / of_its);
        its.map_or(all, |its| all.min(its)).clamp(limits::SMALL_PAGE.min(most), most)
    }

    /// The part of a connection.
    pub fn client(&self) -> ClientMemory {
        let (receiving, answers) = (self.receiving.capacity() / 4, self.answers.capacity() / 4);
        ClientMemory {
            receiving: Share::new(self.receiving.name(), receiving),
            answers: Share::new(self.answers.name(), answers),
            large: Share::new(self.large.name(), large_part(answers)),
        }
    }

    fn share(&self, of: ClientShare) -> &Arc<Share> {
        match of {
            ClientShare::Receiving => &self.receiving,
            ClientShare::Answers | ClientShare::Results => &self.answers,
        }
    }

    /// Waits for so many bytes, of the connection's part first.
    pub async fn acquire(&self, client: &ClientMemory, of: ClientShare, bytes: usize) -> Charge {
        let large = large(of, bytes);
        let (its_large, its) = (client.large.acquire(large).await, client.share(of).acquire(bytes).await);
        let large = [its_large, self.large.acquire(large).await];
        Charge { large, all: [its, self.share(of).acquire(bytes).await] }
    }

    /// So many bytes, if nobody has to wait for them.
    pub fn try_acquire(&self, client: &ClientMemory, of: ClientShare, bytes: usize) -> Option<Charge> {
        let large = large(of, bytes);
        let large = [client.large.try_acquire(large)?, self.large.try_acquire(large)?];
        Some(Charge {
            large,
            all: [client.share(of).try_acquire(bytes)?, self.share(of).try_acquire(bytes)?],
        })
    }

    /// So many bytes of answers at once.
    pub fn charge_answer(&self, client: &ClientMemory, bytes: usize) -> Charge {
        let large = large(ClientShare::Answers, bytes);
        let large = [client.large.charge(large), self.large.charge(large)];
        Charge { large, all: [client.answers.charge(bytes), self.answers.charge(bytes)] }
    }

    /// A number for a call.
    pub fn next_number(&self) -> u64 {
        self.number.fetch_add(1, Ordering::Relaxed)
    }

    /// Notes a call that holds bytes of answers.
    pub fn note_unread(&self, call: &Arc<Call>) {
        self.unread.lock().insert(call.number(), Arc::downgrade(call));
    }

    /// The call has ended.
    pub fn forget_unread(&self, number: u64) {
        self.unread.lock().remove(&number);
    }

    /// A connection waits: ends calls whose clients have taken nothing for a while, its own first and those that hold most,
    /// until so many bytes are free.
    pub fn end_unread(&self, client: &Arc<ClientMemory>, bytes: usize) {
        let since = Instant::now().checked_sub(limits::UNREAD);
        let Some(since) = since else { return };
        let calls: Vec<Arc<Call>> = self.unread.lock().values().filter_map(Weak::upgrade).collect();
        let mut stuck: Vec<(bool, usize, Arc<Call>)> = calls
            .into_iter()
            .filter_map(|call| Some((Arc::ptr_eq(call.client(), client), call.unread_since(since)?, call)))
            .collect();
        stuck.sort_by_key(|(is_own, held, _)| std::cmp::Reverse((*is_own, *held)));
        let mut freed = 0;
        for (.., call) in stuck {
            if freed >= bytes {
                return;
            }
            freed += call.end_unread();
        }
    }
}

/// Reads of the store at the same time.
fn reads(memory: ByteSize) -> usize {
    let reads = usize::try_from((memory.0.max(MIN_MEMORY.0) - BASE_BYTES) / READ_THREAD_BYTES);
    reads.map_or(limits::READS, |reads| reads.clamp(4, limits::READS))
}

/// Threads that may block: reads, loads, and what the runtime needs for itself.
pub fn blocking_threads(memory: ByteSize) -> usize {
    reads(memory) + limits::LOADS.1 + limits::OTHER_THREADS
}

/// What large answers may take of a share for answers: a quarter of it is for small ones.
const fn large_part(answers: usize) -> usize {
    answers - answers / 4
}

/// How much of a charge large ones share among themselves.
const fn large(of: ClientShare, bytes: usize) -> usize {
    match of {
        ClientShare::Answers if bytes > 2 * limits::SMALL_PAGE => bytes,
        _ => 0,
    }
}

/// How long whoever waits for memory waits before those who take nothing are ended for it.
pub const POLL_INTERVAL: Duration = Duration::from_millis(500);

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

    #[test]
    fn the_lowest_limit_of_the_control_groups_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (groups, root) = (dir.path().join("cgroup"), dir.path().join("fs"));
        let write = |path: &str, text: &str| {
            fs::create_dir_all(root.join(path).parent().unwrap()).unwrap();
            fs::write(root.join(path), text).unwrap();
        };
        fs::write(&groups, "0::/pods/ledger\n").unwrap();
        assert_eq!(group_bytes(&groups, &root), None);
        write("pods/ledger/memory.max", "max\n");
        assert_eq!(group_bytes(&groups, &root), None);
        write("pods/memory.max", "536870912\n");
        write("memory.max", "1073741824\n");
        assert_eq!(group_bytes(&groups, &root), Some(512 << 20));

        fs::write(&groups, "9:cpu:/x\n4:hugetlb,memory:/pods/ledger\n0::/\n").unwrap();
        fs::remove_file(root.join("memory.max")).unwrap();
        write("memory/pods/ledger/memory.limit_in_bytes", "268435456\n");
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(group_bytes(&groups, &root), Some(256 << 20));
    }

    #[test]
    fn pages_become_small_while_there_is_little_left() {
        let memory = Memory::new(&Config::default(), Vec::new());
        assert_eq!(memory.page(limits::PAGE_BYTES), limits::PAGE_BYTES);
        let held = memory.answers.charge(memory.answers.capacity());
        assert_eq!(memory.page(limits::PAGE_BYTES), limits::SMALL_PAGE);
        drop(held);
    }
}
