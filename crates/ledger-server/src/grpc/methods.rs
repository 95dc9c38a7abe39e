//! What is known of a call by its method, before anything of it is decoded.

use crate::{limits, memory::Memory, settings::config::Config};

/// How requests and answers of a method go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One request, one answer.
    Unary,
    /// One request, and answers as long as the client likes.
    Stream,
    /// The client sends messages for as long as it likes.
    ClientStream,
}

/// A field that a request may repeat only so often: every occurrence takes more memory decoded than encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountedField {
    /// Its number in the message.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// How often it may be there.
    pub most: usize,
}

/// What is known of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    /// How it goes.
    pub kind: Kind,
    /// Largest request, bytes.
    pub request: usize,
    /// The field that is counted.
    pub counted: Option<CountedField>,
    /// Bytes that the answer may take before it is sent, if it is built at once.
    pub answer: usize,
    /// It goes on as long as its work, if the client sets no deadline.
    pub is_long: bool,
    /// Between two messages no more time may pass than within one.
    pub is_steady: bool,
}

impl Method {
    /// Of a path; `None` for what nodes ask of each other, which is bounded by what they hold for their own clients.
    pub fn of(path: &str, config: &Config, memory: &Memory) -> Option<Self> {
        let (service, name) = path.strip_prefix('/')?.split_once('/')?;
        let (unary, stream, client) = (Kind::Unary, Kind::Stream, Kind::ClientStream);
        let bound = |most: usize| most.min(memory.receiving.capacity());
        let (append, load) = (
            bound(limits::append_message(config.max_entry.get())),
            bound(config.max_snapshot_message.get() + limits::MESSAGE_SLACK),
        );
        let small = Self {
            kind: unary,
            request: limits::SMALL_REQUEST,
            counted: None,
            answer: 0,
            is_long: false,
            is_steady: false,
        };
        let counted = |number, name, most| Some(CountedField { number, name, most });
        let metadata = |number| counted(number, "metadata", limits::METADATA_FIELDS);
        Some(match (service, name) {
            ("converge.ledger.v1.ReplicaService", _) => return None,
            ("converge.context.v1.ContextService", "Append") => {
                Self { request: append, counted: metadata(4), ..small }
            }
            ("converge.context.v1.ContextService", "Load") => Self { request: load, is_long: true, ..small },
            (
                "converge.context.v1.ContextService"
                | "converge.ledger.v1.LedgerService"
                | "grpc.health.v1.Health",
                "Watch",
            )
            | ("converge.ledger.v1.LedgerService", "Get" | "Snapshot")
            | ("converge.ledger.v1.ClusterService", "WatchCluster" | "Drain" | "Decommission")
            | ("converge.ledger.v1.IntegrityService", "ForkEntries") => Self { kind: stream, ..small },
            ("converge.ledger.v1.LedgerService", "Append") => Self {
                kind: client,
                request: append,
                counted: counted(1, "items", limits::BATCH_ITEMS),
                ..small
            },
            ("converge.ledger.v1.LedgerService", "Load") => {
                Self { kind: client, request: append, is_long: true, is_steady: true, ..small }
            }
            ("converge.ledger.v1.ClusterService", "Join") => {
                Self { kind: stream, request: limits::OBSERVER_REQUEST, counted: metadata(3), ..small }
            }
            ("converge.ledger.v1.ClusterService", "Broadcast") => {
                Self { request: limits::OBSERVER_REQUEST, counted: metadata(4), ..small }
            }
            ("converge.ledger.v1.ClusterService", "Locate") => {
                Self { request: limits::LOCATE_REQUEST, answer: limits::LISTED, ..small }
            }
            // It asks all that is left of the cluster.
            ("converge.ledger.v1.ClusterService", "Recover") => {
                Self { request: limits::LISTED, is_long: true, answer: limits::LISTED, ..small }
            }
            ("converge.ledger.v1.IntegrityService", "Forks") => Self { answer: limits::LISTED, ..small },
            (service, _) if service.starts_with("grpc.reflection.") => {
                Self { kind: client, answer: 0, ..small }
            }
            _ => small,
        })
    }
}
