//! Converts between this crate's types and the protocol's messages. Checks everything that arrives before anything
//! uses it.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use ledger_core::{
    ContextId, Epoch, Hash, HashSuite, Lineage,
    catch_up::Missing,
    compare::{
        CompareRequest, CompareResponse, ListedContext, MAX_COMPARED, MAX_PAGE, MAX_SIZES, Page, Roots,
        RootsRequest,
    },
    digest::{Bucket, ContextSummary, Digest, NodeDigest, TreeHead},
    node::{Member, NodeId, ReplicaSet, StorageId},
    ownership::{
        Claim, Placement, Promise, RefusedPart, WhyRefused,
        slot_manager::{LeaseRenewal, SlotKnowledge},
    },
    plausible::{self, Implausible, PlausibleBounds},
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1 as proto;
use ledger_store::{
    EntryRange, LoadDescriptor,
    replicate::replica::{Commit, CommitIndex, DigestCheckpoint, MAX_PART, Part, StagingRequest, SyncOffer},
};

/// The message is malformed: no node would send it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is missing or malformed")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// Why a message is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RejectedMessage {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It is well-formed and cannot be true.
    #[error("not plausible: {0}")]
    Implausible(#[from] Implausible),
}

type Read<T> = Result<T, RejectedMessage>;

pub(crate) fn slot(number: u32) -> Read<Slot> {
    Ok(u16::try_from(number).ok().and_then(Slot::new).ok_or(Malformed("slot"))?)
}

pub(crate) fn member(from: Option<&proto::SlotMember>) -> Read<Member> {
    let from = from.ok_or(Malformed("member"))?;
    let node = NodeId::new(&from.node_id).map_err(|_| Malformed("node_id"))?;
    let storage = from.storage_id.as_ref().try_into().map_err(|_| Malformed("storage_id"))?;
    Ok(Member { node, storage: StorageId(storage) })
}

/// Returns the member that a node of the view is.
pub(crate) fn member_of(node: &crate::membership::ViewMember) -> Member {
    Member { node: node.node_id.clone(), storage: node.storage_id }
}

pub(crate) fn to_member(member: &Member) -> proto::SlotMember {
    proto::SlotMember {
        node_id: member.node.as_str().to_owned(),
        storage_id: Bytes::copy_from_slice(&member.storage.0),
    }
}

pub(crate) fn claim(from: Option<&proto::SlotClaim>, bounds: PlausibleBounds) -> Read<Claim> {
    let from = from.ok_or(Malformed("claim"))?;
    Ok(claim_in(bounds.epoch(from.epoch)?, from)?)
}

/// Reads who makes a claim to an epoch.
pub(crate) fn claim_in(epoch: Epoch, from: &proto::SlotClaim) -> Result<Claim, Malformed> {
    let claimant = NodeId::new(&from.claimant).map_err(|_| Malformed("claimant"))?;
    let storage = if from.storage_id.is_empty() {
        None
    } else {
        Some(StorageId(from.storage_id.as_ref().try_into().map_err(|_| Malformed("storage_id"))?))
    };
    Ok(Claim { epoch, claimant, storage })
}

/// Reads a claim that is made by this member, whose build may leave out with which data directory.
pub(crate) fn claim_of(
    claimant: &Member,
    from: Option<&proto::SlotClaim>,
    bounds: PlausibleBounds,
) -> Read<Claim> {
    Ok(claim(from, bounds)?.completed_by(claimant))
}

pub(crate) fn to_claim(claim: &Claim) -> proto::SlotClaim {
    proto::SlotClaim {
        epoch: claim.epoch.0,
        claimant: claim.claimant.as_str().to_owned(),
        storage_id: claim.storage.map_or_else(Bytes::new, |storage| Bytes::copy_from_slice(&storage.0)),
    }
}

pub(crate) fn replica_set(from: &[proto::SlotMember]) -> Read<ReplicaSet> {
    let members: Vec<Member> = from.iter().take(16).map(|from| member(Some(from))).collect::<Read<_>>()?;
    Ok(ReplicaSet::new(members).map_err(|_| Malformed("members"))?)
}

pub(crate) fn previous_set(from: &[proto::SlotMember]) -> Read<Option<ReplicaSet>> {
    if from.is_empty() { Ok(None) } else { replica_set(from).map(Some) }
}

pub(crate) fn to_replica_set(set: &ReplicaSet) -> Vec<proto::SlotMember> {
    set.members().iter().map(to_member).collect()
}

pub(crate) fn placement(
    from: Option<&proto::SlotPlacement>,
    bounds: PlausibleBounds,
) -> Read<Option<Placement>> {
    let Some(from) = from else { return Ok(None) };
    let (epoch, is_confirmed) = (bounds.epoch(from.epoch)?, from.is_confirmed);
    let (members, previous) = (replica_set(&from.members)?, previous_set(&from.before)?);
    Ok(Some(Placement { epoch, members, is_confirmed, previous }))
}

pub(crate) fn to_placement(placement: &Placement) -> proto::SlotPlacement {
    proto::SlotPlacement {
        epoch: placement.epoch.0,
        members: to_replica_set(&placement.members),
        is_confirmed: placement.is_confirmed,
        before: placement.previous.as_ref().map_or_else(Vec::new, to_replica_set),
    }
}

pub(crate) fn promise(from: &proto::SlotPromise, bounds: PlausibleBounds) -> Read<Promise> {
    let accepted = bounds.epoch(from.accepted)?;
    Ok(Promise { accepted, placement: placement(from.placement.as_ref(), bounds)? })
}

pub(crate) fn to_promise(promise: &Promise) -> proto::SlotPromise {
    proto::SlotPromise {
        accepted: promise.accepted.0,
        placement: promise.placement.as_ref().map(to_placement),
    }
}

fn hash(from: &[u8], what: &'static str) -> Read<Hash> {
    Ok(Hash::from_slice(from).ok_or(Malformed(what))?)
}

fn context(from: &str) -> Read<ContextId> {
    Ok(ContextId::new(from).map_err(|_| Malformed("context_id"))?)
}

fn digest(from: &[u8]) -> Read<Digest> {
    Ok(from.try_into().map(Digest::from_bytes).map_err(|_| Malformed("digest"))?)
}

pub(crate) fn slots(from: &[u8]) -> Read<BTreeSet<Slot>> {
    if !from.len().is_multiple_of(2) || from.len() / 2 > usize::from(SLOTS) {
        return Err(Malformed("slots").into());
    }
    from.as_chunks()
        .0
        .iter()
        .map(|bytes| Ok(Slot::new(u16::from_le_bytes(*bytes)).ok_or(Malformed("slots"))?))
        .collect()
}

pub(crate) fn to_slots<'a>(slots: impl IntoIterator<Item = &'a Slot>) -> Bytes {
    slots.into_iter().flat_map(|slot| slot.number().to_le_bytes()).collect::<Vec<_>>().into()
}

fn digests(from: &[u8], count: usize) -> Read<Vec<Digest>> {
    let (chunks, rest) = from.as_chunks::<40>();
    if chunks.len() != count || !rest.is_empty() {
        return Err(Malformed("digests").into());
    }
    Ok(chunks.iter().map(Digest::from_bytes).collect())
}

/// Reads the parts of a commit of an owner, with its lane and number.
pub(crate) fn commit(
    from: proto::ReplicatedCommit,
    owner: &Member,
    bounds: PlausibleBounds,
) -> Read<(u16, u64, Vec<Part>)> {
    let lane = u16::try_from(from.lane).map_err(|_| Malformed("lane"))?;
    let mut parts = Vec::new();
    for of_slot in from.slots {
        let claim = claim_of(owner, of_slot.claim.as_ref(), bounds)?;
        let slot = slot(of_slot.slot)?;
        for context in of_slot.contexts {
            parts.push(part(slot, claim.clone(), context)?);
        }
    }
    Ok((lane, from.number, parts))
}

/// Reads one part, in a claim.
pub(crate) fn part(slot: Slot, claim: Claim, from: proto::ReplicatedContext) -> Read<Part> {
    let load_count = from.load_count;
    let (context, mut range) = range(from)?;
    let is_load = load_count > 0;
    if is_load && range.records.is_empty() {
        range.count = load_count;
        plausible::size(range.after.size.0.saturating_add(load_count))?;
    } else if is_load && range.count != load_count {
        return Err(Malformed("load_count").into());
    }
    Ok(Part { slot, claim, context, range, is_load })
}

/// A load that is staged at another node.
#[derive(Debug)]
pub(crate) struct WantedLoad {
    pub(crate) claim: Claim,
    /// The number under which to fetch it.
    pub(crate) number: u64,
    pub(crate) context: ContextId,
    pub(crate) announced: LoadDescriptor,
}

pub(crate) fn load(from: proto::StageRequest, owner: &Member, bounds: PlausibleBounds) -> Read<WantedLoad> {
    let (context, range) = range(from.load.ok_or(Malformed("load"))?)?;
    let to = plausible::size(from.to_size)?;
    if range.after.size >= to {
        return Err(Malformed("to_size").into());
    }
    let announced = LoadDescriptor::of_range(&range, to, Some(range.root));
    let claim = claim_of(owner, from.claim.as_ref(), bounds)?;
    Ok(WantedLoad { claim, number: from.number, context, announced })
}

pub(crate) fn to_load(from: &Member, to: &Member, spread: &StagingRequest) -> proto::StageRequest {
    let LoadDescriptor { lineage, suite, created_at_ns, after, to: end, root } = &spread.load;
    let range = EntryRange {
        lineage: *lineage,
        suite: *suite,
        created_at_ns: *created_at_ns,
        after: *after,
        count: 0,
        root: root.unwrap_or(after.root),
        records: Bytes::new(),
    };
    proto::StageRequest {
        from: Some(to_member(from)),
        to: Some(to_member(to)),
        claim: Some(to_claim(&spread.claim)),
        number: spread.number,
        load: Some(to_range(&spread.context, &range)),
        to_size: end.0,
    }
}

/// Reads a range of a context.
pub(crate) fn range(from: proto::ReplicatedContext) -> Read<(ContextId, EntryRange)> {
    let suite = u8::try_from(from.hash_suite).ok().and_then(HashSuite::from_code);
    if from.records.len() > MAX_PART {
        return Err(Malformed("records").into());
    }
    let count = EntryRange::count_of(&from.records).ok_or(Malformed("records"))?;
    let range = EntryRange {
        lineage: Lineage(from.lineage.as_ref().try_into().map_err(|_| Malformed("lineage"))?),
        suite: suite.ok_or(Malformed("hash_suite"))?,
        created_at_ns: from.created_at_ns,
        after: TreeHead {
            size: plausible::size(from.after_size)?,
            root: hash(&from.after_root, "after_root")?,
        },
        root: hash(&from.root, "root")?,
        count,
        records: from.records,
    };
    plausible::size(range.after.size.0.saturating_add(range.count))?;
    Ok((context(&from.context_id)?, range))
}

/// Reads up to which tree head more ranges of a context will go, if more follow.
pub(crate) fn whole(from: &proto::FetchedRange) -> Read<Option<TreeHead>> {
    if from.whole_size == 0 {
        return Ok(None);
    }
    let (size, root) = (plausible::size(from.whole_size)?, hash(&from.whole_root, "whole_root")?);
    Ok(Some(TreeHead { size, root }))
}

/// Reads of which context nothing more comes, and why. A reason that is not known is no evidence of anything.
pub(crate) fn missing(from: &proto::FetchMissing) -> Read<(ContextId, Missing)> {
    use proto::fetch_missing::Reason;
    let reason = match from.reason {
        Some(Reason::Shorter(_)) => Missing::Shorter,
        Some(Reason::Unreadable(_)) => Missing::Unreadable,
        Some(Reason::Failed(_)) | None => Missing::Failed,
    };
    Ok((context(&from.context_id)?, reason))
}

pub(crate) fn to_missing(context: &ContextId, missing: Missing) -> proto::FetchedRange {
    use proto::fetch_missing::Reason;
    let nothing = proto::SlotNothing {};
    let reason = match missing {
        Missing::Shorter => Reason::Shorter(nothing),
        Missing::Unreadable => Reason::Unreadable(nothing),
        Missing::Failed => Reason::Failed(nothing),
    };
    let missing = proto::FetchMissing { context_id: context.as_str().to_owned(), reason: Some(reason) };
    proto::FetchedRange { missing: Some(missing), ..proto::FetchedRange::default() }
}

/// The last message of a response to a fetch.
pub(crate) fn to_fetch_end() -> proto::FetchedRange {
    proto::FetchedRange { end: Some(proto::SlotNothing {}), ..proto::FetchedRange::default() }
}

pub(crate) fn to_range(context: &ContextId, range: &EntryRange) -> proto::ReplicatedContext {
    proto::ReplicatedContext {
        context_id: context.as_str().to_owned(),
        lineage: Bytes::copy_from_slice(&range.lineage.0),
        hash_suite: u32::from(range.suite.code()),
        created_at_ns: range.created_at_ns,
        after_size: range.after.size.0,
        after_root: Bytes::copy_from_slice(&range.after.root.0),
        root: Bytes::copy_from_slice(&range.root.0),
        records: range.records.clone(),
        load_count: 0,
    }
}

pub(crate) fn to_part(part: &Part) -> proto::ReplicatedContext {
    let load_count = if part.is_load { part.range.count } else { 0 };
    proto::ReplicatedContext { load_count, ..to_range(&part.context, &part.range) }
}

pub(crate) fn to_commit(commit: &Commit) -> proto::ReplicatedCommit {
    let mut slots: Vec<proto::ReplicatedSlot> = Vec::new();
    let mut claim = None;
    for part in &commit.parts {
        let number = u32::from(part.slot.number());
        match slots.last_mut() {
            Some(last) if last.slot == number && claim == Some(&part.claim) => {
                last.contexts.push(to_part(part));
            }
            _ => slots.push(proto::ReplicatedSlot {
                slot: number,
                claim: Some(to_claim(&part.claim)),
                contexts: vec![to_part(part)],
            }),
        }
        claim = Some(&part.claim);
    }
    proto::ReplicatedCommit { lane: u32::from(commit.lane), number: commit.number, slots }
}

pub(crate) fn sync_offer(
    from: &proto::ReplicatedAccept,
    owner: &Member,
    bounds: PlausibleBounds,
) -> Read<SyncOffer> {
    Ok(SyncOffer {
        lane: u16::try_from(from.lane).map_err(|_| Malformed("lane"))?,
        number: from.number,
        slot: slot(from.slot)?,
        claim: claim_of(owner, from.claim.as_ref(), bounds)?,
        members: replica_set(&from.members)?,
        is_confirmed: from.is_confirmed,
        previous: previous_set(&from.before)?,
        digest: digest(&from.digest)?,
    })
}

pub(crate) fn to_sync_offer(offer: &SyncOffer) -> proto::ReplicatedAccept {
    proto::ReplicatedAccept {
        lane: u32::from(offer.lane),
        number: offer.number,
        slot: u32::from(offer.slot.number()),
        claim: Some(to_claim(&offer.claim)),
        members: to_replica_set(&offer.members),
        is_confirmed: offer.is_confirmed,
        before: offer.previous.as_ref().map_or_else(Vec::new, to_replica_set),
        digest: Bytes::copy_from_slice(&offer.digest.to_bytes()),
    }
}

pub(crate) fn commit_indexes(
    from: &proto::ReplicatedStable,
    bounds: PlausibleBounds,
) -> Read<Vec<CommitIndex>> {
    let index = |of: &proto::StableSlot| {
        Ok(CommitIndex { slot: slot(of.slot)?, epoch: bounds.epoch(of.epoch)?, number: of.number })
    };
    from.slots.iter().map(index).collect()
}

pub(crate) fn to_commit_indexes(slots: &[CommitIndex]) -> proto::ReplicatedStable {
    let slots = slots.iter().map(|of| proto::StableSlot {
        slot: u32::from(of.slot.number()),
        epoch: of.epoch.0,
        number: of.number,
    });
    proto::ReplicatedStable { slots: slots.collect() }
}

/// Reads an owner's lease renewals, with the claims: all of them are its own.
pub(crate) fn lease_renewal(
    from: &proto::ReplicatedRenewal,
    owner: &Member,
    bounds: PlausibleBounds,
) -> Read<Vec<LeaseRenewal>> {
    if from.slots.len() > usize::from(SLOTS) {
        return Err(Malformed("slots").into());
    }
    let renewal = |of: &proto::SlotRenewal| {
        let claim = Claim::new(bounds.epoch(of.epoch)?, owner);
        Ok(LeaseRenewal { slot: slot(of.slot)?, claim, age: of.age_ms })
    };
    from.slots.iter().map(renewal).collect()
}

pub(crate) fn to_lease_renewal(slots: &[LeaseRenewal]) -> proto::ReplicatedRenewal {
    let slots = slots.iter().map(|of| proto::SlotRenewal {
        slot: u32::from(of.slot.number()),
        epoch: of.claim.epoch.0,
        age_ms: of.age,
    });
    proto::ReplicatedRenewal { slots: slots.collect() }
}

pub(crate) fn refused(
    from: &proto::ReplicaRenewed,
    bounds: PlausibleBounds,
) -> Read<BTreeMap<Slot, Option<Claim>>> {
    if from.refused.len() > usize::from(SLOTS) {
        return Err(Malformed("refused").into());
    }
    let refused = |of: &proto::RenewalRefused| {
        let by = of.by.as_ref().map(|by| claim(Some(by), bounds)).transpose()?;
        Ok((slot(of.slot)?, by))
    };
    from.refused.iter().map(refused).collect()
}

pub(crate) fn to_refused(refused: &BTreeMap<Slot, Option<Claim>>) -> proto::ReplicaRenewed {
    let refused = refused.iter().map(|(slot, by)| proto::RenewalRefused {
        slot: u32::from(slot.number()),
        by: by.as_ref().map(to_claim),
    });
    proto::ReplicaRenewed { refused: refused.collect() }
}

pub(crate) fn part_refused(
    from: proto::PartRefused,
    me: &Member,
    bounds: PlausibleBounds,
) -> Read<RefusedPart> {
    let why = match from.why.ok_or(Malformed("why"))? {
        proto::part_refused::Why::Promised(by) => WhyRefused::Promised(claim(Some(&by), bounds)?),
        proto::part_refused::Why::Invalid(reason) => WhyRefused::Invalid(reason),
    };
    let claim = claim_of(me, from.claim.as_ref(), bounds)?;
    Ok(RefusedPart { slot: slot(from.slot)?, claim, why })
}

pub(crate) fn to_part_refused(RefusedPart { slot, claim, why }: RefusedPart) -> proto::PartRefused {
    let why = match why {
        WhyRefused::Promised(by) => proto::part_refused::Why::Promised(to_claim(&by)),
        WhyRefused::Invalid(reason) => proto::part_refused::Why::Invalid(reason),
    };
    proto::PartRefused { slot: u32::from(slot.number()), claim: Some(to_claim(&claim)), why: Some(why) }
}

pub(crate) fn slot_knowledge(from: &proto::SlotKnown, bounds: PlausibleBounds) -> Read<SlotKnowledge> {
    let placement = placement(from.placement.as_ref(), bounds)?;
    Ok(SlotKnowledge { accepted: bounds.epoch(from.accepted)?, placement, is_owned: from.is_owned })
}

pub(crate) fn to_slot_knowledge(known: &SlotKnowledge) -> proto::SlotKnown {
    proto::SlotKnown {
        accepted: known.accepted.0,
        placement: known.placement.as_ref().map(to_placement),
        is_owned: known.is_owned,
    }
}

/// Reads the slots that a digest checkpoint covers, and their digest.
pub(crate) fn digest_checkpoint(from: &proto::ReplicatedMark) -> Read<(BTreeSet<Slot>, NodeDigest)> {
    Ok((slots(&from.slots)?, NodeDigest(hash(&from.digest, "digest")?)))
}

pub(crate) fn to_digest_checkpoint(mark: &DigestCheckpoint) -> proto::ReplicatedMark {
    let digests: BTreeMap<Slot, Digest> = mark.digests.iter().copied().collect();
    proto::ReplicatedMark {
        lane: u32::from(mark.lane),
        number: mark.number,
        slots: to_slots(digests.keys()),
        digest: Bytes::copy_from_slice(&NodeDigest::of(&digests).0.0),
    }
}

pub(crate) fn compare_request(from: proto::CompareAsk) -> Read<CompareRequest> {
    use proto::compare_ask::Ask as From;
    Ok(match from.ask.ok_or(Malformed("ask"))? {
        From::Node(node) => CompareRequest::Node {
            slots: slots(&node.slots)?,
            digest: NodeDigest(hash(&node.digest, "digest")?),
        },
        From::Buckets(buckets) => CompareRequest::Buckets { slots: slots(&buckets.slots)? },
        From::Contexts(contexts) => {
            if contexts.buckets.len() > usize::from(SLOTS) {
                return Err(Malformed("buckets").into());
            }
            let buckets = contexts.buckets.iter().map(|of| {
                Ok((slot(of.slot)?, of.buckets.iter().copied().map(Bucket).collect::<BTreeSet<_>>()))
            });
            let after = (!contexts.after.is_empty()).then(|| context(&contexts.after)).transpose()?;
            CompareRequest::Contexts { buckets: buckets.collect::<Read<_>>()?, after }
        }
        From::Roots(roots) => {
            if roots.contexts.len() > MAX_COMPARED
                || roots.contexts.iter().any(|of| of.sizes.len() > MAX_SIZES)
            {
                return Err(Malformed("roots").into());
            }
            let prefixes = roots.contexts.into_iter().map(|of| {
                let sizes = of.sizes.into_iter().map(plausible::size).collect::<Result<_, _>>()?;
                Ok(RootsRequest { context: context(&of.context_id)?, sizes })
            });
            CompareRequest::Roots(prefixes.collect::<Read<_>>()?)
        }
    })
}

pub(crate) fn to_compare_request(to: &Member, ask: &CompareRequest) -> proto::CompareAsk {
    use proto::compare_ask::Ask as To;
    let ask = match ask {
        CompareRequest::Node { slots, digest } => To::Node(proto::CompareNode {
            slots: to_slots(slots),
            digest: Bytes::copy_from_slice(&digest.0.0),
        }),
        CompareRequest::Buckets { slots } => To::Buckets(proto::CompareBuckets { slots: to_slots(slots) }),
        CompareRequest::Contexts { buckets, after } => To::Contexts(proto::CompareContexts {
            buckets: buckets
                .iter()
                .map(|(slot, buckets)| proto::SlotBuckets {
                    slot: u32::from(slot.number()),
                    buckets: buckets.iter().map(|bucket| bucket.0).collect::<Vec<_>>().into(),
                })
                .collect(),
            after: after.as_ref().map_or_else(String::new, |after| after.as_str().to_owned()),
        }),
        CompareRequest::Roots(prefixes) => To::Roots(proto::CompareRoots {
            contexts: prefixes
                .iter()
                .map(|of| proto::ContextSizes {
                    context_id: of.context.as_str().to_owned(),
                    sizes: of.sizes.iter().map(|size| size.0).collect(),
                })
                .collect(),
        }),
    };
    proto::CompareAsk { to: Some(to_member(to)), ask: Some(ask), knows_unreadable: true }
}

pub(crate) fn compare_response(from: proto::CompareAnswer) -> Read<CompareResponse> {
    use proto::compare_answer::Answer as From;
    let names_unreadable = from.names_unreadable;
    Ok(match from.answer.ok_or(Malformed("answer"))? {
        From::InStep(_) => CompareResponse::InSync,
        From::Slots(of) => {
            let slots = slots(&of.slots)?;
            let digests = digests(&of.digests, slots.len())?;
            CompareResponse::Slots(slots.into_iter().zip(digests).collect())
        }
        From::Buckets(of) => {
            let buckets = of.slots.iter().take(usize::from(SLOTS)).map(|of| {
                let digests = digests(&of.digests, of.buckets.len())?;
                Ok((slot(of.slot)?, of.buckets.iter().copied().map(Bucket).zip(digests).collect()))
            });
            CompareResponse::Buckets(buckets.collect::<Read<_>>()?)
        }
        From::Contexts(page) => {
            let contexts = page.contexts.into_iter().take(MAX_PAGE + 1).map(|of| {
                let context = context(&of.context_id)?;
                if of.is_unreadable {
                    return Ok(ListedContext::Unreadable(context));
                }
                let (size, root) = (plausible::size(of.size)?, hash(&of.root, "root")?);
                Ok(ListedContext::Present(ContextSummary { context, size, root, epoch: Epoch(of.epoch) }))
            });
            CompareResponse::Contexts(Page { contexts: contexts.collect::<Read<_>>()?, more: page.more })
        }
        From::Roots(of) => {
            let roots = of.contexts.into_iter().take(MAX_COMPARED + 1).map(|of| {
                let (chunks, rest) = of.roots.as_chunks::<32>();
                if !rest.is_empty() {
                    return Err(Malformed("roots").into());
                }
                // An older build sends the same for absent, shorter and unreadable contexts.
                if of.is_unreadable || (!names_unreadable && chunks.is_empty()) {
                    return Ok(Roots::Unreadable);
                }
                if of.is_absent {
                    return Ok(Roots::Absent);
                }
                Ok(Roots::At(chunks.iter().map(|root| Hash(*root)).collect()))
            });
            CompareResponse::Roots(roots.collect::<Read<_>>()?)
        }
    })
}

pub(crate) fn to_compare_response(answer: CompareResponse) -> proto::CompareAnswer {
    use proto::compare_answer::Answer as To;
    let answer = match answer {
        CompareResponse::InSync => To::InStep(proto::SlotNothing {}),
        CompareResponse::Slots(slots) => To::Slots(proto::SlotDigests {
            slots: to_slots(slots.keys()),
            digests: to_digests(slots.values()),
        }),
        CompareResponse::Buckets(slots) => To::Buckets(proto::BucketDigests {
            slots: slots
                .iter()
                .map(|(slot, buckets)| proto::SlotBucketDigests {
                    slot: u32::from(slot.number()),
                    buckets: buckets.keys().map(|bucket| bucket.0).collect::<Vec<_>>().into(),
                    digests: to_digests(buckets.values()),
                })
                .collect(),
        }),
        CompareResponse::Contexts(page) => To::Contexts(proto::ContextPage {
            contexts: page
                .contexts
                .iter()
                .map(|listed| match listed {
                    ListedContext::Present(of) => proto::ContextExtent {
                        context_id: of.context.as_str().to_owned(),
                        size: of.size.0,
                        root: Bytes::copy_from_slice(&of.root.0),
                        epoch: of.epoch.0,
                        is_unreadable: false,
                    },
                    ListedContext::Unreadable(context) => proto::ContextExtent {
                        context_id: context.as_str().to_owned(),
                        is_unreadable: true,
                        ..proto::ContextExtent::default()
                    },
                })
                .collect(),
            more: page.more,
        }),
        CompareResponse::Roots(contexts) => To::Roots(proto::ContextRoots {
            contexts: contexts
                .iter()
                .map(|roots| match roots {
                    Roots::At(roots) => proto::ContextRootList {
                        roots: roots.iter().flat_map(|root| root.0).collect::<Vec<_>>().into(),
                        ..proto::ContextRootList::default()
                    },
                    Roots::Absent => {
                        proto::ContextRootList { is_absent: true, ..proto::ContextRootList::default() }
                    }
                    Roots::Unreadable => {
                        proto::ContextRootList { is_unreadable: true, ..proto::ContextRootList::default() }
                    }
                })
                .collect(),
        }),
    };
    proto::CompareAnswer { answer: Some(answer), names_unreadable: true }
}

/// Returns whether a response reports something as unreadable.
pub(crate) fn has_unreadable(answer: &CompareResponse) -> bool {
    match answer {
        CompareResponse::Contexts(page) => {
            page.contexts.iter().any(|listed| matches!(listed, ListedContext::Unreadable(_)))
        }
        CompareResponse::Roots(roots) => roots.contains(&Roots::Unreadable),
        CompareResponse::InSync | CompareResponse::Slots(_) | CompareResponse::Buckets(_) => false,
    }
}

fn to_digests<'a>(digests: impl Iterator<Item = &'a Digest>) -> Bytes {
    digests.flat_map(Digest::to_bytes).collect::<Vec<_>>().into()
}
