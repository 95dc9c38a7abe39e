//! A bare tonic echo, between two processes, with the HTTP/2 settings of the ledger.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
use ledger_proto::context::v1::{
    AppendRequest, AppendResponse, Entry, GetRequest, GetResponse, LoadRequest, LoadResponse, Position,
    SnapshotRequest, SnapshotResponse, WatchEvent, WatchRequest,
    context_service_client::ContextServiceClient,
    context_service_server::{ContextService, ContextServiceServer},
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, server::TcpIncoming},
};

#[allow(missing_docs, clippy::pedantic, unreachable_pub, reason = "generated")]
mod proto {
    tonic::include_proto!("converge.bench.v1");
}

use proto::{
    Message, Repeat,
    echo_client::EchoClient,
    echo_server::{Echo, EchoServer},
};

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

#[derive(Debug)]
struct Service;

#[tonic::async_trait]
impl Echo for Service {
    async fn unary(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        Ok(Response::new(request.into_inner()))
    }

    type StreamStream = ReceiverStream<Result<Message, Status>>;

    async fn stream(&self, request: Request<Repeat>) -> Result<Response<Self::StreamStream>, Status> {
        let Repeat { payload, count } = request.into_inner();
        let (messages, stream) = mpsc::channel(1024);
        tokio::spawn(async move {
            for _ in 0..count {
                if messages.send(Ok(Message { payload: payload.clone() })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// `converge.context.v1` without a ledger behind it: what an append costs in tonic alone, with the messages
/// that an append has.
#[derive(Debug)]
struct Bare;

fn answer(request: AppendRequest) -> AppendResponse {
    let position = Position {
        size: 1 << 20,
        root: Bytes::from_static(&[7; 32]),
        epoch: 1 << 20,
        lineage: Bytes::from_static(&[7; 16]),
    };
    let entry = Entry {
        id: "0192f3a4b5c6d7e8f90a1b2c3d4e5f60".to_owned(),
        key: request.key,
        payload: request.payload,
        sequence: 1 << 20,
        appended_at_ns: 1_763_700_000_000_000_000,
        metadata: request.metadata,
        lamport_clock: 1 << 20,
        content_hash: Bytes::from_static(&[7; 32]),
        context_id: request.context_id,
        epoch: 1 << 20,
    };
    AppendResponse { entry: Some(entry), position: Some(position), copies: 1 }
}

#[tonic::async_trait]
impl ContextService for Bare {
    async fn append(&self, request: Request<AppendRequest>) -> Result<Response<AppendResponse>, Status> {
        Ok(Response::new(answer(request.into_inner())))
    }

    async fn get(&self, _: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Err(Status::unimplemented("this only answers appends"))
    }

    async fn snapshot(&self, _: Request<SnapshotRequest>) -> Result<Response<SnapshotResponse>, Status> {
        Err(Status::unimplemented("this only answers appends"))
    }

    async fn load(&self, _: Request<LoadRequest>) -> Result<Response<LoadResponse>, Status> {
        Err(Status::unimplemented("this only answers appends"))
    }

    type WatchStream = ReceiverStream<Result<WatchEvent, Status>>;

    async fn watch(&self, _: Request<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("this only answers appends"))
    }
}

fn request(payload: usize) -> AppendRequest {
    AppendRequest {
        context_id: "bench-unary-0192f3a4b5c6d7e8f90a1b2c3d4e5f60-63".to_owned(),
        key: "facts".to_owned(),
        payload: vec![7; payload].into(),
        ..AppendRequest::default()
    }
}

/// Bytes of an entry with such a payload, as a stream carries it.
pub(crate) fn entry_size(payload: usize) -> usize {
    let entry = answer(request(payload)).entry.unwrap_or_default();
    Entry { context_id: String::new(), ..entry }.encoded_len()
}

/// Serves on a free port, which is the first line of standard output, until killed.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(EchoServer::new(Service))
        .add_service(ContextServiceServer::new(Bare))
        .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)))
        .await?;
    Ok(())
}

/// A server in a process of its own.
pub(crate) struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut process =
            Command::new(std::env::current_exe()?).arg("echo-server").stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let out = process.stdout.take().context("the echo server has no output")?;
        BufReader::new(out).read_line(&mut line)?;
        Ok(Self { process, address: line.trim().parse().context("the echo server did not start")? })
    }

    async fn channel(&self) -> anyhow::Result<Channel> {
        Ok(Endpoint::from_shared(format!("http://{}", self.address))?
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect()
            .await?)
    }

    /// Echoes of a payload per second, with so many calls under way.
    pub(crate) async fn unary(&self, payload: usize, inflight: usize, seconds: f64) -> anyhow::Result<f64> {
        let message = Message { payload: vec![7; payload].into() };
        let call = move |channel: Channel| {
            let message = message.clone();
            async move { EchoClient::new(channel).unary(message).await.map(drop) }
        };
        self.calls(inflight, seconds, call).await
    }

    /// Appends that are answered and not stored per second, with so many calls under way.
    pub(crate) async fn append(&self, payload: usize, inflight: usize, seconds: f64) -> anyhow::Result<f64> {
        let request = request(payload);
        let call = move |channel: Channel| {
            let request = request.clone();
            async move { ContextServiceClient::new(channel).append(request).await.map(drop) }
        };
        self.calls(inflight, seconds, call).await
    }

    async fn calls<F>(
        &self,
        inflight: usize,
        seconds: f64,
        call: impl Fn(Channel) -> F + Clone + Send + 'static,
    ) -> anyhow::Result<f64>
    where
        F: Future<Output = Result<(), Status>> + Send,
    {
        let begin = Instant::now();
        let end = begin + Duration::from_secs_f64(seconds);
        let mut tasks = Vec::new();
        // One connection, as in `ledgerctl bench unary`.
        let channel = self.channel().await?;
        for _ in 0..inflight {
            let (channel, call) = (channel.clone(), call.clone());
            tasks.push(tokio::spawn(async move {
                let mut calls = 0_u64;
                while Instant::now() < end {
                    call(channel.clone()).await?;
                    calls += 1;
                }
                Ok::<_, Status>(calls)
            }));
        }
        let mut calls = 0;
        for task in tasks {
            calls += task.await??;
        }
        Ok(calls as f64 / begin.elapsed().as_secs_f64())
    }

    /// Messages of one stream per second.
    pub(crate) async fn stream(&self, payload: usize, seconds: f64) -> anyhow::Result<f64> {
        let mut client = EchoClient::new(self.channel().await?);
        let (begin, mut messages) = (Instant::now(), 0_u64);
        while begin.elapsed().as_secs_f64() < seconds {
            let repeat = Repeat { payload: Bytes::from(vec![7; payload]), count: 1_000_000 };
            let mut stream = client.stream(repeat).await?.into_inner();
            while stream.message().await?.is_some() {
                messages += 1;
            }
        }
        Ok(messages as f64 / begin.elapsed().as_secs_f64())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
