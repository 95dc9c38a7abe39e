//! What marks the parts of a snapshot, and how large they are: see the [layout](super).

/// The first bytes of every snapshot.
pub const MAGIC: &[u8; 8] = b"CVGLSNAP";
/// The version this build writes, and the newest it reads.
pub const VERSION: u16 = 1;
/// A writer closes a frame before it grows over this, bytes before compression.
pub const FRAME_TARGET: usize = 256 * 1024;
/// A reader takes frames up to this, bytes before compression, and of a single larger entry.
pub const MAX_FRAME: usize = 16 * 1024 * 1024;

/// Marks a frame.
pub(super) const FRAME_TAG: u8 = b'F';
/// Marks the trailer.
pub(super) const TRAILER_TAG: u8 = b'T';
