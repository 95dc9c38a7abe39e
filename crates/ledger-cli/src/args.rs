//! The command line, as clap reads it.
//!
//! clap shows the doc comment of a command's type as help, in place of that of the command: such types have ordinary comments.

mod append;
mod bench;
mod cluster;
mod connection;
mod interest;
mod listing;
mod payload_format;
mod prove;
mod read;
mod transfer;
mod verified;

use clap::{Parser, Subcommand};

pub(crate) use append::Append;
pub(crate) use bench::{Bench, Shape};
pub(crate) use cluster::{Cluster, Decommission, Local, Recover};
pub(crate) use connection::Connection;
pub(crate) use interest::Interest;
pub(crate) use listing::{Contexts, Forks};
pub(crate) use payload_format::PayloadFormat;
pub(crate) use prove::{Checkpoint, Prove, Verify};
pub(crate) use read::{Get, Watch};
pub(crate) use transfer::{Load, Snapshot};
pub(crate) use verified::Verified;

const EXIT_CODES: &str = "Exit codes:
  0  done
  1  failed for another reason
  2  wrong usage, or an argument the ledger refuses
  3  the node cannot be reached, or cannot serve now (a full disk too)
  4  verification failed, or stored data is damaged
  5  it exists already, or the history is another one
  6  over a limit: payload or message
  7  the context is not there: it has no entries (see --allow-empty)
  8  not all of it: some nodes did not answer
  9  cluster status: slots take no appends now or lack copies, or nodes do not hear each other
  130  interrupted";

/// Append to, read, watch and prove the contexts of a Converge Ledger.
#[derive(Debug, Parser)]
#[command(name = "ledgerctl", version, after_help = EXIT_CODES)]
pub(crate) struct Args {
    #[command(flatten)]
    pub connection: Connection,
    /// One JSON object per line instead of text for people; errors too
    #[arg(long, global = true, help_heading = "Options of every command")]
    pub json: bool,
    #[command(subcommand)]
    pub command: Command,
}

// The commands of `ledgerctl`, each with its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Append an entry, or one for each line of standard input
    Append(Append),
    /// Read entries
    Get(Get),
    /// Show entries as they come, from the beginning or after a sequence
    Watch(Watch),
    /// Write a context to a file, as one self-verifying snapshot
    Snapshot(Snapshot),
    /// Load a snapshot, of this ledger or of its predecessor
    Load(Load),
    /// Show a context's size and root, signed by the node
    Checkpoint(Checkpoint),
    /// Get a proof, verified here, and write it to a file
    #[command(subcommand)]
    Prove(Prove),
    /// Verify a proof, a snapshot or a signed checkpoint from files: no node is needed
    #[command(subcommand)]
    Verify(Verify),
    /// List contexts
    Contexts(Contexts),
    /// List histories that nodes left because they differ from the owner's, or read one
    Forks(Forks),
    /// See who looks at a context now, and tell them something
    #[command(subcommand)]
    Interest(Interest),
    /// Look at a cluster and look after it, or start one to try out
    #[command(subcommand)]
    Cluster(Cluster),
    /// Measure a running node
    #[command(subcommand)]
    Bench(Bench),
    /// Write shell completions to standard output
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Args as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn a_payload_comes_from_one_place() {
        let parse =
            |args: &[&str]| Args::try_parse_from([&["ledgerctl", "append", "c", "facts"], args].concat());
        assert!(parse(&["text"]).is_ok());
        assert!(parse(&["--file", "f"]).is_ok());
        assert!(parse(&["--stdin-lines", "--meta", "a=b"]).is_ok());
        assert!(parse(&[]).is_err());
        assert!(parse(&["text", "--file", "f"]).is_err());
        assert!(parse(&["--stdin-lines", "--entry-id", "x"]).is_err());
    }
}
