//! Splits a message into parts that fit into a datagram, and joins parts into a message again.
//!
//! | bytes | content |
//! | --- | --- |
//! | 4 | number of the message, big-endian, chosen by the sender |
//! | 1 | index of this part, from 0 |
//! | 1 | number of parts, 1 to [`MAX_PARTS`] |
//! | rest | the part: 1 to [`PART`] bytes |

use std::{collections::VecDeque, net::SocketAddr};

use crate::{membership::limits::MAX_DATAGRAM, membership::seal};

/// Most bytes of a message in one part. The sender's storage id precedes it, see [`super::identity_message`].
pub const PART: usize = MAX_DATAGRAM - seal::OVERHEAD - HEADER - 16;
/// Most bytes in a part of a cluster without an identity, which carries neither the identity nor the storage id.
const LONGEST: usize = PART + 32;
/// Most parts of a message.
pub const MAX_PARTS: usize = 64;
/// Most messages that may wait for parts at a time; beyond that, the oldest is discarded.
pub const MAX_PARTIAL_MESSAGES: usize = 64;

const HEADER: usize = 6;

// chitchat's longest message, a few bytes over its 65 507, fits.
const _: () = assert!(PART * MAX_PARTS > 65_600 && MAX_PARTS <= 64);

/// Splits a message into parts with headers; `None` if the message is too long.
pub fn split(id: u32, message: &[u8]) -> Option<Vec<Vec<u8>>> {
    let chunks = message.chunks(PART);
    let count = u8::try_from(chunks.len()).ok().filter(|&count| usize::from(count) <= MAX_PARTS)?;
    Some(chunks.zip(0u8..).map(|(chunk, at)| [&id.to_be_bytes()[..], &[at, count], chunk].concat()).collect())
}

/// The outcome of receiving a part.
#[derive(Debug, PartialEq, Eq)]
pub enum PartOutcome {
    /// The part completed this message.
    Message(Vec<u8>),
    /// More parts are needed.
    Incomplete {
        /// Number of older messages that were discarded to make space.
        dropped: u64,
    },
    /// It is not a part, or contradicts an earlier one.
    Malformed,
}

#[derive(Debug)]
struct PartialMessage {
    from: SocketAddr,
    id: u32,
    /// The parts by index; empty until a part arrives.
    parts: Vec<Vec<u8>>,
}

/// Messages of which some parts arrived. Holds at most [`MAX_PARTIAL_MESSAGES`] × [`MAX_PARTS`] × [`PART`] bytes (5
/// MB).
#[derive(Debug, Default)]
pub struct Assembler {
    waiting: VecDeque<PartialMessage>,
}

impl Assembler {
    /// Receives a part. Accepts any bytes.
    pub fn take(&mut self, from: SocketAddr, payload: &[u8]) -> PartOutcome {
        let Some((&[a, b, c, d, at, count], part)) = payload.split_first_chunk::<HEADER>() else {
            return PartOutcome::Malformed;
        };
        let (id, at, count) = (u32::from_be_bytes([a, b, c, d]), usize::from(at), usize::from(count));
        if at >= count || count > MAX_PARTS || part.is_empty() || part.len() > LONGEST {
            return PartOutcome::Malformed;
        }
        if count == 1 {
            return PartOutcome::Message(part.to_vec());
        }
        let known = self.waiting.iter().position(|waiting| waiting.from == from && waiting.id == id);
        let mut dropped = 0;
        let index = known.unwrap_or_else(|| {
            if self.waiting.len() == MAX_PARTIAL_MESSAGES {
                self.waiting.pop_front();
                dropped = 1;
            }
            self.waiting.push_back(PartialMessage { from, id, parts: vec![Vec::new(); count] });
            self.waiting.len() - 1
        });
        let Some(waiting) = self.waiting.get_mut(index).filter(|waiting| waiting.parts.len() == count) else {
            return PartOutcome::Malformed;
        };
        // `at` is below `count`. A repeated part counts once.
        waiting.parts[at] = part.to_vec();
        if waiting.parts.iter().any(Vec::is_empty) {
            return PartOutcome::Incomplete { dropped };
        }
        match self.waiting.remove(index) {
            Some(whole) => PartOutcome::Message(whole.parts.concat()),
            None => PartOutcome::Malformed,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    #[test]
    fn a_short_message_is_one_part() {
        let parts = split(7, b"hello").unwrap();
        assert_eq!(parts, [b"\0\0\0\x07\0\x01hello".to_vec()]);
        assert_eq!(Assembler::default().take(peer(1), &parts[0]), PartOutcome::Message(b"hello".to_vec()));
    }

    #[test]
    fn a_message_beyond_the_limit_is_not_split() {
        assert!(split(0, &vec![1; PART * MAX_PARTS]).is_some());
        assert!(split(0, &vec![1; PART * MAX_PARTS + 1]).is_none());
    }

    #[test]
    fn messages_of_several_peers_do_not_mix() {
        let mut assembler = Assembler::default();
        let (one, two) = (split(7, &[1; PART + 1]).unwrap(), split(7, &[2; PART + 1]).unwrap());
        assert_eq!(assembler.take(peer(1), &one[0]), PartOutcome::Incomplete { dropped: 0 });
        assert_eq!(assembler.take(peer(2), &two[1]), PartOutcome::Incomplete { dropped: 0 });
        assert_eq!(assembler.take(peer(1), &one[1]), PartOutcome::Message(vec![1; PART + 1]));
        assert_eq!(assembler.take(peer(2), &two[0]), PartOutcome::Message(vec![2; PART + 1]));
        assert!(assembler.waiting.is_empty());
    }

    #[test]
    fn what_never_completes_is_given_up_and_counted() {
        let mut assembler = Assembler::default();
        for id in 0..MAX_PARTIAL_MESSAGES as u32 {
            let part = &split(id, &[1; PART + 1]).unwrap()[0];
            assert_eq!(assembler.take(peer(1), part), PartOutcome::Incomplete { dropped: 0 });
        }
        let part = &split(1_000, &[1; PART + 1]).unwrap()[0];
        assert_eq!(assembler.take(peer(1), part), PartOutcome::Incomplete { dropped: 1 });
        assert_eq!(assembler.waiting.len(), MAX_PARTIAL_MESSAGES);
    }

    #[test]
    fn a_part_that_contradicts_itself_or_another_is_malformed() {
        let mut assembler = Assembler::default();
        for bad in [
            &b""[..],
            b"\0\0\0\0\0",
            b"\0\0\0\0\0\x01",
            b"\0\0\0\0\x01\x01x",
            b"\0\0\0\0\0\0x",
            b"\0\0\0\0\0\xffx",
        ] {
            assert_eq!(assembler.take(peer(1), bad), PartOutcome::Malformed);
        }
        assert_eq!(assembler.take(peer(1), b"\0\0\0\0\0\x02x"), PartOutcome::Incomplete { dropped: 0 });
        assert_eq!(assembler.take(peer(1), b"\0\0\0\0\x01\x03x"), PartOutcome::Malformed);
        assert_eq!(assembler.take(peer(1), b"\0\0\0\0\x01\x02y"), PartOutcome::Message(b"xy".to_vec()));
    }

    proptest! {
        #[test]
        fn parts_in_any_order_make_the_message(len in 1..PART * 5, seed in any::<u64>()) {
            let message: Vec<u8> = (0..len).map(|i| (i * 31) as u8).collect();
            let mut parts = split(seed as u32, &message).unwrap();
            let turn = seed as usize % parts.len();
            parts.rotate_left(turn);
            let last = parts.pop().unwrap();
            let mut assembler = Assembler::default();
            for part in parts.iter().chain(&parts) {
                prop_assert_eq!(assembler.take(peer(1), part), PartOutcome::Incomplete { dropped: 0 });
            }
            prop_assert_eq!(assembler.take(peer(1), &last), PartOutcome::Message(message));
        }

        #[test]
        fn any_bytes_may_come_in(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..50)) {
            let mut assembler = Assembler::default();
            for payload in payloads {
                assembler.take(peer(1), &payload);
            }
        }
    }
}
