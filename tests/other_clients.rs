//! Clients of other libraries, and crowds of connections: each first call is answered, in plain and over TLS, whoever else
//! holds connections open.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
};

use ledger_tests::{
    Node, binary, repository, skip,
    tools::{self, Certificates, run},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

/// Fresh connections of each kind.
const FRESH: usize = 200;

/// What a client needs to know of TLS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Tls {
    Plain,
    ServerOnly,
    Mutual,
}

impl Tls {
    const ALL: [Self; 3] = [Self::Plain, Self::ServerOnly, Self::Mutual];

    /// A node that serves so.
    fn node(self, data: &Path, certificates: &Certificates) -> Node {
        let (cert, key) = (certificates.path("server.pem"), certificates.path("server.key"));
        let ca = certificates.path("ca.pem");
        let server = ["--tls-cert", &cert, "--tls-key", &key];
        match self {
            Self::Plain => Node::start(data),
            Self::ServerOnly => Node::start_with(data, &server),
            Self::Mutual => Node::start_with(data, &[&server[..], &["--tls-client-ca", &ca]].concat()),
        }
    }

    /// The files that a client names: the authority, its certificate, its key.
    fn files(self, certificates: &Certificates) -> Vec<String> {
        let names: &[&str] = match self {
            Self::Plain => &[],
            Self::ServerOnly => &["ca.pem"],
            Self::Mutual => &["ca.pem", "client.pem", "client.key"],
        };
        names.iter().map(|name| certificates.path(name)).collect()
    }
}

/// Calls a node that serves in each way.
fn in_each_way(call: impl Fn(Tls, SocketAddr, &[String]) -> Result<(), String>) {
    let dir = TempDir::new().unwrap();
    let certificates = match Certificates::make(dir.path()) {
        Ok(certificates) => certificates,
        Err(reason) => return skip(&format!("clients over TLS: no certificates: {reason}")),
    };
    for tls in Tls::ALL {
        let data = TempDir::new().unwrap();
        let node = tls.node(data.path(), &certificates);
        if let Err(reason) = call(tls, node.grpc, &tls.files(&certificates)) {
            panic!("{tls:?}: {reason}");
        }
        node.stop_cleanly();
    }
}

/// Has a script call over fresh connections; all that it says if it fails.
fn fresh_connections(script: &mut Command, address: SocketAddr, files: &[String]) -> Result<(), String> {
    script.args([address.to_string(), FRESH.to_string()]).args(files);
    let output = script.output().map_err(|error| error.to_string())?;
    output.status.success().then_some(()).ok_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn grpcio_is_answered_on_every_fresh_connection() {
    let python = match tools::python() {
        Ok(python) => python,
        Err(reason) => return skip(&format!("grpcio: {reason}")),
    };
    in_each_way(|_, address, files| {
        let script = repository().join("tests/python/fresh_connections.py");
        fresh_connections(Command::new(&python).arg(script), address, files)
    });
}

#[test]
fn grpc_js_is_answered_on_every_fresh_connection() {
    let folder = match tools::grpc_js() {
        Ok(folder) => folder,
        Err(reason) => return skip(&format!("grpc-js: {reason}")),
    };
    in_each_way(|_, address, files| {
        let script = repository().join("tests/node/fresh_connections.js");
        fresh_connections(Command::new("node").args([script, folder.clone()]), address, files)
    });
}

/// One call of `curl`, on a connection of its own.
fn curl(address: SocketAddr, tls: Tls, files: &[String], body: &Path) -> Result<(), String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "20", "--output", "/dev/null"]);
    command.args(["--write-out", "%{http_code} %{http_version}"]);
    command.args(["--header", "content-type: application/grpc", "--header", "te: trailers"]);
    command.arg("--data-binary").arg(format!("@{}", body.display()));
    let scheme = if tls == Tls::Plain { "http" } else { "https" };
    command.arg(if tls == Tls::Plain { "--http2-prior-knowledge" } else { "--http2" });
    for (flag, file) in ["--cacert", "--cert", "--key"].iter().zip(files) {
        command.arg(flag).arg(file);
    }
    let output = run(command.arg(format!("{scheme}://{address}/converge.context.v1.ContextService/Get")))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if said == "200 2" { Ok(()) } else { Err(said) }
}

/// `GetRequest { context_id: "c" }` in a gRPC frame.
const REQUEST: &[u8] = b"\0\0\0\0\x03\x0a\x01c";

fn has_curl() -> bool {
    run(Command::new("curl").arg("--version"))
        .is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("HTTP2"))
}

#[test]
fn curl_is_answered_on_every_fresh_connection() {
    if !has_curl() {
        return skip("curl with HTTP/2 is not there");
    }
    let dir = TempDir::new().unwrap();
    let body = dir.path().join("request");
    std::fs::write(&body, REQUEST).unwrap();
    in_each_way(|tls, address, files| (0..FRESH).try_for_each(|_| curl(address, tls, files, &body)));
}

/// Room for the crowd on this side.
fn may_open(count: usize) -> bool {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    getrlimit(Resource::Nofile).current.is_none_or(|now| now > count as u64 + 200)
}

fn crowd(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count).filter_map(|_| TcpStream::connect(address).ok()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn more_idle_connections_than_file_descriptors_stop_nobody() {
    const CROWD: usize = 1500;
    if !may_open(CROWD) {
        return skip("this process may not open enough files");
    }
    let data = TempDir::new().unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 512 && exec \"$0\" \"$@\""]).arg(binary("ledgerd"));
    command.arg("--data-dir").arg(data.path());
    command.args(["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LEDGER") || name == "GRPC_PORT" {
            command.env_remove(name);
        }
    }
    let node = Node::try_run(command).unwrap();
    let before = node.rpc().await;
    before.append_fact("c", b"1").await.unwrap();
    let idle = crowd(node.grpc, CROWD);
    assert!(idle.len() > 1000, "only {} connections", idle.len());
    // Whoever was connected before goes on or connects again, and whoever comes now gets in.
    node.rpc().await.append_fact("c", b"2").await.unwrap();
    assert!(node.http_get("/metrics").contains("ledger_connections_evicted_total{listener=\"grpc\"}"));
    assert!(node.log().contains("as many connections as there may be"), "{}", node.log());
    drop(idle);
    assert_eq!(node.rpc().await.entries("c", 0).await.unwrap().len(), 2);
    node.stop_cleanly();
}

#[test]
fn handshakes_that_never_end_stop_no_honest_caller() {
    const CROWD: usize = 2000;
    if !has_curl() || !may_open(CROWD) {
        return skip("curl with HTTP/2 is not there, or this process may not open enough files");
    }
    let dir = TempDir::new().unwrap();
    let certificates = match Certificates::make(dir.path()) {
        Ok(certificates) => certificates,
        Err(reason) => return skip(&format!("clients over TLS: no certificates: {reason}")),
    };
    let body = dir.path().join("request");
    std::fs::write(&body, REQUEST).unwrap();
    let data = TempDir::new().unwrap();
    let node = Tls::ServerOnly.node(data.path(), &certificates);
    let silent = crowd(node.grpc, CROWD);
    assert!(silent.len() > CROWD / 2, "only {} connections", silent.len());
    for _ in 0..20 {
        curl(node.grpc, Tls::ServerOnly, &Tls::ServerOnly.files(&certificates), &body).unwrap();
    }
    drop(silent);
    node.stop_cleanly();
}
