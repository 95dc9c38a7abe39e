//! Every bound on what the server holds for its clients, in one place. What entries may look like is in
//! [`ledger_core::limits`]; what an operator may change is in [`crate::settings::config`].

use std::time::Duration;

/// What a call takes by being open: its stream of HTTP/2, its task, its buffers, bytes.
pub const CALL: usize = 24 << 10;
/// What a call takes more for each answer of another node that passes through: what comes before it is paid for, bytes.
pub const UPSTREAM_WINDOW: usize = ledger_cluster::REQUEST_WINDOW as usize;
/// Longest time that a call may be given, whatever its client asks for.
pub const LONGEST_CALL: Duration = Duration::from_mins(10);
/// When to try again if there was no memory left.
pub const RETRY_MEMORY: Duration = Duration::from_secs(1);
/// Bytes of an answer that are handed to the connection at once.
pub const SENT_AT_ONCE: usize = 16 << 10;
/// A client that has taken nothing of an answer for so long may be ended for others who wait for memory.
pub const UNREAD: Duration = Duration::from_secs(10);
/// How long a message that arrives may wait for memory.
pub const RECEIVE_WAIT: Duration = Duration::from_secs(5);
/// How long a client may send less than [`RECEIVE_LEAST`] of a message that it has begun.
pub const RECEIVE_IDLE: Duration = Duration::from_secs(30);
/// Bytes of a begun message that are to come within [`RECEIVE_IDLE`].
pub const RECEIVE_LEAST: usize = 4 << 10;
/// Largest request of a call that carries no entry, bytes.
pub const SMALL_REQUEST: usize = 64 << 10;
/// Largest request about observers, bytes: payload, metadata and names.
pub const OBSERVER_REQUEST: usize = 256 << 10;
/// Largest request to locate contexts, bytes.
pub const LOCATE_REQUEST: usize = 2 << 20;
/// Bytes of an answer that lists something, while it is built.
pub const LISTED: usize = 4 << 20;
/// Items of a batch of appends.
pub const BATCH_ITEMS: usize = 64 << 10;
/// Pairs of metadata in a request, before it is decoded: more than an entry may have, for a name may be there twice.
pub const METADATA_FIELDS: usize = 4 << 10;
/// Smallest HTTP/2 window of a connection, bytes.
pub const SMALL_WINDOW: u32 = 512 << 10;
/// Smallest page for a client, bytes.
pub const SMALL_PAGE: usize = 64 << 10;

/// Entries of one Append stream accepted and not yet answered. Beyond, the server reads no further.
pub const APPEND_ITEMS_IN_FLIGHT: usize = 16 * 1024;
/// Entries handed to the store at once: a larger batch is taken in parts.
pub const APPEND_CHUNK_ITEMS: usize = 4096;
/// Bytes an append is counted with beside its payload and metadata, against `max_in_flight`.
pub const APPEND_OVERHEAD: usize = 256;
/// What the result of an append takes until the client takes it, bytes.
pub const RESULT: usize = 256;
/// Results gathered in one message if they are ready, and bytes of a message of results.
pub const RESULTS_PER_MESSAGE: usize = 1024;
/// See [`RESULTS_PER_MESSAGE`]; a message of results stays below what a client accepts by default.
pub const RESULTS_BYTES: usize = 2 << 20;
/// Names of contexts remembered by one Append stream.
pub const NAMES_PER_STREAM: usize = 4096;
/// Bytes of them that come with the call: a part of [`CALL`]. More are taken from what is for calls.
pub const NAMES_BYTES: usize = 8 << 10;
/// What a name takes beside its bytes.
pub const NAME: usize = 160;

/// Entries of a page of a Get stream.
pub const PAGE_ENTRIES: usize = 2048;
/// Bytes of a page of a Get stream: keys, payloads and metadata. One entry may be larger.
pub const PAGE_BYTES: usize = 1 << 20;
/// Pages, or chunks of a snapshot, read before the client takes them.
pub const PAGES_AHEAD: usize = 2;

/// Entries of a page of a watcher, of which there may be thousands.
pub const WATCH_ENTRIES: usize = 512;
/// Bytes of a page of a watcher.
pub const WATCH_BYTES: usize = 512 << 10;

/// Reads of the store at the same time, each on a thread: pages of Get and Watch, proofs, listings.
pub const READS: usize = 64;
/// Loads at the same time, at least and at most: as many as there is memory for.
pub const LOADS: (usize, usize) = (2, 8);
/// How long a load waits until it may begin: what came of it takes memory meanwhile.
pub const LOAD_WAIT: Duration = Duration::from_secs(30);
/// When to try again if it might not.
pub const RETRY_LOAD: Duration = Duration::from_secs(5);
/// A load brings so many bytes in so much time at least that its client is waited for: 16 KiB a second.
pub const LOAD_LEAST: usize = 960 << 10;
/// See [`LOAD_LEAST`].
pub const LOAD_PACE: Duration = Duration::from_mins(1);
/// Threads that may block, beside those for reads and loads.
pub const OTHER_THREADS: usize = 24;

/// Contexts in a page of a listing: unless asked for, and at most.
pub const LISTING: (usize, usize) = (1000, 10_000);
/// Forks in a page of a listing: unless asked for, and at most.
pub const FORKS: (usize, usize) = (100, 1000);
/// Bytes of a listed fork, at most: its context's name, the reason, and the rest.
pub const FORK_BYTES: usize = 2560;
/// Bytes of all members and slots of a cluster, as whoever watches it is told them at first, while that is built.
pub const CLUSTER: usize = 1 << 20;
/// Bytes of what whoever watches a cluster was told of it.
pub const CLUSTER_TOLD: usize = 32 << 10;
/// Contexts located at once.
pub const LOCATE_CONTEXTS: usize = 1000;

/// Observers of one context.
pub const OBSERVERS_PER_CONTEXT: usize = 1024;
/// Bytes of names and metadata of one context's observers: all of them fit a message that a client accepts by default.
pub const OBSERVERS_BYTES: usize = 2 << 20;
/// Streams of observers on one node. All of them may be passed on to one other node, by one connection.
pub const OBSERVERS_PER_NODE: usize = 8 * 1024;
/// Longest name of an observer, bytes.
pub const OBSERVER_NAME: usize = 256;
/// Largest payload of a broadcast, bytes.
pub const BROADCAST_PAYLOAD: usize = 64 << 10;
/// Events that wait for one observer before broadcasts are dropped. Who came and went may wait up to twice as many.
pub const OBSERVER_EVENTS: usize = 256;
/// Bytes that wait for one observer before broadcasts are dropped.
pub const OBSERVER_EVENT_BYTES: usize = 1 << 20;
/// Largest message of another node about observers.
pub const INTEREST_MESSAGE: usize = 2 * OBSERVERS_BYTES;

/// Shortest interval between bookmarks that a client may ask for, milliseconds.
pub const MIN_BOOKMARK_MS: u32 = 10;
/// Interval of bookmarks that a watcher of `ContextService` gets, milliseconds.
pub const BOOKMARK_MS: u32 = 1000;

/// Longest name of a writer, bytes.
pub const WRITER_NAME: usize = 64;
/// Contexts of one slot whose writers are remembered.
pub const WRITTEN_PER_SLOT: usize = 8;
/// Writers remembered of one context: so many that take turns are noticed.
pub const WRITERS_PER_CONTEXT: usize = 4;
/// Contexts reported in a minute because their writers take turns.
pub const WRITER_REPORTS: usize = 32;

/// Connections of gRPC clients, unless configured otherwise.
pub const CONNECTIONS: usize = 8192;
/// Connections of gRPC clients there may always be.
pub const MIN_CONNECTIONS: usize = 64;
/// Connections of the HTTP port.
pub const HTTP_CONNECTIONS: usize = 128;
/// File descriptors that are neither the store's tables nor gRPC clients': the HTTP port, connections to other
/// nodes, logs, listeners.
pub const RESERVED_DESCRIPTORS: usize = 128 + HTTP_CONNECTIONS;
/// Table files that the store keeps open: at least, and at most.
pub const MIN_OPEN_FILES: usize = 64;
/// See [`MIN_OPEN_FILES`].
pub const MAX_OPEN_FILES: usize = 1024;
/// How long a TLS handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long a client may take to send the first bytes of its protocol.
pub const FIRST_BYTES: Duration = Duration::from_secs(10);
/// How often the node pings a gRPC client of which nothing is heard.
pub const PING_EVERY: Duration = Duration::from_secs(30);
/// How long the client may take to answer that.
pub const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// A connection on which nothing is read or written for so long is closed.
pub const SILENCE: Duration = Duration::from_secs(100);
/// Requests at the same time on one connection.
pub const STREAMS_PER_CONNECTION: u32 = 16 * 1024;
/// HTTP/2 flow control, bytes: what a client may send ahead on one stream.
pub const STREAM_WINDOW: u32 = 1 << 20;
/// HTTP/2 flow control, bytes: what a client may send ahead on one connection.
pub const CONNECTION_WINDOW: u32 = 4 << 20;
/// Largest HTTP/2 frame a client may send, bytes.
pub const FRAME: u32 = 64 << 10;
/// Streams a client may reset before the server took them up: a client that drops many watchers does.
pub const PENDING_RESETS: usize = 4096;

/// Room in a message for what is beside the payload: ids, metadata, tags.
pub const MESSAGE_SLACK: usize = 1 << 20;
/// Room left in an answer below `max_response`.
pub const RESPONSE_SLACK: usize = 4 << 10;
/// Largest snapshot in one message unless it is configured, bytes.
pub const SNAPSHOT_MESSAGE: u64 = 64 << 20;
/// Smallest `max_response`, bytes.
pub const MIN_RESPONSE: u64 = 64 << 10;
/// Largest message that can be configured, bytes.
pub const MAX_MESSAGE: u64 = 1 << 30;

/// Bytes of a payload shown in the console.
pub const PREVIEW: usize = 4096;
/// Entries of a page of the console.
pub const CONSOLE_ENTRIES: usize = 200;
/// Live tails of the console at the same time.
pub const CONSOLE_TAILS: usize = 32;

/// Largest append request the server decodes: four times the largest entry, so that one over the limit is refused with
/// its size, and a batch has room.
pub const fn append_message(max_entry: usize) -> usize {
    let bytes = 4 * max_entry;
    (if bytes < 16 << 20 { 16 << 20 } else { bytes }) + MESSAGE_SLACK
}

const _: () = assert!(APPEND_CHUNK_ITEMS <= APPEND_ITEMS_IN_FLIGHT);
const _: () = assert!(APPEND_CHUNK_ITEMS <= 1 << 16, "an index fits the lower 16 bits of a tag");
const _: () = assert!(SILENCE.as_secs() > PING_EVERY.as_secs() + PING_TIMEOUT.as_secs());
const _: () = assert!(RESULTS_BYTES < 4 << 20);
const _: () = assert!(2 * OBSERVERS_PER_NODE <= STREAMS_PER_CONNECTION as usize);
const _: () = assert!(OBSERVERS_BYTES + 64 * OBSERVERS_PER_CONTEXT < INTEREST_MESSAGE);
const _: () = assert!(STREAM_WINDOW <= CONNECTION_WINDOW);
