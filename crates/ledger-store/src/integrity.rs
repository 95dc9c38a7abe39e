//! Damage and divergence: found, set apart, restored, and kept as evidence.

pub(crate) mod forks;
pub(crate) mod heal;
pub(crate) mod quarantine;
pub(crate) mod scrub;
