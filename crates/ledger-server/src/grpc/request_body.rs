//! The bytes of a request as they arrive: measured, counted and paid for before they are decoded.
//!
//! A message is paid for by its header, for all of its length: who has begun one can finish it. It is given back when
//! the next one is asked for, or, of a call with one request, when the call was served.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::Frame;
use tokio::time::{Instant, Sleep};
use tonic::{Code, Status, body::Body};

use crate::{
    grpc::call::Call,
    grpc::methods::{Kind, Method},
    grpc::scan::MessageScanner,
    grpc::status::Refusal,
    limits,
    memory::{Charge, ClientShare},
};

/// A request's body.
pub struct RequestBody {
    body: Body,
    method: Method,
    call: Arc<Call>,
    scan: MessageScanner,
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
    pace: Pace,
}

/// How fast a load comes. What counts is the time that its client is waited for, not what the node takes.
#[derive(Debug, Default)]
struct Pace {
    came: usize,
    waited: Duration,
    /// Since when it is waited for.
    since: Option<Instant>,
}

impl Pace {
    fn came(&mut self, bytes: usize) {
        self.came += bytes;
        if let Some(since) = self.since.take() {
            self.waited += since.elapsed();
        }
    }

    /// The client is waited for. Until when that is in order; or how little came.
    fn waits(&mut self) -> Result<Instant, usize> {
        let now = Instant::now();
        let mut waited = self.waited + (now - *self.since.get_or_insert(now));
        if waited >= limits::LOAD_PACE {
            let before = std::mem::replace(self, Self { since: Some(now), ..Self::default() });
            if before.came < limits::LOAD_LEAST {
                return Err(before.came);
            }
            waited = Duration::ZERO;
        }
        Ok(now + limits::LOAD_PACE.saturating_sub(waited))
    }
}

impl RequestBody {
    /// Of a call of a method.
    pub fn new(method: Method, call: Arc<Call>) -> Self {
        Self {
            body: Body::default(),
            method,
            call,
            scan: MessageScanner::new(method),
            charge: None,
            bytes: Bytes::new(),
            read: 0,
            acquiring: None,
            timer: None,
            since_timer: 0,
            pace: Pace::default(),
        }
    }

    /// Reads this body.
    #[must_use]
    pub fn of(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// Pays for a message of so many bytes, or begins to wait for it; whether it is paid for.
    fn acquire(&mut self, len: usize) -> bool {
        if len == 0 {
            return true;
        }
        let (memory, client) = (Arc::clone(self.call.memory()), Arc::clone(self.call.client()));
        if let Some(charge) = memory.try_acquire(&client, ClientShare::Receiving, len) {
            self.is_acquired(charge);
            return true;
        }
        self.acquiring =
            Some(Box::pin(async move { memory.acquire(&client, ClientShare::Receiving, len).await }));
        self.timer = None;
        false
    }

    fn is_acquired(&mut self, charge: Charge) {
        match &mut self.charge {
            Some(held) => held.merge(charge),
            None => self.charge = Some(charge),
        }
    }

    /// Gives back what was paid for messages that were handed out.
    fn release_served(&mut self) {
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

    /// Fails when too little of a load comes.
    fn poll_pace(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        loop {
            match self.pace.waits() {
                Ok(until) => {
                    let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
                    timer.as_mut().reset(until);
                    ready!(timer.as_mut().poll(cx));
                }
                Err(came) => {
                    let (least, pace) = (limits::LOAD_LEAST, limits::LOAD_PACE.as_secs());
                    let message = format!(
                        "the node waited {pace}s for this load and got {came} bytes: a load brings {} KiB a second at least \
                         ({least} bytes in {pace}s), so that others get their turn; send it faster, from a file",
                        (least as u64 / pace) >> 10,
                    );
                    return Poll::Ready(Status::deadline_exceeded(message));
                }
            }
        }
    }

    /// Fails when what is arriving takes too long.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Status> {
        let is_waiting = self.acquiring.is_some();
        if !is_waiting && self.method.is_steady {
            return self.poll_pace(cx);
        }
        if !is_waiting && !self.scan.is_within() {
            self.timer = None;
            return Poll::Pending;
        }
        let timeout = if is_waiting { limits::RECEIVE_WAIT } else { limits::RECEIVE_IDLE };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
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
            timer.as_mut().reset(Instant::now() + timeout);
        }
        Poll::Pending
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.method.kind == Kind::ClientStream {
            if this.acquiring.is_some() {
                // It was for what was handed out before.
                this.charge = None;
            } else {
                this.release_served();
            }
        }
        loop {
            if let Some(acquiring) = &mut this.acquiring {
                let Poll::Ready(charge) = acquiring.as_mut().poll(cx) else {
                    let status = ready!(this.poll_timer(cx));
                    return Poll::Ready(Some(Err(status)));
                };
                (this.acquiring, this.timer) = (None, None);
                this.is_acquired(charge);
            }
            while this.read < this.bytes.len() {
                let (read, begins) = match this.scan.feed(&this.bytes[this.read..]) {
                    Ok(fed) => fed,
                    Err(refusal) => return Poll::Ready(Some(Err(refusal.into()))),
                };
                this.read += read;
                if let Some(len) = begins
                    && !this.acquire(len)
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
                        this.pace.came(bytes.len());
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

impl Drop for RequestBody {
    fn drop(&mut self) {
        if self.method.kind != Kind::ClientStream
            && let Some(charge) = self.charge.take()
        {
            self.call.hold_request(charge);
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{memory::Memory, settings::config::Config};

    /// What a client sends, when it sends it.
    struct Sent(mpsc::UnboundedReceiver<Bytes>);

    impl http_body::Body for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx).map(|sent| sent.map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    /// A load that comes, of which a first message of 8 MiB is begun.
    fn load() -> (mpsc::UnboundedSender<Bytes>, RequestBody) {
        let (config, never) = (Config::default(), Instant::now() + Duration::from_hours(24));
        let memory = Arc::new(Memory::new(&config, Vec::new()));
        let method = Method::of("/converge.ledger.v1.LedgerService/Load", &config, &memory).unwrap();
        let (client, permit) = (Arc::new(memory.client()), memory.calls.charge(0));
        let call = Call::new(never, false, memory, Arc::default(), client, permit);
        let (sender, sent) = mpsc::unbounded_channel();
        sender.send(Bytes::from_static(&[0, 0, 0x80, 0, 0])).unwrap();
        (sender, RequestBody::new(method, call).of(Body::new(Sent(sent))))
    }

    async fn next(receiving: &mut RequestBody) -> Result<usize, Status> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *receiving).poll_frame(cx)).await;
        frame.unwrap().map(|frame| frame.into_data().unwrap().len())
    }

    #[tokio::test(start_paused = true)]
    async fn a_load_that_comes_too_slowly_is_ended_and_one_that_the_node_takes_slowly_is_not() {
        // 20 KiB a second are enough, for as long as it takes.
        let (sender, mut receiving) = load();
        assert_eq!(next(&mut receiving).await.unwrap(), 5);
        for _ in 0..300 {
            let comes = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sender.send(Bytes::from(vec![0; 20 << 10])).unwrap();
            };
            let (came, ()) = tokio::join!(next(&mut receiving), comes);
            assert_eq!(came.unwrap(), 20 << 10);
        }

        // 10 KiB a second are not.
        let (sender, mut receiving) = load();
        assert_eq!(next(&mut receiving).await.unwrap(), 5);
        let (began, mut came) = (Instant::now(), 0);
        let status = loop {
            let comes = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                // Nobody may be there any more.
                let _ = sender.send(Bytes::from(vec![0; 10 << 10]));
            };
            match tokio::join!(next(&mut receiving), comes).0 {
                Ok(bytes) => came += bytes,
                Err(status) => break status,
            }
        };
        assert!(came > 500 << 10, "{came}");
        assert!((59..=62).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert!(status.message().contains("a load brings 16 KiB a second at least"), "{status:?}");

        // The node took two minutes for each part, of which there are few: its client was not waited for.
        let (sender, mut receiving) = load();
        for _ in 0..10 {
            sender.send(Bytes::from(vec![0; 1 << 10])).unwrap();
            next(&mut receiving).await.unwrap();
            tokio::time::sleep(Duration::from_mins(2)).await;
        }
    }
}
