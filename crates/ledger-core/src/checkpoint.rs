//! A checkpoint: how large a context is and what its root is, as a text that a node signs.
//!
//! The text is that of <https://c2sp.org/tlog-checkpoint>, signed as a [`note`]. For contexts of the
//! SHA-256 suite, the tools of public transparency logs read and verify it.

mod base64;
pub mod note;

#[cfg(test)]
mod tests;

use std::fmt;

use ::base64::{Engine as _, prelude::BASE64_STANDARD};

use crate::{ContextId, Hash, Size};

pub use note::{NoteError, Signer, VerifierKey, verify};

/// A statement of a context's size and root, as a text that a node signs (C2SP tlog-checkpoint). RFC 9162: signed tree head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    origin: String,
    size: Size,
    root: Hash,
}

/// Why a text is not a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The first line names no log.
    #[error("the origin is empty or has a control character: it must be one line, `<cluster>/<context>`")]
    Origin,
    /// The second line is not a size.
    #[error("the second line of the checkpoint is not a size in decimal digits without leading zeros")]
    Size,
    /// The third line is not a root.
    #[error("the third line of the checkpoint is not a root: 32 bytes in base64")]
    Root,
    /// What follows is not lines.
    #[error("the checkpoint does not end with a newline, or has an empty line or a control character in it")]
    Lines,
}

impl Checkpoint {
    /// Makes the checkpoint of a log. The origin names it: one line, not empty.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Origin`] if the origin is empty or has a control character, such as a newline.
    pub fn new(origin: impl Into<String>, size: Size, root: Hash) -> Result<Self, CheckpointError> {
        let origin = origin.into();
        if origin.is_empty() || origin.chars().any(char::is_control) {
            return Err(CheckpointError::Origin);
        }
        Ok(Self { origin, size, root })
    }

    /// Makes the checkpoint of a context of a cluster; its origin is `<cluster>/<context>`.
    ///
    /// # Errors
    ///
    /// [`CheckpointError::Origin`] if the cluster's name has a control character.
    pub fn of_context(
        cluster: &str,
        context: &ContextId,
        size: Size,
        root: Hash,
    ) -> Result<Self, CheckpointError> {
        Self::new(format!("{cluster}/{context}"), size, root)
    }

    /// Returns the name of the log.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns the number of entries.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// Returns the Merkle root at that size.
    pub const fn root(&self) -> Hash {
        self.root
    }

    /// Reads a checkpoint's text, without signatures. Extension lines after the root are allowed, and
    /// not kept.
    ///
    /// # Errors
    ///
    /// [`CheckpointError`] names the line that is not what a checkpoint has there.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.strip_suffix('\n').ok_or(CheckpointError::Lines)?.split('\n');
        let origin = lines.next().unwrap_or_default();
        let size = lines.next().and_then(parse_size).ok_or(CheckpointError::Size)?;
        let root = lines.next().and_then(parse_root).ok_or(CheckpointError::Root)?;
        if lines.any(|line| line.is_empty() || line.chars().any(char::is_control)) {
            return Err(CheckpointError::Lines);
        }
        Self::new(origin, size, root)
    }
}

/// The text: origin, size and root, a line each.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n{}\n{}", self.origin, self.size.0, BASE64_STANDARD.encode(self.root.0))
    }
}

fn parse_size(line: &str) -> Option<Size> {
    let digits = line.bytes().all(|byte| byte.is_ascii_digit());
    let leading_zero = line.len() > 1 && line.starts_with('0');
    if !digits || leading_zero {
        return None;
    }
    line.parse().ok().map(Size)
}

fn parse_root(line: &str) -> Option<Hash> {
    Hash::from_slice(&base64::decode_base64(line, 32)?)
}
