//! A lane installs the staged history of a damaged context.

use std::collections::BTreeMap;

use ledger_core::loads::LoadSpan;

use super::{
    Arc, Claim, ContextId, Db, Lane, RowLocation, Slot, StoreError, TreeHead, WriteBatch, read_head, staging,
};
use crate::{
    engine::index,
    read::pages::damaged,
    replicate::ranges,
    replicate::verify::{RangeCheck, check},
    write::state::ContextState,
};

/// The lane reads entries that were appended since the staging itself if they have at most this many bytes, because
/// it does nothing else meanwhile.
const READ_BYTES: usize = 4 << 20;

/// The history of a damaged context, staged under a new number.
#[derive(Debug)]
pub(crate) struct Heal {
    pub(crate) context: ContextId,
    pub(crate) proof: HealProof,
    pub(crate) state: ContextState,
    /// The entries that a load brought and that the other node does not know to be committed.
    pub(crate) loaded: Option<LoadSpan>,
    /// Generation of the database that holds the staged rows: they may not exist in another one.
    pub(crate) generation: u64,
}

/// What proves that a staged history is right.
#[derive(Debug, Clone)]
pub(crate) enum HealProof {
    /// This node's head, of the rows at this location.
    Head(RowLocation),
    /// The digest kept of it, with another node's tree heads of the other contexts in its bucket.
    Digest(BTreeMap<ContextId, TreeHead>),
    /// It is the history of the claim's owner.
    Claim(Claim),
}

/// The outcome of healing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Healed {
    /// The history is installed, or something else replaced the damaged rows meanwhile.
    InPlace,
    /// The context has this tree head by now, and the lane cannot read the entries that the staged history lacks.
    Behind(TreeHead),
}

impl Lane {
    /// Installs a staged history in place of damaged rows.
    pub(super) fn heal(&mut self, db: &Arc<Db>, heal: Heal) -> Result<Healed, StoreError> {
        let Heal { context, proof, state, loaded, generation } = heal;
        staging::check(db, generation, &context)?;
        match proof {
            HealProof::Head(from) => self.heal_by_head(db, context, from, state, loaded),
            HealProof::Digest(bucket) => self.heal_by_digest(db, context, &bucket, state, loaded),
            HealProof::Claim(claim) => self.heal_in_claim(db, &context, &claim, state, loaded),
        }
    }

    /// Installs the history of this node's head, including everything that was appended since the staging.
    fn heal_by_head(
        &mut self,
        db: &Arc<Db>,
        context: ContextId,
        from: RowLocation,
        mut state: ContextState,
        loaded: Option<LoadSpan>,
    ) -> Result<Healed, StoreError> {
        let row = read_head(db, &context)?;
        let Some((_, head)) = row.filter(|(place, head)| *place == from && head.size() >= state.head.size())
        else {
            // A load or the owner's history replaced the rows. The scrub finds any damage of those again.
            staging::abandon(db, state.place)?;
            self.shared.quarantine.release(&context);
            return Ok(Healed::InPlace);
        };
        match add_newer(db, &context, &mut state, &head.tree_head()) {
            Ok(true) => {}
            Ok(false) | Err(StoreError::Damaged { .. }) => return Ok(Healed::Behind(head.tree_head())),
            Err(error) => return Err(error),
        }
        if state.head.frontier != head.frontier {
            return Err(damaged(
                &context,
                head.size().newest(),
                "its entries do not give the root in its head",
            ));
        }
        state.head = head;
        // Readers with a pinned head find the same entries at the new location from now on.
        db.committed_heads().relocate(&context, from, state.place);
        self.put_healed(db, context, Some(from), state, loaded)
    }

    /// Installs the history whose tree head the digest proves. The head is lost, and nothing was appended since: an
    /// append would have needed the head or rewritten it.
    fn heal_by_digest(
        &mut self,
        db: &Arc<Db>,
        context: ContextId,
        bucket: &BTreeMap<ContextId, TreeHead>,
        mut state: ContextState,
        loaded: Option<LoadSpan>,
    ) -> Result<Healed, StoreError> {
        if read_head(db, &context).is_ok_and(|row| row.is_some()) {
            // An append rewrote the head from the cache: the context's entries are healed like any others.
            staging::abandon(db, state.place)?;
            self.shared.quarantine.release(&context);
            return Ok(Healed::InPlace);
        }
        let is_proven = match &self.shared.digests {
            Some(digests) => digests.proves(db, &context, state.extent(), bucket)?,
            None => false,
        };
        if !is_proven {
            let reason =
                "its head cannot be read, and nothing kept here shows that another node has all of it";
            return Err(StoreError::Io(format!("context {context} is not restored: {reason}")));
        }
        db.committed_heads().relocate_all(&context, state.place);
        self.put_healed(db, context, None, state, loaded)
    }

    /// Installs the owner's history while the claim holds. This node's copy must not go further, unless it cannot be
    /// read.
    fn heal_in_claim(
        &mut self,
        db: &Arc<Db>,
        context: &ContextId,
        claim: &Claim,
        mut state: ContextState,
        loaded: Option<LoadSpan>,
    ) -> Result<Healed, StoreError> {
        let slot = Slot::of(context);
        if let Err(refused) = self.record(db, slot)?.check_replicate(claim) {
            return Err(StoreError::Io(format!("context {context} is not restored: {refused}")));
        }
        let row = read_head(db, context);
        let goes_further = matches!(&row, Ok(Some((_, head))) if head.size() > state.head.size());
        if self.in_sync_claims.get(&slot) == Some(claim) || goes_further {
            let reason = "this node's copy goes further than the owner's, or is in step with it";
            return Err(StoreError::Io(format!("context {context} is not restored in a claim: {reason}")));
        }
        let known = row.ok().flatten();
        // Hide the slot, so that no reader sees a history that is being replaced.
        if let Some(copies) = &self.replication {
            copies.hide_diverged(&self.shared, slot);
            self.in_sync_claims.remove(&slot);
        }
        self.out_of_order.forget(context);
        let now = state.extent();
        let (from, before) = known.map(|(place, head)| (place, head.tree_head())).unzip();
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
            self.shared.uncommitted_loads.relocate(db, &mut batch, from, state.place)?;
        }
        if let Some(span) = loaded {
            // A node that fetches the load from here must install it whole or not at all.
            self.shared.uncommitted_loads.note(db, &mut batch, state.place, None, span)?;
        }
        staging::forget(db, &mut batch, state.place)?;
        db.write(batch).and_then(|()| db.sync()).inspect_err(|error| self.shared.commit_failed(error))?;
        self.shared.quarantine.release(&context);
        self.cache.remove(&context);
        self.cache.insert(context, state);
        Ok(Healed::InPlace)
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
