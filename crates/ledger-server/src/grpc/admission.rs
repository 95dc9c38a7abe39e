//! What every call passes first: it gets its place, its deadline, and an account of the bytes that it makes the node
//! hold, from the first that arrives to the last that is sent.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};

use crate::{
    grpc::call::{CALL, Call, UnreadAnswers, reserve},
    grpc::connection::Connection,
    grpc::methods::{Kind, Method},
    grpc::request_body::RequestBody,
    grpc::status::Refusal,
    limits,
    memory::{ClientMemory, Memory},
    settings::config::Config,
};

/// The layer.
#[derive(Debug, Clone)]
pub struct Admission(Arc<Bounds>);

/// What bounds calls.
#[derive(Debug)]
struct Bounds {
    config: Config,
    memory: Arc<Memory>,
    unread: Arc<UnreadAnswers>,
}

/// A service behind it.
#[derive(Debug, Clone)]
pub struct Admitting<S> {
    inner: S,
    bounds: Arc<Bounds>,
}

impl Admission {
    /// Of a node with these settings and this memory.
    pub fn new(config: &Config, memory: &Arc<Memory>, unread: &Arc<UnreadAnswers>) -> Self {
        let (memory, unread) = (Arc::clone(memory), Arc::clone(unread));
        Self(Arc::new(Bounds { config: config.clone(), memory, unread }))
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitting<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Admitting { inner, bounds: Arc::clone(&self.0) }
    }
}

impl<S> Service<Request<Body>> for Admitting<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Bounds { config, memory, unread } = &*self.bounds;
        let Some(method) = Method::of(request.uri().path(), config, memory) else {
            return Box::pin(self.inner.call(request));
        };
        let Some(permit) = memory.calls.try_acquire(limits::CALL) else {
            return refuse(&too_many_calls());
        };
        let (deadline, last) = deadlines(request.headers(), method, config.call_timeout.0);
        let client = client(&request, memory);
        let is_unary = method.kind == Kind::Unary;
        let call = Call::new(deadline, is_unary, Arc::clone(memory), Arc::clone(unread), client, permit);
        let receiving = RequestBody::new(method, Arc::clone(&call));
        let served = self.inner.call(request.map(|body| Body::new(receiving.of(body))));
        Box::pin(CALL.scope(Arc::clone(&call), serve(call, method, last, served)))
    }
}

async fn serve<F>(
    call: Arc<Call>,
    method: Method,
    last: Instant,
    served: F,
) -> Result<Response<Body>, Infallible>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let served = async {
        let reserved = match method.answer {
            0 => None,
            bytes => {
                call.waits_for("memory for its answer (memory)");
                let reserved = reserve(Some(Arc::clone(&call)), bytes).await?;
                call.waits_for("its work");
                Some(reserved)
            }
        };
        let Ok(answer) = served.await;
        // How much it is shows when it is encoded.
        if let Some(reserved) = reserved {
            reserved.hand_over(method.answer);
        }
        Ok::<_, Refusal>(answer)
    };
    let answer = match timeout_at(last, served).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(refusal)) => Status::from(refusal).into_http(),
        Err(_) => Status::from(call.too_late()).into_http(),
    };
    call.release_request();
    Ok(answer.map(|body| {
        call.answer(body);
        Body::new(CountedAnswer(call))
    }))
}

/// An answer on its way.
struct CountedAnswer(Arc<Call>);

impl http_body::Body for CountedAnswer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_answer(cx)
    }

    /// An answer of headers only says so with them.
    fn is_end_stream(&self) -> bool {
        self.0.is_answered()
    }
}

impl Drop for CountedAnswer {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn refuse(refusal: &Refusal) -> Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>> {
    let answer = Status::from(refusal.clone()).into_http();
    Box::pin(std::future::ready(Ok(answer)))
}

/// The refusal of a call that there is no memory for.
pub(crate) fn too_many_calls() -> Refusal {
    let message = "the node has no memory left for another call (memory): end streams that are not needed, use fewer at once, \
                   or another node";
    Refusal { retry: Some(limits::RETRY_MEMORY), ..Refusal::new(Code::ResourceExhausted, message) }
}

/// What the connection of a call may take. What comes without one has a part of its own.
fn client(request: &Request<Body>, memory: &Memory) -> Arc<ClientMemory> {
    let connection = request.extensions().get::<Arc<Connection>>();
    connection.map_or_else(|| Arc::new(memory.client()), |connection| connection.client(memory))
}

/// Until when a call is to be answered, and when it is answered without knowing more: before its client gives up, so
/// that it learns why.
fn deadlines(headers: &HeaderMap, method: Method, default: Duration) -> (Instant, Instant) {
    let now = Instant::now();
    let asked = headers.get("grpc-timeout").and_then(|value| timeout(value.to_str().ok()?));
    let given = match asked {
        Some(asked) => asked.min(limits::LONGEST_CALL),
        None if method.is_long || method.kind != Kind::Unary => limits::LONGEST_CALL,
        None => default,
    };
    if asked.is_none() && method.kind == Kind::ClientStream {
        // It goes on as long as its client sends.
        let never = now + Duration::from_secs(u64::from(u32::MAX));
        return (never, never);
    }
    let margin = (given / 10).clamp(Duration::from_millis(2), Duration::from_millis(200));
    let deadline = now + given.saturating_sub(margin);
    (deadline, deadline + margin / 2)
}

/// The time that a client gives a call: digits and a unit (gRPC over HTTP/2, "Timeout").
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_clients_write_them() {
        for (text, expected) in [
            ("1H", Some(Duration::from_hours(1))),
            ("90S", Some(Duration::from_secs(90))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("100000000m", None),
            ("1d", None),
            ("1\u{e9}", None),
        ] {
            assert_eq!(timeout(text), expected, "{text}");
        }
    }
}
