//! The contexts of a cluster, in pages: each node lists what it shows, and one merges.
//!
//! A slot is listed by one node: by the one that was asked if it shows the slot, else by its owner, else by another member.
//! So each context comes once, and no listing needs more memory than a page of each node. Pages go on after an id, whichever
//! nodes list the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use ledger_cluster::{
    Cluster,
    ownership::routes::{SlotOwner, SlotRoute},
};
use ledger_core::{
    ContextId,
    limits::MAX_CONTEXT_ID,
    node::NodeId,
    slot::{SLOTS, Slot},
};
use ledger_proto::ledger::v1::{
    ContextInfo, ContextsRequest, ContextsResponse, UnlistedSlots,
    cluster_service_client::ClusterServiceClient,
};
use prost::Message as _;
use tokio::time::timeout;
use tonic::{Code, transport::Channel};

use crate::{
    grpc::call, grpc::convert, grpc::status::Refusal, limits, node::Node, node::mode::NodeMode,
    routing::route,
};

/// How long another node may take for its page.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// What a context takes in a page, at most, and in the message that is made of it, bytes.
const LISTED: usize = 2 * (MAX_CONTEXT_ID + 160);
/// How many nodes are asked for a slot, one after the other.
const ATTEMPTS: usize = 3;

/// A page of what one node lists, or of all of them together.
#[derive(Debug, Default, PartialEq)]
struct Page {
    contexts: Vec<ContextInfo>,
    /// There may be more, after this id.
    next: Option<String>,
}

/// A page of the listing, cut at a whole context to fit a message.
pub(crate) async fn contexts(node: &Node, request: ContextsRequest) -> Result<ContextsResponse, Refusal> {
    for (field, text) in [("prefix", &request.prefix), ("after", &request.after)] {
        if text.len() > MAX_CONTEXT_ID {
            let message = format!("{field} has {} bytes: at most {MAX_CONTEXT_ID} are allowed", text.len());
            return Err(Refusal::field(field, message));
        }
    }
    let (usual, most) = limits::LISTING;
    let limit = if request.limit == 0 { usual } else { (request.limit as usize).min(most) };
    let slots = slots_of(&request.slots)?;
    // A page of each node that is asked, and one that is made of them.
    let pages = match &node.mode {
        NodeMode::Clustered(cluster) if slots.is_empty() => cluster.view().borrow().members.len() + 1,
        _ => 1,
    };
    let limit = limit.min((node.memory.largest_answer() / (pages * LISTED)).max(1));
    let reserved = call::reserve(call::current(), pages * limit * LISTED).await?;
    let (page, unlisted) = match &node.mode {
        NodeMode::Clustered(cluster) if slots.is_empty() => {
            of_cluster(node, cluster, &request, limit).await?
        }
        standing => {
            let slots = if slots.is_empty() { (0..SLOTS).filter_map(Slot::new).collect() } else { slots };
            let (page, hidden) = here(node, &request, limit, slots).await?;
            let me = standing.cluster().map(|cluster| cluster.me().node.to_string());
            let unlisted = (!hidden.is_empty()).then(|| UnlistedSlots {
                node_id: me.unwrap_or_default(),
                count: u32::try_from(hidden.len()).unwrap_or(u32::MAX),
                reason: NOT_SHOWN.to_owned(),
                slots: to_bytes(&hidden),
            });
            (page, unlisted.into_iter().collect())
        }
    };
    let Page { contexts, next } = fitting(page, node.config.max_response.get() - limits::RESPONSE_SLACK);
    let answer =
        ContextsResponse { contexts, more: next.is_some(), next: next.unwrap_or_default(), unlisted };
    reserved.hand_over(2 * answer.encoded_len());
    Ok(answer)
}

const NOT_SHOWN: &str = "it does not show them";

/// Lists what this node shows of slots; also gives those of the slots that it does not show.
async fn here(
    node: &Node,
    request: &ContextsRequest,
    limit: usize,
    slots: BTreeSet<Slot>,
) -> Result<(Page, BTreeSet<Slot>), Refusal> {
    let ContextsRequest { prefix, after, .. } = request.clone();
    let (found, hidden) = node
        .read(move |ledger| {
            let found = ledger.list(&prefix, &after, limit, |slot| slots.contains(&slot))?;
            // Looked at afterwards: what was listed of a slot that is not shown any more is left out, and named.
            let hidden: BTreeSet<Slot> = slots.into_iter().filter(|slot| !ledger.is_visible(*slot)).collect();
            Ok((found, hidden))
        })
        .await?;
    let shown = found.contexts.iter().filter(|info| !hidden.contains(&Slot::of(&info.context)));
    Ok((Page { contexts: shown.map(convert::context_info).collect(), next: found.next }, hidden))
}

/// Asks whoever shows each slot, and merges. What one does not list another is asked for.
async fn of_cluster(
    node: &Node,
    cluster: &Cluster,
    request: &ContextsRequest,
    limit: usize,
) -> Result<(Page, Vec<UnlistedSlots>), Refusal> {
    let mut pages = Vec::new();
    let mut left: BTreeMap<Slot, Attempt> =
        (0..SLOTS).filter_map(Slot::new).map(|slot| (slot, Attempt::default())).collect();
    for _ in 0..ATTEMPTS {
        let asked = assign(node, cluster, &left);
        if asked.is_empty() {
            break;
        }
        let listed = asked.into_iter().map(async |(source, slots)| match source {
            Source::Here => {
                let listed = here(node, request, limit, slots.clone()).await;
                (cluster.me().node.clone(), slots, listed)
            }
            Source::There(name, channel) => {
                let listed = there(channel, request, limit, &slots).await;
                (name, slots, listed)
            }
        });
        let listed = join_all(listed).await;
        for (name, slots, listed) in listed {
            let (page, hidden, reason) = match listed {
                Ok((page, hidden)) => (page, hidden, NOT_SHOWN.to_owned()),
                Err(refusal) => (Page::default(), slots.clone(), refusal.message),
            };
            pages.push(page);
            for slot in slots.difference(&hidden) {
                left.remove(slot);
            }
            for slot in hidden {
                if let Some(attempt) = left.get_mut(&slot) {
                    attempt.asked.insert(name.clone());
                    attempt.failure = Some((name.clone(), reason.clone()));
                }
            }
        }
        pages = vec![merged(pages, limit)];
    }
    Ok((pages.pop().unwrap_or_default(), unlisted(&left)))
}

/// What became of asking for a slot.
#[derive(Debug, Default)]
struct Attempt {
    asked: BTreeSet<NodeId>,
    failure: Option<(NodeId, String)>,
}

/// Who lists slots.
enum Source {
    Here,
    There(NodeId, Channel),
}

/// Whom to ask for what is left. Slots for which there is nobody stay unasked.
fn assign(node: &Node, cluster: &Cluster, left: &BTreeMap<Slot, Attempt>) -> Vec<(Source, BTreeSet<Slot>)> {
    let routes = Arc::clone(&cluster.routes().borrow());
    let view = Arc::clone(&cluster.view().borrow());
    let me = &cluster.me().node;
    let mut shares: BTreeMap<NodeId, BTreeSet<Slot>> = BTreeMap::new();
    for (slot, attempt) in left {
        let is_new = |name: &&NodeId| !attempt.asked.contains(*name);
        let is_there = |name: &&NodeId| *name != me && view.get(name).is_some_and(|member| member.alive);
        let mine = Some(me).filter(|name| is_new(name) && node.ledger.is_visible(*slot));
        let route = routes.get(*slot);
        let owner = route.and_then(|SlotRoute { owner, .. }| match owner {
            SlotOwner::Other(name, _) => Some(name),
            _ => None,
        });
        let members = route.into_iter().flat_map(|route| &route.members).map(|member| &member.node);
        let mut others = owner.into_iter().chain(members);
        if let Some(name) = mine.or_else(|| others.find(|name| is_new(name) && is_there(name))) {
            shares.entry(name.clone()).or_default().insert(*slot);
        }
    }
    let source = |name: NodeId| {
        if name == *me {
            return Some(Source::Here);
        }
        cluster.channel(&name).map(|channel| Source::There(name, channel))
    };
    shares.into_iter().filter_map(|(name, slots)| Some((source(name)?, slots))).collect()
}

/// Asks another node; also gives the slots that it does not show.
async fn there(
    channel: Channel,
    request: &ContextsRequest,
    limit: usize,
    slots: &BTreeSet<Slot>,
) -> Result<(Page, BTreeSet<Slot>), Refusal> {
    let request = ContextsRequest {
        limit: u32::try_from(limit).unwrap_or(u32::MAX),
        slots: to_bytes(slots),
        ..request.clone()
    };
    let mut there = ClusterServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let answered = timeout(RESPONSE_TIMEOUT, route::answer(there.contexts(route::forwarded(request)))).await;
    let late = |_| Refusal::new(Code::DeadlineExceeded, format!("no answer within {RESPONSE_TIMEOUT:?}"));
    let ContextsResponse { mut contexts, more, next, unlisted } = answered.map_err(late)??;
    let mut hidden = BTreeSet::new();
    for of in &unlisted {
        hidden.extend(slots_of(&of.slots).map_err(|_| Refusal::internal("its answer is malformed"))?);
    }
    let last = contexts.last().map(|info| info.context_id.clone());
    // A node of an older version lists all that it keeps, whatever it is asked for.
    contexts.retain(|info| {
        let slot = ContextId::new(&info.context_id).map(|context| Slot::of(&context));
        slot.is_ok_and(|slot| slots.contains(&slot) && !hidden.contains(&slot))
    });
    let next = if !more {
        None
    } else if next.is_empty() {
        last
    } else {
        Some(next)
    };
    Ok((Page { contexts, next }, hidden))
}

/// One page of several: complete up to where the first of them that has more ends.
fn merged(pages: Vec<Page>, limit: usize) -> Page {
    let end = pages.iter().filter_map(|page| page.next.clone()).min();
    let mut contexts: Vec<ContextInfo> = pages.into_iter().flat_map(|page| page.contexts).collect();
    contexts.retain(|info| end.as_ref().is_none_or(|end| info.context_id <= *end));
    contexts.sort_unstable_by(|a, b| a.context_id.cmp(&b.context_id));
    // A slot that moved meanwhile may have been listed by both.
    contexts.dedup_by(|later, earlier| later.context_id == earlier.context_id);
    if contexts.len() <= limit {
        return Page { contexts, next: end };
    }
    contexts.truncate(limit);
    let next = contexts.last().map(|info| info.context_id.clone());
    Page { contexts, next }
}

/// Cuts a page at a whole context to have at most so many bytes: always at least one.
fn fitting(mut page: Page, max_bytes: usize) -> Page {
    let mut bytes = 0;
    let fits = page.contexts.iter().take_while(|info| {
        bytes += info.encoded_len() + 4;
        bytes <= max_bytes
    });
    let fits = fits.count().max(1);
    if fits < page.contexts.len() {
        page.contexts.truncate(fits);
        page.next = page.contexts.last().map(|info| info.context_id.clone());
    }
    page
}

/// What nobody listed, by node and reason.
fn unlisted(left: &BTreeMap<Slot, Attempt>) -> Vec<UnlistedSlots> {
    let mut found: BTreeMap<(String, String), u32> = BTreeMap::new();
    for attempt in left.values() {
        let key = attempt.failure.as_ref().map_or_else(
            || (String::new(), "no node that keeps them can be asked".to_owned()),
            |(name, reason)| (name.to_string(), reason.clone()),
        );
        *found.entry(key).or_default() += 1;
    }
    let unlisted = |((node_id, reason), count)| UnlistedSlots { node_id, count, reason, slots: Bytes::new() };
    found.into_iter().map(unlisted).collect()
}

fn slots_of(bytes: &[u8]) -> Result<BTreeSet<Slot>, Refusal> {
    let wrong =
        || Refusal::field("slots", format!("slots must be two bytes for each of at most {SLOTS} slots"));
    let (numbers, rest) = bytes.as_chunks::<2>();
    if !rest.is_empty() || numbers.len() > usize::from(SLOTS) {
        return Err(wrong());
    }
    numbers.iter().map(|bytes| Slot::new(u16::from_le_bytes(*bytes)).ok_or_else(wrong)).collect()
}

fn to_bytes(slots: &BTreeSet<Slot>) -> Bytes {
    slots.iter().flat_map(|slot| slot.number().to_le_bytes()).collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(names: &[&str], next: Option<&str>) -> Page {
        let info = |name: &&str| ContextInfo { context_id: (*name).to_owned(), ..ContextInfo::default() };
        Page { contexts: names.iter().map(info).collect(), next: next.map(str::to_owned) }
    }

    #[test]
    fn pages_are_merged_up_to_where_the_first_that_has_more_ends() {
        let (one, two) = (|| page(&["a", "d"], Some("d")), || page(&["b", "c", "e", "f"], None));
        assert_eq!(merged(vec![one(), two()], 10), page(&["a", "b", "c", "d"], Some("d")));
        assert_eq!(merged(vec![one(), two()], 2), page(&["a", "b"], Some("b")));
        assert_eq!(merged(vec![two(), page(&[], Some("b"))], 10), page(&["b"], Some("b")));
        assert_eq!(merged(vec![two()], 10), two());
        assert_eq!(merged(vec![two(), page(&["c", "g"], None)], 9), page(&["b", "c", "e", "f", "g"], None));
        assert_eq!(merged(Vec::new(), 9), Page::default());
    }

    #[test]
    fn a_page_that_does_not_fit_goes_on_after_its_last_context() {
        let all = || page(&["a", "b", "c"], None);
        assert_eq!(fitting(all(), 1 << 20), all());
        assert_eq!(fitting(all(), 1), page(&["a"], Some("a")));
        assert_eq!(fitting(page(&[], Some("z")), 1), page(&[], Some("z")));
    }

    #[test]
    fn slots_that_another_node_names_are_checked() {
        let slots = BTreeSet::from([Slot::new(3).unwrap(), Slot::new(1023).unwrap()]);
        assert_eq!(slots_of(&to_bytes(&slots)).unwrap(), slots);
        for wrong in [&[1][..], &[0, 4], &[255, 255], &[0; 4098]] {
            assert!(slots_of(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn what_nobody_listed_is_named_with_its_reason() {
        let failed = |name: &str| Attempt {
            asked: BTreeSet::new(),
            failure: Some((NodeId::new(name).unwrap(), "no answer".to_owned())),
        };
        let slot = |number| Slot::new(number).unwrap();
        let left = [(slot(1), failed("b")), (slot(2), Attempt::default()), (slot(3), failed("b"))];
        let found = unlisted(&left.into_iter().collect());
        let found: Vec<_> = found.iter().map(|of| (&*of.node_id, of.count, &*of.reason)).collect();
        assert_eq!(found, [("", 1, "no node that keeps them can be asked"), ("b", 2, "no answer")]);
    }
}
