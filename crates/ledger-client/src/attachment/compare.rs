//! Comparing what a writer wrote with what the ledger has.

use std::{collections::VecDeque, time::Duration};

use ledger_core::{ContextId, Hash, Position, Size};
use ledger_proto::ledger::v1::MembersRequest;
use tokio::time::Instant;

use super::{
    Attachment,
    buffer::{WriterMark, known_roots},
};
use crate::{Client, ClientError, ReadFrom, Selection, nodes::LeftAlone, retry::pause, route::Aim};

/// How long what was acknowledged may not be shown yet, because too few have a copy.
const SHOWN_WITHIN: Duration = Duration::from_secs(2);

/// What was known before a comparison that found something missing.
#[derive(Debug)]
pub(super) struct Found {
    position: Option<Position>,
    marks: VecDeque<WriterMark>,
}

impl Attachment {
    /// Compares the writer's position with the owner's history. What is missing there waits from now on to be
    /// written again.
    pub(super) async fn compare(&mut self) -> Result<Found, ClientError> {
        self.learn_copies().await?;
        let aim = Aim::owner_of(&self.context);
        // The time of the call must be enough to say what is missing.
        let patience = SHOWN_WITHIN.min(self.client.options().timeout / 4);
        let (begun, mut looks) = (Instant::now(), 0);
        loop {
            let owner = self.client.target(aim, &LeftAlone::default()).await;
            // As of before the comparison: what ends during it counts.
            let sure = owner.ok().map(|owner| self.sure_of(owner.address));
            let head = self.client.checkpoint_at(aim, &self.context, None).await?.position;
            let found = Found { position: self.position, marks: self.buffer.marks().clone() };
            let (Some(base), Some(position)) = (self.base, self.position) else {
                (self.base, self.position) = (Some(head), Some(head));
                self.sure = sure;
                return Ok(found);
            };
            let common = self.common(&head, &base, &position).await?;
            if base.size <= common && self.buffer.lose_after(common).is_ok() {
                if common != position.size {
                    self.position = Some(self.at(common, &head).await?);
                }
                self.sure = sure;
                return Ok(found);
            }
            looks += 1;
            let pause = pause(looks);
            if !self.is_behind(&head, &position) || begun.elapsed() + pause > patience {
                return Err(self.missing(common.0 + 1));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Whether the ledger may have more than it shows: its history is the writer's, but shorter.
    fn is_behind(&self, head: &Position, position: &Position) -> bool {
        let marked = self.buffer.marks().back().map_or(Size(0), |mark| Size(mark.place.sequence.0));
        // A context of which nothing is shown has no lineage.
        let is_same = head.lineage == position.lineage || head.size.0 == 0;
        is_same && head.size < position.size.max(marked)
    }

    /// What was taken for missing was there.
    pub(super) fn restore(&mut self, found: Found) {
        self.buffer.restore_marks(found.marks);
        self.position = found.position;
    }

    /// Whether the owner's history passes through a position.
    pub(super) async fn passes_through(&self, position: &Position) -> Result<bool, ClientError> {
        if position.size.0 == 0 {
            return Ok(true);
        }
        Ok(root_at(&self.client, &self.context, position.size).await?
            == Some((position.root, position.lineage)))
    }

    /// How many entries of the writer's history the ledger's has in common with it.
    async fn common(
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
        // Nearly always the newest is the one. Else the first that differs is found by halving: once two histories
        // differ, so do their roots for ever.
        let (mut low, mut high) = (0, within);
        let mut probe = within.checked_sub(1);
        while let Some(index) = probe {
            let (size, root) = known[index];
            let theirs = if size == head.size {
                Some((head.root, head.lineage))
            } else {
                root_at(&self.client, &self.context, size).await?
            };
            if theirs.is_some_and(|(theirs, _)| theirs == root) {
                common = size;
                low = index + 1;
            } else {
                high = index;
            }
            probe = (low < high).then(|| low + (high - low) / 2);
        }
        if common.0 == 0 && base.size.0 > 0 && within == 0 {
            // Shorter than all that is known of it: as far as anybody can tell, what is there is what was.
            return Ok(head.size);
        }
        self.extend(common).await
    }

    /// Beyond the newest root that is known to be common, entry by entry.
    async fn extend(&self, common: Size) -> Result<Size, ClientError> {
        let marks: Vec<_> =
            self.buffer.marks().iter().filter(|mark| mark.place.sequence.0 > common.0).collect();
        let Some(last) = marks.last() else { return Ok(common) };
        let selection = Selection {
            after: common.newest(),
            limit: u32::try_from(last.place.sequence.0 - common.0).unwrap_or(u32::MAX),
            read_from: ReadFrom::Owner,
            key: None,
        };
        let mut pages = self.client.get(&self.context, selection);
        let (mut marks, mut common) = (marks.into_iter().peekable(), common);
        while let Some(page) = pages.next().await? {
            for entry in page {
                // Entries between the marks are other writers'.
                let Some(mark) = marks.next_if(|mark| mark.place.sequence <= entry.sequence) else {
                    continue;
                };
                if (mark.place.sequence, mark.place.content_hash) != (entry.sequence, entry.content_hash) {
                    return Ok(common);
                }
                common = Size(entry.sequence.0);
            }
        }
        Ok(common)
    }

    /// The position at a size that is known to be common.
    async fn at(&self, common: Size, head: &Position) -> Result<Position, ClientError> {
        if common == head.size {
            return Ok(*head);
        }
        let aim = Aim::owner_of(&self.context);
        Ok(self.client.checkpoint_at(aim, &self.context, Some(common)).await?.position)
    }

    /// Learns once how many copies there are, if it matters.
    async fn learn_copies(&mut self) -> Result<(), ClientError> {
        if self.options.copies.is_none() || self.copies.is_some() {
            return Ok(());
        }
        let members = self.client.call(Aim::Any, |channel| {
            let mut service = self.client.cluster_service_on(channel);
            async move { service.members(MembersRequest {}).await }
        });
        self.copies = Some(match members.await {
            Ok(answer) => {
                let answer = answer.into_inner();
                (answer.copies.max(1), answer.min_copies.max(1))
            }
            // A standalone node that knows of no cluster.
            Err(ClientError::Invalid(_)) => (1, 1),
            Err(error) => return Err(error),
        });
        Ok(())
    }
}

/// The root of the owner's history at a size, and which history it is; `None` if it is shorter.
async fn root_at(
    client: &Client,
    context: &ContextId,
    size: Size,
) -> Result<Option<(Hash, ledger_core::Lineage)>, ClientError> {
    match client.checkpoint_at(Aim::owner_of(context), context, Some(size)).await {
        Ok(checkpoint) => Ok(Some((checkpoint.position.root, checkpoint.position.lineage))),
        // OUT_OF_RANGE.
        Err(ClientError::Invalid(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
