//! Base64 as checkpoints and notes have it.

use base64::{Engine as _, prelude::BASE64_STANDARD};

/// Decodes standard base64 with padding to at most `max` bytes.
pub(super) fn decode_base64(text: &str, max: usize) -> Option<Vec<u8>> {
    if text.len() > max.div_ceil(3) * 4 {
        return None;
    }
    BASE64_STANDARD.decode(text).ok().filter(|bytes| bytes.len() <= max)
}
