//! Counts the calls that are under way on each connection: from the request to the end of its answer.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use super::Connection;

/// A layer that counts the calls of the connection that a request carries in its extensions.
#[derive(Debug, Clone, Copy, Default)]
pub struct CountCalls;

/// See [`CountCalls`].
#[derive(Debug, Clone)]
pub struct CountedService<S>(S);

/// A call under way, until it is dropped.
#[derive(Debug)]
pub(super) struct ActiveCall(Arc<Connection>);

impl ActiveCall {
    fn begin(connection: &Arc<Connection>) -> Self {
        connection.calls.fetch_add(1, Ordering::AcqRel);
        connection.has_called.store(true, Ordering::Relaxed);
        Self(Arc::clone(connection))
    }
}

impl Drop for ActiveCall {
    fn drop(&mut self) {
        self.0.calls.fetch_sub(1, Ordering::AcqRel);
    }
}

impl<S> Layer<S> for CountCalls {
    type Service = CountedService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CountedService(inner)
    }
}

impl<S, I, O> Service<Request<I>> for CountedService<S>
where
    S: Service<Request<I>, Response = Response<O>>,
{
    type Response = Response<CountedBody<O>>;
    type Error = S::Error;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<I>) -> Self::Future {
        let call = request.extensions().get::<Arc<Connection>>().map(ActiveCall::begin);
        Answering { answer: self.0.call(request), call }
    }
}

pin_project! {
    /// The answer of a call that is counted.
    #[derive(Debug)]
    pub struct Answering<F> {
        #[pin]
        answer: F,
        call: Option<ActiveCall>,
    }
}

impl<F, O, E> Future for Answering<F>
where
    F: Future<Output = Result<Response<O>, E>>,
{
    type Output = Result<Response<CountedBody<O>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answered = ready!(this.answer.poll(cx));
        let call = this.call.take();
        Poll::Ready(answered.map(|response| response.map(|body| CountedBody { body, call })))
    }
}

pin_project! {
    /// The body of an answer: its call is under way until it is dropped.
    #[derive(Debug)]
    pub struct CountedBody<B> {
        #[pin]
        body: B,
        call: Option<ActiveCall>,
    }
}

impl<B: Body> Body for CountedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
