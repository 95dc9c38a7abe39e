//! Between the contract's messages and the store's types. Everything a client sent is checked here.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Key, Lineage, Position, Sequence, Size,
    entry::{Draft, check_metadata, message_len},
};
use ledger_proto::{
    context::v1::{self as context, AppendRequest, Consistency, Durability},
    ledger::v1 as ledger,
};
use ledger_store::{
    Append, ContextInfo, ForkInfo, StoreError, Tip, WriteQuorum,
    budget::{Permit, Share},
};

use crate::{grpc::status::Refusal, limits, services::writers::WriterCheck};

/// Checks an append. `context` is the already checked name of its context.
pub fn append(request: AppendRequest, context: ContextId, max_entry: usize) -> Result<Append, Refusal> {
    let payload = request.payload.len();
    let len = message_len(&context, request.entry_id.len(), &request.key, payload, &request.metadata);
    if len > max_entry {
        return Err(StoreError::EntryTooLarge { len, payload, max: max_entry }.into());
    }
    let key = Key::new(request.key)?;
    check_metadata(&request.metadata)?;
    let quorum = match Durability::try_from(request.durability) {
        Ok(Durability::Unspecified) => WriteQuorum::Configured,
        Ok(Durability::One) => WriteQuorum::One,
        Ok(Durability::Majority) => WriteQuorum::Majority,
        Ok(Durability::All) => WriteQuorum::All,
        Err(_) => {
            let message = format!("durability {} is not known: use 0 to 3", request.durability);
            return Err(Refusal::field("durability", message));
        }
    };
    let entry_id = if request.entry_id.is_empty() { None } else { Some(EntryId::new(&request.entry_id)?) };
    Ok(Append {
        context,
        draft: Draft { key, payload: request.payload, metadata: request.metadata },
        received_lamport: request.received_lamport,
        entry_id,
        epoch: None,
        quorum,
    })
}

/// The bytes an append is counted with while it is in flight.
pub fn cost_bytes(request: &AppendRequest) -> usize {
    let metadata: usize = request.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    request.payload.len() + metadata + limits::APPEND_OVERHEAD
}

/// The names of contexts a stream has used: checked once, then shared. They begin anew when they take too many bytes: those
/// that come with the call, or, while others do not need it, a part of what is for calls.
#[derive(Debug)]
pub struct NameCache {
    numbers: HashMap<Box<str>, usize>,
    named: Vec<CachedName>,
    calls: Arc<Share>,
    bytes: usize,
    /// For what is beyond [`limits::NAMES_BYTES`].
    more: Option<Permit>,
}

/// A context that a stream has used.
#[derive(Debug)]
pub struct CachedName {
    /// The checked name.
    pub context: ContextId,
    /// What the stream knows of who writes it.
    pub writer: WriterCheck,
}

impl NameCache {
    /// None yet, of a call on a node with this share for calls.
    pub fn new(calls: Arc<Share>) -> Self {
        Self { numbers: HashMap::new(), named: Vec::new(), calls, bytes: 0, more: None }
    }

    /// The context of a name.
    pub fn get(&mut self, text: &str) -> Result<&mut CachedName, Refusal> {
        let number = match self.numbers.get(text) {
            Some(number) => *number,
            None => self.add(text)?,
        };
        Ok(&mut self.named[number])
    }

    fn add(&mut self, text: &str) -> Result<usize, Refusal> {
        let context = ContextId::new(text)?;
        // It is kept twice.
        let bytes = 2 * text.len() + limits::NAME;
        if !self.has_capacity(bytes) {
            // The tables shrink, too.
            *self = Self::new(Arc::clone(&self.calls));
        }
        self.bytes += bytes;
        let number = self.named.len();
        self.numbers.insert(text.into(), number);
        self.named.push(CachedName { context, writer: WriterCheck::default() });
        Ok(number)
    }

    fn has_capacity(&mut self, bytes: usize) -> bool {
        if self.bytes + bytes <= limits::NAMES_BYTES {
            return true;
        }
        // Half of it is for other calls.
        if self.named.len() >= limits::NAMES_PER_STREAM || self.calls.used() > self.calls.capacity() / 2 {
            return false;
        }
        let Some(more) = self.calls.try_acquire(bytes) else { return false };
        match &mut self.more {
            Some(held) => held.merge(more),
            None => self.more = Some(more),
        }
        true
    }
}

/// A filter's key: empty stands for all.
pub fn key_filter(key: String) -> Result<Option<Key>, Refusal> {
    if key.is_empty() { Ok(None) } else { Ok(Some(Key::new(key)?)) }
}

/// Whether only the owner may answer, if that is a consistency at all. With one node, it may.
pub fn at_owner(value: i32) -> Result<bool, Refusal> {
    match Consistency::try_from(value) {
        Ok(Consistency::AnyReplica) => Ok(false),
        Ok(Consistency::Owner) => Ok(true),
        Err(_) => Err(Refusal::field("consistency", format!("consistency {value} is not known: use 0 or 1"))),
    }
}

/// An entry as the contract has it.
pub fn entry(entry: Entry) -> context::Entry {
    context::Entry {
        id: entry.id.with_text(str::to_owned),
        key: entry.key.into_string(),
        payload: entry.payload,
        sequence: entry.sequence.0,
        appended_at_ns: entry.appended_at_ns,
        metadata: entry.metadata,
        lamport_clock: entry.lamport.0,
        content_hash: hash(&entry.content_hash),
        context_id: entry.context_id.as_str().to_owned(),
        epoch: entry.epoch.0,
    }
}

/// Entries as the contract has them; their hashes share one buffer.
pub fn entries(entries: Vec<Entry>) -> Vec<context::Entry> {
    let hashes: Vec<u8> = entries.iter().flat_map(|entry| entry.content_hash.0).collect();
    let hashes = Bytes::from(hashes);
    let with_hash = |(index, entry): (usize, Entry)| context::Entry {
        id: entry.id.with_text(str::to_owned),
        key: entry.key.into_string(),
        payload: entry.payload,
        sequence: entry.sequence.0,
        appended_at_ns: entry.appended_at_ns,
        metadata: entry.metadata,
        lamport_clock: entry.lamport.0,
        content_hash: hashes.slice(index * 32..(index + 1) * 32),
        context_id: entry.context_id.as_str().to_owned(),
        epoch: entry.epoch.0,
    };
    entries.into_iter().enumerate().map(with_hash).collect()
}

/// A hash as the contract has it.
pub fn hash(hash: &Hash) -> Bytes {
    Bytes::copy_from_slice(&hash.0)
}

/// Hashes as the contract has them.
pub fn hashes(hashes: &[Hash]) -> Vec<Bytes> {
    hashes.iter().map(hash).collect()
}

/// A position as the contract has it.
pub fn position(position: &Position) -> context::Position {
    context::Position {
        size: position.size.0,
        root: hash(&position.root),
        epoch: position.epoch.0,
        lineage: Bytes::copy_from_slice(&position.lineage.0),
    }
}

/// A whole position.
pub fn position_of(position: context::Position) -> Result<Position, Refusal> {
    resume(Some(position))?.position.ok_or_else(|| Refusal::internal("a position without root or lineage"))
}

/// Where a watcher wants to resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resume {
    /// Deliver what follows.
    pub after: Sequence,
    /// Prove first that the history passes through this.
    pub position: Option<Position>,
    /// Make sure that it is this history.
    pub lineage: Option<Lineage>,
}

/// Checks a resume token.
pub fn resume(token: Option<context::Position>) -> Result<Resume, Refusal> {
    let token = token.unwrap_or_default();
    let size = Size(token.size);
    let lineage = match token.lineage.len() {
        0 => None,
        16 => token.lineage.as_ref().try_into().ok().map(Lineage),
        len => {
            let message = format!("resume_after.lineage has {len} bytes: it must have 16, or be empty");
            return Err(Refusal::field("resume_after", message));
        }
    };
    let root = match token.root.len() {
        0 => None,
        32 => Hash::from_slice(&token.root),
        len => {
            let message = format!("resume_after.root has {len} bytes: it must have 32, or be empty");
            return Err(Refusal::field("resume_after", message));
        }
    };
    let position = match (root, lineage) {
        (None, _) => None,
        (Some(root), Some(lineage)) => Some(Position { size, root, epoch: Epoch(token.epoch), lineage }),
        (Some(_), None) => {
            let message = "resume_after has a root but no lineage: send the whole position";
            return Err(Refusal::field("resume_after", message));
        }
    };
    Ok(Resume { after: size.newest(), position, lineage })
}

/// A hash suite as the contract has it.
pub fn suite(suite: HashSuite) -> String {
    suite.name().to_owned()
}

/// A fork as the contract has it.
pub fn fork(info: &ForkInfo) -> ledger::Fork {
    let tip = |tip: &Tip| ledger::ForkTip { size: tip.size.0, root: hash(&tip.root), epoch: tip.epoch.0 };
    ledger::Fork {
        context_id: info.context.as_str().to_owned(),
        fork: info.fork,
        first_sequence: info.common.0 + 1,
        entry_count: info.ours.size.0.saturating_sub(info.common.0),
        reason: info.reason.clone(),
        common_size: info.common.0,
        ours: Some(tip(&info.ours)),
        theirs: Some(tip(&info.theirs)),
        lineage: Bytes::copy_from_slice(&info.lineage.0),
        hash_suite: suite(info.suite),
        left_at_ns: info.left_at_ns,
    }
}

/// A context of a listing.
pub fn context_info(info: &ContextInfo) -> ledger::ContextInfo {
    ledger::ContextInfo {
        context_id: info.context.as_str().to_owned(),
        size: info.size.0,
        lamport_clock: info.lamport.0,
        epoch: info.epoch.0,
        created_at_ns: info.created_at_ns,
        hash_suite: suite(info.suite),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    /// The largest entry in these tests.
    const MOST: usize = 1 << 16;

    fn request() -> AppendRequest {
        AppendRequest { key: "facts".into(), payload: "x".into(), ..Default::default() }
    }

    fn refused(request: AppendRequest) -> Refusal {
        append(request, ContextId::new("c").unwrap(), MOST).unwrap_err()
    }

    #[test]
    fn a_bad_append_names_the_field() {
        assert_eq!(refused(AppendRequest { key: String::new(), ..request() }).field, Some("key"));
        assert_eq!(refused(AppendRequest { key: "a\u{7}".into(), ..request() }).field, Some("key"));
        assert_eq!(refused(AppendRequest { entry_id: "\n".into(), ..request() }).field, Some("entry_id"));
        assert_eq!(refused(AppendRequest { durability: 9, ..request() }).field, Some("durability"));
        let metadata = (0..1025).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(refused(AppendRequest { metadata, ..request() }).field, Some("metadata"));
        let large = refused(AppendRequest { payload: vec![0; MOST].into(), ..request() });
        assert_eq!(large.code, Code::ResourceExhausted);
        assert!(
            large.message.contains("payload of 65536") && large.message.contains("at most 65536"),
            "{}",
            large.message
        );
    }

    #[test]
    fn every_durability_is_met_by_one_copy() {
        for durability in 0..=3 {
            assert!(
                append(AppendRequest { durability, ..request() }, ContextId::new("c").unwrap(), MOST).is_ok()
            );
        }
    }

    #[test]
    fn a_resume_token_is_checked() {
        let whole =
            context::Position { size: 3, root: vec![1; 32].into(), epoch: 4, lineage: vec![2; 16].into() };
        let resumed = resume(Some(whole.clone())).unwrap();
        assert_eq!(resumed.after, Sequence(3));
        assert_eq!(position(&resumed.position.unwrap()), whole);
        assert_eq!(resume(None).unwrap().after, Sequence(0));
        let size_only = context::Position { size: 3, ..Default::default() };
        assert_eq!(resume(Some(size_only)).unwrap().position, None);
        for bad in [
            context::Position { root: vec![1; 31].into(), ..whole.clone() },
            context::Position { lineage: vec![1; 15].into(), ..whole.clone() },
            context::Position { lineage: Bytes::new(), ..whole },
        ] {
            assert_eq!(resume(Some(bad)).unwrap_err().field, Some("resume_after"));
        }
    }

    #[test]
    fn names_are_checked_and_remembered() {
        let mut names = NameCache::new(Share::new("calls", 16 << 20));
        let [first, again] = [(); 2].map(|()| names.get("a").unwrap().context.clone());
        assert_eq!(first, again);
        assert_eq!(names.get("").unwrap_err().field, Some("context_id"));
        for n in 0..2 * limits::NAMES_PER_STREAM {
            let name = n.to_string();
            assert_eq!(names.get(&name).unwrap().context.as_str(), name);
        }
        assert!(names.named.len() <= limits::NAMES_PER_STREAM);
        assert_eq!(names.named.len(), names.numbers.len());
    }

    #[test]
    fn names_take_what_comes_with_the_call_and_a_part_of_what_is_for_calls() {
        let calls = Share::new("calls", 1 << 20);
        let mut streams: Vec<NameCache> = (0..40).map(|_| NameCache::new(Arc::clone(&calls))).collect();
        for n in 0..4096 {
            let name = format!("{n:01024}");
            for names in &mut streams {
                assert_eq!(names.get(&name).unwrap().context.as_str(), name);
            }
        }
        let held: usize = streams.iter().map(|names| names.named.len() * (2 * 1024 + limits::NAME)).sum();
        assert!(held <= streams.len() * limits::NAMES_BYTES + calls.used(), "{held}");
        assert!(calls.used() <= calls.capacity() / 2 + (4 << 10), "{}", calls.used());
        drop(streams);
        assert_eq!(calls.used(), 0);
    }
}
