//! Generated gRPC types of Converge Ledger; nothing is written by hand here.
//!
//! The contract is the `.proto` files in the repository's `proto/` folder.

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]

/// `converge.context.v1`: the five operations, as the predecessor spoke them.
pub mod context {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("converge.context.v1");
    }
}

/// `converge.ledger.v1`: the native services.
pub mod ledger {
    /// Version 1.
    pub mod v1 {
        tonic::include_proto!("converge.ledger.v1");
    }
}

/// The same services for who has entries encoded already, or passes them on: where the contract has an
/// [`Entry`](context::v1::Entry), these messages have its bytes, and look the same on the wire.
pub mod wire {
    /// `converge.context.v1`.
    pub mod context {
        /// Version 1.
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/wire/converge.context.v1.rs"));
        }
    }

    /// `converge.ledger.v1`.
    pub mod ledger {
        /// Version 1.
        pub mod v1 {
            include!(concat!(env!("OUT_DIR"), "/wire/converge.ledger.v1.rs"));
        }
    }
}

/// The encoded `FileDescriptorSet` of all services, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
