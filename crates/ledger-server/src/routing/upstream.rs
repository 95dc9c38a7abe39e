//! Answers of other nodes that pass through this one: paid for as they arrive, as those are that are built here.
//!
//! A message is paid for by its header, for its whole length. What comes while it waits for memory stays within the HTTP/2
//! window of its stream, which the call has paid for when it began; the rest waits at the other node.

use std::{
    collections::VecDeque,
    error::Error,
    future::{Future, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use ledger_store::budget::Permit;
use parking_lot::Mutex;
use tonic::{Status, body::Body, transport::Channel};
use tower::Service;

use crate::{
    grpc::admission::too_many_calls,
    grpc::call::{self, Call, ReservedAnswer},
    grpc::status::Refusal,
    limits,
};

/// The compression flag and the length before each message (gRPC over HTTP/2, "Length-Prefixed-Message").
const HEADER: usize = 5;

/// Room for messages that have arrived and are not handed out yet, of each its own.
pub type Aside = Arc<Mutex<VecDeque<ReservedAnswer>>>;

type BoxError = Box<dyn Error + Send + Sync>;
type Answered = Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>;
type Reserving = Pin<Box<dyn Future<Output = Result<ReservedAnswer, Refusal>> + Send>>;

/// Another node that is asked for a call: what it answers is the call's answer, and counts as such.
#[derive(Debug, Clone)]
pub struct Upstream {
    channel: Channel,
    call: Option<Arc<Call>>,
    aside: Option<Aside>,
}

impl Upstream {
    /// For the current call, whose answer is what arrives.
    pub fn new(channel: Channel) -> Self {
        Self { channel, call: call::current(), aside: None }
    }

    /// For a call, by somebody who takes what arrives into that answer later.
    pub fn aside(channel: Channel, call: Option<Arc<Call>>, aside: &Aside) -> Self {
        Self { channel, call, aside: Some(Arc::clone(aside)) }
    }
}

impl Service<Request<Body>> for Upstream {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = Answered;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.channel.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Answered {
        let Some(call) = self.call.clone() else {
            let answered = self.channel.call(request);
            return Box::pin(async { Ok(answered.await?) });
        };
        let Some(window) = call.memory().calls.try_acquire(limits::UPSTREAM_WINDOW) else {
            return Box::pin(ready(Err(Status::from(too_many_calls()).into())));
        };
        let (answered, aside) = (self.channel.call(request), self.aside.clone());
        Box::pin(async {
            let passing = |body| Passing {
                body,
                call,
                aside,
                header: [0; HEADER],
                header_len: 0,
                len: 0,
                left: 0,
                reserved: None,
                reserving: None,
                bytes: Bytes::new(),
                _window: window,
            };
            Ok(answered.await?.map(|body| Body::new(passing(body))))
        })
    }
}

/// An answer of another node on its way.
struct Passing {
    body: Body,
    call: Arc<Call>,
    aside: Option<Aside>,
    header: [u8; HEADER],
    header_len: usize,
    /// The length of the message that is arriving, and how much of it is still to come.
    len: usize,
    left: usize,
    /// For it.
    reserved: Option<ReservedAnswer>,
    reserving: Option<Reserving>,
    /// Bytes that are not yet handed out.
    bytes: Bytes,
    _window: Permit,
}

impl Passing {
    /// What may be handed out of the bytes that are there: up to where a message begins that is not paid for.
    fn take(&mut self) -> Bytes {
        let mut read = 0;
        while read < self.bytes.len() && self.reserving.is_none() {
            if self.left > 0 {
                let len = self.left.min(self.bytes.len() - read);
                (read, self.left) = (read + len, self.left - len);
                if self.left == 0 {
                    self.arrived();
                }
                continue;
            }
            self.header[self.header_len] = self.bytes[read];
            (read, self.header_len) = (read + 1, self.header_len + 1);
            if self.header_len == HEADER {
                let [_, len @ ..] = self.header;
                self.header_len = 0;
                self.len = u32::from_be_bytes(len) as usize;
                self.left = self.len;
                if self.len > 0 {
                    // The message, and the one that is made of it.
                    let (call, bytes) = (Arc::clone(&self.call), self.len.saturating_mul(2));
                    self.reserving = Some(Box::pin(async move { call::reserve(Some(call), bytes).await }));
                }
            }
        }
        self.bytes.split_to(read)
    }

    fn arrived(&mut self) {
        let Some(reserved) = self.reserved.take() else { return };
        match &self.aside {
            Some(aside) => aside.lock().push_back(reserved),
            None => reserved.hand_over(self.len.saturating_mul(2)),
        }
    }
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        loop {
            if let Some(reserving) = &mut this.reserving {
                let reserved = ready!(reserving.as_mut().poll(cx));
                this.reserving = None;
                match reserved {
                    Ok(reserved) => this.reserved = Some(reserved),
                    Err(refusal) => return Poll::Ready(Some(Err(refusal.into()))),
                }
            }
            let taken = this.take();
            if !taken.is_empty() {
                return Poll::Ready(Some(Ok(Frame::data(taken))));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => this.bytes = bytes,
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                other => return Poll::Ready(other),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty() && self.reserving.is_none() && self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests;
