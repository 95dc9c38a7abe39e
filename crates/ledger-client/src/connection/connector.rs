//! The TCP connection to a node. It batches small writes, and tells [`Keepalive`] of reads, writes and its end.

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
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

use super::keepalive::{Activity, Keepalive};

/// How often the kernel probes a silent connection.
const TCP_KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Connects over TCP. TLS, where it is configured, comes on top of it.
#[derive(Debug, Clone)]
pub(crate) struct Connector {
    http: HttpConnector,
    keepalive: Keepalive,
}

impl Connector {
    pub(crate) fn new(timeout: Duration, keepalive: Keepalive) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(TCP_KEEP_ALIVE));
        http.set_connect_timeout(Some(timeout));
        Self { http, keepalive }
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
        let (connected, keepalive) = (self.http.call(uri), self.keepalive.clone());
        Box::pin(async move {
            let inner = Corked::new(connected.await?.into_inner());
            Ok(TokioIo::new(Connection { inner, activity: keepalive.connected(), keepalive }))
        })
    }
}

/// A connection that counts its own end: the channel above reconnects silently, and may then reach a node that has
/// restarted.
#[derive(Debug)]
pub(crate) struct Connection {
    inner: Corked<TcpStream>,
    activity: Arc<Activity>,
    keepalive: Keepalive,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.keepalive.connection_closed();
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.activity.is_dead(cx.waker()) {
            let error = "the node says nothing any more though it was asked";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, error)));
        }
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.activity.record_read();
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.activity.record_write(&wrote);
        wrote
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        self.activity.record_write(&wrote);
        wrote
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
