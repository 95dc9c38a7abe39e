//! Asking nodes: the one that was named, and those it names.

use std::{future::Future, time::Duration};

use ledger_client::{Client, ClientError};
use ledger_proto::ledger::v1::{LocateRequest, Location, MembersRequest, MembersResponse};
use tonic::{Response, Status};

use crate::args::Connection;

/// How long another node than the one that was named may take: it may be dead.
const OTHERS: Duration = Duration::from_secs(2);

/// Waits as long as the connection allows.
pub(crate) async fn within<T>(
    connection: &Connection,
    call: impl Future<Output = T>,
) -> Result<T, ClientError> {
    let within = Duration::try_from_secs_f64(connection.timeout).unwrap_or(Duration::MAX);
    let late = |_| ClientError::TimedOut(format!("within {within:?}").into());
    tokio::time::timeout(within, call).await.map_err(late)
}

async fn answer<T>(
    connection: &Connection,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, ClientError> {
    Ok(within(connection, call).await??.into_inner())
}

/// The nodes, as the one asked sees them.
pub(crate) async fn members(
    connection: &Connection,
    client: &Client,
) -> Result<MembersResponse, ClientError> {
    answer(connection, client.cluster_service().members(MembersRequest {})).await
}

/// Where contexts and slots are, as the node asked sees it.
pub(crate) async fn locate(
    connection: &Connection,
    client: &Client,
    request: LocateRequest,
) -> Result<Vec<Location>, ClientError> {
    Ok(answer(connection, client.cluster_service().locate(request)).await?.locations)
}

/// The same connection to another node; `None` if it does not say where it is.
pub(crate) fn other(connection: &Connection, address: &str) -> Option<Connection> {
    let scheme = connection.endpoint.split_once("://").map_or("http", |(scheme, _)| scheme);
    let endpoint = || format!("{scheme}://{address}");
    (!address.is_empty()).then(|| Connection {
        endpoint: endpoint(),
        timeout: connection.timeout.min(OTHERS.as_secs_f64()),
        ..connection.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(endpoint: &str) -> Connection {
        Connection {
            endpoint: endpoint.to_owned(),
            timeout: 30.0,
            ca: None,
            cert: None,
            key_file: None,
            cluster_key_file: None,
        }
    }

    #[test]
    fn another_node_is_reached_the_same_way() {
        let secure = other(&connection("https://a:1"), "b:2").unwrap();
        assert_eq!(secure.endpoint, "https://b:2");
        assert!(secure.timeout <= OTHERS.as_secs_f64());
        assert!(other(&connection("http://a:1"), "").is_none());
    }
}
