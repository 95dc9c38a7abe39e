//! Large loads into a cluster: all or nothing whatever becomes of the owner, and beside the appends of others.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ledger_client::{Append, Client, ClientError, Loaded, Options};
use ledger_core::{ContextId, Size, slot::Slot};
use ledger_proto::ledger::v1::{LocateRequest, cluster_service_client::ClusterServiceClient};
use ledger_store::{Draft, Ledger, Metadata};
use ledger_tests::{Cluster, PATIENCE, cluster, node::ledgerctl, until_async};
use tempfile::TempDir;
use tokio::{fs::File, task::JoinHandle, time::timeout};

/// More than a node takes in one commit: 32 MiB.
const ENTRIES: u64 = 300_000;
const PAYLOAD: usize = 120;
/// Writers beside a load, each with a context of its own.
const WRITERS: usize = 16;

fn context(name: &str) -> ContextId {
    ContextId::new(name).unwrap()
}

/// A snapshot of a context of a lone ledger.
struct Snapshot {
    _dir: TempDir,
    path: PathBuf,
    bytes: u64,
    root: Vec<u8>,
}

impl Snapshot {
    async fn of(name: &str, entries: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("snapshot");
        let ledger = Ledger::open(dir.path().join("source")).unwrap();
        let of = context(name);
        let batch = 10_000;
        for first in (0..entries).step_by(batch) {
            let appends = (first..(first + batch as u64).min(entries)).map(|number| {
                // Nothing that a snapshot could compress.
                let mut payload = vec![0; PAYLOAD];
                rand::fill(&mut payload[..]);
                let key = ledger_store::Key::new("facts").unwrap();
                let draft = Draft { key, payload: payload.into(), metadata: Metadata::default() };
                (number, ledger_store::Append::new(of.clone(), draft))
            });
            let (results, mut received) = tokio::sync::mpsc::unbounded_channel();
            ledger
                .submit(appends.collect(), ledger_store::AppendConditions::default(), results)
                .await
                .unwrap();
            while let Some(message) = received.recv().await {
                assert!(message.results.iter().all(|result| result.result.is_ok()));
            }
        }
        let mut file = std::fs::File::create(&path).unwrap();
        for chunk in ledger.snapshot(&of).unwrap() {
            file.write_all(&chunk.unwrap()).unwrap();
        }
        let root = ledger.head(&of).unwrap().unwrap().root().0.to_vec();
        let bytes = file.metadata().unwrap().size();
        assert!(bytes > 40 << 20 || entries < ENTRIES, "{bytes}");
        Self { _dir: dir, path, bytes, root }
    }

    async fn load_once(
        &self,
        client: &Client,
        name: &str,
        progress: impl FnMut(u64),
    ) -> Result<Loaded, ClientError> {
        let mut file = File::open(&self.path).await.unwrap();
        client.load_again(&context(name), false, &mut file, progress).await
    }
}

fn client(cluster: &Cluster, tries: u32) -> Client {
    let addresses: Vec<_> = cluster.running().map(ledger_tests::Node::endpoint).collect();
    // Whatever a slow machine takes.
    let options = Options { timeout: 4 * PATIENCE, tries, ..Options::default() };
    Client::connect(&addresses.join(","), &options).unwrap()
}

/// The number of the node that owns a context's slot, as one of those that run says.
async fn owner_of(cluster: &Cluster, name: &str) -> usize {
    let slot = u32::from(Slot::of(&context(name)).number());
    until_async("the slot has an owner that runs", async || {
        let asked = cluster.running().next()?.endpoint();
        let mut service = ClusterServiceClient::connect(asked).await.ok()?;
        let request = LocateRequest { slots: vec![slot], ..LocateRequest::default() };
        let location = service.locate(request).await.ok()?.into_inner().locations.pop()?;
        (0..cluster.nodes.len())
            .find(|number| cluster::name(*number) == location.owner && cluster.nodes[*number].is_some())
    })
    .await
}

/// What a node itself shows of a context: how many entries, and their root; `None` if it may not say.
async fn shown_by(rpc: &ledger_tests::Rpc, name: &str) -> Option<(u64, Vec<u8>)> {
    match rpc.checkpoint(name).await {
        Ok(checkpoint) => Some((checkpoint.size, checkpoint.root.to_vec())),
        Err(status) if status.code() == tonic::Code::NotFound => Some((0, Vec::new())),
        Err(_) => None,
    }
}

/// Looks at a context at a node all the time: whatever it is shown is nothing or the whole.
struct Watched {
    stop: Arc<AtomicBool>,
    looks: Vec<JoinHandle<u64>>,
}

impl Watched {
    async fn begin(cluster: &Cluster, name: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut looks = Vec::new();
        for node in cluster.running() {
            let (rpc, name) = (node.rpc().await.from_itself(), name.to_owned());
            let stop = Arc::clone(&stop);
            looks.push(tokio::spawn(async move {
                let mut count = 0;
                while !stop.load(Ordering::Relaxed) {
                    if let Some((size, _)) = shown_by(&rpc, &name).await {
                        assert!(
                            size == 0 || size == ENTRIES,
                            "{size} entries of a load of {ENTRIES} are shown"
                        );
                        count += 1;
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                count
            }));
        }
        Self { stop, looks }
    }

    async fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        for look in self.looks {
            // A node that was killed may have shown nothing at all.
            look.await.unwrap();
        }
    }
}

/// Every node shows the same of a context, once all copies are in sync: how many entries.
async fn shown_everywhere(cluster: &Cluster, name: &str, snapshot: &Snapshot) -> u64 {
    cluster.settle();
    let mut rpcs = Vec::new();
    for node in cluster.running() {
        rpcs.push(node.rpc().await.from_itself());
    }
    until_async("all nodes show the same", async || {
        let mut all = Vec::new();
        for rpc in &rpcs {
            all.push(shown_by(rpc, name).await?);
        }
        let (size, root) = all[0].clone();
        assert!(size == 0 || size == ENTRIES, "{size} entries of a load of {ENTRIES} are shown");
        assert!(size == 0 || root == snapshot.root, "of another root");
        all.iter().all(|shown| *shown == all[0]).then_some(size)
    })
    .await
}

/// Loads once while the owner is killed when so much of it was sent, and a moment later.
async fn cut_short(
    cluster: &mut Cluster,
    name: &str,
    snapshot: &Snapshot,
    percent: u64,
    later: Duration,
) -> usize {
    let victim = owner_of(cluster, name).await;
    let watched = Watched::begin(cluster, name).await;
    let (client, due) = (client(cluster, 1), snapshot.bytes * percent / 100);
    let (reached, is_due) = tokio::sync::oneshot::channel();
    let mut reached = Some(reached);
    let load = snapshot.load_once(&client, name, |bytes| {
        if bytes >= due
            && let Some(reached) = reached.take()
        {
            let _ = reached.send(());
        }
    });
    let kill = async {
        is_due.await.unwrap();
        tokio::time::sleep(later).await;
        cluster.kill(victim);
    };
    let (loaded, ()) = tokio::join!(load, kill);
    // The others go on without it.
    let settled = async {
        for number in 0..cluster.nodes.len() {
            if number != victim {
                let rpc = cluster.node(number).rpc().await.from_itself();
                until_async("a survivor shows the context", async || shown_by(&rpc, name).await).await;
            }
        }
    };
    settled.await;
    cluster.restart(victim);
    let size = shown_everywhere(cluster, name, snapshot).await;
    watched.end().await;
    if loaded.is_ok() {
        assert_eq!(size, ENTRIES, "it was said to be done");
    }
    victim
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_whose_owner_is_killed_is_whole_or_absent_everywhere_and_repeating_it_finishes_it() {
    let mut cluster = Cluster::start(3, &["--max-staleness", "2s"]);
    // While it is sent; while the replicas stage it; when it is about to be put in place, or was.
    for (percent, later) in [(60, 0), (100, 100), (100, 800)] {
        let name = format!("loaded-{percent}-{later}");
        let snapshot = Snapshot::of(&name, ENTRIES).await;
        cut_short(&mut cluster, &name, &snapshot, percent, Duration::from_millis(later)).await;
        let loaded = snapshot.load_once(&client(&cluster, 0), &name, |_| ()).await.unwrap();
        assert_eq!(loaded.latest, Size(ENTRIES));
        let size = until_async("it is everywhere", async || {
            Some(shown_everywhere(&cluster, &name, &snapshot).await).filter(|size| *size > 0)
        });
        assert_eq!(size.await, ENTRIES);
        let client = client(&cluster, 0);
        let appended = client.append(Append::new(&context(&name), "facts", "more").unwrap()).await.unwrap();
        assert_eq!(appended.entry.sequence.0, ENTRIES + 1, "appends go on after it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_caught_up_with_a_load_knows_it_when_it_is_repeated() {
    let (name, entries) = ("loaded", 3000);
    let snapshot = Snapshot::of(name, entries).await;
    let mut cluster = Cluster::start(3, &[]);
    let loaded = snapshot.load_once(&client(&cluster, 0), name, |_| ()).await.unwrap();
    assert_eq!((loaded.restored, loaded.latest), (entries, Size(entries)));
    // Each of the others holds it as a directory that was lost, and caught up with what is there.
    let owner = owner_of(&cluster, name).await;
    for other in (0..3).filter(|other| *other != owner) {
        cluster.kill(other);
        std::fs::remove_dir_all(cluster.data_dir(other)).unwrap();
        cluster.restart(other);
        cluster.settle();
    }
    cluster.kill(owner);
    let again = snapshot.load_once(&client(&cluster, 0), name, |_| ()).await.unwrap();
    assert_eq!((again.restored, again.latest), (0, Size(entries)), "nothing is stored twice");
    cluster.restart(owner);
    cluster.settle();
    for node in cluster.running() {
        let rpc = node.rpc().await.from_itself();
        let shown = until_async("it is shown", async || shown_by(&rpc, name).await).await;
        assert_eq!(shown, (entries, snapshot.root.clone()));
    }
}

/// How far a process has read a file.
fn position(process: u32, file: &Path) -> Option<u64> {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    let number =
        descriptors.flatten().find(|entry| std::fs::read_link(entry.path()).is_ok_and(|to| to == file))?;
    let number = number.file_name().into_string().ok()?;
    let said = std::fs::read_to_string(format!("/proc/{process}/fdinfo/{number}")).ok()?;
    said.lines().find_map(|line| line.strip_prefix("pos:"))?.trim().parse().ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn ledgerctl_loads_on_from_a_file_when_the_owner_is_lost() {
    ledgerctl_loads_on(false).await;
}

/// What comes through a pipe cannot be read again: it is kept meanwhile. That nothing was there before holds for all tries.
#[tokio::test(flavor = "multi_thread")]
async fn ledgerctl_loads_on_from_a_pipe_when_the_owner_is_lost() {
    ledgerctl_loads_on(true).await;
}

async fn ledgerctl_loads_on(is_pipe: bool) {
    let snapshot = Snapshot::of("loaded", ENTRIES).await;
    let mut cluster = Cluster::start(3, &["--max-staleness", "2s"]);
    let victim = owner_of(&cluster, "loaded").await;
    let addresses: Vec<_> = cluster.running().map(ledger_tests::Node::endpoint).collect();
    let path = snapshot.path.canonicalize().unwrap();
    let mut command = ledgerctl();
    command.args(["--endpoint", &addresses.join(","), "--json", "load", "loaded"]);
    let due = snapshot.bytes * 6 / 10;
    let load = if is_pipe {
        command.args(["-", "--fail-if-exists"]).stdin(Stdio::piped());
        let mut load = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut pipe = load.stdin.take().unwrap();
        let (most, rest) = (due as usize, std::fs::read(&path).unwrap());
        let rest = tokio::task::spawn_blocking(move || {
            pipe.write_all(&rest[..most]).unwrap();
            (pipe, rest)
        });
        let (mut pipe, rest) = rest.await.unwrap();
        cluster.kill(victim);
        tokio::task::spawn_blocking(move || pipe.write_all(&rest[most..]).unwrap()).await.unwrap();
        load
    } else {
        let load = command.arg(&path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let process = load.id();
        let read = async || position(process, &path).filter(|position| *position >= due);
        until_async("most of it is read", read).await;
        cluster.kill(victim);
        load
    };
    let ended = tokio::task::spawn_blocking(|| load.wait_with_output()).await.unwrap().unwrap();
    let (said, complained) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{said}{complained}");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["latest_sequence"].to_string().trim_matches('"'), ENTRIES.to_string(), "{said}");
    cluster.restart(victim);
    let size = until_async("it is everywhere", async || {
        Some(shown_everywhere(&cluster, "loaded", &snapshot).await).filter(|size| *size > 0)
    });
    assert_eq!(size.await, ENTRIES);
}

/// Appends one entry after the other, and counts them; gives the longest time that one took.
async fn write(client: Client, name: String, appended: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> Duration {
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        client.append(Append::new(&context(&name), "facts", "x").unwrap()).await.unwrap();
        longest = longest.max(begun.elapsed());
        appended.fetch_add(1, Ordering::Relaxed);
    }
    longest
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_to_other_contexts_go_on_while_a_large_load_is_staged_everywhere() {
    let snapshot = Snapshot::of("loaded", ENTRIES).await;
    let cluster = Cluster::start(3, &[]);
    let (client, stop) = (client(&cluster, 0), Arc::new(AtomicBool::new(false)));
    let appended: Vec<_> = (0..WRITERS).map(|_| Arc::new(AtomicU64::new(0))).collect();
    let counts = || appended.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (appended, stop) = (Arc::clone(&appended[number]), Arc::clone(&stop));
            tokio::spawn(write(client.clone(), format!("other-{number}"), appended, stop))
        })
        .collect();
    until_async("all write", async || counts().iter().all(|count| *count > 0).then_some(())).await;
    let before = counts();
    let loaded = snapshot.load_once(&client, "loaded", |_| ()).await.unwrap();
    let during: Vec<_> = counts().iter().zip(&before).map(|(now, then)| now - then).collect();
    stop.store(true, Ordering::Relaxed);
    let mut longest = Duration::ZERO;
    for writer in writers {
        longest = longest.max(timeout(PATIENCE, writer).await.unwrap().unwrap());
    }
    assert_eq!(loaded.latest, Size(ENTRIES));
    assert!(during.iter().all(|count| *count > 1), "appends of each while it was loaded: {during:?}");
    println!("the longest append beside a load of {} bytes took {longest:?}", snapshot.bytes);
}
