//! Input that comes once, kept in an unnamed file as it is read, so that it can be read again.

use std::{
    fs::File,
    io::{Error, Result, SeekFrom},
    os::unix::fs::FileExt as _,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncSeek, ReadBuf};

/// Bytes read from the file at once.
const PIECE: usize = 256 << 10;

/// A reader of which the bytes that were read are kept.
#[derive(Debug)]
pub(crate) struct Spool<R> {
    reader: R,
    kept: std::result::Result<File, String>,
    /// Bytes read so far, all of which are kept unless there is no file.
    read: u64,
    position: u64,
}

impl<R> Spool<R> {
    /// Keeps what is read in the directory for temporary files. One that cannot be written does not stop the reading.
    pub(crate) fn new(reader: R) -> Self {
        Self { reader, kept: tempfile::tempfile().map_err(|error| error.to_string()), read: 0, position: 0 }
    }

    /// Copies what was kept.
    fn again(&mut self, buf: &mut ReadBuf<'_>) -> Result<()> {
        let kept = self.kept.as_ref().map_err(|error| lost(error))?;
        let left = usize::try_from(self.read - self.position).unwrap_or(usize::MAX);
        let most = left.min(buf.remaining()).min(PIECE);
        let count = kept.read_at(buf.initialize_unfilled_to(most), self.position)?;
        if count == 0 {
            return Err(lost("the temporary file was cut"));
        }
        buf.advance(count);
        self.position += count as u64;
        Ok(())
    }
}

fn lost(why: &str) -> Error {
    Error::other(format!(
        "the input cannot be read again, because it was not kept ({why}): give TMPDIR a directory with as much space, or load \
         from a file"
    ))
}

impl<R: AsyncRead + Unpin> AsyncRead for Spool<R> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let this = &mut *self;
        if this.position < this.read {
            return Poll::Ready(this.again(buf));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.reader).poll_read(cx, buf))?;
        let new = &buf.filled()[before..];
        if let Ok(kept) = &this.kept
            && let Err(error) = kept.write_all_at(new, this.read)
        {
            this.kept = Err(error.to_string());
        }
        this.read += new.len() as u64;
        this.position = this.read;
        Poll::Ready(Ok(()))
    }
}

impl<R: Unpin> AsyncSeek for Spool<R> {
    fn start_seek(mut self: Pin<&mut Self>, to: SeekFrom) -> Result<()> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(_) => None,
        };
        match (position, &self.kept) {
            (Some(position), _) if position == self.position => Ok(()),
            (Some(_), Err(why)) => Err(lost(why)),
            (Some(position), Ok(_)) if position <= self.read => {
                self.position = position;
                Ok(())
            }
            _ => Err(Error::other("the input was not read so far yet")),
        }
    }

    fn poll_complete(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<u64>> {
        Poll::Ready(Ok(self.position))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

    use super::*;

    #[tokio::test]
    async fn what_was_read_is_read_again_and_then_goes_on() {
        let all: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
        let mut spool = Spool::new(all.as_slice());
        let mut half = vec![0; 1_700_000];
        for again in [0, 300_000, 0] {
            let position = usize::try_from(spool.stream_position().await.unwrap()).unwrap();
            spool.read_exact(&mut half[..1_500_000 - position]).await.unwrap();
            assert_eq!(half[..1_500_000 - position], all[position..1_500_000]);
            spool.seek(SeekFrom::Start(again as u64)).await.unwrap();
            spool.read_exact(&mut half[..1_000_000]).await.unwrap();
            assert_eq!(half[..1_000_000], all[again..again + 1_000_000]);
            spool.seek(SeekFrom::Start(again as u64)).await.unwrap();
        }
        spool.seek(SeekFrom::Start(0)).await.unwrap();
        let mut read = Vec::new();
        spool.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, all);
    }

    #[tokio::test]
    async fn input_that_could_not_be_kept_is_read_once_and_says_why_not_twice() {
        let mut spool = Spool::new(&b"some bytes"[..]);
        spool.kept = Err("no space".to_owned());
        let mut read = Vec::new();
        spool.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"some bytes");
        let error = spool.seek(SeekFrom::Start(0)).await.unwrap_err().to_string();
        assert!(error.contains("no space") && error.contains("TMPDIR"), "{error}");
    }
}
