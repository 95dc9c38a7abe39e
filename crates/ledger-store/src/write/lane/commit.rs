//! A lane's group commit: staged, written, sent to the replicas, and passed on to be synced.

use std::sync::Arc;

use ledger_core::replication::PeerSet;

use super::{
    Lane,
    batch::{CommitBatch, QueuedAppend, Reply},
};
use crate::{
    BatchResult, Durability, Receipt,
    engine::db::Db,
    replicate::lane_replication::LaneReplication,
    replicate::replica::{Commit, Outgoing, Part},
    write::commit::{StagedCommit, WrittenCommit},
    write::syncer::OnDurable,
    write::waiters::SlotPart,
};

impl Lane {
    /// Stages a batch, writes it, and has it synced, replicated and acknowledged.
    pub(super) fn commit(&mut self, db: &Arc<Db>, batch: CommitBatch, is_alone: bool) {
        let CommitBatch { mut appends, mut replies, replicated, .. } = batch;
        if replies.is_empty() && replicated.is_empty() {
            return;
        }
        // The sort is stable: appends of one context stay in order, and their rows become neighbours.
        appends.sort_by_key(|append| append.context_hash);
        let mut staged = StagedCommit::new();
        for QueuedAppend { reply, tag, append, .. } in appends {
            let result = self.stage(db, &mut staged, append).map_err(|error| {
                self.shared.quarantine.record(&error);
                if self.replication.is_some() { self.shared.quarantine.restoring(error) } else { error }
            });
            match &mut replies[reply] {
                Reply::One(slot, ..) => *slot = Some(result.and_then(|stored| stored.appended(db, &staged))),
                Reply::Many(results, ..) => {
                    let result =
                        result.map(|stored| Receipt::of(stored.entry, stored.repeated_from.is_some()));
                    results.push(BatchResult { tag, result });
                }
            }
        }
        staged.waiters = replies.into_iter().filter_map(Reply::waiting).collect();
        for (parts, number, reply) in replicated {
            let taken =
                parts.into_iter().map(|part| self.apply_part(db, &mut staged, part, number)).collect();
            staged.replicate_replies.push((taken, reply));
        }
        self.write(db, staged, is_alone);
    }

    /// Writes a staged commit, and has it synced, replicated and acknowledged.
    pub(super) fn write(&mut self, db: &Arc<Db>, staged: StagedCommit, is_alone: bool) {
        // Nothing would overlap with the sync, so do it here instead of on the syncer's thread.
        let is_alone = is_alone && self.syncer.is_idle();
        let is_durable = is_alone && self.replication.is_none();
        let Some((written, states)) = staged.write(db, &self.shared, &mut self.buffer, is_durable) else {
            return;
        };
        for (context, state) in states {
            self.cache.insert(context, state);
        }
        let durable = match &self.replication {
            None => OnDurable::Standalone(written),
            Some(copies) => self.replicate(db, &Arc::clone(copies), written),
        };
        if is_durable || self.shared.options.durability != Durability::Always {
            durable.durable(&self.shared);
        } else if is_alone {
            match db.sync() {
                Ok(()) => durable.durable(&self.shared),
                Err(error) => {
                    self.shared.commit_failed(&error);
                    durable.fail(&error);
                }
            }
        } else {
            self.syncer.send(durable);
        }
    }

    /// Sends this node's own part of a commit to its peers, and keeps it until it has its write quorum.
    fn replicate(
        &mut self,
        db: &Arc<Db>,
        copies: &Arc<LaneReplication>,
        mut written: WrittenCommit,
    ) -> OnDurable {
        if let Some(digests) = &self.shared.digests {
            for written_context in
                written.contexts().iter().filter(|written_context| written_context.appended > 0)
            {
                digests.replace(
                    &written_context.context,
                    written_context.tree_head_before,
                    Some(written_context.tree_head),
                );
            }
        }
        let replicate_replies = written.take_replies();
        let (mut own, replicated) = written.split();
        if !replicated.is_empty() {
            copies.record_replicated(&self.shared.publisher, replicated);
        }
        let mut sent = Vec::new();
        for SlotPart { slot, write, .. } in &mut own {
            let Some((claim, peers)) = copies.ownership(*slot) else { continue };
            if !peers.is_empty() {
                let written = write.iter_mut().flatten();
                sent.extend(written.map(|written_context| (peers, written_context.part(*slot, &claim))));
            }
        }
        let has_own = !own.is_empty();
        let number = copies.record_own_commit(&self.shared.publisher, own);
        self.send(number, sent);
        OnDurable::Clustered {
            db: Arc::clone(db),
            replication: Arc::clone(copies),
            number: has_own.then_some(number),
            replicate_replies,
        }
    }

    /// Puts a commit on the streams of its peers: to each the parts of the slots that it replicates.
    fn send(&self, number: u64, parts: Vec<(PeerSet, Part)>) {
        let Some(outbox) = self.shared.publisher.outbox.get() else { return };
        let mut everybody = PeerSet::default();
        for (peers, _) in &parts {
            everybody.extend(*peers);
        }
        let is_same = parts.iter().all(|(peers, _)| *peers == everybody);
        let commit = |parts| Arc::new(Commit::new(self.number, number, parts));
        if is_same {
            let commit = commit(parts.into_iter().map(|(_, part)| part).collect());
            for peer in everybody.iter() {
                outbox.send(peer, Outgoing::Commit(Arc::clone(&commit)));
            }
            return;
        }
        for peer in everybody.iter() {
            let of = parts.iter().filter(|(peers, _)| peers.contains(peer)).map(|(_, part)| part.clone());
            outbox.send(peer, Outgoing::Commit(commit(of.collect())));
        }
    }
}
