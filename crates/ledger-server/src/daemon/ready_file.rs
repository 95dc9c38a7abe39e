//! The ready file: says that the node serves, and where.

use std::{fs, io, net::SocketAddr, path::Path};

/// Written beside and renamed: who sees the file sees all of it.
///
/// # Errors
/// The file cannot be written.
pub(super) fn write(path: &Path, grpc: SocketAddr, http: SocketAddr) -> io::Result<()> {
    let ready = serde_json::json!({
        "grpc": grpc.to_string(),
        "http": http.to_string(),
        "pid": std::process::id(),
    });
    let mut beside = path.as_os_str().to_owned();
    beside.push(".tmp");
    fs::write(&beside, format!("{ready}\n"))?;
    fs::rename(&beside, path)
}
