//! Which node a call goes to, over which connection, and when a failed call is retried. Below every verb.
//!
//! | module | holds |
//! | --- | --- |
//! | `address` | the address of a node, as users write it and as nodes give it |
//! | `connector`, `keepalive` | a TCP connection, and the probes that find a silent one dead |
//! | `nodes` | a channel to each node, and which nodes failed lately |
//! | `owners` | which node owns which slot, as far as the client knows |
//! | `core` | [`Client`](core::Client): what its clones share |
//! | `services` | the generated gRPC clients |
//! | `retry` | attempts of one call: backoff, deadline, redirects |
//! | `destination`, `locate` | which node a call needs, and which one that is |
//! | `call` | one call, retried at the right node |
//! | `reconnector` | a stream that is opened again at another node |

pub(crate) mod address;
pub(crate) mod call;
mod connector;
pub(crate) mod core;
pub(crate) mod destination;
pub(crate) mod keepalive;
pub(crate) mod locate;
pub(crate) mod nodes;
mod owners;
pub(crate) mod reconnector;
pub(crate) mod retry;
mod services;
