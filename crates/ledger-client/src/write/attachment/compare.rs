//! Compares what a writer wrote with what the ledger has.

use std::{collections::VecDeque, time::Duration};

use ledger_core::{ContextId, Hash, Position, Size};
use ledger_proto::ledger::v1::MembersRequest;
use tokio::time::Instant;

use super::{
    buffer::{WriterMark, known_roots},
    state::Attachment,
};
use crate::{
    connection::{core::Client, destination::Destination, nodes::RetryAfter, retry::backoff_delay},
    error::ClientError,
    read::selection::{ReadFrom, Selection},
};

/// How long a new owner may not show acknowledged entries yet, because too few nodes are known to have a copy.
const VISIBLE_WITHIN: Duration = Duration::from_secs(2);

/// The writer's state before a comparison that found entries missing.
#[derive(Debug)]
pub(super) struct StateBefore {
    position: Option<Position>,
    marks: VecDeque<WriterMark>,
}

impl Attachment {
    /// Compares the writer's position with the owner's history. The appends missing there wait to be written again.
    pub(super) async fn compare(&mut self) -> Result<StateBefore, ClientError> {
        self.fetch_copies().await?;
        let destination = Destination::owner_of(&self.context);
        // The call must have time left to report what is missing.
        let timeout = VISIBLE_WITHIN.min(self.client.options().timeout / 4);
        let (started, mut attempts) = (Instant::now(), 0);
        loop {
            let owner = self.client.find_node(destination, &RetryAfter::default()).await;
            // Taken before the comparison: a connection that closes during it counts.
            let verified_owner = owner.ok().map(|owner| self.verified_owner_at(owner.address));
            let head = self.client.checkpoint_at(destination, &self.context, None).await?.position;
            let before = StateBefore { position: self.position, marks: self.buffer.marks().clone() };
            let (Some(base), Some(position)) = (self.base, self.position) else {
                (self.base, self.position) = (Some(head), Some(head));
                self.verified_owner = verified_owner;
                return Ok(before);
            };
            let common = self.common_size(&head, &base, &position).await?;
            if base.size <= common && self.buffer.mark_lost_after(common).is_ok() {
                if common != position.size {
                    self.position = Some(self.position_at(common, &head).await?);
                }
                self.verified_owner = verified_owner;
                return Ok(before);
            }
            attempts += 1;
            let delay = backoff_delay(attempts);
            if !self.may_show_more(&head, &position) || started.elapsed() + delay > timeout {
                return Err(self.missing_error(common.0 + 1));
            }
            tokio::time::sleep(delay).await;
        }
    }

    /// Whether the owner may show more entries soon: its history is the writer's, but shorter.
    fn may_show_more(&self, head: &Position, position: &Position) -> bool {
        let marked = self.buffer.marks().back().map_or(Size(0), |mark| Size(mark.stored_at.sequence.0));
        // A context without visible entries has no lineage.
        let is_same = head.lineage == position.lineage || head.size.0 == 0;
        is_same && head.size < position.size.max(marked)
    }

    /// Restores the state before a comparison: the entries it took for missing were there.
    pub(super) fn restore(&mut self, before: StateBefore) {
        self.buffer.restore_marks(before.marks);
        self.position = before.position;
    }

    /// Whether the owner's history passes through a position.
    pub(super) async fn passes_through(&self, position: &Position) -> Result<bool, ClientError> {
        if position.size.0 == 0 {
            return Ok(true);
        }
        Ok(root_at(&self.client, &self.context, position.size).await?
            == Some((position.root, position.lineage)))
    }

    /// How many entries the owner's history and the writer's have in common.
    async fn common_size(
        &self,
        head: &Position,
        base: &Position,
        position: &Position,
    ) -> Result<Size, ClientError> {
        if head.lineage != position.lineage && position.size.0 > 0 {
            // Another history altogether.
            return Ok(Size(0));
        }
        let known = known_roots(base, self.buffer.marks(), position);
        let within = known.partition_point(|(size, _)| *size <= head.size);
        let mut common = Size(0);
        // Nearly always the newest root matches. Else a binary search finds the first that differs: once two histories
        // differ, all their later roots do.
        let (mut low, mut high) = (0, within);
        let mut probe = within.checked_sub(1);
        while let Some(index) = probe {
            let (size, root) = known[index];
            let remote = if size == head.size {
                Some((head.root, head.lineage))
            } else {
                root_at(&self.client, &self.context, size).await?
            };
            if remote.is_some_and(|(remote, _)| remote == root) {
                common = size;
                low = index + 1;
            } else {
                high = index;
            }
            probe = (low < high).then(|| low + (high - low) / 2);
        }
        if common.0 == 0 && base.size.0 > 0 && within == 0 {
            // The history is shorter than the first root the writer knows: nothing contradicts what is there.
            return Ok(head.size);
        }
        self.extend_by_marks(common).await
    }

    /// Extends the common size beyond the newest common root, mark by mark.
    async fn extend_by_marks(&self, common: Size) -> Result<Size, ClientError> {
        let marks: Vec<_> =
            self.buffer.marks().iter().filter(|mark| mark.stored_at.sequence.0 > common.0).collect();
        let Some(last) = marks.last() else { return Ok(common) };
        let selection = Selection {
            after: common.newest(),
            limit: u32::try_from(last.stored_at.sequence.0 - common.0).unwrap_or(u32::MAX),
            read_from: ReadFrom::Owner,
            key: None,
        };
        let mut pages = self.client.get(&self.context, selection);
        let (mut marks, mut common) = (marks.into_iter().peekable(), common);
        while let Some(page) = pages.next().await? {
            for entry in page {
                // Entries between the marks are of other writers.
                let Some(mark) = marks.next_if(|mark| mark.stored_at.sequence <= entry.sequence) else {
                    continue;
                };
                if (mark.stored_at.sequence, mark.stored_at.content_hash)
                    != (entry.sequence, entry.content_hash)
                {
                    return Ok(common);
                }
                common = Size(entry.sequence.0);
            }
        }
        Ok(common)
    }

    /// The position at a common size.
    async fn position_at(&self, common: Size, head: &Position) -> Result<Position, ClientError> {
        if common == head.size {
            return Ok(*head);
        }
        let destination = Destination::owner_of(&self.context);
        Ok(self.client.checkpoint_at(destination, &self.context, Some(common)).await?.position)
    }

    /// Fetches once how many copies the cluster keeps, if the writer's options need it.
    async fn fetch_copies(&mut self) -> Result<(), ClientError> {
        if self.options.copies.is_none() || self.copies.is_some() {
            return Ok(());
        }
        let members = self.client.call(Destination::AnyNode, |channel| {
            let mut service = self.client.cluster_service_on(channel);
            async move { service.members(MembersRequest {}).await }
        });
        self.copies = Some(match members.await {
            Ok(response) => {
                let response = response.into_inner();
                (response.copies.max(1), response.min_copies.max(1))
            }
            // A standalone node has no members.
            Err(ClientError::Invalid(_)) => (1, 1),
            Err(error) => return Err(error),
        });
        Ok(())
    }
}

/// The root of the owner's history at a size, and its lineage; `None` if it is shorter.
async fn root_at(
    client: &Client,
    context: &ContextId,
    size: Size,
) -> Result<Option<(Hash, ledger_core::Lineage)>, ClientError> {
    match client.checkpoint_at(Destination::owner_of(context), context, Some(size)).await {
        Ok(checkpoint) => Ok(Some((checkpoint.position.root, checkpoint.position.lineage))),
        // OUT_OF_RANGE.
        Err(ClientError::Invalid(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
