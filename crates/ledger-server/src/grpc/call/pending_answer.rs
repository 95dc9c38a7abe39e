//! The answer of one call, from the first byte that is built to the last that its client takes.
//!
//! | state | its bytes are held by |
//! | --- | --- |
//! | being built, or waiting behind others | whoever builds it; `reserved` counts them |
//! | built | `built` |
//! | being sent, in parts of [`SENT_AT_ONCE`](limits::SENT_AT_ONCE) | `unsent` |
//! | handed to the connection | the part itself, until the connection has written it |

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use http::HeaderMap;
use http_body::{Body as _, Frame};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};

use crate::{
    grpc::status::Refusal,
    limits,
    memory::{Charge, ClientMemory},
};

/// An answer and the memory that it holds.
#[derive(Debug)]
pub struct PendingAnswer {
    number: u64,
    /// The part of the memory that the client's connection may take.
    client: Arc<ClientMemory>,
    reserved: AtomicUsize,
    built: Mutex<Option<Charge>>,
    unsent: Mutex<Unsent>,
    /// It is among the answers that may be ended for others.
    is_listed: AtomicBool,
}

/// What the client has not yet taken.
#[derive(Debug, Default)]
struct Unsent {
    body: Option<Body>,
    rest: Bytes,
    charge: Option<Charge>,
    /// Since when the client has taken nothing; `None` while the client waits for the node.
    since: Option<Instant>,
    is_ended: bool,
}

/// Bytes that are charged until the connection has written them.
struct ChargedBytes {
    bytes: Bytes,
    _charge: Option<Charge>,
}

impl AsRef<[u8]> for ChargedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Holds a charge beside what is held already.
pub(super) fn hold(held: &Mutex<Option<Charge>>, charge: Charge) {
    let mut held = held.lock();
    match &mut *held {
        Some(held) => held.merge(charge),
        None => *held = Some(charge),
    }
}

impl PendingAnswer {
    pub(super) fn new(number: u64, client: Arc<ClientMemory>) -> Self {
        Self {
            number,
            client,
            reserved: AtomicUsize::new(0),
            built: Mutex::default(),
            unsent: Mutex::default(),
            is_listed: AtomicBool::new(false),
        }
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) const fn client(&self) -> &Arc<ClientMemory> {
        &self.client
    }

    /// Whether this changes that it is listed.
    pub(super) fn set_listed(&self, is_listed: bool) -> bool {
        self.is_listed.swap(is_listed, Ordering::Relaxed) != is_listed
    }

    pub(super) fn add_reserved(&self, bytes: usize) {
        self.reserved.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub_reserved(&self, bytes: usize) {
        self.reserved.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes over what is built.
    pub(super) fn hold_built(&self, charge: Charge) {
        hold(&self.built, charge);
    }

    pub(super) fn take_built(&self) -> Option<Charge> {
        self.built.lock().take()
    }

    /// Sends a body from now on.
    pub(super) fn begin(&self, body: Body) {
        let mut unsent = self.unsent.lock();
        (unsent.body, unsent.since) = (Some(body), Some(Instant::now()));
    }

    /// Drops all that is not sent.
    pub(super) fn end(&self) {
        let unsent = std::mem::take(&mut *self.unsent.lock());
        drop(unsent);
        drop(self.take_built());
    }

    /// Whether there is nothing more to send.
    pub(super) fn is_sent(&self) -> bool {
        let unsent = self.unsent.lock();
        unsent.rest.is_empty() && !unsent.is_ended && unsent.body.as_ref().is_none_or(Body::is_end_stream)
    }

    /// The next bytes or trailers for the client. `poll_body` polls the body, `charge` pays for bytes that nobody paid for
    /// before. Whether bytes are left that only wait for the client is written to `has_rest`.
    pub(super) fn poll_frame(
        &self,
        cx: &mut Context<'_>,
        poll_body: impl FnOnce(Pin<&mut Body>, &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>>,
        charge: impl FnOnce(usize) -> Charge,
        has_rest: &mut bool,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut unsent = self.unsent.lock();
        if unsent.is_ended {
            return Poll::Ready(unsent.last_word().map(Ok));
        }
        if !unsent.rest.is_empty() {
            return Poll::Ready(Some(Ok(unsent.next_part())));
        }
        let Some(body) = unsent.body.as_mut() else { return Poll::Ready(None) };
        let frame = match poll_body(Pin::new(body), cx) {
            Poll::Pending => {
                // It has taken all there is.
                unsent.since = None;
                return Poll::Pending;
            }
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Ready(other) => return Poll::Ready(other),
        };
        let bytes = match frame.into_data() {
            Ok(bytes) => bytes,
            Err(frame) => return Poll::Ready(Some(Ok(frame))),
        };
        let charge = match self.take_built() {
            Some(mut built) => {
                built.resize(bytes.len());
                built
            }
            None => charge(bytes.len()),
        };
        unsent.since = Some(Instant::now());
        if bytes.len() <= limits::SENT_AT_ONCE {
            let charged = ChargedBytes { bytes, _charge: Some(charge) };
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_owner(charged)))));
        }
        (unsent.rest, unsent.charge) = (bytes, Some(charge));
        *has_rest = true;
        Poll::Ready(Some(Ok(unsent.next_part())))
    }

    /// How many bytes wait for the client; `None` if it has taken some since then.
    pub(super) fn unread_since(&self, since: Instant) -> Option<usize> {
        let unsent = self.unsent.try_lock()?;
        let held = self.held(&unsent);
        (held > 0 && unsent.since.is_some_and(|at| at < since)).then_some(held)
    }

    fn held(&self, unsent: &Unsent) -> usize {
        let amount = |charge: &Option<Charge>| charge.as_ref().map_or(0, Charge::amount);
        amount(&unsent.charge) + amount(&self.built.lock()) + self.reserved.load(Ordering::Relaxed)
    }

    /// Ends the call, whose client takes nothing; gives how many bytes that frees. `None`: its client takes some just now.
    pub(super) fn end_unread(&self) -> Option<usize> {
        let mut unsent = self.unsent.try_lock()?;
        let freed = self.held(&unsent);
        let ended = std::mem::replace(&mut *unsent, Unsent { is_ended: true, ..Unsent::default() });
        drop(unsent);
        drop(ended);
        drop(self.take_built());
        Some(freed)
    }
}

impl Unsent {
    /// A part of what is to be sent, copied, so that the rest can be dropped if the client does not take it.
    fn next_part(&mut self) -> Frame<Bytes> {
        let len = self.rest.len().min(limits::SENT_AT_ONCE);
        let bytes = Bytes::copy_from_slice(&self.rest[..len]);
        self.rest.advance(len);
        self.since = Some(Instant::now());
        let charge = if self.rest.is_empty() {
            self.rest = Bytes::new();
            self.charge.take()
        } else {
            self.charge.as_mut().and_then(|charge| charge.split(len))
        };
        Frame::data(Bytes::from_owner(ChargedBytes { bytes, _charge: charge }))
    }

    /// Why the call was ended, once.
    fn last_word(&mut self) -> Option<Frame<Bytes>> {
        if self.since.replace(Instant::now()).is_some() {
            return None;
        }
        let message = "the answer was not read for too long while others waited for memory: read faster, or less at once";
        let refusal = Refusal::new(Code::ResourceExhausted, message);
        let mut trailers = HeaderMap::new();
        // It has no metadata that could be malformed.
        let _ = Status::from(refusal).add_header(&mut trailers);
        Some(Frame::trailers(trailers))
    }
}
