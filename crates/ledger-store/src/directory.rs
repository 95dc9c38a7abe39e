//! What the data directory records about itself: its identity, its format, and what it promised.

pub(crate) mod attributes;
pub(crate) mod data_dir;
pub(crate) mod incarnation;
pub(crate) mod meta;
pub(crate) mod reidentify;
pub(crate) mod set_aside;
pub(crate) mod slot_records;
