//! One call of a client: until when it may take, and what of the memory it holds.
//!
//! Whatever serves a call finds it by [`current`]: handlers while they run, and streams of answers while they are
//! polled. A task that goes on by itself takes it along.

mod pending_answer;
mod reserved_answer;
mod unread_answers;

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use ledger_store::budget::Permit;
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};

pub use pending_answer::PendingAnswer;
pub use reserved_answer::{
    ReservedAnswer, answer_bytes, page_bytes, page_bytes_for, reserve, reserve_results,
};
pub use unread_answers::UnreadAnswers;

use crate::{
    grpc::status::Refusal,
    limits,
    memory::{Charge, ClientMemory, Memory},
};

tokio::task_local! {
    /// The call that is served.
    pub(crate) static CALL: Arc<Call>;
}

/// The call that is served here, if this is one of a client.
pub fn current() -> Option<Arc<Call>> {
    CALL.try_with(Arc::clone).ok()
}

/// Until when the current call may wait: its deadline, if that is before another one.
pub fn deadline_within(most: Duration) -> Instant {
    let until = Instant::now() + most;
    current().map_or(until, |call| until.min(call.deadline))
}

/// A call.
#[derive(Debug)]
pub struct Call {
    deadline: Instant,
    /// The answer ends the call: its deadline is that of whatever is asked of others for it.
    is_unary: bool,
    memory: Arc<Memory>,
    waits_for: Mutex<&'static str>,
    /// Of the request, until it was served.
    request: Mutex<Option<Charge>>,
    answer: Arc<PendingAnswer>,
    /// The answers that may be ended for others, of which this one is while it holds memory.
    unread: Arc<UnreadAnswers>,
    _permit: Permit,
}

impl Call {
    /// A call that has come.
    pub fn new(
        deadline: Instant,
        is_unary: bool,
        memory: Arc<Memory>,
        unread: Arc<UnreadAnswers>,
        client: Arc<ClientMemory>,
        permit: Permit,
    ) -> Arc<Self> {
        Arc::new(Self {
            deadline,
            is_unary,
            memory,
            waits_for: Mutex::new("its work"),
            request: Mutex::default(),
            answer: unread.begin(client),
            unread,
            _permit: permit,
        })
    }

    /// Until when it is to be answered.
    pub const fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether its answer ends it.
    pub const fn is_unary(&self) -> bool {
        self.is_unary
    }

    /// The node's memory.
    pub const fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }

    /// What its connection may take of it.
    pub fn client(&self) -> &Arc<ClientMemory> {
        self.answer.client()
    }

    /// Its answer, and what that holds.
    const fn pending(&self) -> &Arc<PendingAnswer> {
        &self.answer
    }

    /// The answers that may be ended for others.
    const fn unread(&self) -> &Arc<UnreadAnswers> {
        &self.unread
    }

    /// Notes what it waits for, for whom it does not get there in time.
    pub fn waits_for(&self, what: &'static str) {
        *self.waits_for.lock() = what;
    }

    /// Its deadline has passed.
    pub fn too_late(&self) -> Refusal {
        let what = *self.waits_for.lock();
        let message = format!("the call was not answered before its deadline: it waited for {what}");
        Refusal::new(Code::DeadlineExceeded, message)
    }

    fn out_of_memory(&self) -> Refusal {
        let answers = &self.client().answers;
        let message = if answers.used() >= answers.capacity() / 2 {
            "this connection has too many bytes of answers that it has not read: read them, or ask for less at once"
        } else {
            "the node has no memory left for the answer (memory): read answers faster, ask for less at once, or try later"
        };
        Refusal { retry: Some(limits::RETRY_MEMORY), ..Refusal::new(Code::ResourceExhausted, message) }
    }

    /// Holds what its request takes until it was served.
    pub fn hold_request(&self, charge: Charge) {
        pending_answer::hold(&self.request, charge);
    }

    /// What its request takes, for work with it that goes on when the call is given up.
    pub fn take_request(&self) -> Option<Charge> {
        self.request.lock().take()
    }

    /// It was served.
    pub fn release_request(&self) {
        drop(self.take_request());
    }

    /// Sends a body to the client from now on.
    pub fn answer(&self, body: Body) {
        self.answer.begin(body);
    }

    /// Nothing more is sent.
    pub fn end(&self) {
        self.unread.remove(&self.answer);
        self.answer.end();
    }

    /// Whether there is nothing more to send.
    pub fn is_answered(&self) -> bool {
        self.answer.is_sent()
    }

    /// The next bytes or trailers for the client.
    pub fn poll_answer(self: &Arc<Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        use http_body::Body as _;

        let mut has_rest = false;
        let polled = self.answer.poll_frame(
            cx,
            |body, cx| CALL.sync_scope(Arc::clone(self), || body.poll_frame(cx)),
            |bytes| self.memory.charge_answer(self.client(), bytes),
            &mut has_rest,
        );
        if has_rest {
            self.unread.add(&self.answer);
        }
        polled
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.unread.remove(&self.answer);
    }
}
