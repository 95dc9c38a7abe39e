//! Results of appends on their way to the client, and what they take until they are sent.

use std::sync::Arc;

use bytes::Bytes;
use ledger_proto::ledger::v1::{AppendResult, AppendResults};
use ledger_store::{
    Receipt,
    budget::{Permit, Share},
};

use crate::{
    grpc::call::{self, Call, ReservedAnswer},
    grpc::status::Refusal,
    limits,
};

/// Results of entries that the store here never saw, and the room they take until they are sent.
pub(super) type RefusedResults = (AppendResults, Vec<ResultPermit>);

/// What results take until they are sent: their number on the stream, and bytes of the node's answers.
#[derive(Debug)]
pub(super) struct ResultPermit {
    pub(super) items: Permit,
    pub(super) answers: Arc<ReservedAnswer>,
}

impl ResultPermit {
    /// Waits for the room of so many.
    ///
    /// # Errors
    /// As [`call::reserve_results`].
    pub(super) async fn of(
        count: usize,
        items: &Arc<Share>,
        call: Option<&Arc<Call>>,
    ) -> Result<Self, Refusal> {
        let items = items.acquire(count).await;
        let answers = Arc::new(call::reserve_results(call.cloned(), count * limits::RESULT).await?);
        Ok(Self { items, answers })
    }

    /// One result's part.
    pub(super) fn split(&mut self) -> Option<Self> {
        Some(Self { items: self.items.split(1)?, answers: Arc::clone(&self.answers) })
    }
}

/// The result of an entry that was stored.
pub(super) fn succeeded(tag: u64, stored: &Receipt, content_hash: Bytes) -> AppendResult {
    AppendResult {
        tag,
        error: None,
        sequence: stored.sequence.0,
        lamport_clock: stored.lamport.0,
        appended_at_ns: stored.appended_at_ns,
        entry_id: stored.id.with_text(str::to_owned),
        content_hash,
        epoch: stored.epoch.0,
        repeated_id: stored.is_repeated,
    }
}

/// The result of an entry that was refused.
pub(super) fn failed(tag: u64, refusal: Refusal) -> AppendResult {
    AppendResult { tag, error: Some(refusal.into_append_error()), ..AppendResult::default() }
}
