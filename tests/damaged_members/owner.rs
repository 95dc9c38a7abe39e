//! Damage at the owner of slots, under load: what is acknowledged stays readable from the cluster, nothing is forked, and
//! the log does not fill.

use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use futures::future::join_all;
use ledger_tests::{Rpc, load::payload};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use crate::trio::{NAMES, Trio, flip, request, truncate};

/// Contexts that are written all the time.
const CONTEXTS: usize = 12;
/// Entries of each before the damage: more than a tile is over.
const BEFORE: u64 = 300;
/// How long the load goes on after the damage.
const UNDER_LOAD: Duration = Duration::from_secs(20);
/// For so long what is acknowledged may be unreadable from the cluster.
const READABLE_WITHIN: Duration = Duration::from_mins(1);

/// A context, and what is known of it.
struct Written {
    name: String,
    /// Entries that are acknowledged.
    acknowledged: AtomicU64,
}

/// Connections to the nodes that run.
async fn connections(trio: &Trio) -> Vec<Rpc> {
    join_all((0..NAMES.len()).filter(|at| trio.nodes[*at].is_some()).map(|at| trio.rpc(at))).await
}

/// Appends entry after entry, each until it is acknowledged, until it is over; `is_over` is told how many there are.
async fn write(nodes: &[Rpc], written: &Written, is_over: impl Fn(u64) -> bool) {
    let mut at = 0;
    while !is_over(written.acknowledged.load(Ordering::Acquire)) {
        let number = written.acknowledged.load(Ordering::Acquire) + 1;
        let append = nodes[at % nodes.len()].append(request(&written.name, number));
        if let Ok(Ok(answer)) = timeout(Duration::from_secs(5), append).await {
            let sequence = answer.entry.unwrap().sequence;
            assert_eq!(sequence, number, "entry {number} of {}", written.name);
            written.acknowledged.store(number, Ordering::Release);
        } else {
            at += 1;
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Reads all contexts through one node after the other, until everything that is acknowledged was read once after the
/// load ended. Gives the longest time for which something acknowledged could not be read.
async fn read(nodes: &[Rpc], all: &[Written], is_over: &AtomicBool) -> Duration {
    let longest = join_all(all.iter().map(async |written| {
        let (mut longest, mut at, mut readable) = (Duration::ZERO, 0, Instant::now());
        loop {
            let was_over = is_over.load(Ordering::Acquire);
            let least = written.acknowledged.load(Ordering::Acquire);
            let entries = nodes[at % nodes.len()].entries(&written.name, 0);
            at += 1;
            if let Ok(Ok(entries)) = timeout(Duration::from_secs(5), entries).await {
                for (entry, number) in entries.iter().zip(1..) {
                    assert_eq!(
                        (entry.sequence, &entry.payload),
                        (number, &payload(number)),
                        "{}",
                        written.name
                    );
                }
                if entries.len() as u64 >= least {
                    longest = longest.max(readable.elapsed());
                    readable = Instant::now();
                    if was_over {
                        return longest;
                    }
                }
            }
            assert!(
                readable.elapsed() < READABLE_WITHIN,
                "{least} entries of {} are not readable from the cluster",
                written.name
            );
            sleep(Duration::from_millis(100)).await;
        }
    }));
    longest.await.into_iter().max().unwrap_or_default()
}

/// The line of a log that was written most often, and how often; without its time and its numbers.
fn most_repeated(log: &str) -> (String, usize) {
    let mut lines: HashMap<String, usize> = HashMap::new();
    for line in log.lines().filter(|line| !line.contains("scrub pass done")) {
        let text = line.split_once(' ').map_or(line, |(_, text)| text);
        *lines.entry(text.replace(|c: char| c.is_ascii_digit(), "")).or_default() += 1;
    }
    lines.into_iter().max_by_key(|(_, times)| *times).unwrap_or_default()
}

/// Waits until a damaged node answers for everything by itself. Starts it again once it serves nothing any more, as its
/// supervisor would; with an empty directory if the old one is refused. The node may find that out long after the damage
/// was done.
async fn supervise(trio: &mut Trio, hurt: usize, all: &[Written]) {
    let deadline = Instant::now() + READABLE_WITHIN;
    let mut is_restarted = false;
    loop {
        if !is_restarted && trio.node(hurt).log().contains("serves nothing any more") {
            trio.nodes[hurt].take().unwrap().kill();
            if trio.try_begin(hurt).is_err() {
                std::fs::remove_dir_all(trio.data(hurt)).unwrap();
                trio.begin(hurt);
            }
            is_restarted = true;
        }
        let channel = Channel::from_shared(trio.node(hurt).endpoint()).unwrap().connect_lazy();
        let itself = Rpc::over(channel).from_itself();
        let mut lacking = Vec::new();
        for written in all {
            let least = written.acknowledged.load(Ordering::Acquire);
            match timeout(Duration::from_secs(5), itself.entries(&written.name, 0)).await {
                Ok(Ok(entries)) if entries.len() as u64 >= least => {}
                Ok(Ok(entries)) => lacking.push(format!("{} has {} of {least}", written.name, entries.len())),
                Ok(Err(status)) => lacking.push(format!("{}: {status}", written.name)),
                Err(_) => lacking.push(format!("{}: no answer", written.name)),
            }
        }
        if lacking.is_empty() {
            return;
        }
        let log = trio.node(hurt).log();
        let log: Vec<&str> = log.lines().filter(|line| !line.contains("scrub pass done")).collect();
        assert!(
            Instant::now() < deadline,
            "node {} is not restored within {READABLE_WITHIN:?}: {lacking:?}\n{}",
            NAMES[hurt],
            log.join("\n")
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// Something of what the owner of the most slots holds is damaged while everything is written and read.
async fn survives(damage: impl Fn(&Path) -> usize) {
    let mut trio = Trio::start(&["--scrub-rate", "1GiB", "--scrub-pause", "500ms"]);
    let all: Vec<Written> = (0..CONTEXTS)
        .map(|number| Written { name: format!("written-{number}"), acknowledged: AtomicU64::new(0) })
        .collect();
    trio.owner(&all[0].name, true).await;
    let nodes = connections(&trio).await;
    join_all(all.iter().map(|written| write(&nodes, written, |entries| entries >= BEFORE))).await;
    let names: Vec<&str> = all.iter().map(|written| written.name.as_str()).collect();
    // What they hold is in table files, and in no cache.
    trio.forget(&names).await;
    let hurt = trio.owner(names[0], true).await;

    let (nodes, is_over, begun) = (connections(&trio).await, AtomicBool::new(false), Instant::now());
    let writers =
        join_all(all.iter().map(|written| write(&nodes, written, |_| is_over.load(Ordering::Acquire))));
    let control = async {
        sleep(Duration::from_secs(1)).await;
        assert!(damage(&trio.data(hurt)) > 0, "no table file holds it");
        sleep(UNDER_LOAD).await;
        is_over.store(true, Ordering::Release);
    };
    let (_, longest, ()) = tokio::join!(writers, read(&nodes, &all, &is_over), control);
    println!("the longest time for which something was not readable: {longest:?}");
    let written: u64 = all.iter().map(|written| written.acknowledged.load(Ordering::Acquire)).sum();
    assert!(written > BEFORE * CONTEXTS as u64 * 2, "{written} entries are hardly a load");

    for (index, name) in NAMES.iter().enumerate() {
        let (line, times) = most_repeated(&trio.node(index).log());
        let most = usize::try_from(begun.elapsed().as_secs()).unwrap() + 10;
        assert!(times <= most, "node {name} wrote {times} times: {line}");
    }
    supervise(&mut trio, hurt, &all).await;
    for written in &all {
        let acknowledged = written.acknowledged.load(Ordering::Acquire);
        trio.owner(&written.name, false).await;
        // One that was not acknowledged may be there.
        let sequence = trio.append((hurt + 1) % NAMES.len(), &written.name, acknowledged + 1).await;
        assert_eq!(sequence, acknowledged + 1);
        trio.all_have(&written.name, acknowledged + 1).await;
        // A writer has one append under way: one that nobody acknowledged may be forked when the slot changes hands.
        let forked = trio.forked(&written.name).await;
        assert!(forked.iter().all(|entries| *entries <= 1), "of {} {forked:?} is forked", written.name);
    }
}

macro_rules! survived {
    ($($name:ident: $damage:expr;)+) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            survives($damage).await;
        }
    )+};
}

survived! {
    a_block_of_heads_of_the_owner: |data| flip(data, "heads");
    a_block_of_entries_of_the_owner: |data| flip(data, "entries");
    a_block_of_ids_of_the_owner: |data| flip(data, "ids");
    a_block_of_tiles_of_the_owner: |data| flip(data, "tiles");
    a_block_of_slot_records_of_the_owner: |data| flip(data, "slots");
    files_of_heads_of_the_owner: |data| truncate(data, "heads");
    files_of_entries_of_the_owner: |data| truncate(data, "entries");
    files_of_slot_records_of_the_owner: |data| truncate(data, "slots");
}
