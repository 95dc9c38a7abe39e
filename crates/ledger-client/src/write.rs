//! Writing: one append, many, and a writer that repairs what a ledger lost.
//!
//! | module | holds |
//! | --- | --- |
//! | `append` | one append |
//! | [`appender`] | pipelined appends |
//! | [`attachment`] | a writer that keeps its newest appends, and writes again what a ledger lost |

pub(crate) mod append;
pub mod appender;
pub mod attachment;
