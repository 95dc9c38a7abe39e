//! Writing a snapshot.

use crate::{Entry, limits::MAX_SEQUENCE};

use super::{
    FRAME_TARGET, Header, MAGIC, SnapshotError, SnapshotSection, VERSION, entry,
    fields::put_len16,
    history::History,
    layout::{FRAME_TAG, TRAILER_TAG},
    zstd_frame::Deflater,
};

/// Writes a snapshot into buffers of the caller, who passes the bytes on and empties the buffer as it likes.
///
/// Holds at most one frame: [`FRAME_TARGET`] bytes, or one larger entry. A snapshot whose entries do not
/// give the header's count, Lamport time, epoch and root never gets its trailer.
///
/// ```
/// # use ledger_core::{snapshot::{Encoder, Decoder, Header, Item, Limits}, *};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let context = ContextId::new("empty")?;
/// let head = Head::new(HashSuite::Blake3, Lineage([7; 16]), 1);
/// let mut bytes = Vec::new();
/// let mut encoder = Encoder::new(Header::of(&context, &head, 2));
/// encoder.start(&mut bytes);
/// encoder.finish(&mut bytes)?;
///
/// let mut decoder = Decoder::new(Limits::default());
/// decoder.feed(&bytes);
/// assert!(matches!(decoder.next()?, Some(Item::Header(header)) if header.context_id == context));
/// assert_eq!(decoder.next()?, Some(Item::End));
/// decoder.finish()?;
/// # Ok(())
/// # }
/// ```
pub struct Encoder {
    header: Header,
    history: History,
    checksum: blake3::Hasher,
    started: bool,
    /// Entries of the frame being filled.
    frame: Vec<u8>,
    /// The entry being added, to know its length first.
    scratch: Vec<u8>,
    deflater: Deflater,
}

impl Encoder {
    /// Makes a writer of the snapshot with this header.
    pub fn new(header: Header) -> Self {
        Self {
            header,
            history: History::default(),
            checksum: blake3::Hasher::new(),
            started: false,
            frame: Vec::new(),
            scratch: Vec::new(),
            deflater: Deflater::default(),
        }
    }

    /// Appends magic, version and header to `out`. Does nothing the second time.
    pub fn start(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let from = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_be_bytes());
        let header = encode_header(&self.header);
        out.extend_from_slice(&(header.len() as u32).to_be_bytes());
        out.extend_from_slice(&header);
        self.checksum.update(&out[from..]);
    }

    /// Adds the next entry; appends a frame to `out` when one is full.
    ///
    /// # Errors
    ///
    /// The entry does not continue the history, is not intact or is over a limit of the format; then the
    /// snapshot is to be abandoned.
    pub fn push(&mut self, entry: &Entry, out: &mut Vec<u8>) -> Result<(), SnapshotError> {
        self.start(out);
        self.history.take(&self.header, entry)?;
        self.scratch.clear();
        entry::encode(entry, &mut self.scratch)?;
        if self.frame.len() + self.scratch.len() > FRAME_TARGET {
            self.flush(out)?;
        }
        if self.scratch.len() >= FRAME_TARGET {
            // A large entry is a frame of its own, and its memory is not kept.
            self.frame = std::mem::take(&mut self.scratch);
            self.flush(out)?;
            self.frame = Vec::new();
        } else {
            self.frame.extend_from_slice(&self.scratch);
        }
        Ok(())
    }

    /// Appends what is left and the trailer to `out`.
    ///
    /// # Errors
    ///
    /// The entries are not those that the header announced; nothing is appended.
    pub fn finish(mut self, out: &mut Vec<u8>) -> Result<(), SnapshotError> {
        SnapshotSection::Header.limit("a number of entries", self.header.count.0, MAX_SEQUENCE)?;
        let root = self.history.complete(&self.header)?;
        self.start(out);
        self.flush(out)?;
        let from = out.len();
        out.push(TRAILER_TAG);
        out.extend_from_slice(&root.0);
        self.checksum.update(&out[from..]);
        out.extend_from_slice(self.checksum.finalize().as_bytes());
        Ok(())
    }

    fn flush(&mut self, out: &mut Vec<u8>) -> Result<(), SnapshotError> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let compressed =
            self.deflater.deflate(&self.frame).map_err(|e| SnapshotError::Zstd(e.to_string()))?;
        let from = out.len();
        out.push(FRAME_TAG);
        out.extend_from_slice(&(compressed.len() as u32).to_be_bytes());
        out.extend_from_slice(&(self.frame.len() as u32).to_be_bytes());
        out.extend_from_slice(&compressed);
        self.checksum.update(&out[from..]);
        self.frame.clear();
        Ok(())
    }
}

fn encode_header(header: &Header) -> Vec<u8> {
    let mut out = Vec::with_capacity(128 + header.context_id.as_str().len());
    put_len16(&mut out, header.context_id.as_str().as_bytes());
    out.push(header.suite.code());
    out.extend_from_slice(&header.count.0.to_be_bytes());
    out.extend_from_slice(&header.root.0);
    out.extend_from_slice(&header.lamport.0.to_be_bytes());
    out.extend_from_slice(&header.epoch.0.to_be_bytes());
    out.extend_from_slice(&header.lineage.0);
    out.extend_from_slice(&header.created_at_ns.to_be_bytes());
    out.extend_from_slice(&header.taken_at_ns.to_be_bytes());
    out
}
