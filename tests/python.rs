//! A client that knows nothing but `proto/`: Python, generated with grpcio-tools.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ledger_tests::{Node, repository, skip};
use tempfile::TempDir;

/// A Python with grpcio-tools, in the user's cache; made on first use. An error says why there is none.
fn python() -> Result<PathBuf, String> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
        .ok_or("neither XDG_CACHE_HOME nor HOME is set")?;
    let venv = cache.join("converge-ledger/python");
    let python = venv.join("bin/python");
    if has_grpc(&python) {
        return Ok(python);
    }
    fs::create_dir_all(&venv).map_err(|error| format!("{}: {error}", venv.display()))?;
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    run(Command::new(&python).args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--retries=1",
        "--timeout=30",
        "--only-binary=:all:",
        "grpcio-tools",
    ]))?;
    if has_grpc(&python) {
        Ok(python)
    } else {
        Err("grpcio-tools was installed but does not load".to_owned())
    }
}

fn has_grpc(python: &Path) -> bool {
    Command::new(python)
        .args(["-c", "import grpc, grpc_tools"])
        .output()
        .is_ok_and(|run| run.status.success())
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it printed nothing").to_owned();
    Err(format!("{command:?} ended with {}: {last}", output.status))
}

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
