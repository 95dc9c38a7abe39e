//! The client, and what it appends and lists. Each verb stands beside the types it returns.
//!
//! | verb | see |
//! | --- | --- |
//! | [`Client::append`] | [`Append`], [`Appended`] |
//! | [`Client::appender`] | [`crate::appender`] |
//! | [`Client::attach`] | [`crate::attachment`] |
//! | [`Client::get`], [`Client::watch`] | [`crate::pages`], [`crate::watch`] |
//! | [`Client::contexts`] | [`ContextPage`] |
//! | [`Client::get_verified`], [`Client::watch_verified`], [`Client::prove_inclusion`] | [`crate::verified`] |
//! | [`Client::checkpoint`], [`Client::prove_consistency`] | [`crate::proof`] |
//! | [`Client::trusted_checkpoint`] | [`crate::trust`] |
//! | [`Client::snapshot`], [`Client::load`], [`Client::load_again`] | [`crate::transfer`] |
//! | [`Client::forks`] | [`crate::forks`] |
//! | [`Client::join`], [`Client::broadcast`] | [`crate::interest`] |

pub use crate::connection::core::Client;
pub use crate::read::contexts::{ContextInfo, ContextPage, Unlisted};
pub use crate::write::append::{Append, Appended, Durability};
