//! Which cluster this node belongs to, and whether incoming messages are of that one.
//!
//! A cluster has an identity from the moment its first slot is formed ([`ClusterId::of`]). It is in every data
//! directory and in every datagram. A node with an identity accepts nothing from another cluster and sends nothing to
//! it, even if names and keys are equal. A node without one joins a cluster that it hears of:
//!
//! | the directory | joins |
//! | --- | --- |
//! | knows no members of any slot | the first cluster it hears of |
//! | knows some, written by a build without identities, or is about to form a cluster | the one that one of these members, or of those heard with them, announces |
//! | is about to form a cluster | that cluster, whoever announces its identity: the identity is computed from those that form it, and some may have lost their directories meanwhile |

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
/// How often the log reports that another cluster is there.
const SAID_EVERY: Duration = Duration::from_mins(1);
/// Another cluster counts as gone when it was not heard for this long.
const GONE_AFTER: Duration = Duration::from_mins(5);

/// The cluster that this node belongs to, or may join.
#[derive(Debug, Default)]
pub struct Identity {
    state: Mutex<IdentityState>,
    wanted: watch::Sender<Option<JoinTarget>>,
}

#[derive(Debug, Default)]
struct IdentityState {
    cluster: Option<ClusterId>,
    /// The nodes that this one knows, if it knows members of any slot; empty otherwise.
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

/// A cluster that this node may join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JoinTarget {
    /// Its identity.
    pub id: ClusterId,
    /// Data directory of the node that announced it.
    pub said_by: StorageId,
}

/// A cluster with the same name and key as this one and another identity, which this node hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OtherCluster {
    /// Its identity.
    pub id: ClusterId,
    /// Last address from which one of its nodes was heard.
    pub from: SocketAddr,
}

/// Where a message came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DatagramOrigin {
    /// This cluster, or a node that belongs to none yet.
    This,
    /// The cluster that this node is about to join: ignore the message, because the sender repeats it later.
    Joining,
    /// Another cluster. `say`: this node has an identity, and it is time to notify the sender of it.
    Other { say: bool },
}

impl Identity {
    /// Returns this node's cluster, if it belongs to one.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.state.lock().cluster
    }

    /// Sets the cluster that this node belongs to.
    pub(crate) fn set_cluster(&self, id: ClusterId) {
        self.state.lock().cluster = Some(id);
    }

    /// Sets the nodes that this one knows, if it knows members of any slot, including itself; and the cluster that it
    /// was about to form.
    pub(crate) fn set_known_nodes(&self, members: BTreeSet<StorageId>, forming: Option<ClusterId>) {
        let mut state = self.state.lock();
        (state.known, state.forming) = (members, forming);
    }

    /// Watches the cluster that this node is about to join.
    pub(crate) fn wanted(&self) -> watch::Receiver<Option<JoinTarget>> {
        self.wanted.subscribe()
    }

    /// Returns the other clusters that are heard.
    pub fn others(&self) -> Vec<OtherCluster> {
        let (now, mut state) = (Instant::now(), self.state.lock());
        state.others.retain(|_, heard| now < heard.at + GONE_AFTER);
        state.others.iter().map(|(id, heard)| OtherCluster { id: *id, from: heard.from }).collect()
    }

    /// Classifies a message by the cluster of its sender, if the sender belongs to one; `said_by` is the sender's
    /// data directory.
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
            None if theirs.is_credible(&said_by, &state.known, state.forming) => {
                let wanted = Some(JoinTarget { id: theirs, said_by });
                self.wanted.send_if_modified(|known| std::mem::replace(known, wanted) != wanted);
                DatagramOrigin::Joining
            }
            _ => DatagramOrigin::Other { say: state.hear(theirs, from) },
        }
    }
}

impl IdentityState {
    /// Records that another cluster was heard. Returns whether to notify the sender.
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
