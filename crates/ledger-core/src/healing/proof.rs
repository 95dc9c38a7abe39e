//! What proves that a history is the one that a node lost.

use std::collections::BTreeMap;

use crate::{
    ContextId,
    digest::{Digest, TreeHead},
    ownership::Claim,
};

/// What proves that a history is right. The strongest that is left counts: a readable head, else the digest, else the
/// claim of the slot's owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HealProof {
    /// This node's own head, which can be read.
    Head,
    /// The head is lost. The digest that this node kept of the context's bucket counted it. The other node's tree heads
    /// of the contexts in that bucket stand in for the heads that cannot be read here.
    Digest(BTreeMap<ContextId, TreeHead>),
    /// The history is the one of the slot's owner.
    Claim {
        /// The owner's claim, which this node promised.
        claim: Claim,
        /// Whether the owner has everything that was ever acknowledged: m is more than half of the members.
        is_complete: bool,
    },
}

/// Returns whether the digest that a node kept of a bucket proves that `context` had exactly this tree head.
///
/// A digest is a sum. If all other contexts of the bucket are known, only one tree head of this one completes it.
/// `others` are the other contexts of the bucket, each with its tree head, or `None` if that cannot be read. For those
/// `remote` counts, the tree heads that the other node reports; the same equation proves them. A context without
/// entries has size 0, and counts for nothing.
pub fn proves_by_digest(
    kept: Digest,
    context: &ContextId,
    head: TreeHead,
    others: impl IntoIterator<Item = (ContextId, Option<TreeHead>)>,
    remote: &BTreeMap<ContextId, TreeHead>,
) -> bool {
    let mut digest = Digest::default();
    digest.add(context, head);
    for (other, known) in others {
        if other == *context {
            continue;
        }
        match known.or_else(|| remote.get(&other).copied()) {
            Some(head) if head.size.0 > 0 => digest.add(&other, head),
            Some(_) => {}
            None => return false,
        }
    }
    digest == kept
}
