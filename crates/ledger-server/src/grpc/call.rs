//! One call of a client: until when it may take, and what of the memory it holds.
//!
//! Whatever serves a call finds it by [`current`]: handlers while they run, and streams of answers while they are
//! polled. A task that goes on by itself takes it along.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Code, body::Body};

use ledger_store::budget::Permit;

use crate::{
    grpc::status::Refusal,
    limits,
    memory::{self, Charge, ClientMemory, ClientShare, Memory},
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
    number: u64,
    deadline: Instant,
    /// The answer ends the call: its deadline is that of whatever is asked of others for it.
    is_unary: bool,
    memory: Arc<Memory>,
    client: Arc<ClientMemory>,
    waits_for: Mutex<&'static str>,
    /// Of the request, until it was served.
    request: Mutex<Option<Charge>>,
    /// Bytes of answers that are being built, or wait for the client to take those before.
    reserved: AtomicUsize,
    /// Of answers that are built and not yet among the bytes to be sent.
    built: Mutex<Option<Charge>>,
    unread: Mutex<UnsentAnswer>,
    /// It is among those that may be ended for others.
    is_noted: AtomicBool,
    _place: Permit,
}

/// What the client has not yet taken.
#[derive(Debug, Default)]
struct UnsentAnswer {
    body: Option<Body>,
    rest: Bytes,
    charge: Option<Charge>,
    /// Since when the client has taken nothing, if it is the client that is waited for.
    since: Option<Instant>,
    is_ended: bool,
}

/// Bytes that are charged until the connection has sent them.
struct ChargedBytes {
    bytes: Bytes,
    _charge: Option<Charge>,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Room for an answer that is being built, or waits to be taken.
#[derive(Debug, Default)]
pub struct ReservedAnswer(Option<(Arc<Call>, Charge)>);

impl ReservedAnswer {
    fn new(call: Arc<Call>, charge: Charge) -> Self {
        call.reserved.fetch_add(charge.amount(), Ordering::Relaxed);
        call.note_unread();
        Self(Some((call, charge)))
    }

    /// Of what was handed over of the current call's answer, and is taken later after all.
    pub fn of_built() -> Self {
        let Some(call) = current() else { return Self::default() };
        let built = call.built.lock().take();
        built.map_or_else(Self::default, |charge| Self::new(call, charge))
    }

    /// The answer has so many bytes, and is handed out now.
    pub fn hand_over(mut self, bytes: usize) {
        if let Some((call, mut charge)) = self.take() {
            charge.resize(bytes);
            call.hand_over(charge);
        }
    }

    /// A part of so many bytes is handed out now; of the last part, all that is left.
    pub fn hand_over_part(&mut self, bytes: usize) {
        let Some((call, held)) = &mut self.0 else { return };
        match held.split(bytes) {
            Some(part) => {
                call.reserved.fetch_sub(bytes, Ordering::Relaxed);
                call.hand_over(part);
            }
            None => std::mem::take(self).hand_over(bytes),
        }
    }

    fn take(&mut self) -> Option<(Arc<Call>, Charge)> {
        let (call, charge) = self.0.take()?;
        call.reserved.fetch_sub(charge.amount(), Ordering::Relaxed);
        Some((call, charge))
    }
}

impl Drop for ReservedAnswer {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// Waits until an answer of so many bytes may be built for a call; at once if there is none.
pub async fn reserve(call: Option<Arc<Call>>, bytes: usize) -> Result<ReservedAnswer, Refusal> {
    reserve_of(call, ClientShare::Answers, bytes).await
}

/// The same for results of appends.
pub async fn reserve_results(call: Option<Arc<Call>>, bytes: usize) -> Result<ReservedAnswer, Refusal> {
    reserve_of(call, ClientShare::Results, bytes).await
}

async fn reserve_of(
    call: Option<Arc<Call>>,
    of: ClientShare,
    bytes: usize,
) -> Result<ReservedAnswer, Refusal> {
    let Some(call) = call else { return Ok(ReservedAnswer::default()) };
    if let Some(charge) = call.memory.try_acquire(&call.client, of, bytes) {
        return Ok(ReservedAnswer::new(call, charge));
    }
    let charge = {
        let mut acquired = std::pin::pin!(call.memory.acquire(&call.client, of, bytes));
        loop {
            tokio::select! {
                charge = &mut acquired => break charge,
                () = tokio::time::sleep(memory::POLL_INTERVAL) => {
                    call.memory.end_unread(&call.client, bytes);
                    if call.is_unary && Instant::now() >= call.deadline {
                        return Err(call.out_of_memory());
                    }
                }
            }
        }
    };
    Ok(ReservedAnswer::new(call, charge))
}

/// Holds a charge beside what is held already.
fn add(held: &Mutex<Option<Charge>>, charge: Charge) {
    let mut held = held.lock();
    match &mut *held {
        Some(held) => held.merge(charge),
        None => *held = Some(charge),
    }
}

impl Call {
    /// A call that has come.
    pub fn new(
        deadline: Instant,
        is_unary: bool,
        memory: Arc<Memory>,
        client: Arc<ClientMemory>,
        place: Permit,
    ) -> Arc<Self> {
        Arc::new(Self {
            number: memory.next_number(),
            deadline,
            is_unary,
            memory,
            client,
            waits_for: Mutex::new("its work"),
            request: Mutex::default(),
            reserved: AtomicUsize::new(0),
            built: Mutex::default(),
            unread: Mutex::default(),
            is_noted: AtomicBool::new(false),
            _place: place,
        })
    }

    /// Tells it from others.
    pub const fn number(&self) -> u64 {
        self.number
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
    pub const fn client(&self) -> &Arc<ClientMemory> {
        &self.client
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
        let answers = &self.client.answers;
        let message = if answers.used() >= answers.capacity() / 2 {
            "this connection has too many bytes of answers that it has not read: read them, or ask for less at once"
        } else {
            "the node has no memory left for the answer (memory): read answers faster, ask for less at once, or try later"
        };
        Refusal { retry: Some(limits::RETRY_MEMORY), ..Refusal::new(Code::ResourceExhausted, message) }
    }

    /// Holds what its request takes until it was served.
    pub fn hold_request(&self, charge: Charge) {
        add(&self.request, charge);
    }

    /// What its request takes, for work with it that goes on when the call is given up.
    pub fn take_request(&self) -> Option<Charge> {
        self.request.lock().take()
    }

    /// It was served.
    pub fn release_request(&self) {
        drop(self.take_request());
    }

    /// What is sent to the client from now on.
    pub fn answer(&self, body: Body) {
        let mut unread = self.unread.lock();
        (unread.body, unread.since) = (Some(body), Some(Instant::now()));
    }

    /// Nothing more is sent.
    pub fn end(&self) {
        let unread = std::mem::take(&mut *self.unread.lock());
        self.forget_unread();
        drop(unread);
        let built = self.built.lock().take();
        drop(built);
    }

    fn hand_over(&self, charge: Charge) {
        add(&self.built, charge);
    }

    fn note_unread(self: &Arc<Self>) {
        if !self.is_noted.swap(true, Ordering::Relaxed) {
            self.memory.note_unread(self);
        }
    }

    fn forget_unread(&self) {
        if self.is_noted.swap(false, Ordering::Relaxed) {
            self.memory.forget_unread(self.number);
        }
    }

    /// Whether there is nothing more to send.
    pub fn is_answered(&self) -> bool {
        use http_body::Body as _;
        let unread = self.unread.lock();
        unread.rest.is_empty() && !unread.is_ended && unread.body.as_ref().is_none_or(Body::is_end_stream)
    }

    /// The next bytes or trailers for the client.
    pub fn poll_answer(
        self: &Arc<Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        use std::{pin::Pin, task::Poll};

        use http_body::Body as _;

        let mut unread = self.unread.lock();
        if unread.is_ended {
            return Poll::Ready(unread.last_word().map(Ok));
        }
        if !unread.rest.is_empty() {
            return Poll::Ready(Some(Ok(Self::next_part(&mut unread))));
        }
        let Some(body) = unread.body.as_mut() else { return Poll::Ready(None) };
        let polled = CALL.sync_scope(Arc::clone(self), || Pin::new(body).poll_frame(cx));
        let frame = match polled {
            Poll::Pending => {
                // It has taken all there is.
                unread.since = None;
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(other) => return Poll::Ready(other),
        };
        let bytes = match frame.into_data() {
            Ok(bytes) => bytes,
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        let built = self.built.lock().take();
        let charge = match built {
            Some(mut charge) => {
                charge.resize(bytes.len());
                charge
            }
            None => self.memory.charge_answer(&self.client, bytes.len()),
        };
        unread.since = Some(Instant::now());
        if bytes.len() <= limits::SENT_AT_ONCE {
            let charged = ChargedBytes { bytes, _charge: Some(charge) };
            return Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_owner(charged)))));
        }
        (unread.rest, unread.charge) = (bytes, Some(charge));
        let first = Self::next_part(&mut unread);
        drop(unread);
        self.note_unread();
        Poll::Ready(Some(Ok(first)))
    }

    /// A part of what is to be sent, copied: so the rest can be let go of if the client does not take it.
    fn next_part(unread: &mut UnsentAnswer) -> http_body::Frame<Bytes> {
        let len = unread.rest.len().min(limits::SENT_AT_ONCE);
        let bytes = Bytes::copy_from_slice(&unread.rest[..len]);
        unread.rest.advance(len);
        unread.since = Some(Instant::now());
        let charge = if unread.rest.is_empty() {
            unread.rest = Bytes::new();
            unread.charge.take()
        } else {
            unread.charge.as_mut().and_then(|charge| charge.split(len))
        };
        http_body::Frame::data(Bytes::from_owner(ChargedBytes { bytes, _charge: charge }))
    }

    /// How many bytes wait for the client, if it has taken none since then.
    pub fn unread_since(&self, since: Instant) -> Option<usize> {
        let unread = self.unread.try_lock()?;
        let held = self.held(&unread);
        (held > 0 && unread.since.is_some_and(|at| at < since)).then_some(held)
    }

    fn held(&self, unread: &UnsentAnswer) -> usize {
        let amount = |charge: &Option<Charge>| charge.as_ref().map_or(0, Charge::amount);
        amount(&unread.charge) + amount(&self.built.lock()) + self.reserved.load(Ordering::Relaxed)
    }

    /// Ends the call, whose client takes nothing; gives how many bytes that frees.
    pub fn end_unread(&self) -> usize {
        let Some(mut unread) = self.unread.try_lock() else { return 0 };
        let freed = self.held(&unread);
        let ended =
            std::mem::replace(&mut *unread, UnsentAnswer { is_ended: true, ..UnsentAnswer::default() });
        drop(unread);
        self.forget_unread();
        drop(ended);
        let built = self.built.lock().take();
        drop(built);
        freed
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.forget_unread();
    }
}

impl UnsentAnswer {
    /// Why the call was ended, once.
    fn last_word(&mut self) -> Option<http_body::Frame<Bytes>> {
        if self.since.replace(Instant::now()).is_some() {
            return None;
        }
        let message = "the answer was not read for too long while others waited for memory: read faster, or less at once";
        let refusal = Refusal::new(Code::ResourceExhausted, message);
        let mut trailers = http::HeaderMap::new();
        // It has no metadata that could be malformed.
        let _ = tonic::Status::from(refusal).add_header(&mut trailers);
        Some(http_body::Frame::trailers(trailers))
    }
}
