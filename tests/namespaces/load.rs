//! Writers that use the SDK as engines do, and remember what they were told.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use ledger_client::{Append, Appender, Client, ContextId, EntryId, Options, Receipts};
use ledger_tests::until_async;
use tokio::task::JoinHandle;

use crate::record::Fact;

/// Appends of a pipelining writer under way at once, and sent in one go.
const WINDOW: usize = 128;
const BURST: u64 = 4;
/// Between two appends of a plain writer, and between two bursts: the nodes share two cores with these writers.
const PACE: Duration = Duration::from_millis(5);

/// One acknowledgement.
#[derive(Debug)]
pub(crate) struct Acknowledged {
    pub(crate) at: Instant,
    pub(crate) fact: Fact,
}

/// What writers were told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// By context, and by writer in the order of that writer's acknowledgements.
    pub(crate) acknowledged: BTreeMap<ContextId, Vec<Vec<Acknowledged>>>,
    /// Errors that reached the user of the SDK.
    pub(crate) errors: Vec<String>,
    /// What must never be.
    pub(crate) violations: Vec<String>,
}

impl Told {
    pub(crate) fn count(&self) -> usize {
        self.acknowledged.values().flatten().map(Vec::len).sum()
    }

    /// The longest time in which no append to a context was acknowledged, of all contexts, and how many seconds after
    /// the first acknowledgement it began.
    pub(crate) fn longest_pause(&self) -> (Duration, f64) {
        let all = self.acknowledged.values().flatten().flatten();
        let Some(first) = all.map(|acknowledged| acknowledged.at).min() else { return Default::default() };
        let pauses = self.acknowledged.values().filter_map(|writers| {
            let mut times: Vec<_> = writers.iter().flatten().map(|acknowledged| acknowledged.at).collect();
            times.sort_unstable();
            times.windows(2).map(|two| (two[1] - two[0], two[0])).max()
        });
        let longest = pauses.max().map(|(pause, at)| (pause, (at - first).as_secs_f64()));
        longest.unwrap_or_default()
    }

    fn add(&mut self, other: Self) {
        for (context, writers) in other.acknowledged {
            self.acknowledged.entry(context).or_default().extend(writers);
        }
        self.errors.extend(other.errors);
        self.violations.extend(other.violations);
    }
}

/// Writers at work.
#[derive(Debug)]
pub(crate) struct Load {
    progress: Arc<Progress>,
    writers: Vec<JoinHandle<Told>>,
}

#[derive(Debug)]
struct Progress {
    stop: AtomicBool,
    begun: Instant,
    contexts: Vec<(ContextId, AtomicU64)>,
}

impl Progress {
    fn acknowledged(&self, context: &ContextId) {
        let counts = self.contexts.iter().filter(|(known, _)| known == context);
        counts.for_each(|(_, count)| {
            count.fetch_add(1, Ordering::Relaxed);
        });
    }

    fn stops(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn at(&self) -> String {
        format!("{:.3} s after the writers began", self.begun.elapsed().as_secs_f64())
    }
}

impl Load {
    /// Starts two writers that pipeline over all contexts, and one for each context that waits for every answer.
    pub(crate) fn start(addresses: &[String], contexts: &[ContextId]) -> Self {
        let progress = Arc::new(Progress {
            stop: AtomicBool::new(false),
            begun: Instant::now(),
            contexts: contexts.iter().map(|context| (context.clone(), AtomicU64::new(0))).collect(),
        });
        let client = || Client::connect_any(addresses, &Options::default()).unwrap();
        let mut writers = Vec::new();
        for (number, context) in contexts.iter().enumerate() {
            let writer = plain(client(), context.clone(), format!("plain-{number}"), Arc::clone(&progress));
            writers.push(tokio::spawn(writer));
        }
        for number in 0..2 {
            let writer =
                pipelining(client(), contexts.to_vec(), format!("stream-{number}"), Arc::clone(&progress));
            writers.push(tokio::spawn(writer));
        }
        Self { progress, writers }
    }

    /// Waits until so many more appends were acknowledged in each context.
    pub(crate) async fn goes_on(&self, when: &str, count: u64) {
        let counts = || self.progress.contexts.iter().map(|(_, count)| count.load(Ordering::Relaxed));
        let before: Vec<_> = counts().collect();
        until_async(&format!("{count} appends to each context are acknowledged {when}"), async || {
            counts().zip(&before).all(|(now, before)| now >= before + count).then_some(())
        })
        .await;
    }

    /// Appends acknowledged so far.
    pub(crate) fn count(&self) -> u64 {
        self.progress.contexts.iter().map(|(_, count)| count.load(Ordering::Relaxed)).sum()
    }

    /// Ends the writers when each has the answers to all it sent.
    pub(crate) async fn stop(self) -> Told {
        self.progress.stop.store(true, Ordering::Relaxed);
        let mut told = Told::default();
        for writer in join_all(self.writers).await {
            told.add(writer.unwrap());
        }
        told
    }
}

fn append(context: &ContextId, id: &str) -> Append {
    let payload = format!("{id} {id:.>200}");
    Append { entry_id: Some(EntryId::new(id).unwrap()), ..Append::new(context, "facts", payload).unwrap() }
}

/// Appends one entry after the other to a context, and repeats one that failed.
async fn plain(client: Client, context: ContextId, name: String, progress: Arc<Progress>) -> Told {
    let mut told = Told::default();
    let mut acknowledged = Vec::new();
    let mut number = 0;
    while !progress.stops() {
        let id = format!("{name}-{number}");
        let append = append(&context, &id);
        match client.append(append.clone()).await {
            Ok(done) => {
                let fact = Fact::from(&done.entry);
                if done.entry.payload != append.payload || Some(&fact.id) != append.entry_id.as_ref() {
                    told.violations.push(format!("{context}: {id} was answered with another entry {fact:?}"));
                }
                acknowledged.push(Acknowledged { at: Instant::now(), fact });
                progress.acknowledged(&context);
                number += 1;
            }
            Err(error) => told.errors.push(format!("{context}, {id}, {}: {error}", progress.at())),
        }
        tokio::time::sleep(PACE).await;
    }
    told.acknowledged.insert(context, vec![acknowledged]);
    told
}

/// Appends to all contexts in turn without waiting; begins with a new stream and new ids after a failure.
async fn pipelining(client: Client, contexts: Vec<ContextId>, name: String, progress: Arc<Progress>) -> Told {
    let mut told = Told::default();
    let mut stream = 0;
    while !progress.stops() {
        let first = format!("{name}-{stream}");
        match client.appender(WINDOW).await {
            Ok((appender, receipts)) => {
                let failed = Arc::new(AtomicBool::new(false));
                let sender = send(appender, &contexts, &first, &progress, &failed);
                let receiver = receive(receipts, &contexts, &first, &progress, &failed);
                let ((), received) = tokio::join!(sender, receiver);
                told.add(received);
            }
            Err(error) => told.errors.push(format!("{first}, {}: {error}", progress.at())),
        }
        stream += 1;
    }
    told
}

async fn send(
    mut appender: Appender,
    contexts: &[ContextId],
    name: &str,
    progress: &Progress,
    failed: &AtomicBool,
) {
    let mut tag = 0;
    while !progress.stops() && !failed.load(Ordering::Relaxed) {
        for _ in 0..BURST {
            let context = context_of(contexts, tag);
            if appender.send(append(context, &format!("{name}-{tag}"))).await.is_err() {
                return;
            }
            tag += 1;
        }
        tokio::time::sleep(PACE).await;
    }
    appender.finish();
}

async fn receive(
    mut receipts: Receipts,
    contexts: &[ContextId],
    name: &str,
    progress: &Progress,
    failed: &AtomicBool,
) -> Told {
    let mut told = Told::default();
    let mut lists: BTreeMap<ContextId, Vec<Acknowledged>> = BTreeMap::new();
    loop {
        match receipts.next().await {
            Ok(None) => break,
            Err(error) => {
                failed.store(true, Ordering::Relaxed);
                told.errors.push(format!("{name}, {}: {error}", progress.at()));
                break;
            }
            Ok(Some(receipt)) => {
                let context = context_of(contexts, receipt.tag);
                let id = format!("{name}-{}", receipt.tag);
                match receipt.result {
                    Err(error) => {
                        failed.store(true, Ordering::Relaxed);
                        told.errors.push(format!("{context}, {id}, {}: {error}", progress.at()));
                    }
                    Ok(stored) => {
                        let fact = Fact::from(&stored);
                        if fact.id != EntryId::new(&id).unwrap() {
                            let text = format!("{context}: the receipt of {id} is of another entry {fact:?}");
                            told.violations.push(text);
                        }
                        let list = lists.entry(context.clone()).or_default();
                        list.push(Acknowledged { at: Instant::now(), fact });
                        progress.acknowledged(context);
                    }
                }
            }
        }
    }
    told.acknowledged = lists.into_iter().map(|(context, list)| (context, vec![list])).collect();
    told
}

fn context_of(contexts: &[ContextId], tag: u64) -> &ContextId {
    &contexts[usize::try_from(tag % contexts.len() as u64).unwrap()]
}
