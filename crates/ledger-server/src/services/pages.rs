//! A context read in pages, ahead of the client, and one answer cut to fit a message.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use ledger_core::{ContextId, Key, Sequence, slot::Slot};
use ledger_proto::{
    context::v1::{GetRequest, GetResponse},
    ledger::v1::ledger_service_client::LedgerServiceClient,
    wire::ledger::v1::Page,
};
use ledger_store::{Covered, Filter};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::{
    grpc::call::{self, Call, ReservedAnswer},
    grpc::convert,
    grpc::encode,
    grpc::status::Refusal,
    limits,
    metrics::Rpc,
    node::Node,
    routing::route,
    routing::upstream::{Aside, Upstream},
};

/// A page read ahead, and the room it takes.
type ReadAhead = (Page, ReservedAnswer);

/// A checked Get.
#[derive(Debug)]
pub struct ReadRequest {
    at_owner: bool,
    context: ContextId,
    key: Option<Key>,
    after: Sequence,
    limit: usize,
}

/// An entry as the contract encodes it has at least so many bytes: id, hash, numbers and their tags.
const LEAST_ENTRY: usize = 90;

impl ReadRequest {
    /// Checks a request.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` names a field that is wrong.
    pub fn check(request: GetRequest) -> Result<Self, Refusal> {
        Ok(Self {
            at_owner: convert::at_owner(request.consistency)?,
            context: ContextId::new(&request.context_id)?,
            key: convert::key_filter(request.key)?,
            after: Sequence(request.after_sequence),
            limit: if request.limit == 0 { usize::MAX } else { request.limit as usize },
        })
    }

    /// The context.
    pub fn context(&self) -> &ContextId {
        &self.context
    }

    /// Whether only the owner's answer will do.
    pub fn at_owner(&self) -> bool {
        self.at_owner
    }

    /// What is still to be read; `None`: nothing, for a limit of 0 would ask for everything.
    fn rest(&self) -> Option<GetRequest> {
        (self.limit > 0).then(|| GetRequest {
            context_id: self.context.as_str().to_owned(),
            key: self.key.as_ref().map_or_else(String::new, |key| key.as_str().to_owned()),
            after_sequence: self.after.0,
            // None was given if it is larger.
            limit: u32::try_from(self.limit).unwrap_or_default(),
            ..GetRequest::default()
        })
    }

    fn filter(&self, limit: usize, max_bytes: usize) -> Filter {
        let limit = limit.min(self.limit);
        Filter { key: self.key.clone(), after: self.after, limit, max_bytes, max_first: max_bytes }
    }

    /// One answer, cut at a whole entry to stay below so many bytes, of which there are fewer while there is little memory.
    ///
    /// # Errors
    /// What the store refuses; `RESOURCE_EXHAUSTED` if an entry does not fit, or there is no memory in time.
    pub async fn answer(self, node: &Node, max_bytes: usize) -> Result<GetResponse, Refusal> {
        let mut most = call::answer_bytes(&node.memory, max_bytes);
        loop {
            // The entries, and the message that is made of them.
            let reserved = call::reserve(call::current(), 2 * most).await?;
            let (context, limit) = (self.context.clone(), self.limit);
            let filter = self.filter(most / LEAST_ENTRY, most);
            let page = node.read(move |ledger| ledger.get(&context, &filter)).await?;
            match page.larger {
                // It waits for the room that the first entry takes.
                Some(bytes) if page.entries.is_empty() => most = bytes,
                _ => {
                    let response = cut(page, limit, most);
                    reserved.hand_over(2 * most);
                    node.metrics.read_entries.increment(response.entries.len() as u64);
                    return Ok(response);
                }
            }
        }
    }

    /// All answers, in pages, read while the client takes those before.
    /// Those that damage keeps from being read here are another replica's, unless the request was sent on to this one.
    pub fn stream(
        self,
        node: Arc<Node>,
        is_forwarded: bool,
    ) -> impl Stream<Item = Result<Page, Status>> + Send {
        let (pages, ahead) = mpsc::channel(limits::PAGES_AHEAD);
        tokio::spawn(read_ahead(self, node, call::current(), pages, is_forwarded));
        ReceiverStream::new(ahead).map(|page| {
            let (page, reserved): ReadAhead = page?;
            // Now it is among what is about to be sent.
            reserved.hand_over(page.entries.iter().map(Bytes::len).sum());
            Ok(page)
        })
    }
}

/// Reads page after page while there is room. No thread waits for the client.
async fn read_ahead(
    mut get: ReadRequest,
    node: Arc<Node>,
    call: Option<Arc<Call>>,
    pages: mpsc::Sender<Result<ReadAhead, Status>>,
    is_forwarded: bool,
) {
    node.metrics.started(Rpc::GetStream);
    // What the next entry takes, if that is more than a page.
    let mut larger = None;
    while let Ok(permit) = pages.reserve().await {
        let bytes = larger
            .take()
            .unwrap_or_else(|| call::page_bytes_for(&node.memory, call.as_deref(), limits::PAGE_BYTES));
        let (context, filter) = (get.context.clone(), get.filter(limits::PAGE_ENTRIES, bytes));
        let read = async {
            node.serving()?;
            // The page, and the message that is made of it.
            let reserved = tokio::select! {
                reserved = call::reserve(call.clone(), 2 * bytes) => reserved?,
                // The client is gone.
                () = pages.closed() => return Err(Refusal::shutting_down()),
            };
            let (page, covered) = node
                .read(move |ledger| {
                    let mut entries = encode::Entries::default();
                    let covered = ledger.visit(&context, &filter, |view| entries.push(&view))?;
                    Ok((Page { entries: entries.finish(), latest_sequence: covered.latest.0 }, covered))
                })
                .await?;
            Ok(((page, reserved), covered))
        };
        match read.await {
            Ok(((page, _), covered)) if page.entries.is_empty() && covered.larger.is_some() => {
                (get.after, larger) = (covered.covered, covered.larger);
            }
            Ok(((page, reserved), Covered { covered, more, .. })) => {
                get.after = covered;
                get.limit -= page.entries.len().min(get.limit);
                node.metrics.read_entries.increment(page.entries.len() as u64);
                permit.send(Ok((page, reserved)));
                if !more || get.limit == 0 {
                    return;
                }
            }
            Err(refusal) => {
                let is_damaged = refusal.code == Code::DataLoss && !is_forwarded && !get.at_owner;
                drop(permit);
                if !(is_damaged && elsewhere(&mut get, &node, call.as_ref(), &pages).await) {
                    // Whoever asked may have gone.
                    let _ = pages.send(Err(node.refuse(Rpc::GetStream, refusal))).await;
                }
                return;
            }
        }
    }
}

/// Hands out the rest of what another replica can read; false: none can.
async fn elsewhere(
    get: &mut ReadRequest,
    node: &Node,
    call: Option<&Arc<Call>>,
    pages: &mpsc::Sender<Result<ReadAhead, Status>>,
) -> bool {
    for channel in node.other_replicas(Slot::of(&get.context)) {
        let Some(rest) = get.rest() else { return true };
        let request = route::forwarded(rest);
        let aside = Aside::default();
        let there = Upstream::aside(channel, call.cloned(), &aside);
        let mut reader = LedgerServiceClient::new(there).max_decoding_message_size(usize::MAX);
        let Ok(answer) = reader.get(request).await else { continue };
        let mut theirs = answer.into_inner();
        loop {
            let message = tokio::select! {
                message = theirs.message() => message,
                () = pages.closed() => return true,
            };
            let reserved = aside.lock().pop_front().unwrap_or_default();
            match message {
                // It is behind what was delivered already: its end is not that of the context.
                Ok(Some(page)) if page.latest_sequence < get.after.0 => break,
                Ok(Some(page)) => {
                    get.after = page.entries.last().map_or(get.after, |entry| Sequence(entry.sequence));
                    get.limit -= page.entries.len().min(get.limit);
                    let entries = page.entries.iter().map(|entry| entry.encode_to_vec().into()).collect();
                    let page = Page { entries, latest_sequence: page.latest_sequence };
                    if pages.send(Ok((page, reserved))).await.is_err() {
                        return true;
                    }
                }
                Ok(None) => return true,
                // The next one goes on where this one ended.
                Err(_) => break,
            }
        }
    }
    false
}

/// Cuts a page to a message. Always at least one entry, whatever its size.
fn cut(page: ledger_store::Page, limit: usize, max_bytes: usize) -> GetResponse {
    let (latest_sequence, covered, more) = (page.latest.0, page.covered.0, page.more);
    let mut entries = convert::entries(page.entries);
    let mut bytes = 0;
    let fits = entries.iter().take_while(|entry| {
        let len = entry.encoded_len();
        bytes += len + prost::length_delimiter_len(len) + 1;
        bytes <= max_bytes
    });
    let fits = fits.count().max(1);
    if fits < entries.len() {
        entries.truncate(fits);
        let next_after_sequence = entries.last().map_or(0, |entry| entry.sequence);
        return GetResponse { entries, latest_sequence, truncated: true, next_after_sequence };
    }
    // What the client's own limit cut is complete: it asked for no more.
    let truncated = more && entries.len() < limit;
    let next_after_sequence = if truncated { covered } else { 0 };
    GetResponse { entries, latest_sequence, truncated, next_after_sequence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_more_is_asked_for_once_the_limit_is_used_up() {
        let asked =
            |limit| GetRequest { context_id: "c".into(), key: "k".into(), limit, ..GetRequest::default() };
        let mut get = ReadRequest::check(asked(3)).unwrap();
        (get.after, get.limit) = (Sequence(7), get.limit - 2);
        let rest = get.rest().unwrap();
        assert_eq!((rest.context_id.as_str(), rest.key.as_str()), ("c", "k"));
        assert_eq!((rest.after_sequence, rest.limit), (7, 1));
        get.limit -= 1;
        assert_eq!(get.rest(), None);
        assert_eq!(
            ReadRequest::check(asked(0)).unwrap().rest().unwrap().limit,
            0,
            "without a limit there is none"
        );
    }
}
