//! Between the contract's messages and the store's types. Everything a client sent is checked here.

use bytes::Bytes;
use ledger_core::{
    ContextId, Entry, EntryId, Epoch, Hash, HashSuite, Key, Lineage, Position, Sequence, Size,
    entry::{Draft, check_metadata, message_len},
};
use ledger_proto::{
    context::v1::{self as context, AppendRequest, Consistency, Durability},
    ledger::v1 as ledger,
};
use ledger_store::{Append, ContextInfo, ForkInfo, StoreError, Tip, WriteQuorum};

use crate::{grpc::status::Refusal, limits};

/// Checks an append. `context` is the already checked name of its context.
///
/// # Errors
/// `RESOURCE_EXHAUSTED`: the entry is larger than `max_entry` bytes. `INVALID_ARGUMENT` names a field that is wrong.
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

/// A filter's key: empty stands for all.
///
/// # Errors
/// `INVALID_ARGUMENT`: it is no key.
pub fn key_filter(key: String) -> Result<Option<Key>, Refusal> {
    if key.is_empty() { Ok(None) } else { Ok(Some(Key::new(key)?)) }
}

/// Whether only the owner may answer, if that is a consistency at all. With one node, it may.
///
/// # Errors
/// `INVALID_ARGUMENT`: it is no consistency.
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
///
/// # Errors
/// `INVALID_ARGUMENT`: the root or the lineage has another length.
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
///
/// # Errors
/// `INVALID_ARGUMENT`: the token is no position.
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
}
