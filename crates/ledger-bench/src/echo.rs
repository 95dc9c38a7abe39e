//! A bare tonic echo, between two processes, with the HTTP/2 settings of the ledger.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use bytes::Bytes;
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

/// Calls under way on one connection, as in `ledgerctl bench unary`.
const PER_CONNECTION: usize = 32;
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

/// Serves on a free port, which is the first line of standard output, until killed.
pub(crate) async fn serve() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_service(EchoServer::new(Service))
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

    async fn client(&self) -> anyhow::Result<EchoClient<Channel>> {
        let channel = Endpoint::from_shared(format!("http://{}", self.address))?
            .tcp_nodelay(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect()
            .await?;
        Ok(EchoClient::new(channel))
    }

    /// Calls per second with so many under way.
    pub(crate) async fn unary(&self, payload: usize, inflight: usize, seconds: f64) -> anyhow::Result<f64> {
        let begin = Instant::now();
        let end = begin + Duration::from_secs_f64(seconds);
        let mut tasks = Vec::new();
        let mut client = self.client().await?;
        for number in 0..inflight {
            if number > 0 && number % PER_CONNECTION == 0 {
                client = self.client().await?;
            }
            let (mut client, message) = (client.clone(), Message { payload: vec![7; payload].into() });
            tasks.push(tokio::spawn(async move {
                let mut calls = 0_u64;
                while Instant::now() < end {
                    client.unary(message.clone()).await?;
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
        let mut client = self.client().await?;
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
