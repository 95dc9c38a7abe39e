//! One append: what the caller gives, what the ledger returns, and the call that does it.

use bytes::Bytes;
use ledger_core::{ContextId, Entry, EntryId, Key, Position, entry::Metadata};
use ledger_proto::context::v1::{self as proto, AppendRequest, AppendResponse};

use crate::{
    connection::{core::Client, destination::Destination},
    convert,
    error::ClientError,
};

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
    /// The id that makes a repetition safe. The client assigns one if the caller does not.
    pub entry_id: Option<EntryId>,
    /// How many copies must be durable before the ledger acknowledges it.
    pub durability: Durability,
}

/// With how many copies on disk the ledger acknowledges an append. The store calls it a write quorum, Kafka `acks`.
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
    ///
    /// # Errors
    ///
    /// [`ClientError::Id`] if the key is not valid.
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

    /// With another durability than the ledger is configured for.
    #[must_use]
    pub fn with_durability(self, durability: Durability) -> Self {
        Self { durability, ..self }
    }

    /// Assigns an id, if it has none: a version 7 UUID, time-ordered and unique.
    pub(crate) fn assign_id(&mut self) -> EntryId {
        let new_id = || EntryId::from_bits(uuid::Uuid::now_v7().into_bytes());
        self.entry_id.get_or_insert_with(new_id).clone()
    }

    /// The request for it. It shares the payload.
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

    /// About how many bytes it takes in memory.
    pub(crate) fn cost_bytes(&self) -> usize {
        let metadata = self.metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        self.payload.len() + self.key.as_str().len() + metadata
    }
}

/// A stored entry, and the position of its context after it.
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
    pub(crate) fn from_response(context: &ContextId, response: AppendResponse) -> Result<Self, ClientError> {
        let entry = response.entry.ok_or_else(|| ClientError::malformed("entry"))?;
        let position = convert::position(response.position)?;
        Ok(Self { entry: convert::entry(context, entry)?, position, copies: response.copies })
    }
}

impl Client {
    /// Appends an entry; returns when it is durable. The client retries while no node can take the append, at the
    /// context's owner wherever that moves: the entry id makes it safe.
    ///
    /// # Errors
    ///
    /// [`ClientError::Unavailable`] or [`ClientError::TimedOut`] if no node took it in time: the ledger may have stored
    /// the entry all the same, and [`ClientError::entry_id`] is the id with which to repeat it. Else as the ledger
    /// refuses it.
    pub async fn append(&self, mut append: Append) -> Result<Appended, ClientError> {
        let id = append.assign_id();
        let request = append.request();
        let response = self.call(Destination::owner_of(&append.context), |channel| {
            let (mut service, request) =
                (self.context_service_on(channel), self.writer_request(request.clone()));
            async move { service.append(request).await }
        });
        let response = response.await.map_err(|error| error.with_entry_id(&id))?.into_inner();
        Appended::from_response(&append.context, response)
    }
}
