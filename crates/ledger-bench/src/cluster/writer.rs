//! A writer that remembers what was acknowledged to it, and checks later that all of it is there.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use ledger_client::{Append, Client, ContextId, EntryId, ReadFrom, Selection};
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{run::PAYLOAD, streams};

/// An acknowledgement.
#[derive(Debug, Clone)]
pub(super) struct Ack {
    /// Place of the context in the writer's list.
    pub(super) context: usize,
    pub(super) sequence: u64,
    pub(super) epoch: u64,
    id: EntryId,
    sent: Instant,
    pub(super) at: Instant,
}

impl Ack {
    /// From handing the append to the SDK to its receipt.
    pub(super) fn took(&self) -> Duration {
        self.at - self.sent
    }
}

/// What a writer was told so far.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) acks: Vec<Ack>,
    /// Appends that failed, each with what the SDK said.
    pub(super) errors: Vec<String>,
}

/// A writer at work until it is stopped.
#[derive(Debug)]
pub(super) struct Writer {
    pub(super) contexts: Arc<Vec<ContextId>>,
    pub(super) told: Arc<Mutex<Told>>,
    stop: CancellationToken,
    tasks: Vec<AbortOnDropHandle<anyhow::Result<()>>>,
}

/// What checking found.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Checked {
    pub(super) acknowledged: u64,
    /// Acknowledged and not where it was said to be.
    pub(super) lost: u64,
    /// Stored more than once.
    pub(super) twice: u64,
    /// Sequences that are missing between others.
    pub(super) gaps: u64,
}

impl Writer {
    /// Begins to append through one stream, so many at a time.
    pub(super) async fn stream(client: &Client, contexts: u64, window: usize) -> anyhow::Result<Self> {
        let (mut appender, mut receipts) = client.appender(window).await?;
        let writer = Self::new("stream", contexts)?;
        let (contexts, told, stop) =
            (Arc::clone(&writer.contexts), Arc::clone(&writer.told), writer.stop.clone());
        let sent = Arc::new(Mutex::new(Vec::new()));
        let times = Arc::clone(&sent);
        let count = contexts.len();
        let sending = tokio::spawn(async move {
            let payload = streams::payload(PAYLOAD);
            for context in contexts.iter().cycle() {
                if stop.is_cancelled() {
                    break;
                }
                let append = Append::new(context, "facts", payload.clone())?;
                times.lock().push(Instant::now());
                appender.send(append).await?;
            }
            appender.finish();
            Ok(())
        });
        let receiving = tokio::spawn(async move {
            while let Some(receipt) = receipts.next().await? {
                let at = Instant::now();
                let place = usize::try_from(receipt.tag)?;
                let sent = sent.lock().get(place).copied().unwrap_or(at);
                let mut told = told.lock();
                match receipt.result {
                    Ok(stored) => told.acks.push(Ack {
                        context: place % count,
                        sequence: stored.sequence.0,
                        epoch: stored.epoch.0,
                        id: stored.id,
                        sent,
                        at,
                    }),
                    Err(error) => told.errors.push(error.to_string()),
                }
            }
            Ok(())
        });
        Ok(writer.with(vec![sending, receiving]))
    }

    /// Begins to append one by one, each context by a task of its own.
    pub(super) fn one_by_one(client: &Client, contexts: u64) -> anyhow::Result<Self> {
        let writer = Self::new("unary", contexts)?;
        let tasks = (0..writer.contexts.len()).map(|context| {
            let (contexts, told, stop) =
                (Arc::clone(&writer.contexts), Arc::clone(&writer.told), writer.stop.clone());
            let client = client.clone();
            tokio::spawn(async move {
                let payload = streams::payload(PAYLOAD);
                while !stop.is_cancelled() {
                    let sent = Instant::now();
                    let result =
                        client.append(Append::new(&contexts[context], "facts", payload.clone())?).await;
                    let at = Instant::now();
                    let mut told = told.lock();
                    match result {
                        Ok(appended) => told.acks.push(Ack {
                            context,
                            sequence: appended.entry.sequence.0,
                            epoch: appended.entry.epoch.0,
                            id: appended.entry.id,
                            sent,
                            at,
                        }),
                        Err(error) => told.errors.push(error.to_string()),
                    }
                }
                Ok(())
            })
        });
        let tasks = tasks.collect();
        Ok(writer.with(tasks))
    }

    fn new(prefix: &str, contexts: u64) -> anyhow::Result<Self> {
        let contexts = Arc::new(streams::contexts(prefix, contexts)?);
        let (told, stop) = (Arc::default(), CancellationToken::new());
        Ok(Self { contexts, told, stop, tasks: Vec::new() })
    }

    fn with(self, tasks: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>) -> Self {
        Self { tasks: tasks.into_iter().map(AbortOnDropHandle::new).collect(), ..self }
    }

    /// Appends no more, and waits for what is under way.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        self.stop.cancel();
        for task in self.tasks.drain(..) {
            task.await??;
        }
        Ok(())
    }

    /// The longest time that an append took of those that ended in a span of time.
    pub(super) fn longest(&self, from: Instant, to: Instant) -> Duration {
        let told = self.told.lock();
        let within = told.acks.iter().filter(|ack| ack.at >= from && ack.sent <= to);
        within.map(Ack::took).max().unwrap_or_default()
    }

    /// Reads everything back from the owners, and looks for what was acknowledged.
    pub(super) async fn check(&self, client: &Client) -> anyhow::Result<Checked> {
        let mut checked = Checked::default();
        for (place, context) in self.contexts.iter().enumerate() {
            let selection = Selection { read_from: ReadFrom::Owner, ..Selection::default() };
            let mut pages = client.get(context, selection);
            let (mut stored, mut next) = (HashMap::new(), 1);
            while let Some(page) = pages.next().await? {
                for entry in page {
                    checked.gaps += entry.sequence.0 - next;
                    next = entry.sequence.0 + 1;
                    if stored.insert(entry.id, entry.sequence.0).is_some() {
                        checked.twice += 1;
                    }
                }
            }
            let told = self.told.lock();
            for ack in told.acks.iter().filter(|ack| ack.context == place) {
                checked.acknowledged += 1;
                if stored.get(&ack.id) != Some(&ack.sequence) {
                    checked.lost += 1;
                }
            }
        }
        Ok(checked)
    }
}

impl Checked {
    /// Whether all is as it was said to be.
    pub(super) fn is_whole(&self) -> bool {
        self.lost == 0 && self.twice == 0 && self.gaps == 0
    }

    /// Both together.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            acknowledged: self.acknowledged + other.acknowledged,
            lost: self.lost + other.lost,
            twice: self.twice + other.twice,
            gaps: self.gaps + other.gaps,
        }
    }
}
