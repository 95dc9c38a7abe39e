//! Checks whether the other nodes own all slots, before a node's unreadable directory is set aside.
//!
//! It asks every node in the file of `known_nodes` which slots that node owns. An owner has everything that was
//! acknowledged, and says that it is the owner only while it hears enough members. If each slot has an owner, nothing
//! depends on the directory that cannot be opened. After an owner fails, a new one takes over within seconds, so the
//! check repeats for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use futures::{StreamExt as _, stream};
use ledger_core::{
    node::{ClusterId, NodeId},
    slot::SLOTS,
};
use ledger_proto::ledger::v1::{LocateRequest, MembersRequest, cluster_service_client::ClusterServiceClient};
use ledger_store::limited;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    config::PeerTls,
    membership::known_nodes,
    peers::{ChannelUse, connect},
};

/// How long the check repeats.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to wait before asking again.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long a node may take to respond.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);
/// How many nodes are asked concurrently.
const MAX_CONCURRENT: usize = 8;

/// What a node reports.
#[derive(Debug, Clone, PartialEq, Eq)]
struct OwnershipReport {
    node: String,
    /// Identity of its cluster.
    identity: String,
    /// The slots that it owns itself.
    owned: BTreeSet<u32>,
}

/// Waits until the other nodes own all slots; returns their names. If this node's cluster is known, nodes of another
/// cluster that have taken over these addresses do not count.
///
/// # Errors
/// A text that names the nodes that did not respond, and how many slots none of the others owns.
pub async fn wait_until_all_owned(
    me: &NodeId,
    cluster: Option<ClusterId>,
    tls: Option<&PeerTls>,
    directory: &Path,
) -> Result<Vec<String>, String> {
    let path = directory.to_owned();
    let mut known = ledger_store::blocking::spawn(move || known_nodes::read(&path)).await.unwrap_or_default();
    known.remove(me);
    if known.is_empty() {
        return Err("this node knows of no other: nobody can be asked".to_owned());
    }
    let until = Instant::now() + TOTAL_TIMEOUT;
    loop {
        let requests = known.iter().map(|(node, (_, address))| {
            let node = node.clone();
            async move {
                let answer = timeout(RESPONSE_TIMEOUT, ask(tls, address)).await;
                (node, answer.unwrap_or_else(|_| Err("no answer in time".to_owned())))
            }
        });
        let answers: BTreeMap<NodeId, Result<OwnershipReport, String>> =
            stream::iter(requests).buffer_unordered(MAX_CONCURRENT).collect().await;
        let why_not = match check_owned_by_all(me, cluster, &answers) {
            Ok(others) => return Ok(others),
            Err(why_not) => why_not,
        };
        if Instant::now() >= until {
            return Err(why_not);
        }
        limited!(warn, why_not, "waiting for the other nodes to hold everything");
        sleep(RETRY_PAUSE).await;
    }
}

async fn ask(tls: Option<&PeerTls>, address: &str) -> Result<OwnershipReport, String> {
    let mut client = ClusterServiceClient::new(connect(tls, address, ChannelUse::Requests)?);
    let said = |status: tonic::Status| status.message().to_owned();
    let members = client.members(MembersRequest {}).await.map_err(said)?.into_inner();
    let located = client.locate(LocateRequest::default()).await.map_err(said)?.into_inner();
    let owned = located.locations.into_iter().filter(|location| location.owner == members.node_id);
    Ok(OwnershipReport {
        owned: owned.map(|location| location.slot).filter(|slot| *slot < SLOTS.into()).collect(),
        node: members.node_id,
        identity: members.identity,
    })
}

/// Checks whether each slot has an owner among the nodes that responded.
fn check_owned_by_all(
    me: &NodeId,
    cluster: Option<ClusterId>,
    answers: &BTreeMap<NodeId, Result<OwnershipReport, String>>,
) -> Result<Vec<String>, String> {
    let cluster = cluster.map(|cluster| cluster.to_string());
    let answers: BTreeMap<&NodeId, Result<&OwnershipReport, String>> = answers
        .iter()
        .map(|(asked, answer)| {
            (asked, as_asked(asked, cluster.as_deref(), answer.as_ref().map_err(String::clone)))
        })
        .collect();
    let others = || answers.values().flatten().filter(|answer| answer.node != me.as_str());
    let mut identities: BTreeSet<&str> = others().map(|answer| answer.identity.as_str()).collect();
    identities.remove("");
    if identities.len() > 1 {
        return Err(format!("the nodes that answer are of {} clusters", identities.len()));
    }
    let owned: BTreeSet<u32> = others().flat_map(|answer| answer.owned.iter().copied()).collect();
    let missing = usize::from(SLOTS) - owned.len();
    if missing == 0 {
        return Ok(others().map(|answer| answer.node.clone()).collect());
    }
    let silent: Vec<String> = answers
        .iter()
        .filter_map(|(node, answer)| answer.as_ref().err().map(|why| format!("{node} ({why})")))
        .collect();
    let silent = if silent.is_empty() {
        "all nodes that are known answer".to_owned()
    } else {
        format!("no answer of {}", silent.join(", "))
    };
    Err(format!("{missing} of {SLOTS} slots have no owner among the other nodes; {silent}"))
}

/// Checks that the response is from the intended node: another one may have its address by now, even one of another
/// cluster.
fn as_asked<'a>(
    expected: &NodeId,
    cluster: Option<&str>,
    answer: Result<&'a OwnershipReport, String>,
) -> Result<&'a OwnershipReport, String> {
    let answer = answer?;
    if answer.node != expected.as_str() {
        return Err(format!("at its address is {} now", answer.node));
    }
    match cluster.filter(|cluster| answer.identity != *cluster) {
        Some(cluster) if answer.identity.is_empty() => {
            Err(format!("it does not say that it is of cluster {cluster}"))
        }
        Some(cluster) => Err(format!("it is of cluster {}, and this node of {cluster}", answer.identity)),
        None => Ok(answer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn says(
        node: &str,
        identity: &str,
        owned: std::ops::Range<u32>,
    ) -> (NodeId, Result<OwnershipReport, String>) {
        let answer =
            OwnershipReport { node: node.to_owned(), identity: identity.to_owned(), owned: owned.collect() };
        (id(node), Ok(answer))
    }

    #[test]
    fn a_directory_is_given_up_only_if_the_others_own_every_slot() {
        let judged = |answers: &[(NodeId, Result<OwnershipReport, String>)]| {
            check_owned_by_all(&id("a"), None, &answers.iter().cloned().collect())
        };
        let all = [says("b", "x", 0..600), says("c", "x", 600..1024)];
        assert_eq!(judged(&all), Ok(vec!["b".to_owned(), "c".to_owned()]));
        let one_short = judged(&[says("b", "x", 0..600), says("c", "x", 600..1023)]).unwrap_err();
        assert!(one_short.contains("1 of 1024"), "{one_short}");
        let silent = judged(&[says("b", "x", 0..600), (id("c"), Err("refused".to_owned()))]).unwrap_err();
        assert!(silent.contains("424 of 1024") && silent.contains("c (refused)"), "{silent}");
        // A process that responds under this node's own name is not another node.
        assert!(judged(&[says("a", "x", 0..1024)]).is_err());
        assert!(judged(&[(id("b"), says("a", "x", 0..1024).1)]).is_err());
        let two = judged(&[says("b", "x", 0..600), says("c", "y", 600..1024)]).unwrap_err();
        assert!(two.contains("2 clusters"), "{two}");
        assert!(judged(&[]).is_err());
    }

    #[test]
    fn nobody_else_answers_for_a_node_at_whose_address_it_is_now() {
        let ours = ClusterId([7; 16]);
        let judged = |answers: &[(NodeId, Result<OwnershipReport, String>)]| {
            check_owned_by_all(&id("a"), Some(ours), &answers.iter().cloned().collect())
        };
        let (ours, theirs) = (ours.to_string(), ClusterId([8; 16]).to_string());
        assert_eq!(judged(&[says("b", &ours, 0..1024)]), Ok(vec!["b".to_owned()]));
        let renamed = judged(&[(id("b"), says("x", &ours, 0..1024).1)]).unwrap_err();
        assert!(renamed.contains("at its address is x"), "{renamed}");
        // A single foreign cluster is not two clusters, and still does not count.
        let foreign = judged(&[says("b", &theirs, 0..1024)]).unwrap_err();
        assert!(foreign.contains("1024 of 1024") && foreign.contains("it is of cluster"), "{foreign}");
        assert!(judged(&[says("b", "", 0..1024)]).is_err());
        let both = judged(&[says("b", &ours, 0..600), says("c", &theirs, 600..1024)]).unwrap_err();
        assert!(both.contains("424 of 1024"), "{both}");
    }
}
