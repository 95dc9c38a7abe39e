//! The connection to a node, whose small writes are gathered, and whose end is noticed.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use ledger_cork::Corked;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tonic::transport::Uri;
use tower::Service;

/// How often a silent connection is probed.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How many connections to a node have ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ends(Arc<AtomicU64>);

impl Ends {
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

/// Connects over TCP. TLS, where it is configured, comes on top of it.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    http: HttpConnector,
    ends: Ends,
}

impl Connector {
    pub(crate) fn new(timeout: Duration, ends: Ends) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(TCP_KEEP_ALIVE));
        http.set_connect_timeout(Some(timeout));
        Self { http, ends }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Connection>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.http.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connected, ends) = (self.http.call(uri), self.ends.clone());
        Box::pin(async move {
            let inner = Corked::new(connected.await?.into_inner());
            Ok(TokioIo::new(Connection { inner, ends }))
        })
    }
}

/// A connection that is counted when it ends: the channel above makes another without a word, which may be to a
/// node that was started anew.
#[derive(Debug)]
pub(crate) struct Connection {
    inner: Corked<TcpStream>,
    ends: Ends,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.ends.0.fetch_add(1, Ordering::Release);
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
