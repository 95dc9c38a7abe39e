//! Real nodes in network namespaces of their own, with faults of processes, networks, clocks, disks, files and power.
//! After each run every acknowledgement, and everything that anybody was shown, is compared with what each node holds.
//!
//! Needs root, `ip` and `tc`. `just namespaces --rounds 20` runs twenty rounds of each scenario; without
//! `LEDGERTEST_NAMESPACES_ROUNDS` there is one round of a few of them, and none where something is missing.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

mod check;
mod cluster;
mod faults;
mod load;
mod net;
mod node;
mod record;
mod report;
mod run;
mod scenarios;
mod watch;
