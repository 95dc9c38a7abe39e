//! Asking nodes: the one that was named, and those it names.

use std::{collections::BTreeSet, future::Future, time::Duration};

use futures::future::join_all;
use ledger_client::{Client, ClientError};
use ledger_proto::ledger::v1::{LocateRequest, Location, Member, MembersRequest, MembersResponse};
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

/// Where things are, as their owners see it: they alone know who is in step.
#[derive(Debug)]
pub(crate) struct Located {
    /// In the order asked for.
    pub locations: Vec<Location>,
    /// Owners that did not answer: of what they own, nobody knows who is in step.
    pub silent: BTreeSet<String>,
}

impl Located {
    /// Whether somebody knows who is in step.
    pub(crate) fn is_known(&self, location: &Location) -> bool {
        !location.owner.is_empty() && !self.silent.contains(&location.owner)
    }
}

/// Asks the node, then the owners that it names.
pub(crate) async fn locate_at_owners(
    connection: &Connection,
    client: &Client,
    members: &MembersResponse,
    request: LocateRequest,
) -> anyhow::Result<Located> {
    let mut locations = locate(connection, client, request.clone()).await?;
    let named: BTreeSet<_> =
        locations.iter().map(|location| location.owner.clone()).filter(|owner| !owner.is_empty()).collect();
    let owners = named.iter().filter(|owner| **owner != members.node_id);
    let asked = join_all(owners.map(async |owner| {
        let answered = ask_owner(connection, &members.members, owner, request.clone()).await;
        (owner.clone(), answered)
    }));
    let mut silent = BTreeSet::new();
    for (owner, answered) in asked.await {
        let Some(answered) = answered.filter(|answered| answered.len() == locations.len()) else {
            silent.insert(owner);
            continue;
        };
        for (known, newer) in locations.iter_mut().zip(answered) {
            // It may own less by now, or more. One that has too few copies in step takes no appends, and is the only one that
            // says so: the others see that it owns the slot.
            let owns = newer.owner == owner && newer.epoch >= known.epoch;
            let takes_none = known.owner == owner && newer.owner.is_empty();
            if owns || takes_none {
                *known = newer;
            }
        }
    }
    Ok(Located { locations, silent })
}

async fn ask_owner(
    connection: &Connection,
    members: &[Member],
    owner: &str,
    request: LocateRequest,
) -> Option<Vec<Location>> {
    let member = members.iter().find(|member| member.node_id == owner && member.alive)?;
    let connection = other(connection, &member.address)?;
    locate(&connection, &connection.client().ok()?, request).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(endpoint: &str) -> Connection {
        Connection { endpoint: endpoint.to_owned(), timeout: 30.0, ca: None, cert: None, key_file: None }
    }

    #[test]
    fn another_node_is_reached_the_same_way() {
        let secure = other(&connection("https://a:1"), "b:2").unwrap();
        assert_eq!(secure.endpoint, "https://b:2");
        assert!(secure.timeout <= OTHERS.as_secs_f64());
        assert!(other(&connection("http://a:1"), "").is_none());
    }

    #[tokio::test]
    async fn an_owner_that_is_dead_is_not_asked() {
        let member = Member { node_id: "b".into(), address: "b:2".into(), ..Member::default() };
        let asked = ask_owner(&connection("http://a:1"), &[member], "b", LocateRequest::default()).await;
        assert!(asked.is_none());
    }
}
