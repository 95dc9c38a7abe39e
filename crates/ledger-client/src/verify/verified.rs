//! Entries that are proven to be those of a trusted checkpoint: one entry, a whole read, or a watch.
//!
//! A reader hashes every entry itself and appends it to a tree of its own. It returns only entries that it has proven: the
//! root of its tree is that of a prefix of the trusted tree (RFC 9162 §2.1.4), and no other entries have that root. So
//! nobody can change, leave out, add or move an entry. To show that no entry is left out, the reader reads all keys and
//! filters here.

mod entry;
mod inclusion;
mod pages;
mod read_tree;
mod watch;

pub use self::entry::VerifiedEntry;
pub use self::inclusion::Inclusion;
pub use self::pages::VerifiedPages;
pub use self::watch::VerifiedWatch;
