//! What reads bytes of other nodes, in the shape that fuzzing needs. No part of the interface.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::{Arc, atomic::AtomicBool},
};

use bytes::Bytes;
use ledger_core::{
    ContextId, Epoch, Hash, HashSuite, Lineage, Size,
    catch_up::Missing,
    compare::{CompareRequest, CompareResponse, ListedContext, Page, Roots, RootsRequest},
    digest::{Bucket, ContextSummary, Digest, NodeDigest, TreeHead},
    node::{Incarnation, Member, NodeId, ReplicaSet, StorageId},
    ownership::{
        Claim, Placement, Promise,
        slot_manager::{LeaseRenewal, SlotKnowledge},
    },
    plausible::PlausibleBounds,
    slot::Slot,
};
use ledger_proto::ledger::v1::{
    CompareAnswer, CompareAsk, FetchedRange, Replicated, SlotAnswers, SlotAsks,
    replica_service_client::ReplicaServiceClient, replicated::Body, slot_answer::Answer as SlotAnswered,
};
use ledger_store::{
    EntryRange,
    replicate::replica::{Commit, CommitIndex, DigestCheckpoint, Part, SyncOffer},
};
use prost::Message;
use tonic::transport::Channel;

use crate::{
    membership::facts,
    membership::seal::{Keyring, Sealer},
    peers::call_auth::Credentials,
    peers::wire,
};

pub use crate::peers::call_auth::client::AuthenticatedChannel;

pub use facts::read_values;

/// The service for nodes of a node, as somebody who has the cluster's key reaches it under a node's name.
pub fn proven(
    channel: Channel,
    cluster: &str,
    keyring: Keyring,
    from: Member,
    to: Member,
) -> ReplicaServiceClient<AuthenticatedChannel> {
    let credentials = Credentials::new(from, Incarnation(u64::MAX >> 11), Sealer::new(cluster, keyring));
    let greets = Arc::new(AtomicBool::new(true));
    ReplicaServiceClient::new(AuthenticatedChannel::new(channel, Arc::new(credentials), to, greets))
}

/// What the node that reads them knows.
const KNOWN: PlausibleBounds = PlausibleBounds::above(Epoch::new(1 << 20, 0));

/// Takes the bytes of a message, and says what came of it.
pub type Reader = fn(&[u8]) -> Result<String, String>;

/// What a node reads the messages of others with.
pub const MESSAGES: [Reader; 6] = [replicated, slot_asks, slot_answers, compare_ask, compare_answer, fetched];

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, String> {
    // The decoder's own errors name fields of messages: alike for all bytes that are no message.
    M::decode(bytes).map_err(|_| "no message".to_owned())
}

fn said<T>(read: Result<T, wire::RejectedMessage>) -> Result<T, String> {
    read.map_err(|error| error.to_string())
}

/// Law: what is read, sent on and read again is the same.
fn same<T: PartialEq + Debug>(read: &T, again: &Result<T, wire::RejectedMessage>) {
    assert_eq!(Ok(read), again.as_ref());
}

fn replicated(bytes: &[u8]) -> Result<String, String> {
    let owner = member(1).ok_or("no owner")?;
    match decode::<Replicated>(bytes)?.body {
        Some(Body::Hello(hello)) => {
            let (from, to) =
                (said(wire::member(hello.from.as_ref()))?, said(wire::member(hello.to.as_ref()))?);
            same(&from, &wire::member(Some(&wire::to_member(&from))));
            same(&to, &wire::member(Some(&wire::to_member(&to))));
            Ok("hello".to_owned())
        }
        Some(Body::Commit(commit)) => {
            let (lane, number, parts) = said(wire::commit(commit, &owner, KNOWN))?;
            parts.iter().for_each(framed);
            let commit = Commit::new(lane, number, parts);
            let (_, _, again) = said(wire::commit(wire::to_commit(&commit), &owner, KNOWN))?;
            assert_eq!(commit.parts, again);
            Ok(format!("commit of {}", "part ".repeat(commit.parts.len().min(9))))
        }
        Some(Body::Accept(accept)) => {
            let offer = said(wire::sync_offer(&accept, &owner, KNOWN))?;
            same(&offer, &wire::sync_offer(&wire::to_sync_offer(&offer), &owner, KNOWN));
            Ok(format!("offer {} {}", offer.is_confirmed, offer.previous.is_some()))
        }
        Some(Body::Stable(stable)) => {
            let slots = said(wire::commit_indexes(&stable, KNOWN))?;
            same(&slots, &wire::commit_indexes(&wire::to_commit_indexes(&slots), KNOWN));
            Ok(format!("stable {}", "slot ".repeat(slots.len().min(9))))
        }
        Some(Body::Mark(mark)) => {
            let (slots, _) = said(wire::digest_checkpoint(&mark))?;
            Ok(format!("mark {}", "slot ".repeat(slots.len().min(9))))
        }
        Some(Body::Renewal(renewal)) => {
            let slots = said(wire::lease_renewal(&renewal, &owner, KNOWN))?;
            same(&slots, &wire::lease_renewal(&wire::to_lease_renewal(&slots), &owner, KNOWN));
            Ok(format!("renewal {}", "slot ".repeat(slots.len().min(9))))
        }
        None => Ok("nothing".to_owned()),
    }
}

/// Law: a part's records are as many as were counted, and take all of its bytes.
fn framed(part: &Part) {
    let (mut count, mut bytes) = (0, 0);
    for record in part.range.each_record() {
        count += 1;
        bytes += 4 + record.len();
    }
    assert!(part.is_staged() || count == part.range.count);
    assert_eq!(bytes, part.range.records.len());
    assert!(part.range.end() >= part.range.after.size);
}

fn slot_asks(bytes: &[u8]) -> Result<String, String> {
    let asks: SlotAsks = decode(bytes)?;
    said(wire::member(asks.from.as_ref()))?;
    said(wire::member(asks.to.as_ref()))?;
    for ask in &asks.asks {
        said(wire::slot(ask.slot))?;
        let claim = said(wire::claim(ask.claim.as_ref(), KNOWN))?;
        same(&claim, &wire::claim(Some(&wire::to_claim(&claim)), KNOWN));
    }
    Ok(format!("asks {}", "ask ".repeat(asks.asks.len().min(9))))
}

fn slot_answers(bytes: &[u8]) -> Result<String, String> {
    let answers: SlotAnswers = decode(bytes)?;
    let mut kinds = BTreeSet::new();
    for answer in &answers.answers {
        said(wire::slot(answer.slot))?;
        kinds.insert(match &answer.answer {
            Some(SlotAnswered::Promised(promise)) => {
                let promise = said(wire::promise(promise, KNOWN))?;
                same(&promise, &wire::promise(&wire::to_promise(&promise), KNOWN));
                "promised"
            }
            Some(SlotAnswered::Refused(claim)) => {
                said(wire::claim(Some(claim), KNOWN))?;
                "refused"
            }
            Some(SlotAnswered::Known(known)) => {
                let known = said(wire::slot_knowledge(known, KNOWN))?;
                same(&known, &wire::slot_knowledge(&wire::to_slot_knowledge(&known), KNOWN));
                "known"
            }
            Some(SlotAnswered::Done(_)) => "done",
            Some(SlotAnswered::NotNow(_)) => "not now",
            None => "nothing",
        });
    }
    Ok(format!("answers {kinds:?}"))
}

fn compare_ask(bytes: &[u8]) -> Result<String, String> {
    let ask = said(wire::compare_request(decode(bytes)?))?;
    // Its errors name contexts: what is wrong with them is tested elsewhere.
    let checked = ask.check().map_err(|_| "out of bounds".to_owned());
    let to = member(1).ok_or("no member")?;
    same(&ask, &wire::compare_request(wire::to_compare_request(&to, &ask)));
    checked?;
    Ok(match ask {
        CompareRequest::Node { .. } => "ask node",
        CompareRequest::Buckets { .. } => "ask buckets",
        CompareRequest::Contexts { after: None, .. } => "ask contexts",
        CompareRequest::Contexts { .. } => "ask contexts after",
        CompareRequest::Roots(_) => "ask roots",
    }
    .to_owned())
}

fn compare_answer(bytes: &[u8]) -> Result<String, String> {
    let answer = said(wire::compare_response(decode(bytes)?))?;
    same(&answer, &wire::compare_response(wire::to_compare_response(answer.clone())));
    Ok(match answer {
        CompareResponse::InSync => "in step".to_owned(),
        CompareResponse::Slots(slots) => format!("slots {}", "slot ".repeat(slots.len().min(9))),
        CompareResponse::Buckets(slots) => format!("buckets {}", "slot ".repeat(slots.len().min(9))),
        CompareResponse::Contexts(page) => {
            format!("contexts {}", "context ".repeat(page.contexts.len().min(9)))
        }
        CompareResponse::Roots(roots) => format!("roots {}", "context ".repeat(roots.len().min(9))),
    })
}

fn fetched(bytes: &[u8]) -> Result<String, String> {
    let message = decode::<FetchedRange>(bytes)?;
    if let Some(missing) = &message.missing {
        let missing = said(wire::missing(missing))?;
        let again = wire::to_missing(&missing.0, missing.1).missing.unwrap_or_default();
        same(&missing, &wire::missing(&again));
        return Ok("missing".to_owned());
    }
    said(wire::whole(&message))?;
    let range = message.range.ok_or("no range")?;
    let context = ContextId::new(&range.context_id).map_err(|_| "no name")?;
    let claim = claim(7).ok_or("no claim")?;
    let part = said(wire::part(Slot::of(&context), claim.clone(), range))?;
    framed(&part);
    same(&part, &wire::part(part.slot, claim, wire::to_part(&part)));
    Ok(format!("fetched {}", "record ".repeat(part.range.count.min(9) as usize)))
}

/// Messages that nodes send, each with its place in [`MESSAGES`].
pub fn messages() -> Vec<(usize, Vec<u8>)> {
    some_messages().unwrap_or_default()
}

fn member(number: u8) -> Option<Member> {
    Some(Member { node: NodeId::new(format!("node-{number}")).ok()?, storage: StorageId([number; 16]) })
}

fn claim(counter: u64) -> Option<Claim> {
    Some(Claim::new(Epoch(counter << 24), &member(1)?))
}

fn some_messages() -> Option<Vec<(usize, Vec<u8>)>> {
    use ledger_proto::ledger::v1 as proto;
    let (me, other) = (member(1)?, member(2)?);
    let members = ReplicaSet::new([me.clone(), other.clone()]).ok()?;
    let (slot, context) = (Slot::new(5)?, ContextId::new("demo").ok()?);
    let part = Part {
        slot,
        claim: claim(1)?,
        context: context.clone(),
        range: EntryRange {
            lineage: Lineage([3; 16]),
            suite: HashSuite::Blake3,
            created_at_ns: 7,
            after: TreeHead { size: Size(2), root: Hash([1; 32]) },
            root: Hash([2; 32]),
            count: 2,
            records: Bytes::from_static(b"\x02\0\0\0ab\x01\0\0\0c"),
        },
        is_load: false,
    };
    let placement = Placement {
        epoch: Epoch(9),
        members: members.clone(),
        is_confirmed: true,
        previous: Some(ReplicaSet::new([other.clone()]).ok()?),
    };
    let digest = Digest::default();
    let offer = SyncOffer {
        lane: 1,
        number: 8,
        slot,
        claim: claim(2)?,
        members,
        is_confirmed: false,
        previous: None,
        digest,
    };
    let renewal = LeaseRenewal { slot, claim: claim(2)?, age: Some(70) };
    let mark = DigestCheckpoint { lane: 0, number: 4, digests: vec![(slot, digest)] };
    let stable = [CommitIndex { slot, epoch: Epoch(4), number: 6 }];
    let load = Part { is_load: true, ..part.clone() };
    let staged = Part { range: EntryRange { records: Bytes::new(), ..part.range.clone() }, ..load.clone() };
    let commit = Arc::new(Commit::new(1, 3, vec![part.clone(), load, staged]));
    let (from, to) = (Some(wire::to_member(&me)), Some(wire::to_member(&other)));
    let hello = proto::ReplicateHello { from, to, hears_refusals: true };
    let mut messages: Vec<(usize, Vec<u8>)> = [
        Body::Hello(hello),
        Body::Commit(wire::to_commit(&commit)),
        Body::Accept(wire::to_sync_offer(&offer)),
        Body::Accept(wire::to_sync_offer(&SyncOffer { previous: placement.previous.clone(), ..offer })),
        Body::Stable(wire::to_commit_indexes(&stable)),
        Body::Mark(wire::to_digest_checkpoint(&mark)),
        Body::Renewal(wire::to_lease_renewal(&[renewal])),
    ]
    .into_iter()
    .map(|body| (0, Replicated { body: Some(body) }.encode_to_vec()))
    .collect();

    let nothing = proto::SlotNothing {};
    let asks = [
        proto::slot_ask::Ask::Promise(nothing),
        proto::slot_ask::Ask::Join(nothing),
        proto::slot_ask::Ask::Inquire(nothing),
    ];
    let asks = asks.into_iter().map(|ask| proto::SlotAsk {
        slot: 5,
        claim: claim(3).as_ref().map(wire::to_claim),
        ask: Some(ask),
    });
    let (from, to) = (Some(wire::to_member(&me)), Some(wire::to_member(&other)));
    messages.push((1, SlotAsks { from, to, asks: asks.collect() }.encode_to_vec()));

    let known = SlotKnowledge { accepted: Epoch(3), placement: Some(placement.clone()), is_owned: true };
    let promise = Promise { accepted: Epoch(3), placement: Some(placement) };
    for answer in [
        SlotAnswered::Promised(wire::to_promise(&promise)),
        SlotAnswered::Done(nothing),
        SlotAnswered::Known(wire::to_slot_knowledge(&known)),
        SlotAnswered::Refused(wire::to_claim(&claim(4)?)),
        SlotAnswered::NotNow("later".to_owned()),
    ] {
        let answers = vec![proto::SlotAnswer { slot: 5, answer: Some(answer) }];
        messages.push((2, SlotAnswers { answers }.encode_to_vec()));
    }

    let slots = BTreeSet::from([slot, Slot::new(9)?]);
    let buckets = BTreeSet::from([Bucket(1), Bucket(200)]);
    for ask in [
        CompareRequest::Node { slots: slots.clone(), digest: NodeDigest(Hash([4; 32])) },
        CompareRequest::Buckets { slots },
        CompareRequest::Contexts {
            buckets: BTreeMap::from([(slot, buckets.clone())]),
            after: Some(context.clone()),
        },
        CompareRequest::Roots(vec![RootsRequest { context: context.clone(), sizes: vec![Size(1), Size(9)] }]),
    ] {
        messages.push((3, CompareAsk::encode_to_vec(&wire::to_compare_request(&other, &ask))));
    }
    let summary =
        ContextSummary { context: context.clone(), size: Size(4), root: Hash([5; 32]), epoch: Epoch(6) };
    for answer in [
        CompareResponse::InSync,
        CompareResponse::Slots([(slot, digest)].into_iter().collect()),
        CompareResponse::Buckets(
            [(slot, buckets.into_iter().map(|bucket| (bucket, digest)).collect())].into(),
        ),
        CompareResponse::Contexts(Page {
            contexts: vec![ListedContext::Present(summary), ListedContext::Unreadable(context.clone())],
            more: true,
        }),
        CompareResponse::Roots(vec![
            Roots::At(vec![Hash([6; 32]), Hash([7; 32])]),
            Roots::At(Vec::new()),
            Roots::Absent,
            Roots::Unreadable,
        ]),
    ] {
        messages.push((4, CompareAnswer::encode_to_vec(&wire::to_compare_response(answer))));
    }
    let range = FetchedRange {
        range: Some(wire::to_range(&part.context, &part.range)),
        together_to: 7,
        whole_size: 9,
        whole_root: Bytes::copy_from_slice(&[8; 32]),
        ..FetchedRange::default()
    };
    let missing = wire::to_missing(&part.context, Missing::Unreadable);
    let fetched = FetchedRange { more: vec![range.clone(), missing, wire::to_fetch_end()], ..range };
    messages.push((5, fetched.encode_to_vec()));
    Some(messages)
}
