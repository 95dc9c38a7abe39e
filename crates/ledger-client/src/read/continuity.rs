//! Checks that a stream which was opened again continues what was delivered, without a gap or a repetition.

use ledger_core::{ContextId, Entry, Hash, Sequence};
use ledger_proto::context::v1 as proto;

use crate::{convert, error::ClientError};

/// Checks entries across a reconnect. The new stream repeats the last entry that was delivered, so that the check sees
/// a history that has changed.
#[derive(Debug, Default)]
pub(super) struct ContinuityCheck {
    /// The last entry that was delivered.
    last: Option<(Sequence, Hash)>,
    /// The stream has yet to repeat the last entry.
    expects_last: bool,
    /// The sequence received last, or after which the stream began.
    received: Sequence,
}

impl ContinuityCheck {
    /// The caller received an entry.
    pub(super) fn delivered(&mut self, entry: &Entry) {
        self.last = Some((entry.sequence, entry.content_hash));
    }

    /// A stream begins after `from`: it repeats the last entry if that comes later.
    pub(super) fn stream_begins_after(&mut self, from: Sequence) {
        self.expects_last = self.last.is_some_and(|(last, _)| last > from);
        self.received = from;
    }

    /// The sequence after which the next stream must begin to repeat the last entry; `after` if none was delivered.
    pub(super) fn resume_point(&self, after: Sequence) -> Sequence {
        self.last.map_or(after, |(last, _)| Sequence(last.0.saturating_sub(1)))
    }

    /// Checks an entry of the stream, and returns it if it is new.
    pub(super) fn accept(
        &mut self,
        context: &ContextId,
        entry: proto::Entry,
    ) -> Result<Option<Entry>, ClientError> {
        let entry = convert::entry(context, entry)?;
        convert::check_next(self.received, &entry)?;
        self.received = entry.sequence;
        Ok(self.is_new(context, &entry)?.then_some(entry))
    }

    /// Whether an entry is new; an error if the stream repeats another entry than the one delivered.
    fn is_new(&mut self, context: &ContextId, entry: &Entry) -> Result<bool, ClientError> {
        let Some((last, hash)) = self.last.filter(|_| self.expects_last) else { return Ok(true) };
        if entry.sequence < last {
            return Ok(false);
        }
        if (entry.sequence, entry.content_hash) != (last, hash) {
            let message = format!("entry {last} of context {context} is not the one that was read before");
            return Err(ClientError::HistoryChanged { message, common: None });
        }
        self.expects_last = false;
        Ok(false)
    }
}
