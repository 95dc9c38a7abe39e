//! kill -9 under full append load, round after round on one data directory.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::join_all;
use ledger_proto::context::v1::AppendRequest;
use ledger_tests::{
    History, Node, Rpc,
    load::{self, Outcome, Progress},
    setting,
};
use rand::{RngExt as _, SeedableRng as _, rngs::SmallRng};
use tempfile::TempDir;

/// Streams, contexts of each, and entries in flight on each: 64 contexts and 4096 in flight over all.
const STREAMS: usize = 4;
const CONTEXTS: usize = 16;
const IN_FLIGHT: usize = 1024;
/// Unary writers that retry by entry id.
const RETRIERS: usize = 4;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_being_killed() {
    let rounds = setting("LEDGERTEST_CRASH_ROUNDS", 50);
    let mut test = Rounds::new(setting("LEDGERTEST_CRASH_SEED", 1));
    for _ in 0..rounds {
        test.round().await;
    }
    test.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes as long as it is told: `./dev soak SECONDS SEED`"]
async fn what_was_acknowledged_survives_being_killed_for_a_long_time() {
    let deadline = Instant::now() + Duration::from_secs(setting("LEDGERTEST_SOAK_SECONDS", 600));
    let mut test = Rounds::new(setting("LEDGERTEST_SOAK_SEED", 1));
    while Instant::now() < deadline {
        test.round().await;
    }
    test.finish().await;
}

/// The state over all rounds: what must be there, and how far it was verified.
struct Rounds {
    data: TempDir,
    seed: u64,
    random: SmallRng,
    round: u64,
    next_tag: u64,
    all: Outcome,
    histories: BTreeMap<String, History>,
    retried: HashMap<String, u64>,
}

impl Rounds {
    fn new(seed: u64) -> Self {
        Self {
            data: TempDir::new().unwrap(),
            seed,
            random: SmallRng::seed_from_u64(seed),
            round: 0,
            next_tag: 0,
            all: Outcome::default(),
            histories: BTreeMap::new(),
            retried: HashMap::new(),
        }
    }

    /// Starts a node, every other time with so little memory that it writes table files all the time.
    fn node(&mut self) -> Node {
        let small = ["--write-buffer", "2MiB"];
        Node::start_with(self.data.path(), if self.random.random() { &small } else { &[] })
    }

    /// Starts, loads, kills, starts again and checks what was added.
    async fn round(&mut self) {
        self.round += 1;
        let node = self.node();
        let rpc = node.rpc().await;
        // A fixed count of acknowledgements to wait for, so that the seed says when the kill comes.
        let progress = Progress::towards(self.random.random_range(1..30_000));
        let streams: Vec<_> = (0..STREAMS)
            .map(|stream| {
                let contexts = contexts(stream).collect();
                let first = self.next_tag + stream as u64 * (1 << 32);
                tokio::spawn(load::stream(
                    Rpc::clone(&rpc),
                    contexts,
                    IN_FLIGHT,
                    first,
                    Arc::clone(&progress),
                ))
            })
            .collect();
        let retriers: Vec<_> = (0..RETRIERS)
            .map(|writer| tokio::spawn(retrier(rpc.clone(), format!("retries-{writer}"), self.round)))
            .collect();
        progress.reached().await;
        node.kill();
        let mut outcome = Outcome::default();
        for stream in join_all(streams).await {
            let stream = stream.unwrap();
            assert!(stream.ended.is_some() && stream.refused.is_empty(), "{:?}", stream.refused);
            outcome.add(stream);
        }
        self.next_tag += STREAMS as u64 * (1 << 32);
        let mut attempts = Vec::new();
        for (writer, attempt) in join_all(retriers).await.into_iter().enumerate() {
            attempts.push((format!("retries-{writer}"), attempt.unwrap()));
        }

        let node = self.node();
        let rpc = node.rpc().await;
        self.check(&rpc, &outcome).await;
        self.all.add(outcome);
        for (context, attempt) in attempts {
            self.retry(&rpc, &context, attempt).await;
        }
        // The directory is left as a crash leaves it every other time.
        if self.random.random() { node.kill() } else { node.stop_cleanly() }
    }

    /// Reads what each context gained; everything acknowledged must be among it.
    async fn check(&mut self, rpc: &Rpc, outcome: &Outcome) {
        for context in (0..STREAMS).flat_map(contexts) {
            let history = self.histories.entry(context.clone()).or_default();
            let before = history.size();
            let added = history.read_on(rpc, &context).await.unwrap();
            if let Some(first) = outcome.acknowledged.get(&context).and_then(|told| told.first()) {
                assert!(
                    first.sequence > before,
                    "seed {}, round {}: {context} went back",
                    self.seed,
                    self.round
                );
            }
            outcome.assert_kept(&context, &added);
        }
    }

    /// Repeats what was acknowledged last and what was not acknowledged: each id must stand for one entry.
    async fn retry(&mut self, rpc: &Rpc, context: &str, attempt: Attempt) {
        if let Some((id, sequence)) = &attempt.last {
            let again = rpc.append(request(context, id)).await.unwrap().entry.unwrap();
            assert_eq!(
                (again.sequence, again.id.as_str()),
                (*sequence, id.as_str()),
                "a retry appended anew"
            );
        }
        if let Some(id) = attempt.unanswered {
            let first = rpc.append(request(context, &id)).await.unwrap().entry.unwrap();
            let second = rpc.append(request(context, &id)).await.unwrap().entry.unwrap();
            assert_eq!(first, second, "a retry must return the first result");
            *self.retried.entry(context.to_owned()).or_default() += 1;
        }
        *self.retried.entry(context.to_owned()).or_default() += attempt.count;
    }

    /// Reads everything once more from the beginning.
    async fn finish(mut self) {
        let node = self.node();
        let rpc = node.rpc().await;
        for (context, known) in &self.histories {
            let (history, entries) = History::read_all(&rpc, context).await.unwrap();
            assert_eq!(history.size(), known.size(), "{context} changed without an append");
            self.all.assert_kept(context, &entries);
        }
        for (context, count) in &self.retried {
            let (history, _) = History::read_all(&rpc, context).await.unwrap();
            assert_eq!(history.size(), *count, "{context} must hold each id once");
        }
        node.stop_cleanly();
        println!(
            "seed {}: {} rounds, {} entries acknowledged, none lost, {} bytes of data",
            self.seed,
            self.round,
            self.all.count(),
            size_of(self.data.path())
        );
    }
}

/// What a retrier was told before the node was gone.
struct Attempt {
    count: u64,
    last: Option<(String, u64)>,
    unanswered: Option<String>,
}

/// The contexts that a stream writes.
fn contexts(stream: usize) -> impl Iterator<Item = String> {
    (0..CONTEXTS).map(move |n| format!("stream-{stream}-{n}"))
}

fn request(context: &str, id: &str) -> AppendRequest {
    AppendRequest {
        context_id: context.to_owned(),
        key: "retry".to_owned(),
        payload: format!("payload of {id}").into(),
        entry_id: id.to_owned(),
        ..AppendRequest::default()
    }
}

/// Appends one entry after the other, each under an id of its own, until the node is gone.
async fn retrier(rpc: Rpc, context: String, round: u64) -> Attempt {
    let mut attempt = Attempt { count: 0, last: None, unanswered: None };
    loop {
        let id = format!("round {round}, entry {}", attempt.count);
        let Ok(answer) = rpc.append(request(&context, &id)).await else {
            attempt.unanswered = Some(id);
            return attempt;
        };
        attempt.count += 1;
        attempt.last = Some((id, answer.entry.unwrap().sequence));
    }
}

fn size_of(path: &Path) -> u64 {
    let Ok(files) = std::fs::read_dir(path) else { return 0 };
    files
        .flatten()
        .map(|file| {
            let meta = file.metadata();
            if meta.as_ref().is_ok_and(std::fs::Metadata::is_dir) {
                size_of(&file.path())
            } else {
                meta.map_or(0, |meta| meta.len())
            }
        })
        .sum()
}
