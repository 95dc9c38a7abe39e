//! Who may have a node do what is an operator's: until identities come, whoever is on the same machine.

use std::sync::Arc;

use tonic::{Code, Request};

use crate::{connection::Connection, status::Refusal};

/// Refuses an operator's request that does not come from this machine.
pub fn authorize<T>(request: &Request<T>) -> Result<(), Refusal> {
    match request.extensions().get::<Arc<Connection>>() {
        Some(connection) if connection.peer().ip().to_canonical().is_loopback() => Ok(()),
        _ => {
            let message = "only operators may do this: call it from the machine that the node runs on, at a loopback address";
            Err(Refusal::new(Code::PermissionDenied, message))
        }
    }
}
