//! Accepts connections: never spins, never waits for one client before it takes the next, and says why it refuses one.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use ledger_store::limited;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::{Accepted, Admitted, ConnectionAdmission, Connections, Tracked};
use crate::{limits, metrics::Metrics};

/// Connections that wait to be served.
const WAITING: usize = 64;
/// First pause after the system could not accept; doubles up to [`MAX_PAUSE`].
const PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Bytes after which an HTTP/2 connection is in use: the preface, and the header of the settings that follow it (RFC
/// 9113, sections 3.4 and 4.1).
const HTTP2_FIRST_BYTES: usize = 24 + 9;
/// Bytes after which an HTTP/1 connection is in use.
const HTTP1_FIRST_BYTES: usize = 1;

/// The connections of gRPC clients, ready to be served, and what accepts them until they are no longer taken.
pub fn incoming(
    listener: Listener,
    tls: Option<TlsAcceptor>,
) -> (impl Future<Output = ()> + Send, ReceiverStream<io::Result<Tracked<Accepted>>>) {
    let (accepted, connections) = mpsc::channel(WAITING);
    (accept_all(listener, tls, accepted), ReceiverStream::new(connections))
}

async fn accept_all(
    mut listener: Listener,
    tls: Option<TlsAcceptor>,
    accepted: mpsc::Sender<io::Result<Tracked<Accepted>>>,
) {
    // Each of them is one of the connections, which are bounded.
    let mut handshakes = JoinSet::new();
    loop {
        let (stream, admitted) = tokio::select! {
            next = listener.next() => next,
            Some(_) = handshakes.join_next() => continue,
            () = accepted.closed() => return,
        };
        // Sending fails when nobody serves any more: the next turn ends this.
        match &tls {
            None => {
                let stream = Tracked::new(Accepted::Plain(stream), HTTP2_FIRST_BYTES, admitted);
                let _ = accepted.send(Ok(stream)).await;
            }
            Some(tls) => {
                let (tls, accepted, metrics) = (tls.clone(), accepted.clone(), Arc::clone(&listener.metrics));
                handshakes.spawn(async move {
                    match handshake(&tls, stream, &admitted).await {
                        Ok(stream) => {
                            let _ = accepted.send(Ok(Tracked::new(stream, HTTP2_FIRST_BYTES, admitted))).await;
                        }
                        Err(reason) => {
                            metrics.failed_handshakes.increment(1);
                            tracing::debug!(peer = %admitted.connection().peer(), reason, "no TLS connection");
                        }
                    }
                });
            }
        }
    }
}

async fn handshake(tls: &TlsAcceptor, stream: TcpStream, admitted: &Admitted) -> Result<Accepted, String> {
    tokio::select! {
        accepted = timeout(limits::HANDSHAKE, tls.accept(stream)) => match accepted {
            Ok(Ok(stream)) => Ok(Accepted::Tls(Box::new(stream))),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("the handshake took too long".to_owned()),
        },
        () = admitted.connection().evicted() => Err("closed to make room for another connection".to_owned()),
    }
}

/// A listener whose connections are counted and bounded.
pub struct Listener {
    inner: TcpListener,
    /// What its connections are called in the log and the metrics.
    name: &'static str,
    connections: Arc<Connections>,
    metrics: Arc<Metrics>,
    pause: Duration,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener")
            .field("inner", &self.inner)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Listener {
    /// Accepts on a bound listener.
    ///
    /// # Errors
    /// If the listener cannot be used by this runtime.
    pub fn new(
        listener: std::net::TcpListener,
        name: &'static str,
        connections: Arc<Connections>,
        metrics: Arc<Metrics>,
    ) -> io::Result<Self> {
        let inner = TcpListener::from_std(listener)?;
        Ok(Self { inner, name, connections, metrics, pause: PAUSE })
    }

    /// The next connection. Cancellation loses none.
    async fn next(&mut self) -> (TcpStream, Admitted) {
        loop {
            let (stream, peer) = match self.inner.accept().await {
                Ok(accepted) => accepted,
                Err(error) if concerns_one_connection(&error) => continue,
                Err(error) => {
                    // Out of file descriptors or memory: whoever does not use a connection gives it back.
                    let has_closed_one = self.connections.evict_one();
                    limited!(
                        warn,
                        listener = self.name,
                        %error,
                        open = self.connections.count(),
                        has_closed_one,
                        "a connection could not be accepted: trying again"
                    );
                    tokio::time::sleep(self.pause).await;
                    self.pause = (2 * self.pause).min(MAX_PAUSE);
                    continue;
                }
            };
            self.pause = PAUSE;
            match self.connections.admit(peer) {
                ConnectionAdmission::Free(admitted) => return (prepared(stream), admitted),
                ConnectionAdmission::InPlaceOfAnother(admitted) => {
                    self.metrics.connection_closed_for_another(self.name);
                    limited!(
                        warn,
                        listener = self.name,
                        most = self.connections.most(),
                        "there are as many connections as there may be: those without a call are closed for new ones"
                    );
                    return (prepared(stream), admitted);
                }
                ConnectionAdmission::Refused => {
                    self.metrics.connection_refused(self.name);
                    limited!(
                        warn,
                        listener = self.name,
                        most = self.connections.most(),
                        %peer,
                        "a connection was refused: all there may be have calls under way (max_connections)"
                    );
                }
            }
        }
    }
}

impl axum::serve::Listener for Listener {
    type Io = Tracked<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (stream, admitted) = self.next().await;
        let peer = admitted.connection().peer();
        (Tracked::new(stream, HTTP1_FIRST_BYTES, admitted), peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }
}

fn prepared(stream: TcpStream) -> TcpStream {
    // Without it small answers wait for acknowledgements; a connection that cannot have it still works.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    stream
}

/// The client was gone before it was accepted: nothing is wrong here.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted, TimedOut, WouldBlock,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | BrokenPipe
            | Interrupted
            | TimedOut
            | WouldBlock
    )
}
