//! From whom a node restores a damaged context.

use std::fmt;

use crate::node::{Member, NodeId};

/// Where the entries of a restored history come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealSource {
    /// This node's own entries: the damage may be in what is computed from them (tiles, summaries, ids).
    Local,
    /// Another member of the slot.
    Member(Member),
}

impl fmt::Display for HealSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("its own entries"),
            Self::Member(member) => write!(f, "{member}"),
        }
    }
}

/// Returns the sources of a slot's contexts, in the order in which a node tries them: its own entries, which cost no
/// network; then the owner, which has all that is committed; then the other members.
pub fn heal_sources(me: &Member, members: &[Member], owner: Option<&NodeId>) -> Vec<HealSource> {
    let mut others: Vec<&Member> = members.iter().filter(|member| *member != me).collect();
    others.sort_by_key(|member| Some(&member.node) != owner);
    std::iter::once(HealSource::Local).chain(others.into_iter().cloned().map(HealSource::Member)).collect()
}
