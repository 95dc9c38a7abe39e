//! A node's services, as a client with nothing but the contract sees them.

use std::net::SocketAddr;

use ledger_proto::{
    context::v1::{
        AppendRequest, AppendResponse, Entry, GetRequest, LoadRequest, LoadResponse, SnapshotRequest,
        context_service_client::ContextServiceClient,
    },
    ledger::v1::{
        Checkpoint, CheckpointRequest, integrity_service_client::IntegrityServiceClient,
        ledger_service_client::LedgerServiceClient,
    },
};
use tonic::{Status, metadata::MetadataValue, transport::Channel};

const MAX_MESSAGE: usize = 256 << 20;

/// Clients of a node's services, on one connection.
#[derive(Debug, Clone)]
pub struct Rpc {
    /// The five operations.
    pub context: ContextServiceClient<Channel>,
    /// Their streaming forms.
    pub ledger: LedgerServiceClient<Channel>,
    /// Checkpoints and proofs.
    pub integrity: IntegrityServiceClient<Channel>,
    /// Whether the node is told not to ask others.
    from_itself: bool,
}

impl Rpc {
    /// Connects to a node that serves.
    pub async fn connect(address: SocketAddr) -> Self {
        Self::over(Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap())
    }

    /// The same over a channel.
    pub fn over(channel: Channel) -> Self {
        Self {
            from_itself: false,
            context: ContextServiceClient::new(channel.clone())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
            ledger: LedgerServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            integrity: IntegrityServiceClient::new(channel),
        }
    }

    /// Reads only what the node itself keeps: one of a cluster asks no other for it.
    #[must_use]
    pub fn from_itself(mut self) -> Self {
        self.from_itself = true;
        self
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if self.from_itself {
            // As nodes mark what they send on, so that nothing goes around in circles.
            request.metadata_mut().insert("converge-forwarded", MetadataValue::from_static("1"));
        }
        request
    }

    /// Appends one entry.
    pub async fn append(&self, request: AppendRequest) -> Result<AppendResponse, Status> {
        Ok(self.context.clone().append(request).await?.into_inner())
    }

    /// Appends a payload under the key `facts`.
    pub async fn append_fact(&self, context: &str, payload: &[u8]) -> Result<Entry, Status> {
        let request = AppendRequest {
            context_id: context.to_owned(),
            key: "facts".to_owned(),
            payload: payload.to_vec().into(),
            ..AppendRequest::default()
        };
        self.append(request).await?.entry.ok_or_else(|| Status::internal("an append without an entry"))
    }

    /// All entries of a context after a sequence, by the streaming Get.
    pub async fn entries(&self, context: &str, after: u64) -> Result<Vec<Entry>, Status> {
        let request =
            GetRequest { context_id: context.to_owned(), after_sequence: after, ..GetRequest::default() };
        let mut pages = self.ledger.clone().get(self.request(request)).await?.into_inner();
        let mut entries = Vec::new();
        while let Some(page) = pages.message().await? {
            // A page leaves out what the request named; the content hash is over it all the same.
            entries.extend(page.entries.into_iter().map(|entry| {
                assert_eq!(entry.context_id, "");
                Entry { context_id: context.to_owned(), ..entry }
            }));
        }
        Ok(entries)
    }

    /// The context's newest checkpoint.
    pub async fn checkpoint(&self, context: &str) -> Result<Checkpoint, Status> {
        let request = CheckpointRequest { context_id: context.to_owned(), ..CheckpointRequest::default() };
        let answer = self.integrity.clone().checkpoint(self.request(request)).await?.into_inner();
        answer.checkpoint.ok_or_else(|| Status::internal("a checkpoint without a checkpoint"))
    }

    /// The context as one blob.
    pub async fn snapshot(&self, context: &str) -> Result<Vec<u8>, Status> {
        let request = SnapshotRequest { context_id: context.to_owned() };
        Ok(self.context.clone().snapshot(request).await?.into_inner().snapshot.to_vec())
    }

    /// Installs a blob.
    pub async fn load(
        &self,
        context: &str,
        snapshot: &[u8],
        fail_if_exists: bool,
    ) -> Result<LoadResponse, Status> {
        let request = LoadRequest {
            context_id: context.to_owned(),
            snapshot: snapshot.to_vec().into(),
            fail_if_exists,
        };
        Ok(self.context.clone().load(request).await?.into_inner())
    }
}
