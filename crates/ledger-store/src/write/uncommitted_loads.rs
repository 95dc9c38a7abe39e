//! Tracks loads that are not known to be committed. Every node installs what a load brought as a whole or not at all.
//!
//! A loaded context has its row here until the load is committed. A node that fetches the context meanwhile learns
//! how far the load goes, and installs nothing before it has all of it. A change of owner therefore finds the whole
//! load at some node, or none of it anywhere. Once the load is committed, enough nodes hold it whole.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use ledger_core::{
    ContextId, Size,
    loads::{LoadSpan, LoadSpanState},
};
use parking_lot::Mutex;
use rocksdb::WriteBatch;

use crate::{
    StoreError,
    engine::db::Db,
    engine::errors::io_error,
    engine::families::{self, RowLocation},
};

const PREFIX: &[u8] = b"loaded/";
/// The first key beyond the prefix: '0' follows '/'.
const BEYOND: &[u8] = b"loaded0";

/// The loads that may be uncommitted, by the number of their context.
#[derive(Debug, Default)]
pub(crate) struct UncommittedLoads(Mutex<HashMap<u64, LoadSpan, RandomState>>);

fn key(place: RowLocation) -> Vec<u8> {
    [PREFIX, &place.slot.number().to_be_bytes(), &place.number.to_be_bytes()].concat()
}

impl UncommittedLoads {
    /// Reads the rows.
    pub(crate) fn open(db: &Db) -> Result<Self, StoreError> {
        let mut spans = HashMap::default();
        db.scan(families::META, PREFIX, BEYOND, true, |row, value| {
            let number = row.strip_prefix(PREFIX).and_then(|rest| rest.last_chunk::<8>());
            if let (Some(number), Some((after, to))) = (number, value.split_first_chunk::<8>())
                && let Ok(to) = to.try_into()
            {
                let (after, to) = (Size(u64::from_be_bytes(*after)), Size(u64::from_be_bytes(to)));
                spans.insert(u64::from_be_bytes(*number), LoadSpan { after, to });
            }
            true
        })
        .map_err(|error| io_error(&error))?;
        Ok(Self(Mutex::new(spans)))
    }

    /// Records a load in the batch that installs it. An earlier load that is not known to be committed becomes part
    /// of it.
    pub(crate) fn note(
        &self,
        db: &Db,
        batch: &mut WriteBatch,
        place: RowLocation,
        old: Option<RowLocation>,
        mut span: LoadSpan,
    ) -> Result<(), StoreError> {
        let mut spans = self.0.lock();
        if let Some(old) = old
            && let Some(before) = spans.remove(&old.number)
        {
            batch.delete_cf(db.family(families::META)?, key(old));
            span = span.with(before);
        }
        span = spans.get(&place.number).map_or(span, |before| span.with(*before));
        let value = [span.after.0.to_be_bytes(), span.to.0.to_be_bytes()].concat();
        batch.put_cf(db.family(families::META)?, key(place), value);
        spans.insert(place.number, span);
        Ok(())
    }

    /// Moves a load's row along with the context's rows, in this batch.
    pub(crate) fn relocate(
        &self,
        db: &Db,
        batch: &mut WriteBatch,
        from: RowLocation,
        to: RowLocation,
    ) -> Result<(), StoreError> {
        let known = self.0.lock().get(&from.number).copied();
        known.map_or(Ok(()), |span| self.note(db, batch, to, Some(from), span))
    }

    /// Returns which part of a load a range of a context belongs to: `None` if the range can be installed by itself.
    ///
    /// Removes the row of a load that turns out to be committed.
    pub(crate) fn of(
        &self,
        db: &Db,
        context: &ContextId,
        place: RowLocation,
        size: Size,
    ) -> Option<LoadSpan> {
        let span = *self.0.lock().get(&place.number)?;
        let readable = db.head(context).ok().flatten().filter(|(at, _)| *at == place);
        if span.state(size, readable.map(|(_, head)| head.size())) != LoadSpanState::Uncommitted {
            self.forget(db, place);
            return None;
        }
        Some(span)
    }

    /// Removes a load's row, because the load is committed or was forked off.
    pub(crate) fn forget(&self, db: &Db, place: RowLocation) {
        if self.0.lock().remove(&place.number).is_none() {
            return;
        }
        let mut batch = WriteBatch::default();
        let written = db.family(families::META).and_then(|family| {
            batch.delete_cf(family, key(place));
            db.write_unsynced(batch)
        });
        if let Err(error) = written {
            // The next start reads the row again and then removes it.
            tracing::debug!(%error, "the row of a load stays until restart");
        }
    }
}
