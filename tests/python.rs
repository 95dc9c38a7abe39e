//! A client that knows nothing but `proto/`: Python, generated with grpcio-tools.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::process::Command;

use ledger_tests::{
    Node, repository, skip,
    tools::{python, run},
};
use tempfile::TempDir;

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
