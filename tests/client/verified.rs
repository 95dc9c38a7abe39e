//! What is called verified is: a node that lies is caught by every verified call, whatever it makes up.

use std::time::Duration;

use futures::StreamExt as _;
use ledger_client::{
    Append, Basis, Client, ClientError, ContextId, Entry, KnownCheckpoints, NotExtended, Selection, Sequence,
    Size, Trust, VerifierKey,
};
use ledger_core::checkpoint::Signer;

use crate::{
    liar::{Liar, Lie},
    support::{Ledger, append, context, copy, hasty, in_time, payload},
};

async fn fill(client: &Client, context: &ContextId, numbers: std::ops::Range<usize>) {
    for number in numbers {
        client.append(append(context, number)).await.unwrap();
    }
}

fn client(url: &str) -> Client {
    Client::connect(url, &hasty(Duration::from_secs(20))).unwrap()
}

async fn key(client: &Client, context: &ContextId) -> VerifierKey {
    client.checkpoint(context, None).await.unwrap().verifier_key.parse().unwrap()
}

fn first_use() -> Trust {
    Trust::on_first_use(KnownCheckpoints::in_memory())
}

fn is_not_verified<T>(result: &Result<T, ClientError>) -> bool {
    matches!(result, Err(ClientError::NotVerified(_)))
}

fn not_extended<T: std::fmt::Debug>(result: Result<T, ClientError>) -> NotExtended {
    match result {
        Err(ClientError::NotExtended(why)) => *why,
        other => panic!("{other:?}"),
    }
}

/// A private key of somebody's own.
fn somebody() -> Signer {
    let key = ed25519_dalek::SigningKey::from_bytes(&[9; 32]);
    Signer::new("converge/00000000000000000000000000000000", &key).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn verified_reading_gives_what_is_there_from_anywhere_by_any_key() {
    let ledger = Ledger::start();
    let (client, context) = (client(&ledger.url()), context("verified"));
    for number in 0..700 {
        let kind = if number % 7 == 0 { "sevens" } else { "facts" };
        client.append(Append::new(&context, kind, number.to_string()).unwrap()).await.unwrap();
    }
    let trust = Trust::in_keys([key(&client, &context).await]).unwrap();
    for after in [0, 1, 2, 3, 255, 256, 257, 511, 512, 699, 700, 900] {
        let selection = Selection::default().after(Sequence(after));
        let read = client.get_verified(&context, selection, &trust).collect().await.unwrap();
        assert_eq!(read.len() as u64, 700_u64.saturating_sub(after), "after {after}");
        assert!(read.iter().all(|entry| entry.checkpoint().basis() == Basis::Signed));
        assert!(read.iter().enumerate().all(|(index, entry)| entry.sequence.0 == after + index as u64 + 1));
    }
    let sevens = Selection::of_key("sevens").unwrap().after(Sequence(8)).at_most(3);
    let read = client.get_verified(&context, sevens, &trust).collect().await.unwrap();
    let read: Vec<_> = read.iter().map(|entry| payload(entry)).collect();
    assert_eq!(read, ["14", "21", "28"]);

    let never = ledger_client::ContextId::new("never").unwrap();
    assert!(client.get_verified(&never, Selection::default(), &trust).collect().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_verified_watch_shows_history_and_then_what_comes() {
    let ledger = Ledger::start();
    let (client, context) = (client(&ledger.url()), context("watched"));
    let trust = first_use();
    // From before the first entry, from within, and from beyond the newest one.
    let mut from_nothing = client.watch_verified(&context, Selection::default(), &trust).into_stream();
    let writer = client.clone();
    let named = context.clone();
    let writing = tokio::spawn(async move { fill(&writer, &named, 0..300).await });
    for number in 0..300 {
        let entry = in_time("an entry", from_nothing.next()).await.unwrap().unwrap();
        assert_eq!((entry.sequence.0, payload(&entry)), (number + 1, number.to_string()));
    }
    writing.await.unwrap();
    let mut within = client.watch_verified(&context, Selection::default().after(Sequence(150)), &trust);
    let mut beyond = client.watch_verified(&context, Selection::default().after(Sequence(301)), &trust);
    for number in 150..300 {
        let entry = in_time("an entry", within.next()).await.unwrap().unwrap();
        assert_eq!(payload(&entry), number.to_string());
    }
    fill(&client, &context, 300..303).await;
    assert_eq!(payload(&in_time("an entry", beyond.next()).await.unwrap().unwrap()), "301");
    for number in 300..303 {
        let entry = in_time("an entry", within.next()).await.unwrap().unwrap();
        assert_eq!(payload(&entry), number.to_string());
        assert_eq!(entry.checkpoint().basis(), Basis::Known);
    }
    assert!(within.checkpoint().unwrap().head().size >= Size(303));
    within.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_entries_are_caught_whatever_is_made_up() {
    let ledger = Ledger::start();
    let liar = Liar::start(ledger.address()).await;
    let (honest, client, context) = (client(&ledger.url()), client(&liar.url()), context("told"));
    fill(&honest, &context, 0..20).await;
    for trust in [first_use(), Trust::in_keys([key(&honest, &context).await]).unwrap()] {
        liar.lie(Lie::None);
        assert_eq!(
            client.get_verified(&context, Selection::default(), &trust).collect().await.unwrap().len(),
            20
        );
        let lies = [
            Lie::Payload(5),
            Lie::PayloadAndHash(5),
            Lie::PayloadAndHash(20),
            Lie::Swap(3, 4),
            Lie::LeftOut(1),
            Lie::LeftOut(7),
            Lie::LeftOut(20),
            Lie::CutAfter(12),
            Lie::CutAfter(0),
        ];
        for lie in lies {
            liar.lie(lie.clone());
            let all = client.get_verified(&context, Selection::default(), &trust).collect().await;
            assert!(is_not_verified(&all), "{lie:?}: {all:?}");
            // After what is made up, and with a key: still read from there on, and all of it.
            let some = Selection::of_key("facts").unwrap().after(Sequence(2));
            let some = client.get_verified(&context, some, &trust).collect().await;
            assert!(is_not_verified(&some) || matches!(lie, Lie::LeftOut(1)), "{lie:?}: {some:?}");
        }
        // A watch that waits for what is left out waits for ever: these are of what comes.
        for lie in [Lie::Payload(5), Lie::PayloadAndHash(5), Lie::Swap(3, 4), Lie::LeftOut(7)] {
            liar.lie(lie.clone());
            let mut watch = client.watch_verified(&context, Selection::default(), &trust);
            let seen = async {
                loop {
                    if let Err(error) = watch.next().await {
                        return error;
                    }
                }
            };
            let error = in_time("the lie is caught", seen).await;
            assert!(
                matches!(error, ClientError::NotVerified(_) | ClientError::NotExtended(_)),
                "{lie:?}: {error}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_made_up_while_a_watch_waits_is_caught() {
    let ledger = Ledger::start();
    let liar = Liar::start(ledger.address()).await;
    let (honest, client, context) = (client(&ledger.url()), client(&liar.url()), context("live"));
    fill(&honest, &context, 0..3).await;
    let trust = first_use();
    let mut watch = client.watch_verified(&context, Selection::default(), &trust);
    for _ in 0..3 {
        in_time("an entry", watch.next()).await.unwrap();
    }
    liar.lie(Lie::PayloadAndHash(4));
    fill(&honest, &context, 3..4).await;
    let why = not_extended(in_time("the lie is caught", watch.next()).await);
    assert_eq!((why.trusted.size, why.shown.size), (Size(3), Size(4)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_made_up_hash_under_a_made_up_root_proves_nothing() {
    let ledger = Ledger::start();
    let liar = Liar::start(ledger.address()).await;
    let (honest, client, context) = (client(&ledger.url()), client(&liar.url()), context("proof"));
    fill(&honest, &context, 0..9).await;
    let trust = first_use();
    let trusted = client.trusted_checkpoint(&context, &trust).await.unwrap();
    let entries = honest.get(&context, Selection::default()).collect().await.unwrap();
    let proven = client.prove_inclusion(&entries[4], &trusted).await.unwrap();
    assert_eq!(proven.entry().entry(), &entries[4]);
    // Every field counts, and not the hash that the entry says it has.
    let changed: [fn(&mut Entry); 5] = [
        |entry| entry.payload = "made up".into(),
        |entry| entry.sequence = Sequence(6),
        |entry| entry.appended_at_ns += 1,
        |entry| drop(entry.metadata.insert("agent".into(), "another".into())),
        |entry| entry.epoch.0 += 1,
    ];
    for (number, change) in changed.iter().enumerate() {
        let mut entry = entries[4].clone();
        change(&mut entry);
        let refused = client.prove_inclusion(&entry, &trusted).await;
        assert!(is_not_verified(&refused), "{number}: {refused:?}");
    }
    liar.lie(Lie::HashAndRoot);
    let refused = client.prove_inclusion(&entries[4], &trusted).await;
    assert!(is_not_verified(&refused), "{refused:?}");
    // A reading that begins in the middle takes a proof of what is before it.
    let after = Selection::default().after(Sequence(1));
    let refused = client.get_verified(&context, after, &trust).collect().await;
    assert!(is_not_verified(&refused), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_does_not_know_of_yet_is_asked_of_the_owner_before_it_is_absent() {
    let ledger = Ledger::start();
    let replica = Liar::start(ledger.address()).await;
    let (honest, client) = (client(&ledger.url()), client(&replica.url()));
    let (context, never) = (context("behind"), context("never"));
    fill(&honest, &context, 0..5).await;
    replica.lie(Lie::Behind);
    assert_eq!(client.checkpoint(&context, None).await.unwrap().position.size, Size(5));
    let trusted = client.trusted_checkpoint(&context, &first_use()).await.unwrap();
    assert_eq!(trusted.head().size, Size(5));
    let read = client.get_verified(&context, Selection::default(), &first_use()).collect().await.unwrap();
    assert_eq!(read.len(), 5);
    assert_eq!(client.checkpoint(&never, None).await.unwrap().position.size, Size(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_somebody_else_signed_or_of_another_context_is_refused() {
    let ledger = Ledger::start();
    let liar = Liar::start(ledger.address()).await;
    let (honest, client) = (client(&ledger.url()), client(&liar.url()));
    let (context, other) = (context("mine"), context("not/mine"));
    fill(&honest, &context, 0..5).await;
    fill(&honest, &other, 0..5).await;
    let pinned = Trust::in_keys([key(&honest, &context).await]).unwrap();
    liar.lie(Lie::Root(Box::new(somebody())));
    assert!(is_not_verified(&client.trusted_checkpoint(&context, &pinned).await));
    assert!(is_not_verified(&client.get_verified(&context, Selection::default(), &pinned).collect().await));
    assert!(is_not_verified(&client.watch_verified(&context, Selection::default(), &pinned).next().await));
    // Who trusts what is first seen has no more than that, and is told; the entries do not go with it.
    let trust = first_use();
    assert_eq!(client.trusted_checkpoint(&context, &trust).await.unwrap().basis(), Basis::FirstUse);
    assert!(is_not_verified(&client.get_verified(&context, Selection::default(), &trust).collect().await));
    // "not/mine" ends as "mine" does, and is signed by the right key.
    liar.lie(Lie::OtherContext(other.to_string()));
    for trust in [pinned.clone(), first_use()] {
        let refused = client.trusted_checkpoint(&context, &trust).await;
        assert!(is_not_verified(&refused), "{refused:?}");
    }
    // While a directory is replaced there are two keys.
    liar.lie(Lie::None);
    let both = Trust::in_keys([somebody().verifier_key().clone(), key(&honest, &context).await]).unwrap();
    assert_eq!(client.trusted_checkpoint(&context, &both).await.unwrap().basis(), Basis::Signed);
    assert!(Trust::in_keys([]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_was_cut_or_replaced_is_noticed_though_the_right_key_signs_it() {
    let context = context("kept");
    let ledger = Ledger::start();
    fill(&client(&ledger.url()), &context, 0..10).await;
    let dir = ledger.stop();
    let (shorter, forked) = (copy(dir.path()), copy(dir.path()));
    let local = || "127.0.0.1:0".parse().unwrap();
    let (ledger, shorter, forked) = (
        Ledger::start_at(dir, local()),
        Ledger::start_at(shorter, local()),
        Ledger::start_at(forked, local()),
    );
    fill(&client(&ledger.url()), &context, 10..15).await;
    fill(&client(&forked.url()), &context, 100..120).await;

    let liar = Liar::start(ledger.address()).await;
    let client = client(&liar.url());
    let key = key(&client, &context).await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a/known.json");
    let trusts = || {
        let kept = || KnownCheckpoints::in_file(&file);
        [Trust::on_first_use(kept()), Trust::in_keys([key.clone()]).unwrap().kept_in(kept())]
    };
    for trust in trusts() {
        let trusted = client.trusted_checkpoint(&context, &trust).await.unwrap();
        assert_eq!(trusted.head().size, Size(15));
    }
    for (backend, size) in [(&shorter, 10), (&forked, 30)] {
        liar.show(backend.address());
        // As if the program was started anew each time.
        for trust in trusts() {
            let why = not_extended(client.trusted_checkpoint(&context, &trust).await);
            assert_eq!((why.trusted.size, why.shown.size), (Size(15), Size(size)));
            assert!(why.evidence.contains("converge/kept"));
            let all = client.get_verified(&context, Selection::default(), &trust).collect().await;
            not_extended(all.map(|entries| entries.len()));
            let mut watch = client.watch_verified(&context, Selection::default(), &trust);
            not_extended(in_time("the first entry", watch.next()).await);
        }
    }
    liar.show(ledger.address());
    let [trust, _] = trusts();
    let read = client.get_verified(&context, Selection::default(), &trust).collect().await.unwrap();
    assert_eq!((read.len(), read[0].checkpoint().basis()), (15, Basis::Known));
    // An earlier state is proven to be the beginning of what is known, and is not taken for the newest.
    let five = client.trusted_checkpoint_at(&context, Size(5), &trust).await.unwrap();
    client.prove_consistency(&five, read[0].checkpoint()).await.unwrap();
    assert_eq!(client.trusted_checkpoint(&context, &trust).await.unwrap().head().size, Size(15));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_known_survives_in_a_file_that_several_use_and_damage_to_it_is_no_first_use() {
    let (ledger, context) = (Ledger::start(), context("shared"));
    let client = client(&ledger.url());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("known.json");
    let trust = || Trust::on_first_use(KnownCheckpoints::in_file(&file));
    fill(&client, &context, 0..1).await;
    let first = client.trusted_checkpoint(&context, &trust()).await.unwrap();
    assert_eq!(first.basis(), Basis::FirstUse);
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (client, context, trust) = (client.clone(), context.clone(), trust());
            tokio::spawn(async move {
                for _ in 0..20 {
                    let trusted = client.trusted_checkpoint(&context, &trust).await.unwrap();
                    assert_eq!(trusted.basis(), Basis::Known);
                }
            })
        })
        .collect();
    fill(&client, &context, 1..60).await;
    for reader in readers {
        in_time("a reader", reader).await.unwrap();
    }
    client.trusted_checkpoint(&context, &trust()).await.unwrap();
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("\"size\": \"60\""), "{text}");
    for (broken, part) in [
        (text[..text.len() / 2].to_owned(), "not a file of known checkpoints"),
        (text.replace("\"version\": 1", "\"version\": 9"), "version is 9"),
        (String::new(), "not a file of known checkpoints"),
        (text.replace("\"cluster\": \"converge\"", "\"cluster\": \"other\""), "\"other\""),
    ] {
        std::fs::write(&file, &broken).unwrap();
        let error = client.trusted_checkpoint(&context, &trust()).await.unwrap_err();
        assert!(error.to_string().contains(part), "{part}: {error}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), broken, "what cannot be read is left as it is");
    }
}
