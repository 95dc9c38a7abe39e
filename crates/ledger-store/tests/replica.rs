//! A replica shows what its owner said is stable, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use ledger_core::{
    Epoch,
    digest::{Digest, TreeHead},
    healing::{HealProof, LocalHead},
    node::{Member, NodeId, ReplicaSet},
    ownership::{Claim, slot_manager::SyncOfferOutcome},
    replication::{Peer, replica::Offer},
    slot::Slot,
};
use ledger_store::{
    Append, ContextId, Ledger, Options, Sequence, Size, StoreError,
    replicate::replica::{
        CommitIndex, Outbox, Outgoing, OwnerCommand, Part, RecordChange, RecordChangeOutcome, ReplicaStatus,
        StagingRequest, SyncOffer,
    },
};
use support::{append_many, context, draft, flipped, small, tamper};
use tokio::task::block_in_place;

/// Keeps what lanes send.
#[derive(Debug, Default)]
struct Sent(Mutex<Vec<Outgoing>>);

impl Outbox for Sent {
    fn send(&self, _: Peer, what: Outgoing) {
        self.0.lock().unwrap().push(what);
    }

    fn request_staging(&self, _: Peer, _: StagingRequest) {}

    fn restart(&self, _: Peer) {}

    fn stopped(&self, _: Slot, _: Claim) {}

    fn ownership_lost(&self, _: Vec<Slot>) {}
}

impl Sent {
    fn offer(&self) -> SyncOffer {
        let sent = self.0.lock().unwrap();
        let mut offers = sent.iter().filter_map(|sent| match sent {
            Outgoing::SyncOffer(offer) => Some(offer.clone()),
            _ => None,
        });
        offers.next().expect("an offer was sent")
    }

    /// The newest commit.
    fn commit(&self) -> (Vec<Part>, u64) {
        let sent = self.0.lock().unwrap();
        let mut commits = sent.iter().rev().filter_map(|sent| match sent {
            Outgoing::Commit(commit) => Some((commit.parts.clone(), commit.number)),
            _ => None,
        });
        commits.next().expect("a commit was sent")
    }
}

fn options() -> Options {
    Options { clustered: true, lanes: 1, ..small() }
}

/// An owner, whose appends need no other copy, and a replica of it.
struct Two {
    dirs: [tempfile::TempDir; 2],
    owner: Ledger,
    replica: Ledger,
    sent: Arc<Sent>,
    set: ReplicaSet,
    claim: Claim,
    context: ContextId,
    slot: Slot,
}

/// Accepts a claim with confirmed members, offered or not.
fn accepting(claim: &Claim, set: &ReplicaSet, offer: Option<(Digest, u64)>) -> RecordChange {
    RecordChange::Accept {
        claim: claim.clone(),
        members: set.clone(),
        is_confirmed: true,
        previous: None,
        offer: offer.map(|(digest, number)| Offer { digest, number }),
    }
}

fn claim(epoch: u32, claimant: &str) -> Claim {
    Claim { epoch: Epoch::new(epoch, 0), claimant: NodeId::new(claimant).unwrap(), storage: None }
}

impl Two {
    async fn start() -> Self {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [owner, replica] = [&dirs[0], &dirs[1]].map(|dir| Ledger::open_with(dir, options()).unwrap());
        let member = |name: &str, ledger: &Ledger| Member {
            node: NodeId::new(name).unwrap(),
            storage: ledger.storage(),
        };
        let set = ReplicaSet::new(vec![member("owner", &owner), member("replica", &replica)]).unwrap();
        let context = context("c");
        let (slot, claim) = (Slot::of(&context), claim(5, "owner"));
        let sent = Arc::new(Sent::default());
        owner.set_outbox(Arc::clone(&sent) as Arc<dyn Outbox>);
        let peer = Peer::new(0).unwrap();
        let offer = OwnerCommand::OfferSync {
            peer,
            claim: claim.clone(),
            members: set.clone(),
            is_confirmed: true,
            previous: None,
        };
        let own = OwnerCommand::BeginServing { claim: claim.clone(), write_quorum: 1 };

        owner.change_slots(vec![(slot, accepting(&claim, &set, None))]).await.unwrap();
        owner.apply_owner_commands(vec![(slot, offer), (slot, own)]).await.unwrap();
        let two = Self { dirs, owner, replica, sent, set, claim, context, slot };
        // It answers when the offer was made, too.
        two.append("first").await;
        let offer = two.sent.offer();
        assert!(matches!(
            two.accept(&two.claim, offer.digest, offer.number).await,
            RecordChangeOutcome::Done
        ));
        two.stable(offer.number).await;
        two
    }

    async fn append(&self, payload: &str) {
        self.try_append(payload).await.unwrap();
    }

    async fn try_append(&self, payload: &str) -> Result<(), ledger_store::StoreError> {
        let append = Append::new(self.context.clone(), draft("facts", payload.to_owned()));
        self.owner.append_async(append).await.map(|_| ())
    }

    async fn accept(&self, claim: &Claim, digest: Digest, number: u64) -> RecordChangeOutcome {
        let accept = accepting(claim, &self.set, Some((digest, number)));
        self.replica.change_slots(vec![(self.slot, accept)]).await.unwrap().remove(0).1.outcome.unwrap()
    }

    /// Brings the owner's newest commit to the replica; gives its number.
    async fn replicate(&self) -> u64 {
        let (parts, number) = self.sent.commit();
        self.replica.replicate(parts, number).await.unwrap().durable().await.unwrap();
        number
    }

    async fn stable(&self, number: u64) {
        let up_to = CommitIndex { slot: self.slot, epoch: self.claim.epoch, number };
        self.replica.advance_commit_index(vec![up_to]).await.unwrap();
        // The lane has done it when it answers.
        self.replica.digests(vec![self.slot]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_of_a_replica_sees_what_is_stable_and_no_more() {
    let two = Two::start().await;
    let first = two.replicate().await;
    let mut watch = two.replica.watch(&two.context, None, Sequence(0));
    assert!(watch.changed().now_or_never().is_none(), "nothing is stable yet");
    two.stable(first).await;
    watch.changed().await.unwrap();
    assert_eq!(watch.read(10, usize::MAX).unwrap().entries.len(), 1);

    two.append("second").await;
    let second = two.replicate().await;
    assert!(watch.changed().now_or_never().is_none(), "the second is not stable yet");
    two.stable(second).await;
    watch.changed().await.unwrap();
    assert_eq!(watch.read(10, usize::MAX).unwrap().entries.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_fetched_late_does_not_hide_a_slot_that_is_in_step() {
    let two = Two::start().await;
    let first = two.replicate().await;
    two.stable(first).await;
    assert!(two.replica.is_visible(two.slot));
    // A comparison that began before the slot was in step fetches what is here by now, and the next entry.
    let (parts, _) = two.sent.commit();
    two.replica.replicate(parts, 0).await.unwrap().durable().await.unwrap();
    two.append("second").await;
    let (parts, _) = two.sent.commit();
    two.replica.replicate(parts, 0).await.unwrap().durable().await.unwrap();
    assert!(two.replica.is_visible(two.slot));
    // The stream brings it.
    let second = two.replicate().await;
    two.stable(second).await;
    let mut watch = two.replica.watch(&two.context, None, Sequence(0));
    assert_eq!(watch.read(10, usize::MAX).unwrap().entries.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_claimant_fetched_is_shown_once_the_next_owner_says_that_it_is_stable() {
    let two = Two::start().await;
    let digest_of = |of: &Ledger| {
        let (of, slot) = (of.clone(), two.slot);
        async move { of.digests(vec![slot]).await.unwrap()[&slot] }
    };
    let first = two.replicate().await;
    two.stable(first).await;
    // It lost step, and is in sync again without hearing yet what is stable.
    assert!(matches!(
        two.accept(&claim(6, "owner"), Digest::default(), 1).await,
        RecordChangeOutcome::Diverged { was_in_sync: false }
    ));
    let outcome = two.accept(&claim(6, "owner"), digest_of(&two.owner).await, 1).await;
    assert!(matches!(outcome, RecordChangeOutcome::Done), "{outcome:?}");
    assert!(!two.replica.is_visible(two.slot));
    // It claims the slot itself, and fetches what it lacks …
    two.append("second").await;
    let (mut parts, _) = two.sent.commit();
    let own = claim(7, "replica");
    two.replica.change_slots(vec![(two.slot, RecordChange::Promise(own.clone()))]).await.unwrap();
    parts[0].claim = own;
    two.replica.replicate(parts, 0).await.unwrap().durable().await.unwrap();
    // … but another owns it.
    let next = claim(8, "owner");
    let outcome = two.accept(&next, digest_of(&two.owner).await, 5).await;
    assert!(matches!(outcome, RecordChangeOutcome::Done), "{outcome:?}");
    assert!(!two.replica.is_visible(two.slot), "nothing of it is known to be stable");
    two.replica
        .advance_commit_index(vec![CommitIndex { slot: two.slot, epoch: next.epoch, number: 5 }])
        .await
        .unwrap();
    // The lane has done it when it answers.
    digest_of(&two.replica).await;
    let mut watch = two.replica.watch(&two.context, None, Sequence(0));
    assert_eq!(watch.read(10, usize::MAX).unwrap().entries.len(), 2, "without another append");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_is_not_shown_what_is_left_for_the_next_owners_history() {
    let two = Two::start().await;
    let first = two.replicate().await;
    let mut watch = two.replica.watch(&two.context, None, Sequence(0));
    two.stable(first).await;
    watch.changed().await.unwrap();
    assert_eq!(watch.read(10, usize::MAX).unwrap().entries.len(), 1);

    // What follows never becomes stable: another node owns the slot, and has another history.
    two.append("second").await;
    two.replicate().await;
    let outcome = two.accept(&claim(6, "other"), Digest::default(), 0).await;
    assert!(matches!(outcome, RecordChangeOutcome::Diverged { .. }), "{outcome:?}");
    assert!(!two.replica.is_visible(two.slot));
    assert!(watch.changed().now_or_never().is_none(), "it was shown what is not stable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_accepted_another_owner_does_not_lead_by_a_word_that_comes_late() {
    let two = Two::start().await;
    // Decided, but not yet said to the lane, when another claim is accepted.
    let late = OwnerCommand::BeginServing { claim: two.claim.clone(), write_quorum: 1 };
    let digest = two.owner.digests(vec![two.slot]).await.unwrap()[&two.slot];
    let accept = accepting(&claim(6, "replica"), &two.set, Some((digest, 9)));
    let outcome =
        two.owner.change_slots(vec![(two.slot, accept)]).await.unwrap().remove(0).1.outcome.unwrap();
    assert!(matches!(outcome, RecordChangeOutcome::Done), "{outcome:?}");
    two.owner.apply_owner_commands(vec![(two.slot, late)]).await.unwrap();
    assert!(two.try_append("in a stale epoch").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_slots_in_step_with_an_owner_are_compared_with_what_it_holds() {
    let two = Two::start().await;
    let owner = two.claim.claimant.clone();
    let held = || async {
        two.replica.replica_status(&owner, vec![two.slot]).await.unwrap().remove(&two.slot).unwrap()
    };
    two.replicate().await;
    let digest = two.owner.digests(vec![two.slot]).await.unwrap()[&two.slot];
    assert_eq!(held().await, ReplicaStatus::InSync(digest));
    // The slot moves: what another owner's history holds is not to be held against this one's.
    let other = claim(6, "other");
    let outcome = two.accept(&other, digest, 0).await;
    assert!(matches!(outcome, RecordChangeOutcome::Done), "{outcome:?}");
    assert_eq!(held().await, ReplicaStatus::Promised(other));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_acknowledged_does_not_hide_what_came_after_it() {
    let two = Two::start().await;
    let (slot, context) = (two.slot, &two.context);
    two.replicate().await;
    let digests = |of: Ledger| async move { of.digests(vec![slot]).await.unwrap()[&slot] };
    let common = digests(two.owner.clone()).await;
    // The owner is cut off with an entry whose second copy it does not hear of.
    two.owner
        .apply_owner_commands(vec![(
            slot,
            OwnerCommand::BeginServing { claim: two.claim.clone(), write_quorum: 2 },
        )])
        .await
        .unwrap();
    let append = Append::new(context.clone(), draft("facts", "second".to_owned()));
    let cut_off = two.owner.clone();
    let unanswered = tokio::spawn(async move { cut_off.append_async(append).await });
    while digests(two.owner.clone()).await == common {
        tokio::task::yield_now().await;
    }
    two.replicate().await;
    // The other one takes over.
    let claim = claim(6, "replica");
    let change = |offer| vec![(slot, accepting(&claim, &two.set, offer))];
    two.replica.change_slots(change(None)).await.unwrap();
    two.replica
        .apply_owner_commands(vec![(
            slot,
            OwnerCommand::BeginServing { claim: claim.clone(), write_quorum: 1 },
        )])
        .await
        .unwrap();
    for payload in ["other", "another"] {
        let append = Append::new(context.clone(), draft("facts", payload.to_owned()));
        two.replica.append_async(append).await.unwrap();
    }

    // The owner hears of it by an offer, before it steps down.
    let offer = Some((digests(two.replica.clone()).await, 1));
    let outcome = two.owner.change_slots(change(offer)).await.unwrap().remove(0).1.outcome.unwrap();
    assert!(matches!(outcome, RecordChangeOutcome::Diverged { .. }), "{outcome:?}");
    two.owner.apply_owner_commands(vec![(slot, OwnerCommand::StepDown)]).await.unwrap();
    assert!(unanswered.await.unwrap().is_err());
    let range = two.replica.range(context, Size(2), Size(4), usize::MAX).unwrap();
    let part = Part { slot, claim: claim.clone(), context: context.clone(), range, is_load: false };
    two.owner.replicate(vec![part], 0).await.unwrap().durable().await.unwrap();
    let outcome = two.owner.change_slots(change(offer)).await.unwrap().remove(0).1.outcome.unwrap();
    assert!(matches!(outcome, RecordChangeOutcome::Done), "{outcome:?}");
    two.owner.advance_commit_index(vec![CommitIndex { slot, epoch: claim.epoch, number: 1 }]).await.unwrap();
    digests(two.owner.clone()).await;
    assert!(two.owner.is_visible(slot));
    assert_eq!(two.owner.checkpoint(context, None).unwrap().position.size, Size(4));
}

fn snapshot(of: &Ledger, context: &ContextId) -> Vec<u8> {
    of.snapshot(context).unwrap().collect::<Result<Vec<_>, _>>().unwrap().concat()
}

/// A ledger that holds what the owner shows.
fn elsewhere(two: &Two) -> (tempfile::TempDir, Ledger) {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = Ledger::open_with(dir.path(), small()).unwrap();
    let shown = snapshot(&two.owner, &two.context);
    block_in_place(|| elsewhere.load_from(&two.context, false, shown.as_slice())).unwrap();
    (dir, elsewhere)
}

/// Loads it with ten more entries at the owner, which waits for another copy from now on. Gives the result that is
/// waited for.
async fn load_ten(
    two: &Two,
    elsewhere: &Ledger,
) -> tokio::task::JoinHandle<Result<ledger_store::Loaded, StoreError>> {
    block_in_place(|| append_many(elsewhere, &two.context, 10, &mut Vec::new()));
    let (snapshot, owner) = (snapshot(elsewhere, &two.context), two.owner.clone());
    two.owner
        .apply_owner_commands(vec![(
            two.slot,
            OwnerCommand::BeginServing { claim: two.claim.clone(), write_quorum: 2 },
        )])
        .await
        .unwrap();
    let (before, context) = (two.sent.commit().1, two.context.clone());
    let load = tokio::task::spawn_blocking(move || owner.load_from(&context, false, snapshot.as_slice()));
    while two.sent.commit().1 == before {
        tokio::task::yield_now().await;
    }
    load
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_load_brought_stays_together_in_a_context_that_is_healed() {
    for family in ["heads", "entries"] {
        let two = Two::start().await;
        two.replicate().await;
        let (_dir, elsewhere) = elsewhere(&two);
        let load = load_ten(&two, &elsewhere).await;
        two.replicate().await;
        let (context, all) = (&two.context, Size(11));
        // Whoever fetches a part of it gets all.
        let together =
            |of: &Ledger| of.range_to_send(context, Size(1), Size(3), 1 << 20).unwrap().together_to;
        assert_eq!(together(&two.replica), Some(all));
        two.replica.close().unwrap();
        let dir = two.dirs[1].path();
        tamper(dir, family, |row, _, value| (row == 0).then(|| flipped(value, value.len() - 1)));

        let replica = Ledger::open_with(dir, options()).unwrap();
        let theirs = two.owner.range(context, Size(0), all, 1 << 20).unwrap();
        assert!(replica.range(context, Size(0), all, 1 << 20).is_err(), "{family}");
        let healing = if family == "heads" {
            let theirs = TreeHead { size: all, root: theirs.root };
            replica.begin_healing(
                context,
                HealProof::Claim { claim: two.claim.clone(), is_complete: true },
                theirs,
            )
        } else {
            let LocalHead::Committed(goal) = replica.damaged_head(context).unwrap() else {
                panic!("{family}")
            };
            replica.begin_healing(context, HealProof::Head, goal)
        };
        let mut healing = healing.unwrap().expect("it is damaged");
        while let Some((after, to)) = healing.missing() {
            let sent = two.owner.range_to_send(context, after, to, 1 << 20).unwrap();
            healing.take(&sent.range, sent.together_to).unwrap();
        }
        assert!(block_in_place(|| healing.finish()).unwrap());
        assert_eq!(together(&replica), Some(all), "{family}");
        drop(healing);
        replica.close().unwrap();
        let again = Ledger::open_with(dir, options()).unwrap();
        assert_eq!(together(&again), Some(all), "{family}: it is on the disk");
        two.owner.close().unwrap();
        assert!(load.await.unwrap().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_before_another_that_is_not_stable_either_stays_together_with_it() {
    let two = Two::start().await;
    two.replicate().await;
    let (_dir, elsewhere) = elsewhere(&two);
    let mut loads = Vec::new();
    for _ in 0..2 {
        loads.push(load_ten(&two, &elsewhere).await);
        two.replicate().await;
    }
    let together =
        |of: &Ledger| of.range_to_send(&two.context, Size(1), Size(3), 1 << 20).unwrap().together_to;
    assert_eq!([together(&two.owner), together(&two.replica)], [Some(Size(21)); 2]);
    two.owner.close().unwrap();
    for load in loads {
        assert!(load.await.unwrap().is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_that_steps_down_keeps_a_load_that_it_put_in_place() {
    let two = Two::start().await;
    let (_dir, elsewhere) = elsewhere(&two);
    let load = load_ten(&two, &elsewhere).await;
    two.owner.apply_owner_commands(vec![(two.slot, OwnerCommand::StepDown)]).await.unwrap();
    assert!(matches!(load.await.unwrap(), Err(StoreError::NotAcknowledged)));
    // Replicas may hold it, and it be the history of later owners.
    let kept = two.owner.range(&two.context, Size(0), Size(11), 1 << 20).unwrap();
    assert_eq!((kept.count, kept.root), (11, elsewhere.head(&two.context).unwrap().unwrap().root()));
    assert!(two.owner.damage().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_repeated_is_not_said_to_be_there_before_it_has_its_copies() {
    let two = Two::start().await;
    two.replicate().await;
    let (_dir, elsewhere) = elsewhere(&two);
    let load = load_ten(&two, &elsewhere).await;
    // Whoever gave it up, or was cut off, loads it again.
    let (snapshot, owner) = (snapshot(&elsewhere, &two.context), two.owner.clone());
    let context = two.context.clone();
    let mut again =
        tokio::task::spawn_blocking(move || owner.load_from(&context, false, snapshot.as_slice()));
    let early = tokio::time::timeout(std::time::Duration::from_secs(1), &mut again).await;
    assert!(early.is_err(), "it is on one disk alone: {early:?}");
    let peer = Peer::new(0).unwrap();
    let number = two.replicate().await;
    let accepted = two.owner.record_offer_answer(two.slot, &two.claim, peer, SyncOfferOutcome::Accepted);
    assert_eq!(accepted, SyncOfferOutcome::Accepted);
    two.owner
        .apply_owner_commands(vec![(two.slot, OwnerCommand::AddInSync { claim: two.claim.clone(), peer })])
        .await
        .unwrap();
    two.owner.advance_peer_durable(peer, 0, number).unwrap();
    assert_eq!(load.await.unwrap().unwrap().restored, 10);
    let loaded = again.await.unwrap().unwrap();
    assert_eq!((loaded.restored, loaded.latest), (0, Size(11)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_closes_while_appends_and_loads_wait_for_copies() {
    let two = Two::start().await;
    two.replicate().await;
    let (_dir, elsewhere) = elsewhere(&two);
    let load = load_ten(&two, &elsewhere).await;
    let (owner, append) =
        (two.owner.clone(), Append::new(two.context.clone(), draft("facts", "waits".to_owned())));
    let before = two.sent.commit().1;
    let append = tokio::spawn(async move { owner.append_async(append).await });
    while two.sent.commit().1 == before {
        tokio::task::yield_now().await;
    }
    let (owner, dir) = (two.owner.clone(), two.dirs[0].path().to_owned());
    let again = tokio::task::spawn_blocking(move || {
        owner.close().unwrap();
        // It is free, though others still have the ledger.
        Ledger::open_with(dir, options()).unwrap()
    });
    let again =
        tokio::time::timeout(std::time::Duration::from_mins(1), again).await.expect("it closes").unwrap();
    assert!(matches!(append.await.unwrap(), Err(StoreError::NotAcknowledged)));
    assert!(matches!(load.await.unwrap(), Err(StoreError::NotAcknowledged)));
    assert!(matches!(two.owner.range(&two.context, Size(0), Size(1), 1000), Err(StoreError::Closed)));
    assert_eq!(
        again.range(&two.context, Size(0), Size(12), 1 << 20).unwrap().count,
        12,
        "what was written is kept"
    );
}
