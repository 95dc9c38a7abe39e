//! Append load that remembers what was acknowledged.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use ledger_proto::{
    context::v1::{AppendRequest, Entry},
    ledger::v1::{AppendBatch, AppendItem, AppendResult},
};
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::Rpc;

/// Bytes of each payload.
pub const PAYLOAD: usize = 256;
/// Items in a batch.
const BATCH: usize = 64;

/// What the writer was told of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// The tag it was sent with: see [`payload`].
    pub tag: u64,
    /// Its sequence.
    pub sequence: u64,
    /// Its id.
    pub id: String,
    /// Its content hash.
    pub content_hash: Bytes,
}

/// What became of a load.
#[derive(Debug, Default)]
pub struct Outcome {
    /// By context, in the order of the acknowledgements.
    pub acknowledged: HashMap<String, Vec<Acknowledged>>,
    /// Items that were refused one by one.
    pub refused: Vec<(i32, String)>,
    /// How the stream ended, if not well.
    pub ended: Option<Status>,
}

impl Outcome {
    /// How many entries were acknowledged.
    pub fn count(&self) -> usize {
        self.acknowledged.values().map(Vec::len).sum()
    }

    /// Takes what another load was told.
    pub fn add(&mut self, other: Self) {
        for (context, list) in other.acknowledged {
            self.acknowledged.entry(context).or_default().extend(list);
        }
        self.refused.extend(other.refused);
    }

    /// Checks that everything acknowledged is among the entries of a context, as it was acknowledged.
    pub fn assert_kept(&self, context: &str, entries: &[Entry]) {
        let Some(list) = self.acknowledged.get(context) else { return };
        let first = entries.first().map_or(1, |entry| entry.sequence);
        for told in list.iter().filter(|told| told.sequence >= first) {
            let name = format!("acknowledged entry {} of {context}", told.sequence);
            let index = usize::try_from(told.sequence - first).unwrap();
            let entry = entries.get(index).unwrap_or_else(|| panic!("{name} is lost"));
            assert_eq!(entry.sequence, told.sequence, "{name} is elsewhere");
            assert_eq!(entry.id, told.id, "{name} has another id");
            assert_eq!(entry.content_hash, told.content_hash, "{name} has another content hash");
            assert_eq!(entry.payload, payload(told.tag), "{name} has another payload");
        }
    }
}

/// A load's progress, and how to end it.
#[derive(Debug, Default)]
pub struct Progress {
    acknowledged: AtomicU64,
    target: AtomicU64,
    reached: Notify,
    stop: std::sync::atomic::AtomicBool,
}

impl Progress {
    /// A load that sends until something ends it, and a count to wait for.
    pub fn towards(target: u64) -> Arc<Self> {
        Arc::new(Self { target: AtomicU64::new(target), ..Self::default() })
    }

    /// Waits until so many entries were acknowledged, over all loads that share this.
    pub async fn reached(&self) {
        self.reached.notified().await;
    }

    /// Tells the loads to send no more and to wait for the answers.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn add(&self, count: u64) {
        let target = self.target.load(Ordering::Relaxed);
        let before = self.acknowledged.fetch_add(count, Ordering::Relaxed);
        if before < target && before + count >= target {
            self.reached.notify_one();
        }
    }
}

/// The payload that goes with a tag: the tag, then bytes that depend on it.
pub fn payload(tag: u64) -> Bytes {
    let mut bytes = Vec::with_capacity(PAYLOAD);
    let mut state = tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    bytes.extend_from_slice(&tag.to_be_bytes());
    while bytes.len() < PAYLOAD {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.into()
}

/// Sends entries to the contexts in turn over one stream, at most `in_flight` unanswered, until told to stop or
/// until the stream ends. Tags count up from `first_tag`.
pub async fn stream(
    rpc: Rpc,
    contexts: Vec<String>,
    in_flight: usize,
    first_tag: u64,
    progress: Arc<Progress>,
) -> Outcome {
    let (batches, sending) = mpsc::channel(in_flight.div_ceil(BATCH));
    let credit = Arc::new(tokio::sync::Semaphore::new(in_flight));
    let sender = {
        let (contexts, credit, progress) = (contexts.clone(), Arc::clone(&credit), Arc::clone(&progress));
        tokio::spawn(async move {
            let mut tag = first_tag;
            while !progress.stop.load(Ordering::Relaxed) {
                let Ok(permit) = credit.acquire_many(u32::try_from(BATCH).unwrap()).await else { break };
                permit.forget();
                let items = (tag..).take(BATCH).map(|tag| item(&contexts, tag)).collect();
                tag += BATCH as u64;
                if batches.send(AppendBatch { items }).await.is_err() {
                    break;
                }
            }
        })
    };
    let mut outcome = Outcome::default();
    let answers = rpc.ledger.clone().append(ReceiverStream::new(sending)).await;
    match answers.map(tonic::Response::into_inner) {
        Err(status) => outcome.ended = Some(status),
        Ok(mut answers) => loop {
            match answers.message().await {
                Ok(None) => break,
                Err(status) => {
                    outcome.ended = Some(status);
                    break;
                }
                Ok(Some(message)) => {
                    let count = message.results.len();
                    let good = message.results.iter().filter(|result| result.error.is_none()).count();
                    for result in message.results {
                        take(&mut outcome, &contexts, result);
                    }
                    progress.add(good as u64);
                    credit.add_permits(count);
                }
            }
        },
    }
    credit.close();
    sender.await.unwrap();
    outcome
}

fn context_of(contexts: &[String], tag: u64) -> &str {
    &contexts[usize::try_from(tag % contexts.len() as u64).unwrap()]
}

fn item(contexts: &[String], tag: u64) -> AppendItem {
    let request = AppendRequest {
        context_id: context_of(contexts, tag).to_owned(),
        key: "load".to_owned(),
        payload: payload(tag),
        ..AppendRequest::default()
    };
    AppendItem { tag, request: Some(request) }
}

fn take(outcome: &mut Outcome, contexts: &[String], result: AppendResult) {
    let AppendResult { tag, error, sequence, entry_id, content_hash, .. } = result;
    if let Some(error) = error {
        outcome.refused.push((error.code, error.message));
        return;
    }
    let context = context_of(contexts, tag);
    let list = outcome.acknowledged.entry(context.to_owned()).or_default();
    if let Some(last) = list.last() {
        assert!(last.tag < tag && last.sequence < sequence, "{context} was acknowledged out of order");
    }
    list.push(Acknowledged { tag, sequence, id: entry_id, content_hash });
}
