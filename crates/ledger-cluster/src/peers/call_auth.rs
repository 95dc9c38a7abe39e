//! Authenticates calls between nodes: who may call this node's service, and what this node proves when it calls
//! others.
//!
//! A caller greets first ([`Greet`](ledger_proto::ledger::v1::GreetRequest)): each side sends a nonce, and the called
//! side proves that it has the cluster's key. Every call then carries a [`CallProof`]: a keyed hash over both nonces,
//! both members, the method, the number of the call in the session, and a hash of the request. Each is accepted once
//! ([`sessions`]). An eavesdropper can therefore reuse a proof neither on another connection, nor for another call,
//! nor a second time. The proofs do not encrypt anything, and do not stop an attacker who can write into an open
//! connection: that takes TLS.
//!
//! | part | holds |
//! | --- | --- |
//! | [`ledger_core::call_proof`] | the proof, as text and as bytes |
//! | [`sessions`] | which calls were accepted already |
//! | [`client`] | the caller's side: greets, and proves each call |
//! | [`operators`] | operators' calls, with the same proof |
//! | this module | the called side |

use std::{convert::Infallible, pin::Pin, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use ledger_core::{
    call_proof::{CallProof, Nonce, greeting},
    node::{Incarnation, Member, NodeId},
};
use ledger_proto::ledger::v1::{GreetRequest, GreetResponse};
use ledger_store::limited;
use parking_lot::RwLock;
use tokio::{sync::watch, time::timeout};
use tonic::{
    Status,
    body::Body,
    metadata::{AsciiMetadataValue, BinaryMetadataKey, MetadataMap, MetadataValue},
    server::NamedService,
};
use tower::Service;

use crate::{membership::Replaced, membership::seal::Sealer, peers::wire, shared::Shared};

pub(crate) mod client;
pub mod operators;
pub(crate) mod sessions;

use sessions::{SessionError, Sessions};

/// Carries the proof of a call.
const PROOF: HeaderName = HeaderName::from_static("converge-call-bin");
/// Carries the proof of a caller from a build without sessions.
const OLD_PROOF: HeaderName = HeaderName::from_static("converge-peer-bin");
/// Passes the caller's name from the authenticator to the service. A header of that name in a request is dropped.
const CALLER: &str = "converge-caller";
/// In a refusal: asks the caller to greet again.
const GREET_AGAIN: &str = "converge-greet";
/// In a refusal: reports a later start of the caller.
const REPLACED: &str = "converge-replaced-bin";
/// The first word of its sealed text: no other sealed text begins with it.
const REPLACED_PREFIX: &str = "later";
/// The method that needs no proof.
const GREET: &str = "Greet";
/// Methods whose requests are streams. The proof covers the stream as a whole, and not its messages.
const STREAMS: [&str; 1] = ["Replicate"];
/// Largest request that is no stream, in bytes.
const MAX_BODY: usize = 16 << 20;
/// Largest greeting, in bytes: two members and a nonce. Anybody may send one.
const MAX_GREETING: usize = 4 << 10;
/// How long a request that is no stream may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node proves about itself to others, and what it checks their proofs with.
#[derive(Debug)]
pub(crate) struct Credentials {
    pub(crate) me: Member,
    pub(crate) incarnation: Incarnation,
    pub(crate) sealer: RwLock<Sealer>,
    /// A later start of this node that another node reported.
    pub(crate) replaced: watch::Sender<Option<Replaced>>,
    sessions: Sessions,
}

impl Credentials {
    pub(crate) fn new(me: Member, incarnation: Incarnation, sealer: Sealer) -> Self {
        let (sealer, sessions) = (RwLock::new(sealer), Sessions::default());
        Self { me, incarnation, sealer, replaced: watch::Sender::default(), sessions }
    }

    /// Refuses a caller that has a later start, and reports that start to it, sealed to authenticate the report.
    /// Replaying it is harmless, because it remains true.
    fn replaced(&self, node: &NodeId, later: &crate::membership::ViewMember) -> Status {
        let mut status = Status::failed_precondition("another process runs under the caller's name by now");
        let text = format!("{REPLACED_PREFIX}/{node}/{}/{}", later.incarnation, later.grpc_address);
        if let Ok(sealed) = self.sealer.read().seal(text.as_bytes()) {
            let key = BinaryMetadataKey::from_static(REPLACED);
            status.metadata_mut().insert_bin(key, MetadataValue::from_bytes(&sealed));
        }
        status
    }

    /// Records a later start of this node that a refusal reports.
    fn note_replaced(&self, headers: &HeaderMap) {
        let Some(sealed) = headers.get(REPLACED).and_then(decoded) else { return };
        let Some(text) = self.sealer.read().open(&sealed).ok().and_then(|text| String::from_utf8(text).ok())
        else {
            return;
        };
        let mut words = text.splitn(4, '/');
        let is_mine = words.next() == Some(REPLACED_PREFIX) && words.next() == Some(self.me.node.as_str());
        let later = words.next().and_then(|number| number.parse().ok()).map(Incarnation);
        if let Some(incarnation) = later.filter(|later| is_mine && *later > self.incarnation) {
            let grpc_address = words.next().unwrap_or_default().to_owned();
            let replaced = Replaced {
                node: self.me.node.clone(),
                incarnation,
                this_start: self.incarnation,
                grpc_address,
            };
            limited!(error, "{replaced}");
            self.replaced.send_replace(Some(replaced));
        }
    }

    /// Responds to a greeting. Anybody may greet: the response only proves the identity of this node.
    pub(crate) fn greeted(&self, by: &GreetRequest) -> Result<GreetResponse, Status> {
        let malformed = |error: wire::RejectedMessage| Status::invalid_argument(error.to_string());
        let from = wire::member(by.from.as_ref()).map_err(malformed)?;
        let to = wire::member(by.to.as_ref()).map_err(malformed)?;
        let caller: Nonce =
            by.nonce.as_ref().try_into().map_err(|_| Status::invalid_argument("a nonce has 16 bytes"))?;
        if to != self.me {
            return Err(Status::failed_precondition("another node is meant"));
        }
        let called = self.sessions.nonce(fresh()?);
        let proof = self.sealer.read().prove(&greeting(&from, &to, &caller, &called));
        Ok(GreetResponse { nonce: called.to_vec().into(), proof: proof.as_bytes().to_vec().into() })
    }

    /// Checks the proof of a call. Returns who calls, and the hash of the request to come if it is no stream.
    fn authenticate(&self, headers: &HeaderMap, method: &str) -> Result<CallProof, AuthError> {
        let bytes = headers.get(PROOF).and_then(decoded).ok_or(AuthError::Unauthenticated)?;
        let (proof, hash) = CallProof::decode(&bytes).ok_or(AuthError::Unauthenticated)?;
        if proof.body.is_none() != STREAMS.contains(&method) {
            return Err(AuthError::Unauthenticated);
        }
        // Check the session first, before computing anything: most replayed calls are of an earlier session.
        if !self.sessions.is_current(&proof.called) {
            return Err(AuthError::SessionExpired);
        }
        if !self.sealer.read().is_proven(&proof.text(method, &self.me), hash) {
            return Err(AuthError::Unauthenticated);
        }
        match self.sessions.take(&proof.caller, &proof.called, proof.call_number) {
            Ok(()) => Ok(proof),
            Err(SessionError::Expired) => Err(AuthError::SessionExpired),
            Err(SessionError::Replayed) => Err(AuthError::Replayed),
        }
    }
}

/// Why a proof is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AuthError {
    /// There is none, or it was made with another key or for another call.
    Unauthenticated,
    /// Its session has expired.
    SessionExpired,
    /// It was accepted before.
    Replayed,
}

impl From<AuthError> for Status {
    fn from(why: AuthError) -> Self {
        match why {
            AuthError::Unauthenticated => unauthenticated(),
            AuthError::SessionExpired => session_expired(),
            AuthError::Replayed => replayed(),
        }
    }
}

fn replayed() -> Status {
    Status::permission_denied("this call was made before: a proof is good once")
}

/// Draws a new nonce.
fn fresh() -> Result<Nonce, Status> {
    let mut nonce = Nonce::default();
    getrandom::fill(&mut nonce)
        .map_err(|_| Status::internal("the operating system gave no random numbers"))?;
    Ok(nonce)
}

fn unauthenticated() -> Status {
    Status::permission_denied("this service is for the nodes of the cluster only")
}

fn session_expired() -> Status {
    let mut status = Status::unauthenticated("the session is over: greet again");
    status.metadata_mut().insert(GREET_AGAIN, AsciiMetadataValue::from_static("1"));
    status
}

/// Decodes a binary header (gRPC over HTTP/2: base64, with or without padding).
fn decoded(value: &HeaderValue) -> Option<Vec<u8>> {
    use base64::{
        Engine,
        alphabet::STANDARD,
        engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    };
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    GeneralPurpose::new(&STANDARD, config).decode(value.as_bytes()).ok()
}

/// Returns the last part of a path: the method.
fn method(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

/// Returns the caller that the authenticator determined.
pub(crate) fn caller(metadata: &MetadataMap) -> Result<NodeId, Status> {
    let name = metadata.get(CALLER).and_then(|name| name.to_str().ok()).ok_or_else(unauthenticated)?;
    NodeId::new(name).map_err(|_| unauthenticated())
}

/// The service for nodes, behind the authentication.
#[derive(Debug, Clone)]
pub struct CallAuthenticator<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> CallAuthenticator<S> {
    pub(crate) fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared }
    }
}

impl<S: NamedService> NamedService for CallAuthenticator<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for CallAuthenticator<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // Call the instance that `poll_ready` reported as ready, and keep the clone.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            match authenticate(&shared, request).await {
                Ok(request) => inner.call(request).await,
                Err(status) => Ok(status.into_http()),
            }
        })
    }
}

/// Authenticates a request and prepares it for the service.
async fn authenticate(shared: &Shared, mut request: Request<Body>) -> Result<Request<Body>, Status> {
    request.headers_mut().remove(CALLER);
    let method = method(request.uri().path()).to_owned();
    if method == GREET {
        return Ok(as_body(read_body(request, MAX_GREETING).await?));
    }
    let (caller, body) = match shared.credentials.authenticate(request.headers(), &method) {
        Ok(proof) => {
            let view = shared.view.borrow();
            let later = view.get(&proof.from.node).filter(|known| known.incarnation > proof.incarnation);
            if let Some(later) = later {
                return Err(shared.credentials.replaced(&proof.from.node, later));
            }
            (proof.from.node, proof.body)
        }
        Err(_) if !request.headers().contains_key(PROOF) => (old_caller(shared, request.headers())?, None),
        Err(why) => {
            let count = &shared.counters.calls_refused;
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return Err(why.into());
        }
    };
    if let Some(expected) = body {
        request = proven(request, expected).await?.ok_or_else(unauthenticated)?;
    }
    let name = HeaderValue::from_str(caller.as_str()).map_err(|_| unauthenticated())?;
    request.headers_mut().insert(CALLER, name);
    Ok(request)
}

/// Returns the request with its body read; `None` if the body is not what was proven.
async fn proven(request: Request<Body>, expected: [u8; 32]) -> Result<Option<Request<Body>>, Status> {
    let read = read_body(request, MAX_BODY).await?;
    let is_proven = blake3::hash(read.body()) == expected;
    Ok(is_proven.then(|| as_body(read)))
}

fn as_body(read: Request<Bytes>) -> Request<Body> {
    read.map(|bytes| Body::new(Full::new(bytes)))
}

/// Reads the body of a request, of at most `most` bytes.
async fn read_body(request: Request<Body>, most: usize) -> Result<Request<Bytes>, Status> {
    let (parts, body) = request.into_parts();
    let read = timeout(BODY_TIMEOUT, Limited::new(body, most).collect());
    let read = read.await.map_err(|_| Status::deadline_exceeded("the request did not arrive in time"))?;
    let read =
        read.map_err(|error| Status::invalid_argument(format!("the request cannot be read: {error}")))?;
    Ok(Request::from_parts(parts, read.to_bytes()))
}

/// Returns the caller of a call without a session, as older builds make it. Such calls are accepted only while gossip
/// shows that the caller runs such a build, so that overheard proofs become worthless once the node is updated.
fn old_caller(shared: &Shared, headers: &HeaderMap) -> Result<NodeId, Status> {
    let sealed = headers.get(OLD_PROOF).and_then(decoded).ok_or_else(unauthenticated)?;
    let text = shared.credentials.sealer.read().open(&sealed).map_err(|_| unauthenticated())?;
    let text = String::from_utf8(text).map_err(|_| unauthenticated())?;
    let (from, to) = text.split_once('/').ok_or_else(unauthenticated)?;
    let from = NodeId::new(from).map_err(|_| unauthenticated())?;
    let view = shared.view.borrow();
    let is_old = view.get(&from).is_some_and(|member| member.alive && !member.greets);
    if to == shared.me.node.as_str() && is_old { Ok(from) } else { Err(unauthenticated()) }
}
