//! What a fetched range must satisfy before a node stages it.

use super::HealRefusal;
use crate::{Size, digest::TreeHead};

/// Checks a range of entries that another node sent, by the tree heads before and after it. `staged` is what is staged
/// so far and `goal` the tree head that the whole history must reach. If a load brought the entries, they belong
/// together up to `together`. That each entry matches its hash, and the entries the root, the caller has checked.
///
/// # Errors
/// [`HealRefusal::OtherHistory`] if the range does not continue what is staged, goes beyond the goal, or reaches it with
/// another root.
pub fn check_staged(
    goal: TreeHead,
    staged: TreeHead,
    after: TreeHead,
    end: TreeHead,
    together: Option<Size>,
) -> Result<(), HealRefusal> {
    let furthest = end.size.max(together.unwrap_or_default());
    let is_wrong = after != staged
        || end.size <= after.size
        || furthest > goal.size
        || (end.size == goal.size && end.root != goal.root);
    if is_wrong { Err(HealRefusal::OtherHistory) } else { Ok(()) }
}
