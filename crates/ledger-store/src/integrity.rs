//! Damage and divergence: finding them, setting them apart, restoring, and keeping the evidence.

pub(crate) mod forks;
pub(crate) mod heal;
pub(crate) mod quarantine;
pub(crate) mod scrub;
