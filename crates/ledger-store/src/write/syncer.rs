//! The syncer is the thread that makes commits durable, with one sync for all that wait.
//!
//! While it waits for the disk, the lanes stage and write the next commits, so neither waits for the other. This is
//! group commit with flush pipelining (Johnson et al., "Aether: A Scalable Approach to Logging", VLDB 2010, §4).

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::{
    StoreError, engine::db::Db, replicate::lane_replication::LaneReplication,
    replicate::replica::ReplicateOutcome, shared::Shared, write::command::ReplicateReply,
    write::commit::WrittenCommit,
};

/// Most commits that wait for a sync; beyond that, lanes block.
const MAX_QUEUED_COMMITS: usize = 64;

/// What happens when a commit is durable.
pub(crate) enum OnDurable {
    /// On a standalone node: acknowledge the commit.
    Standalone(WrittenCommit),
    /// On a node of a cluster: this disk's copy is one acknowledgement.
    Clustered {
        /// The database it was written to.
        db: Arc<Db>,
        /// The lane's replication state.
        replication: Arc<LaneReplication>,
        /// Number of this node's own part of the commit.
        number: Option<u64>,
        /// Responses to owners.
        replicate_replies: Vec<(Vec<ReplicateOutcome>, ReplicateReply)>,
    },
}

impl OnDurable {
    fn db(&self) -> &Arc<Db> {
        match self {
            Self::Standalone(written) => written.db(),
            Self::Clustered { db, .. } => db,
        }
    }

    /// Acts on the commit being durable.
    pub(crate) fn durable(self, shared: &Shared) {
        match self {
            Self::Standalone(written) => written.acknowledge(shared, 1),
            Self::Clustered { replication, number, replicate_replies, .. } => {
                for (outcome, reply) in replicate_replies {
                    // The owner's stream may be gone.
                    let _ = reply.send(Ok(outcome));
                }
                if let Some(number) = number {
                    replication.advance_durable_here(&shared.publisher, number);
                }
            }
        }
    }

    /// Notifies the waiters that the commit may not be durable. The lane's replication notified those that wait for a
    /// quorum when the failure was recorded.
    pub(crate) fn fail(self, error: &StoreError) {
        match self {
            Self::Standalone(written) => written.fail(error),
            Self::Clustered { replicate_replies, .. } => {
                for (_, reply) in replicate_replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }
}

/// A lane's request to the syncer.
enum SyncerCommand {
    Commit(OnDurable),
    /// Reply when every earlier commit was acknowledged.
    Drain(Sender<()>),
}

/// The lanes' handle to the syncer.
#[derive(Clone)]
pub(crate) struct SyncerHandle {
    queue: Sender<SyncerCommand>,
    outstanding: Arc<AtomicUsize>,
}

/// The state of the syncer's thread.
pub(crate) struct Syncer {
    queue: Receiver<SyncerCommand>,
    outstanding: Arc<AtomicUsize>,
    shared: Arc<Shared>,
}

/// Creates a syncer, to be run on a thread, and its handle.
pub(crate) fn new(shared: Arc<Shared>) -> (SyncerHandle, Syncer) {
    let (sender, queue) = bounded(MAX_QUEUED_COMMITS);
    let outstanding = Arc::new(AtomicUsize::new(0));
    (
        SyncerHandle { queue: sender, outstanding: Arc::clone(&outstanding) },
        Syncer { queue, outstanding, shared },
    )
}

impl SyncerHandle {
    /// Passes a commit to the syncer, which acknowledges the commits of one lane in order.
    pub(crate) fn send(&self, written: OnDurable) {
        self.outstanding.fetch_add(1, Ordering::SeqCst);
        if let Err(lost) = self.queue.send(SyncerCommand::Commit(written))
            && let SyncerCommand::Commit(written) = lost.into_inner()
        {
            written.fail(&StoreError::Closed);
        }
    }

    /// Waits until every commit passed on so far was acknowledged.
    pub(crate) fn drain(&self) {
        let (done, drained) = bounded(1);
        if self.queue.send(SyncerCommand::Drain(done)).is_ok() {
            // This returns when the syncer replies or ends.
            let _ = drained.recv();
        }
    }

    /// Returns whether every commit was acknowledged.
    pub(crate) fn is_idle(&self) -> bool {
        self.outstanding.load(Ordering::SeqCst) == 0
    }
}

impl Syncer {
    /// Runs until the last lane is gone.
    pub(crate) fn run(self) {
        let mut commits = Vec::with_capacity(MAX_QUEUED_COMMITS);
        while let Ok(first) = self.queue.recv() {
            let mut drain = None;
            for queued in std::iter::once(first).chain(self.queue.try_iter().take(MAX_QUEUED_COMMITS)) {
                match queued {
                    SyncerCommand::Commit(written) => commits.push(written),
                    SyncerCommand::Drain(done) => drain = Some(done),
                }
                if drain.is_some() {
                    break;
                }
            }
            let count = commits.len();
            sync(&mut commits, &self.shared);
            self.outstanding.fetch_sub(count, Ordering::SeqCst);
            if let Some(done) = drain {
                // The sender blocks until this reply.
                let _ = done.send(());
            }
        }
    }
}

/// Makes the commits of one database durable and acknowledges them in order.
fn sync(commits: &mut Vec<OnDurable>, shared: &Shared) {
    // All are of one database: it is replaced only when no commit holds it.
    let synced = match commits.last() {
        Some(newest) => newest.db().sync(),
        None => return,
    };
    match synced {
        Ok(()) => commits.drain(..).for_each(|written| written.durable(shared)),
        Err(error) => {
            shared.commit_failed(&error);
            commits.drain(..).for_each(|written| written.fail(&error));
        }
    }
}
