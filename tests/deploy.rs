//! The manifests for Kubernetes, as `deploy/check` sees them: it says what it skips for want of a tool.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

use std::process::Command;

use ledger_tests::{binary, repository, skip};

#[test]
fn chart_and_overlays_are_what_kubernetes_and_ledgerd_take() {
    let ledgerd = binary("ledgerd");
    let programs = ledgerd.parent().unwrap();
    let ran = Command::new("python3")
        .arg(repository().join("deploy/check"))
        // The programs of this build.
        .env("LEDGERTEST_BIN_DIR", programs)
        .output();
    let output = match ran {
        Ok(output) => output,
        Err(error) => return skip(&format!("deploy/check: no python3: {error}")),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines().filter(|line| line.starts_with("skipped")) {
        skip(line);
    }
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
