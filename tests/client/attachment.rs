//! A writer puts back what the ledger lost.

use std::{net::SocketAddr, time::Duration};

use ledger_client::{AttachOptions, Client, ClientError, ContextId, Options, Sequence, Size};
use tempfile::TempDir;

use crate::{
    double::Cluster,
    support::{Ledger, append, context, copy, hasty, in_time, numbers, payloads, until},
};

/// A ledger at an address that stays, whose disk can be replaced.
struct Site {
    ledger: Option<Ledger>,
    address: SocketAddr,
    client: Client,
    context: ContextId,
}

impl Site {
    fn new(name: &str) -> Self {
        let ledger = Ledger::start();
        let address = ledger.address();
        let client = Client::connect(&ledger.url(), &hasty(Duration::from_secs(20))).unwrap();
        Self { ledger: Some(ledger), address, client, context: context(name) }
    }

    /// Stops the ledger and copies its disk; starts it again.
    fn copy(&mut self) -> TempDir {
        let dir = self.ledger.take().unwrap().stop();
        let older = copy(dir.path());
        self.ledger = Some(Ledger::start_at(dir, self.address));
        older
    }

    /// The ledger is gone, and comes back on another disk.
    fn put_back(&mut self, dir: TempDir) {
        self.ledger.take().unwrap().kill();
        self.ledger = Some(Ledger::start_at(dir, self.address));
    }

    fn is_away(&mut self) -> TempDir {
        self.ledger.take().unwrap().kill()
    }

    fn is_back(&mut self, dir: TempDir) {
        self.ledger = Some(Ledger::start_at(dir, self.address));
    }

    async fn payloads(&self) -> Vec<String> {
        payloads(&self.client, &self.context).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_older_disk_lacks_is_put_back_before_what_is_new() {
    let mut site = Site::new("older-disk");
    let mut writer = site.client.attach(&site.context, None, AttachOptions::default());
    let mut older = None;
    for number in 0..100 {
        if number == 60 {
            older = Some(site.copy());
        }
        let appended = writer.append(append(&site.context, number)).await.unwrap();
        assert_eq!(appended.entry.sequence.0, number + 1);
        assert_eq!(writer.position(), Some(&appended.position));
    }
    let before = *writer.position().unwrap();
    site.put_back(older.unwrap());
    assert_eq!(site.payloads().await, numbers(60));
    let appended = in_time("the append", writer.append(append(&site.context, 100))).await.unwrap();
    assert_eq!(appended.entry.sequence, Sequence(101));
    assert_eq!(site.payloads().await, numbers(101));
    assert_ne!(writer.position().unwrap().root, before.root);

    let again = writer.reattach().await.unwrap();
    assert_eq!((again.written, again.position.size), (0, Size(101)));
    assert_eq!(&again.position, writer.position().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_is_put_back_behind_what_others_wrote_since() {
    let mut site = Site::new("gone-its-own-way");
    let mut writer = site.client.attach(&site.context, None, AttachOptions::default());
    for number in 0..40 {
        writer.append(append(&site.context, number)).await.unwrap();
    }
    let older = site.copy();
    for number in 40..60 {
        writer.append(append(&site.context, number)).await.unwrap();
    }
    site.put_back(older);
    // As many as were lost: the sizes are equal, the histories are not.
    for _ in 40..60 {
        site.client.append(append(&site.context, "other")).await.unwrap();
    }
    let found = in_time("attaching", writer.reattach()).await.unwrap();
    assert_eq!((found.written, found.position.size), (20, Size(80)));
    let mut expected = numbers(40);
    expected.extend(std::iter::repeat_n("other".to_owned(), 20));
    expected.extend((40..60).map(|number| number.to_string()));
    assert_eq!(site.payloads().await, expected);
    writer.append(append(&site.context, "next")).await.unwrap();
    expected.push("next".to_owned());
    assert_eq!(site.payloads().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_disk_gets_back_all_that_the_writer_keeps() {
    let mut site = Site::new("empty-disk");
    let mut writer = site.client.attach(&site.context, None, AttachOptions::default());
    for number in 0..3000 {
        if number < 10 || number % 100 == 0 {
            writer.append(append(&site.context, number)).await.unwrap();
        }
    }
    let (kept, expected) = (writer.kept(), site.payloads().await);
    assert_eq!(kept, expected.len());
    let lineage = writer.position().unwrap().lineage;
    site.put_back(TempDir::new().unwrap());
    let found = in_time("attaching", writer.reattach()).await.unwrap();
    assert_eq!((found.written, found.position.size.0), (kept, kept as u64));
    assert_ne!(found.position.lineage, lineage);
    assert_eq!(site.payloads().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_no_more_is_an_error_that_names_the_first_of_it() {
    let mut site = Site::new("not-kept");
    let options = AttachOptions { max_entries: 10, ..AttachOptions::default() };
    let mut writer = site.client.attach(&site.context, None, options);
    let mut older = None;
    for number in 0..50 {
        if number == 25 {
            older = Some(site.copy());
        }
        writer.append(append(&site.context, number)).await.unwrap();
    }
    assert_eq!(writer.kept(), 10);
    site.put_back(older.unwrap());
    for _ in 0..2 {
        let error = writer.append(append(&site.context, 50)).await.unwrap_err();
        let ClientError::Missing { first, .. } = error else { panic!("{error}") };
        assert_eq!(first, Sequence(26));
    }
    assert_eq!(site.payloads().await, numbers(25), "nothing is written behind a gap");

    // The engine makes again what is missing, and writes what was kept after it.
    let kept = writer.reset();
    assert_eq!(kept.len(), 10);
    for number in 25..40 {
        writer.append(append(&site.context, number)).await.unwrap();
    }
    for append in kept {
        writer.append(append).await.unwrap();
    }
    assert_eq!(site.payloads().await, numbers(50));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_from_before_the_writer_began_is_checked_too() {
    let mut site = Site::new("presented");
    let mut writer = site.client.attach(&site.context, None, AttachOptions::default());
    for number in 0..10 {
        writer.append(append(&site.context, number)).await.unwrap();
    }
    let older = site.copy();
    for number in 10..20 {
        writer.append(append(&site.context, number)).await.unwrap();
    }
    let position = *writer.position().unwrap();
    let attach = || site.client.attach(&site.context, Some(position), AttachOptions::default());
    let (mut second, mut third) = (attach(), attach());
    let found = second.reattach().await.unwrap();
    assert_eq!((found.written, found.position), (0, position));
    site.put_back(older);
    let error = third.append(append(&site.context, 20)).await.unwrap_err();
    assert!(matches!(error, ClientError::Missing { first: Sequence(11), .. }), "{error}");
    assert_eq!(third.kept(), 0);
    // The one that keeps them can.
    in_time("attaching", writer.reattach()).await.unwrap();
    // What was put back was written at another time: to whom has only a position, it is another history.
    let error = third.append(append(&site.context, 20)).await.unwrap_err();
    assert!(matches!(error, ClientError::Missing { .. }), "{error}");
    third.reset();
    third.append(append(&site.context, 20)).await.unwrap();
    assert_eq!(site.payloads().await, numbers(21));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_acknowledged_is_written_first_and_once() {
    let mut site = Site::new("not-acknowledged");
    let hasty = Options { timeout: Duration::from_millis(400), ..Options::default() };
    let client = Client::connect(&format!("http://{}", site.address), &hasty).unwrap();
    let options = AttachOptions { max_entries: 8, ..AttachOptions::default() };
    let mut writer = client.attach(&site.context, None, options);
    for number in 0..3 {
        writer.append(append(&site.context, number)).await.unwrap();
    }
    let dir = site.is_away();
    for number in 3..8 {
        let error = writer.append(append(&site.context, number)).await.unwrap_err();
        assert!(matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_)), "{error}");
    }
    assert_eq!(writer.kept(), 8);
    for _ in 0..3 {
        // Those that are acknowledged make room; no other does.
        let _ = writer.append(append(&site.context, "x")).await.unwrap_err();
    }
    let error = writer.append(append(&site.context, "too many")).await.unwrap_err();
    assert!(matches!(error, ClientError::Exhausted(_)), "{error}");
    site.is_back(dir);
    let mut expected = numbers(8);
    expected.extend(std::iter::repeat_n("x".to_owned(), 3));
    in_time("attaching", async { while writer.reattach().await.is_err() {} }).await;
    assert_eq!(site.payloads().await, expected);
    writer.append(append(&site.context, "next")).await.unwrap();
    expected.push("next".to_owned());
    assert_eq!(site.payloads().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_given_up_and_nothing_before_or_after_it() {
    let mut site = Site::new("refused-among-others");
    let hasty = hasty(Duration::from_millis(200));
    let client = Client::connect(&format!("http://{}", site.address), &hasty).unwrap();
    let mut writer = client.attach(&site.context, None, AttachOptions::default());
    writer.append(append(&site.context, 0)).await.unwrap();
    let dir = site.is_away();
    for number in 1..11 {
        let mut append = append(&site.context, number);
        if number == 5 {
            append.entry_id = Some(ledger_client::EntryId::new("refused").unwrap());
            append.metadata.insert("too long".to_owned(), "x".repeat(1 << 20));
        }
        let error = writer.append(append).await.unwrap_err();
        assert!(matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_)), "{error}");
    }
    assert_eq!(writer.kept(), 11);
    site.is_back(dir);
    // The refusal comes before the receipts of those that are synced first.
    let (mut refusals, mut kept) = (Vec::new(), Vec::new());
    in_time("attaching", async {
        while let Err(error) = writer.reattach().await {
            if !matches!(error, ClientError::Unavailable(_) | ClientError::TimedOut(_)) {
                refusals.push(error.to_string());
                kept.push(writer.kept());
            }
        }
    })
    .await;
    assert!(matches!(&refusals[..], [one] if one.contains("entry_id refused,")), "{refusals:?}");
    assert_eq!(kept, [10]);
    writer.append(append(&site.context, 11)).await.unwrap();
    let mut expected = numbers(12);
    expected.remove(5);
    assert_eq!(site.payloads().await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_that_is_repeated_is_stored_and_kept_once() {
    let site = Site::new("repeated");
    let mut writer = site.client.attach(&site.context, None, AttachOptions::default());
    let mut first = append(&site.context, 0);
    first.entry_id = Some(ledger_client::EntryId::new("chosen").unwrap());
    let one = writer.append(first.clone()).await.unwrap();
    writer.append(append(&site.context, 1)).await.unwrap();
    let again = writer.append(first).await.unwrap();
    assert_eq!(one.entry, again.entry);
    assert_eq!(writer.kept(), 2);
    assert_eq!(writer.position().unwrap().size, Size(2));
    let error = writer.append(append(&context("elsewhere"), 0)).await.unwrap_err();
    assert!(matches!(error, ClientError::Invalid(_)), "{error}");
    let mut big = append(&site.context, 0);
    big.payload = vec![0; 5 << 20].into();
    let error = writer.append(big).await.unwrap_err();
    assert!(matches!(error, ClientError::Exhausted(_)), "{error}");
    assert_eq!(writer.kept(), 2, "what is refused for good is not kept");
    writer.append(append(&site.context, 2)).await.unwrap();
    assert_eq!(site.payloads().await, numbers(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_stays_attached_while_its_owner_moves_and_dies() {
    let ledger = Ledger::start();
    let mut cluster = Cluster::start(3, ledger.address()).await;
    cluster.table().manner.loses_answers = Some(7);
    let (client, context) = (cluster.client(), context("attached"));
    let mut writer = client.attach(&context, None, AttachOptions::default());
    for number in 0..100 {
        if number % 10 == 5 {
            cluster.give(&context, Some(number / 10 % 3));
        }
        if number % 40 == 20 {
            let owner = cluster.owner(&context).unwrap();
            cluster.kill(owner);
            cluster.give(&context, Some((owner + 1) % 3));
            cluster.revive(owner).await;
        }
        let appended = in_time("the append", writer.append(append(&context, number))).await.unwrap();
        assert_eq!(appended.entry.sequence.0, number as u64 + 1);
    }
    assert_eq!(payloads(&client, &context).await, numbers(100));
}

/// Two ledgers that hold the same entries of a context, so many.
async fn two_with(context: &ContextId, entries: usize) -> (Ledger, Ledger) {
    let ledger = Ledger::start();
    let client = Client::connect(&ledger.url(), &Options::default()).unwrap();
    for number in 0..entries {
        client.append(append(context, number)).await.unwrap();
    }
    let dir = ledger.stop();
    let other = copy(dir.path());
    let anywhere: SocketAddr = "127.0.0.1:0".parse().unwrap();
    (Ledger::start_at(dir, anywhere), Ledger::start_at(other, anywhere))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_owner_that_lacks_something_gets_it_from_the_writer() {
    let context = context("availability-first");
    let (first, second) = two_with(&context, 30).await;
    let mut cluster = Cluster::start(2, first.address()).await;
    cluster.set_backend(1, second.address());
    cluster.give(&context, Some(0));
    let client = cluster.client();
    let mut writer = client.attach(&context, None, AttachOptions::default());
    for number in 30..50 {
        writer.append(append(&context, number)).await.unwrap();
    }
    // The first dies with what it alone had.
    cluster.kill(0);
    cluster.give(&context, Some(1));
    let appended = in_time("the append", writer.append(append(&context, 50))).await.unwrap();
    assert_eq!(appended.entry.sequence, Sequence(51));
    assert_eq!(payloads(&client, &context).await, numbers(51));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_shown_yet_is_not_missing() {
    let context = context("not-shown-yet");
    let (ledger, older) = two_with(&context, 10).await;
    let cluster = Cluster::start(1, ledger.address()).await;
    let client = cluster.client();
    let options = AttachOptions { max_entries: 2, ..AttachOptions::default() };
    let mut writer = client.attach(&context, None, options);
    for number in 10..20 {
        writer.append(append(&context, number)).await.unwrap();
    }
    let position = *writer.position().unwrap();
    // It shows for a while what it showed before.
    cluster.set_backend(0, older.address());
    let before = cluster.table().counts[0].passed_on;
    let shown = async {
        let passed_on = || cluster.table().counts[0].passed_on;
        until("it is asked twice", async || (passed_on() >= before + 2).then_some(())).await;
        cluster.set_backend(0, ledger.address());
    };
    let (found, ()) = tokio::join!(in_time("attaching", writer.reattach()), shown);
    let found = found.unwrap();
    assert_eq!((found.written, found.position), (0, position));
}
