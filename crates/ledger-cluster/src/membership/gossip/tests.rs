use std::time::Duration;

use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(10);

async fn socket(cluster_id: &str, keys: &[[u8; 32]]) -> (SealedSocket, GossipControl, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let control = GossipControl::new(&Sealer::new(cluster_id, Keyring::of(keys)));
    (SealedSocket::new(socket, control.clone()).unwrap(), control, address)
}

fn message(len: usize) -> ChitchatMessage {
    // The digest's type has no name outside chitchat.
    #[allow(clippy::default_trait_access)]
    ChitchatMessage::Syn { cluster_id: "c".repeat(len), digest: Default::default() }
}

async fn next(socket: &mut SealedSocket) -> (SocketAddr, ChitchatMessage) {
    timeout(SOON, socket.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_message_arrives_whole_however_long() {
    let (mut a, _, from) = socket("c", &[[1; 32]]).await;
    let (mut b, counts, to) = socket("c", &[[1; 32]]).await;
    for len in [1, parts::PART, 20_000, 65_000] {
        a.send(to, message(len)).await.unwrap();
        assert_eq!(next(&mut b).await, (from, message(len)));
    }
    assert_eq!(counts.counts().dropped_malformed, 0);
}

#[tokio::test]
async fn what_does_not_open_is_dropped_and_counted_by_its_reason() {
    let (mut b, counts, to) = socket("c", &[[1; 32]]).await;
    let (mut plain, ..) = socket("c", &[]).await;
    let (mut foreign, ..) = socket("other", &[[1; 32]]).await;
    let (mut stranger, ..) = socket("c", &[[2; 32]]).await;
    let (mut friend, friends, from) = socket("c", &[[1; 32]]).await;
    let raw = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for socket in [&mut plain, &mut foreign, &mut stranger] {
        socket.send(to, message(5)).await.unwrap();
    }
    raw.send_to(b"junk", to).await.unwrap();
    raw.send_to(&[0xc1; MAX_DATAGRAM + 200], to).await.unwrap();
    let part = parts::split(1, b"not gossip").unwrap().remove(0);
    let sealed = friend.control.sealer.read().seal(&part).unwrap();
    raw.send_to(&sealed, to).await.unwrap();
    friend.send(to, message(5)).await.unwrap();
    assert_eq!(next(&mut b).await, (from, message(5)));
    let expected = GossipCounts {
        received: 7,
        dropped_unsealed: 1,
        dropped_foreign: 2,
        dropped_malformed: 3,
        ..GossipCounts::default()
    };
    assert_eq!(counts.counts(), expected);
    assert_eq!(friends.counts(), GossipCounts { sent: 1, ..GossipCounts::default() });
}

#[tokio::test]
async fn a_peer_that_cannot_be_reached_is_no_error() {
    let (mut a, counts, _) = socket("c", &[]).await;
    a.send("[::1]:9".parse().unwrap(), message(5)).await.unwrap();
    assert_eq!(counts.counts().send_failed, 1);
}

#[tokio::test]
async fn keys_change_between_two_datagrams() {
    let (mut a, rotate_a, from) = socket("c", &[[1; 32]]).await;
    let (mut b, rotate_b, to) = socket("c", &[[1; 32]]).await;
    rotate_b.set_keyring(Keyring::of(&[[1; 32], [2; 32]]));
    a.send(to, message(1)).await.unwrap();
    assert_eq!(next(&mut b).await, (from, message(1)));
    rotate_a.set_keyring(Keyring::of(&[[2; 32]]));
    a.send(to, message(2)).await.unwrap();
    assert_eq!(next(&mut b).await, (from, message(2)));
}
