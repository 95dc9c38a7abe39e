//! What is on its way to one owner: appends become messages when the connection has room for them.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::Stream;
use ledger_proto::ledger::v1::{AppendBatch, AppendItem};
use tokio::sync::mpsc;

use super::MAX_ITEMS;

/// A message takes no further append at so many bytes of payload.
const MAX_BYTES: usize = 1 << 20;

/// Appends to one owner, in order. Bounded by the appender's window: nothing waits here that is not under way.
pub(super) fn channel() -> (Sender, Outgoing) {
    let (parts, waiting) = mpsc::unbounded_channel();
    (Sender { parts, next: Part::default() }, Outgoing { waiting, rest: None })
}

#[derive(Debug, Default)]
struct Part {
    items: Vec<AppendItem>,
    bytes: usize,
}

/// Takes appends for an owner.
#[derive(Debug)]
pub(super) struct Sender {
    parts: mpsc::UnboundedSender<Part>,
    next: Part,
}

impl Sender {
    /// Takes an append. It leaves at the next [`Sender::flush`].
    pub(super) fn put(&mut self, item: AppendItem) {
        if self.next.items.is_empty() {
            self.next.items.reserve(MAX_ITEMS);
        }
        self.next.bytes += item.request.as_ref().map_or(0, |request| request.payload.len());
        self.next.items.push(item);
        if self.next.bytes >= MAX_BYTES || self.next.items.len() >= MAX_ITEMS {
            self.flush();
        }
    }

    /// Lets everything leave.
    pub(super) fn flush(&mut self) {
        if !self.next.items.is_empty() {
            // If the stream has ended, its end says so.
            let _ = self.parts.send(std::mem::take(&mut self.next));
        }
    }
}

/// The messages of a stream of appends.
#[derive(Debug)]
pub(super) struct Outgoing {
    waiting: mpsc::UnboundedReceiver<Part>,
    rest: Option<Part>,
}

impl Stream for Outgoing {
    type Item = AppendBatch;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<AppendBatch>> {
        let mut message = match self.rest.take() {
            Some(part) => part,
            None => match ready!(self.waiting.poll_recv(cx)) {
                Some(part) => part,
                None => return Poll::Ready(None),
            },
        };
        // What gathered meanwhile leaves in the same message, if it fits.
        while message.items.len() < MAX_ITEMS && message.bytes < MAX_BYTES {
            let Ok(mut more) = self.waiting.try_recv() else { break };
            if message.items.len() + more.items.len() > MAX_ITEMS || message.bytes + more.bytes > MAX_BYTES {
                self.rest = Some(more);
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
            sender.put(item(tag, if tag % 100 == 0 { MAX_BYTES } else { 10 }));
            if tag % 7 == 0 {
                sender.flush();
            }
        }
        sender.flush();
        drop(sender);
        let mut expected = 0;
        while let Some(message) = outgoing.next().await {
            let payloads = message.items.iter().filter_map(|item| item.request.as_ref());
            let bytes: usize = payloads.map(|request| request.payload.len()).sum();
            assert!(message.items.len() <= MAX_ITEMS && bytes < 2 * MAX_BYTES);
            for item in message.items {
                assert_eq!(item.tag, expected);
                expected += 1;
            }
        }
        assert_eq!(expected, 1000);
    }
}
