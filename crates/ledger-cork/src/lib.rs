//! Gathers the small writes of many streams on one connection into few.
//!
//! HTTP/2 flushes a connection after every response, and a unary response is two writes. With dozens of
//! calls under way that is most of what a server does in the kernel. A [`Corked`] connection that is flushed
//! several times a turn holds what was flushed until the runtime has run everything that is ready, which is when
//! the other responses have been added, and then writes it at once. It waits for no time and for nobody, and
//! a response that comes alone leaves at once. This is what `TCP_CORK` is for, decided by the one who knows.
//!
//! A server's connection is also closed in stages, so that its client can read what it was told last ([`Corked::lingering`]).

mod linger;

use std::{
    future::Future,
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use bytes::{Buf as _, BytesMut};
use futures::task::AtomicWaker;
use linger::Linger;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// What is this large is written at once: copying it would cost more than it saves, bytes.
const WRITE_THROUGH_BYTES: usize = 8 << 10;
/// Most bytes held back.
const MAX_BUFFERED_BYTES: usize = 64 << 10;

/// A connection whose small writes are gathered.
#[derive(Debug)]
pub struct Corked<T> {
    inner: T,
    buffer: BytesMut,
    /// A flush was asked for, and waits for the tick.
    due: bool,
    /// Flushes in this turn.
    flushes: u32,
    /// There was more than one in the turn before this that had any: they come in bursts.
    in_burst: bool,
    tick: Arc<Tick>,
    closing: Closing,
}

/// How a connection is closed.
#[derive(Debug)]
enum Closing {
    AtOnce,
    InStages,
    /// Writing has ended.
    Lingering(Linger),
}

/// The moment at which the runtime has run what was ready.
#[derive(Debug, Default)]
struct Tick {
    has_come: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Tick {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.has_come.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<T> Corked<T> {
    /// Gathers the writes of a connection.
    pub fn new(inner: T) -> Self {
        let tick = Arc::new(Tick { has_come: AtomicBool::new(true), ..Tick::default() });
        let closing = Closing::AtOnce;
        Self { inner, buffer: BytesMut::new(), due: false, flushes: 0, in_burst: false, tick, closing }
    }

    /// Gathers the writes of a connection, and closes it in stages: after writing has ended, what still comes is read and
    /// dropped until the other side closes, for a second at most.
    pub fn lingering(inner: T) -> Self {
        Self { closing: Closing::InStages, ..Self::new(inner) }
    }
}

impl<T: AsyncWrite + Unpin> Corked<T> {
    /// Writes all that is held.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.buffer))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.buffer.advance(written);
        }
        self.due = false;
        Poll::Ready(Ok(()))
    }

    /// Writes what is held if its time has come; if it has not, the task that polls now is woken when it has.
    fn drain_if_due(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.due {
            return Poll::Ready(Ok(()));
        }
        // A connection moves between tasks (from its TLS handshake to what serves it), and only the last one that
        // polled it is still there to write. Registered before looking, so that a tick in between is not missed.
        self.tick.task.register(cx.waker());
        if self.tick.has_come.load(Ordering::Acquire) { self.drain(cx) } else { Poll::Ready(Ok(())) }
    }

    /// Asks to be woken when the runtime has run what is ready.
    fn await_tick(&self, cx: &Context<'_>) {
        self.tick.has_come.store(false, Ordering::Release);
        self.tick.task.register(cx.waker());
        let waker = Waker::from(Arc::clone(&self.tick));
        // The runtime keeps the waker, not the future.
        if pin!(tokio::task::yield_now()).poll(&mut Context::from_waker(&waker)).is_ready() {
            waker.wake();
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Corked<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // Whoever waits for an answer may not flush again: what was flushed must leave all the same. A write
        // that has to wait does not keep anybody from reading.
        if let Poll::Ready(Err(error)) = self.drain_if_due(cx) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Corked<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.len() >= WRITE_THROUGH_BYTES {
            ready!(self.drain(cx))?;
            return Pin::new(&mut self.inner).poll_write(cx, bytes);
        }
        if self.buffer.len() + bytes.len() > MAX_BUFFERED_BYTES {
            ready!(self.drain(cx))?;
        }
        self.buffer.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        if len >= WRITE_THROUGH_BYTES {
            ready!(self.drain(cx))?;
            return Pin::new(&mut self.inner).poll_write_vectored(cx, parts);
        }
        if self.buffer.len() + len > MAX_BUFFERED_BYTES {
            ready!(self.drain(cx))?;
        }
        for part in parts {
            self.buffer.extend_from_slice(part);
        }
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() {
            return Pin::new(&mut self.inner).poll_flush(cx);
        }
        ready!(self.drain_if_due(cx))?;
        if self.buffer.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if self.tick.has_come.load(Ordering::Acquire) {
            // The first of a turn. A turn without any says nothing of how they come.
            self.in_burst = self.flushes > 1;
            self.flushes = 0;
            self.await_tick(cx);
        }
        self.flushes = self.flushes.saturating_add(1);
        if self.flushes == 1 && !self.in_burst {
            return self.drain(cx);
        }
        self.due = true;
        // In this turn the tick may have been asked for by another task.
        self.drain_if_due(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { inner, closing, .. } = &mut *self;
        if let Closing::Lingering(linger) = closing {
            return linger.poll(inner, cx).map(Ok);
        }
        ready!(self.drain(cx))?;
        ready!(Pin::new(&mut self.inner).poll_shutdown(cx))?;
        if matches!(self.closing, Closing::AtOnce) {
            return Poll::Ready(Ok(()));
        }
        self.closing = Closing::Lingering(Linger::begin());
        self.poll_shutdown(cx)
    }
}

impl<T: Connected> Connected for Corked<T> {
    type ConnectInfo = T::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.inner.connect_info()
    }
}

#[cfg(test)]
mod tests;
