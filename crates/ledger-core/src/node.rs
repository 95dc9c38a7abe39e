//! Nodes, the disks they stand on, and the replica set of a slot.

use std::{collections::BTreeSet, fmt, sync::Arc};

/// Longest name of a node, bytes: that of a DNS name (RFC 1035 §2.3.4, as text).
pub const MAX_NODE_ID: usize = 253;
/// Most members of a replica set.
pub const MAX_REPLICAS: usize = 7;

/// Why a text is not a node's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NodeIdError {
    /// The name is empty.
    #[error("node_id is empty: it must have 1 to {MAX_NODE_ID} bytes")]
    Empty,
    /// The name is too long.
    #[error("node_id has {len} bytes: at most {MAX_NODE_ID} are allowed")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// The name holds a character that names of nodes don't have.
    #[error(
        "node_id has the character {found:?} at byte {at}: only ASCII letters, digits, '.', '_' and '-' are allowed"
    )]
    Character {
        /// The character.
        found: char,
        /// Its offset in bytes.
        at: usize,
    },
}

/// The stable name of a node, such as its pod's: 1 to 253 bytes of ASCII letters, digits, `.`, `_` and `-`.
/// Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Checks and takes a name.
    ///
    /// # Errors
    ///
    /// [`NodeIdError`] if the name is empty, has more than 253 bytes, or has a character that is not allowed.
    pub fn new(text: impl AsRef<str>) -> Result<Self, NodeIdError> {
        let text = text.as_ref();
        if text.is_empty() {
            return Err(NodeIdError::Empty);
        }
        if text.len() > MAX_NODE_ID {
            return Err(NodeIdError::TooLong { len: text.len() });
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        match text.char_indices().find(|(_, c)| !allowed(*c)) {
            Some((at, found)) => Err(NodeIdError::Character { found, at }),
            None => Ok(Self(text.into())),
        }
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Identity of a data directory, made when it is formatted. Shown as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StorageId(pub [u8; 16]);

impl StorageId {
    /// Reads 32 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).ok().map(|()| Self(id))
    }
}

/// Identity of a cluster that has formed, whatever it is called: no two have the same. Shown as 32 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    /// Makes the identity of the cluster whose first slot these members formed. All of them accepted each other, and none
    /// accepted others before, so it is one for all who know that the slot was formed; and as storage ids are random, so is
    /// it.
    pub fn of(first: &ReplicaSet) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("converge-ledger cluster id v1");
        for Member { node, storage } in first.members() {
            hasher.update(&(node.as_str().len() as u64).to_be_bytes());
            hasher.update(node.as_str().as_bytes());
            hasher.update(&storage.0);
        }
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        Self(id)
    }

    /// Returns whether a node that belongs to no cluster believes this identity of the node with the data directory `said_by`:
    /// it knows no members of any slot, or that one, or it was about to form this very cluster.
    pub fn is_credible(
        self,
        said_by: &StorageId,
        known: &BTreeSet<StorageId>,
        forming: Option<Self>,
    ) -> bool {
        known.is_empty() || known.contains(said_by) || forming == Some(self)
    }

    /// Reads 32 hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut id = [0; 16];
        hex::decode_to_slice(text, &mut id).ok().map(|()| Self(id))
    }
}

/// Counts the starts of a node. The node keeps it on disk and never starts twice with the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Incarnation(pub u64);

/// A member of a replica set. A wiped disk is a new member, so that it never answers for promises it forgot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Member {
    /// The node.
    pub node: NodeId,
    /// The data directory it had when it became a member.
    pub storage: StorageId,
}

/// Why members do not form a replica set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplicaSetError {
    /// There is no member.
    #[error("the replica set has no member: it must have 1 to {MAX_REPLICAS}")]
    Empty,
    /// There are too many members.
    #[error("the replica set has more than {MAX_REPLICAS} members: name fewer nodes")]
    TooMany,
    /// A node is there twice, with one data directory or with two.
    #[error("node {node} is in the replica set twice: name each node once")]
    Duplicate {
        /// The node.
        node: NodeId,
    },
}

/// How many promises a takeover needs before the claimant may own the slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromiseQuorum {
    /// From this many members, the claimant included.
    AtLeast(usize),
    /// From every member that is alive: acknowledgements need so few copies that no smaller number would
    /// be sure to meet them.
    EveryLive,
}

/// The members that keep a slot: 1 to 7 of them, each node once, in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReplicaSet(Vec<Member>);

impl ReplicaSet {
    /// Makes the set of these members, in whatever order they come.
    ///
    /// # Errors
    ///
    /// [`ReplicaSetError`] if there is no member, if there are more than [`MAX_REPLICAS`], or if a node is there twice.
    pub fn new(members: impl IntoIterator<Item = Member>) -> Result<Self, ReplicaSetError> {
        // One more than allowed is enough to refuse it: the rest is never taken.
        let mut members: Vec<_> = members.into_iter().take(MAX_REPLICAS + 1).collect();
        if members.is_empty() {
            return Err(ReplicaSetError::Empty);
        }
        if members.len() > MAX_REPLICAS {
            return Err(ReplicaSetError::TooMany);
        }
        members.sort_unstable();
        match members.windows(2).find(|pair| pair[0].node == pair[1].node) {
            Some(pair) => Err(ReplicaSetError::Duplicate { node: pair[0].node.clone() }),
            None => Ok(Self(members)),
        }
    }

    /// Returns the members, in the order of their names.
    pub fn members(&self) -> &[Member] {
        &self.0
    }

    /// Returns the number of members, at least 1.
    #[expect(clippy::len_without_is_empty, reason = "a replica set is never empty")]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether this node with this data directory is a member.
    pub fn contains(&self, member: &Member) -> bool {
        self.0.contains(member)
    }

    /// Returns the member that a node is, whatever its data directory is now.
    pub fn get(&self, node: &NodeId) -> Option<&Member> {
        self.0.iter().find(|member| member.node == *node)
    }

    /// Returns how many members must know that they are the members, if owners acknowledge appends at `min_copies` copies and
    /// `alive` members are alive. It is more than half of them: otherwise a lost disk could take the only knowledge, and the
    /// others would never find each other. Where availability comes first, those alive must do.
    pub fn members_that_must_know(&self, min_copies: usize, alive: usize) -> usize {
        let most = self.len() / 2 + 1;
        min_copies.max(most.min(alive)).clamp(1, self.len())
    }

    /// Returns how many promises a takeover needs when appends are acknowledged at `min_copies` copies.
    ///
    /// With m copies of R members, any R − m + 1 members include one of the m that acknowledged. If m is
    /// more than R / 2, that is at most half of R + 1, so it can be had while some members are away. With
    /// fewer copies (availability first) there is no fixed number.
    pub fn promise_quorum(&self, min_copies: usize) -> PromiseQuorum {
        let members = self.len();
        if min_copies > members / 2 {
            // More copies than members are never reached, and must not make takeovers need none.
            PromiseQuorum::AtLeast((members + 1).saturating_sub(min_copies).max(1))
        } else {
            PromiseQuorum::EveryLive
        }
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({self})")
    }
}

impl fmt::Display for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for StorageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StorageId({self})")
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClusterId({self})")
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The node's name and its data directory's id, as `name/id`.
impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.node, self.storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, storage: u8) -> Member {
        Member { node: NodeId::new(name).unwrap(), storage: StorageId([storage; 16]) }
    }

    fn set_of(size: usize) -> ReplicaSet {
        ReplicaSet::new((0..size).map(|i| member(&format!("n{i}"), 0))).unwrap()
    }

    #[test]
    fn a_node_id_names_what_is_wrong_with_it() {
        assert_eq!(NodeId::new("ledger-0.ledger_svc.Prod").unwrap().to_string(), "ledger-0.ledger_svc.Prod");
        assert!(NodeId::new("x".repeat(253)).is_ok());
        let long = "x".repeat(254);
        for (text, part) in
            [("", "empty"), ("a b", "' ' at byte 1"), ("knä", "'ä' at byte 2"), (&long, "254")]
        {
            let message = NodeId::new(text).unwrap_err().to_string();
            assert!(message.starts_with("node_id") && message.contains(part), "{message}");
        }
    }

    #[test]
    fn a_storage_id_is_read_as_it_is_shown() {
        let id = StorageId([0xa7; 16]);
        assert_eq!(StorageId::parse(&id.to_string()), Some(id));
        for text in ["", "a7", &"g".repeat(32), &"a".repeat(34)] {
            assert_eq!(StorageId::parse(text), None);
        }
    }

    #[test]
    fn a_cluster_has_the_identity_of_its_first_members_and_no_other() {
        let id = ClusterId::of(&set_of(3));
        assert_eq!(ClusterId::parse(&id.to_string()), Some(id));
        let others = [
            set_of(2),
            set_of(4),
            ReplicaSet::new([member("n0", 0), member("n1", 0), member("n2", 1)]).unwrap(),
            ReplicaSet::new([member("n0", 0), member("n1", 0), member("n3", 0)]).unwrap(),
        ];
        assert!(others.iter().all(|other| ClusterId::of(other) != id));
        let again = ReplicaSet::new([member("n2", 0), member("n0", 0), member("n1", 0)]).unwrap();
        assert_eq!(ClusterId::of(&again), id);
    }

    #[test]
    fn a_replica_set_is_the_same_in_any_order() {
        let set = ReplicaSet::new([member("b", 2), member("a", 1)]).unwrap();
        assert_eq!(set, ReplicaSet::new([member("a", 1), member("b", 2)]).unwrap());
        assert!(set.contains(&member("a", 1)));
        assert!(!set.contains(&member("a", 9)), "a wiped disk is not the member it was");
        assert_eq!(set.get(&NodeId::new("a").unwrap()), Some(&member("a", 1)));
    }

    #[test]
    fn a_replica_set_refuses_none_too_many_and_a_node_twice() {
        assert_eq!(ReplicaSet::new([]), Err(ReplicaSetError::Empty));
        assert_eq!(set_of(7).len(), 7);
        let endless = (0..u64::MAX).map(|i| member(&format!("n{i}"), 0));
        assert_eq!(ReplicaSet::new(endless), Err(ReplicaSetError::TooMany));
        let twice = ReplicaSet::new([member("a", 1), member("b", 1), member("a", 2)]);
        assert_eq!(twice, Err(ReplicaSetError::Duplicate { node: NodeId::new("a").unwrap() }));
    }

    #[test]
    fn more_than_half_know_the_members_or_all_that_are_alive() {
        for size in 1..=MAX_REPLICAS {
            let set = set_of(size);
            for (copies, alive) in (1..=size).flat_map(|copies| (0..=size).map(move |alive| (copies, alive)))
            {
                let knowing = set.members_that_must_know(copies, alive);
                assert!((copies..=size).contains(&knowing));
                assert_eq!(2 * knowing > size, 2 * copies > size || 2 * alive > size);
            }
        }
        assert_eq!(
            set_of(3).members_that_must_know(1, 3),
            2,
            "a lost disk does not take the only record along"
        );
        assert_eq!(set_of(3).members_that_must_know(1, 1), 1);
    }

    #[test]
    fn acknowledgements_and_takeovers_share_a_member() {
        for size in 1..=MAX_REPLICAS {
            let set = set_of(size);
            for copies in 0..=size {
                match set.promise_quorum(copies) {
                    PromiseQuorum::AtLeast(promises) => {
                        assert!(2 * copies > size);
                        assert_eq!(copies + promises, size + 1);
                    }
                    PromiseQuorum::EveryLive => assert!(2 * copies <= size),
                }
            }
            assert_eq!(set.promise_quorum(size + 1), PromiseQuorum::AtLeast(1));
            assert_eq!(set.promise_quorum(usize::MAX), PromiseQuorum::AtLeast(1));
        }
        assert_eq!(set_of(3).promise_quorum(2), PromiseQuorum::AtLeast(2));
        assert_eq!(set_of(1).promise_quorum(1), PromiseQuorum::AtLeast(1));
    }
}
