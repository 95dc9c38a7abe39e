use std::time::Duration;

use super::*;

fn peer() -> SocketAddr {
    ([127, 0, 0, 1], 1).into()
}

fn admitted(connections: &Arc<Connections>) -> Admitted {
    match connections.admit(peer()) {
        ConnectionAdmission::Free(admitted) | ConnectionAdmission::InPlaceOfAnother(admitted) => admitted,
        ConnectionAdmission::Refused => panic!("refused"),
    }
}

#[test]
fn a_newcomer_takes_the_place_of_whoever_never_called_before_that_of_whoever_is_silent_for_longest() {
    let connections = Connections::new(3);
    let (quiet, busy, never) = (admitted(&connections), admitted(&connections), admitted(&connections));
    for admitted in [&quiet, &busy] {
        admitted.connection().has_called.store(true, Ordering::Relaxed);
    }
    never.connection().active_ms.store(1000, Ordering::Relaxed);
    busy.connection().active_ms.store(500, Ordering::Relaxed);

    let next = connections.admit(peer());
    assert!(matches!(next, ConnectionAdmission::InPlaceOfAnother(_)));
    assert!(never.connection().is_evicted() && !quiet.connection().is_evicted());
    let ConnectionAdmission::InPlaceOfAnother(next) = next else { return };
    next.connection().has_called.store(true, Ordering::Relaxed);
    next.connection().active_ms.store(2000, Ordering::Relaxed);

    let _last = admitted(&connections);
    assert!(quiet.connection().is_evicted() && !busy.connection().is_evicted());
    assert_eq!(connections.count(), 3, "whoever is closed counts no longer");
}

#[test]
fn nobody_with_a_call_under_way_is_closed_for_another() {
    let connections = Connections::new(2);
    let (first, second) = (admitted(&connections), admitted(&connections));
    for admitted in [&first, &second] {
        admitted.connection().calls.fetch_add(1, Ordering::AcqRel);
    }
    assert!(matches!(connections.admit(peer()), ConnectionAdmission::Refused));
    assert!(!connections.evict_one());
    drop(first);
    assert!(matches!(connections.admit(peer()), ConnectionAdmission::Free(_)));
    assert!(!second.connection().is_evicted());
}

#[tokio::test(start_paused = true)]
async fn whoever_sends_nothing_is_closed_in_time_and_whoever_speaks_is_not() {
    use tokio::io::AsyncReadExt as _;
    let connections = Connections::new(4);
    for (first_bytes, limit) in [(8, crate::limits::FIRST_BYTES), (1, crate::limits::SILENCE)] {
        let (mut client, server) = tokio::io::duplex(64);
        let mut tracked = Tracked::new(server, first_bytes, admitted(&connections));
        tokio::io::AsyncWriteExt::write_all(&mut client, b"half").await.unwrap();
        let started = tokio::time::Instant::now();
        let read = tokio::spawn(async move {
            let mut all = Vec::new();
            tracked.read_to_end(&mut all).await
        });
        let error = read.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        assert!(started.elapsed() + Duration::from_secs(1) >= limit, "{:?}", started.elapsed());
    }
    assert_eq!(connections.count(), 0);
}

#[tokio::test]
async fn whoever_is_evicted_is_closed_at_once() {
    use tokio::io::AsyncReadExt as _;
    let connections = Connections::new(1);
    let (_client, server) = tokio::io::duplex(64);
    let mut tracked = Tracked::new(server, 1, admitted(&connections));
    let read = tokio::spawn(async move { tracked.read(&mut [0]).await });
    let _next = admitted(&connections);
    let error = read.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
}

#[tokio::test(start_paused = true)]
async fn whoever_takes_nothing_is_closed_in_time_while_the_node_waits_to_write() {
    use tokio::io::AsyncWriteExt as _;
    let connections = Connections::new(4);
    let (_client, server) = tokio::io::duplex(64);
    let mut tracked = Tracked::new(server, 0, admitted(&connections));
    let started = tokio::time::Instant::now();
    let ended = tokio::time::timeout(2 * crate::limits::SILENCE, tracked.write_all(&[7; 100])).await;
    let error = ended.expect("it ends").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    assert!(started.elapsed() >= crate::limits::SILENCE);
    // Nor does saying goodbye wait for ever.
    let (_client, server) = tokio::io::duplex(64);
    let mut tls_like = Tracked::new(Never(server), 0, admitted(&connections));
    let ended = tokio::time::timeout(2 * crate::limits::SILENCE, tls_like.shutdown()).await;
    assert_eq!(ended.expect("it ends").unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

/// A connection whose other end never takes the goodbye.
struct Never(tokio::io::DuplexStream);

impl tokio::io::AsyncWrite for Never {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }
}

impl tokio::io::AsyncRead for Never {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Pending
    }
}
