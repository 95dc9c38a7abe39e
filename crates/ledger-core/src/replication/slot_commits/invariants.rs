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
            let (_, stream_peers) = ownership.claim_and_stream_peers();
            if !in_sync.without(stream_peers).is_empty() {
                return Err(format!("peers count for {slot:?} that are not sent it"));
            }
        }
        for (slot, state) in &self.slots {
            if state.ownership.as_ref().is_some_and(|ownership| !ownership.is_consistent()) {
                return Err(format!("{slot:?} is served though a higher claim was promised"));
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
