//! Appends grouped by slot, and the state of each group.

use std::mem;

use ledger_core::slot::SLOTS;
use tokio::time::Instant;
use tonic::Status;

use super::super::pending::StreamId;
use crate::{
    connection::{
        nodes::RetryAfter,
        retry::{FailedCall, backoff_delay},
    },
    error::failure::Failure,
    options::Options,
};

/// The number of a group: that of its slot.
pub(super) type GroupNumber = u16;

/// The appends of one slot.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub state: GroupState,
    /// Appends in flight.
    pub in_flight: u32,
    /// Appends that are not in flight, in any order: by their index in `Pending`.
    pub waiting: Vec<u32>,
    /// Failures in a row.
    failures: u32,
    /// When the first of them was.
    failing_since: Option<Instant>,
    /// The nodes that asked this group to stay away.
    pub retry_after: RetryAfter,
}

/// See the table in [`super`].
#[derive(Debug, Default)]
pub(super) enum GroupState {
    #[default]
    New,
    Searching,
    Sending(StreamId),
    Draining(StreamId),
    Holding {
        on: StreamId,
        cause: FailedCall,
    },
    Pausing,
    Closed(Status),
}

/// What a group does after a failure.
pub(super) enum AfterFailure {
    /// Nothing: no append waits.
    Idle,
    /// Searches for the owner again at this time.
    RetryAt(Instant),
    /// Refuses its appends.
    GiveUp,
}

impl Group {
    /// The group's appends could not be stored for now.
    pub(super) fn on_failure(&mut self, failed: &FailedCall, options: &Options) -> AfterFailure {
        if self.waiting.is_empty() {
            self.state = GroupState::New;
            return AfterFailure::Idle;
        }
        let now = Instant::now();
        self.failures = self.failures.saturating_add(1);
        let is_late = now >= *self.failing_since.get_or_insert(now) + options.timeout;
        if failed.failure == Failure::Permanent || is_late || self.failures == options.tries {
            return AfterFailure::GiveUp;
        }
        self.retry_after.add(&failed.node, failed.failure.retry_after(), now);
        AfterFailure::RetryAt(now + backoff_delay(self.failures))
    }

    /// The owner stored an append, or refused it permanently.
    pub(super) fn on_final_result(&mut self) {
        (self.failures, self.failing_since) = (0, None);
    }
}

impl GroupState {
    /// The stream on which the group's appends are in flight.
    pub(super) const fn stream(&self) -> Option<StreamId> {
        match self {
            Self::Sending(id) | Self::Draining(id) | Self::Holding { on: id, .. } => Some(*id),
            Self::New | Self::Searching | Self::Pausing | Self::Closed(_) => None,
        }
    }
}

/// The groups of all slots.
#[derive(Debug)]
pub(super) struct Groups {
    all: Vec<Group>,
    /// Groups that are draining or holding: they go on when all their appends in flight have results.
    awaiting_results: Vec<GroupNumber>,
    /// Groups that are pausing, and until when.
    pausing: Vec<(Instant, GroupNumber)>,
}

impl Groups {
    pub(super) fn new() -> Self {
        let mut all = Vec::new();
        all.resize_with(SLOTS.into(), Group::default);
        Self { all, awaiting_results: Vec::new(), pausing: Vec::new() }
    }

    pub(super) fn get(&self, number: GroupNumber) -> &Group {
        &self.all[usize::from(number)]
    }

    pub(super) fn get_mut(&mut self, number: GroupNumber) -> &mut Group {
        &mut self.all[usize::from(number)]
    }

    /// The groups whose appends are in flight on a stream.
    pub(super) fn on_stream(&self, stream: StreamId) -> Vec<GroupNumber> {
        (0..)
            .zip(&self.all)
            .filter(|(_, group)| group.state.stream() == Some(stream))
            .map(|at| at.0)
            .collect()
    }

    /// Whether a group uses a stream.
    pub(super) fn use_stream(&self, stream: StreamId) -> bool {
        self.all.iter().any(|group| group.state.stream() == Some(stream))
    }

    /// Makes every group that sends on a stream move to another once all its appends in flight have results.
    pub(super) fn drain(&mut self, stream: StreamId) {
        for (number, group) in (0..).zip(&mut self.all) {
            if matches!(group.state, GroupState::Sending(id) if id == stream) {
                group.state = GroupState::Draining(stream);
                self.awaiting_results.push(number);
            }
        }
    }

    /// A group began to hold its appends until all that are in flight have results.
    pub(super) fn await_results(&mut self, number: GroupNumber) {
        if !self.awaiting_results.contains(&number) {
            self.awaiting_results.push(number);
        }
    }

    /// The stream of a group ended: there are no results to await.
    pub(super) fn stop_awaiting_results(&mut self, number: GroupNumber) {
        self.awaiting_results.retain(|awaiting| *awaiting != number);
    }

    /// Takes out the groups that awaited results and have them all.
    pub(super) fn take_those_with_all_results(&mut self) -> Vec<GroupNumber> {
        let Self { all, awaiting_results, .. } = self;
        let has_all = |number: &GroupNumber| all[usize::from(*number)].in_flight == 0;
        let (complete, left) = mem::take(awaiting_results).into_iter().partition(has_all);
        *awaiting_results = left;
        complete
    }

    /// Makes a group search for its owner again at a time.
    pub(super) fn pause(&mut self, number: GroupNumber, until: Instant) {
        self.get_mut(number).state = GroupState::Pausing;
        self.pausing.push((until, number));
    }

    /// How many groups are pausing: to pass to [`Groups::align_pauses`].
    pub(super) fn pausing_count(&self) -> usize {
        self.pausing.len()
    }

    /// Makes the groups that began to pause since the count was `first` go on together: so they share one new stream.
    pub(super) fn align_pauses(&mut self, first: usize) {
        if let Some((first, others)) = self.pausing.get_mut(first..).and_then(<[_]>::split_first_mut) {
            for (until, _) in others {
                *until = first.0;
            }
        }
    }

    /// When the first pause ends.
    pub(super) fn next_pause_end(&self) -> Option<Instant> {
        self.pausing.iter().map(|(until, _)| *until).min()
    }

    /// Takes out the groups whose pause is over.
    pub(super) fn take_paused_until(&mut self, now: Instant) -> Vec<GroupNumber> {
        let (due, left) =
            mem::take(&mut self.pausing).into_iter().partition::<Vec<_>, _>(|(until, _)| *until <= now);
        self.pausing = left;
        due.into_iter().map(|(_, number)| number).collect()
    }
}
