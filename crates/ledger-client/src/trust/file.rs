//! The file of known checkpoints: JSON, replaced as a whole, so that it is never half a file.
//!
//! ```json
//! { "version": 1, "cluster": "converge",
//!   "contexts": { "demo": { "size": "5", "root": "<hex>", "hash_suite": "blake3", "signed_note": "…", "verifier_key": "…" } } }
//! ```

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use ledger_core::{ContextId, Hash, HashSuite, Size};
use serde::{Deserialize, Serialize};

use super::known::Known;
use crate::{ClientError, error::TreeHead};

/// The version that is written.
const VERSION: u32 = 1;
/// Most bytes of a file that is read: more than a hundred thousand contexts.
const MAX_BYTES: u64 = 64 << 20;

/// A file of known checkpoints, by its path.
#[derive(Debug, Clone)]
pub(super) struct File(Arc<Path>);

/// What a file holds.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    version: u32,
    /// The cluster that all of it is of. Empty: nothing is known yet.
    cluster: String,
    contexts: BTreeMap<String, Written>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    size: String,
    root: String,
    hash_suite: String,
    signed_note: String,
    verifier_key: String,
}

/// What any version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

impl File {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path.into())
    }

    pub(super) async fn read(&self) -> Result<Contents, ClientError> {
        let file = self.clone();
        blocking(move || file.read_now()).await
    }

    /// Changes the contents while no other process does; they are written if the change says so.
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
        let versioned: Versioned =
            serde_json::from_slice(&bytes).map_err(|error| self.malformed(&error.to_string()))?;
        if versioned.version != VERSION {
            let version = versioned.version;
            return Err(self.malformed(&format!("its version is {version}, and this build reads {VERSION}")));
        }
        serde_json::from_slice(&bytes).map_err(|error| self.malformed(&error.to_string()))
    }

    /// Beside its place first: whoever reads it meets the old contents or the new ones.
    fn write_now(&self, contents: &Contents) -> io::Result<()> {
        let partial = self.0.with_added_extension("partial");
        let mut file =
            private(fs::OpenOptions::new().create(true).truncate(true).write(true)).open(&partial)?;
        serde_json::to_writer_pretty(&mut file, contents)?;
        file.write_all(b"\n")?;
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

impl Contents {
    pub(super) fn get(&self, cluster: &str, context: &ContextId) -> Result<Option<Known>, ClientError> {
        self.check_cluster(cluster)?;
        let Some(written) = self.contexts.get(context.as_str()) else { return Ok(None) };
        let malformed = |what: &str| {
            ClientError::Invalid(format!("the known checkpoint of context {context} has no {what}"))
        };
        Ok(Some(Known {
            head: TreeHead {
                size: Size(written.size.parse().map_err(|_| malformed("size"))?),
                root: Hash::from_hex(&written.root).ok_or_else(|| malformed("root"))?,
            },
            suite: HashSuite::from_name(&written.hash_suite).ok_or_else(|| malformed("hash suite"))?,
            signed_note: written.signed_note.clone(),
            verifier_key: written.verifier_key.clone(),
        }))
    }

    pub(super) fn replace(
        &mut self,
        cluster: &str,
        context: &ContextId,
        known: Option<&Known>,
        newer: Known,
    ) -> Result<bool, ClientError> {
        if self.get(cluster, context)?.as_ref() != known {
            return Ok(false);
        }
        self.version = VERSION;
        cluster.clone_into(&mut self.cluster);
        let written = Written {
            size: newer.head.size.to_string(),
            root: newer.head.root.to_string(),
            hash_suite: newer.suite.name().to_owned(),
            signed_note: newer.signed_note,
            verifier_key: newer.verifier_key,
        };
        self.contexts.insert(context.as_str().to_owned(), written);
        Ok(true)
    }

    /// Contexts of another cluster are others though they have the same names: seeing one is no first use.
    fn check_cluster(&self, cluster: &str) -> Result<(), ClientError> {
        if self.cluster.is_empty() || self.cluster == cluster {
            return Ok(());
        }
        Err(ClientError::NotVerified(format!(
            "the ledger says that it is cluster {cluster:?}, and what is known is of cluster {:?}: keep what you know of \
             different clusters in different files",
            self.cluster
        )))
    }
}

/// For the user alone: who can change what is known can change what is trusted.
fn private(options: &mut fs::OpenOptions) -> &mut fs::OpenOptions {
    options.mode(0o600)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ClientError> + Send + 'static,
) -> Result<T, ClientError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(ClientError::Io(io::Error::other(error))))
}
