//! What `--verify` holds entries and checkpoints against.

use std::{
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use ledger_client::{Basis, ClientError, KnownCheckpoints, Trust, TrustedCheckpoint, VerifierKey};

use crate::{args, output::Output};

/// Most bytes of a file of keys.
const MAX_KEYS: u64 = 1 << 20;

/// What the user trusts: the keys and files of `--trust`, or what was first seen at this endpoint.
pub(crate) fn of(verified: &args::Verified, endpoint: &str) -> anyhow::Result<Trust> {
    let (mut keys, mut known) = (Vec::new(), None);
    for given in &verified.trust {
        if let Ok(key) = given.parse::<VerifierKey>() {
            keys.push(key);
            continue;
        }
        match keys_in(Path::new(given))? {
            Some(found) => keys.extend(found),
            None if known.is_none() => known = Some(KnownCheckpoints::in_file(given)),
            None => {
                let message = "--trust names two files of what is kept: one is enough".to_owned();
                return Err(ClientError::Invalid(message).into());
            }
        }
    }
    Ok(match (keys.is_empty(), known) {
        (false, None) => Trust::in_keys(keys)?,
        (false, Some(known)) => Trust::in_keys(keys)?.kept_in(known),
        (true, Some(known)) => Trust::on_first_use(known),
        (true, None) => Trust::on_first_use(KnownCheckpoints::in_file(kept_for(endpoint)?)),
    })
}

/// The keys in a file, a line each; `None` if the file is not there, or is one of known checkpoints.
fn keys_in(path: &Path) -> anyhow::Result<Option<Vec<VerifierKey>>> {
    let named = || format!("--trust {}: neither a verifier key nor a file that can be read", path.display());
    let mut text = String::new();
    match std::fs::File::open(path) {
        Ok(file) => file.take(MAX_KEYS).read_to_string(&mut text).with_context(named)?,
        // A key with a slip of the pen is no name of a file.
        Err(error)
            if error.kind() == std::io::ErrorKind::NotFound && !path.to_string_lossy().contains('+') =>
        {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(named),
    };
    if text.trim_start().starts_with('{') {
        return Ok(None);
    }
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys = lines.map(str::parse).collect::<Result<Vec<VerifierKey>, _>>();
    let keys = keys.map_err(|error| ClientError::Invalid(format!("--trust {}: {error}", path.display())))?;
    if keys.is_empty() {
        return Err(ClientError::Invalid(format!("--trust {} has no key", path.display())).into());
    }
    Ok(Some(keys))
}

/// Where what was seen at an endpoint is kept, as ssh keeps the keys of hosts.
fn kept_for(endpoint: &str) -> anyhow::Result<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let state = state.or_else(home).ok_or_else(|| {
        ClientError::Invalid("neither XDG_STATE_HOME nor HOME is set: name a file with --trust".to_owned())
    })?;
    let safe = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ',') { c } else { '_' };
    let name: String = endpoint.chars().take(200).map(safe).collect();
    Ok(state.join("converge-ledger/known").join(format!("{name}.json")))
}

/// Says it if nothing vouches for a checkpoint.
pub(crate) fn tell(checkpoint: &TrustedCheckpoint, output: &Output) {
    if checkpoint.basis() == Basis::FirstUse && checkpoint.head().size.0 > 0 {
        output.note(&format!(
            "{checkpoint}. From now on only what continues it is taken; pin the node's key with --trust {}",
            checkpoint.verifier_key()
        ));
    }
}
