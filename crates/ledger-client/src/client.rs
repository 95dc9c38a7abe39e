//! The connection, and what takes one request and one answer.

use bytes::Bytes;
use ledger_core::{
    ContextId, Entry, EntryId, Epoch, HashSuite, Key, Position, Sequence, Size, clock::LamportClock,
    entry::Metadata,
};
use ledger_proto::{
    context::v1::{AppendRequest, context_service_client::ContextServiceClient},
    ledger::v1::{
        ContextsRequest, cluster_service_client::ClusterServiceClient,
        integrity_service_client::IntegrityServiceClient, ledger_service_client::LedgerServiceClient,
    },
};
use tonic::transport::Channel;

use crate::{
    Appender, ClientError, Options, Pages, Receipts, Selection, Watch, connect::Connector, convert, error,
    retry::with_retries,
};

/// A client of a node. Cheap to clone: clones share the connection, which is made when first needed and
/// again whenever it breaks.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) channel: Channel,
    pub(crate) options: Options,
}

/// One append.
#[derive(Debug, Clone)]
pub struct Append {
    /// The context.
    pub context: ContextId,
    /// What kind of entry it is.
    pub key: Key,
    /// The content.
    pub payload: Bytes,
    /// Pairs that describe it.
    pub metadata: Metadata,
    /// Lamport time seen elsewhere; 0 if none.
    pub received_lamport: u64,
    /// The id that makes a repetition safe. Without one the client makes one.
    pub entry_id: Option<EntryId>,
}

impl Append {
    /// An append of a key and payload.
    pub fn new(
        context: &ContextId,
        key: impl Into<String>,
        payload: impl Into<Bytes>,
    ) -> Result<Self, ClientError> {
        Ok(Self {
            context: context.clone(),
            key: Key::new(key)?,
            payload: payload.into(),
            metadata: Metadata::new(),
            received_lamport: 0,
            entry_id: None,
        })
    }

    pub(crate) fn into_request(self) -> AppendRequest {
        AppendRequest {
            context_id: self.context.as_str().to_owned(),
            key: self.key.into_string(),
            payload: self.payload,
            metadata: self.metadata,
            received_lamport: self.received_lamport,
            entry_id: self
                .entry_id
                .map_or_else(|| uuid::Uuid::now_v7().simple().to_string(), |id| id.to_string()),
            durability: 0,
        }
    }
}

/// A stored entry and where the history stands with it.
#[derive(Debug, Clone)]
pub struct Appended {
    /// The entry as stored.
    pub entry: Entry,
    /// The history up to and including it: the token to resume from.
    pub position: Position,
}

/// A context as a listing shows it.
#[derive(Debug, Clone)]
pub struct ContextInfo {
    /// Its name.
    pub context: ContextId,
    /// Number of entries.
    pub size: Size,
    /// Time of the newest entry.
    pub lamport: LamportClock,
    /// Epoch of the newest entry.
    pub epoch: Epoch,
    /// Wall-clock time of creation, nanoseconds since the Unix epoch.
    pub created_at_ns: u64,
    /// Hash suite.
    pub suite: HashSuite,
}

impl Client {
    /// A client of the node at an endpoint such as `http://127.0.0.1:50051`. Connects when first used.
    pub fn connect(endpoint: &str, options: &Options) -> Result<Self, ClientError> {
        let connector = Connector::new(options.connect_timeout);
        let channel = options.endpoint(endpoint)?.connect_with_connector_lazy(connector);
        Ok(Self { channel, options: options.clone() })
    }

    /// Appends an entry; returns when it is durable. Tried again if the node is unavailable: the entry id
    /// makes that safe.
    pub async fn append(&self, append: Append) -> Result<Appended, ClientError> {
        let context = append.context.clone();
        let request = append.into_request();
        let answer = with_retries(&self.options, || {
            let (mut service, request) = (self.context_service(), request.clone());
            async move { service.append(request).await }
        });
        let answer = answer.await?.into_inner();
        let entry = answer.entry.ok_or_else(|| ClientError::malformed("entry"))?;
        Ok(Appended {
            entry: convert::entry(&context, entry)?,
            position: convert::position(answer.position)?,
        })
    }

    /// A stream of appends to any contexts: at most `window` are under way. Results come in the order of
    /// each context's appends.
    pub async fn appender(&self, window: usize) -> Result<(Appender, Receipts), ClientError> {
        crate::appender::open(self, window).await
    }

    /// Reads a context in pages.
    pub fn get(&self, context: &ContextId, selection: Selection) -> Pages {
        Pages::new(self.clone(), context.clone(), selection)
    }

    /// Watches a context: every entry of the selection, then those to come. Goes on after a broken
    /// connection, without a gap or a repetition.
    pub fn watch(&self, context: &ContextId, selection: Selection) -> Watch {
        Watch::new(self.clone(), context.clone(), selection)
    }

    /// The contexts whose ids begin with a prefix, in order: at most `limit` after the id `after`, and
    /// whether there are more.
    pub async fn contexts(
        &self,
        prefix: &str,
        after: &str,
        limit: u32,
    ) -> Result<(Vec<ContextInfo>, bool), ClientError> {
        let request = ContextsRequest { prefix: prefix.to_owned(), after: after.to_owned(), limit };
        let answer = with_retries(&self.options, || {
            let mut service = ClusterServiceClient::new(self.channel.clone())
                .max_decoding_message_size(self.options.max_message);
            let request = request.clone();
            async move { service.contexts(request).await }
        });
        let answer = answer.await?.into_inner();
        let contexts = answer.contexts.into_iter().map(|info| {
            Ok::<_, error::ClientError>(ContextInfo {
                context: ContextId::new(info.context_id)?,
                size: Size(info.size),
                lamport: LamportClock(info.lamport_clock),
                epoch: Epoch(info.epoch),
                created_at_ns: info.created_at_ns,
                suite: convert::suite(&info.hash_suite)?,
            })
        });
        Ok((contexts.collect::<Result<_, _>>()?, answer.more))
    }

    /// The generated client of `converge.context.v1`, for what this SDK does not cover.
    pub fn context_service(&self) -> ContextServiceClient<Channel> {
        ContextServiceClient::new(self.channel.clone()).max_decoding_message_size(self.options.max_message)
    }

    /// The generated client of the streaming service.
    pub fn ledger_service(&self) -> LedgerServiceClient<Channel> {
        LedgerServiceClient::new(self.channel.clone()).max_decoding_message_size(self.options.max_message)
    }

    /// The generated client of the integrity service.
    pub fn integrity_service(&self) -> IntegrityServiceClient<Channel> {
        IntegrityServiceClient::new(self.channel.clone()).max_decoding_message_size(self.options.max_message)
    }
}

/// Checks that entries continue a reading: higher sequences only, and none altered on the way.
pub(crate) fn check_next(after: Sequence, entry: &Entry) -> Result<(), ClientError> {
    if entry.sequence <= after {
        return Err(ClientError::NotVerified(format!("entry {} came after entry {after}", entry.sequence)));
    }
    Ok(())
}
