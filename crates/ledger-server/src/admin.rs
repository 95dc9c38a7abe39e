//! Who may have a node do what is an operator's: until identities come, whoever is on the same machine, or proves to have the
//! cluster's key ([`ledger_cluster::door::operators`]).

use std::{fmt, sync::Arc};

use ledger_cluster::door::operators::Operator;
use tonic::{Code, Request};

use crate::{connection::Connection, status::Refusal};

/// By what somebody may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The call comes from this machine.
    Machine,
    /// The caller has the cluster's key.
    Key(Operator),
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("somebody on this machine"),
            Self::Key(operator) => write!(f, "{}, who has the cluster's key", operator.name),
        }
    }
}

/// Refuses an operator's request that neither comes from this machine nor proves to have the cluster's key.
///
/// # Errors
/// Names both ways.
pub fn authorize<T>(request: &Request<T>) -> Result<By, Refusal> {
    if let Some(operator) = request.extensions().get::<Operator>() {
        return Ok(By::Key(operator.clone()));
    }
    match request.extensions().get::<Arc<Connection>>() {
        Some(connection) if connection.peer().ip().to_canonical().is_loopback() => Ok(By::Machine),
        _ => {
            let message = "only operators may do this: call it on the machine that the node runs on, at a loopback address, or with the \
                           cluster's key (ledgerctl --cluster-key-file FILE, the file that the node has as cluster_key_file)";
            Err(Refusal::new(Code::PermissionDenied, message))
        }
    }
}
