//! Who else on the machine can read what the node keeps: nobody, or it is said.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use rustix::{fs::Mode, process::umask};

use crate::settings::config::Config;

/// What the owner's group and everybody else may do, in a file's mode.
const OTHERS: u32 = 0o077;

/// From now on, what the process makes is for its owner alone: entries, and the key that signs checkpoints, are in the
/// database's files and its logs.
pub fn keep_private() {
    umask(Mode::RWXG | Mode::RWXO);
}

/// Warns of a data directory or of keys that others may read or change.
pub fn warn_of_open(config: &Config) {
    let kept = [
        ("data_dir", Some(&config.data_dir)),
        ("cluster_key_file", config.cluster_key_file.as_ref()),
        ("tls_key", config.tls_key.as_ref()),
    ];
    for (key, path) in kept {
        let Some((path, mode)) = path.and_then(|path| Some((path, mode_for_others(path)?))) else { continue };
        tracing::warn!(
            key,
            path = %path.display(),
            mode = format!("{mode:o}"),
            "others can read or change this: take their rights away (chmod go=)"
        );
    }
}

/// The mode of a file that others have rights to.
fn mode_for_others(path: &Path) -> Option<u32> {
    let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
    (mode & OTHERS != 0).then_some(mode)
}
