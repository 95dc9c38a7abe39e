//! The library does what the file says, in a process that it is loaded into.

use std::{
    process::{Command, Output},
    time::Instant,
};

use ledger_tests::skip;
use tempfile::TempDir;

use super::*;

/// Runs dd, which writes a file and syncs it once.
fn dd(sync: &FaultySync, dir: &Path) -> Output {
    let mut command = Command::new("env");
    command.args(sync.environment()).args(["dd", "if=/dev/zero", "bs=1", "count=1", "conv=fdatasync"]);
    command.arg(format!("of={}", dir.join("written").display())).output().unwrap()
}

#[test]
fn a_preloaded_library_slows_syncs_and_has_them_fail() {
    let dir = TempDir::new().unwrap();
    let sync = match FaultySync::new(dir.path()) {
        Ok(sync) => sync,
        Err(why) => return skip(&why),
    };
    assert!(dd(&sync, dir.path()).status.success(), "without a file nothing changes");

    sync.set(Duration::from_millis(300), 0);
    let begin = Instant::now();
    assert!(dd(&sync, dir.path()).status.success());
    assert!(begin.elapsed() >= Duration::from_millis(300), "{:?}", begin.elapsed());

    sync.set(Duration::ZERO, 100);
    let failed = dd(&sync, dir.path());
    let said = String::from_utf8_lossy(&failed.stderr);
    assert!(!failed.status.success() && said.contains("Input/output error"), "{said}");

    sync.heal();
    assert!(dd(&sync, dir.path()).status.success());
}
