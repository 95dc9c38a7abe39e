//! Time as the machines take it.

/// A moment, in milliseconds since one that stays the same while the node runs; or a duration in milliseconds.
pub type Millis = u64;
