//! Whether several writers take turns on a context.
//!
//! A context is to have one engine that writes it. The ledger stops no second one; it counts and reports what looks like
//! two, and refuses nothing for it. A client names itself in the metadata of its appends ([`METADATA`]); appends
//! without a name, or with one that cannot be used, are not looked at. The node that stores the appends looks:
//!
//! | the append is by | then |
//! | --- | --- |
//! | the writer of the one before | nothing |
//! | a writer not remembered | it takes over: one engine after the other is as it should be |
//! | a writer that others took over from | it is back: writers are interleaved, which is counted |
//!
//! What is remembered is bounded and in memory, and a new owner begins anew: some turns may be missed, and none is
//! counted that was not.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ledger_core::{
    ContextId,
    slot::{SLOTS, Slot},
};
use parking_lot::Mutex;
use tonic::metadata::{MetadataMap, MetadataValue};

use crate::limits;

/// The metadata in which a client names itself: with each request to append, or once for a stream of them.
pub const METADATA: &str = "converge-writer";
/// How long a context that was reported is not reported again.
const QUIET: Duration = Duration::from_mins(1);

/// The name of a writer: 1 to [`limits::WRITER_NAME`] visible ASCII characters. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer(Arc<str>);

impl Writer {
    /// The name that a request carries; `None` if there is none that can be used.
    pub fn of(metadata: &MetadataMap) -> Option<Self> {
        let name = metadata.get(METADATA)?.to_str().ok()?;
        let is_name =
            (1..=limits::WRITER_NAME).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_graphic());
        // Copied: the request's own bytes may be a part of much more.
        is_name.then(|| Self(name.into()))
    }

    /// Puts the name into the metadata of a request.
    pub fn write_to(&self, metadata: &mut MetadataMap) {
        if let Ok(name) = MetadataValue::try_from(&*self.0) {
            metadata.insert(METADATA, name);
        }
    }
}

/// Who writes which context.
#[derive(Debug)]
pub struct Writers {
    /// By slot: a lock is shared by few contexts.
    slots: Box<[SlotWriters]>,
    reports: Reports,
}

/// Contexts of a slot.
#[derive(Debug)]
struct SlotWriters {
    /// Counts what may make a [`WriterCheck`] wrong: a context's writer changed, or was forgotten.
    changes: AtomicU64,
    /// The one looked up last at the end.
    known: Mutex<Vec<KnownWriters>>,
}

#[derive(Debug)]
struct KnownWriters {
    context: ContextId,
    writers: RecentWriters,
}

/// The last writers of a context, the present one first.
#[derive(Debug, Default)]
struct RecentWriters([Option<Writer>; limits::WRITERS_PER_CONTEXT]);

/// What an append by a writer was.
#[derive(Debug, PartialEq, Eq)]
enum WriterChange {
    /// The first of the context, as far as is remembered.
    First,
    /// By the writer of the one before.
    Same,
    /// By a writer that takes over.
    Next,
    /// By a writer that is back after others, the last of which is named.
    Back(Writer),
}

/// What one stream, whose writer stays the same, remembers of a context: a look at it costs a comparison while no writer
/// in the slot changes.
#[derive(Debug, Default)]
pub struct WriterCheck {
    slot: Option<Slot>,
    /// The slot's changes when the stream's writer was found to be the present one; 0: not yet.
    changes: u64,
}

impl Default for Writers {
    fn default() -> Self {
        let contexts = |_| SlotWriters { changes: AtomicU64::new(1), known: Mutex::default() };
        Self { slots: (0..SLOTS).map(contexts).collect(), reports: Reports::default() }
    }
}

impl Writers {
    /// Notes an append; gives the writer it came after if the two are interleaved.
    pub fn wrote(&self, context: &ContextId, writer: &Writer, seen: &mut WriterCheck) -> Option<Writer> {
        let slot = *seen.slot.get_or_insert_with(|| Slot::of(context));
        let contexts = self.slots.get(usize::from(slot.number()))?;
        if seen.changes == contexts.changes.load(Ordering::Acquire) {
            return None;
        }
        let mut known = contexts.known.lock();
        let at = known.iter().position(|known| known.context == *context);
        let is_full = at.is_none() && known.len() >= limits::WRITTEN_PER_SLOT;
        // The one that was not looked up for longest makes room.
        let at = at.or(is_full.then_some(0));
        let mut found = at
            .map(|at| known.remove(at))
            .filter(|_| !is_full)
            .unwrap_or_else(|| KnownWriters { context: context.clone(), writers: RecentWriters::default() });
        let turn = found.writers.take(writer);
        known.push(found);
        if is_full || matches!(turn, WriterChange::Next | WriterChange::Back(_)) {
            contexts.changes.fetch_add(1, Ordering::Release);
        }
        seen.changes = contexts.changes.load(Ordering::Acquire);
        match turn {
            WriterChange::Back(other) => Some(other),
            WriterChange::First | WriterChange::Same | WriterChange::Next => None,
        }
    }

    /// Logs that a writer came back after another one, unless the context was reported a moment ago.
    pub fn report(&self, context: &ContextId, writer: &Writer, other: &Writer) {
        if self.reports.allow(context, Instant::now()) {
            tracing::warn!(
                %context,
                writer = &*writer.0,
                other = %other.0,
                "two writers take turns on a context, where one engine is to write: nothing was refused; if this is \
                 not a writer taken back once, find both by their names and stop one"
            );
        }
    }
}

impl RecentWriters {
    fn take(&mut self, writer: &Writer) -> WriterChange {
        let before = self.0[0].clone();
        let at = self.0.iter().position(|known| known.as_ref() == Some(writer));
        // The one that wrote before all others makes room for one that is new.
        let at_or_last = at.unwrap_or(self.0.len() - 1);
        self.0[..=at_or_last].rotate_right(1);
        self.0[0] = Some(writer.clone());
        match (at, before) {
            (Some(0), _) => WriterChange::Same,
            (Some(_), Some(other)) => WriterChange::Back(other),
            (None, Some(_)) => WriterChange::Next,
            (_, None) => WriterChange::First,
        }
    }
}

/// The contexts that were reported, and when: each now and then, and not too many at once.
#[derive(Debug, Default)]
struct Reports(Mutex<HashMap<ContextId, Instant>>);

impl Reports {
    /// Whether to report a context now.
    fn allow(&self, context: &ContextId, now: Instant) -> bool {
        let is_recent = |at: &Instant| now.saturating_duration_since(*at) < QUIET;
        let mut reported = self.0.lock();
        if reported.get(context).is_some_and(is_recent) {
            return false;
        }
        if reported.len() >= limits::WRITER_REPORTS {
            reported.retain(|_, at| is_recent(at));
        }
        let has_room = reported.len() < limits::WRITER_REPORTS;
        if has_room {
            reported.insert(context.clone(), now);
        }
        has_room
    }
}

#[cfg(test)]
mod tests;
