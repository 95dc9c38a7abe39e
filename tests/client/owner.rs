//! Unary appends find the owner of their context, and follow it.

use std::time::{Duration, Instant};

use crate::{
    double::{Cluster, Manner},
    support::{Ledger, PATIENCE, append, context, hasty, in_time, numbers, payloads, until},
};
use ledger_client::{Client, ClientError, Options, Selection};
use rustix::process::Signal;
use tonic::Code;

#[tokio::test(flavor = "multi_thread")]
async fn appends_go_straight_to_the_owner() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(3, ledger.address()).await;
    let client = cluster.client();
    let contexts: Vec<_> = (0..30).map(|n| context(&format!("c-{n}"))).collect();
    for round in 0..10 {
        for context in &contexts {
            let appended = client.append(append(context, round)).await.unwrap();
            assert_eq!(appended.entry.sequence.0, round + 1);
            assert_eq!(appended.position.size.0, round + 1);
        }
    }
    let counts = cluster.table().counts.clone();
    assert!(counts.iter().all(|node| node.refused == 0 && node.taken > 0), "{counts:?}");
    assert_eq!(counts.iter().map(|node| node.taken).sum::<u64>(), 300);
    let located: u64 = counts.iter().map(|node| node.located).sum();
    assert!(located <= 30, "an owner that is known is not asked for again: {counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_follows_the_owner_wherever_it_moves() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(3, ledger.address()).await;
    let (client, context) = (cluster.client(), context("mover"));
    for number in 0..60 {
        cluster.give(&context, Some(number % 3));
        cluster.table().manner.code =
            if number % 2 == 0 { Code::Unavailable } else { Code::FailedPrecondition };
        // Every other time the refusal says where to.
        cluster.table().manner.names_owner = number % 4 < 2;
        client.append(append(&context, number)).await.unwrap();
    }
    assert_eq!(payloads(&client, &context).await, numbers(60));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_an_owner_is_not_an_error_with_default_settings() {
    let ledger = Ledger::start();
    let mut cluster = Cluster::start(3, ledger.address()).await;
    let (client, context) = (cluster.client(), context("killed"));
    client.append(append(&context, 0)).await.unwrap();
    let owner = cluster.owner(&context).unwrap();
    cluster.kill(owner);
    let begin = Instant::now();
    let appending = tokio::spawn({
        let (client, append) = (client.clone(), append(&context, 1));
        async move { client.append(append).await }
    });
    // The others know of no owner for a while.
    let refused = |cluster: &Cluster| cluster.table().counts.iter().map(|node| node.refused).sum::<u64>();
    cluster.give(&context, None);
    until("the others refuse", async || (refused(&cluster) > 3).then_some(())).await;
    tokio::time::sleep_until((begin + Duration::from_millis(1500)).into()).await;
    cluster.give(&context, Some((owner + 1) % 3));
    let taken_over = Instant::now();
    in_time("the append", appending).await.unwrap().unwrap();
    // It looks again and again, and not only when a time-out has passed.
    assert!(taken_over.elapsed() < Options::default().timeout / 2, "{:?}", taken_over.elapsed());
    // A moment's pauses, and not a flood.
    assert!(refused(&cluster) < 60, "{}", refused(&cluster));
    assert_eq!(payloads(&client, &context).await, numbers(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_whose_answer_was_lost_is_stored_once() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(3, ledger.address()).await;
    cluster.table().manner.loses_answers = Some(3);
    let (client, context) = (cluster.client(), context("lossy"));
    for number in 0..30 {
        let appended = client.append(append(&context, number)).await.unwrap();
        assert_eq!(appended.entry.sequence.0, number + 1, "the first result is the one that is given");
    }
    assert_eq!(payloads(&client, &context).await, numbers(30));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_know_of_no_owners_are_used_as_they_are() {
    let ledger = Ledger::start();
    let mut cluster = Cluster::start(2, ledger.address()).await;
    cluster.table().manner = Manner { lone: true, ..Manner::default() };
    let (client, context) = (cluster.client(), context("lone"));
    for number in 0..10 {
        client.append(append(&context, number)).await.unwrap();
    }
    assert_eq!(cluster.table().counts[0].taken, 10);
    cluster.kill(0);
    for number in 10..20 {
        client.append(append(&context, number)).await.unwrap();
    }
    assert_eq!(cluster.table().counts[1].taken, 10);
    assert_eq!(payloads(&client, &context).await, numbers(20));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_asked_for_nothing_but_what_is_wanted_and_its_word_is_taken() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(2, ledger.address()).await;
    let context = context("one-address");
    let client = Client::connect(&cluster.url(0), &Options::default()).unwrap();
    for number in 0..4 {
        cluster.give(&context, Some(number / 2));
        client.append(append(&context, number)).await.unwrap();
    }
    let counts = cluster.table().counts.clone();
    assert!(counts.iter().all(|node| node.located == 0 && node.taken == 2), "{counts:?}");
    assert_eq!(counts[0].refused, 1, "the owner is remembered");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_cannot_be_reached_from_here_is_reached_through_the_others() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(3, ledger.address()).await;
    // An address that only the nodes can reach; this one refuses connections.
    let unreachable = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    cluster.table().manner =
        Manner { locates: Some(unreachable.to_string()), forwards: true, ..Manner::default() };
    let (client, context) = (cluster.client(), context("inside"));
    let begin = Instant::now();
    for number in 0..50 {
        client.append(append(&context, number)).await.unwrap();
    }
    assert!(begin.elapsed() < Options::default().timeout / 2, "{:?}", begin.elapsed());
    assert_eq!(payloads(&client, &context).await, numbers(50));
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_point_at_each_other_are_not_asked_in_circles() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(2, ledger.address()).await;
    let context = context("circle");
    cluster.give(&context, None);
    let misleads = cluster.url(1).strip_prefix("http://").map(str::to_owned);
    cluster.table().manner = Manner { misleads, ..Manner::default() };
    let client = Client::connect(&cluster.urls(), &hasty(Duration::from_secs(2))).unwrap();
    let error = client.append(append(&context, 0)).await.unwrap_err();
    assert!(matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_)), "{error}");
    assert!(error.to_string().contains("entry_id"), "{error}");
    let refused: u64 = cluster.table().counts.iter().map(|node| node.refused).sum();
    assert!((4..100).contains(&refused), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_good_is_not_tried_again() {
    let ledger = Ledger::start();
    let cluster = Cluster::start(2, ledger.address()).await;
    let (client, context) = (cluster.client(), context("final"));
    let big = ledger_client::Append::new(&context, "facts", vec![0; 5 << 20]).unwrap();
    let error = client.append(big).await.unwrap_err();
    assert!(matches!(error, ClientError::Exhausted(_)), "{error}");
    let counts = cluster.table().counts.clone();
    assert_eq!(counts.iter().map(|node| node.taken + node.refused).sum::<u64>(), 1, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_node_an_append_fails_when_its_time_is_up() {
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let list = [format!("http://{nobody}"), format!("http://localhost:{}", nobody.port())];
    let timeout = Duration::from_millis(700);
    for list in [&list[..1], &list[..]] {
        let client = Client::connect_any(list, &hasty(timeout)).unwrap();
        let begin = Instant::now();
        let error = client.append(append(&context("nobody"), 0)).await.unwrap_err();
        assert!(matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_)), "{error}");
        assert!(begin.elapsed() < 20 * timeout);
        let error = in_time("opening", client.appender(8)).await.unwrap_err();
        assert!(matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_nothing_any_more_is_given_up_while_a_call_waits_for_it() {
    let ledger = Ledger::start();
    let options = Options {
        keep_alive: Duration::from_millis(200),
        keep_alive_timeout: Duration::from_millis(300),
        timeout: PATIENCE,
        tries: 1,
        ..Options::default()
    };
    let (client, context) = (Client::connect(&ledger.url(), &options).unwrap(), context("paused"));
    let patient = Client::connect(&ledger.url(), &Options { tries: 0, ..options }).unwrap();
    client.append(append(&context, 0)).await.unwrap();
    // Its kernel goes on to acknowledge what comes: only the process says nothing.
    ledger.node.signal(Signal::STOP);
    let error = client.append(append(&context, 1)).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Unavailable(why) if why.message.contains("says nothing")),
        "{error}"
    );
    assert!(error.entry_id().is_some(), "it may have been stored");
    let mut watch = patient.watch(&context, Selection::default());
    ledger.node.signal(Signal::CONT);
    in_time("the first entry", watch.next()).await.unwrap();
    let error = client.with_timeout(Duration::from_millis(1)).append(append(&context, 2)).await;
    // So soon it may be either; what it may not be is late.
    assert!(
        matches!(error, Ok(_) | Err(ClientError::TimedOut(_) | ClientError::Unavailable(_))),
        "{error:?}"
    );
}
