//! One watcher: history, then the live tail, with no seam between them.
//!
//! There is no publishing and no queue per watcher. A watcher that is behind reads the store, one that has
//! caught up reads recent entries from memory, and one that has everything waits. It reads when its client
//! takes more, so a slow client costs no memory and delays nobody.
//!
//! | state | leaves it when |
//! | --- | --- |
//! | reading | there was a page → hand it over, reading; there was none → waiting |
//! | waiting | something was appended → reading; a bookmark is due → hand it over, waiting; the node drains → ended |

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{FutureExt as _, Stream, stream};
use ledger_core::{ContextId, Key, Position, Sequence, Size};
use ledger_store::{Covered, EntryView, Watch};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    grpc::call,
    grpc::convert::Resume,
    grpc::status::Refusal,
    limits,
    metrics::{Alive, Rpc},
    node::Node,
    settings::config::TestPanic,
};

/// What an entry takes beside its payload and key, bytes.
const ENTRY: usize = 160;

/// What a watcher is handed.
#[derive(Debug)]
pub struct WatcherBatch<T> {
    /// Entries, in order, each once. Empty in a bookmark.
    pub entries: Vec<T>,
    /// Everything up to here was delivered or filtered out.
    pub bookmark: Option<Position>,
    /// The same without proof, with entries only.
    pub newest: Option<Sequence>,
}

/// A watcher, and how it hands out entries.
pub struct ContextWatcher<F> {
    shape: F,
    node: Arc<Node>,
    rpc: Rpc,
    context: ContextId,
    /// Taken while a thread reads the store with it.
    watch: Option<Watch>,
    bookmarks: Option<Bookmarks>,
    _alive: Alive,
}

/// When a watcher is told its position.
#[derive(Debug)]
struct Bookmarks {
    /// At least this often, if set.
    every: Option<Duration>,
    last: Instant,
}

/// Makes of an entry what the watcher hands out.
pub trait EntryEncoder<T>: Fn(&EntryView<'_>) -> T + Clone + Send + 'static {}

impl<T, F: Fn(&EntryView<'_>) -> T + Clone + Send + 'static> EntryEncoder<T> for F {}

impl<F> ContextWatcher<F> {
    /// A watcher of what follows a sequence.
    pub fn new(
        node: &Arc<Node>,
        rpc: Rpc,
        context: ContextId,
        key: Option<Key>,
        after: Sequence,
        shape: F,
    ) -> Self {
        node.metrics.started(rpc);
        Self {
            shape,
            watch: Some(node.ledger.watch(&context, key, after)),
            _alive: Alive::new(&node.metrics.watchers),
            node: Arc::clone(node),
            rpc,
            context,
            bookmarks: None,
        }
    }

    /// A watcher that resumes: the history is checked first.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` if the history is another one, or what the store refuses.
    pub async fn resume(
        node: &Arc<Node>,
        rpc: Rpc,
        context: ContextId,
        key: Option<Key>,
        resume: Resume,
        shape: F,
    ) -> Result<Self, Refusal> {
        if let Some(lineage) = resume.lineage {
            let named = context.clone();
            node.read(move |ledger| match resume.position {
                Some(position) => ledger.check_position(&named, &position),
                None => match ledger.head(&named)? {
                    Some(head) if head.lineage == lineage => Ok(()),
                    _ => Err(ledger_store::StoreError::HistoryChanged {
                        context: named.clone(),
                        size: resume.after.0,
                    }),
                },
            })
            .await?;
        }
        Ok(Self::new(node, rpc, context, key, resume.after, shape))
    }

    /// Also hands out bookmarks: with entries, and alone at an interval of so many milliseconds (0: never).
    #[must_use]
    pub fn with_bookmarks(mut self, every_ms: u32) -> Self {
        let every = match every_ms {
            0 => None,
            ms => Some(Duration::from_millis(ms.max(limits::MIN_BOOKMARK_MS).into())),
        };
        self.bookmarks = Some(Bookmarks { every, last: Instant::now() });
        self
    }

    /// The watcher as a stream. A panic in it ends this stream with `INTERNAL`, and nothing else.
    pub fn into_stream<T: Send + 'static>(self) -> impl Stream<Item = Result<WatcherBatch<T>, Status>> + Send
    where
        F: EntryEncoder<T>,
    {
        stream::unfold(Some(self), |tail| async move {
            let mut tail = tail?;
            let (node, rpc) = (Arc::clone(&tail.node), tail.rpc);
            let next = AssertUnwindSafe(async move {
                let next = tail.next().await;
                (next, tail)
            });
            match next.catch_unwind().await {
                Ok((Ok(batch), tail)) => {
                    node.metrics.watched_entries.increment(batch.entries.len() as u64);
                    Some((Ok(batch), Some(tail)))
                }
                Ok((Err(refusal), _)) => Some((Err(node.refuse(rpc, refusal)), None)),
                Err(_) => {
                    let refusal = Refusal::internal("the watch failed inside the server: watch again");
                    Some((Err(node.refuse(rpc, refusal)), None))
                }
            }
        })
    }

    /// The next entries or bookmark.
    ///
    /// # Errors
    /// What the store refuses; `UNAVAILABLE` when the node is shutting down.
    pub async fn next<T: Send + 'static>(&mut self) -> Result<WatcherBatch<T>, Refusal>
    where
        F: EntryEncoder<T>,
    {
        loop {
            self.node.serving()?;
            let (entries, covered) = self.read().await?;
            if !entries.is_empty() {
                let bookmark = self.bookmark_of(&covered).await?;
                return Ok(WatcherBatch { entries, bookmark, newest: Some(covered.covered) });
            }
            // Nothing of it matched so far, and there is more to look through.
            if covered.more {
                continue;
            }
            if let Some(bookmark) = self.wait().await? {
                return Ok(WatcherBatch { entries: Vec::new(), bookmark: Some(bookmark), newest: None });
            }
        }
    }

    /// What there is, as many bytes of it as there is memory for.
    async fn read<T: Send + 'static>(&mut self) -> Result<(Vec<T>, Covered), Refusal>
    where
        F: EntryEncoder<T>,
    {
        let mut most = call::page_bytes(&self.node.memory, limits::WATCH_BYTES);
        loop {
            let (entries, covered) = self.read_page(most).await?;
            match covered.larger {
                // It waits for the room that the next entry takes.
                Some(bytes) if entries.is_empty() => most = bytes,
                _ => return Ok((entries, covered)),
            }
        }
    }

    /// A page of so many bytes: recent entries from memory, older ones from the store, on a thread that may block.
    async fn read_page<T: Send + 'static>(&mut self, page: usize) -> Result<(Vec<T>, Covered), Refusal>
    where
        F: EntryEncoder<T>,
    {
        let lost = || Refusal::internal("the watch failed inside the server: watch again");
        let limit = limits::WATCH_ENTRIES;
        // The page, and the message that is made of it.
        let reserved = call::reserve(call::current(), 2 * page).await?;
        let bytes = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&bytes);
        let (shape, test_panic) = (self.shape.clone(), self.node.config.test_panic);
        let mut entries = Vec::new();
        let mut watch = self.watch.take().ok_or_else(lost)?;
        let take = move |entries: &mut Vec<T>, view: &EntryView<'_>| {
            panic_if_tested(test_panic, view.key);
            counted.fetch_add(view.payload.len() + view.key.len() + ENTRY, Ordering::Relaxed);
            entries.push(shape(view));
        };
        if let Some(read) = watch.visit_recent(limit, page, |view| take(&mut entries, &view)) {
            self.watch = Some(watch);
            reserved.hand_over(2 * bytes.load(Ordering::Relaxed));
            return Ok((entries, read?));
        }
        self.node.metrics.watch_history_reads.increment(1);
        let (watch, entries, read) = self
            .node
            .read(move |_| {
                let read = watch.visit(limit, page, |view| take(&mut entries, &view));
                Ok((watch, entries, read))
            })
            .await?;
        self.watch = Some(watch);
        reserved.hand_over(2 * bytes.load(Ordering::Relaxed));
        Ok((entries, read?))
    }

    /// Waits for something new (`None`), or until a bookmark is due.
    async fn wait(&mut self) -> Result<Option<Position>, Refusal> {
        let Some(watch) = &mut self.watch else { return Ok(None) };
        let due = self.bookmarks.as_ref().and_then(|marks| Some(marks.last + marks.every?));
        let draining = self.node.draining.cancelled();
        let Some(due) = due else {
            return tokio::select! {
                changed = watch.changed() => Ok(changed.map(|()| None)?),
                () = draining => Err(Refusal::shutting_down()),
            };
        };
        tokio::select! {
            changed = watch.changed() => Ok(changed.map(|()| None)?),
            () = draining => Err(Refusal::shutting_down()),
            () = tokio::time::sleep_until(due) => self.bookmark_now().await,
        }
    }

    /// The position after a page: cheap when the watcher has caught up, for then it is the head's; when it
    /// has not, made at the interval only.
    async fn bookmark_of(&mut self, page: &Covered) -> Result<Option<Position>, Refusal> {
        let Some(marks) = &mut self.bookmarks else { return Ok(None) };
        let now = Instant::now();
        let every = marks.every.unwrap_or(Duration::from_millis(limits::BOOKMARK_MS.into()));
        let covered = Size(page.covered.0);
        if page.latest == covered
            && let Some(position) = self.watch.as_ref().and_then(Watch::position)
        {
            marks.last = now;
            return Ok(Some(position));
        }
        if now < marks.last + every {
            return Ok(None);
        }
        self.bookmark_now().await
    }

    async fn bookmark_now(&mut self) -> Result<Option<Position>, Refusal> {
        let Some(marks) = &mut self.bookmarks else { return Ok(None) };
        marks.last = Instant::now();
        let delivered = self.watch.as_ref().map_or(Sequence(0), Watch::delivered);
        let context = self.context.clone();
        let position = self
            .node
            .read(move |ledger| {
                // The watcher may start beyond the end: it is told where the history stands.
                let size = ledger.sequence(&context)?.min(delivered);
                Ok(ledger.checkpoint(&context, Some(Size(size.0)))?.position)
            })
            .await?;
        Ok(Some(position))
    }
}

fn panic_if_tested(test: Option<TestPanic>, key: &str) {
    let asked = test == Some(TestPanic::Watch) && key == "test-panic";
    assert!(!asked, "asked to panic by test_panic = watch");
}
