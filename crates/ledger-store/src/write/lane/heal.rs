//! A lane installs the staged history of a damaged context.

use std::sync::Arc;

use ledger_core::{
    ContextId, Head, Size,
    digest::TreeHead,
    healing::{HeadAtInstall, HealProof, InstallCase, InstallDecision},
    loads::LoadSpan,
    slot::Slot,
};
use rocksdb::WriteBatch;

use super::Lane;
use crate::{
    StoreError,
    engine::db::Db,
    engine::families::RowLocation,
    engine::heads::{self, read_head},
    engine::index,
    error::damaged,
    integrity::forks::{self, Evidence, Tip},
    limited,
    replicate::ranges,
    replicate::verify::{RangeCheck, check},
    write::command::{Heal, Healed},
    write::staging,
    write::state::ContextState,
};

/// The lane reads entries that were appended since the staging itself if they have at most this many bytes, because
/// it does nothing else meanwhile.
const READ_BYTES: usize = 4 << 20;

impl Lane {
    /// Installs a staged history in place of damaged rows, if it is proven to be right.
    pub(super) fn heal(&mut self, db: &Arc<Db>, heal: Heal) -> Result<Healed, StoreError> {
        let Heal { context, proof, from, mut state, loaded, generation } = heal;
        staging::check(db, generation, &context)?;
        let mut case = self.install_case(db, &context, &proof, state.extent())?;
        loop {
            let (local, row) = head_at_install(read_head(db, &context), from)?;
            match case.decide(local, state.extent()) {
                InstallDecision::Install => {
                    return match proof {
                        HealProof::Head => self.put_by_head(db, context, row, state, loaded),
                        HealProof::Digest(_) => {
                            db.committed_heads().relocate_all(&context, state.place);
                            self.put_healed(db, context, None, state, loaded)
                        }
                        HealProof::Claim { .. } => self.put_in_claim(db, &context, row, state, loaded),
                    };
                }
                InstallDecision::Extend(head) => match add_newer(db, &context, &mut state, &head) {
                    Ok(true) => {}
                    Ok(false) | Err(StoreError::Damaged { .. }) => return Ok(Healed::Behind(head)),
                    Err(error) => return Err(error),
                },
                InstallDecision::ForkTail(common) => {
                    let is_lost = !self.fork_tail(db, &context, common, &mut state)?;
                    if let InstallCase::InClaim { is_tail_lost, .. } = &mut case {
                        *is_tail_lost = is_lost;
                    }
                }
                // The scrub finds any damage of the new rows again.
                InstallDecision::Obsolete => {
                    staging::abandon(db, state.place)?;
                    self.shared.quarantine.release(&context);
                    return Ok(Healed::InPlace);
                }
                InstallDecision::Refuse(refused) => {
                    return Err(StoreError::Io(format!("context {context} is not restored: {refused}")));
                }
            }
        }
    }

    /// Returns what the decision to install depends on.
    fn install_case(
        &mut self,
        db: &Db,
        context: &ContextId,
        proof: &HealProof,
        staged: TreeHead,
    ) -> Result<InstallCase, StoreError> {
        Ok(match proof {
            HealProof::Head => InstallCase::ByHead,
            HealProof::Digest(bucket) => InstallCase::ByDigest {
                is_proven: match &self.shared.digests {
                    Some(digests) => digests.proves(db, context, staged, bucket)?,
                    None => false,
                },
            },
            HealProof::Claim { claim, is_complete } => {
                let slot = Slot::of(context);
                InstallCase::InClaim {
                    is_complete: *is_complete,
                    is_tail_lost: false,
                    higher: self
                        .record(db, slot)?
                        .check_replicate(claim)
                        .err()
                        .map(|refused| refused.promised),
                    is_in_sync: self.replica.is_in_sync(slot, claim),
                }
            }
        })
    }

    /// Moves what this node has beyond the owner's history to a fork. Returns false if it cannot be read.
    fn fork_tail(
        &mut self,
        db: &Arc<Db>,
        context: &ContextId,
        common: Size,
        state: &mut ContextState,
    ) -> Result<bool, StoreError> {
        let slot = Slot::of(context);
        if let Some(copies) = &self.replication {
            copies.hide_diverged(&self.shared.publisher, slot);
        }
        self.replica.on_history_replaced(slot, context);
        self.cache.remove(context);
        let owners = state.extent();
        let theirs = Tip { size: owners.size, root: owners.root, epoch: state.head.epoch };
        let reason = "the owner of the slot has a shorter history, and this node's is damaged".to_owned();
        match forks::fork_off(db, context, common, &Evidence { theirs, reason }) {
            Ok(left) => {
                if let Some(digests) = &self.shared.digests {
                    digests.replace(context, left.was, left.now);
                }
                Ok(true)
            }
            Err(error @ (StoreError::Damaged { .. } | StoreError::OutOfRange { .. })) => {
                limited!(error, %context, %common, %error, "entries that were never acknowledged cannot be read, and give way to the owner's history");
                Ok(false)
            }
            Err(error) => {
                self.shared.commit_failed(&error);
                Err(error)
            }
        }
    }

    /// Installs the history of this node's head, with the head itself: it knows more than the tree does.
    fn put_by_head(
        &mut self,
        db: &Arc<Db>,
        context: ContextId,
        row: Option<(RowLocation, Head)>,
        mut state: ContextState,
        loaded: Option<LoadSpan>,
    ) -> Result<Healed, StoreError> {
        let Some((from, head)) = row else { return Err(heads::lost_head(&context)) };
        state.head = head;
        // Readers with a pinned head find the same entries at the new location from now on.
        db.committed_heads().relocate(&context, from, state.place);
        self.put_healed(db, context, Some(from), state, loaded)
    }

    /// Installs the owner's history.
    fn put_in_claim(
        &mut self,
        db: &Arc<Db>,
        context: &ContextId,
        row: Option<(RowLocation, Head)>,
        mut state: ContextState,
        loaded: Option<LoadSpan>,
    ) -> Result<Healed, StoreError> {
        let slot = Slot::of(context);
        // Hide the slot, so that no reader sees a history that is being replaced.
        if let Some(copies) = &self.replication {
            copies.hide_diverged(&self.shared.publisher, slot);
        }
        self.replica.on_history_replaced(slot, context);
        let now = state.extent();
        let (from, before) = row.map(|(place, head)| (place, head.tree_head())).unzip();
        self.put_healed(db, context.clone(), from, state, loaded)?;
        if let Some(digests) = &self.shared.digests {
            match before {
                Some(before) => digests.replace(context, Some(before), Some(now)),
                None => digests.recount(db, context, now)?,
            }
        }
        Ok(Healed::InPlace)
    }

    /// Makes a staged history the context's. If the location of the old rows is unknown, they remain and are never
    /// read.
    fn put_healed(
        &mut self,
        db: &Arc<Db>,
        context: ContextId,
        from: Option<RowLocation>,
        state: ContextState,
        loaded: Option<LoadSpan>,
    ) -> Result<Healed, StoreError> {
        let mut batch = WriteBatch::default();
        state.put_head(db, &mut batch, &context, &mut self.buffer)?;
        index::put(db, &mut batch, &context)?;
        if let Some(from) = from {
            staging::remove_rows(db, &mut batch, from)?;
            self.shared.publisher.uncommitted_loads.relocate(db, &mut batch, from, state.place)?;
        }
        if let Some(span) = loaded {
            // A node that fetches the load from here must install it whole or not at all.
            self.shared.publisher.uncommitted_loads.note(db, &mut batch, state.place, None, span)?;
        }
        staging::forget(db, &mut batch, state.place)?;
        db.write(batch).and_then(|()| db.sync()).inspect_err(|error| self.shared.commit_failed(error))?;
        self.shared.quarantine.release(&context);
        self.cache.remove(&context);
        self.cache.insert(context, state);
        Ok(Healed::InPlace)
    }
}

/// Returns what the head's row says at the moment of installing, and the row. `from` is the location of the damaged rows
/// when the staging began; `None` if the head was lost.
fn head_at_install(
    row: Result<Option<(RowLocation, Head)>, StoreError>,
    from: Option<RowLocation>,
) -> Result<(HeadAtInstall, Option<(RowLocation, Head)>), StoreError> {
    match row {
        Ok(None) => Ok((HeadAtInstall::Absent, None)),
        Ok(Some((place, head))) => {
            let is_replaced = from.is_some_and(|from| from != place);
            let local = HeadAtInstall::Present { head: head.tree_head(), is_replaced };
            Ok((local, Some((place, head))))
        }
        Err(StoreError::Damaged { .. }) => Ok((HeadAtInstall::Unreadable, None)),
        Err(error) => Err(error),
    }
}

/// Stages the entries that were appended since the staging, if they are few. Returns whether it did.
fn add_newer(
    db: &Arc<Db>,
    context: &ContextId,
    state: &mut ContextState,
    now: &TreeHead,
) -> Result<bool, StoreError> {
    let mut batch = WriteBatch::default();
    while state.head.size() < now.size {
        let rest = READ_BYTES.saturating_sub(batch.size_in_bytes());
        if rest == 0 {
            return Ok(false);
        }
        let range = ranges::read(db, context, state.head.size(), now.size, rest)?;
        let RangeCheck::Continues(verified) = check(context, &state.head, &range, 0)? else {
            return Err(damaged(context, range.end().newest(), "its entries do not give its root"));
        };
        state.accept_verified(db, &mut batch, verified, |_| ())?;
    }
    db.write_unsynced(batch)?;
    Ok(true)
}
