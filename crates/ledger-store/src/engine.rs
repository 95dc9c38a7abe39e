//! RocksDB as the ledger needs it: families and keys, rows and records, and disk space.

pub(crate) mod bulk_writer;
pub(crate) mod db;
pub(crate) mod durable_index;
pub(crate) mod errors;
pub(crate) mod families;
pub(crate) mod first_open;
pub(crate) mod heads;
pub(crate) mod index;
pub(crate) mod keep_open;
pub(crate) mod keys;
#[doc(hidden)]
pub mod record;
pub(crate) mod reopenable_db;
pub(crate) mod rows;
pub(crate) mod space;
pub(crate) mod tuning;
pub(crate) mod watermark;
