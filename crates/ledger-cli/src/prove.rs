//! `ledgerctl checkpoint` and `ledgerctl prove`, and the files they write.

use std::path::Path;

use anyhow::Context as _;
use ledger_client::{
    Basis, Client, ClientError, ContextId, Hash, HashSuite, KnownCheckpoints, Selection, Sequence, Size,
    Trust, TrustedCheckpoint,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    args::{self, Connection},
    escape,
    output::{Output, print},
    read, trust,
};

/// Version of the proof files. Version 1 had large numbers as numbers, which tools round; it is read.
pub(crate) const VERSION: u32 = 2;

/// A proof file: everything that verifying needs, as JSON; hashes are hex digits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProofFile {
    /// Version of this format.
    pub version: u32,
    /// The context.
    pub context_id: String,
    /// "blake3" or "sha256".
    pub hash_suite: String,
    /// What is proven.
    pub proof: Proven,
}

/// What is proven, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Proven {
    /// An entry is in the tree of a size (RFC 9162 §2.1.3).
    Inclusion {
        /// The entry.
        sequence: u64,
        /// Size of the tree.
        size: u64,
        /// Its root.
        root: String,
        /// The entry's content hash.
        content_hash: String,
        /// The proof's hashes, leaf to root.
        hashes: Vec<String>,
        /// The entry itself, so that its content can be compared with the content hash.
        #[serde(skip_serializing_if = "Option::is_none")]
        entry: Option<ProvenEntry>,
    },
    /// The tree of one size is a prefix of the tree of another (RFC 9162 §2.1.4).
    Consistency {
        /// The earlier size.
        old_size: u64,
        /// The later size.
        new_size: u64,
        /// The earlier root.
        old_root: String,
        /// The later root.
        new_root: String,
        /// The proof's hashes.
        hashes: Vec<String>,
    },
}

/// An entry's fields but its payload and metadata, which enter the content hash by their own hashes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProvenEntry {
    pub id: String,
    pub key: String,
    #[serde(with = "digits")]
    pub lamport_clock: u64,
    #[serde(with = "digits")]
    pub appended_at_ns: u64,
    #[serde(with = "digits")]
    pub epoch: u64,
    pub payload_hash: String,
    pub metadata_hash: String,
}

/// Numbers that may pass 2^53: written as strings of digits, read as either.
mod digits {
    use serde::{Deserialize, Deserializer, Serializer, de::Error as _};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
    pub(super) fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(number)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<u64, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Digits(String),
        }
        match Either::deserialize(from)? {
            Either::Number(number) => Ok(number),
            Either::Digits(digits) => digits.parse().map_err(D::Error::custom),
        }
    }
}

pub(crate) async fn checkpoint(
    connection: &Connection,
    command: args::Checkpoint,
    output: &Output,
) -> anyhow::Result<()> {
    let context = ContextId::new(&command.context).map_err(ClientError::from)?;
    let client = connection.client()?;
    let checkpoint = client.checkpoint(&context, newest(command.size)).await?;
    if checkpoint.position.size.0 == 0 && !command.allow_empty {
        return Err(read::absent(&context));
    }
    let mut how =
        "as this node states it, and signed by it: hold it against what you trust with --verify".to_owned();
    if command.verified.verify {
        let trust = trust::of(&command.verified, &connection.endpoint)?;
        let size = checkpoint.position.size;
        let trusted = client.trusted_checkpoint_at(&context, size, &trust).await?;
        if trusted.head().root != checkpoint.position.root {
            let message = format!("the ledger states two roots of {context} at size {size}");
            return Err(ClientError::NotVerified(message).into());
        }
        how = format!("verified: {}", basis(trusted.basis()));
    }
    if let Some(path) = &command.output {
        write(path, &checkpoint.signed_note)?;
    }
    let position = checkpoint.position;
    let object = json!({
        "context_id": context.as_str(), "size": position.size.0, "root": position.root.to_string(),
        "epoch": position.epoch.0, "lineage": position.lineage.to_string(),
        "lamport_clock": checkpoint.lamport.0, "hash_suite": checkpoint.suite.name(),
        "signed_note": checkpoint.signed_note, "verifier_key": checkpoint.verifier_key,
        "verified": command.verified.verify,
    });
    output.result(&object, || {
        format!(
            "context       {context}\nsize          {}\nroot          {} ({})\nverifier key  {}\n{how}\n\n{}",
            position.size,
            position.root,
            checkpoint.suite,
            checkpoint.verifier_key,
            checkpoint.signed_note.trim_end()
        )
    })?;
    Ok(())
}

/// What the trust in a checkpoint rests on, for people.
fn basis(basis: Basis) -> &'static str {
    match basis {
        Basis::Signed => "signed by a key that you trust",
        Basis::Known => "continuing what was seen before",
        Basis::FirstUse => "the first that is seen of this context, taken on trust",
    }
}

pub(crate) async fn run(
    connection: &Connection,
    command: args::Prove,
    output: &Output,
) -> anyhow::Result<()> {
    let client = connection.client()?;
    let (args::Prove::Inclusion { verified, context, output: path, .. }
    | args::Prove::Consistency { verified, context, output: path, .. }) = &command;
    let context = ContextId::new(context).map_err(ClientError::from)?;
    let trust = if verified.verify {
        trust::of(verified, &connection.endpoint)?
    } else {
        // What the node states now, and no more: said below.
        Trust::on_first_use(KnownCheckpoints::in_memory())
    };
    let (file, checkpoint) = match &command {
        args::Prove::Inclusion { sequence, size, .. } => {
            inclusion(&client, &context, *sequence, *size, &trust).await?
        }
        args::Prove::Consistency { old, new, .. } => {
            consistency(&client, &context, *old, *new, &trust).await?
        }
    };
    if let Some(path) = path {
        write(path, &(serde_json::to_string_pretty(&file)? + "\n"))?;
    }
    let how = if verified.verify {
        format!("verified, under a root {}", basis(checkpoint.basis()))
    } else {
        "so it follows from the root that this node states: hold that against what you trust with --verify"
            .to_owned()
    };
    show(&file, path.as_deref(), &how, output)
}

fn show(file: &ProofFile, path: Option<&Path>, how: &str, output: &Output) -> anyhow::Result<()> {
    if output.is_json() {
        // As in the file, so that it can be one.
        return Ok(print((escape::json(&serde_json::to_string(file)?) + "\n").as_bytes())?);
    }
    output.result(&serde_json::Value::Null, || {
        let context = &file.context_id;
        let what = match &file.proof {
            Proven::Inclusion { sequence, size, root, .. } => {
                format!("entry {sequence} of {context} is in the tree of size {size} with root {root}")
            }
            Proven::Consistency { old_size, new_size, new_root, .. } => {
                format!("size {old_size} of {context} is a prefix of size {new_size} with root {new_root}")
            }
        };
        match path {
            Some(path) => format!("{what}: {how}; proof written to {}", path.display()),
            None => format!("{what}: {how}; keep the proof with --output FILE"),
        }
    })?;
    Ok(())
}

async fn trusted(
    client: &Client,
    context: &ContextId,
    size: u64,
    trust: &Trust,
) -> anyhow::Result<TrustedCheckpoint> {
    let checkpoint = match newest(size) {
        Some(size) => client.trusted_checkpoint_at(context, size, trust).await?,
        None => client.trusted_checkpoint(context, trust).await?,
    };
    if checkpoint.head().size.0 == 0 {
        return Err(read::absent(context));
    }
    Ok(checkpoint)
}

async fn inclusion(
    client: &Client,
    context: &ContextId,
    sequence: u64,
    size: u64,
    trust: &Trust,
) -> anyhow::Result<(ProofFile, TrustedCheckpoint)> {
    let checkpoint = trusted(client, context, size, trust).await?;
    let (size, suite) = (checkpoint.head().size, checkpoint.suite());
    if sequence == 0 || sequence > size.0 {
        let message =
            format!("there is no entry {sequence} in {context} at size {size}: entries are 1 to {size}");
        return Err(ClientError::Invalid(message).into());
    }
    let selection = Selection::default().after(Sequence(sequence - 1)).at_most(1);
    let entries = client.get(context, selection.from_owner()).collect().await?;
    let entry = entries.first().filter(|entry| entry.sequence.0 == sequence);
    let missing = || ClientError::NotVerified(format!("the ledger does not show entry {sequence}"));
    let proven = client.prove_inclusion(entry.ok_or_else(missing)?, &checkpoint).await?;
    let file = ProofFile {
        version: VERSION,
        context_id: context.to_string(),
        hash_suite: suite.name().to_owned(),
        proof: Proven::Inclusion {
            sequence,
            size: size.0,
            root: checkpoint.head().root.to_string(),
            content_hash: proven.entry().content_hash.to_string(),
            hashes: hex(&proven.proof().hashes),
            entry: Some(proven_entry(proven.entry(), suite)),
        },
    };
    Ok((file, checkpoint))
}

async fn consistency(
    client: &Client,
    context: &ContextId,
    old: u64,
    new: u64,
    trust: &Trust,
) -> anyhow::Result<(ProofFile, TrustedCheckpoint)> {
    let newer = trusted(client, context, new, trust).await?;
    if old > newer.head().size.0 {
        let message = format!("{old} is larger than {}: the earlier size comes first", newer.head().size);
        return Err(ClientError::Invalid(message).into());
    }
    let older = client.trusted_checkpoint_at(context, Size(old), trust).await?;
    let proven = client.prove_consistency(&older, &newer).await?;
    let file = ProofFile {
        version: VERSION,
        context_id: context.to_string(),
        hash_suite: proven.suite().name().to_owned(),
        proof: Proven::Consistency {
            old_size: proven.proof().old_size,
            new_size: proven.proof().new_size,
            old_root: proven.old().root.to_string(),
            new_root: proven.new_head().root.to_string(),
            hashes: hex(&proven.proof().hashes),
        },
    };
    Ok((file, newer))
}

fn proven_entry(entry: &ledger_client::Entry, suite: HashSuite) -> ProvenEntry {
    use ledger_core::{entry::metadata_hash, hash::Hasher as _, with_suite};
    let (payload_hash, metadata_hash) =
        with_suite!(suite, H => (H::digest(&entry.payload), metadata_hash::<H>(&entry.metadata)));
    ProvenEntry {
        id: entry.id.to_string(),
        key: entry.key.to_string(),
        lamport_clock: entry.lamport.0,
        appended_at_ns: entry.appended_at_ns,
        epoch: entry.epoch.0,
        payload_hash: payload_hash.to_string(),
        metadata_hash: metadata_hash.to_string(),
    }
}

fn newest(size: u64) -> Option<Size> {
    (size > 0).then_some(Size(size))
}

fn hex(hashes: &[Hash]) -> Vec<String> {
    hashes.iter().map(Hash::to_string).collect()
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}
