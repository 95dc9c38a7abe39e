//! A run of the measurements: where it is, how large, and what came of it.

use std::{ffi::OsString, path::Path};

use super::table::{Line, Table};

/// Bytes of each payload.
pub(super) const PAYLOAD: usize = 256;

/// The sizes of a run.
#[derive(Debug)]
pub(super) struct Sizes {
    pub(super) seconds: f64,
    pub(super) repetitions: u64,
    pub(super) rounds: u64,
    pub(super) entries: u64,
    pub(super) contexts: u64,
    pub(super) depth: u64,
    pub(super) inflight: usize,
    pub(super) flags: Vec<OsString>,
}

/// A run: where it is, how large, and what came of it so far.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) dir: &'a Path,
    pub(super) args: &'a Sizes,
    pub(super) only: &'a [u8],
    pub(super) table: &'a mut Table,
    pub(super) failed: usize,
}

impl Run<'_> {
    /// Whether a row was asked for.
    pub(super) fn wants(&self, row: u8) -> bool {
        self.only.is_empty() || self.only.contains(&row)
    }

    /// A line of the table.
    pub(super) fn push(&mut self, row: u8, line: &Line) {
        self.table.push(row, line);
    }
}

/// Says what is going on.
pub(super) fn say(text: &str) {
    eprintln!("bench: {text}");
}

/// Errors that a user of the SDK would have seen.
pub(super) fn explain(errors: &[String]) {
    for error in errors.iter().take(5) {
        say(&format!("an append failed: {error}"));
    }
}
