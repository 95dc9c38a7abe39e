//! Appends to one owner, batched into messages: the stream makes a message when the connection can take one.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::Stream;
use ledger_proto::ledger::v1::{AppendBatch, AppendItem};
use prost::Message as _;
use tokio::sync::mpsc;

/// Appends of one message at most, and appends the router takes from the caller at once.
pub(super) const MAX_ITEMS: usize = 256;

/// A message of so many bytes takes no further append, and a larger append has a message of its own: so if a message is
/// too large for a node, which then ends the stream, one append is.
pub(super) const MAX_BYTES: usize = 1 << 20;

/// A queue of appends to one owner, in order. The appender's window bounds it.
pub(super) fn channel() -> (Sender, Outgoing) {
    let (batches, queue) = mpsc::unbounded_channel();
    (Sender { batches, next: Batch::default() }, Outgoing { queue, held_over: None })
}

#[derive(Debug, Default)]
struct Batch {
    items: Vec<AppendItem>,
    bytes: usize,
}

/// Takes appends for an owner.
#[derive(Debug)]
pub(super) struct Sender {
    batches: mpsc::UnboundedSender<Batch>,
    next: Batch,
}

impl Sender {
    /// Adds an append. It leaves at the next [`Sender::flush`].
    pub(super) fn put(&mut self, item: AppendItem) {
        let bytes = item.encoded_len();
        if bytes > MAX_BYTES {
            self.flush();
        }
        if self.next.items.is_empty() {
            self.next.items.reserve(MAX_ITEMS);
        }
        self.next.bytes += bytes;
        self.next.items.push(item);
        if self.next.bytes >= MAX_BYTES || self.next.items.len() >= MAX_ITEMS {
            self.flush();
        }
    }

    /// Lets all appends leave.
    pub(super) fn flush(&mut self) {
        if !self.next.items.is_empty() {
            // If the stream has ended, its event says so.
            let _ = self.batches.send(std::mem::take(&mut self.next));
        }
    }
}

/// The messages of a stream of appends.
#[derive(Debug)]
pub(super) struct Outgoing {
    queue: mpsc::UnboundedReceiver<Batch>,
    held_over: Option<Batch>,
}

impl Stream for Outgoing {
    type Item = AppendBatch;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AppendBatch>> {
        let mut message = match self.held_over.take() {
            Some(batch) => batch,
            None => match ready!(self.queue.poll_recv(cx)) {
                Some(batch) => batch,
                None => return Poll::Ready(None),
            },
        };
        // Appends that came meanwhile leave in the same message, if they fit.
        while message.items.len() < MAX_ITEMS && message.bytes < MAX_BYTES {
            let Ok(mut more) = self.queue.try_recv() else { break };
            if message.items.len() + more.items.len() > MAX_ITEMS || message.bytes + more.bytes > MAX_BYTES {
                self.held_over = Some(more);
                break;
            }
            message.items.append(&mut more.items);
            message.bytes += more.bytes;
        }
        Poll::Ready(Some(AppendBatch { items: message.items }))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use ledger_proto::context::v1::AppendRequest;

    use super::*;

    fn item(tag: u64, bytes: usize) -> AppendItem {
        let request = AppendRequest { payload: vec![0; bytes].into(), ..AppendRequest::default() };
        AppendItem { tag, request: Some(request) }
    }

    #[tokio::test]
    async fn what_waits_leaves_in_order_in_messages_of_bounded_size() {
        let (mut sender, mut outgoing) = channel();
        for tag in 0..1000 {
            let bytes = [2 * MAX_BYTES, MAX_BYTES / 2].get(tag as usize % 100).copied();
            sender.put(item(tag, bytes.unwrap_or(10)));
            if tag % 7 == 0 {
                sender.flush();
            }
        }
        sender.flush();
        drop(sender);
        let mut expected = 0;
        while let Some(message) = outgoing.next().await {
            assert!(message.items.len() <= MAX_ITEMS);
            assert!(message.encoded_len() < 2 * MAX_BYTES || message.items.len() == 1);
            for item in message.items {
                assert_eq!(item.tag, expected);
                expected += 1;
            }
        }
        assert_eq!(expected, 1000);
    }

    #[tokio::test]
    async fn what_is_beside_the_payload_counts_too() {
        let (mut sender, mut outgoing) = channel();
        for tag in 0..1000 {
            let mut item = item(tag, 0);
            let metadata = (0..1024).map(|pair| (format!("{pair:032}"), format!("{pair:032}"))).collect();
            item.request.as_mut().unwrap().metadata = metadata;
            sender.put(item);
        }
        sender.flush();
        drop(sender);
        let mut count = 0;
        while let Some(message) = outgoing.next().await {
            assert!(message.encoded_len() < 2 * MAX_BYTES);
            count += message.items.len();
        }
        assert_eq!(count, 1000);
    }
}
