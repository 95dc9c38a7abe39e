//! Checks a chitchat message before chitchat takes it.
//!
//! chitchat believes what it is sent. It asserts that a delta does not contradict itself, and a failed assertion ends
//! gossip, and with it the node. It also takes over every incarnation that a digest names, and names all of them in its own
//! digests, which no longer fit into a message when there are too many. So a message is read here first:
//! - a delta that contradicts itself, numbers that leave no room to count on from, and values that would not fit into a
//!   message are refused;
//! - a digest loses the incarnations for which there is no room, see [`KnownIncarnations`].
//!
//! | bytes | content (all numbers are little-endian) |
//! | --- | --- |
//! | 4 | magic number, version 0, kind: 0 SYN, 1 SYN-ACK, 2 ACK, 3 another cluster |
//! | … | SYN and SYN-ACK: the digest, a count16 and for each incarnation its id, heartbeat64, last-gc64 and version64 |
//! | … | SYN-ACK and ACK: the delta, blocks of zstd or plain bytes; SYN: the cluster's name |

use std::borrow::Cow;

use super::incarnations::KnownIncarnations;

/// No version or heartbeat is higher: as many are left to count on from.
const MAX_NUMBER: u64 = 1 << 62;
/// No version of this node's own values is higher when others bring them back, so that others take those that follow.
const MAX_OWN_NUMBER: u64 = 1 << 61;
/// Most bytes of a delta when it is unpacked. A message has at most 65 507, packed.
const MAX_DELTA: usize = 4 << 20;
/// Longest block of a delta, unpacked.
const MAX_BLOCK: usize = u16::MAX as usize;
/// Most bytes of a key and its value: one that no message can carry would keep back all that is to be sent after it.
const MAX_ITEM: usize = 48 << 10;

/// Why a message is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadMessage {
    #[error("it ends early, or is no gossip")]
    Malformed,
    #[error("a number in it leaves no room to count on from")]
    Number,
    #[error("a value in it is too long, or all of them together are")]
    TooLong,
    #[error("it contradicts itself: a version is below one before it")]
    Contradiction,
}

type Read<T> = Result<T, BadMessage>;

/// Returns the message as chitchat may have it.
///
/// # Errors
///
/// [`BadMessage`]: drop it.
pub(super) fn check<'a>(message: &'a [u8], known: &mut KnownIncarnations) -> Read<Cow<'a, [u8]>> {
    let mut rest = Reader(message);
    let header = rest.bytes(4)?;
    match header[3] {
        0 => {
            let digest = Digest::read(&mut rest, known)?;
            Ok(digest.with(header, rest.0, message))
        }
        1 => {
            let digest = Digest::read(&mut rest, known)?;
            check_delta(rest, known)?;
            Ok(digest.with(header, rest.0, message))
        }
        2 => check_delta(rest, known).map(|()| Cow::Borrowed(message)),
        // chitchat refuses what it does not know.
        _ => Ok(Cow::Borrowed(message)),
    }
}

/// An incarnation: a node's name, generation and gossip address, as bytes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IncarnationBytes<'a> {
    pub(super) node: &'a str,
    pub(super) generation: u64,
    /// All of it.
    pub(super) bytes: &'a [u8],
}

/// The incarnations of a digest that are kept.
struct Digest<'a> {
    kept: Vec<&'a [u8]>,
    is_whole: bool,
}

impl<'a> Digest<'a> {
    fn read(rest: &mut Reader<'a>, known: &mut KnownIncarnations) -> Read<Self> {
        let count = rest.u16()?;
        let (mut kept, mut is_whole) = (Vec::new(), true);
        for _ in 0..count {
            let before = rest.0;
            let id = rest.incarnation()?;
            for _ in 0..3 {
                rest.number(MAX_NUMBER)?;
            }
            if known.admit(&id) {
                kept.push(&before[..before.len() - rest.0.len()]);
            } else {
                is_whole = false;
            }
        }
        Ok(Self { kept, is_whole })
    }

    /// The message with this digest.
    fn with(&self, header: &[u8], rest: &[u8], message: &'a [u8]) -> Cow<'a, [u8]> {
        if self.is_whole {
            return Cow::Borrowed(message);
        }
        // No more are kept than there were.
        let count = u16::try_from(self.kept.len()).unwrap_or(u16::MAX);
        Cow::Owned([header, &count.to_le_bytes(), &self.kept.concat(), rest].concat())
    }
}

/// Checks the changes of a delta.
fn check_delta(mut packed: Reader<'_>, known: &KnownIncarnations) -> Read<()> {
    let unpacked = packed.unpacked()?;
    let mut rest = Reader(&unpacked);
    // The limit of the incarnation's numbers, its newest version so far, and whether it has values.
    let mut current: Option<(u64, u64, bool)> = None;
    while !rest.0.is_empty() {
        match (rest.u8()?, &mut current) {
            (0, _) => {
                let id = rest.incarnation()?;
                let limit = if known.is_me(&id) { MAX_OWN_NUMBER } else { MAX_NUMBER };
                rest.number(limit)?;
                rest.number(limit)?;
                current = Some((limit, 0, false));
            }
            (1, Some((limit, newest, has_values))) => {
                if rest.text()?.len() + rest.text()?.len() > MAX_ITEM {
                    return Err(BadMessage::TooLong);
                }
                let version = rest.number(*limit)?;
                let status = rest.u8()?;
                if status > 2 {
                    return Err(BadMessage::Malformed);
                }
                if version <= *newest {
                    return Err(BadMessage::Contradiction);
                }
                (*newest, *has_values) = (version, true);
            }
            (2, Some((limit, newest, has_values))) => {
                let version = rest.number(*limit)?;
                if *has_values && version < *newest {
                    return Err(BadMessage::Contradiction);
                }
                *newest = version;
            }
            _ => return Err(BadMessage::Malformed),
        }
    }
    Ok(())
}

/// The bytes that are still to be read.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize) -> Read<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(BadMessage::Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn u8(&mut self) -> Read<u8> {
        Ok(self.bytes(1)?[0])
    }

    fn u16(&mut self) -> Read<u16> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(BadMessage::Malformed)?;
        self.0 = rest;
        Ok(u16::from_le_bytes(*bytes))
    }

    fn u64(&mut self) -> Read<u64> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(BadMessage::Malformed)?;
        self.0 = rest;
        Ok(u64::from_le_bytes(*bytes))
    }

    /// A number that is not above `most`.
    fn number(&mut self, most: u64) -> Read<u64> {
        let number = self.u64()?;
        if number <= most { Ok(number) } else { Err(BadMessage::Number) }
    }

    fn text(&mut self) -> Read<&'a str> {
        let len = usize::from(self.u16()?);
        str::from_utf8(self.bytes(len)?).map_err(|_| BadMessage::Malformed)
    }

    fn incarnation(&mut self) -> Read<IncarnationBytes<'a>> {
        let before = self.0;
        let (node, generation) = (self.text()?, self.u64()?);
        let address = match self.u8()? {
            4 => 4,
            6 => 16,
            _ => return Err(BadMessage::Malformed),
        };
        // The address and the port.
        self.bytes(address + 2)?;
        Ok(IncarnationBytes { node, generation, bytes: &before[..before.len() - self.0.len()] })
    }

    /// The blocks of a delta, unpacked.
    fn unpacked(&mut self) -> Read<Vec<u8>> {
        let mut unpacked = Vec::new();
        let mut block = vec![0; MAX_BLOCK];
        loop {
            let kind = self.u8()?;
            if kind == 0 {
                return Ok(unpacked);
            }
            let len = usize::from(self.u16()?);
            let bytes = self.bytes(len)?;
            match kind {
                1 => {
                    let len = zstd::bulk::decompress_to_buffer(bytes, &mut block[..]);
                    unpacked.extend_from_slice(&block[..len.map_err(|_| BadMessage::Malformed)?]);
                }
                2 => unpacked.extend_from_slice(bytes),
                _ => return Err(BadMessage::Malformed),
            }
            if unpacked.len() > MAX_DELTA {
                return Err(BadMessage::TooLong);
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::net::SocketAddr;

    use chitchat::{ChitchatId, ChitchatMessage, Deserializable as _};
    use proptest::prelude::*;

    use super::*;

    const MAGIC: u16 = 45_139;

    fn id_bytes(node: &str, generation: u64) -> Vec<u8> {
        let name = [&(node.len() as u16).to_le_bytes()[..], node.as_bytes()].concat();
        [&name[..], &generation.to_le_bytes(), &[4, 127, 0, 0, 1], &7946_u16.to_le_bytes()].concat()
    }

    pub(in super::super) fn id(node: &str, generation: u64) -> ChitchatId {
        ChitchatId::new(node, generation, SocketAddr::from(([127, 0, 0, 1], 7946)))
    }

    fn header(kind: u8) -> Vec<u8> {
        [&MAGIC.to_le_bytes()[..], &[0, kind]].concat()
    }

    /// A SYN of these incarnations, each with a heartbeat.
    pub(in super::super) fn syn(cluster: &str, digest: &[(&str, u64, u64)]) -> Vec<u8> {
        let mut bytes = header(0);
        bytes.extend((digest.len() as u16).to_le_bytes());
        for (node, generation, heartbeat) in digest {
            bytes.extend(id_bytes(node, *generation));
            bytes.extend([*heartbeat, 0, 0].iter().flat_map(|number: &u64| number.to_le_bytes()));
        }
        bytes.extend((cluster.len() as u16).to_le_bytes());
        bytes.extend(cluster.as_bytes());
        bytes
    }

    /// A change of a delta.
    pub(in super::super) enum Op<'a> {
        Node(&'a ChitchatId, u64, u64),
        Value(&'a str, &'a str, u64),
        Version(u64),
    }

    fn op_bytes(op: &Op<'_>) -> Vec<u8> {
        let text = |text: &str| [&(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat();
        match op {
            Op::Node(of, last_gc, from) => {
                let mut bytes = vec![0];
                chitchat::Serializable::serialize(*of, &mut bytes);
                [&bytes[..], &last_gc.to_le_bytes(), &from.to_le_bytes()].concat()
            }
            Op::Value(key, value, version) => {
                [&[1][..], &text(key), &text(value), &version.to_le_bytes(), &[0]].concat()
            }
            Op::Version(version) => [&[2][..], &version.to_le_bytes()].concat(),
        }
    }

    /// An ACK with this delta.
    pub(in super::super) fn ack(ops: &[Op<'_>]) -> Vec<u8> {
        let delta: Vec<u8> = ops.iter().flat_map(op_bytes).collect();
        let blocks = delta
            .chunks(60_000)
            .flat_map(|block| [&[2][..], &(block.len() as u16).to_le_bytes(), block].concat());
        header(2).into_iter().chain(blocks).chain([0]).collect()
    }

    fn checked(message: &[u8]) -> Read<Vec<u8>> {
        let mut known = KnownIncarnations::default();
        known.set_me(id("me", 7));
        check(message, &mut known).map(Cow::into_owned)
    }

    /// What these bytes are to chitchat.
    fn read(bytes: &[u8]) -> Option<ChitchatMessage> {
        let mut rest = bytes;
        ChitchatMessage::deserialize(&mut rest).ok().filter(|_| rest.is_empty())
    }

    #[test]
    fn what_a_node_sends_goes_through_as_it_is() {
        let other = id("other", 3);
        for message in [
            syn("c", &[("a", 1, 5), ("b", 2, 6)]),
            ack(&[Op::Node(&other, 0, 0), Op::Value("k", "v", 1), Op::Value("l", "w", 4)]),
            ack(&[Op::Node(&other, 3, 0), Op::Version(9)]),
            ack(&[]),
            header(3),
        ] {
            assert!(read(&message).is_some(), "chitchat reads it");
            assert_eq!(checked(&message).as_ref(), Ok(&message));
        }
    }

    #[test]
    fn a_delta_that_chitchat_could_not_stand_is_refused() {
        let (me, other) = (id("me", 7), id("other", 3));
        let long = "x".repeat(MAX_ITEM);
        let refused = [
            (
                vec![Op::Node(&other, 0, 4), Op::Value("k", "v", 10), Op::Version(5)],
                BadMessage::Contradiction,
            ),
            (
                vec![Op::Node(&other, 0, 0), Op::Value("k", "v", 5), Op::Value("l", "v", 5)],
                BadMessage::Contradiction,
            ),
            (vec![Op::Node(&other, 0, 0), Op::Value("k", "v", 0)], BadMessage::Contradiction),
            (vec![Op::Node(&other, 0, 0), Op::Value("k", "v", u64::MAX)], BadMessage::Number),
            (vec![Op::Node(&other, 0, 0), Op::Version(MAX_NUMBER + 1)], BadMessage::Number),
            (vec![Op::Node(&other, u64::MAX, 0)], BadMessage::Number),
            (vec![Op::Node(&me, 0, 0), Op::Version(MAX_OWN_NUMBER + 1)], BadMessage::Number),
            (vec![Op::Node(&other, 0, 0), Op::Value("k", &long, 1)], BadMessage::TooLong),
            (vec![Op::Value("k", "v", 1)], BadMessage::Malformed),
        ];
        for (ops, reason) in refused {
            assert_eq!(checked(&ack(&ops)), Err(reason));
        }
        assert!(checked(&ack(&[Op::Node(&other, 0, 0), Op::Version(MAX_NUMBER)])).is_ok());
        assert!(checked(&ack(&[Op::Node(&me, 0, 0), Op::Version(MAX_OWN_NUMBER)])).is_ok());
        assert_eq!(checked(&syn("c", &[("a", 1, u64::MAX)])), Err(BadMessage::Number));
    }

    #[test]
    fn a_delta_is_not_unpacked_without_a_bound() {
        let block = zstd::bulk::compress(&vec![0; MAX_BLOCK], 0).unwrap();
        let block = [&[1][..], &(block.len() as u16).to_le_bytes(), &block].concat();
        let message = [header(2), block.repeat(1 + MAX_DELTA / MAX_BLOCK), vec![0]].concat();
        assert!(message.len() < 65_507);
        assert_eq!(checked(&message), Err(BadMessage::TooLong));
    }

    #[test]
    fn a_digest_loses_what_there_is_no_room_for() {
        let mut known = KnownIncarnations::default();
        let names: Vec<String> = (0..800).map(|n| format!("{n:0100}")).collect();
        let digest: Vec<_> = names.iter().map(|name| (name.as_str(), 1, 1)).collect();
        let mut taken = 0;
        for part in digest.chunks(200) {
            let message = syn("c", part);
            let checked = check(&message, &mut known).unwrap();
            assert!(read(&checked).is_some());
            taken += usize::from(u16::from_le_bytes([checked[4], checked[5]]));
        }
        assert!((200..400).contains(&taken), "{taken}");
        let again = syn("c", &digest[..200]);
        assert_eq!(check(&again, &mut known).unwrap(), again, "those that were taken stay");
    }

    proptest! {
        #[test]
        fn any_bytes_may_come_in(
            kind in 0..4_u8,
            bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(2), Just(4), any::<u8>()], 0..80),
        ) {
            let message = [header(kind), bytes].concat();
            // What chitchat reads is the same with and without this check, or is dropped.
            if let Ok(checked) = checked(&message) {
                prop_assert_eq!(read(&checked), read(&message));
            }
        }
    }
}
