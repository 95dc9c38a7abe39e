//! Collects the commands of one group commit.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use tokio::sync::{mpsc, oneshot};

use crate::{
    Append, AppendConditions, Appended, BatchResult, BatchResults, StoreError,
    replicate::replica::Part,
    write::command::ReplicateReply,
    write::waiters::{Waiter, WaiterTerms},
};

/// The appends and the replicated parts of one commit.
#[derive(Default)]
pub(super) struct CommitBatch {
    pub(super) appends: Vec<QueuedAppend>,
    pub(super) replies: Vec<Reply>,
    /// Bytes of the payloads and of the replicated records.
    pub(super) bytes: usize,
    /// Parts of other nodes' commits, in the order of their arrival, each with its commit's number.
    pub(super) replicated: Vec<(Vec<Part>, u64, ReplicateReply)>,
}

/// An append of a batch, and the index of the reply that its result belongs to.
pub(super) struct QueuedAppend {
    pub(super) context_hash: u64,
    pub(super) reply: usize,
    pub(super) tag: u64,
    pub(super) append: Append,
}

/// A caller that waits, and its results so far.
#[allow(clippy::large_enum_variant, reason = "they live in a list that is emptied with the batch")]
pub(super) enum Reply {
    One(Option<Result<Appended, StoreError>>, oneshot::Sender<Result<Appended, StoreError>>, WaiterTerms),
    Many(Vec<BatchResult>, mpsc::UnboundedSender<BatchResults>, WaiterTerms),
}

impl CommitBatch {
    pub(super) fn push(
        &mut self,
        append: Append,
        reply: oneshot::Sender<Result<Appended, StoreError>>,
        terms: AppendConditions,
        hasher: &RandomState,
    ) {
        let quorum = append.quorum;
        self.add(0, append, self.replies.len(), hasher);
        self.replies.push(Reply::One(None, reply, WaiterTerms { quorum, terms }));
    }

    pub(super) fn extend(
        &mut self,
        appends: Vec<(u64, Append)>,
        reply: &mpsc::UnboundedSender<BatchResults>,
        terms: &AppendConditions,
        hasher: &RandomState,
    ) {
        let first = self.replies.len();
        let count = appends.len();
        for (tag, append) in appends {
            // One reply for all appends with the same quorum, which nearly always is all of them.
            let is_same =
                |of: &Reply| matches!(of, Reply::Many(_, _, asked) if asked.quorum == append.quorum);
            let at = self.replies[first..].iter().position(is_same).unwrap_or_else(|| {
                let results = Vec::with_capacity(count);
                let asked = WaiterTerms { quorum: append.quorum, terms: terms.clone() };
                self.replies.push(Reply::Many(results, reply.clone(), asked));
                self.replies.len() - 1 - first
            });
            self.add(tag, append, first + at, hasher);
        }
    }

    pub(super) fn replicate(&mut self, parts: Vec<Part>, number: u64, reply: ReplicateReply) {
        self.bytes += parts.iter().map(|part| part.range.records.len()).sum::<usize>();
        self.replicated.push((parts, number, reply));
    }

    pub(super) fn add(&mut self, tag: u64, append: Append, reply: usize, hasher: &RandomState) {
        self.bytes += append.draft.payload.len();
        let context_hash = hasher.hash_one(&append.context);
        self.appends.push(QueuedAppend { context_hash, reply, tag, append });
    }
}

impl Reply {
    pub(super) fn waiting(self) -> Option<Waiter> {
        match self {
            Self::One(result, reply, asked) => Some(Waiter::One(result?, reply, asked)),
            Self::Many(results, reply, asked) => Some(Waiter::Many(results, reply, asked)),
        }
    }
}
