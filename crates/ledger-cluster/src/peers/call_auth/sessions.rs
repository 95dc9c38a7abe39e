//! Remembers which calls were accepted already: each number of a session once.
//!
//! A session is named by a nonce of each side. This side's nonce is the same for all sessions. When there are too
//! many sessions, this side draws another nonce, and all sessions begin again. So an accepted number is remembered
//! for as long as it could be replayed, in bounded memory. Only a caller that has the cluster's key gets a session
//! remembered.

use std::collections::HashMap;

use ledger_core::call_proof::Nonce;
use parking_lot::Mutex;

/// Most sessions: one for each connection of each node, and one for each operator's call.
const MAX_SESSIONS: usize = 1024;
/// A call number this far below the highest one is refused as too late.
const REPLAY_WINDOW: u64 = 1024;

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionError {
    /// The session was of an earlier nonce: the caller must greet again.
    Expired,
    /// The number was accepted before, or is so old that it may have been.
    Replayed,
}

/// The sessions of one node.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// This side's nonce; `None` before the first greeting.
    nonce: Option<Nonce>,
    windows: HashMap<Nonce, ReplayWindow>,
}

/// The accepted numbers of a session: the highest, and those within a window below it.
#[derive(Debug)]
struct ReplayWindow {
    highest: u64,
    /// One bit for each number, at its remainder.
    taken: [u64; (REPLAY_WINDOW / 64) as usize],
}

impl Sessions {
    /// Returns this side's nonce; `fresh` becomes it if there is none.
    pub(crate) fn nonce(&self, fresh: Nonce) -> Nonce {
        *self.state.lock().nonce.get_or_insert(fresh)
    }

    /// Returns whether a session is current. This needs no proof, so call it before checking one.
    pub(crate) fn is_current(&self, called: &Nonce) -> bool {
        self.state.lock().nonce.as_ref() == Some(called)
    }

    /// Accepts a call whose proof was checked.
    pub(crate) fn take(&self, caller: &Nonce, called: &Nonce, number: u64) -> Result<(), SessionError> {
        let mut state = self.state.lock();
        if state.nonce.as_ref() != Some(called) {
            return Err(SessionError::Expired);
        }
        if state.windows.len() >= MAX_SESSIONS && !state.windows.contains_key(caller) {
            *state = State::default();
            return Err(SessionError::Expired);
        }
        let window = state.windows.entry(*caller).or_insert_with(ReplayWindow::new);
        if window.take(number) { Ok(()) } else { Err(SessionError::Replayed) }
    }
}

impl ReplayWindow {
    const fn new() -> Self {
        Self { highest: 0, taken: [0; (REPLAY_WINDOW / 64) as usize] }
    }

    /// Accepts a number that was not accepted before. The first is 1.
    fn take(&mut self, number: u64) -> bool {
        if number == 0 || self.highest.saturating_sub(number) >= REPLAY_WINDOW {
            return false;
        }
        if number > self.highest {
            if number - self.highest >= REPLAY_WINDOW {
                self.taken.fill(0);
            } else {
                (self.highest + 1..number).for_each(|skipped| *self.word(skipped) &= !bit(skipped));
                *self.word(number) &= !bit(number);
            }
            self.highest = number;
        }
        let word = self.word(number);
        let is_new = *word & bit(number) == 0;
        *word |= bit(number);
        is_new
    }

    fn word(&mut self, number: u64) -> &mut u64 {
        &mut self.taken[(number % REPLAY_WINDOW / 64) as usize]
    }
}

const fn bit(number: u64) -> u64 {
    1 << (number % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_call_is_taken_once_and_in_its_session_only() {
        let sessions = Sessions::default();
        assert_eq!(sessions.take(&[1; 16], &[0; 16], 1), Err(SessionError::Expired), "nobody greeted");
        let called = sessions.nonce([7; 16]);
        assert_eq!(sessions.nonce([8; 16]), called);
        assert!(sessions.is_current(&called) && !sessions.is_current(&[8; 16]));
        assert_eq!(sessions.take(&[1; 16], &called, 1), Ok(()));
        assert_eq!(sessions.take(&[1; 16], &called, 1), Err(SessionError::Replayed));
        assert_eq!(sessions.take(&[2; 16], &called, 1), Ok(()));
        assert_eq!(sessions.take(&[1; 16], &[8; 16], 2), Err(SessionError::Expired));
        assert_eq!(sessions.take(&[1; 16], &called, 0), Err(SessionError::Replayed));
    }

    #[test]
    fn with_too_many_sessions_all_begin_anew() {
        let sessions = Sessions::default();
        let called = sessions.nonce([7; 16]);
        for caller in 0..MAX_SESSIONS as u128 {
            assert_eq!(sessions.take(&caller.to_be_bytes(), &called, 1), Ok(()));
        }
        assert_eq!(sessions.take(&[0xff; 16], &called, 1), Err(SessionError::Expired));
        assert_eq!(
            sessions.take(&[0; 16], &called, 1),
            Err(SessionError::Expired),
            "nothing of before comes again"
        );
        assert_eq!(sessions.nonce([8; 16]), [8; 16]);
    }

    proptest! {
        #[test]
        fn no_number_is_taken_twice_and_those_nearby_are_taken_once(
            numbers in prop::collection::vec(prop_oneof![1..40u64, 1..3000u64, Just(u64::MAX)], 1..300)
        ) {
            let (mut window, mut taken, mut highest) = (ReplayWindow::new(), BTreeSet::new(), 0u64);
            for number in numbers {
                highest = highest.max(number);
                let is_new = taken.insert(number);
                let is_near = highest.saturating_sub(number) < REPLAY_WINDOW;
                prop_assert_eq!(window.take(number), is_new && is_near, "{}", number);
            }
        }
    }
}
