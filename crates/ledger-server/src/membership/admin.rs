//! Who may have a node do what is an operator's: until identities come, whoever is on the same machine (unless `operators` is
//! `key`), or proves to have the cluster's key ([`ledger_cluster::peers::call_auth::operators`]).

use std::{fmt, sync::Arc};

use ledger_cluster::peers::call_auth::operators::Operator;
use tonic::{Code, Request};

use crate::{grpc::connection::Connection, grpc::status::Refusal, settings::config::Operators};

/// By what somebody may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OperatorAccess {
    /// The call comes from this machine.
    Machine,
    /// The caller has the cluster's key.
    Key(Operator),
}

impl fmt::Display for OperatorAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("somebody on this machine"),
            Self::Key(operator) => write!(f, "{}, who has the cluster's key", operator.name),
        }
    }
}

/// Refuses an operator's request that neither proves to have the cluster's key nor, where that is enough, comes from this
/// machine.
///
/// # Errors
/// `PERMISSION_DENIED`, which names the ways that the configuration leaves open.
pub fn authorize<T>(operators: Operators, request: &Request<T>) -> Result<OperatorAccess, Refusal> {
    if let Some(operator) = request.extensions().get::<Operator>() {
        return Ok(OperatorAccess::Key(operator.clone()));
    }
    let message = match (operators, request.extensions().get::<Arc<Connection>>()) {
        (Operators::Loopback, Some(connection)) if connection.peer().ip().to_canonical().is_loopback() => {
            return Ok(OperatorAccess::Machine);
        }
        (Operators::Loopback, _) => {
            "only operators may do this: call it on the machine that the node runs on, at a loopback address, or with the \
             cluster's key (ledgerctl --cluster-key-file FILE, the file that the node has as cluster_key_file)"
        }
        (Operators::Key, _) => {
            "only operators may do this: call it with the cluster's key (ledgerctl --cluster-key-file FILE, the file that the \
             node has as cluster_key_file); the node's machine is not enough, for it is configured with operators = \"key\""
        }
    };
    Err(Refusal::new(Code::PermissionDenied, message))
}
