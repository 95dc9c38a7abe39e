//! Reading: contexts in pages, contexts as they grow, and the list of contexts.
//!
//! | module | holds |
//! | --- | --- |
//! | `selection` | which entries, and from which node |
//! | `continuity` | whether a stream that was opened again continues the last one |
//! | [`pages`], [`watch`] | a context in pages, and a context as it grows |
//! | `contexts` | the contexts of a cluster |

pub(crate) mod contexts;
mod continuity;
pub mod pages;
pub(crate) mod selection;
pub mod watch;
