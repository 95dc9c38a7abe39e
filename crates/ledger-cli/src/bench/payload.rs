//! What is appended.

use bytes::Bytes;

/// Bytes that do not compress, the same in every entry.
pub(super) fn payload(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    rand::Rng::fill_bytes(&mut rand::rng(), &mut bytes);
    bytes.into()
}
