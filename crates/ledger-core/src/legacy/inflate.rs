//! The outer form of an external term: plain, or compressed with zlib.

use bytes::Bytes;
use flate2::{Decompress, FlushDecompress, Status};

use super::{LegacyError, format::FORMAT_TAG};

/// Marks a compressed term.
const COMPRESSED: u8 = 80;
/// The decompressor allocates memory in steps of at least this, bytes.
const STEP: usize = 64 * 1024;

/// Returns the term without the format's tag, decompressed if need be to at most `max` bytes.
pub(super) fn open(blob: &Bytes, max: usize) -> Result<Bytes, LegacyError> {
    let check = |size: usize| {
        if size > max {
            let (value, max) = (size as u64, max as u64);
            return Err(LegacyError::Limit { what: "an uncompressed size in bytes", value, max });
        }
        Ok(())
    };
    match &blob[..] {
        [FORMAT_TAG, COMPRESSED, _, _, _, _, compressed @ ..] => {
            let size = declared(blob).unwrap_or_default();
            check(size)?;
            inflate(compressed, size).map(Bytes::from)
        }
        [FORMAT_TAG, COMPRESSED, ..] => Err(LegacyError::Truncated { at: 1 }),
        [FORMAT_TAG, term @ ..] => {
            check(term.len())?;
            Ok(blob.slice(1..))
        }
        _ => Err(LegacyError::NotLegacy),
    }
}

/// Returns the size after decompression that a compressed term declares.
pub(super) fn declared(blob: &[u8]) -> Option<usize> {
    match blob {
        [FORMAT_TAG, COMPRESSED, a, b, c, d, ..] => Some(u32::from_be_bytes([*a, *b, *c, *d]) as usize),
        _ => None,
    }
}

/// Decompresses to exactly `size` bytes. Allocates memory as bytes come out, not because the blob announces them.
fn inflate(compressed: &[u8], size: usize) -> Result<Vec<u8>, LegacyError> {
    let failed = |reason: &str| Err(LegacyError::Compression { reason: reason.to_owned() });
    let mut zlib = Decompress::new(true);
    let mut out = Vec::new();
    loop {
        // One byte more than declared, to notice when there is more.
        if out.len() == out.capacity() {
            out.reserve_exact(STEP.max(out.len()).min(size + 1 - out.len()));
        }
        let read = zlib.total_in() as usize;
        let written = out.len();
        let status = zlib
            .decompress_vec(&compressed[read..], &mut out, FlushDecompress::None)
            .map_err(|e| LegacyError::Compression { reason: format!("zlib says: {e}") })?;
        if out.len() > size {
            return failed("it holds more bytes than it declares");
        }
        if status == Status::StreamEnd {
            break;
        }
        if zlib.total_in() as usize == read && out.len() == written {
            return failed("its compressed bytes end too soon");
        }
    }
    if out.len() < size {
        return failed("it holds fewer bytes than it declares");
    }
    match compressed.len() - zlib.total_in() as usize {
        0 => Ok(out),
        count => Err(LegacyError::TrailingBytes { count }),
    }
}
