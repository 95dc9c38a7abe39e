//! Sends appends to the owners of their contexts, and sends them elsewhere when an owner is lost or moves.
//!
//! Invariants: an append is in [`Pending`] from when the router takes it until the router reports its receipt. It is
//! either in flight on one stream or waits in its group, never both. A group's appends are in flight on one stream at a
//! time, in the order of their tags, and the router sends none of them elsewhere before all in flight have results, or
//! the stream has ended. So the ledger stores entries of one context in the order they were sent: whatever a former owner
//! still stores of them it had before, and the entry ids keep the ledger from storing it again.
//!
//! A node that has refused an append for now refuses all later ones of its context on that stream, even if it could
//! take them again: the client sent them before it knew that one is missing. So the router sends what was refused again
//! on another stream.
//!
//! A group is a slot, because after one refusal a node refuses whole slots. With one address the router asks nobody who
//! owns what: every group sends to that address, and one that the node cannot serve delays no other.
//!
//! | a group is | and its appends | until |
//! | --- | --- | --- |
//! | new | there are none | the first comes → searching |
//! | searching | wait | the owner is found → sending; nobody names it → pausing |
//! | sending | go out | a node refuses one for now → holding; the stream ends → pausing; it ends because of one that is too large, which is refused → searching |
//! | draining | wait | the last in flight has its result → searching; a node refuses one for now → holding; the stream ends → as if sending |
//! | holding | wait, as do those that get results now, so that all go out again in order | the last has its result → pausing |
//! | pausing | wait | the pause is over → searching; the failures lasted too long → closed |
//! | closed | are refused | the appender ends |
//!
//! | module | holds |
//! | --- | --- |
//! | [`group`] | the appends of a slot, their state, and what a failure does to it |
//! | [`streams`] | the streams to owners |
//! | [`search`] | the search for owners |

mod group;
mod search;
mod streams;

use std::{mem, sync::Arc};

use ledger_core::slot::Slot;
use ledger_proto::ledger::v1::AppendResults;
use prost::Message as _;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tonic::{Code, Status};

use self::{
    group::{AfterFailure, GroupNumber, GroupState, Groups},
    search::{FoundOwners, OwnerSearch, single_node},
    streams::{OwnerStreams, StreamEvent},
};
use super::{
    outgoing::{self, MAX_ITEMS},
    pending::{Pending, PendingAppend, StreamId},
    receipt::{Receipt, RouterMessage, SentAppend},
};
use crate::{
    connection::{
        core::Client,
        locate::NodeChannel,
        nodes::RetryAfter,
        retry::{Attempts, FailedCall},
    },
    error::{ClientError, failure::Failure},
};

/// The task behind an appender.
pub(super) struct Router {
    client: Client,
    queue: mpsc::Receiver<SentAppend>,
    /// The caller may send more.
    is_open: bool,
    reports: mpsc::UnboundedSender<RouterMessage>,
    window: Arc<Semaphore>,
    pending: Pending,
    groups: Groups,
    streams: OwnerStreams,
    search: OwnerSearch,
}

impl Router {
    /// A router, once a node has responded.
    pub(super) async fn start(
        client: Client,
        queue: mpsc::Receiver<SentAppend>,
        reports: mpsc::UnboundedSender<RouterMessage>,
        window: Arc<Semaphore>,
    ) -> Result<Self, ClientError> {
        let mut router = Self {
            client,
            queue,
            is_open: true,
            reports,
            window,
            pending: Pending::default(),
            groups: Groups::new(),
            streams: OwnerStreams::new(),
            search: OwnerSearch::new(),
        };
        let mut attempts = Attempts::new(router.client.options());
        while let Err(failed) = attempts.within_deadline(router.connect(&attempts.retry_after)).await? {
            attempts.back_off(failed).await?;
        }
        Ok(router)
    }

    /// Makes sure that there is a node, and with one address opens the stream to it.
    async fn connect(&mut self, retry_after: &RetryAfter) -> Result<(), FailedCall> {
        if let Some(node) = single_node(&self.client) {
            return self.streams.open_now(&self.client, node).await;
        }
        let address = self.client.nodes().choose(retry_after);
        let slots: Vec<_> = Slot::new(0).into_iter().collect();
        self.client.locate(&address, &slots).await
    }

    pub(super) async fn run(mut self) {
        let mut sent = Vec::with_capacity(MAX_ITEMS);
        while self.is_open || !self.pending.is_empty() {
            let timer = self.next_timer();
            tokio::select! {
                biased;
                Some(event) = self.streams.next_event(), if !self.streams.is_idle() => {
                    self.on_stream_event(event);
                }
                count = self.queue.recv_many(&mut sent, MAX_ITEMS), if self.is_open => {
                    self.is_open = count > 0;
                    sent.drain(..).for_each(|sent| self.take(sent));
                }
                Some(found) = self.search.next(), if !self.search.is_idle() => self.on_found(found),
                () = sleep_until(timer), if timer.is_some() => self.on_timer(),
                () = self.reports.closed() => return,
            }
            if let Some(found) = self.search.start(&self.client, &self.groups) {
                self.on_found(found);
            }
            self.streams.flush();
        }
        self.report(RouterMessage::Finished);
    }

    /// Tells the receiving side. If the caller dropped it, the loop ends on its own.
    fn report(&self, message: RouterMessage) {
        let _ = self.reports.send(message);
    }

    /// Takes an append from the caller.
    fn take(&mut self, SentAppend { tag, mut append }: SentAppend) {
        let has_own_id = append.entry_id.is_some();
        let id = append.assign_id();
        let number = Slot::of(&append.context).number();
        let pending = PendingAppend { tag, append, has_own_id, group: number, stream: 0 };
        let group = self.groups.get_mut(number);
        match &group.state {
            GroupState::Sending(stream) => {
                let stream = *stream;
                let index = self.pending.insert(pending);
                self.send(index, stream);
            }
            GroupState::Closed(status) => {
                let result = Err(ClientError::from(status.clone()).with_entry_id(&id));
                self.report(RouterMessage::Failed(vec![Receipt { tag, result }]));
            }
            state => {
                let is_new = matches!(state, GroupState::New);
                group.waiting.push(self.pending.insert(pending));
                if is_new {
                    self.start_searching(number);
                }
            }
        }
    }

    /// Sends an append on a stream.
    fn send(&mut self, index: u32, on: StreamId) {
        let Some(stream) = self.streams.get_mut(on) else { return };
        let Some(pending) = self.pending.get_mut(index.into()) else { return };
        pending.stream = on;
        self.groups.get_mut(pending.group).in_flight += 1;
        stream.count_sent();
        if let Some(item) = self.pending.item(index) {
            stream.sender.put(item);
        }
    }

    fn start_searching(&mut self, number: GroupNumber) {
        self.groups.get_mut(number).state = GroupState::Searching;
        self.search.queue(number);
    }

    fn on_stream_event(&mut self, (id, event): StreamEvent) {
        let Some(stream) = self.streams.get(id) else { return };
        let address = stream.address.clone();
        let failed = match event {
            Some(Ok(results)) => match self.on_results(id, results) {
                Ok(()) => return,
                Err(status) => {
                    FailedCall { failure: Failure::ConnectionLost, ..FailedCall::new(address, status) }
                }
            },
            Some(Err(status)) => FailedCall::new(address, status),
            None => FailedCall::new(address, Status::unavailable("the node ended the stream of appends")),
        };
        self.on_stream_end(id, &failed);
    }

    /// Reports the results that are final, and holds the appends of which the node refused one for now. An error if the
    /// node returned a result for an append that was not sent.
    fn on_results(&mut self, id: StreamId, response: AppendResults) -> Result<(), Status> {
        let AppendResults { mut results, mut positions, copies } = response;
        let Self { streams, groups, pending, client, .. } = self;
        let Some(stream) = streams.get_mut(id) else { return Ok(()) };
        let (mut is_malformed, mut is_any_held) = (false, false);
        if !mem::replace(&mut stream.has_responded, true) {
            client.nodes().record_success(&stream.address);
        }
        stream.last_progress = Instant::now();
        let mut refused_groups = Vec::new();
        results.retain_mut(|result| {
            let Some(append) = pending.get_mut(result.tag).filter(|append| append.stream == id) else {
                is_malformed = true;
                return false;
            };
            let index = result.tag as u32;
            append.stream = 0;
            stream.in_flight -= 1;
            let group = groups.get_mut(append.group);
            group.in_flight -= 1;
            if let Some(error) = &result.error
                && matches!(group.state, GroupState::Sending(_) | GroupState::Draining(_))
                && let failure @ Failure::NotReady { .. } = Failure::of_item(error.code, error.retry_after_ms)
            {
                let status = Status::unavailable(error.message.clone());
                let cause = FailedCall { node: stream.address.clone(), status, failure };
                group.state = GroupState::Holding { on: id, cause };
                stream.has_refused = true;
                if let Some(slot) = Slot::new(append.group) {
                    client.owners().forget(slot, &stream.address);
                }
                refused_groups.push(append.group);
            }
            if matches!(group.state, GroupState::Holding { .. }) {
                group.waiting.push(index);
                is_any_held = true;
                return false;
            }
            group.on_final_result();
            if let Some(append) = pending.remove(index) {
                result.tag = append.tag;
                // An id that the client assigned is known to the ledger only because the client sent it twice.
                result.repeated_id &= append.has_own_id;
            }
            true
        });
        for number in refused_groups {
            groups.await_results(number);
        }
        if is_any_held {
            // The positions may be after appends that are held.
            positions.clear();
        }
        if !results.is_empty() {
            self.report(RouterMessage::Results(AppendResults { results, positions, copies }));
        }
        self.resume_groups_with_all_results();
        if is_malformed {
            return Err(Status::internal("the node answered an append that was not sent"));
        }
        Ok(())
    }

    /// Resumes the groups that awaited the results of their appends in flight, and have them all.
    fn resume_groups_with_all_results(&mut self) {
        let first = self.groups.pausing_count();
        for number in self.groups.take_those_with_all_results() {
            let group = self.groups.get_mut(number);
            match mem::take(&mut group.state) {
                GroupState::Holding { cause, .. } => self.on_group_failure(number, &cause),
                GroupState::Draining(_) if !group.waiting.is_empty() => self.start_searching(number),
                _ => {}
            }
        }
        self.groups.align_pauses(first);
    }

    /// A stream ended, or the router gave it up: the appends in flight on it wait to be sent again.
    fn on_stream_end(&mut self, id: StreamId, failed: &FailedCall) {
        let Some(stream) = self.streams.remove(id) else { return };
        let in_flight = self.pending.in_flight_on(id);
        let too_large = self.find_too_large(&in_flight, failed);
        for index in in_flight {
            let Some(append) = self.pending.get_mut(index.into()) else { continue };
            append.stream = 0;
            let group = self.groups.get_mut(append.group);
            group.in_flight -= 1;
            if Some(index) != too_large {
                group.waiting.push(index);
            }
        }
        if let Some(append) = too_large.and_then(|index| self.pending.remove(index)) {
            let result = Err(ClientError::from(failed.status.clone()));
            self.report(RouterMessage::Failed(vec![Receipt { tag: append.tag, result }]));
            // Nothing is wrong with the node nor with the other appends: they go out again at once.
            self.groups.drain(id);
            return self.resume_groups_with_all_results();
        }
        match failed.failure {
            Failure::ConnectionLost => self.client.nodes().record_connection_failure(&stream.address),
            Failure::NotOwner { .. } | Failure::NotReady { .. } | Failure::Permanent => {}
        }
        self.client.owners().forget_node(&stream.address);
        let first = self.groups.pausing_count();
        for number in self.groups.on_stream(id) {
            self.groups.stop_awaiting_results(number);
            self.on_group_failure(number, failed);
        }
        self.groups.align_pauses(first);
    }

    /// The append because of which a node ended a stream with a message too large for it: the largest. One larger
    /// than [`outgoing::MAX_BYTES`] has a message of its own, so if any is too large, the largest is. Where others
    /// are too, the next stream ends because of them: with one less each time.
    fn find_too_large(&self, in_flight: &[u32], failed: &FailedCall) -> Option<u32> {
        if failed.failure != Failure::Permanent
            || !matches!(failed.status.code(), Code::OutOfRange | Code::ResourceExhausted)
        {
            return None;
        }
        let sizes =
            in_flight.iter().filter_map(|index| Some((self.pending.item(*index)?.encoded_len(), *index)));
        sizes.filter(|(size, _)| *size > outgoing::MAX_BYTES).max().map(|(_, index)| index)
    }

    fn on_group_failure(&mut self, number: GroupNumber, failed: &FailedCall) {
        match self.groups.get_mut(number).on_failure(failed, self.client.options()) {
            AfterFailure::Idle => {}
            AfterFailure::RetryAt(until) => self.groups.pause(number, until),
            AfterFailure::GiveUp => self.close(number, &failed.status),
        }
    }

    /// Gives up on a group: reports its appends as failed.
    fn close(&mut self, number: GroupNumber, status: &Status) {
        let group = self.groups.get_mut(number);
        group.state = GroupState::Closed(status.clone());
        let mut waiting = mem::take(&mut group.waiting);
        self.pending.sort_by_tag(&mut waiting);
        let appends = waiting.into_iter().filter_map(|index| self.pending.remove(index));
        let receipts = appends.map(|mut pending| {
            let result = Err(ClientError::from(status.clone()).with_entry_id(&pending.append.assign_id()));
            Receipt { tag: pending.tag, result }
        });
        let receipts = receipts.collect();
        self.report(RouterMessage::Failed(receipts));
    }

    /// When the router has something to do though no event comes.
    fn next_timer(&self) -> Option<Instant> {
        let stall = self.streams.next_stall(self.client.options().timeout);
        stall.into_iter().chain(self.groups.next_pause_end()).min()
    }

    fn on_timer(&mut self) {
        let now = Instant::now();
        // One request searches for all that are due.
        for number in self.groups.take_paused_until(now) {
            self.start_searching(number);
        }
        let timeout = self.client.options().timeout;
        while let Some(stream) = self.streams.stalled(timeout, now) {
            let text = format!("the node answered no append within {timeout:?}");
            let (id, failed) =
                (stream.id, FailedCall::new(stream.address.clone(), Status::unavailable(text)));
            self.on_stream_end(id, &FailedCall { failure: Failure::ConnectionLost, ..failed });
        }
    }

    /// Sends the waiting appends of groups to the owners that the search found.
    fn on_found(&mut self, found: FoundOwners) {
        for (number, node) in found {
            let node = match node {
                Ok(node) => node,
                Err(failed) => {
                    self.on_group_failure(number, &failed);
                    continue;
                }
            };
            let group = self.groups.get_mut(number);
            if let Some(until) = group.retry_after.until(&node.address).filter(|at| *at > Instant::now()) {
                self.groups.pause(number, until);
                continue;
            }
            let mut waiting = mem::take(&mut group.waiting);
            self.pending.sort_by_tag(&mut waiting);
            let stream = self.stream_to(node);
            self.groups.get_mut(number).state = GroupState::Sending(stream);
            for index in waiting {
                self.send(index, stream);
            }
        }
        self.resume_groups_with_all_results();
        self.streams.end_unused(|id| self.groups.use_stream(id));
    }

    /// The stream to a node, opened if there is none that can be used.
    fn stream_to(&mut self, node: NodeChannel) -> StreamId {
        if let Some(stream) = self.streams.usable_to(&node.address) {
            return stream;
        }
        if let Some(oldest) = self.streams.oldest_of_too_many(&node.address) {
            self.groups.drain(oldest);
        }
        self.streams.open(&self.client, node)
    }
}

impl Drop for Router {
    /// Callers that wait for the window learn that the stream has ended.
    fn drop(&mut self) {
        self.window.close();
    }
}

async fn sleep_until(timer: Option<Instant>) {
    match timer {
        Some(timer) => tokio::time::sleep_until(timer).await,
        None => std::future::pending().await,
    }
}
