//! Reading Erlang's external term format, term by term, without building terms.
//!
//! The reader takes what its caller expects next and skips what the caller does not know. It holds nothing
//! but its place, so memory and depth are bounded by construction. See ADR 4 for why this is not a crate.

use super::LegacyError;

/// The format's tags (<https://www.erlang.org/doc/apps/erts/erl_ext_dist>).
pub(super) mod tag {
    pub(in super::super) const NEW_FLOAT: u8 = 70;
    pub(in super::super) const BIT_BINARY: u8 = 77;
    pub(in super::super) const SMALL_INTEGER: u8 = 97;
    pub(in super::super) const INTEGER: u8 = 98;
    pub(in super::super) const FLOAT: u8 = 99;
    pub(in super::super) const ATOM: u8 = 100;
    pub(in super::super) const SMALL_TUPLE: u8 = 104;
    pub(in super::super) const LARGE_TUPLE: u8 = 105;
    pub(in super::super) const NIL: u8 = 106;
    pub(in super::super) const STRING: u8 = 107;
    pub(in super::super) const LIST: u8 = 108;
    pub(in super::super) const BINARY: u8 = 109;
    pub(in super::super) const SMALL_BIG: u8 = 110;
    pub(in super::super) const LARGE_BIG: u8 = 111;
    pub(in super::super) const SMALL_ATOM: u8 = 115;
    pub(in super::super) const MAP: u8 = 116;
    pub(in super::super) const ATOM_UTF8: u8 = 118;
    pub(in super::super) const SMALL_ATOM_UTF8: u8 = 119;
}

/// Terms that are skipped may nest this deep.
pub(super) const MAX_DEPTH: usize = 64;

/// Reads a term from a place in it.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte after the format's tag.
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Returns how many bytes are left.
    pub(super) const fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Reads the head of a map: how many pairs follow.
    pub(super) fn map(&mut self) -> Result<u64, LegacyError> {
        self.one_of("a map", |reader, tag| match tag {
            tag::MAP => {
                let pairs = reader.u32()?;
                reader.enough_for(u64::from(pairs) * 2)?;
                Ok(Some(pairs.into()))
            }
            _ => Ok(None),
        })
    }

    /// Reads the head of a list: how many elements follow, and then, unless there are none, [`nil`](Self::nil).
    pub(super) fn list(&mut self) -> Result<u64, LegacyError> {
        self.one_of("a list", |reader, tag| match tag {
            tag::NIL => Ok(Some(0)),
            tag::LIST => {
                let elements = reader.u32()?;
                reader.enough_for(u64::from(elements) + 1)?;
                if elements == 0 {
                    reader.nil()?;
                }
                Ok(Some(elements.into()))
            }
            _ => Ok(None),
        })
    }

    /// Reads the empty list, which ends a list.
    pub(super) fn nil(&mut self) -> Result<(), LegacyError> {
        self.one_of("the end of a list", |_, tag| Ok((tag == tag::NIL).then_some(())))
    }

    /// Reads an atom: its name.
    pub(super) fn atom(&mut self) -> Result<&'a [u8], LegacyError> {
        self.one_of("an atom", Self::atom_of)
    }

    /// Reads a binary.
    pub(super) fn binary(&mut self) -> Result<&'a [u8], LegacyError> {
        self.one_of("a binary", |reader, tag| match tag {
            tag::BINARY => {
                let len = reader.u32()?;
                reader.take(len as usize).map(Some)
            }
            _ => Ok(None),
        })
    }

    /// Reads text: a binary in UTF-8, or a list of Latin-1 characters, which the format stores as a string.
    pub(super) fn text(&mut self) -> Result<String, LegacyError> {
        self.one_of("text", |reader, tag| match tag {
            tag::BINARY => {
                let len = reader.u32()?;
                let bytes = reader.take(len as usize)?;
                Ok(std::str::from_utf8(bytes).ok().map(str::to_owned))
            }
            tag::STRING => {
                let len = reader.u16()?;
                let bytes = reader.take(len.into())?;
                Ok(Some(bytes.iter().copied().map(char::from).collect()))
            }
            tag::NIL => Ok(Some(String::new())),
            _ => Ok(None),
        })
    }

    /// Reads an integer of any form that is within 0 to 2^64 − 1.
    pub(super) fn unsigned(&mut self) -> Result<u64, LegacyError> {
        self.one_of("an integer from 0 to 2^64 - 1", |reader, tag| match tag {
            tag::SMALL_INTEGER => reader.u8().map(|value| Some(value.into())),
            tag::INTEGER => {
                let value = reader.u32()?.cast_signed();
                Ok(u64::try_from(value).ok())
            }
            tag::SMALL_BIG => {
                let len = reader.u8()?;
                reader.big(len.into())
            }
            tag::LARGE_BIG => {
                let len = reader.u32()?;
                reader.big(len as usize)
            }
            _ => Ok(None),
        })
    }

    /// Skips one term with all that is in it.
    pub(super) fn skip(&mut self) -> Result<(), LegacyError> {
        // How many terms are left at each depth.
        let mut left = [0u64; MAX_DEPTH];
        let mut depth = 0;
        left[0] = 1;
        loop {
            while left[depth] == 0 {
                if depth == 0 {
                    return Ok(());
                }
                depth -= 1;
            }
            left[depth] -= 1;
            let inside = self.one_of("a term of plain data", Self::skip_of)?;
            if inside > 0 {
                self.enough_for(inside)?;
                depth += 1;
                if depth == MAX_DEPTH {
                    let (value, max) = (depth as u64 + 1, MAX_DEPTH as u64);
                    return Err(LegacyError::Limit { what: "terms nested to a depth", value, max });
                }
                left[depth] = inside;
            }
        }
    }

    /// Skips a term's own bytes; gives the number of terms in it.
    fn skip_of(&mut self, tag: u8) -> Result<Option<u64>, LegacyError> {
        let (len, inside) = match tag {
            tag::SMALL_INTEGER => (1, 0),
            tag::INTEGER => (4, 0),
            tag::NEW_FLOAT => (8, 0),
            tag::FLOAT => (31, 0),
            tag::NIL => (0, 0),
            tag::STRING => (self.u16()?.into(), 0),
            tag::BINARY => (self.u32()? as usize, 0),
            tag::BIT_BINARY | tag::LARGE_BIG => (self.u32()? as usize + 1, 0),
            tag::SMALL_BIG => (usize::from(self.u8()?) + 1, 0),
            tag::SMALL_TUPLE => (0, self.u8()?.into()),
            tag::LARGE_TUPLE => (0, self.u32()?.into()),
            tag::LIST => (0, u64::from(self.u32()?) + 1),
            tag::MAP => (0, u64::from(self.u32()?) * 2),
            _ => return Ok(self.atom_of(tag)?.map(|_| 0)),
        };
        self.take(len)?;
        Ok(Some(inside))
    }

    fn atom_of(&mut self, tag: u8) -> Result<Option<&'a [u8]>, LegacyError> {
        let len = match tag {
            tag::ATOM | tag::ATOM_UTF8 => self.u16()?.into(),
            tag::SMALL_ATOM | tag::SMALL_ATOM_UTF8 => self.u8()?.into(),
            _ => return Ok(None),
        };
        self.take(len).map(Some)
    }

    /// Reads the sign and the little-endian digits of a large integer; `None` if it does not fit.
    fn big(&mut self, len: usize) -> Result<Option<u64>, LegacyError> {
        let negative = self.u8()? != 0;
        let digits = self.take(len)?;
        let significant = digits.iter().rposition(|digit| *digit != 0).map_or(0, |last| last + 1);
        if significant > 8 || (negative && significant > 0) {
            return Ok(None);
        }
        let mut value = [0; 8];
        value[..significant].copy_from_slice(&digits[..significant]);
        Ok(Some(u64::from_le_bytes(value)))
    }

    /// Reads a term with `read`, which gives `None` for one that does not belong here. The error then names
    /// what is there.
    fn one_of<T>(
        &mut self,
        expected: &'static str,
        read: impl FnOnce(&mut Self, u8) -> Result<Option<T>, LegacyError>,
    ) -> Result<T, LegacyError> {
        let at = self.at;
        let cut_off = |error| match error {
            LegacyError::Truncated { .. } => LegacyError::Truncated { at },
            other => other,
        };
        let tag = self.u8().map_err(cut_off)?;
        read(self, tag).map_err(cut_off)?.ok_or_else(|| LegacyError::Unexpected {
            at,
            found: name(tag),
            expected,
        })
    }

    /// Every term has a byte: so many terms that there are fewer bytes cannot follow.
    fn enough_for(&self, terms: u64) -> Result<(), LegacyError> {
        if terms > self.remaining() as u64 {
            return Err(LegacyError::Truncated { at: self.at });
        }
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], LegacyError> {
        let bytes = self.bytes[self.at..].get(..len).ok_or(LegacyError::Truncated { at: self.at })?;
        self.at += len;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], LegacyError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u8(&mut self) -> Result<u8, LegacyError> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, LegacyError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, LegacyError> {
        self.array().map(u32::from_be_bytes)
    }
}

fn name(tag: u8) -> String {
    let name = match tag {
        tag::SMALL_INTEGER | tag::INTEGER | tag::SMALL_BIG | tag::LARGE_BIG => "an integer out of range",
        tag::NEW_FLOAT | tag::FLOAT => "a float",
        tag::ATOM | tag::ATOM_UTF8 | tag::SMALL_ATOM | tag::SMALL_ATOM_UTF8 => "an atom",
        tag::SMALL_TUPLE | tag::LARGE_TUPLE => "a tuple",
        tag::NIL => "an empty list",
        tag::STRING => "a list of bytes",
        tag::LIST => "a list",
        tag::BINARY => "a binary",
        tag::BIT_BINARY => "a bit string",
        tag::MAP => "a map",
        _ => return format!("a term with tag {tag}"),
    };
    name.to_owned()
}
