//! The answers that clients have not yet taken, of all calls: whoever waits for memory may end those whose clients take nothing.

use std::{
    cmp::Reverse,
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{grpc::call::pending_answer::PendingAnswer, limits, memory::ClientMemory};

/// Answers that hold memory until their clients take them: at most one for each call.
#[derive(Debug, Default)]
pub struct UnreadAnswers {
    answers: Mutex<HashMap<u64, Weak<PendingAnswer>>>,
    /// The number of the newest answer.
    newest: AtomicU64,
}

impl UnreadAnswers {
    /// The answer of a new call. It is not among those that may be ended until it is [added](Self::add).
    pub fn begin(&self, client: Arc<ClientMemory>) -> Arc<PendingAnswer> {
        Arc::new(PendingAnswer::new(self.newest.fetch_add(1, Ordering::Relaxed), client))
    }

    /// The answer holds memory from now on. Adding it again changes nothing.
    pub fn add(&self, answer: &Arc<PendingAnswer>) {
        if answer.set_listed(true) {
            self.answers.lock().insert(answer.number(), Arc::downgrade(answer));
        }
    }

    /// The answer holds no memory any more.
    pub fn remove(&self, answer: &PendingAnswer) {
        if answer.set_listed(false) {
            self.answers.lock().remove(&answer.number());
        }
    }

    /// Ends answers whose clients have taken nothing for [`UNREAD`](limits::UNREAD), because a client waits for memory: its own
    /// first, then those that hold most, until so many bytes are free.
    pub fn end_stuck(&self, client: &Arc<ClientMemory>, bytes: usize) {
        let Some(since) = Instant::now().checked_sub(limits::UNREAD) else { return };
        let answers: Vec<Arc<PendingAnswer>> =
            self.answers.lock().values().filter_map(Weak::upgrade).collect();
        let mut stuck: Vec<(bool, usize, Arc<PendingAnswer>)> = answers
            .into_iter()
            .filter_map(|answer| {
                Some((Arc::ptr_eq(answer.client(), client), answer.unread_since(since)?, answer))
            })
            .collect();
        stuck.sort_by_key(|(is_own, held, _)| Reverse((*is_own, *held)));
        let mut freed = 0;
        for (.., answer) in stuck {
            if freed >= bytes {
                return;
            }
            if let Some(bytes) = answer.end_unread() {
                self.remove(&answer);
                freed += bytes;
            }
        }
    }
}
