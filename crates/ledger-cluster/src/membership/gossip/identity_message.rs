//! Messages that nodes exchange beside gossip, in a datagram of their own: a refusal, and a query for who runs under
//! a name.
//!
//! Their header differs from that of a part of a gossip message, because it has no parts ([`super::parts`]): four
//! zero bytes, the kind, zero. Text follows, one line for each field.

use std::{net::SocketAddr, str::Lines};

use ledger_core::node::{Incarnation, NodeId, StorageId};

use crate::membership::facts::MAX_TEXT;

/// A message beside gossip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdentityMessage {
    /// The receiver's datagram was of another cluster. This datagram itself carries the sender's identity.
    Refused,
    /// Asks who runs under a name. The response repeats the number.
    WhoIs { number: u64, node: NodeId },
    /// Reports who does, as far as the sender knows.
    Is { number: u64, found: Option<RunningNode> },
}

/// A process that runs under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunningNode {
    /// Identity of its data directory.
    pub storage: StorageId,
    /// Its start number.
    pub incarnation: Incarnation,
    /// Its gossip address.
    pub gossip: SocketAddr,
    /// Its gRPC address.
    pub grpc: String,
    /// Whether it responds for itself, and takes part.
    pub is_itself: bool,
}

const REFUSED: u8 = 1;
const ASK: u8 = 2;
const ANSWER: u8 = 3;

impl IdentityMessage {
    /// Encodes the message.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, text) = match self {
            Self::Refused => (REFUSED, String::new()),
            Self::WhoIs { number, node } => (ASK, format!("{number}\n{node}")),
            Self::Is { number, found: None } => (ANSWER, number.to_string()),
            Self::Is { number, found: Some(found) } => {
                let RunningNode { storage, incarnation, gossip, grpc, is_itself } = found;
                (ANSWER, format!("{number}\n{storage}\n{incarnation}\n{gossip}\n{grpc}\n{is_itself}"))
            }
        };
        [&[0, 0, 0, 0, kind, 0], text.as_bytes()].concat()
    }

    /// Decodes a message; `None`: it is something else. Accepts any bytes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let ([0, 0, 0, 0, kind, 0], text) = bytes.split_first_chunk::<6>()? else { return None };
        let mut lines = std::str::from_utf8(text).ok()?.lines();
        match *kind {
            REFUSED => Some(Self::Refused),
            ASK => Some(Self::WhoIs { number: parsed(&mut lines)?, node: NodeId::new(lines.next()?).ok()? }),
            ANSWER => {
                let number = parsed(&mut lines)?;
                let Some(storage) = lines.next() else { return Some(Self::Is { number, found: None }) };
                let found = RunningNode {
                    storage: StorageId::parse(storage)?,
                    incarnation: Incarnation(parsed(&mut lines)?),
                    gossip: parsed(&mut lines)?,
                    grpc: lines.next().filter(|grpc| (1..=MAX_TEXT).contains(&grpc.len()))?.to_owned(),
                    is_itself: parsed(&mut lines)?,
                };
                Some(Self::Is { number, found: Some(found) })
            }
            _ => None,
        }
    }
}

fn parsed<T: std::str::FromStr>(lines: &mut Lines<'_>) -> Option<T> {
    lines.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::membership::gossip::parts;

    #[test]
    fn a_word_is_read_as_it_was_said_and_is_no_part_of_gossip() {
        let found = RunningNode {
            storage: StorageId([3; 16]),
            incarnation: Incarnation(7),
            gossip: "[::1]:7946".parse().unwrap(),
            grpc: "ledger-0:50051".to_owned(),
            is_itself: true,
        };
        for word in [
            IdentityMessage::Refused,
            IdentityMessage::WhoIs { number: u64::MAX, node: NodeId::new("n0").unwrap() },
            IdentityMessage::Is { number: 1, found: None },
            IdentityMessage::Is { number: 2, found: Some(found) },
        ] {
            let bytes = word.encode();
            let mut assembler = parts::Assembler::default();
            assert_eq!(assembler.take(([127, 0, 0, 1], 1).into(), &bytes), parts::PartOutcome::Malformed);
            assert_eq!(IdentityMessage::decode(&bytes), Some(word));
        }
        let part = parts::split(0, b"gossip").unwrap().remove(0);
        assert_eq!(IdentityMessage::decode(&part), None);
    }

    proptest! {
        #[test]
        fn any_bytes_may_come_in(kind in any::<u8>(), rest in any::<String>(), bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            IdentityMessage::decode(&bytes);
            IdentityMessage::decode(&[&[0, 0, 0, 0, kind, 0], rest.as_bytes()].concat());
        }
    }
}
