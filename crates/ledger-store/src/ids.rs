//! Draws from the clock and from randomness: the time of entries, and ids that occur once.

use std::time::{SystemTime, UNIX_EPOCH};

use ledger_core::EntryId;

/// Wall-clock time, nanoseconds since the Unix epoch.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// 128 bits that occur once: a UUID of version 7 (RFC 9562 §5.7).
pub(crate) fn new_id() -> [u8; 16] {
    uuid::Uuid::now_v7().into_bytes()
}

/// An id for an entry whose writer gave none.
pub(crate) fn new_entry_id() -> EntryId {
    EntryId::from_bits(new_id())
}
