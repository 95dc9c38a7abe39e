//! Operators' decisions to continue without members that are lost for good, and their outcomes. See
//! [`ledger_core::ownership::recovery`].
//!
//! A node stores a decision on disk before it acts on it, and likewise the evidence of what each slot continued with.
//! Nodes exchange all decisions forever, because a member that was declared lost may return. Every node that knows
//! refuses such a member, as one that forgot its promises, and sends it the reason. The member then takes a new
//! identity, keeps its entries, and joins as a new member; where its histories differ, they go to the forks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ledger_core::{
    Epoch,
    digest::Digest,
    node::Member,
    ownership::{Claim, DeclaredLosses, Recovery, RecoveryApproval, slot_manager::Event},
    slot::Slot,
};
use ledger_proto::ledger::v1::{
    HeardMember, RecoveredSlotRecord, RecoveriesTold, RecoveryApprovalRecord, RecoveryRecord,
    RecoveryRecords, replica_service_client::ReplicaServiceClient,
};
use ledger_store::{Ledger, StoreError, limited};
use parking_lot::RwLock;
use prost::Message as _;
use tokio::{
    sync::watch,
    time::{interval, timeout},
};

use crate::{
    cluster::Cluster,
    membership::{Membership, RolledBack},
    ownership::stale_volume,
    peers::wire,
    shared::Shared,
};

pub(crate) mod listing;

/// The attribute that stores the decisions in the data directory.
const ATTRIBUTE: &str = "recoveries";
/// Most decisions that are stored.
const MAX_DECISIONS: usize = 32;
/// Most members that one decision declares lost.
pub const MAX_LOST: usize = 512;
/// Longest reason, in bytes.
pub const MAX_REASON: usize = 1024;
/// Most bytes of all decisions, because one message between nodes carries them.
const MAX_BYTES: usize = 8 << 20;
/// How often this node checks whether a peer has yet to be notified.
const NOTIFY_INTERVAL: Duration = Duration::from_secs(1);
/// How long a notification may take.
const NOTIFY_TIMEOUT: Duration = Duration::from_secs(5);

/// An operator's decision and its outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// A random id.
    pub id: [u8; 16],
    /// When it was made: wall-clock time, nanoseconds since the Unix epoch.
    pub decided_at_ns: u64,
    /// The operator's reason.
    pub reason: String,
    /// The members that were declared lost.
    pub lost: BTreeSet<Member>,
    /// The slots that may continue without them.
    pub approved: BTreeMap<Slot, RecoveryApproval>,
    /// What slots continued with.
    pub slots: BTreeMap<(Slot, Claim), RecoveryEvidence>,
}

/// What a slot continued with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecoveryEvidence {
    /// Which members were missing, and which responded.
    pub recovery: Recovery,
    /// Digest of the adopted content.
    pub digest: Digest,
    /// When: wall-clock time, nanoseconds since the Unix epoch.
    pub recovered_at_ns: u64,
}

/// Why a node does not continue without lost members.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RecoverError {
    /// A member that was declared lost is alive.
    #[error(
        "{0} answers, so it is not lost: have it leave with `ledgerctl cluster decommission`, if it is to go"
    )]
    Alive(Member),
    /// A member that was not declared lost is absent and may know more.
    #[error(
        "{0} does not answer and was not declared lost: it may hold entries, or know of members, that nobody else does; start it, \
         or declare it lost too"
    )]
    Silent(Member),
    /// A node cannot store the decision.
    #[error("the disk of {0} takes no writes: make room first, for it has to promise too")]
    Full(Member),
    /// The decision is invalid.
    #[error("{0}")]
    Malformed(&'static str),
    /// There were too many decisions.
    #[error(
        "there were {MAX_DECISIONS} decisions like this already, and no more are kept: copy what the nodes hold into a new cluster"
    )]
    TooMany,
    /// The decision cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// All decisions that a node knows.
#[derive(Debug, Default)]
pub(crate) struct Decisions {
    known: RwLock<Vec<Decision>>,
    /// Serializes writers, so that none replaces a newer version on disk.
    turn: tokio::sync::Mutex<()>,
    /// The combined effect of all decisions.
    declared: watch::Sender<Arc<DeclaredLosses>>,
}

impl Decisions {
    /// Reads the decisions from the data directory. Blocks.
    pub(crate) fn read(ledger: &Ledger) -> Result<Self, StoreError> {
        let malformed = |error: &dyn std::fmt::Display| {
            StoreError::Io(format!("the note of recoveries is malformed: {error}"))
        };
        let decisions = Self::default();
        if let Some(note) = ledger.node_attribute(ATTRIBUTE)? {
            let records = RecoveryRecords::decode(note.as_slice()).map_err(|error| malformed(&error))?;
            let known = records.recoveries.iter().map(decision).collect::<Result<Vec<_>, _>>();
            *decisions.known.write() = known.map_err(|error| malformed(&error))?;
            decisions.say();
        }
        Ok(decisions)
    }

    fn say(&self) {
        let mut declared = DeclaredLosses::default();
        for decision in &*self.known.read() {
            declared.lost.extend(decision.lost.iter().cloned());
            for (slot, approval) in &decision.approved {
                let known = declared.slots.entry(*slot).or_insert_with(|| approval.clone());
                if known.placed_in < approval.placed_in {
                    known.clone_from(approval);
                }
            }
        }
        self.declared.send_if_modified(|known| {
            let is_new = **known != declared;
            if is_new {
                *known = Arc::new(declared);
            }
            is_new
        });
    }

    /// Watches the combined effect of all decisions.
    pub(crate) fn declared(&self) -> watch::Receiver<Arc<DeclaredLosses>> {
        self.declared.subscribe()
    }

    /// Returns all decisions, the oldest first.
    pub(crate) fn all(&self) -> Vec<Decision> {
        self.known.read().clone()
    }

    /// Merges decisions and outcomes into the known ones; they are on disk before they take effect. Returns whether
    /// any of them was new.
    async fn take(&self, ledger: &Ledger, more: Vec<Decision>) -> Result<bool, RecoverError> {
        let _turn = self.turn.lock().await;
        let mut all = self.all();
        let mut is_new = false;
        for decision in more {
            let Some(known) = all.iter_mut().find(|known| known.id == decision.id) else {
                all.push(decision);
                is_new = true;
                continue;
            };
            for (of, evidence) in decision.slots {
                is_new |= known.slots.insert(of, evidence.clone()).as_ref() != Some(&evidence);
            }
            let before = (known.lost.len(), known.approved.len());
            known.lost.extend(decision.lost);
            for (slot, approval) in decision.approved {
                known.approved.entry(slot).or_insert(approval);
            }
            is_new |= (known.lost.len(), known.approved.len()) != before;
        }
        if !is_new {
            return Ok(false);
        }
        all.sort_by_key(|decision| (decision.decided_at_ns, decision.id));
        let note = RecoveryRecords { recoveries: all.iter().map(to_record).collect() }.encode_to_vec();
        if all.len() > MAX_DECISIONS || note.len() > MAX_BYTES {
            return Err(RecoverError::TooMany);
        }
        let ledger = ledger.clone();
        let kept =
            ledger_store::blocking::spawn(move || ledger.set_node_attribute(ATTRIBUTE, Some(&note))).await;
        kept.unwrap_or_else(|error| Err(StoreError::Io(error.to_string())))?;
        *self.known.write() = all;
        self.say();
        Ok(true)
    }
}

fn now_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    u64::try_from(now).unwrap_or(u64::MAX)
}

impl Cluster {
    /// Returns the decisions that this node knows, the oldest first.
    pub fn recoveries(&self) -> Vec<Decision> {
        self.shared.decisions.all()
    }

    /// Continues without lost members. The decision is on disk when this returns, and slots that can continue do so
    /// afterwards.
    ///
    /// # Errors
    /// [`RecoverError`] if a member is not lost, another absent one may know more, or the decision cannot be stored.
    pub async fn recover(&self, decision: Decision) -> Result<(), RecoverError> {
        check(&decision)?;
        let view = Arc::clone(&self.shared.view.borrow());
        listing::may_recover(&view, &listing::gone(&self.shared, &decision.lost), &decision.lost)?;
        let names: Vec<String> = decision.lost.iter().map(Member::to_string).collect();
        let id = hex::encode(decision.id);
        self.shared.decisions.take(&self.shared.ledger, vec![decision.clone()]).await?;
        tracing::error!(id, lost = ?names, reason = decision.reason, "an operator declared members lost for good: slots that have too few others go on with what is left, and nobody can know what else was acknowledged");
        Ok(())
    }
}

fn check(decision: &Decision) -> Result<(), RecoverError> {
    if decision.lost.is_empty() {
        return Err(RecoverError::Malformed("no member is declared lost: there is nothing to go on without"));
    }
    if decision.lost.len() > MAX_LOST {
        return Err(RecoverError::Malformed("too many members are declared lost"));
    }
    if decision.reason.len() > MAX_REASON || decision.reason.chars().any(char::is_control) {
        return Err(RecoverError::Malformed(
            "the reason must have at most 1024 bytes, and no control characters",
        ));
    }
    Ok(())
}

/// Records which slots continued without members, on disk before they do. A node that cannot record this does not own
/// them.
pub(crate) async fn record(
    shared: &Shared,
    recovered: Vec<(Slot, Claim, Recovery)>,
) -> Result<(), RecoverError> {
    let slots = recovered.iter().map(|(slot, ..)| *slot).collect();
    let digests = shared.ledger.digests(slots).await?;
    let mut known = shared.decisions.all();
    let missing: BTreeSet<String> =
        recovered.iter().flat_map(|(.., recovery)| recovery.missing.iter().map(Member::to_string)).collect();
    tracing::error!(
        slots = recovered.len(),
        ?missing,
        "slots go on here with what is left of them: `ledgerctl cluster recover --history` shows each"
    );
    for (slot, claim, recovery) in recovered {
        // The newest decision that names a missing member.
        let is_of =
            |decision: &&mut Decision| recovery.missing.iter().any(|member| decision.lost.contains(member));
        if let Some(decision) = known.iter_mut().rev().find(is_of) {
            let digest = digests.get(&slot).copied().unwrap_or_default();
            let evidence = RecoveryEvidence { recovery, digest, recovered_at_ns: now_ns() };
            decision.slots.insert((slot, claim), evidence);
        }
    }
    shared.decisions.take(&shared.ledger, known).await.map(drop)
}

/// Notifies the driver and the peers of decisions, as long as the node runs.
pub(crate) async fn run(shared: Arc<Shared>, membership: Arc<Membership>) {
    let mut declared = shared.decisions.declared();
    let mut tick = interval(NOTIFY_INTERVAL);
    let mut notified: BTreeMap<Member, Vec<Decision>> = BTreeMap::new();
    declared.mark_changed();
    loop {
        tokio::select! {
            changed = declared.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = Arc::clone(&declared.borrow_and_update());
                membership.set_lost(Arc::clone(&now));
                if now.lost.contains(&shared.me) {
                    return declared_lost(&shared).await;
                }
                if *now != DeclaredLosses::default() {
                    shared.send_events(vec![Event::LossesDeclared(DeclaredLosses::clone(&now))]).await;
                }
            }
            _ = tick.tick() => notify_peers(&shared, &mut notified).await,
        }
    }
}

async fn notify_peers(shared: &Arc<Shared>, notified: &mut BTreeMap<Member, Vec<Decision>>) {
    let known = shared.decisions.all();
    if known.is_empty() {
        return;
    }
    let view = Arc::clone(&shared.view.borrow());
    notified.retain(|member, _| view.get(&member.node).is_some_and(|now| now.storage_id == member.storage));
    // Include members that were declared lost, because they must learn of it.
    let peers = view.alive().map(wire::member_of).filter(|member| *member != shared.me);
    let peers: Vec<Member> = peers.filter(|member| notified.get(member) != Some(&known)).collect();
    let requests = peers.into_iter().map(|peer| async move {
        let answer = timeout(NOTIFY_TIMEOUT, notify_peer(shared, &peer)).await;
        (peer, answer.unwrap_or_else(|_| Err("no answer in time".to_owned())))
    });
    for (peer, answer) in futures::future::join_all(requests).await {
        match answer {
            Ok(()) => _ = notified.insert(peer, known.clone()),
            Err(reason) => tracing::debug!(%peer, reason, "a peer could not be told of recoveries"),
        }
    }
}

/// Sends a peer all decisions, and takes all that it knows.
async fn notify_peer(shared: &Arc<Shared>, to: &Member) -> Result<(), String> {
    let peer = shared.peers.get(to).ok_or("it is not known")?;
    let mut client =
        ReplicaServiceClient::new(shared.peers.channel(&peer)?).max_decoding_message_size(2 * MAX_BYTES);
    let message = RecoveriesTold { to: Some(wire::to_member(to)), ..known_decisions(shared) };
    let answer = client.recoveries(message).await.map_err(|status| status.to_string())?;
    take(shared, &answer.into_inner()).await.map_err(|error| error.to_string())
}

/// Returns all decisions that this node knows, as a message.
pub(crate) fn known_decisions(shared: &Shared) -> RecoveriesTold {
    let recoveries = shared.decisions.all().iter().map(to_record).collect();
    RecoveriesTold { from: Some(wire::to_member(&shared.me)), to: None, recoveries }
}

/// Takes the decisions that a peer sent.
pub(crate) async fn take(shared: &Shared, message: &RecoveriesTold) -> Result<(), RecoverError> {
    let malformed = |_| RecoverError::Malformed("a peer tells of recoveries that make no sense");
    let decisions =
        message.recoveries.iter().map(decision).collect::<Result<Vec<_>, _>>().map_err(malformed)?;
    for decision in &decisions {
        check(decision)?;
    }
    if shared.decisions.take(&shared.ledger, decisions).await? {
        limited!(warn, "another node told of members that an operator declared lost for good");
    }
    Ok(())
}

/// Re-identifies this node's directory, which was declared lost while the node was away: its promises no longer
/// count.
async fn declared_lost(shared: &Arc<Shared>) {
    let opened = shared.config.facts.opened.unwrap_or_default();
    stale_volume::reidentify(shared, RolledBack { opened, heard: RolledBack::DECLARED_LOST }).await;
}

fn decision(from: &RecoveryRecord) -> Result<Decision, wire::RejectedMessage> {
    let id = from.id.as_ref().try_into().map_err(|_| wire::Malformed("id"))?;
    let members = |members: &[_]| members.iter().map(|member| wire::member(Some(member))).collect();
    let lost: Result<Vec<Member>, _> = members(&from.lost);
    let approved = from.approvals.iter().map(|row| {
        let heir = row.heir.as_ref().map(|heir| wire::member(Some(heir))).transpose()?;
        let (set, previous) = (wire::replica_set(&row.members)?, wire::previous_set(&row.before)?);
        let approval = RecoveryApproval { placed_in: Epoch(row.placed_in), members: set, previous, heir };
        Ok::<_, wire::RejectedMessage>((wire::slot(row.slot)?, approval))
    });
    let slots = from.slots.iter().map(|row| {
        let heard = row.heard.iter().map(|heard| {
            Ok::<_, wire::RejectedMessage>((wire::member(heard.member.as_ref())?, Epoch(heard.accepted)))
        });
        let recovery =
            Recovery { missing: members(&row.missing)?, responded: heard.collect::<Result<_, _>>()? };
        let digest = row.digest.as_ref().try_into().map_err(|_| wire::Malformed("digest"))?;
        let evidence = RecoveryEvidence {
            recovery,
            digest: Digest::from_bytes(digest),
            recovered_at_ns: row.recovered_at_ns,
        };
        Ok::<_, wire::RejectedMessage>(((wire::slot(row.slot)?, claim(row)?), evidence))
    });
    Ok(Decision {
        id,
        decided_at_ns: from.decided_at_ns,
        reason: from.reason.clone(),
        lost: lost?.into_iter().collect(),
        approved: approved.collect::<Result<_, _>>()?,
        slots: slots.collect::<Result<_, _>>()?,
    })
}

/// Reads a claim without checking whether it is plausible: it is evidence, and nothing depends on it.
fn claim(row: &RecoveredSlotRecord) -> Result<Claim, wire::Malformed> {
    let claim = row.claim.as_ref().ok_or(wire::Malformed("claim"))?;
    wire::claim_in(Epoch(claim.epoch), claim)
}

fn to_record(decision: &Decision) -> RecoveryRecord {
    let row = |((slot, claim), evidence): (&(Slot, Claim), &RecoveryEvidence)| {
        let Recovery { missing, responded } = &evidence.recovery;
        let heard = responded.iter().map(|(member, accepted)| HeardMember {
            member: Some(wire::to_member(member)),
            accepted: accepted.0,
        });
        RecoveredSlotRecord {
            slot: slot.number().into(),
            claim: Some(wire::to_claim(claim)),
            missing: missing.iter().map(wire::to_member).collect(),
            heard: heard.collect(),
            digest: evidence.digest.to_bytes().to_vec().into(),
            recovered_at_ns: evidence.recovered_at_ns,
        }
    };
    let approvals = decision.approved.iter().map(|(slot, approval)| RecoveryApprovalRecord {
        slot: slot.number().into(),
        placed_in: approval.placed_in.0,
        heir: approval.heir.as_ref().map(wire::to_member),
        members: wire::to_replica_set(&approval.members),
        before: approval.previous.as_ref().map(wire::to_replica_set).unwrap_or_default(),
    });
    RecoveryRecord {
        approvals: approvals.collect(),
        id: decision.id.to_vec().into(),
        decided_at_ns: decision.decided_at_ns,
        reason: decision.reason.clone(),
        lost: decision.lost.iter().map(wire::to_member).collect(),
        slots: decision.slots.iter().map(row).collect(),
    }
}

#[cfg(test)]
mod tests {
    use ledger_core::node::{NodeId, ReplicaSet, StorageId};

    use super::*;

    fn member(number: u8) -> Member {
        Member { node: NodeId::new(format!("n-{number}")).unwrap(), storage: StorageId([number; 16]) }
    }

    fn approval(placed_in: u64, members: &[u8], before: &[u8], heir: Option<Member>) -> RecoveryApproval {
        let set = |members: &[u8]| ReplicaSet::new(members.iter().copied().map(member));
        RecoveryApproval {
            placed_in: Epoch(placed_in),
            members: set(members).unwrap(),
            previous: set(before).ok(),
            heir,
        }
    }

    fn decided(id: u8, lost: &[u8]) -> Decision {
        Decision {
            id: [id; 16],
            decided_at_ns: u64::from(id),
            reason: "two volumes are gone".to_owned(),
            lost: lost.iter().copied().map(member).collect(),
            approved: BTreeMap::from([
                (Slot::new(3).unwrap(), approval(5, &[1, 2], &[], None)),
                (Slot::new(4).unwrap(), approval(6, &[2, 3], &[3, 4], Some(member(1)))),
            ]),
            slots: BTreeMap::new(),
        }
    }

    fn with_evidence(mut decision: Decision) -> Decision {
        let claim = Claim::new(Epoch::new(70_000, 1), &member(1));
        let recovery = Recovery { missing: vec![member(2)], responded: vec![(member(1), Epoch(5))] };
        let evidence = RecoveryEvidence { recovery, digest: Digest::default(), recovered_at_ns: 9 };
        decision.slots.insert((Slot::new(3).unwrap(), claim), evidence);
        decision
    }

    #[tokio::test]
    async fn decisions_are_kept_each_once_with_all_that_came_of_them() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let decisions = Decisions::read(&ledger).unwrap();
        assert!(decisions.take(&ledger, vec![decided(2, &[2, 3])]).await.unwrap());
        assert!(
            decisions
                .take(&ledger, vec![decided(1, &[4]), with_evidence(decided(2, &[2, 3]))])
                .await
                .unwrap()
        );
        assert!(!decisions.take(&ledger, vec![decided(2, &[2])]).await.unwrap(), "it says nothing new");
        let all = [decided(1, &[4]), with_evidence(decided(2, &[2, 3]))];
        assert_eq!(decisions.all(), all);
        let again = Decisions::read(&ledger).unwrap();
        assert_eq!(again.all(), all, "after a restart");
        assert_eq!(again.declared().borrow().lost, [2, 3, 4].map(member).into());
        assert_eq!(again.declared().borrow().slots, decided(1, &[]).approved);
    }

    #[tokio::test]
    async fn no_more_decisions_are_kept_than_there_is_room_for() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let decisions = Decisions::read(&ledger).unwrap();
        let most = u8::try_from(MAX_DECISIONS).unwrap();
        let many = |count: u8| (0..count).map(|id| decided(id, &[id])).collect::<Vec<_>>();
        assert!(decisions.take(&ledger, many(most)).await.unwrap());
        let refused = decisions.take(&ledger, many(most + 1)).await.unwrap_err();
        assert!(matches!(refused, RecoverError::TooMany), "{refused}");
        assert_eq!(decisions.all().len(), MAX_DECISIONS);
    }

    #[test]
    fn what_a_peer_says_is_checked() {
        for wrong in [
            Decision { reason: "x".repeat(MAX_REASON + 1), ..decided(1, &[1]) },
            Decision { reason: "\u{1b}[2J".to_owned(), ..decided(1, &[1]) },
            decided(1, &[]),
        ] {
            assert!(check(&wrong).is_err(), "{wrong:?}");
        }
        assert!(
            decision(&RecoveryRecord { id: vec![1; 15].into(), ..to_record(&decided(1, &[1])) }).is_err()
        );
        let known = with_evidence(decided(1, &[1, 2]));
        assert_eq!(decision(&to_record(&known)).unwrap(), known);
    }
}
