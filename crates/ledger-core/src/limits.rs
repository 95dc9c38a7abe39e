//! Every bound on what the ledger accepts, in one place.

/// Longest context id, bytes.
pub const MAX_CONTEXT_ID: usize = 1024;
/// Longest key, bytes.
pub const MAX_KEY: usize = 256;
/// Longest entry id chosen by a client, bytes.
pub const MAX_ENTRY_ID: usize = 256;
/// Most metadata pairs of an entry.
pub const MAX_METADATA_PAIRS: usize = 1024;
/// Most bytes of metadata keys and values of an entry, together.
pub const MAX_METADATA: usize = 64 * 1024;
/// Largest payload the formats can carry, bytes. Nodes accept less (default [`DEFAULT_MAX_ENTRY`]).
pub const MAX_PAYLOAD: usize = 256 * 1024 * 1024;
/// Largest message that gRPC clients accept unless they are configured otherwise, bytes.
pub const CLIENT_MESSAGE: usize = 4 * 1024 * 1024;
/// Room left in a message beside an entry, bytes: for what comes with it, and for what later versions add.
pub const MESSAGE_HEADROOM: usize = 64 * 1024;
/// Largest entry a node accepts unless configured otherwise, bytes as it is encoded in a message: every client can read
/// what any client wrote.
pub const DEFAULT_MAX_ENTRY: usize = CLIENT_MESSAGE - MESSAGE_HEADROOM;
/// The highest sequence a context can reach. Kept below 2^63 so that sizes and offsets never overflow.
pub const MAX_SEQUENCE: u64 = (1 << 62) - 1;
/// How far above a context's own Lamport time a received one may be, unless configured otherwise.
pub const DEFAULT_MAX_LAMPORT_AHEAD: u64 = 1 << 32;
/// The highest Lamport time of an entry that is loaded. Kept below 2^63, so that appends can follow.
pub const MAX_LOADED_LAMPORT: u64 = (1 << 62) - 1;

const _: () = assert!(DEFAULT_MAX_ENTRY <= MAX_PAYLOAD);
