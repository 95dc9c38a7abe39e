//! What the end-to-end tests share: nodes as processes, load whose acknowledgements are recorded, and checks
//! that trust nothing the node says of itself.
//!
//! The binaries are taken from beside the test executable (`./dev test` builds them first) or from the
//! directory that `LEDGERTEST_BIN_DIR` names.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on should stop")]
#![allow(clippy::missing_errors_doc, reason = "what a node refuses is what the tests look at")]

pub mod check;
pub mod cluster;
pub mod desk;
pub mod load;
pub mod node;
pub mod rpc;
pub mod tools;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

pub use check::History;
pub use cluster::Cluster;
pub use node::{Node, Refused, Stopped};
pub use rpc::Rpc;

/// How long anything may take that must happen.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// The path of one of the project's binaries.
pub fn binary(name: &str) -> PathBuf {
    let beside = || {
        // target/release/deps/crash-0123456789abcdef → target/release
        let exe = std::env::current_exe().expect("the test knows its own path");
        exe.ancestors().nth(2).expect("the test lies in target/<profile>/deps").to_owned()
    };
    let dir = std::env::var_os("LEDGERTEST_BIN_DIR").map_or_else(beside, PathBuf::from);
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is missing: build it with `./dev build`, or name the directory of the binaries in LEDGERTEST_BIN_DIR",
        path.display()
    );
    path
}

/// The top of the repository. Looked up while running: checkouts share the compiled tests.
pub fn repository() -> PathBuf {
    // Tests are run in the folder of their crate.
    Path::new("..").canonicalize().expect("tests run in the tests folder of the repository")
}

/// Says that a test, or a part of it, was not run, past the test runner's capture.
pub fn skip(reason: &str) {
    let _ = writeln!(std::io::stderr(), "\nSKIPPED: {reason}");
}

/// A number from the environment, or the default.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| {
        text.parse().unwrap_or_else(|_| panic!("{name} is `{text}`: it must be a number"))
    })
}

/// Polls until `ready` gives a value; panics with `what` after [`PATIENCE`].
pub fn until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready() {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// As [`until`], for what must be asked for.
pub async fn until_async<T>(what: &str, mut ready: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = ready().await {
            return value;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
