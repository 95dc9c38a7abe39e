//! Closing a connection so that its client can read what it was told last.
//!
//! A socket that is closed while there is something unread in it resets the connection, and whatever the client
//! sends afterwards does too; a client that meets the reset may not read any more what came before it: the results
//! and the status of a stream of appends, say. So a connection is closed in stages ([RFC 9112, section
//! 9.6](https://www.rfc-editor.org/rfc/rfc9112#section-9.6)): writing ends first, then what still comes is read and
//! dropped until the client closes its side, for a moment at most.

use std::{
    future::Future,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    time::Sleep,
};

/// How long a client may take to close its side.
const PATIENCE: Duration = Duration::from_secs(1);
/// Read and dropped at once, bytes.
const PART: usize = 4 << 10;

/// The last stage of closing a connection: until when to read.
#[derive(Debug)]
pub(crate) struct Linger(Pin<Box<Sleep>>);

impl Linger {
    /// Begins when writing has ended.
    pub(crate) fn begin() -> Self {
        Self(Box::pin(tokio::time::sleep(PATIENCE)))
    }

    /// Reads and drops what comes, until the other side closes or the time is up.
    pub(crate) fn poll<T: AsyncRead + Unpin>(&mut self, inner: &mut T, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let mut part = [MaybeUninit::uninit(); PART];
            let mut part = ReadBuf::uninit(&mut part);
            let read = ready!(Pin::new(&mut *inner).poll_read(cx, &mut part));
            // It closed its side, or is gone.
            if read.is_err() || part.filled().is_empty() {
                return Poll::Ready(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::PATIENCE;
    use crate::Corked;

    /// A client's connection, and the server's side of it.
    async fn connected() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (client.unwrap(), server.unwrap().0)
    }

    #[tokio::test]
    async fn a_client_that_goes_on_sending_reads_the_last_word_and_meets_no_reset() {
        let (mut client, server) = connected().await;
        client.write_all(&[0; 4096]).await.unwrap();
        let closing = tokio::spawn(async move {
            let mut server = Corked::lingering(server);
            server.write_all(b"bye").await.unwrap();
            server.shutdown().await.unwrap();
        });
        let mut said = Vec::new();
        client.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, b"bye");
        for _ in 0..100 {
            client.write_all(&[0; 4096]).await.unwrap();
            tokio::task::yield_now().await;
        }
        drop(client);
        closing.await.unwrap();
    }

    #[tokio::test]
    async fn a_client_that_does_not_close_is_not_waited_for_whatever_it_sends() {
        let (_silent, server) = connected().await;
        let (mut client, other) = connected().await;
        let sending = tokio::spawn(async move { while client.write_all(&[0; 4096]).await.is_ok() {} });
        for server in [server, other] {
            let shutdown = async { Corked::lingering(server).shutdown().await };
            tokio::time::timeout(30 * PATIENCE, shutdown).await.unwrap().unwrap();
        }
        sending.await.unwrap();
    }
}
