//! A node that lies: in front of a real ledger, it changes answers on their way to the client.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use ledger_core::{
    Hash, HashSuite, Size,
    checkpoint::{Checkpoint, Signer},
    hash::{Blake3, Hasher as _},
};
use ledger_proto::{
    context::v1 as context,
    ledger::v1::{
        self as ledger,
        integrity_service_client::IntegrityServiceClient,
        integrity_service_server::{IntegrityService, IntegrityServiceServer},
        ledger_service_client::LedgerServiceClient,
        ledger_service_server::{LedgerService, LedgerServiceServer},
    },
};
use ledger_tests::check::core_entry;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, Streaming, body::Body, transport::Channel};
use tower::Service;

use crate::double::pass_on;

/// What a node makes up.
#[derive(Debug, Clone)]
pub(crate) enum Lie {
    /// Nothing.
    None,
    /// A payload of one entry, whose hash stays.
    Payload(u64),
    /// A payload of one entry, and the hash that goes with it.
    PayloadAndHash(u64),
    /// Two entries change places.
    Swap(u64, u64),
    /// One entry is left out.
    LeftOut(u64),
    /// What comes after an entry is left out.
    CutAfter(u64),
    /// An entry's hash and a root that go together, in proofs.
    HashAndRoot,
    /// A root of a checkpoint, signed with the node's own key.
    Root(Box<Signer>),
    /// Checkpoints of another context.
    OtherContext(String),
    /// None, but it is a replica that has heard of no context yet: only the owner's answer has what there is.
    Behind,
}

/// A node that lies.
#[derive(Clone)]
pub(crate) struct Liar {
    pub address: SocketAddr,
    shared: Arc<Mutex<(Lie, Channel)>>,
}

impl Liar {
    pub(crate) async fn start(backend: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let liar = Self { address, shared: Arc::new(Mutex::new((Lie::None, channel(backend)))) };
        let incoming = TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().serve_with_incoming(liar.clone(), incoming));
        liar
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn lie(&self, lie: Lie) {
        self.shared.lock().unwrap().0 = lie;
    }

    /// It shows another ledger from now on.
    pub(crate) fn show(&self, backend: SocketAddr) {
        self.shared.lock().unwrap().1 = channel(backend);
    }

    fn lies(&self) -> Lie {
        self.shared.lock().unwrap().0.clone()
    }

    fn backend(&self) -> Channel {
        self.shared.lock().unwrap().1.clone()
    }

    /// What the client is shown of entries.
    fn tamper(&self, context_id: &str, entries: Vec<context::Entry>) -> Vec<context::Entry> {
        let lie = self.lies();
        let mut shown: Vec<_> = entries
            .into_iter()
            .filter(|entry| match lie {
                Lie::LeftOut(sequence) => entry.sequence != sequence,
                Lie::CutAfter(sequence) => entry.sequence <= sequence,
                _ => true,
            })
            .collect();
        for entry in &mut shown {
            match lie {
                Lie::Payload(sequence) if entry.sequence == sequence => {
                    entry.payload = Bytes::from_static(b"made up");
                }
                Lie::PayloadAndHash(sequence) if entry.sequence == sequence => {
                    entry.payload = Bytes::from_static(b"made up");
                    rehash(context_id, entry);
                }
                _ => {}
            }
        }
        if let Lie::Swap(a, b) = lie {
            let at = |sequence| shown.iter().position(|entry| entry.sequence == sequence);
            if let (Some(at_a), Some(at_b)) = (at(a), at(b)) {
                shown.swap(at_a, at_b);
                (shown[at_a].sequence, shown[at_b].sequence) = (a, b);
                for at in [at_a, at_b] {
                    rehash(context_id, &mut shown[at]);
                }
            }
        }
        shown
    }
}

fn channel(backend: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{backend}")).unwrap().connect_lazy()
}

/// The hash that goes with what an entry says now.
fn rehash(context_id: &str, entry: &mut context::Entry) {
    let whole = core_entry(&context::Entry { context_id: context_id.to_owned(), ..entry.clone() });
    entry.content_hash = whole.computed_hash(HashSuite::Blake3).0.to_vec().into();
}

impl Service<http::Request<Body>> for Liar {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        if path.contains("IntegrityService") {
            return IntegrityServiceServer::new(self.clone()).call(request);
        }
        if path.ends_with("LedgerService/Get") || path.ends_with("LedgerService/Watch") {
            return LedgerServiceServer::new(self.clone()).call(request);
        }
        let backend = self.backend();
        Box::pin(async move { Ok(pass_on(backend, request).await) })
    }
}

#[tonic::async_trait]
impl IntegrityService for Liar {
    async fn checkpoint(
        &self,
        request: Request<ledger::CheckpointRequest>,
    ) -> Result<Response<ledger::CheckpointResponse>, Status> {
        let mut request = request.into_inner();
        let lie = self.lies();
        if let Lie::OtherContext(other) = &lie {
            request.context_id.clone_from(other);
        }
        if matches!(lie, Lie::Behind) && request.consistency() != context::Consistency::Owner {
            request.context_id.push_str("/nothing");
            request.size = 0;
        }
        let context_id = request.context_id.clone();
        let answer = IntegrityServiceClient::new(self.backend()).checkpoint(request).await?;
        let mut answer = answer.into_inner();
        if let Lie::Root(signer) = lie {
            let stated = answer.checkpoint.as_mut().unwrap();
            let root = Hash([7; 32]);
            stated.root = root.0.to_vec().into();
            let origin = format!("converge/{context_id}");
            let checkpoint = Checkpoint::new(origin, Size(stated.size), root).unwrap();
            answer.signed_note = signer.sign(&checkpoint);
            answer.verifier_key = signer.verifier_key().to_string();
        }
        Ok(Response::new(answer))
    }

    async fn recoveries(
        &self,
        request: Request<ledger::RecoveriesRequest>,
    ) -> Result<Response<ledger::RecoveriesResponse>, Status> {
        IntegrityServiceClient::new(self.backend()).recoveries(request.into_inner()).await
    }

    async fn inclusion_proof(
        &self,
        request: Request<ledger::InclusionProofRequest>,
    ) -> Result<Response<ledger::InclusionProofResponse>, Status> {
        let request = request.into_inner();
        if let Lie::HashAndRoot = self.lies() {
            let data = Hash([1; 32]);
            return Ok(Response::new(ledger::InclusionProofResponse {
                sequence: request.sequence,
                size: 1,
                root: Blake3::leaf(&data).0.to_vec().into(),
                content_hash: data.0.to_vec().into(),
                hashes: Vec::new(),
                hash_suite: "blake3".to_owned(),
            }));
        }
        IntegrityServiceClient::new(self.backend()).inclusion_proof(request).await
    }

    async fn consistency_proof(
        &self,
        request: Request<ledger::ConsistencyProofRequest>,
    ) -> Result<Response<ledger::ConsistencyProofResponse>, Status> {
        IntegrityServiceClient::new(self.backend()).consistency_proof(request.into_inner()).await
    }

    async fn forks(
        &self,
        _: Request<ledger::ForksRequest>,
    ) -> Result<Response<ledger::ForksResponse>, Status> {
        Err(Status::unimplemented("not asked"))
    }

    type ForkEntriesStream = BoxStream<'static, Result<ledger::ForkPage, Status>>;

    async fn fork_entries(
        &self,
        _: Request<ledger::ForkEntriesRequest>,
    ) -> Result<Response<Self::ForkEntriesStream>, Status> {
        Err(Status::unimplemented("not asked"))
    }
}

#[tonic::async_trait]
impl LedgerService for Liar {
    type AppendStream = BoxStream<'static, Result<ledger::AppendResults, Status>>;

    async fn append(
        &self,
        _: Request<Streaming<ledger::AppendBatch>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        Err(Status::unimplemented("passed on"))
    }

    type GetStream = BoxStream<'static, Result<ledger::Page, Status>>;

    async fn get(&self, request: Request<context::GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let request = request.into_inner();
        let (liar, context_id) = (self.clone(), request.context_id.clone());
        let pages = LedgerServiceClient::new(self.backend()).get(request).await?.into_inner();
        let shown = pages.map(move |page| {
            let page = page?;
            Ok(ledger::Page { entries: liar.tamper(&context_id, page.entries), ..page })
        });
        Ok(Response::new(shown.boxed()))
    }

    type SnapshotStream = BoxStream<'static, Result<ledger::SnapshotChunk, Status>>;

    async fn snapshot(
        &self,
        _: Request<context::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        Err(Status::unimplemented("passed on"))
    }

    async fn load(
        &self,
        _: Request<Streaming<ledger::LoadChunk>>,
    ) -> Result<Response<context::LoadResponse>, Status> {
        Err(Status::unimplemented("passed on"))
    }

    type WatchStream = BoxStream<'static, Result<ledger::WatchBatch, Status>>;

    async fn watch(
        &self,
        request: Request<ledger::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let request = request.into_inner();
        let (liar, context_id) = (self.clone(), request.context_id.clone());
        let batches = LedgerServiceClient::new(self.backend()).watch(request).await?.into_inner();
        let shown = batches.map(move |batch| {
            let batch = batch?;
            Ok(ledger::WatchBatch { entries: liar.tamper(&context_id, batch.entries), ..batch })
        });
        Ok(Response::new(shown.boxed()))
    }
}
