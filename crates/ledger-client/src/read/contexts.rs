//! Listing the contexts of a cluster.

use ledger_core::{ContextId, Epoch, HashSuite, Size, clock::LamportClock};
use ledger_proto::ledger::v1::ContextsRequest;

use crate::{
    connection::{core::Client, destination::Destination},
    convert,
    error::ClientError,
};

/// A page of a listing.
#[derive(Debug, Clone)]
pub struct ContextPage {
    /// The contexts, in order of their ids. The page may be empty though more follow.
    pub contexts: Vec<ContextInfo>,
    /// The id after which the next page begins; `None`: this is the last page.
    pub next: Option<String>,
    /// The slots that are missing from the page, because no node that keeps them responded. Empty: the page is complete.
    pub unlisted: Vec<Unlisted>,
}

/// Slots whose contexts are missing from a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlisted {
    /// The node that should have listed them; `None`: no reachable node shows them.
    pub node: Option<String>,
    /// How many, of 1024.
    pub slots: u32,
    /// Why.
    pub reason: String,
}

/// A context as a listing shows it.
#[derive(Debug, Clone)]
pub struct ContextInfo {
    /// Its name.
    pub context: ContextId,
    /// Number of entries.
    pub size: Size,
    /// Time of the newest entry.
    pub lamport: LamportClock,
    /// Epoch of the newest entry.
    pub epoch: Epoch,
    /// Wall-clock time of creation, nanoseconds since the Unix epoch.
    pub created_at_ns: u64,
    /// Hash suite.
    pub suite: HashSuite,
}

impl Client {
    /// A page of the contexts of the cluster whose ids begin with a prefix, in order: at most `limit` after the id `after`.
    /// Any node collects them from the nodes that keep them. If some of these do not respond, the page says so
    /// ([`ContextPage::unlisted`]): then it is incomplete.
    ///
    /// # Errors
    ///
    /// [`ClientError::NotVerified`] or [`ClientError::Id`] if the response is malformed; else as the call fails.
    pub async fn contexts(&self, prefix: &str, after: &str, limit: u32) -> Result<ContextPage, ClientError> {
        let (prefix, after) = (prefix.to_owned(), after.to_owned());
        let request = ContextsRequest { prefix, after, limit, ..ContextsRequest::default() };
        let response = self.call(Destination::AnyNode, |channel| {
            let (mut service, request) = (self.cluster_service_on(channel), request.clone());
            async move { service.contexts(request).await }
        });
        let response = response.await?.into_inner();
        let contexts = response.contexts.into_iter().map(|info| {
            Ok::<_, ClientError>(ContextInfo {
                context: ContextId::new(info.context_id)?,
                size: Size(info.size),
                lamport: LamportClock(info.lamport_clock),
                epoch: Epoch(info.epoch),
                created_at_ns: info.created_at_ns,
                suite: convert::suite(&info.hash_suite)?,
            })
        });
        let contexts: Vec<ContextInfo> = contexts.collect::<Result<_, _>>()?;
        // A ledger of an older version lists the contexts of one node, and the next page begins after the last of them.
        let last = || contexts.last().map(|info| info.context.as_str().to_owned());
        let next = response
            .more
            .then(|| Some(response.next).filter(|next| !next.is_empty()).or_else(last))
            .flatten();
        let unlisted = response.unlisted.into_iter().map(|of| Unlisted {
            node: Some(of.node_id).filter(|node| !node.is_empty()),
            slots: of.count,
            reason: of.reason,
        });
        Ok(ContextPage { next, unlisted: unlisted.collect(), contexts })
    }
}
