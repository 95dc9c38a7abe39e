//! What always holds between two calls of the machine.

use super::{SlotCommits, Visibility};

impl<W, A, Q> SlotCommits<W, A, Q> {
    /// Checks what always holds. It takes as long as there are slots and commits that wait, so only simulations and tests
    /// call it.
    ///
    /// # Errors
    ///
    /// What does not hold.
    pub fn check(&self) -> Result<(), String> {
        self.pending.check(self.newest_commit)?;
        for (slot, in_sync, pending) in self.pending.slots() {
            let Some(ownership) = self.owned(slot) else {
                return Err(format!("{pending} commits to {slot:?} wait, and this node does not own it"));
            };
            if !in_sync.without(ownership.accepted).is_empty() {
                return Err(format!("peers count for {slot:?} that did not accept it, or refused a part"));
            }
        }
        for (slot, state) in &self.slots {
            if state.ownership.as_ref().is_some_and(|ownership| !ownership.is_consistent()) {
                return Err(format!(
                    "{slot:?} is served after a higher promise, or accepted by peers that are not sent it"
                ));
            }
            if state.accepted_at.is_some() && state.visibility == Visibility::Hidden {
                return Err(format!("{slot:?} was accepted and is hidden"));
            }
            if state.accepted_at.is_none() && state.visibility == Visibility::Withheld {
                return Err(format!("{slot:?} is withheld and nothing can show it"));
            }
        }
        for slot in self.uncommitted.slots() {
            if self.visibility(slot) == Visibility::Hidden {
                return Err(format!("{slot:?} is hidden and its writes are withheld one by one"));
            }
        }
        Ok(())
    }
}
