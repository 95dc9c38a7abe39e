//! The names of things. Each constructor checks what it accepts, so that a value of these types is valid.

use std::{fmt, sync::Arc};

use crate::limits::{MAX_CONTEXT_ID, MAX_ENTRY_ID, MAX_KEY};

/// Why a name is not valid. The message names the field and the limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The field is empty.
    #[error("{field} is empty: it must have 1 to {max} bytes")]
    Empty {
        /// The field as the contract names it.
        field: &'static str,
        /// Its limit in bytes.
        max: usize,
    },
    /// The field is too long.
    #[error("{field} has {len} bytes: at most {max} are allowed")]
    TooLong {
        /// The field as the contract names it.
        field: &'static str,
        /// Its length in bytes.
        len: usize,
        /// Its limit in bytes.
        max: usize,
    },
    /// The field holds a control character.
    #[error(
        "{field} has a control character (U+{code:04X}) at byte {at}: control characters are not allowed"
    )]
    ControlCharacter {
        /// The field as the contract names it.
        field: &'static str,
        /// The character's code point.
        code: u32,
        /// Its offset in bytes.
        at: usize,
    },
}

fn check(field: &'static str, text: &str, max: usize) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty { field, max });
    }
    if text.len() > max {
        return Err(IdError::TooLong { field, len: text.len(), max });
    }
    match text.char_indices().find(|(_, c)| c.is_control()) {
        Some((at, c)) => Err(IdError::ControlCharacter { field, code: c as u32, at }),
        None => Ok(()),
    }
}

/// The name of a context: 1 to 1024 bytes of UTF-8 without control characters. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContextId(Arc<str>);

impl ContextId {
    /// Checks and takes a name.
    ///
    /// # Errors
    ///
    /// [`IdError`] if the name is empty, has more than 1024 bytes, or has a control character.
    pub fn new(text: impl AsRef<str>) -> Result<Self, IdError> {
        let text = text.as_ref();
        check("context_id", text, MAX_CONTEXT_ID)?;
        Ok(Self(text.into()))
    }

    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The kind of an entry, by which watchers filter: 1 to 256 bytes of UTF-8 without control characters. Unlike Kafka's key it
/// neither places nor replaces an entry.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(String);

impl Key {
    /// Checks and takes a key.
    ///
    /// # Errors
    ///
    /// [`IdError`] if the key is empty, has more than 256 bytes, or has a control character.
    pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
        let text = text.into();
        check("key", &text, MAX_KEY)?;
        Ok(Self(text))
    }

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the key as an owned string.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// The identity of an entry: 128 bits shown as 32 lower-case hex digits, or any text a client chose.
///
/// A chosen text of 32 lower-case hex digits *is* the 128-bit form, so equal texts are equal ids.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EntryId(Repr);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Bits([u8; 16]),
    Text(Box<str>),
}

impl EntryId {
    /// An id of 128 bits.
    pub const fn from_bits(bits: [u8; 16]) -> Self {
        Self(Repr::Bits(bits))
    }

    /// Checks and takes an id that a client chose: 1 to 256 bytes without control characters.
    ///
    /// # Errors
    ///
    /// [`IdError`] if the id is empty, has more than 256 bytes, or has a control character.
    pub fn new(text: &str) -> Result<Self, IdError> {
        check("entry_id", text, MAX_ENTRY_ID)?;
        let mut bits = [0; 16];
        let canonical = text.len() == 32
            && !text.bytes().any(|b| b.is_ascii_uppercase())
            && hex::decode_to_slice(text, &mut bits).is_ok();
        Ok(Self(if canonical { Repr::Bits(bits) } else { Repr::Text(text.into()) }))
    }

    /// Returns the 128 bits, if the id has that form.
    pub fn bits(&self) -> Option<[u8; 16]> {
        match &self.0 {
            Repr::Bits(bits) => Some(*bits),
            Repr::Text(_) => None,
        }
    }

    /// Calls `f` with the id as text, without allocating.
    pub fn with_text<T>(&self, f: impl FnOnce(&str) -> T) -> T {
        match &self.0 {
            Repr::Bits(bits) => {
                let mut buffer = [0; 32];
                for (pair, byte) in buffer.chunks_exact_mut(2).zip(bits) {
                    pair[0] = DIGITS[usize::from(byte >> 4)];
                    pair[1] = DIGITS[usize::from(byte & 15)];
                }
                f(std::str::from_utf8(&buffer).unwrap_or_default())
            }
            Repr::Text(text) => f(text),
        }
    }
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Position of an entry in its context: 1, 2, 3, … without gaps. 0 stands for "before the first".
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Sequence(pub u64);

/// Number of entries in a context, which is also the sequence of its newest entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// Returns the sequence of the newest entry.
    pub const fn newest(self) -> Sequence {
        Sequence(self.0)
    }
}

impl Sequence {
    /// Returns the leaf index of this entry in its context's tree; `None` for sequence 0.
    pub const fn leaf_index(self) -> Option<u64> {
        self.0.checked_sub(1)
    }
}

/// An ownership epoch of a slot: totally ordered, and different for every claim.
///
/// The upper part counts, the lower 20 bits tell claimants of the same count apart: a hash of the node's name and its
/// storage. The whole stays below 2^52, so that it survives languages whose numbers are doubles.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

impl Epoch {
    /// Bits of the claimant's tag.
    const TAG_BITS: u32 = 20;

    /// Makes the epoch of a count and a claimant's tag, of which the lower 20 bits enter.
    pub const fn new(counter: u32, tag: u32) -> Self {
        Self(((counter as u64) << Self::TAG_BITS) | (tag as u64 & ((1 << Self::TAG_BITS) - 1)))
    }

    /// Returns the count.
    pub const fn counter(self) -> u32 {
        self.count() as u32
    }

    /// Returns the count, of an epoch that need not be one: as far as the number goes.
    pub const fn count(self) -> u64 {
        self.0 >> Self::TAG_BITS
    }
}

/// Random identity of a context, made when a node creates the context. If another context comes to have its name, clients that
/// resume notice by it. Kafka: topic id (KIP-516).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lineage(pub [u8; 16]);

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.with_text(|text| f.write_str(text))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

macro_rules! debug_as_display {
    ($($name:ident),*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }
    )*};
}
debug_as_display!(ContextId, Key, EntryId, Lineage);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_what_is_wrong_with_it() {
        assert!(ContextId::new("growth-strategy-001").is_ok());
        let long = "x".repeat(1025);
        for (text, part) in [("", "empty"), ("a\nb", "U+000A"), ("\u{85}", "U+0085"), (&long, "1025")] {
            let message = ContextId::new(text).unwrap_err().to_string();
            assert!(message.contains("context_id") && message.contains(part), "{message}");
        }
        assert!(Key::new("x".repeat(256)).is_ok());
        assert!(Key::new("x".repeat(257)).unwrap_err().to_string().starts_with("key has 257"));
    }

    #[test]
    fn an_entry_id_of_32_hex_digits_is_its_bits() {
        let text = "f164eb721c26e7afb239f66b118ebaaa";
        let id = EntryId::new(text).unwrap();
        assert_eq!(id.bits().map(EntryId::from_bits), Some(id.clone()));
        assert_eq!(id.to_string(), text);
        assert_eq!(EntryId::new(&text.to_uppercase()).unwrap().bits(), None);
        assert_eq!(EntryId::new("retry-7").unwrap().to_string(), "retry-7");
    }

    #[test]
    fn epochs_order_by_count_then_claimant() {
        assert!(Epoch::new(2, 0) > Epoch::new(1, u32::MAX));
        assert!(Epoch::new(1, 2) > Epoch::new(1, 1));
        assert_eq!(Epoch::new(7, 9).counter(), 7);
        assert!(Epoch::new(u32::MAX, u32::MAX).0 < 1 << 52);
    }
}
