//! The nodes, and what takes one request and one answer.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use ledger_core::{
    ContextId, Entry, EntryId, Epoch, HashSuite, Key, Position, Size, clock::LamportClock, entry::Metadata,
};
use ledger_proto::{
    context::v1::{
        self as proto, AppendRequest, AppendResponse, context_service_client::ContextServiceClient,
    },
    ledger::v1::{
        ContextsRequest, cluster_service_client::ClusterServiceClient,
        integrity_service_client::IntegrityServiceClient, ledger_service_client::LedgerServiceClient,
    },
};
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    transport::Channel,
};

use crate::{
    Appender, AttachOptions, Attachment, ClientError, Options, Pages, Receipts, Selection, Watch,
    address::Address, convert, error, nodes::Nodes, owners::Owners, route::Aim,
};

/// The metadata in which a client names itself where it appends.
const WRITER: &str = "converge-writer";

/// A client of a node, or of a cluster by the addresses of any of its nodes. Cheap to clone: clones share the
/// connections, which are made when first needed and again whenever they break. A name in an address is
/// resolved each time.
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
    options: Arc<Options>,
}

#[derive(Debug)]
struct Shared {
    nodes: Nodes,
    owners: Owners,
    writer: MetadataValue<Ascii>,
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
    /// How many copies must be durable before it is acknowledged.
    pub durability: Durability,
}

/// How durable an append is before it is acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Durability {
    /// As the ledger is configured: by default synced to disk on two nodes of three.
    #[default]
    Configured,
    /// Synced on the owner alone: fast, and lost with its disk.
    One,
    /// Synced on more than half of the copies.
    Majority,
    /// Synced on every copy.
    All,
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
            durability: Durability::Configured,
        })
    }

    /// With a pair of metadata.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// With an id of the caller's, which makes repeating it safe even for another process.
    #[must_use]
    pub fn with_entry_id(self, id: EntryId) -> Self {
        Self { entry_id: Some(id), ..self }
    }

    /// With Lamport time seen elsewhere: the entry's will be later.
    #[must_use]
    pub fn with_received_lamport(self, received_lamport: u64) -> Self {
        Self { received_lamport, ..self }
    }

    /// Acknowledged with other copies than the ledger is configured for.
    #[must_use]
    pub fn with_durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    /// Gives it an id, if it has none: time-ordered, and different each time.
    pub(crate) fn identify(&mut self) -> EntryId {
        let made = || EntryId::from_bits(uuid::Uuid::now_v7().into_bytes());
        self.entry_id.get_or_insert_with(made).clone()
    }

    /// The request for it. Cheap for the payload, which is shared.
    pub(crate) fn request(&self) -> AppendRequest {
        AppendRequest {
            context_id: self.context.as_str().to_owned(),
            key: self.key.as_str().to_owned(),
            payload: self.payload.clone(),
            metadata: self.metadata.clone(),
            received_lamport: self.received_lamport,
            entry_id: self.entry_id.as_ref().map(|id| id.with_text(str::to_owned)).unwrap_or_default(),
            durability: match self.durability {
                Durability::Configured => proto::Durability::Unspecified,
                Durability::One => proto::Durability::One,
                Durability::Majority => proto::Durability::Majority,
                Durability::All => proto::Durability::All,
            }
            .into(),
        }
    }

    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        let metadata = self.metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        self.payload.len() + self.key.as_str().len() + metadata
    }
}

/// A stored entry and where the history stands with it.
#[derive(Debug, Clone)]
pub struct Appended {
    /// The entry as stored.
    pub entry: Entry,
    /// The history up to and including it: the token to resume from.
    pub position: Position,
    /// How many nodes it is known to be durable on; 0: the node does not say.
    pub copies: u32,
}

impl Appended {
    pub(crate) fn of(context: &ContextId, answer: AppendResponse) -> Result<Self, ClientError> {
        let entry = answer.entry.ok_or_else(|| ClientError::malformed("entry"))?;
        let position = convert::position(answer.position)?;
        Ok(Self { entry: convert::entry(context, entry)?, position, copies: answer.copies })
    }
}

/// A page of a listing.
#[derive(Debug, Clone)]
pub struct ContextPage {
    /// The contexts, in order of their ids. There may be none though more follow.
    pub contexts: Vec<ContextInfo>,
    /// Where the next page begins: after this id; `None`: this is the last one.
    pub next: Option<String>,
    /// What is missing from the page, because no node that keeps it answered. Empty: the page is whole.
    pub unlisted: Vec<Unlisted>,
}

/// Slots whose contexts are missing from a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlisted {
    /// The node that should have listed them; `None`: none that could be asked shows them.
    pub node: Option<String>,
    /// How many, of 1024.
    pub slots: u32,
    /// Why.
    pub reason: String,
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
    /// A client of the node at an address such as `http://127.0.0.1:50051`, or of the cluster some of whose nodes
    /// are at several, with commas between them. Connects when first used.
    ///
    /// With one address everything goes there. With several, reads go to any node that answers, and appends
    /// straight to the owner of their context, wherever it moves.
    pub fn connect(addresses: &str, options: &Options) -> Result<Self, ClientError> {
        Self::connect_any([addresses], options)
    }

    /// As [`Client::connect`], with a list.
    pub fn connect_any<T: AsRef<str>>(
        addresses: impl IntoIterator<Item = T>,
        options: &Options,
    ) -> Result<Self, ClientError> {
        let nodes = Nodes::new(Address::list(addresses)?, options.clone())?;
        let (high, low) = uuid::Uuid::new_v4().as_u64_pair();
        let writer = MetadataValue::from(high ^ low);
        let shared = Arc::new(Shared { nodes, owners: Owners::default(), writer });
        Ok(Self { shared, options: Arc::new(options.clone()) })
    }

    /// The same client, the same connections, with another time that a call may take: for calls that need less, or more,
    /// than [`Options::timeout`].
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        let options = Options { timeout, ..(*self.options).clone() };
        Self { shared: Arc::clone(&self.shared), options: Arc::new(options) }
    }

    /// The name under which this client, and every clone of it, appends: made at random with it. Nodes count, and
    /// name in their logs, writers that take turns on a context, where one engine is to write: an engine that logs
    /// its name can be found, and one that appends with several clients looks like several engines.
    pub fn writer(&self) -> &str {
        self.shared.writer.to_str().unwrap_or_default()
    }

    /// A request to append, or to begin to, that says who does.
    pub(crate) fn written<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(WRITER, self.shared.writer.clone());
        request
    }

    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.shared.nodes
    }

    pub(crate) fn owners(&self) -> &Owners {
        &self.shared.owners
    }

    /// Appends an entry; returns when it is durable. Tried again while no node can take it, wherever the owner
    /// moves: the entry id makes that safe. If it fails for want of a node or of time, the entry may have
    /// been stored all the same; the error names its id, with which to repeat it.
    pub async fn append(&self, mut append: Append) -> Result<Appended, ClientError> {
        let id = append.identify();
        let request = append.request();
        let answer = self.call(Aim::owner_of(&append.context), |channel| {
            let (mut service, request) = (self.context_service_on(channel), self.written(request.clone()));
            async move { service.append(request).await }
        });
        let answer = answer.await.map_err(|error| error.of_entry(&id))?.into_inner();
        Appended::of(&append.context, answer)
    }

    /// A writer's hold on a context: it keeps what it wrote until the ledger has it for good, and puts back what
    /// the ledger lost. `position` is where the writer last saw the context, if it knows.
    pub fn attach(
        &self,
        context: &ContextId,
        position: Option<Position>,
        options: AttachOptions,
    ) -> Attachment {
        Attachment::new(self.clone(), context.clone(), position, options)
    }

    /// A stream of appends to any contexts: at most `window` are under way. Entries of each context are stored in
    /// the order of its appends; see [`crate::appender`] for the order of the receipts.
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

    /// A page of the contexts of the cluster whose ids begin with a prefix, in order: at most `limit` after the id `after`.
    /// Any node gathers them from those that keep them. If some of these do not answer, the page says so
    /// ([`ContextPage::unlisted`]): then it is not whole.
    pub async fn contexts(&self, prefix: &str, after: &str, limit: u32) -> Result<ContextPage, ClientError> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        let request = ContextsRequest { prefix, after, limit, ..ContextsRequest::default() };
        let answer = self.call(Aim::Any, |channel| {
            let (mut service, request) = (self.cluster_service_on(channel), request.clone());
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
        let contexts: Vec<ContextInfo> = contexts.collect::<Result<_, _>>()?;
        // A ledger of before lists what one node keeps, and goes on after the last of it.
        let last = || contexts.last().map(|info| info.context.as_str().to_owned());
        let next =
            answer.more.then(|| Some(answer.next).filter(|next| !next.is_empty()).or_else(last)).flatten();
        let unlisted = answer.unlisted.into_iter().map(|of| Unlisted {
            node: Some(of.node_id).filter(|node| !node.is_empty()),
            slots: of.count,
            reason: of.reason,
        });
        Ok(ContextPage { next, unlisted: unlisted.collect(), contexts })
    }

    /// A connection to the node in use, for services of which this SDK has no client.
    pub fn channel(&self) -> Channel {
        self.nodes().any_channel()
    }

    /// The generated client of `converge.context.v1` of the node in use, for what this SDK does not cover. Like
    /// the others below it stays with that node, and appends without [`Client::writer`]'s name.
    pub fn context_service(&self) -> ContextServiceClient<Channel> {
        self.context_service_on(self.nodes().any_channel())
    }

    /// The generated client of the streaming service.
    pub fn ledger_service(&self) -> LedgerServiceClient<Channel> {
        self.ledger_service_on(self.nodes().any_channel())
    }

    /// The generated client of the cluster service.
    pub fn cluster_service(&self) -> ClusterServiceClient<Channel> {
        self.cluster_service_on(self.nodes().any_channel())
    }

    /// The generated client of the integrity service.
    pub fn integrity_service(&self) -> IntegrityServiceClient<Channel> {
        self.integrity_service_on(self.nodes().any_channel())
    }

    pub(crate) fn context_service_on(&self, channel: Channel) -> ContextServiceClient<Channel> {
        ContextServiceClient::new(channel).max_decoding_message_size(self.options().max_message)
    }

    pub(crate) fn ledger_service_on(&self, channel: Channel) -> LedgerServiceClient<Channel> {
        LedgerServiceClient::new(channel).max_decoding_message_size(self.options().max_message)
    }

    pub(crate) fn cluster_service_on(&self, channel: Channel) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(channel).max_decoding_message_size(self.options().max_message)
    }

    pub(crate) fn integrity_service_on(&self, channel: Channel) -> IntegrityServiceClient<Channel> {
        IntegrityServiceClient::new(channel).max_decoding_message_size(self.options().max_message)
    }
}
