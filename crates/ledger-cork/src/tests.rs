use std::sync::Mutex;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Remembers each write, and takes at most so many bytes at once.
#[derive(Debug, Clone)]
struct Recorder {
    writes: Arc<Mutex<Vec<Vec<u8>>>>,
    at_once: usize,
}

impl Recorder {
    fn new(at_once: usize) -> Self {
        Self { writes: Arc::default(), at_once }
    }

    fn sizes(&self) -> Vec<usize> {
        self.writes.lock().unwrap().iter().map(Vec::len).collect()
    }

    fn bytes(&self) -> Vec<u8> {
        self.writes.lock().unwrap().concat()
    }
}

impl AsyncWrite for Recorder {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let taken = bytes.len().min(self.at_once);
        self.writes.lock().unwrap().push(bytes[..taken].to_vec());
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Recorder {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
}

/// Flushes until nothing is held, as a connection's task does whenever it is woken.
async fn settle(corked: &mut Corked<Recorder>) {
    while !corked.buffer.is_empty() {
        corked.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn flushes_of_one_turn_become_one_write() {
    let recorder = Recorder::new(usize::MAX);
    let mut corked = Corked::new(recorder.clone());
    for n in 0..10_u8 {
        corked.write_all(&[n; 100]).await.unwrap();
        corked.flush().await.unwrap();
    }
    assert_eq!(recorder.sizes(), [100], "only the first is written before the turn ends");
    settle(&mut corked).await;
    assert_eq!(recorder.sizes(), [100, 900]);
    // Now that they come in bursts, the first waits for the others too.
    for n in 0..10_u8 {
        corked.write_all(&[n; 100]).await.unwrap();
        corked.flush().await.unwrap();
    }
    settle(&mut corked).await;
    assert_eq!(recorder.sizes(), [100, 900, 1000]);
}

#[tokio::test]
async fn a_response_that_comes_alone_leaves_at_once() {
    let recorder = Recorder::new(usize::MAX);
    let mut corked = Corked::new(recorder.clone());
    for sent in 1..=5 {
        corked.write_all(b"alone").await.unwrap();
        corked.flush().await.unwrap();
        assert_eq!(recorder.sizes(), vec![5; sent]);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_large_goes_through_after_what_is_held() {
    let recorder = Recorder::new(usize::MAX);
    let mut corked = Corked::new(recorder.clone());
    corked.write_all(b"first").await.unwrap();
    corked.write_all(&[7; WRITE_THROUGH_BYTES]).await.unwrap();
    assert_eq!(recorder.sizes(), [5, WRITE_THROUGH_BYTES]);
}

#[tokio::test]
async fn no_more_than_the_limit_is_held_and_no_byte_is_lost_or_moved() {
    let recorder = Recorder::new(1000);
    let mut corked = Corked::new(recorder.clone());
    let mut sent = Vec::new();
    for n in 0..3000_u32 {
        let bytes = n.to_be_bytes().repeat(1 + n as usize % 300);
        corked.write_all(&bytes).await.unwrap();
        sent.extend_from_slice(&bytes);
        assert!(corked.buffer.len() <= MAX_BUFFERED_BYTES);
        if n % 7 == 0 {
            corked.flush().await.unwrap();
        }
        if n % 11 == 0 {
            tokio::task::yield_now().await;
        }
    }
    corked.shutdown().await.unwrap();
    assert_eq!(recorder.bytes(), sent);
}

#[tokio::test]
async fn a_request_reaches_a_peer_that_only_reads_on() {
    let (here, there) = tokio::io::duplex(1024);
    let (mut here, mut there) = (Corked::new(here), Corked::new(there));
    let answer = tokio::spawn(async move {
        let mut request = [0; 4];
        there.read_exact(&mut request).await.unwrap();
        there.write_all(&request).await.unwrap();
        there.flush().await.unwrap();
        // It never flushes again: it only waits for more.
        there.read(&mut request).await.unwrap()
    });
    here.write_all(b"ping").await.unwrap();
    here.flush().await.unwrap();
    let mut echo = [0; 4];
    here.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"ping");
    drop(here);
    assert_eq!(answer.await.unwrap(), 0);
}

#[tokio::test]
async fn what_one_task_flushed_leaves_when_another_only_reads_on() {
    let (here, mut there) = tokio::io::duplex(1024);
    let mut corked = Corked::new(here);
    // A handshake in a task of its own, which ends with flushes that wait for the end of the turn.
    let handshake = tokio::spawn(async move {
        for part in [b"one ", b"two "] {
            corked.write_all(part).await.unwrap();
            corked.flush().await.unwrap();
        }
        corked
    });
    let serving = tokio::spawn(async move {
        let mut corked = handshake.await.unwrap();
        assert!(corked.due, "the second flush waits for the end of the turn");
        corked.read(&mut [0]).await.unwrap()
    });
    let mut received = [0; 8];
    tokio::time::timeout(std::time::Duration::from_secs(30), there.read_exact(&mut received))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&received, b"one two ");
    drop(there);
    assert_eq!(serving.await.unwrap(), 0);
}
