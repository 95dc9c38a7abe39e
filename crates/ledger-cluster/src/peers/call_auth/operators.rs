//! Authenticates operators' calls: with a proof that the caller has the cluster's key, or without one. The proof is
//! that of calls between nodes ([`ledger_core::call_proof`]): valid for one call and its content, once. A call
//! without a proof passes, and the service decides whether to accept it.

use std::{convert::Infallible, pin::Pin, sync::Arc, task::Poll};

use http::{Request, Response};
use ledger_core::node::NodeId;
use tonic::{Status, body::Body, server::NamedService};
use tower::Service;

use super::{AuthError, PROOF, method, proven, replayed, session_expired};
use crate::shared::Shared;

/// The methods that only operators may call.
pub const OPERATORS: [&str; 3] = ["Drain", "Decommission", "Recover"];

/// In the extensions of a request: the caller proved that it has the cluster's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    /// The name that the caller gives itself.
    pub name: NodeId,
}

/// A service with some methods for operators only.
#[derive(Debug, Clone)]
pub struct OperatorAuthenticator<S> {
    inner: S,
    shared: Option<Arc<Shared>>,
}

impl<S> OperatorAuthenticator<S> {
    /// Wraps the service of a standalone node, which has no key.
    pub const fn without_key(inner: S) -> Self {
        Self { inner, shared: None }
    }

    pub(crate) const fn new(inner: S, shared: Arc<Shared>) -> Self {
        Self { inner, shared: Some(shared) }
    }
}

impl<S: NamedService> NamedService for OperatorAuthenticator<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for OperatorAuthenticator<S>
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

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // Call the instance that `poll_ready` reported as ready, and keep the clone.
        let next = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, next);
        let is_proven =
            OPERATORS.contains(&method(request.uri().path())) && request.headers().contains_key(PROOF);
        request.extensions_mut().remove::<Operator>();
        let Some(shared) = self.shared.clone().filter(|_| is_proven) else {
            return Box::pin(inner.call(request));
        };
        Box::pin(async move {
            match authenticate(&shared, request).await {
                Ok(request) => inner.call(request).await,
                Err(status) => {
                    shared.counters.calls_refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    Ok(status.into_http())
                }
            }
        })
    }
}

/// Adds to the request who proved it.
async fn authenticate(shared: &Shared, request: Request<Body>) -> Result<Request<Body>, Status> {
    if !shared.credentials.sealer.read().has_keys() {
        // Without a key anybody could have made the proof.
        return Err(Status::permission_denied(
            "this cluster has no key that could be proven: only operators may do this, on the machine that the node runs on, at a loopback \
             address",
        ));
    }
    let admitted = shared.credentials.authenticate(request.headers(), method(request.uri().path()));
    let proof = admitted.map_err(|why| match why {
        AuthError::Unauthenticated => unproven(),
        AuthError::SessionExpired => session_expired(),
        AuthError::Replayed => replayed(),
    })?;
    let expected = proof.body.ok_or_else(unproven)?;
    let mut request = proven(request, expected).await?.ok_or_else(unproven)?;
    request.extensions_mut().insert(Operator { name: proof.from.node });
    Ok(request)
}

fn unproven() -> Status {
    Status::permission_denied(
        "the proof of the cluster's key does not hold: it was made with another key than this node has, or for another call; give ledgerctl \
         the file that the node has as cluster_key_file",
    )
}
