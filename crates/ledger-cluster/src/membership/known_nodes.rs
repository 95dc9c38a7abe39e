//! Keeps the last addresses of other nodes on disk. With them a node finds its cluster while DNS is down and its
//! seeds have changed.
//!
//! A text file: the first line names the format, and each further line names a node, its gossip address and its gRPC
//! address. The file only helps to find nodes, so whatever is unreadable in it is skipped.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ledger_core::node::NodeId;
use ledger_store::limited;
use tokio::{sync::watch, time::sleep};

use crate::membership::{View, facts::MAX_TEXT};

/// Name of the file in the data directory.
const FILE: &str = "peers";
const FORMAT: &str = "converge-ledger peers 1";
/// Most nodes that are stored.
const MAX_KNOWN: usize = 64;
/// Most bytes that are read: more than that many nodes take.
const MAX_FILE: u64 = 64 << 10;
/// How long changes are collected before they are written.
const WRITE_DELAY: Duration = Duration::from_secs(2);

/// Last gossip and gRPC addresses, by node.
pub(crate) type KnownNodes = BTreeMap<NodeId, (SocketAddr, String)>;

/// Reads the addresses from a data directory. An unreadable file counts as empty.
pub(crate) fn read(directory: &Path) -> KnownNodes {
    let path = directory.join(FILE);
    match try_read(&path) {
        Ok(known) => known,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "the addresses of other nodes cannot be read: they are found by seeds only");
            }
            KnownNodes::new()
        }
    }
}

fn try_read(path: &Path) -> io::Result<KnownNodes> {
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_FILE).read_to_string(&mut text)?;
    let mut lines = text.lines();
    if lines.next() != Some(FORMAT) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it has another format"));
    }
    Ok(lines.filter_map(entry).take(MAX_KNOWN).collect())
}

fn entry(line: &str) -> Option<(NodeId, (SocketAddr, String))> {
    let mut words = line.split(' ');
    let (node, gossip, grpc) = (words.next()?, words.next()?, words.next()?);
    let gossip: SocketAddr = gossip.parse().ok()?;
    let is_good = gossip.port() > 0 && (1..=MAX_TEXT).contains(&grpc.len()) && words.next().is_none();
    is_good.then_some((NodeId::new(node).ok()?, (gossip, grpc.to_owned())))
}

/// Writes the file atomically: to a temporary file, synced and renamed, so that a reader gets the old or the new
/// content.
fn write(directory: &Path, known: &KnownNodes) -> io::Result<()> {
    let (path, beside) = (directory.join(FILE), directory.join(format!("{FILE}.tmp")));
    let mut text = format!("{FORMAT}\n");
    for (node, (gossip, grpc)) in known {
        text.extend([node.as_str(), " ", &gossip.to_string(), " ", grpc, "\n"]);
    }
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(beside, path)
}

/// Returns what to store after the view changed: the living nodes, and as many earlier ones as fit.
fn updated(known: &KnownNodes, view: &View, me: &NodeId) -> KnownNodes {
    let others = view.members.iter().filter(|member| member.node_id != *me);
    let entry = |member: &crate::membership::ViewMember| {
        (member.node_id.clone(), (member.gossip_address, member.grpc_address.clone()))
    };
    let mut next: KnownNodes = others.filter(|member| member.alive).map(entry).take(MAX_KNOWN).collect();
    for (node, address) in known {
        if next.len() < MAX_KNOWN {
            next.entry(node.clone()).or_insert_with(|| address.clone());
        }
    }
    next
}

/// Keeps the file up to date with the view.
pub(crate) async fn keep(
    directory: PathBuf,
    mut known: KnownNodes,
    me: NodeId,
    mut view: watch::Receiver<Arc<View>>,
) {
    while view.changed().await.is_ok() {
        let next = updated(&known, &view.borrow_and_update(), &me);
        if next == known {
            continue;
        }
        let (into, writing) = (directory.clone(), next.clone());
        let written = ledger_store::blocking::spawn(move || write(&into, &writing)).await;
        match written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(()) => known = next,
            Err(error) => {
                limited!(warn, directory = %directory.display(), %error, "the addresses of other nodes cannot be kept: this is tried again");
            }
        }
        // Changes during this pause are written together.
        sleep(WRITE_DELAY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(count: usize) -> KnownNodes {
        let node = |number: usize| {
            let gossip = SocketAddr::from(([10, 0, 0, number as u8], 7946));
            (NodeId::new(format!("n{number}")).unwrap(), (gossip, format!("host-{number}:50051")))
        };
        (0..count).map(node).collect()
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()), KnownNodes::new());
        for count in [3, 1] {
            write(dir.path(), &known(count)).unwrap();
            assert_eq!(read(dir.path()), known(count));
        }
    }

    #[test]
    fn what_is_damaged_or_too_much_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let lines = "\u{7f}\nn0 10.0.0.0:7946 host-0:50051\nn1 10.0.0.1:0 x:1\nn2 x:1 y:1\nn 3 10.0.0.1:1 x:1\nn4\n\n";
        fs::write(&path, format!("{FORMAT}\n{lines}")).unwrap();
        assert_eq!(read(dir.path()), known(1));
        fs::write(&path, lines).unwrap();
        assert_eq!(read(dir.path()), KnownNodes::new(), "of no known format");
        fs::write(&path, [0xff; 200]).unwrap();
        assert_eq!(read(dir.path()), KnownNodes::new());
        write(dir.path(), &known(200)).unwrap();
        assert_eq!(read(dir.path()).len(), MAX_KNOWN);
    }
}
