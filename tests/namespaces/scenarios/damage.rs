//! Damaged files of one node of three, under load: the others have everything, and the node gets it back from them.

use std::{
    fs,
    time::{Duration, Instant},
};

use ledger_client::{Client, ContextId, Options, ReadFrom, Selection};
use ledger_tests::PATIENCE;
use rand::RngExt as _;
use tokio::{task::JoinHandle, time::sleep};

use super::rounds;
use crate::{
    faults::damage::{Damage, copy_all, damage},
    report::Report,
    run::{Errors, Run, Setting, What},
};

/// The scrub finds what nobody reads, and a node that cannot be healed in place is replaced soon.
const FLAGS: &[&str] = &["--scrub-rate", "1GiB", "--scrub-pause", "200ms", "--replace-damaged", "2s"];
/// How long nothing of a context may be readable from the cluster.
const UNREADABLE: Duration = Duration::from_mins(1);
/// How long a node may take until it is as it should be, started anew or replaced on the way.
const HEALED: Duration = PATIENCE.saturating_mul(2);

/// Which node is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Owner,
    Replica,
}

/// Damages files while the node runs, has it met, kills the node, and starts it as a supervisor would; if its directory is
/// refused, an operator gives it an empty one.
async fn damaged(what: What, kind: Damage, at: At) -> Option<Report> {
    let setting = Setting { flags: FLAGS, one_owner: true, is_damaged: true, ..Setting::default() };
    let mut run = Run::start(what, setting).await?;
    // Each node starts anew: what it holds is in table files then, of which there are copies.
    for index in 0..3 {
        run.cluster.nodes[index].stop().await;
        copy_all(&run.cluster.nodes[index].data(), &run.cluster.nodes[index].dir().join("older"));
        run.cluster.start(index).await;
        run.cluster.settled("after a restart").await;
    }
    run.goes_on("before the damage").await;
    let owner = run.cluster.owner(&run.contexts[0]).await;
    let index = if at == At::Owner { owner } else { a_replica(&mut run, owner).await };
    let reader = Reader::start(&run);

    let (data, older) = (run.cluster.nodes[index].data(), run.cluster.nodes[index].dir().join("older"));
    let is_whole = kind == Damage::Older && run.random.random();
    if !is_whole {
        let done = damage(kind, &data, &older, &mut run.random);
        run.note(format!("{}: {}", run.cluster.nodes[index].name, done.join(", ")));
    }
    let deadline = Instant::now() + Duration::from_millis(run.random.random_range(1000..4000));
    while Instant::now() < deadline {
        revive(&mut run, index).await;
        sleep(Duration::from_millis(50)).await;
    }
    run.goes_on("while files are damaged").await;
    if run.cluster.nodes[index].runs() {
        run.cluster.nodes[index].kill();
    }
    if is_whole {
        fs::remove_dir_all(&data).unwrap();
        copy_all(&older, &data);
        run.note(format!("{}: its volume is restored as of before", run.cluster.nodes[index].name));
    }
    begin(&mut run, index).await;
    let took = healed(&mut run, index).await;
    run.note(format!("healed in {:.1} s", took.as_secs_f64()));
    let unreadable = reader.finish().await;
    run.note(format!("a context took {:.2} s to be read at most", unreadable.as_secs_f64()));
    assert!(unreadable < UNREADABLE, "a context could not be read for {unreadable:?}");
    Some(run.finish(Errors::Some).await)
}

/// A node that owns none of the contexts that are written, if there is one, and else not the first one's owner.
async fn a_replica(run: &mut Run, owner: usize) -> usize {
    let mut owners = vec![owner];
    for context in &run.contexts {
        owners.push(run.cluster.owner(context).await);
    }
    let replicas: Vec<_> = (0..3).filter(|index| !owners.contains(index)).collect();
    if replicas.is_empty() {
        return (owner + run.random.random_range(1..3)) % 3;
    }
    replicas[run.random.random_range(0..replicas.len())]
}

/// Starts a node that ended by itself.
async fn revive(run: &mut Run, index: usize) {
    if let Some(status) = run.cluster.nodes[index].ended() {
        run.note(format!("it ended with {status}"));
        begin(run, index).await;
    }
}

async fn begin(run: &mut Run, index: usize) {
    match run.cluster.supervise(index).await {
        Ok(0) => {}
        Ok(restarts) => run.note(format!("it asked {restarts} times to be started again")),
        Err(status) => {
            let log = run.cluster.nodes[index].log_tail();
            assert_eq!(status.code(), Some(3), "it says that its directory cannot be opened:\n{log}");
            run.note("its directory was refused, and it got an empty one".to_owned());
            run.cluster.nodes[index].wipe();
            run.cluster.start(index).await;
        }
    }
}

/// Waits until a node is damaged no more, and says so, after the scrub read everything; it may end, and be started again.
async fn healed(run: &mut Run, index: usize) -> Duration {
    let begun = Instant::now();
    let mut passes = scrubbed(run, index);
    let first = passes;
    loop {
        if let Some(status) = run.cluster.nodes[index].ended() {
            run.note(format!("it ended with {status}"));
            begin(run, index).await;
            passes = scrubbed(run, index);
        }
        let is_read = scrubbed(run, index) >= passes.max(first) + 2;
        let mut wrong = Vec::new();
        for (name, good) in [
            ("ledger_store_quarantined_contexts", 0.0),
            ("ledger_store_damaged_families", 0.0),
            ("ledger_store_damaged_slots", 0.0),
            ("ledger_store_compacts", 1.0),
            ("ledger_store_writable", 1.0),
        ] {
            let value = run.cluster.metric(index, name).await;
            if value != Some(good) {
                wrong.push(format!("{name} is {value:?}"));
            }
        }
        let settled = run.cluster.is_settled().await;
        if is_read && wrong.is_empty() && settled.is_ok() {
            return begun.elapsed();
        }
        assert!(
            begun.elapsed() < HEALED,
            "not healed within {HEALED:?}: {wrong:?}; {settled:?}; {is_read}; {}",
            run.notes.join("; ")
        );
        sleep(Duration::from_millis(100)).await;
    }
}

/// How often a node's scrub has read everything.
fn scrubbed(run: &Run, index: usize) -> usize {
    let log = fs::read_to_string(run.cluster.nodes[index].log_file()).unwrap_or_default();
    log.matches("scrub pass done").count()
}

/// Reads all contexts whole, again and again, and knows how long it took at most until one could be.
struct Reader(JoinHandle<Duration>, tokio::sync::watch::Sender<()>);

impl Reader {
    fn start(run: &Run) -> Self {
        let client = Client::connect_any(run.cluster.addresses(), &Options::default()).unwrap();
        let contexts = run.contexts.clone();
        let (end, mut ended) = tokio::sync::watch::channel(());
        let reading = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            loop {
                for context in &contexts {
                    let begun = Instant::now();
                    while !is_readable(&client, context).await && begun.elapsed() < UNREADABLE {
                        sleep(Duration::from_millis(50)).await;
                    }
                    longest = longest.max(begun.elapsed());
                }
                tokio::select! {
                    _ = ended.changed() => return longest,
                    () = sleep(Duration::from_millis(300)) => {}
                }
            }
        });
        Self(reading, end)
    }

    async fn finish(self) -> Duration {
        drop(self.1);
        self.0.await.unwrap()
    }
}

async fn is_readable(client: &Client, context: &ContextId) -> bool {
    let selection = Selection { read_from: ReadFrom::Owner, ..Selection::default() };
    client.get(context, selection).collect().await.is_ok()
}

/// Bits of an owner's files flip.
#[test]
fn bytes_of_the_owner_flip() {
    rounds(false, async |what| damaged(what, Damage::Flipped, At::Owner).await);
}

/// Bits of a replica's files flip.
#[test]
fn bytes_of_a_replica_flip() {
    rounds(false, async |what| damaged(what, Damage::Flipped, At::Replica).await);
}

/// Files of an owner are truncated.
#[test]
fn files_of_the_owner_are_truncated() {
    rounds(false, async |what| damaged(what, Damage::Truncated, At::Owner).await);
}

/// Files of a replica are truncated.
#[test]
fn files_of_a_replica_are_truncated() {
    rounds(false, async |what| damaged(what, Damage::Truncated, At::Replica).await);
}

/// Files of an owner, or all of them, are swapped for an older copy.
#[test]
fn files_of_the_owner_are_swapped() {
    rounds(false, async |what| damaged(what, Damage::Older, At::Owner).await);
}

/// Files of a replica, or all of them, are swapped for an older copy.
#[test]
fn files_of_a_replica_are_swapped() {
    rounds(false, async |what| damaged(what, Damage::Older, At::Replica).await);
}

/// Files of an owner are deleted.
#[test]
fn files_of_the_owner_are_deleted() {
    rounds(false, async |what| damaged(what, Damage::Deleted, At::Owner).await);
}

/// Files of a replica are deleted.
#[test]
fn files_of_a_replica_are_deleted() {
    rounds(false, async |what| damaged(what, Damage::Deleted, At::Replica).await);
}
