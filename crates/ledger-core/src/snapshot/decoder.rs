//! Reading and verifying a snapshot.

use bytes::Bytes;

use crate::{
    ContextId, Entry, Epoch, Hash, HashSuite, Lineage, Size,
    clock::LamportClock,
    limits::{MAX_CONTEXT_ID, MAX_SEQUENCE},
};

use super::{
    Header, Limits, MAGIC, SnapshotError, SnapshotSection, VERSION, entry,
    fields::Reader,
    history::History,
    layout::{FRAME_TAG, TRAILER_TAG},
    zstd_frame::{InflateError, Inflater, bound, needs},
};

/// An item that the decoder reads from a snapshot. They come in this order: one header, the entries, one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// What the snapshot says of its context. Only the end verifies it.
    Header(Header),
    /// The next entry: it continues the history and is intact.
    Entry(Entry),
    /// Everything has been read, and count, root and checksum are right.
    End,
}

/// Bytes before the header: magic and version.
const PREFIX: usize = MAGIC.len() + 2;
/// Bytes of a header without its context id.
const HEADER_FIXED: usize = 2 + 1 + 8 + 32 + 8 + 8 + 16 + 8 + 8;
/// Bytes of root and checksum.
const TRAILER: usize = 32 + 32;

/// What the decoder reads next.
enum State {
    Prefix,
    HeaderLength,
    Header {
        len: usize,
    },
    /// The tag of a frame or the trailer.
    Section(Header),
    FrameLengths(Header),
    Frame {
        header: Header,
        compressed: usize,
        uncompressed: usize,
    },
    /// Entries of the frame that has been decompressed.
    Entries {
        header: Header,
        frame: Bytes,
    },
    Trailer(Header),
    End,
    Failed(SnapshotError),
}

/// Reads a snapshot that comes in pieces, and verifies it on the way.
///
/// [`feed`](Self::feed) it bytes, then call [`next`](Self::next) until it gives `None`, and so on; after the
/// last bytes, [`finish`](Self::finish). Besides what was fed and not yet read it holds at most one frame,
/// compressed and decompressed. After an error it gives that error for ever.
pub struct Decoder {
    limits: Limits,
    state: State,
    buffer: Buffer,
    checksum: blake3::Hasher,
    history: History,
    frames: u64,
    inflater: Inflater,
    /// Bytes that a frame may take.
    room: usize,
}

impl Decoder {
    /// Makes a reader that accepts what is within these limits.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: State::Prefix,
            buffer: Buffer::default(),
            checksum: blake3::Hasher::new(),
            history: History::default(),
            frames: 0,
            inflater: Inflater::default(),
            room: usize::MAX,
        }
    }

    /// From now on a frame that takes more bytes of memory than this is not read: [`next`](Self::next) gives `None`, and
    /// [`needs`](Self::needs) says how many it takes.
    pub const fn set_room(&mut self, bytes: usize) {
        self.room = bytes;
    }

    /// Returns how many bytes of memory the next frame takes: compressed, decompressed, and to decompress it. 0 if
    /// that is not known yet, or it was read.
    pub fn needs(&self) -> usize {
        match &self.state {
            State::Frame { uncompressed, .. } => needs(*uncompressed),
            _ => 0,
        }
    }

    /// Takes the next bytes of the snapshot.
    pub fn feed(&mut self, bytes: &[u8]) {
        match self.state {
            State::Failed(_) => {}
            // The decoder need only see that there are more bytes, which is an error.
            State::End => self.buffer.push(&bytes[..bytes.len().min(1)]),
            _ => self.buffer.push(bytes),
        }
    }

    /// Returns the next item; `None` if it takes more bytes, or after the end.
    ///
    /// # Errors
    ///
    /// The bytes are not a snapshot that is right and within the limits: see [`SnapshotError`].
    #[expect(clippy::should_implement_trait, reason = "`None` is not the end: more may be fed")]
    pub fn next(&mut self) -> Result<Option<Item>, SnapshotError> {
        self.step().inspect_err(|error| {
            self.state = State::Failed(error.clone());
            self.buffer = Buffer::default();
        })
    }

    /// Says that no more bytes come.
    ///
    /// # Errors
    ///
    /// The end has not been reached, or bytes follow it.
    pub fn finish(&self) -> Result<(), SnapshotError> {
        match &self.state {
            State::Failed(error) => Err(error.clone()),
            State::End if self.buffer.is_empty() => Ok(()),
            State::End => Err(SnapshotError::TrailingBytes { bytes: self.buffer.taken }),
            _ => Err(SnapshotError::Truncated {
                bytes: self.buffer.taken.saturating_add(self.buffer.len() as u64),
                entries: self.history.size(),
            }),
        }
    }

    fn step(&mut self) -> Result<Option<Item>, SnapshotError> {
        loop {
            // Each arm gives the next state; when bytes are missing it puts its own back.
            match std::mem::replace(&mut self.state, State::End) {
                State::Prefix => {
                    self.state = State::Prefix;
                    if !self.prefix()? {
                        return Ok(None);
                    }
                    self.state = State::HeaderLength;
                }
                State::HeaderLength => {
                    let Some(len) = self.array().map(u32::from_be_bytes) else {
                        self.state = State::HeaderLength;
                        return Ok(None);
                    };
                    let max = HEADER_FIXED + MAX_CONTEXT_ID;
                    SnapshotSection::Header.limit("a length in bytes", len.into(), max as u64)?;
                    self.state = State::Header { len: len as usize };
                }
                State::Header { len } => {
                    let Some(bytes) = self.buffer.take(len, &mut self.checksum) else {
                        self.state = State::Header { len };
                        return Ok(None);
                    };
                    let header = decode_header(bytes)?;
                    SnapshotSection::Header.limit(
                        "a number of entries",
                        header.count.0,
                        self.limits.max_entries.min(MAX_SEQUENCE),
                    )?;
                    self.state = State::Section(header.clone());
                    return Ok(Some(Item::Header(header)));
                }
                State::Section(header) => {
                    let Some([tag]) = self.array() else {
                        self.state = State::Section(header);
                        return Ok(None);
                    };
                    self.state = match tag {
                        FRAME_TAG => {
                            self.frames = self.frames.saturating_add(1);
                            State::FrameLengths(header)
                        }
                        TRAILER_TAG => State::Trailer(header),
                        _ => {
                            return Err(SnapshotSection::Frame(self.frames + 1)
                                .corrupt(format!("it starts with the unknown tag {tag:#04x}")));
                        }
                    };
                }
                State::FrameLengths(header) => {
                    let Some(lengths) = self.array::<8>() else {
                        self.state = State::FrameLengths(header);
                        return Ok(None);
                    };
                    let (compressed, uncompressed) = self.frame_lengths(lengths)?;
                    self.state = State::Frame { header, compressed, uncompressed };
                }
                State::Frame { header, compressed, uncompressed } => {
                    self.state = State::Frame { header: header.clone(), compressed, uncompressed };
                    if self.needs() > self.room {
                        return Ok(None);
                    }
                    let Some(bytes) = self.buffer.take(compressed, &mut self.checksum) else {
                        return Ok(None);
                    };
                    let frame = self.inflater.inflate(bytes, uncompressed).map_err(|error| match error {
                        InflateError::Setup(error) => SnapshotError::Zstd(error.to_string()),
                        InflateError::Damaged(reason) => SnapshotSection::Frame(self.frames).corrupt(reason),
                    })?;
                    self.state = State::Entries { header, frame: frame.into() };
                }
                State::Entries { header, frame } if frame.is_empty() => {
                    self.state = State::Section(header);
                }
                State::Entries { header, mut frame } => {
                    let sequence = self.history.next();
                    let entry = entry::decode(&mut frame, &header.context_id, sequence, self.limits)?;
                    self.history.take(&header, &entry)?;
                    self.state = State::Entries { header, frame };
                    return Ok(Some(Item::Entry(entry)));
                }
                State::Trailer(header) => {
                    if self.buffer.len() < TRAILER {
                        self.state = State::Trailer(header);
                        return Ok(None);
                    }
                    self.trailer(&header)?;
                    self.state = State::End;
                    return Ok(Some(Item::End));
                }
                State::End if self.buffer.is_empty() => return Ok(None),
                State::End => return Err(SnapshotError::TrailingBytes { bytes: self.buffer.taken }),
                State::Failed(error) => return Err(error),
            }
        }
    }

    /// Checks magic and version, the magic as early as it can be told; `false` if bytes are missing.
    fn prefix(&mut self) -> Result<bool, SnapshotError> {
        let known = self.buffer.len().min(MAGIC.len());
        if self.buffer.unread()[..known] != MAGIC[..known] {
            return Err(SnapshotError::NotASnapshot);
        }
        let Some([.., high, low]) = self.array::<PREFIX>() else { return Ok(false) };
        match u16::from_be_bytes([high, low]) {
            0 => Err(SnapshotSection::Header.corrupt("it has format version 0, which never existed")),
            version if version > VERSION => Err(SnapshotError::NewerVersion { version }),
            _ => Ok(true),
        }
    }

    fn frame_lengths(&self, lengths: [u8; 8]) -> Result<(usize, usize), SnapshotError> {
        let place = SnapshotSection::Frame(self.frames);
        let mut reader = Reader::new(&lengths);
        let compressed = reader.u32().unwrap_or_default();
        let uncompressed = reader.u32().unwrap_or_default();
        if compressed == 0 || uncompressed == 0 {
            return Err(place.corrupt("it is empty"));
        }
        place.limit(
            "an uncompressed length in bytes",
            uncompressed.into(),
            self.limits.max_frame() as u64,
        )?;
        if compressed as usize > bound(uncompressed as usize) {
            return Err(place.corrupt(format!(
                "{uncompressed} bytes cannot have been compressed to as many as {compressed}"
            )));
        }
        Ok((compressed as usize, uncompressed as usize))
    }

    fn trailer(&mut self, header: &Header) -> Result<(), SnapshotError> {
        let computed = self.history.complete(header)?;
        let claimed = Hash(self.array().unwrap_or_default());
        if claimed != computed {
            return Err(SnapshotError::RootMismatch {
                claimed_by: SnapshotSection::Trailer,
                claimed,
                computed,
            });
        }
        let computed = Hash(*self.checksum.finalize().as_bytes());
        let claimed = Hash(self.array().unwrap_or_default());
        if claimed != computed {
            return Err(SnapshotError::Checksum { claimed, computed });
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.buffer.take(N, &mut self.checksum).and_then(|bytes| bytes.try_into().ok())
    }
}

fn decode_header(bytes: &[u8]) -> Result<Header, SnapshotError> {
    let short = || SnapshotSection::Header.corrupt("it is shorter than its fields");
    let mut reader = Reader::new(bytes);
    let context_id = std::str::from_utf8(reader.len16().ok_or_else(short)?)
        .map_err(|_| SnapshotSection::Header.corrupt("its context_id is not UTF-8"))?;
    let context_id =
        ContextId::new(context_id).map_err(|e| SnapshotSection::Header.corrupt(e.to_string()))?;
    let suite = reader.u8().ok_or_else(short)?;
    let suite = HashSuite::from_code(suite)
        .ok_or_else(|| SnapshotSection::Header.corrupt(format!("it names the unknown hash suite {suite}")))?;
    let header = Header {
        context_id,
        suite,
        count: Size(reader.u64().ok_or_else(short)?),
        root: reader.hash().ok_or_else(short)?,
        lamport: LamportClock(reader.u64().ok_or_else(short)?),
        epoch: Epoch(reader.u64().ok_or_else(short)?),
        lineage: Lineage(reader.array().ok_or_else(short)?),
        created_at_ns: reader.u64().ok_or_else(short)?,
        taken_at_ns: reader.u64().ok_or_else(short)?,
    };
    if reader.remaining() > 0 {
        return Err(SnapshotSection::Header.corrupt("it is longer than its fields"));
    }
    Ok(header)
}

/// Bytes that were fed and not yet read.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
    /// Where the unread bytes start.
    at: usize,
    /// How many bytes of the snapshot have been read.
    taken: u64,
}

impl Buffer {
    fn unread(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    fn len(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn push(&mut self, bytes: &[u8]) {
        // Moving the unread bytes only when they are fewer than the read ones keeps this linear.
        if self.at > self.len() {
            self.bytes.drain(..self.at);
            self.at = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Reads so many bytes, if they are there, and counts them into the checksum.
    fn take(&mut self, len: usize, checksum: &mut blake3::Hasher) -> Option<&[u8]> {
        let bytes = self.bytes[self.at..].get(..len)?;
        checksum.update(bytes);
        self.at += len;
        self.taken = self.taken.saturating_add(len as u64);
        Some(bytes)
    }
}
