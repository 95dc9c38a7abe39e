//! The command line, as clap reads it.

use std::{path::PathBuf, time::Duration};

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use ledger_client::{Client, ClientError, Options, Tls};

use crate::{cluster::args::Cluster, interest::Interest};

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

/// Where the node is.
#[derive(Debug, Clone, ClapArgs)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Connection {
    /// The node to talk to; several with commas between, except where one node is meant
    #[arg(
        long,
        global = true,
        env = "LEDGER_ENDPOINT",
        default_value = "http://127.0.0.1:50051",
        value_name = "URL"
    )]
    pub endpoint: String,
    /// How long a call with one answer may take, seconds
    #[arg(long, global = true, default_value_t = 30.0, value_name = "SECONDS")]
    pub timeout: f64,
    /// Trust these authorities (PEM) instead of the system's, for https:// endpoints
    #[arg(long, global = true, env = "LEDGER_CA", value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// This client's certificate (PEM)
    #[arg(long, global = true, env = "LEDGER_CERT", value_name = "FILE", requires = "key_file")]
    pub cert: Option<PathBuf>,
    /// The key of --cert (PEM)
    #[arg(long, global = true, env = "LEDGER_KEY", value_name = "FILE", requires = "cert")]
    pub key_file: Option<PathBuf>,
    /// The cluster's keys: for drain, decommission and recover of a node on another machine. The key is proven, never sent
    #[arg(long, global = true, env = "LEDGER_CLUSTER_KEY_FILE", value_name = "FILE")]
    pub cluster_key_file: Option<PathBuf>,
}

impl Connection {
    /// A client of the node. Nothing is sent yet.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| anyhow::anyhow!("{} cannot be read: {error}", path.display()))
        };
        let identity = match (&self.cert, &self.key_file) {
            (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
            _ => None,
        };
        let timeout = Duration::try_from_secs_f64(self.timeout).map_err(|_| {
            ClientError::Invalid(format!("--timeout {} is not a number of seconds", self.timeout))
        })?;
        let tls = Tls { ca: self.ca.as_ref().map(read).transpose()?, identity, domain: None };
        Ok(Client::connect(&self.endpoint, &Options { timeout, tls, ..Options::default() })?)
    }
}

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

#[derive(Debug, ClapArgs)]
pub(crate) struct Append {
    /// The context
    pub context: String,
    /// What kind of entry it is: facts, intents, traces, …
    pub key: String,
    /// The payload, as text
    #[arg(required_unless_present_any = ["file", "stdin_lines"], conflicts_with_all = ["file", "stdin_lines"])]
    pub payload: Option<String>,
    /// Take the payload from a file; - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "stdin_lines")]
    pub file: Option<PathBuf>,
    /// Append one entry for each line of standard input, pipelined
    #[arg(long)]
    pub stdin_lines: bool,
    /// The name of a run that stored some of these lines: those are found, and not stored again
    #[arg(long, value_name = "RUN", requires = "stdin_lines")]
    pub run: Option<String>,
    /// A pair of metadata; may be repeated
    #[arg(long = "meta", value_name = "KEY=VALUE")]
    pub metadata: Vec<String>,
    /// An id that makes repeating the append safe
    #[arg(long, value_name = "ID", conflicts_with = "stdin_lines")]
    pub entry_id: Option<String>,
    /// Lamport time seen elsewhere: the entry's will be later
    #[arg(long, default_value_t = 0, value_name = "TIME")]
    pub received_lamport: u64,
    /// Acknowledge with these copies
    #[arg(long, value_enum, default_value_t)]
    pub durability: Durability,
}

/// The copies that an append is acknowledged with.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum Durability {
    /// As many as the cluster is configured for
    #[default]
    Configured,
    /// The owner's: quicker, and lost sight of if the owner is lost at once
    One,
    /// More than half of all
    Majority,
    /// All: waits for every replica
    All,
}

impl From<Durability> for ledger_client::Durability {
    fn from(from: Durability) -> Self {
        match from {
            Durability::Configured => Self::Configured,
            Durability::One => Self::One,
            Durability::Majority => Self::Majority,
            Durability::All => Self::All,
        }
    }
}

/// How payloads are shown.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(crate) enum PayloadFormat {
    /// Text where it is printable, else hex digits
    #[default]
    Text,
    /// Hex digits
    Hex,
    /// Base64
    Base64,
    /// Not at all
    None,
    /// As they are, each with a newline after it, and nothing else: for programs, never to a terminal
    Raw,
}

/// Whether entries are proven, and by what.
#[derive(Debug, Clone, Default, ClapArgs)]
pub(crate) struct Verified {
    /// Show only entries that are proven to be those of a checkpoint that is trusted: signed by a key of --trust, or
    /// continuing what was seen before. Without --trust the first that is seen of a context is trusted, and kept
    #[arg(long)]
    pub verify: bool,
    /// Trust this verifier key of a node, the keys in a file (a line each), or what is kept in a file, which is made if it
    /// is not there; may be repeated
    #[arg(long, value_name = "KEY|FILE", requires = "verify")]
    pub trust: Vec<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Get {
    /// The context
    pub context: String,
    /// Only entries of this key
    #[arg(long)]
    pub key: Option<String>,
    /// Only entries with a higher sequence
    #[arg(long, default_value_t = 0, value_name = "SEQUENCE")]
    pub after: u64,
    /// At most so many; 0: all
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub limit: u32,
    /// How to show payloads
    #[arg(long, value_enum, default_value_t)]
    pub payload: PayloadFormat,
    /// Payloads as they are, each with a newline after it, and nothing else; never to a terminal
    #[arg(long, conflicts_with_all = ["payload", "json"])]
    pub raw: bool,
    #[command(flatten)]
    pub verified: Verified,
    /// A context without entries is no error
    #[arg(long)]
    pub allow_empty: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Watch {
    /// The context
    pub context: String,
    /// Only entries of this key
    #[arg(long)]
    pub key: Option<String>,
    /// Only entries with a higher sequence; 0: from the beginning
    #[arg(long, default_value_t = 0, value_name = "SEQUENCE")]
    pub from: u64,
    /// End after so many entries; 0: go on until interrupted
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub count: u64,
    /// How to show payloads
    #[arg(long, value_enum, default_value_t)]
    pub payload: PayloadFormat,
    #[command(flatten)]
    pub verified: Verified,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Snapshot {
    /// The context
    pub context: String,
    /// Where to; without it, standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// A context without entries is no error: its snapshot is an empty one
    #[arg(long)]
    pub allow_empty: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Load {
    /// The context to load into
    pub context: String,
    /// The snapshot; - for standard input, which is kept in TMPDIR meanwhile. It is loaded again by itself if the owner is
    /// lost
    pub file: PathBuf,
    /// Fail if the context has entries
    #[arg(long)]
    pub fail_if_exists: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Checkpoint {
    /// The context
    pub context: String,
    /// At this size; 0: the newest
    #[arg(long, default_value_t = 0)]
    pub size: u64,
    /// Write the signed note to a file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    #[command(flatten)]
    pub verified: Verified,
    /// A context without entries is no error
    #[arg(long)]
    pub allow_empty: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Prove {
    /// That an entry is in a context
    Inclusion {
        /// The context
        context: String,
        /// The entry's sequence
        sequence: u64,
        /// In the tree of this size; 0: the newest
        #[arg(long, default_value_t = 0)]
        size: u64,
        /// Write the proof to a file
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        verified: Verified,
    },
    /// That an earlier state of a context is a prefix of a later one
    Consistency {
        /// The context
        context: String,
        /// The earlier size
        old: u64,
        /// The later size; 0: the newest
        #[arg(default_value_t = 0)]
        new: u64,
        /// Write the proof to a file
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        verified: Verified,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verify {
    /// A proof that `ledgerctl prove` wrote
    Proof {
        /// The proof
        file: PathBuf,
        /// The entry's payload must be the content of this file
        #[arg(long, value_name = "FILE")]
        payload: Option<PathBuf>,
        /// The proof must lead to the root of this signed checkpoint
        #[arg(long, value_name = "FILE", requires = "verifier_key")]
        checkpoint: Option<PathBuf>,
        /// The key that must have signed the checkpoint
        #[arg(long, value_name = "KEY")]
        verifier_key: Option<String>,
    },
    /// A snapshot, of this ledger or of its predecessor
    Snapshot {
        /// The snapshot
        file: PathBuf,
    },
    /// A signed checkpoint
    Checkpoint {
        /// The signed note
        file: PathBuf,
        /// The key that must have signed it
        #[arg(long, value_name = "KEY")]
        verifier_key: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Contexts {
    /// Only contexts whose ids begin with this
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// At most so many; 0: all
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub limit: u64,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Forks {
    /// Only those of this context
    pub context: Option<String>,
    /// Only those of this node; without it, of all nodes that answer
    #[arg(long, value_name = "NODE")]
    pub node: Option<String>,
    /// At most so many of each node; 0: all
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub limit: u64,
    /// Read the entries of this fork of the context instead
    #[arg(long, value_name = "FORK", requires = "context", conflicts_with = "limit")]
    pub export: Option<u64>,
    /// How to show payloads
    #[arg(long, value_enum, default_value_t, requires = "export")]
    pub payload: PayloadFormat,
    /// Write the fork to a file instead, with what comes before it, as a snapshot: ledgerctl load takes it into another
    /// context
    #[arg(short, long, value_name = "FILE", requires = "export", conflicts_with = "payload")]
    pub output: Option<PathBuf>,
}

/// What all measurements share.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct Shape {
    /// Over so many contexts
    #[arg(long, default_value_t = 64)]
    pub contexts: u64,
    /// So many requests under way, in all
    #[arg(long, default_value_t = 64)]
    pub inflight: u64,
    /// Bytes of each payload
    #[arg(long, default_value_t = 256, value_name = "BYTES")]
    pub payload: usize,
    /// For so long
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Measure a ledger that holds other data too: what is written, under ledgerctl-bench/, cannot be removed
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Streaming append
    Append {
        #[command(flatten)]
        load: Shape,
        /// Streams to spread it over
        #[arg(long, default_value_t = 4)]
        streams: u64,
    },
    /// One append a call
    Unary {
        #[command(flatten)]
        load: Shape,
    },
    /// Reading a context from its beginning, which is filled first
    Replay {
        #[command(flatten)]
        load: Shape,
        /// Entries of the context
        #[arg(long, default_value_t = 1_000_000)]
        entries: u64,
        /// Read by watching instead of by getting
        #[arg(long)]
        watch: bool,
    },
    /// Many watchers of one context that is appended to at a steady rate
    Watch {
        #[command(flatten)]
        load: Shape,
        /// Watchers
        #[arg(long, default_value_t = 1000)]
        watchers: u64,
        /// Appends per second
        #[arg(long, default_value_t = 100)]
        rate: u64,
    },
    /// Inclusion proofs in a context, which is filled first
    Proof {
        #[command(flatten)]
        load: Shape,
        /// Entries of the context
        #[arg(long, default_value_t = 1_000_000)]
        entries: u64,
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
