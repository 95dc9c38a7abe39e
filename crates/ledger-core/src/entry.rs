//! An entry, and the canonical hash over all of its fields.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    ContextId, EntryId, Epoch, Hash, HashSuite, Key, Sequence,
    clock::LamportClock,
    hash::Hasher,
    limits::{MAX_METADATA, MAX_METADATA_PAIRS},
    with_suite,
};

/// Pairs that describe an entry, sorted by key; opaque to the ledger.
pub type Metadata = BTreeMap<String, String>;

/// What a writer appends: an entry before the ledger gives it a sequence, a time and a hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// What kind of entry this is.
    pub key: Key,
    /// The content: opaque bytes.
    pub payload: Bytes,
    /// Pairs that describe it.
    pub metadata: Metadata,
}

/// One immutable entry of a context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The context it belongs to.
    pub context_id: ContextId,
    /// Its position: 1, 2, 3, …
    pub sequence: Sequence,
    /// Its identity.
    pub id: EntryId,
    /// What kind of entry it is.
    pub key: Key,
    /// The content.
    pub payload: Bytes,
    /// Pairs that describe it.
    pub metadata: Metadata,
    /// Wall-clock time of the append, nanoseconds since the Unix epoch.
    pub appended_at_ns: u64,
    /// Lamport time of the append.
    pub lamport: LamportClock,
    /// The ownership epoch it was written in.
    pub epoch: Epoch,
    /// The hash over all of the above: leaf data of the context's tree.
    pub content_hash: Hash,
}

/// The metadata is over a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "metadata has {pairs} pairs and {bytes} bytes: at most {MAX_METADATA_PAIRS} pairs and {MAX_METADATA} bytes are allowed"
)]
pub struct MetadataTooLarge {
    /// Number of pairs.
    pub pairs: usize,
    /// Bytes of keys and values together.
    pub bytes: usize,
}

/// Checks the limits of metadata.
///
/// # Errors
///
/// [`MetadataTooLarge`] if there are more than [`MAX_METADATA_PAIRS`] pairs, or their keys and values have more than
/// [`MAX_METADATA`] bytes together.
pub fn check_metadata(metadata: &Metadata) -> Result<(), MetadataTooLarge> {
    let bytes = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    let pairs = metadata.len();
    if pairs > MAX_METADATA_PAIRS || bytes > MAX_METADATA {
        return Err(MetadataTooLarge { pairs, bytes });
    }
    Ok(())
}

/// Bytes that an entry takes in a message of the contract beside its texts, metadata and payload, at most: tags, lengths,
/// numbers and the hash.
const MESSAGE_FIXED: usize = 160;
/// Bytes that a pair of metadata takes in a message of the contract beside its texts, at most.
const MESSAGE_PAIR: usize = 16;

/// Returns how many bytes an entry takes in a message of the contract, at most.
pub fn message_len(
    context: &ContextId,
    id_len: usize,
    key: &str,
    payload_len: usize,
    metadata: &Metadata,
) -> usize {
    let pairs: usize = metadata.iter().map(|(key, value)| key.len() + value.len() + MESSAGE_PAIR).sum();
    MESSAGE_FIXED + context.as_str().len() + id_len + key.len() + payload_len + pairs
}

impl Entry {
    /// Returns how many bytes the entry takes in a message of the contract, at most.
    pub fn message_len(&self) -> usize {
        let id_len = self.id.with_text(str::len);
        message_len(&self.context_id, id_len, self.key.as_str(), self.payload.len(), &self.metadata)
    }

    /// Returns the hash that the entry's fields give; an intact entry carries it as `content_hash`.
    pub fn computed_hash(&self, suite: HashSuite) -> Hash {
        with_suite!(suite, H => self.computed_hash_with::<H>())
    }

    /// Returns whether the entry's fields give its content hash.
    pub fn is_intact(&self, suite: HashSuite) -> bool {
        self.computed_hash(suite) == self.content_hash
    }

    /// Does what [`Entry::computed_hash`] does, with the suite known at compile time.
    pub fn computed_hash_with<H: Hasher>(&self) -> Hash {
        content_hash::<H>(&Fields {
            context_id: &self.context_id,
            sequence: self.sequence,
            id: &self.id,
            key: &self.key,
            lamport: self.lamport,
            appended_at_ns: self.appended_at_ns,
            epoch: self.epoch,
            payload_hash: H::digest(&self.payload),
            metadata_hash: metadata_hash::<H>(&self.metadata),
        })
    }

    /// Returns what the writer appended.
    pub fn draft(&self) -> Draft {
        Draft { key: self.key.clone(), payload: self.payload.clone(), metadata: self.metadata.clone() }
    }
}

/// The fields that the content hash covers. The payload enters by its own hash, so that a proof of an entry need not show its
/// payload.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    /// The context it belongs to.
    pub context_id: &'a ContextId,
    /// Its position.
    pub sequence: Sequence,
    /// Its identity.
    pub id: &'a EntryId,
    /// What kind of entry it is.
    pub key: &'a Key,
    /// Lamport time.
    pub lamport: LamportClock,
    /// Wall-clock time, nanoseconds since the Unix epoch.
    pub appended_at_ns: u64,
    /// The epoch it was written in.
    pub epoch: Epoch,
    /// `H(payload)`.
    pub payload_hash: Hash,
    /// `H(metadata)`, see [`metadata_hash`].
    pub metadata_hash: Hash,
}

/// Tells an entry's hash from every other use of the same function.
const DOMAIN: &[u8] = b"converge.entry";
/// Version of the encoding below.
const VERSION: u8 = 1;
/// Most encodings fit a buffer of this size on the stack.
const STACK: usize = 512;

/// Returns the canonical hash of an entry, version 1:
///
/// ```text
/// H( "converge.entry" ‖ 0x01 ‖ len32 context_id ‖ sequence64 ‖ len32 id ‖ len32 key
///    ‖ lamport64 ‖ appended_at_ns64 ‖ epoch64 ‖ H(payload) ‖ H(metadata) )
/// ```
///
/// Integers are big-endian; `len32 x` is the length of `x` in bytes as 32 bits, then `x`.
pub fn content_hash<H: Hasher>(fields: &Fields<'_>) -> Hash {
    fields.id.with_text(|id| {
        let len = DOMAIN.len()
            + 1
            + 3 * 4
            + 4 * 8
            + 2 * 32
            + fields.context_id.as_str().len()
            + id.len()
            + fields.key.as_str().len();
        let mut stack = [0; STACK];
        let mut heap = Vec::new();
        let buffer = if len <= STACK {
            &mut stack[..len]
        } else {
            heap.resize(len, 0);
            &mut heap[..]
        };
        let mut rest = Rest(buffer);
        rest.put(DOMAIN);
        rest.put(&[VERSION]);
        rest.put_text(fields.context_id.as_str());
        rest.put(&fields.sequence.0.to_be_bytes());
        rest.put_text(id);
        rest.put_text(fields.key.as_str());
        rest.put(&fields.lamport.0.to_be_bytes());
        rest.put(&fields.appended_at_ns.to_be_bytes());
        rest.put(&fields.epoch.0.to_be_bytes());
        rest.put(&fields.payload_hash.0);
        rest.put(&fields.metadata_hash.0);
        debug_assert!(rest.0.is_empty(), "the length is the sum of the parts");
        H::digest(buffer)
    })
}

/// Returns the hash of metadata: `H( count32 ‖ (len32 key ‖ len32 value)* )`, pairs sorted by key.
pub fn metadata_hash<H: Hasher>(metadata: &Metadata) -> Hash {
    if metadata.is_empty() {
        return H::NO_METADATA;
    }
    let mut buffer = Vec::with_capacity(64);
    buffer.extend_from_slice(&(metadata.len() as u32).to_be_bytes());
    for text in metadata.iter().flat_map(|(key, value)| [key, value]) {
        buffer.extend_from_slice(&(text.len() as u32).to_be_bytes());
        buffer.extend_from_slice(text.as_bytes());
    }
    H::digest(&buffer)
}

/// The free rest of a buffer that a caller fills.
struct Rest<'a>(&'a mut [u8]);

impl Rest<'_> {
    fn put_text(&mut self, text: &str) {
        self.put(&(text.len() as u32).to_be_bytes());
        self.put(text.as_bytes());
    }

    fn put(&mut self, bytes: &[u8]) {
        let (head, tail) = std::mem::take(&mut self.0).split_at_mut(bytes.len());
        head.copy_from_slice(bytes);
        self.0 = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{Blake3, Sha256};

    fn entry() -> Entry {
        let mut entry = Entry {
            context_id: ContextId::new("growth-strategy-001").unwrap(),
            sequence: Sequence(3),
            id: EntryId::new("835ff3336b4721972a04b587f9db91ab").unwrap(),
            key: Key::new("traces").unwrap(),
            payload: Bytes::from_static(b"agent:analyst started"),
            metadata: [("agent_id".to_owned(), "analyst".to_owned())].into(),
            appended_at_ns: 1_795_213_514_531_247_822,
            lamport: LamportClock(3),
            epoch: Epoch::new(1, 7),
            content_hash: Hash([0; 32]),
        };
        entry.content_hash = entry.computed_hash(HashSuite::Blake3);
        entry
    }

    #[test]
    fn the_encoding_is_golden() {
        let entry = entry();
        assert_eq!(
            [entry.computed_hash_with::<Blake3>(), entry.computed_hash_with::<Sha256>()]
                .map(|h| h.to_string()),
            [
                "87de8826f86cdac69eed3ca38c167222af8e6d83bbc3f34f91a8c4b17d286f36".to_owned(),
                "49121590852f41a9e8632f956bfd2e073b24985aa1e1ca847c13f88c782b6320".to_owned(),
            ]
        );
    }

    #[test]
    fn the_encoding_is_as_documented() {
        let entry = entry();
        let mut bytes = b"converge.entry\x01".to_vec();
        let text = |t: &str| [&(t.len() as u32).to_be_bytes(), t.as_bytes()].concat();
        let metadata = [1u32.to_be_bytes().to_vec(), text("agent_id"), text("analyst")].concat();
        bytes.extend(text("growth-strategy-001"));
        bytes.extend(3u64.to_be_bytes());
        bytes.extend(text("835ff3336b4721972a04b587f9db91ab"));
        bytes.extend(text("traces"));
        bytes.extend(3u64.to_be_bytes());
        bytes.extend(1_795_213_514_531_247_822u64.to_be_bytes());
        bytes.extend(Epoch::new(1, 7).0.to_be_bytes());
        bytes.extend(Sha256::digest(b"agent:analyst started").0);
        bytes.extend(Sha256::digest(&metadata).0);
        assert_eq!(entry.computed_hash_with::<Sha256>(), Sha256::digest(&bytes));
    }

    #[test]
    fn the_hash_of_no_metadata_is_that_of_a_count_of_zero() {
        assert_eq!(Blake3::NO_METADATA, Blake3::digest(&0u32.to_be_bytes()));
        assert_eq!(Sha256::NO_METADATA, Sha256::digest(&0u32.to_be_bytes()));
    }

    #[test]
    fn every_field_counts() {
        let changes: [fn(&mut Entry); 9] = [
            |e| e.context_id = ContextId::new("growth-strategy-002").unwrap(),
            |e| e.sequence.0 += 1,
            |e| e.id = EntryId::new("other").unwrap(),
            |e| e.key = Key::new("facts").unwrap(),
            |e| e.payload = Bytes::from_static(b"agent:analyst stopped"),
            |e| _ = e.metadata.insert("cycle".into(), "5".into()),
            |e| e.appended_at_ns += 1,
            |e| e.lamport.0 += 1,
            |e| e.epoch.0 += 1,
        ];
        for change in changes {
            let mut entry = entry();
            assert!(entry.is_intact(HashSuite::Blake3));
            change(&mut entry);
            assert!(!entry.is_intact(HashSuite::Blake3), "{entry:?}");
        }
    }

    #[test]
    fn a_long_context_id_hashes_like_a_short_one() {
        let mut entry = entry();
        entry.context_id = ContextId::new("x".repeat(1024)).unwrap();
        let hash = entry.computed_hash_with::<Sha256>();
        entry.context_id = ContextId::new("x".repeat(1023)).unwrap();
        assert_ne!(hash, entry.computed_hash_with::<Sha256>());
    }
}
