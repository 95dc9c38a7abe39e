//! The path of a write: lanes, group commits, the sync, and loads.

pub(crate) mod command;
pub(crate) mod commit;
pub(crate) mod committed_heads;
pub(crate) mod lane;
pub(crate) mod load;
pub(crate) mod publish;
pub(crate) mod staging;
pub(crate) mod state;
pub(crate) mod syncer;
pub(crate) mod uncommitted_loads;
pub(crate) mod waiters;
pub(crate) mod written_context;
