//! `ledgerctl checkpoint` and `ledgerctl prove`, and the files they write.

use std::path::Path;

use anyhow::Context as _;
use ledger_client::{Client, ClientError, ContextId, Hash, HashSuite, Sequence, Size};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{args, output::Output};

/// Version of the proof files.
pub(crate) const VERSION: u32 = 1;

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
    pub lamport_clock: u64,
    pub appended_at_ns: u64,
    pub epoch: u64,
    pub payload_hash: String,
    pub metadata_hash: String,
}

pub(crate) async fn checkpoint(
    client: &Client,
    command: args::Checkpoint,
    output: &Output,
) -> anyhow::Result<()> {
    let context = ContextId::new(&command.context).map_err(ClientError::from)?;
    let checkpoint = client.checkpoint(&context, newest(command.size)).await?;
    if let Some(path) = &command.output {
        write(path, &checkpoint.signed_note)?;
    }
    let position = checkpoint.position;
    let object = json!({
        "context_id": context.as_str(), "size": position.size.0, "root": position.root.to_string(),
        "epoch": position.epoch.0, "lineage": position.lineage.to_string(),
        "lamport_clock": checkpoint.lamport.0, "hash_suite": checkpoint.suite.name(),
        "signed_note": checkpoint.signed_note, "verifier_key": checkpoint.verifier_key,
    });
    output.result(&object, || {
        format!(
            "context       {context}\nsize          {}\nroot          {} ({})\nverifier key  {}\n\n{}",
            position.size,
            position.root,
            checkpoint.suite,
            checkpoint.verifier_key,
            checkpoint.signed_note.trim_end()
        )
    })?;
    Ok(())
}

pub(crate) async fn run(client: &Client, command: args::Prove, output: &Output) -> anyhow::Result<()> {
    let (file, path) = match command {
        args::Prove::Inclusion { context, sequence, size, output } => {
            (inclusion(client, &context, sequence, size).await?, output)
        }
        args::Prove::Consistency { context, old, new, output } => {
            (consistency(client, &context, old, new).await?, output)
        }
    };
    if let Some(path) = &path {
        write(path, &(serde_json::to_string_pretty(&file)? + "\n"))?;
    }
    output.result(&serde_json::to_value(&file)?, || {
        let what = match &file.proof {
            Proven::Inclusion { sequence, size, root, .. } => {
                format!(
                    "entry {sequence} of {} is in the tree of size {size} with root {root}",
                    file.context_id
                )
            }
            Proven::Consistency { old_size, new_size, new_root, .. } => format!(
                "size {old_size} of {} is a prefix of size {new_size} with root {new_root}",
                file.context_id
            ),
        };
        match &path {
            Some(path) => format!("{what}: verified; proof written to {}", path.display()),
            None => format!("{what}: verified; keep the proof with --output FILE"),
        }
    })?;
    Ok(())
}

async fn inclusion(client: &Client, context: &str, sequence: u64, size: u64) -> anyhow::Result<ProofFile> {
    let context = ContextId::new(context).map_err(ClientError::from)?;
    let proven = client.prove_inclusion(&context, Sequence(sequence), newest(size)).await?;
    let after = Sequence(sequence.saturating_sub(1));
    let selection = ledger_client::Selection { after, limit: 1, ..ledger_client::Selection::default() };
    let entries = client.get(&context, selection).collect().await?;
    let entry = entries.first().filter(|entry| entry.content_hash == proven.content_hash);
    Ok(ProofFile {
        version: VERSION,
        context_id: context.to_string(),
        hash_suite: proven.suite.name().to_owned(),
        proof: Proven::Inclusion {
            sequence,
            size: proven.proof.size,
            root: proven.root.to_string(),
            content_hash: proven.content_hash.to_string(),
            hashes: hex(&proven.proof.hashes),
            entry: entry.map(|entry| proven_entry(entry, proven.suite)),
        },
    })
}

async fn consistency(client: &Client, context: &str, old: u64, new: u64) -> anyhow::Result<ProofFile> {
    let context = ContextId::new(context).map_err(ClientError::from)?;
    let proven = client.prove_consistency(&context, Size(old), newest(new)).await?;
    Ok(ProofFile {
        version: VERSION,
        context_id: context.to_string(),
        hash_suite: proven.suite.name().to_owned(),
        proof: Proven::Consistency {
            old_size: proven.proof.old_size,
            new_size: proven.proof.new_size,
            old_root: proven.old_root.to_string(),
            new_root: proven.new_root.to_string(),
            hashes: hex(&proven.proof.hashes),
        },
    })
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
