//! Reading a context back, and recomputing everything the node says of it.

use bytes::Bytes;
use ledger_core::{
    ContextId, EntryId, Epoch, Hash, HashSuite, Key, Sequence, clock::LamportClock, hash::Hasher as _,
    tree::Frontier, with_suite,
};
use ledger_proto::context::v1::Entry;
use tonic::Status;

use crate::Rpc;

/// How far a context has been read and verified.
#[derive(Debug, Clone, Default)]
pub struct History {
    frontier: Frontier,
    lamport: u64,
    lineage: Bytes,
}

/// An entry of the contract as one of the core's.
pub fn core_entry(entry: &Entry) -> ledger_core::Entry {
    ledger_core::Entry {
        context_id: ContextId::new(&entry.context_id).unwrap(),
        sequence: Sequence(entry.sequence),
        id: EntryId::new(&entry.id).unwrap(),
        key: Key::new(entry.key.clone()).unwrap(),
        payload: entry.payload.clone(),
        metadata: entry.metadata.clone(),
        appended_at_ns: entry.appended_at_ns,
        lamport: LamportClock(entry.lamport_clock),
        epoch: Epoch(entry.epoch),
        content_hash: Hash::from_slice(&entry.content_hash).expect("a content hash of 32 bytes"),
    }
}

impl History {
    /// How many entries were verified.
    pub const fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Reads what follows and verifies it: sequences without a gap, rising Lamport times, each content hash
    /// recomputed, and the root recomputed from all of them equal to the checkpoint's. Returns what was read.
    pub async fn read_on(&mut self, rpc: &Rpc, context: &str) -> Result<Vec<Entry>, Status> {
        let entries = rpc.entries(context, self.size()).await?;
        let checkpoint = rpc.checkpoint(context).await?;
        let suite = HashSuite::from_name(&checkpoint.hash_suite).expect("a known hash suite");
        for entry in &entries {
            let name = format!("entry {} of {context}", entry.sequence);
            assert_eq!(entry.sequence, self.size() + 1, "sequences of {context} have a gap");
            assert_eq!(entry.context_id, context, "{name} belongs elsewhere");
            assert!(entry.lamport_clock > self.lamport, "{name}: Lamport times must rise");
            assert!(core_entry(entry).is_intact(suite), "{name} does not match its content hash");
            self.lamport = entry.lamport_clock;
            let hash = Hash::from_slice(&entry.content_hash).unwrap();
            with_suite!(suite, H => self.frontier.push::<H>(H::leaf(&hash), |_, _| {}));
        }
        assert_eq!(checkpoint.size, self.size(), "the checkpoint of {context} has another size");
        let root = with_suite!(suite, H => self.frontier.root::<H>());
        assert_eq!(
            Hash::from_slice(&checkpoint.root),
            Some(root),
            "the root of {context} is not that of its {} entries",
            self.size()
        );
        if self.lineage.is_empty() {
            self.lineage = checkpoint.lineage;
        } else {
            assert_eq!(self.lineage, checkpoint.lineage, "{context} has become another history");
        }
        Ok(entries)
    }

    /// Reads and verifies a context from its first entry.
    pub async fn read_all(rpc: &Rpc, context: &str) -> Result<(Self, Vec<Entry>), Status> {
        let mut history = Self::default();
        let entries = history.read_on(rpc, context).await?;
        Ok((history, entries))
    }
}
