//! The bytes of a request as they arrive: measured, counted and paid for before they are decoded.
//!
//! A message is paid for by its header, for all of its length: who has begun one can finish it. It is given back when
//! the next one is asked for, or, of a call with one request, when the call was served.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, body::Body};

use crate::{
    call::Call,
    limits,
    memory::{Charge, Of},
    methods::{Kind, Method},
    scan::Scan,
    status::Refusal,
};

/// A request's body.
pub struct Receiving {
    body: Body,
    method: Method,
    call: Arc<Call>,
    scan: Scan,
    /// For the messages handed out last, and the one that is arriving.
    charge: Option<Charge>,
    /// Bytes that are not yet handed out, and how many of them were read along.
    bytes: Bytes,
    read: usize,
    /// What the message that begins behind them is waiting for.
    acquiring: Option<Pin<Box<dyn Future<Output = Charge> + Send>>>,
    /// When what is arriving is given up, if too little comes.
    timer: Option<Pin<Box<Sleep>>>,
    since_timer: usize,
}

impl Receiving {
    /// Of a call of a method.
    pub fn new(method: Method, call: Arc<Call>) -> Self {
        Self {
            body: Body::default(),
            method,
            call,
            scan: Scan::new(method),
            charge: None,
            bytes: Bytes::new(),
            read: 0,
            acquiring: None,
            timer: None,
            since_timer: 0,
        }
    }

    /// Reads this body.
    #[must_use]
    pub fn of(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// Pays for a message of so many bytes, or begins to wait for it; whether it is paid for.
    fn pay(&mut self, len: usize) -> bool {
        if len == 0 {
            return true;
        }
        let (memory, client) = (Arc::clone(self.call.memory()), Arc::clone(self.call.client()));
        if let Some(charge) = memory.try_acquire(&client, Of::Receiving, len) {
            self.paid(charge);
            return true;
        }
        self.acquiring = Some(Box::pin(async move { memory.acquire(&client, Of::Receiving, len).await }));
        self.timer = None;
        false
    }

    fn paid(&mut self, charge: Charge) {
        match &mut self.charge {
            Some(held) => held.merge(charge),
            None => self.charge = Some(charge),
        }
    }

    /// Gives back what was paid for messages that were handed out.
    fn settle(&mut self) {
        let left = self.scan.begun();
        if left == 0 {
            self.charge = None;
        } else if let Some(charge) = &mut self.charge
            && charge.amount() > left
        {
            charge.resize(left);
        }
    }

    /// Hands out what was read along.
    fn hand_out(&mut self) -> Frame<Bytes> {
        let read = std::mem::take(&mut self.read);
        Frame::data(self.bytes.split_to(read))
    }

    /// Fails when what is arriving takes too long.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let is_waiting = self.acquiring.is_some();
        if !is_waiting && !self.scan.is_within() && !self.method.is_steady {
            self.timer = None;
            return Poll::Pending;
        }
        let patience = if is_waiting { limits::RECEIVE_WAIT } else { limits::RECEIVE_IDLE };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        while timer.as_mut().poll(cx).is_ready() {
            let came = std::mem::take(&mut self.since_timer);
            if is_waiting {
                let message = "the node has no memory left to receive the message (memory): send less at once, or try later";
                let refusal = Refusal::new(Code::ResourceExhausted, message);
                return Poll::Ready(Refusal { retry: Some(limits::RETRY_MEMORY), ..refusal }.into());
            }
            if came < limits::RECEIVE_LEAST {
                let message = format!(
                    "the client sent {came} bytes of a message in {}s: begun messages are to be finished",
                    limits::RECEIVE_IDLE.as_secs()
                );
                return Poll::Ready(Status::deadline_exceeded(message));
            }
            timer.as_mut().reset(Instant::now() + patience);
        }
        Poll::Pending
    }
}

impl http_body::Body for Receiving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.method.kind == Kind::ClientStream {
            if this.acquiring.is_some() {
                // It was for what was handed out before.
                this.charge = None;
            } else {
                this.settle();
            }
        }
        loop {
            if let Some(acquiring) = &mut this.acquiring {
                let Poll::Ready(charge) = acquiring.as_mut().poll(cx) else {
                    let status = ready!(this.poll_timer(cx));
                    return Poll::Ready(Some(Err(status)));
                };
                (this.acquiring, this.timer) = (None, None);
                this.paid(charge);
            }
            while this.read < this.bytes.len() {
                let (read, begins) = match this.scan.feed(&this.bytes[this.read..]) {
                    Ok(fed) => fed,
                    Err(refusal) => return Poll::Ready(Some(Err(refusal.into()))),
                };
                this.read += read;
                if let Some(len) = begins
                    && !this.pay(len)
                {
                    // What was before it is handed out first: the memory may be with that.
                    return Poll::Ready(Some(Ok(this.hand_out())));
                }
            }
            if this.read > 0 {
                return Poll::Ready(Some(Ok(this.hand_out())));
            }
            match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(bytes) => {
                        this.since_timer += bytes.len();
                        this.bytes = bytes;
                    }
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Poll::Ready(other) => {
                    this.timer = None;
                    return Poll::Ready(other);
                }
                Poll::Pending => {
                    let status = ready!(this.poll_timer(cx));
                    return Poll::Ready(Some(Err(status)));
                }
            }
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        if self.method.kind != Kind::ClientStream
            && let Some(charge) = self.charge.take()
        {
            self.call.hold_request(charge);
        }
    }
}
