//! The targets. To add one, add a line to [`ALL`].

mod legacy;
mod record;
mod snapshot;

use crate::Target;

/// Every target.
pub const ALL: &[Target] = &[
    Target { name: "snapshot", seeds: snapshot::seeds, run: snapshot::run },
    Target { name: "snapshot-frame", seeds: snapshot::frame_seeds, run: snapshot::run_frame },
    Target { name: "record", seeds: record::seeds, run: record::run },
    Target { name: "erlang-term", seeds: legacy::seeds, run: legacy::run },
];

/// The target of this name.
pub fn named(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}
