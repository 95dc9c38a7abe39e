//! The SDK against real ledgers, and against nodes that behave as those of a cluster: that nothing is lost, doubled
//! or out of order when nodes are killed, restarted, or hand over what they own.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]

mod appender;
mod attachment;
mod double;
mod liar;
mod owner;
mod reading;
mod restart;
mod support;
mod verified;
