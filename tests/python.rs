//! A client that knows nothing but `proto/`: Python, generated with grpcio-tools.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use ledger_client::{Client, ContextId, Options, Selection};
use ledger_proto::ledger::v1::{WatchRequest, ledger_service_client::LedgerServiceClient};
use ledger_tests::{
    Node, PATIENCE, repository, skip,
    tools::{python, run},
};
use tempfile::TempDir;
use tonic::{Code, transport::Endpoint};

#[test]
fn a_python_client_does_the_five_operations() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return skip(&format!("the Python client: no grpcio-tools: {reason}")),
    };
    let (data, stubs) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let node = Node::start(data.path());
    let protos = repository().join("proto");
    run(Command::new(&python)
        .args(["-m", "grpc_tools.protoc", "--proto_path"])
        .arg(&protos)
        .arg(format!("--python_out={}", stubs.path().display()))
        .arg(format!("--grpc_python_out={}", stubs.path().display()))
        .arg("converge/context/v1/context.proto"))
    .unwrap();
    let output = Command::new(&python)
        .arg(repository().join("tests/python/five_operations.py"))
        .arg(node.grpc.to_string())
        .arg(repository().join("tests/fixtures/five-entries.etf"))
        .env("PYTHONPATH", stubs.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    node.stop_cleanly();
}

/// A server with grpc's default policy on pings, whose Watch says nothing. It prints its port, then each Watch.
const SILENT: &str = r#"
import sys, time, grpc
from concurrent import futures

class Silent(grpc.GenericRpcHandler):
    def service(self, details):
        if not details.method.endswith("/Watch"):
            return None
        def watch(request, context):
            print("watch", flush=True)
            while context.is_active():
                time.sleep(0.05)
            return
            yield
        return grpc.unary_stream_rpc_method_handler(watch)

server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((Silent(),))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_stays_with_a_server_that_ends_connections_with_too_many_pings() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return skip(&format!("the server of grpcio: {reason}")),
    };
    let mut server = Command::new(python)
        .args(["-c", SILENT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let (printed, mut heard) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| printed.send(line)));
    let port = heard.recv().await.unwrap();
    let endpoint = format!("http://127.0.0.1:{port}");
    // The node is asked whether it is there ten times a second: a second is long here.
    let options = Options { keep_alive: Duration::from_millis(100), ..Options::default() };
    let client = Client::connect(&endpoint, &options).unwrap();
    let context = ContextId::new("silent").unwrap();
    let mut watch = client.watch(&context, Selection::default());
    let watching = tokio::spawn(async move { watch.next().await });
    assert_eq!(heard.recv().await.unwrap(), "watch");
    // Whoever pings as often as that is told to go, again and again.
    for _ in 0..3 {
        let pinging = Endpoint::from_shared(endpoint.clone())
            .unwrap()
            .http2_keep_alive_interval(Duration::from_millis(100))
            .connect_lazy();
        let request = WatchRequest { context_id: "pinged".to_owned(), ..WatchRequest::default() };
        // It sends not even headers before there is an entry.
        let mut service = LedgerServiceClient::new(pinging);
        let ended = tokio::time::timeout(PATIENCE, service.watch(request)).await.unwrap().unwrap_err();
        assert_eq!(ended.code(), Code::Unavailable, "{ended}");
        assert_eq!(heard.recv().await.unwrap(), "watch");
    }
    assert!(heard.try_recv().is_err(), "the client has watched once");
    assert!(!watching.is_finished());
    watching.abort();
    server.kill().unwrap();
    server.wait().unwrap();
}
