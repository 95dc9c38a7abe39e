//! A replica shows what its owner said is stable, and nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use ledger_core::{
    Epoch,
    digest::Digest,
    node::{Member, NodeId, ReplicaSet},
    ownership::Claim,
    replication::Peer,
    slot::Slot,
};
use ledger_store::{
    Append, ContextId, Ledger, Options, Sequence, Size,
    replica::{Change, ChangeOutcome, Held, Lead, Offer, Outbox, Outgoing, Part, Spread, StableUpTo},
};
use support::{context, draft, small};

/// Keeps what lanes send.
#[derive(Debug, Default)]
struct Sent(Mutex<Vec<Outgoing>>);

impl Outbox for Sent {
    fn send(&self, _: Peer, what: Outgoing) {
        self.0.lock().unwrap().push(what);
    }

    fn spread(&self, _: Peer, _: Spread) {}

    fn restart(&self, _: Peer) {}

    fn stopped(&self, _: Slot, _: Claim) {}

    fn gave_up(&self, _: Vec<Slot>) {}
}

impl Sent {
    fn offer(&self) -> Offer {
        let sent = self.0.lock().unwrap();
        let mut offers = sent.iter().filter_map(|sent| match sent {
            Outgoing::Offer(offer) => Some(offer.clone()),
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
    _dirs: [tempfile::TempDir; 2],
    owner: Ledger,
    replica: Ledger,
    sent: Arc<Sent>,
    set: ReplicaSet,
    claim: Claim,
    context: ContextId,
    slot: Slot,
}

/// Accepts a claim with confirmed members, offered or not.
fn accepting(claim: &Claim, set: &ReplicaSet, offer: Option<(Digest, u64)>) -> Change {
    Change::Accept { claim: claim.clone(), set: set.clone(), is_confirmed: true, before: None, offer }
}

fn claim(epoch: u32, claimant: &str) -> Claim {
    Claim { epoch: Epoch::new(epoch, 0), claimant: NodeId::new(claimant).unwrap() }
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
        owner.carry(Arc::clone(&sent) as Arc<dyn Outbox>);
        let peer = Peer::new(0).unwrap();
        let offer =
            Lead::Offer { peer, claim: claim.clone(), set: set.clone(), is_confirmed: true, before: None };
        let own = Lead::Own { claim: claim.clone(), needed: 1 };

        owner.change_slots(vec![(slot, accepting(&claim, &set, None))]).await.unwrap();
        owner.lead(vec![(slot, offer), (slot, own)]).await.unwrap();
        let two = Self { _dirs: dirs, owner, replica, sent, set, claim, context, slot };
        // It answers when the offer was made, too.
        two.append("first").await;
        let offer = two.sent.offer();
        assert!(matches!(two.accept(&two.claim, offer.digest, offer.number).await, ChangeOutcome::Done));
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

    async fn accept(&self, claim: &Claim, digest: Digest, number: u64) -> ChangeOutcome {
        let accept = accepting(claim, &self.set, Some((digest, number)));
        self.replica.change_slots(vec![(self.slot, accept)]).await.unwrap().remove(0).1.outcome
    }

    /// Brings the owner's newest commit to the replica; gives its number.
    async fn replicate(&self) -> u64 {
        let (parts, number) = self.sent.commit();
        self.replica.follow(parts, number).await.unwrap().durable().await.unwrap();
        number
    }

    async fn stable(&self, number: u64) {
        let up_to = StableUpTo { slot: self.slot, epoch: self.claim.epoch, number };
        self.replica.stable(vec![up_to]).await.unwrap();
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
    assert!(two.replica.shows(two.slot));
    // A comparison that began before the slot was in step fetches what is here by now, and the next entry.
    let (parts, _) = two.sent.commit();
    two.replica.follow(parts, 0).await.unwrap().durable().await.unwrap();
    two.append("second").await;
    let (parts, _) = two.sent.commit();
    two.replica.follow(parts, 0).await.unwrap().durable().await.unwrap();
    assert!(two.replica.shows(two.slot));
    // The stream brings it.
    let second = two.replicate().await;
    two.stable(second).await;
    let mut watch = two.replica.watch(&two.context, None, Sequence(0));
    assert_eq!(watch.read(10, usize::MAX).unwrap().entries.len(), 2);
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
    assert!(matches!(outcome, ChangeOutcome::Differs), "{outcome:?}");
    assert!(!two.replica.shows(two.slot));
    assert!(watch.changed().now_or_never().is_none(), "it was shown what is not stable");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_accepted_another_owner_does_not_lead_by_a_word_that_comes_late() {
    let two = Two::start().await;
    // Decided, but not yet said to the lane, when another claim is accepted.
    let late = Lead::Own { claim: two.claim.clone(), needed: 1 };
    let digest = two.owner.digests(vec![two.slot]).await.unwrap()[&two.slot];
    let accept = accepting(&claim(6, "replica"), &two.set, Some((digest, 9)));
    let outcome = two.owner.change_slots(vec![(two.slot, accept)]).await.unwrap().remove(0).1.outcome;
    assert!(matches!(outcome, ChangeOutcome::Done), "{outcome:?}");
    two.owner.lead(vec![(two.slot, late)]).await.unwrap();
    assert!(two.try_append("in a stale epoch").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_slots_in_step_with_an_owner_are_compared_with_what_it_holds() {
    let two = Two::start().await;
    let owner = two.claim.claimant.clone();
    let held =
        || async { two.replica.held(&owner, vec![two.slot]).await.unwrap().remove(&two.slot).unwrap() };
    two.replicate().await;
    let digest = two.owner.digests(vec![two.slot]).await.unwrap()[&two.slot];
    assert_eq!(held().await, Held::InStep(digest));
    // The slot moves: what another owner's history holds is not to be held against this one's.
    let other = claim(6, "other");
    let outcome = two.accept(&other, digest, 0).await;
    assert!(matches!(outcome, ChangeOutcome::Done), "{outcome:?}");
    assert_eq!(held().await, Held::Promised(other));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_acknowledged_does_not_hide_what_came_after_it() {
    let two = Two::start().await;
    let (slot, context) = (two.slot, &two.context);
    two.replicate().await;
    let digests = |of: Ledger| async move { of.digests(vec![slot]).await.unwrap()[&slot] };
    let common = digests(two.owner.clone()).await;
    // The owner is cut off with an entry whose second copy it does not hear of.
    two.owner.lead(vec![(slot, Lead::Own { claim: two.claim.clone(), needed: 2 })]).await.unwrap();
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
    two.replica.lead(vec![(slot, Lead::Own { claim: claim.clone(), needed: 1 })]).await.unwrap();
    for payload in ["other", "another"] {
        let append = Append::new(context.clone(), draft("facts", payload.to_owned()));
        two.replica.append_async(append).await.unwrap();
    }

    // The owner hears of it by an offer, before it steps down.
    let offer = Some((digests(two.replica.clone()).await, 1));
    let outcome = two.owner.change_slots(change(offer)).await.unwrap().remove(0).1.outcome;
    assert!(matches!(outcome, ChangeOutcome::Differs), "{outcome:?}");
    two.owner.lead(vec![(slot, Lead::StepDown)]).await.unwrap();
    assert!(unanswered.await.unwrap().is_err());
    let range = two.replica.range(context, Size(2), Size(4), usize::MAX).unwrap();
    let part = Part { slot, claim: claim.clone(), context: context.clone(), range, is_load: false };
    two.owner.follow(vec![part], 0).await.unwrap().durable().await.unwrap();
    let outcome = two.owner.change_slots(change(offer)).await.unwrap().remove(0).1.outcome;
    assert!(matches!(outcome, ChangeOutcome::Done), "{outcome:?}");
    two.owner.stable(vec![StableUpTo { slot, epoch: claim.epoch, number: 1 }]).await.unwrap();
    digests(two.owner.clone()).await;
    assert!(two.owner.shows(slot));
    assert_eq!(two.owner.checkpoint(context, None).unwrap().position.size, Size(4));
}
