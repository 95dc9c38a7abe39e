//! The targets. To add one, add a line to [`ALL`].

mod cluster;
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
    Target { name: "gossip-datagram", seeds: cluster::sealed_seeds, run: cluster::run_sealed },
    Target { name: "gossip-parts", seeds: cluster::parts_seeds, run: cluster::run_parts },
    Target { name: "gossip-facts", seeds: cluster::facts_seeds, run: cluster::run_facts },
    Target { name: "node-message", seeds: cluster::message_seeds, run: cluster::run_message },
];

/// The target of this name.
pub fn named(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}
