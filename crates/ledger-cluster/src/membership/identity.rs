//! To which cluster this node belongs, and whether what comes from outside is of that one.
//!
//! A cluster has an identity from the moment its first slot is formed ([`ClusterId::of`]); it is in every data directory and in
//! every datagram. A node that has one takes nothing from another cluster, whatever both are called and whatever keys they have,
//! and says nothing to it. A node that has none comes to belong to the one that it hears of:
//!
//! | the directory | belongs to |
//! | --- | --- |
//! | knows no members of any slot | whichever it hears of first |
//! | knows some, of a build that knew of no identity, or is about to form a cluster | the one that one of these, or of those heard with them, says |
//! | is about to form a cluster | that one, whoever says its identity: it is made of the identities of those who form it, of which some may have lost their directories meanwhile |

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::{Duration, Instant},
};

use ledger_core::node::{ClusterId, StorageId};
use parking_lot::Mutex;
use tokio::sync::watch;

/// Most other clusters that are remembered.
const MAX_OTHERS: usize = 16;
/// How often it is said that another cluster is there.
const SAID_EVERY: Duration = Duration::from_mins(1);
/// Another cluster that was not heard for so long is gone.
const GONE_AFTER: Duration = Duration::from_mins(5);

/// To which cluster this node belongs, or may come to.
#[derive(Debug, Default)]
pub struct Identity {
    state: Mutex<IdentityState>,
    wanted: watch::Sender<Option<JoinTarget>>,
}

#[derive(Debug, Default)]
struct IdentityState {
    cluster: Option<ClusterId>,
    /// Nodes that this one knows, if it knows members of any slot; empty: it does not.
    known: BTreeSet<StorageId>,
    /// The cluster that this node was about to form.
    forming: Option<ClusterId>,
    others: BTreeMap<ClusterId, SightedCluster>,
}

#[derive(Debug)]
struct SightedCluster {
    from: SocketAddr,
    at: Instant,
    said: Option<Instant>,
}

/// A cluster that this node may come to belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinTarget {
    /// Its identity.
    pub id: ClusterId,
    /// The data directory of the node that said so.
    pub said_by: StorageId,
}

/// A node of another cluster is heard, though both have one name and one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherCluster {
    /// Its identity.
    pub id: ClusterId,
    /// Where a node of it was heard last.
    pub from: SocketAddr,
}

/// What becomes of what came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DatagramOrigin {
    /// It is of this cluster, or of a node that belongs to none yet.
    This,
    /// It is of the cluster that this node is about to belong to: it is said again when it does.
    Joining,
    /// It is of another cluster; with the identity of this one, if it has one, if it is time to say so.
    Other { say: bool },
}

impl Identity {
    /// This node's cluster, if it belongs to one.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.state.lock().cluster
    }

    /// This node belongs to a cluster, from now on.
    pub(crate) fn set_cluster(&self, id: ClusterId) {
        self.state.lock().cluster = Some(id);
    }

    /// The nodes that this one knows, if it knows members of any slot, itself among them; and the cluster that it was about to
    /// form.
    pub(crate) fn set_known_nodes(&self, members: BTreeSet<StorageId>, forming: Option<ClusterId>) {
        let mut state = self.state.lock();
        (state.known, state.forming) = (members, forming);
    }

    /// What this node is about to belong to, from now on.
    pub(crate) fn wanted(&self) -> watch::Receiver<Option<JoinTarget>> {
        self.wanted.subscribe()
    }

    /// Other clusters that are heard.
    pub fn others(&self) -> Vec<OtherCluster> {
        let (now, mut state) = (Instant::now(), self.state.lock());
        state.others.retain(|_, heard| now < heard.at + GONE_AFTER);
        state.others.iter().map(|(id, heard)| OtherCluster { id: *id, from: heard.from }).collect()
    }

    /// Judges what was sent in a cluster, if the sender belongs to one; `said_by` is its data directory.
    pub(crate) fn classify(
        &self,
        theirs: Option<ClusterId>,
        said_by: StorageId,
        from: SocketAddr,
    ) -> DatagramOrigin {
        let Some(theirs) = theirs else { return DatagramOrigin::This };
        let mut state = self.state.lock();
        match state.cluster {
            Some(ours) if ours == theirs => DatagramOrigin::This,
            None if state.known.is_empty()
                || state.known.contains(&said_by)
                || state.forming == Some(theirs) =>
            {
                let wanted = Some(JoinTarget { id: theirs, said_by });
                self.wanted.send_if_modified(|known| std::mem::replace(known, wanted) != wanted);
                DatagramOrigin::Joining
            }
            _ => DatagramOrigin::Other { say: state.hear(theirs, from) },
        }
    }
}

impl IdentityState {
    /// Notes that another cluster was heard; whether to say so.
    fn hear(&mut self, id: ClusterId, from: SocketAddr) -> bool {
        let now = Instant::now();
        if self.others.len() >= MAX_OTHERS && !self.others.contains_key(&id) {
            let oldest = self.others.iter().min_by_key(|(_, heard)| heard.at).map(|(id, _)| *id);
            oldest.and_then(|oldest| self.others.remove(&oldest));
        }
        let heard = self.others.entry(id).or_insert(SightedCluster { from, at: now, said: None });
        (heard.from, heard.at) = (from, now);
        let is_time = heard.said.is_none_or(|said| now >= said + SAID_EVERY);
        if is_time {
            heard.said = Some(now);
        }
        is_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClusterId = ClusterId([0xa; 16]);
    const B: ClusterId = ClusterId([0xb; 16]);
    const MEMBER: StorageId = StorageId([1; 16]);
    const STRANGER: StorageId = StorageId([2; 16]);

    fn judge(identity: &Identity, theirs: Option<ClusterId>, said_by: StorageId) -> DatagramOrigin {
        identity.classify(theirs, said_by, ([10, 0, 0, 1], 7946).into())
    }

    fn wanted(identity: &Identity) -> Option<ClusterId> {
        identity.wanted().borrow().map(|wanted| wanted.id)
    }

    #[test]
    fn who_belongs_to_a_cluster_takes_nothing_from_another() {
        let identity = Identity::default();
        identity.set_cluster(A);
        assert_eq!(judge(&identity, Some(A), STRANGER), DatagramOrigin::This);
        assert_eq!(judge(&identity, None, STRANGER), DatagramOrigin::This, "it may come to belong");
        assert_eq!(judge(&identity, Some(B), MEMBER), DatagramOrigin::Other { say: true });
        assert_eq!(
            judge(&identity, Some(B), MEMBER),
            DatagramOrigin::Other { say: false },
            "not with each datagram"
        );
        assert_eq!(identity.others().iter().map(|other| other.id).collect::<Vec<_>>(), [B]);
        assert_eq!(wanted(&identity), None);
    }

    #[test]
    fn who_belongs_to_none_comes_to_belong_to_the_first_that_it_hears() {
        let identity = Identity::default();
        assert_eq!(judge(&identity, None, STRANGER), DatagramOrigin::This);
        assert_eq!(judge(&identity, Some(A), STRANGER), DatagramOrigin::Joining);
        assert_eq!(wanted(&identity), Some(A));
        identity.set_cluster(A);
        assert_eq!(judge(&identity, Some(B), STRANGER), DatagramOrigin::Other { say: true });
        assert_eq!(wanted(&identity), Some(A));
    }

    #[test]
    fn who_knows_members_believes_these_only() {
        let identity = Identity::default();
        identity.set_known_nodes([MEMBER].into(), None);
        assert_eq!(judge(&identity, Some(B), STRANGER), DatagramOrigin::Other { say: true });
        assert_eq!(wanted(&identity), None);
        assert_eq!(judge(&identity, Some(A), MEMBER), DatagramOrigin::Joining);
        assert_eq!(wanted(&identity), Some(A));
    }

    #[test]
    fn who_was_about_to_form_a_cluster_knows_its_identity_whoever_says_it() {
        let identity = Identity::default();
        identity.set_known_nodes([MEMBER].into(), Some(A));
        assert_eq!(judge(&identity, Some(B), STRANGER), DatagramOrigin::Other { say: true });
        assert_eq!(judge(&identity, Some(A), STRANGER), DatagramOrigin::Joining);
        assert_eq!(wanted(&identity), Some(A));
    }

    #[test]
    fn no_more_others_are_remembered_than_there_is_room_for() {
        let identity = Identity::default();
        identity.set_cluster(A);
        for number in 0..100 {
            judge(&identity, Some(ClusterId([number + 20; 16])), STRANGER);
        }
        assert_eq!(identity.others().len(), MAX_OTHERS);
    }
}
