//! The file of known checkpoints. A change replaces it as a whole, under a lock, so that it is never half a file.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::contents::Contents;
use crate::error::ClientError;

/// Most bytes of a file that the client reads: more than a hundred thousand contexts.
const MAX_BYTES: u64 = 64 << 20;

/// A file of known checkpoints, by its path.
#[derive(Debug, Clone)]
pub(super) struct CheckpointFile(Arc<Path>);

impl CheckpointFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path.into())
    }

    pub(super) async fn read(&self) -> Result<Contents, ClientError> {
        let file = self.clone();
        blocking(move || file.read_now()).await
    }

    /// Changes the contents under a lock against other processes, and writes them if `change` returns true.
    pub(super) async fn change(
        &self,
        change: impl FnOnce(&mut Contents) -> Result<bool, ClientError> + Send + 'static,
    ) -> Result<bool, ClientError> {
        let file = self.clone();
        blocking(move || {
            let path = &file.0;
            if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
                fs::create_dir_all(folder).map_err(|error| file.failed("made", &error))?;
            }
            let lock = private(fs::OpenOptions::new().create(true).truncate(false).write(true))
                .open(path.with_added_extension("lock"))
                .and_then(|lock| lock.lock().map(|()| lock))
                .map_err(|error| file.failed("locked", &error))?;
            let mut contents = file.read_now()?;
            let changed = change(&mut contents)?;
            if changed {
                file.write_now(&contents).map_err(|error| file.failed("written", &error))?;
            }
            drop(lock);
            Ok(changed)
        })
        .await
    }

    fn read_now(&self) -> Result<Contents, ClientError> {
        let mut bytes = Vec::new();
        match fs::File::open(&self.0) {
            Ok(file) => {
                let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
                read.map_err(|error| self.failed("read", &error))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Contents::default()),
            Err(error) => return Err(self.failed("read", &error)),
        }
        if bytes.len() as u64 > MAX_BYTES {
            return Err(self.malformed(&format!("it has more than {MAX_BYTES} bytes")));
        }
        Contents::parse(&bytes).map_err(|reason| self.malformed(&reason))
    }

    /// Writes a file beside it and renames that: a reader sees the old contents or the new ones.
    fn write_now(&self, contents: &Contents) -> io::Result<()> {
        let partial = self.0.with_added_extension("partial");
        let mut file =
            private(fs::OpenOptions::new().create(true).truncate(true).write(true)).open(&partial)?;
        contents.write_to(&mut file)?;
        file.sync_all()?;
        fs::rename(&partial, &self.0)?;
        let folder = self.0.parent().filter(|folder| !folder.as_os_str().is_empty());
        fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn failed(&self, what: &str, error: &io::Error) -> ClientError {
        ClientError::Io(io::Error::new(
            error.kind(),
            format!("{} cannot be {what}: {error}", self.0.display()),
        ))
    }

    fn malformed(&self, reason: &str) -> ClientError {
        ClientError::Invalid(format!("{} is not a file of known checkpoints: {reason}", self.0.display()))
    }
}

/// Readable for the user alone: whoever can change the known checkpoints can change what the caller trusts.
fn private(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    options.mode(0o600)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ClientError::Io(io::Error::other(error))))
}
