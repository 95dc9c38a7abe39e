//! `ledgerctl verify`: offline, from files.

use std::{fs::File, io::Read as _, path::Path};

use anyhow::Context as _;
use ledger_client::{ClientError, ContextId, EntryId, Epoch, Hash, HashSuite, Key, Sequence};
use ledger_core::{
    checkpoint::{self, Checkpoint, VerifierKey},
    clock::LamportClock,
    entry::{Fields, content_hash},
    hash::Hasher as _,
    legacy,
    limits::MAX_PAYLOAD,
    snapshot::{self, Decoder, Item},
    tree::proof::{ConsistencyProof, InclusionProof},
    with_suite,
};
use serde_json::{Value, json};

use crate::{
    args,
    exit::NotVerified,
    output::Output,
    progress,
    prove::{ProofFile, Proven, ProvenEntry, VERSION},
};

/// Most bytes of a proof, a note or a blob of the predecessor that are read into memory.
const MAX_FILE: u64 = 1 << 30;

pub(crate) fn run(command: args::Verify, output: &Output) -> anyhow::Result<()> {
    let (object, text) = match command {
        args::Verify::Proof { file, payload, checkpoint, verifier_key } => {
            let signed = match (checkpoint, verifier_key) {
                (Some(path), Some(key)) => Some(signed_checkpoint(&path, &key)?),
                _ => None,
            };
            proof(&file, payload.as_deref(), signed.as_ref())?
        }
        args::Verify::Snapshot { file } => snapshot_file(&file)?,
        args::Verify::Checkpoint { file, verifier_key } => {
            let (signed, _) = signed_checkpoint(&file, &verifier_key)?;
            let (origin, size, root) = (signed.origin(), signed.size(), signed.root());
            (
                json!({ "verified": true, "origin": origin, "size": size.0, "root": root.to_string() }),
                format!("signed by that key: {origin} has size {size} and root {root}"),
            )
        }
    };
    output.result(&object, || text)?;
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let named = || format!("{} cannot be read", path.display());
    let mut bytes = Vec::new();
    File::open(path).with_context(named)?.take(MAX_FILE + 1).read_to_end(&mut bytes).with_context(named)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(
            ClientError::Exhausted(format!("{} has more than {MAX_FILE} bytes", path.display())).into()
        );
    }
    Ok(bytes)
}

/// A checkpoint and the cluster that its signer is of.
fn signed_checkpoint(path: &Path, key: &str) -> anyhow::Result<(Checkpoint, String)> {
    let key: VerifierKey =
        key.parse().map_err(|error| ClientError::Invalid(format!("--verifier-key: {error}")))?;
    let note = String::from_utf8(read(path)?).map_err(|_| not_verified("the note is not UTF-8 text"))?;
    let signed = checkpoint::verify(&note, &key);
    let signed = signed.map_err(|error| not_verified(format!("{}: {error}", path.display())))?;
    let cluster = key.name().rsplit_once('/').map_or("", |(cluster, _)| cluster);
    Ok((signed, cluster.to_owned()))
}

fn not_verified(reason: impl Into<String>) -> NotVerified {
    NotVerified(reason.into())
}

fn proof(
    path: &Path,
    payload: Option<&Path>,
    signed: Option<&(Checkpoint, String)>,
) -> anyhow::Result<(Value, String)> {
    let malformed =
        |reason: String| ClientError::Invalid(format!("{} is not a proof file: {reason}", path.display()));
    let file: ProofFile =
        serde_json::from_slice(&read(path)?).map_err(|error| malformed(error.to_string()))?;
    if file.version > VERSION {
        let message = format!("its version is {}, and this build reads up to {VERSION}", file.version);
        return Err(malformed(message).into());
    }
    let suite = HashSuite::from_name(&file.hash_suite)
        .ok_or_else(|| malformed(format!("hash suite {:?} is unknown", file.hash_suite)))?;
    let context = ContextId::new(&file.context_id).map_err(|error| malformed(error.to_string()))?;
    let hash = |text: &str| Hash::from_hex(text).ok_or_else(|| malformed(format!("{text:?} is not a hash")));
    let hashes = |texts: &[String]| texts.iter().map(|text| hash(text)).collect::<Result<Vec<_>, _>>();

    let (size, root, what) = match &file.proof {
        Proven::Inclusion { sequence, size, root, content_hash, hashes: path, entry } => {
            let index = Sequence(*sequence).leaf_index().ok_or_else(|| malformed("sequence 0".to_owned()))?;
            let (data, root) = (hash(content_hash)?, hash(root)?);
            let proof = InclusionProof { index, size: *size, hashes: hashes(path)? };
            proof.verify_in(suite, &data, &root).map_err(|error| not_verified(error.to_string()))?;
            if let Some(entry) = entry {
                check_entry(&context, *sequence, entry, suite, data)
                    .map_err(|error| malformed(error.to_string()))??;
            }
            check_payload(payload, entry.as_ref(), suite)?;
            (
                *size,
                root,
                format!("entry {sequence} of {context} is in the tree of size {size} with root {root}"),
            )
        }
        Proven::Consistency { old_size, new_size, old_root, new_root, hashes: path } => {
            let (old, new) = (hash(old_root)?, hash(new_root)?);
            let proof = ConsistencyProof { old_size: *old_size, new_size: *new_size, hashes: hashes(path)? };
            proof.verify_in(suite, &old, &new).map_err(|error| not_verified(error.to_string()))?;
            (
                *new_size,
                new,
                format!("size {old_size} of {context} is a prefix of size {new_size} with root {new}"),
            )
        }
    };
    if let Some((signed, cluster)) = signed {
        if (signed.size().0, signed.root()) != (size, root) {
            let stated = format!("the checkpoint states size {} and root {}", signed.size(), signed.root());
            return Err(
                not_verified(format!("{stated}, the proof leads to size {size} and root {root}")).into()
            );
        }
        if signed.origin() != format!("{cluster}/{context}") {
            return Err(
                not_verified(format!("the checkpoint is of {}, not of {context}", signed.origin())).into()
            );
        }
    }
    let object = json!({
        "verified": signed.is_some(), "follows_from_root": true, "context_id": context.as_str(), "size": size,
        "root": root.to_string(), "signed": signed.is_some(), "payload_checked": payload.is_some(),
    });
    let text = if signed.is_some() {
        format!("verified: {what}, which that key signed")
    } else {
        format!(
            "it follows from the root in the file that {what}; nothing vouches for that root: verify it too with \
             --checkpoint FILE --verifier-key KEY"
        )
    };
    Ok((object, text))
}

/// Recomputes the content hash from the entry's fields.
fn check_entry(
    context: &ContextId,
    sequence: u64,
    entry: &ProvenEntry,
    suite: HashSuite,
    data: Hash,
) -> Result<Result<(), NotVerified>, ledger_core::id::IdError> {
    let hash = |text: &str| Hash::from_hex(text).unwrap_or(Hash([0; 32]));
    let fields = Fields {
        context_id: context,
        sequence: Sequence(sequence),
        id: &EntryId::new(&entry.id)?,
        key: &Key::new(entry.key.clone())?,
        lamport: LamportClock(entry.lamport_clock),
        appended_at_ns: entry.appended_at_ns,
        epoch: Epoch(entry.epoch),
        payload_hash: hash(&entry.payload_hash),
        metadata_hash: hash(&entry.metadata_hash),
    };
    let computed = with_suite!(suite, H => content_hash::<H>(&fields));
    Ok(if computed == data {
        Ok(())
    } else {
        Err(not_verified(format!("the entry's fields have content hash {computed}, the proof is of {data}")))
    })
}

fn check_payload(
    payload: Option<&Path>,
    entry: Option<&ProvenEntry>,
    suite: HashSuite,
) -> anyhow::Result<()> {
    let Some(path) = payload else { return Ok(()) };
    let entry = entry.ok_or_else(|| {
        ClientError::Invalid(
            "the proof file does not have the entry's fields: --payload cannot be checked".to_owned(),
        )
    })?;
    let bytes = read(path)?;
    let computed = with_suite!(suite, H => H::digest(&bytes));
    if computed.to_string() != entry.payload_hash {
        let message =
            format!("{} has hash {computed}, the entry's payload {}", path.display(), entry.payload_hash);
        return Err(not_verified(message).into());
    }
    Ok(())
}

fn snapshot_file(path: &Path) -> anyhow::Result<(Value, String)> {
    let named = || format!("{} cannot be read", path.display());
    let mut file = File::open(path).with_context(named)?;
    let mut start = [0; 1];
    let read_first = file.read(&mut start).with_context(named)?;
    if legacy::is_legacy(&start[..read_first]) {
        return legacy_snapshot(path);
    }
    let bar = progress::bytes(file.metadata().ok().map(|metadata| metadata.len()));
    let mut decoder =
        Decoder::new(snapshot::Limits { max_payload: MAX_PAYLOAD, ..snapshot::Limits::default() });
    decoder.feed(&start[..read_first]);
    let mut buffer = vec![0; 256 << 10];
    let mut header = None;
    loop {
        while let Some(item) = decoder.next().map_err(refused)? {
            if let Item::Header(found) = item {
                header = Some(found);
            }
        }
        match file.read(&mut buffer).with_context(named)? {
            0 => break,
            read => {
                bar.inc(read as u64);
                decoder.feed(&buffer[..read]);
            }
        }
    }
    bar.finish_and_clear();
    decoder.finish().map_err(refused)?;
    let header = header.ok_or_else(|| not_verified("the snapshot has no header"))?;
    let object = json!({
        "verified": true, "context_id": header.context_id.as_str(), "entries": header.count.0,
        "root": header.root.to_string(), "hash_suite": header.suite.name(), "lamport_clock": header.lamport.0,
        "lineage": header.lineage.to_string(), "format": "converge-ledger", "version": snapshot::VERSION,
    });
    let text = format!("verified: {} entries of {}, root {}", header.count, header.context_id, header.root);
    Ok((object, text))
}

fn refused(error: snapshot::SnapshotError) -> anyhow::Error {
    use snapshot::SnapshotError as E;
    match error {
        E::NotASnapshot | E::NewerVersion { .. } | E::Limit { .. } => {
            ClientError::Invalid(error.to_string()).into()
        }
        error => not_verified(error.to_string()).into(),
    }
}

fn legacy_snapshot(path: &Path) -> anyhow::Result<(Value, String)> {
    let limits = legacy::Limits { max_payload: MAX_PAYLOAD, ..legacy::Limits::default() };
    let found =
        legacy::Snapshot::decode(read(path)?, limits).map_err(|error| not_verified(error.to_string()))?;
    found.verify().map_err(|error| not_verified(error.to_string()))?;
    let root = found.merkle_root.map(|root| root.to_string());
    let object = json!({
        "verified": true, "context_id": found.context_id.as_str(), "entries": found.sequence.0, "root": root,
        "format": "predecessor", "version": found.version,
    });
    let how = match &root {
        Some(root) => format!("root {root}"),
        None => "version 1, which has no hashes to verify".to_owned(),
    };
    let text =
        format!("verified: {} entries of {} from the predecessor, {how}", found.sequence, found.context_id);
    Ok((object, text))
}
