//! The connection to another node: greets it, and proves each call.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use http::{HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full};
use ledger_core::{
    call_proof::{CallProof, Nonce, greeting},
    node::Member,
};
use ledger_proto::ledger::v1::{GreetRequest, replica_service_client::ReplicaServiceClient};
use parking_lot::Mutex;
use tokio::time::timeout;
use tonic::{Status, body::Body, transport::Channel};
use tower::Service;

use super::{Credentials, GREET_AGAIN, OLD_PROOF, PROOF, STREAMS, fresh, method};
use crate::peers::wire;

/// How long the response to a greeting may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection that proves every call. Cheap to clone.
#[derive(Debug, Clone)]
pub struct AuthenticatedChannel {
    channel: Channel,
    caller: Arc<Caller>,
}

#[derive(Debug)]
struct Caller {
    credentials: Arc<Credentials>,
    to: Member,
    /// Whether the other node supports greetings, according to gossip.
    greets: Arc<AtomicBool>,
    session: Mutex<Option<Arc<Session>>>,
    /// Locked during a greeting, so that concurrent calls share one.
    greeting: tokio::sync::Mutex<()>,
}

/// The nonces of both sides.
#[derive(Debug)]
struct Session {
    caller: Nonce,
    called: Nonce,
    /// Number of calls made.
    calls: AtomicU64,
}

impl AuthenticatedChannel {
    pub(crate) fn new(
        channel: Channel,
        credentials: Arc<Credentials>,
        to: Member,
        greets: Arc<AtomicBool>,
    ) -> Self {
        let (session, greeting) = (Mutex::default(), tokio::sync::Mutex::default());
        Self { channel, caller: Arc::new(Caller { credentials, to, greets, session, greeting }) }
    }
}

impl Service<Request<Body>> for AuthenticatedChannel {
    type Response = Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Call the instance that `poll_ready` reported as ready, and keep the clone.
        let next = self.channel.clone();
        let channel = std::mem::replace(&mut self.channel, next);
        let caller = Arc::clone(&self.caller);
        Box::pin(async move {
            if STREAMS.contains(&method(request.uri().path())) {
                caller.stream(channel, request).await
            } else {
                caller.unary(channel, request).await
            }
        })
    }
}

impl Caller {
    async fn stream(
        &self,
        mut channel: Channel,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, tonic::transport::Error> {
        if let Err(status) = self.prove(&channel, &mut request, None).await {
            return Ok(status.into_http());
        }
        let response = channel.call(request).await?;
        // The owner of the stream retries, so only note whether the session is over.
        self.is_over(&response);
        Ok(response)
    }

    async fn unary(
        &self,
        mut channel: Channel,
        request: Request<Body>,
    ) -> Result<Response<Body>, tonic::transport::Error> {
        let (parts, body) = request.into_parts();
        let body = match body.collect().await {
            Ok(body) => body.to_bytes(),
            Err(status) => return Ok(status.into_http()),
        };
        let hash = *blake3::hash(&body).as_bytes();
        let mut is_first = true;
        loop {
            let mut request = Request::from_parts(parts.clone(), Body::new(Full::new(body.clone())));
            if let Err(status) = self.prove(&channel, &mut request, Some(hash)).await {
                return Ok(status.into_http());
            }
            if !is_first {
                std::future::poll_fn(|context| channel.poll_ready(context)).await?;
            }
            let response = channel.call(request).await?;
            if !self.is_over(&response) || !std::mem::take(&mut is_first) {
                return Ok(response);
            }
        }
    }

    /// Adds the proof to a request.
    async fn prove(
        &self,
        channel: &Channel,
        request: &mut Request<Body>,
        body: Option<[u8; 32]>,
    ) -> Result<(), Status> {
        let Credentials { me, incarnation, sealer, .. } = &*self.credentials;
        if !self.greets.load(Ordering::Relaxed) {
            let text = format!("{}/{}", me.node, self.to.node);
            let sealed =
                sealer.read().seal(text.as_bytes()).map_err(|error| Status::internal(error.to_string()))?;
            return attach(request, OLD_PROOF, &sealed);
        }
        let session = self.session(channel).await?;
        let proof = CallProof {
            from: me.clone(),
            incarnation: *incarnation,
            caller: session.caller,
            called: session.called,
            call_number: session.calls.fetch_add(1, Ordering::Relaxed) + 1,
            body,
        };
        let hash = sealer.read().prove(&proof.text(method(request.uri().path()), &self.to));
        attach(request, PROOF, &proof.encode(hash))
    }

    /// Returns the current session, or begins a new one.
    async fn session(&self, channel: &Channel) -> Result<Arc<Session>, Status> {
        let known = || self.session.lock().clone();
        if let Some(known) = known() {
            return Ok(known);
        }
        let _turn = self.greeting.lock().await;
        if let Some(known) = known() {
            return Ok(known);
        }
        let begun = Arc::new(self.greet(channel).await?);
        *self.session.lock() = Some(Arc::clone(&begun));
        Ok(begun)
    }

    async fn greet(&self, channel: &Channel) -> Result<Session, Status> {
        let Credentials { me, sealer, .. } = &*self.credentials;
        let caller = fresh()?;
        let request = GreetRequest {
            from: Some(wire::to_member(me)),
            to: Some(wire::to_member(&self.to)),
            nonce: caller.to_vec().into(),
        };
        let mut client = ReplicaServiceClient::new(channel.clone());
        let answer = timeout(GREETING_TIMEOUT, client.greet(request)).await;
        let answer =
            answer.map_err(|_| Status::unavailable("a greeting was not answered in time"))??.into_inner();
        let stranger = || {
            Status::permission_denied(format!(
                "who answers at the address of {} has no key of this cluster",
                self.to
            ))
        };
        let called: Nonce = answer.nonce.as_ref().try_into().map_err(|_| stranger())?;
        let proof: [u8; 32] = answer.proof.as_ref().try_into().map_err(|_| stranger())?;
        let text = greeting(me, &self.to, &caller, &called);
        if !sealer.read().is_proven(&text, blake3::Hash::from_bytes(proof)) {
            return Err(stranger());
        }
        Ok(Session { caller, called, calls: AtomicU64::new(0) })
    }

    /// Returns whether the other node has forgotten the session, and drops it then.
    fn is_over(&self, response: &Response<Body>) -> bool {
        self.credentials.note_replaced(response.headers());
        let is_over = response.headers().contains_key(GREET_AGAIN);
        if is_over {
            *self.session.lock() = None;
        }
        is_over
    }
}

fn attach(request: &mut Request<Body>, name: HeaderName, bytes: &[u8]) -> Result<(), Status> {
    let value = HeaderValue::from_str(&STANDARD_NO_PAD.encode(bytes));
    let value = value.map_err(|error| Status::internal(error.to_string()))?;
    request.headers_mut().insert(name, value);
    Ok(())
}
