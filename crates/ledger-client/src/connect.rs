//! The connection to a node, whose small writes are gathered.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use ledger_cork::Corked;
use tokio::net::TcpStream;
use tonic::transport::Uri;
use tower::Service;

/// How often a silent connection is probed.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Connects over TCP. TLS, where it is configured, comes on top of it.
#[derive(Debug, Clone)]
pub(crate) struct Connector(HttpConnector);

impl Connector {
    pub(crate) fn new(timeout: Duration) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(TCP_KEEP_ALIVE));
        http.set_connect_timeout(Some(timeout));
        Self(http)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Corked<TcpStream>>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connected = self.0.call(uri);
        Box::pin(async move { Ok(TokioIo::new(Corked::new(connected.await?.into_inner()))) })
    }
}
