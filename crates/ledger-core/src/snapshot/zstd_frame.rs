//! One zstd frame at a time, compressed and decompressed with bounded memory.

use zstd::{
    bulk::Compressor,
    stream::raw::{DParameter, Decoder, InBuffer, Operation as _, OutBuffer},
    zstd_safe::{CParameter, compress_bound},
};

/// zstd's own default: fast, and its window is 2 MiB.
const LEVEL: i32 = 3;
/// The largest window a frame may ask for, as a power of two: 8 MiB.
const MAX_WINDOW_LOG: u32 = 23;
const MAX_WINDOW: usize = 1 << MAX_WINDOW_LOG;
/// The decompressor allocates memory in steps of at least this, bytes.
const STEP: usize = 128 * 1024;

/// Compresses; keeps its working memory from frame to frame.
#[derive(Default)]
pub(super) struct Deflater(Option<Compressor<'static>>);

impl Deflater {
    /// Compresses bytes into one zstd frame.
    pub(super) fn deflate(&mut self, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
        if self.0.is_none() {
            let mut compressor = Compressor::new(LEVEL)?;
            // With its size inside, a frame would ask for a window of all of it.
            compressor.set_parameter(CParameter::ContentSizeFlag(false))?;
            self.0 = Some(compressor);
        }
        match &mut self.0 {
            Some(compressor) => compressor.compress(bytes),
            None => Ok(Vec::new()),
        }
    }
}

/// Returns how many bytes a frame of `uncompressed` bytes can have at most.
pub(super) fn bound(uncompressed: usize) -> usize {
    compress_bound(uncompressed)
}

/// Returns how many bytes of memory, at most, a frame of `uncompressed` bytes takes: compressed, decompressed, and its window.
pub(super) const fn needs(uncompressed: usize) -> usize {
    let window = if uncompressed < MAX_WINDOW { uncompressed } else { MAX_WINDOW };
    // What cannot be compressed takes a little more, compressed: less than a hundredth.
    2 * uncompressed + uncompressed / 100 + 1024 + window
}

/// Why a frame could not be decompressed.
#[derive(Debug)]
pub(super) enum InflateError {
    /// The library could not be set up.
    Setup(std::io::Error),
    /// The frame is damaged.
    Damaged(String),
}

/// Decompresses; keeps its working memory from frame to frame.
#[derive(Default)]
pub(super) struct Inflater(Option<Decoder<'static>>);

impl Inflater {
    /// Decompresses one zstd frame, which must be all of `compressed` and hold exactly `expected` bytes.
    /// Memory is taken as bytes come out, not as they are announced.
    pub(super) fn inflate(&mut self, compressed: &[u8], expected: usize) -> Result<Vec<u8>, InflateError> {
        let damaged = |reason: &str| Err(InflateError::Damaged(reason.to_owned()));
        let mut decoder = match self.0.take() {
            Some(decoder) => decoder,
            None => setup().map_err(InflateError::Setup)?,
        };
        decoder.reinit().map_err(InflateError::Setup)?;
        let mut input = InBuffer::around(compressed);
        let mut out = Vec::new();
        loop {
            let (read, written) = (input.pos(), out.len());
            if out.capacity() == written {
                out.reserve_exact(STEP.max(written).min(expected + 1 - written));
            }
            let hint = decoder
                .run(&mut input, &mut OutBuffer::around_pos(&mut out, written))
                .map_err(|e| InflateError::Damaged(format!("zstd says: {e}")))?;
            if out.len() > expected {
                return damaged("it holds more bytes than it says");
            }
            if hint == 0 {
                break;
            }
            if (input.pos(), out.len()) == (read, written) {
                return damaged("its compressed bytes end too soon");
            }
        }
        if input.pos() != compressed.len() {
            return damaged("bytes follow its compressed bytes");
        }
        if out.len() != expected {
            return damaged("it holds fewer bytes than it says");
        }
        self.0 = Some(decoder);
        Ok(out)
    }
}

fn setup() -> std::io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG))?;
    Ok(decoder)
}
