//! A proxy in front of a node, which counts what goes through it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;

/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// A proxy; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    bytes: Arc<AtomicU64>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Leads to an address, from a port of its own.
    pub(crate) async fn start(to: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&bytes);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((from, _)) = listener.accept().await else { continue };
                connections.spawn(connect(from, to, Arc::clone(&counted)));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, bytes, _task: AbortOnDropHandle::new(task) })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes in both directions so far: all that TCP carries, headers of it apart.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// Carries a connection until either side ends it.
async fn connect(from: TcpStream, to: SocketAddr, bytes: Arc<AtomicU64>) {
    let Ok(to) = TcpStream::connect(to).await else { return };
    let (Ok(()), Ok(())) = (from.set_nodelay(true), to.set_nodelay(true)) else { return };
    let ((from_there, to_there), (from_here, to_here)) = (to.into_split(), from.into_split());
    tokio::select! {
        () = carry(from_here, to_there, &bytes) => {}
        () = carry(from_there, to_here, &bytes) => {}
    }
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, bytes: &AtomicU64) {
    let mut piece = vec![0; PIECE];
    while let Ok(len @ 1..) = from.read(&mut piece).await {
        bytes.fetch_add(len as u64, Ordering::Relaxed);
        if to.write_all(&piece[..len]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_goes_through_is_counted_both_ways() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let proxy = Proxy::start(server.local_addr().unwrap()).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        client.write_all(b"question").await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        let mut question = [0; 8];
        served.read_exact(&mut question).await.unwrap();
        served.write_all(b"answer").await.unwrap();
        let mut answer = [0; 6];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!((&question, &answer), (b"question", b"answer"));
        assert_eq!(proxy.bytes(), 14);
    }
}
