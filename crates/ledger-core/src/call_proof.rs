//! The proof that a node or an operator sends with a call: who calls whom, in which session, with which number, and what for.
//!
//! | bytes | content |
//! | --- | --- |
//! | 1 | [`FORMAT`] |
//! | 1 | 1: the call is a stream, and its messages are not part of the proof; 0: they are |
//! | 16 | the caller's nonce |
//! | 16 | the nonce of the node that is called |
//! | 8 | number of the call in the session, big-endian |
//! | 8 | the caller's incarnation, big-endian |
//! | 16 | the caller's storage id |
//! | 32 | BLAKE3 of what is sent; zeroes if it is a stream |
//! | 32 | the keyed hash, see [`CallProof::text`] |
//! | rest | the caller's name |

use crate::{
    cluster_key::CallKey,
    node::{Incarnation, Member, NodeId, StorageId},
};

/// A random number that no node uses twice.
pub type Nonce = [u8; 16];

/// First byte of a proof.
const FORMAT: u8 = 1;

/// What a call's proof covers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallProof {
    /// The node that calls.
    pub from: Member,
    /// The start of the node that calls; an operator has none.
    pub incarnation: Incarnation,
    /// The caller's number of the session.
    pub caller: Nonce,
    /// The number of the node that is called.
    pub called: Nonce,
    /// The number of the call in its session, from 1.
    pub call_number: u64,
    /// The hash of the message; `None`: the call sends a stream.
    pub body: Option<[u8; 32]>,
}

impl CallProof {
    /// Returns the text whose keyed hash proves a call of a method. It says all that there is to say of the call, each at its
    /// place.
    pub fn text(&self, method: &str, to: &Member) -> Vec<u8> {
        let mut text = b"call".to_vec();
        for part in [
            method.as_bytes(),
            &self.incarnation.0.to_be_bytes(),
            &self.call_number.to_be_bytes(),
            &self.body.unwrap_or_default(),
            &[u8::from(self.body.is_none())],
        ] {
            put(&mut text, part);
        }
        put_session(&mut text, (&self.from, to), (&self.caller, &self.called));
        text
    }

    /// Returns the bytes that travel, made with a key of the cluster.
    pub fn prove_with(&self, key: &CallKey, method: &str, to: &Member) -> Vec<u8> {
        self.encode(key.prove(&self.text(method, to)))
    }

    /// Returns the bytes that travel.
    pub fn encode(&self, hash: blake3::Hash) -> Vec<u8> {
        [
            &[FORMAT, u8::from(self.body.is_none())][..],
            &self.caller,
            &self.called,
            &self.call_number.to_be_bytes(),
            &self.incarnation.0.to_be_bytes(),
            &self.from.storage.0,
            &self.body.unwrap_or_default(),
            hash.as_bytes(),
            self.from.node.as_str().as_bytes(),
        ]
        .concat()
    }

    /// Reads them. Any bytes may come in.
    pub fn decode(bytes: &[u8]) -> Option<(Self, blake3::Hash)> {
        let mut rest = bytes;
        let [format, is_stream] = take(&mut rest)?;
        if format != FORMAT || is_stream > 1 {
            return None;
        }
        let (caller, called) = (take(&mut rest)?, take(&mut rest)?);
        let call_number = u64::from_be_bytes(take(&mut rest)?);
        let incarnation = Incarnation(u64::from_be_bytes(take(&mut rest)?));
        let storage = StorageId(take(&mut rest)?);
        let (body, hash) = (take(&mut rest)?, blake3::Hash::from_bytes(take(&mut rest)?));
        let node = NodeId::new(std::str::from_utf8(rest).ok()?).ok()?;
        let body = (is_stream == 0).then_some(body);
        Some((Self { from: Member { node, storage }, incarnation, caller, called, call_number, body }, hash))
    }
}

/// Returns the hash of a call's message.
pub fn body_hash(body: &[u8]) -> [u8; 32] {
    *blake3::hash(body).as_bytes()
}

/// Returns the text whose keyed hash proves that a node answered a greeting.
pub fn greeting(from: &Member, to: &Member, caller: &Nonce, called: &Nonce) -> Vec<u8> {
    let mut text = b"greeting".to_vec();
    put_session(&mut text, (from, to), (caller, called));
    text
}

fn put_session(text: &mut Vec<u8>, members: (&Member, &Member), nonces: (&Nonce, &Nonce)) {
    for Member { node, storage } in [members.0, members.1] {
        put(text, node.as_str().as_bytes());
        put(text, &storage.0);
    }
    put(text, nonces.0);
    put(text, nonces.1);
}

/// With its length before it, so that no two texts are alike.
fn put(text: &mut Vec<u8>, part: &[u8]) {
    text.extend((part.len() as u64).to_be_bytes());
    text.extend(part);
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn member(name: &str, storage: u8) -> Member {
        Member { node: NodeId::new(name).unwrap(), storage: StorageId([storage; 16]) }
    }

    fn proof() -> CallProof {
        CallProof {
            from: member("a", 1),
            incarnation: Incarnation(7),
            caller: [2; 16],
            called: [3; 16],
            call_number: 4,
            body: Some([5; 32]),
        }
    }

    #[test]
    fn a_proof_is_read_as_it_was_written() {
        let hash = blake3::hash(b"x");
        for proof in [proof(), CallProof { body: None, ..proof() }] {
            assert_eq!(CallProof::decode(&proof.encode(hash)), Some((proof, hash)));
        }
        let bytes = proof().encode(hash);
        assert_eq!(CallProof::decode(&bytes[..bytes.len() - 1]), None, "without a name");
        assert_eq!(CallProof::decode(&[&[9], &bytes[1..]].concat()), None, "of another format");
    }

    #[test]
    fn no_two_calls_have_the_same_text() {
        let to = member("b", 2);
        let base = proof();
        let mut texts = vec![
            base.text("Slots", &to),
            base.text("Fetch", &to),
            base.text("Slots", &member("b", 3)),
            base.text("Slots", &member("c", 2)),
            greeting(&base.from, &to, &base.caller, &base.called),
            greeting(&to, &base.from, &base.caller, &base.called),
        ];
        let others = [
            CallProof { from: member("aa", 1), ..proof() },
            CallProof { from: member("a", 9), ..proof() },
            CallProof { incarnation: Incarnation(8), ..proof() },
            CallProof { caller: [9; 16], ..proof() },
            CallProof { called: [9; 16], ..proof() },
            CallProof { call_number: 5, ..proof() },
            CallProof { body: Some([6; 32]), ..proof() },
            CallProof { body: None, ..proof() },
            CallProof { body: Some([0; 32]), ..proof() },
        ];
        texts.extend(others.iter().map(|other| other.text("Slots", &to)));
        let count = texts.len();
        texts.sort_unstable();
        texts.dedup();
        assert_eq!(texts.len(), count);
    }

    proptest! {
        #[test]
        fn any_bytes_may_come_in(bytes in prop::collection::vec(any::<u8>(), 0..200), known in any::<bool>()) {
            let mut bytes = bytes;
            if known && let Some(first) = bytes.first_mut() {
                *first = FORMAT;
            }
            if let Some((proof, hash)) = CallProof::decode(&bytes) {
                prop_assert_eq!(proof.encode(hash), bytes);
            }
        }
    }
}
