//! The nodes a client knows: a channel to each, and which ones to avoid for now.
//!
//! The client avoids a node whose connection failed for a moment, and one that never responded, because it cannot be
//! reached from here, longer each time, up to half a minute. A call avoids a node that asked it to come back later for as
//! long as the node asked: other calls may be about contexts that the node can serve. To avoid a node means to prefer
//! others. If the client avoids all, it takes the one that it may use again first, so that no past failure alone makes the
//! ledger unavailable.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::transport::Channel;

use super::{
    address::Address,
    connector::Connector,
    keepalive::{CallGuard, Keepalive},
};
use crate::{error::ClientError, options::Options};

/// Channels kept beside those to the configured addresses.
const MAX_OTHER_CHANNELS: usize = 64;
/// How long the client avoids a node after its connection failed; doubles each time if it has never responded.
const AVOID: Duration = Duration::from_secs(1);
/// The longest that the client avoids a node.
const AVOID_LONGEST: Duration = Duration::from_secs(30);

/// The nodes a client knows.
#[derive(Debug)]
pub(crate) struct Nodes {
    options: Options,
    configured: Vec<Address>,
    /// To the configured addresses. The only one is used without a lock.
    channels: Vec<Channel>,
    state: Mutex<NodesState>,
}

#[derive(Debug, Default)]
struct NodesState {
    nodes: HashMap<Address, Node>,
    /// The configured address for calls that any node can serve.
    current: usize,
    /// Counts uses of channels: the least recently used one is evicted.
    uses: u64,
}

#[derive(Debug)]
struct Node {
    channel: Channel,
    keepalive: Keepalive,
    last_used: u64,
    /// Failures in a row.
    failures: u32,
    has_responded: bool,
    avoided_until: Option<Instant>,
}

/// The nodes that asked one call to come back later, and when.
#[derive(Debug, Clone, Default)]
pub(crate) struct RetryAfter(Vec<(Address, Instant)>);

impl RetryAfter {
    /// Records that a node asked the call to stay away for `wait`; zero: it no longer does.
    pub(crate) fn add(&mut self, node: &Address, wait: Duration, now: Instant) {
        self.0.retain(|(known, until)| known != node && *until > now);
        if !wait.is_zero() {
            self.0.push((node.clone(), now + wait));
        }
    }

    /// Until when a node asked the call to stay away.
    pub(crate) fn until(&self, node: &Address) -> Option<Instant> {
        self.0.iter().find(|(known, _)| known == node).map(|(_, until)| *until)
    }
}

impl Nodes {
    /// The nodes at the configured addresses: at least one. Connects on first use.
    pub(crate) fn new(configured: Vec<Address>, options: Options) -> Result<Self, ClientError> {
        let mut nodes = Self { options, configured, channels: Vec::new(), state: Mutex::default() };
        nodes.channels =
            nodes.configured.iter().map(|address| nodes.channel(address)).collect::<Result<_, _>>()?;
        Ok(nodes)
    }

    /// The addresses that the caller configured.
    pub(crate) fn configured(&self) -> &[Address] {
        &self.configured
    }

    /// The configured address and its channel, if there is only one.
    pub(crate) fn single(&self) -> Option<(&Address, &Channel)> {
        match (self.configured.as_slice(), self.channels.as_slice()) {
            ([address], [channel]) => Some((address, channel)),
            _ => None,
        }
    }

    /// A channel to the node in use.
    pub(crate) fn current_channel(&self) -> Channel {
        if let Some((_, channel)) = self.single() {
            return channel.clone();
        }
        let any = self.choose(&RetryAfter::default());
        self.channel(&any).unwrap_or_else(|_| self.channels[0].clone())
    }

    /// The channel to a node, made if there is none.
    pub(crate) fn channel(&self, address: &Address) -> Result<Channel, ClientError> {
        let mut state = self.lock();
        state.uses += 1;
        let last_used = state.uses;
        if let Some(node) = state.nodes.get_mut(address) {
            node.last_used = last_used;
            return Ok(node.channel.clone());
        }
        let keepalive = Keepalive::default();
        let connector = Connector::new(self.options.connect_timeout, keepalive.clone());
        let channel = self.options.endpoint(address.as_str())?.connect_with_connector_lazy(connector);
        let node = Node {
            channel: channel.clone(),
            keepalive,
            last_used,
            failures: 0,
            has_responded: false,
            avoided_until: None,
        };
        state.nodes.insert(address.clone(), node);
        if state.nodes.len() > self.configured.len() + MAX_OTHER_CHANNELS {
            self.evict_channel(&mut state);
        }
        Ok(channel)
    }

    /// The node for a call that any node can serve: the same one as long as the client need not avoid it.
    pub(crate) fn choose(&self, retry_after: &RetryAfter) -> Address {
        self.choose_at(retry_after, Instant::now())
    }

    fn choose_at(&self, retry_after: &RetryAfter, now: Instant) -> Address {
        let mut state = self.lock();
        let count = self.configured.len();
        let free_at = |state: &NodesState, address: &Address| {
            state.avoided_until(address).max(retry_after.until(address)).unwrap_or(now)
        };
        for index in (state.current..state.current + count).map(|index| index % count) {
            let address = &self.configured[index];
            if free_at(&state, address) <= now {
                if state.avoided_until(&self.configured[state.current]).is_some_and(|until| until > now) {
                    state.current = index;
                }
                return address.clone();
            }
        }
        // Owners that other nodes named can serve the call too.
        let others = state.nodes.keys().filter(|address| free_at(&state, address) <= now);
        let free = others.min_by_key(|address| state.nodes.get(*address).map(|node| node.failures)).cloned();
        free.unwrap_or_else(|| {
            let first = self.configured.iter().min_by_key(|address| free_at(&state, address));
            first.unwrap_or(&self.configured[0]).clone()
        })
    }

    /// Whether to call a node only if there is no other.
    pub(crate) fn is_avoided(&self, address: &Address, retry_after: &RetryAfter) -> bool {
        self.is_avoided_at(address, retry_after, Instant::now())
    }

    fn is_avoided_at(&self, address: &Address, retry_after: &RetryAfter, now: Instant) -> bool {
        let until = self.lock().avoided_until(address).max(retry_after.until(address));
        until.is_some_and(|until| until > now)
    }

    /// How many connections to a node have closed. While the count stays the same, the node cannot have restarted.
    pub(crate) fn closed_connections(&self, address: &Address) -> u64 {
        self.lock().nodes.get(address).map_or(0, |node| node.keepalive.closed_connections())
    }

    /// Probes the connection to a node until the caller drops the guard: as long as a call is in flight. `None` if the
    /// client has forgotten the node.
    pub(crate) fn track_call(&self, address: &Address) -> Option<CallGuard> {
        let state = self.lock();
        let node = state.nodes.get(address)?;
        Some(node.keepalive.track_call(&node.channel, &self.options))
    }

    /// Records that a node responded.
    pub(crate) fn record_success(&self, address: &Address) {
        if self.single().is_some() {
            return;
        }
        if let Some(node) = self.lock().nodes.get_mut(address) {
            (node.failures, node.has_responded, node.avoided_until) = (0, true, None);
        }
    }

    /// Avoids a node no longer, because another node named it as an owner.
    pub(crate) fn clear_avoidance(&self, address: &Address) {
        if let Some(node) = self.lock().nodes.get_mut(address).filter(|node| node.has_responded) {
            node.avoided_until = None;
        }
    }

    /// Avoids a node for a while, because the connection to it failed.
    pub(crate) fn record_connection_failure(&self, address: &Address) {
        self.record_connection_failure_at(address, Instant::now());
    }

    fn record_connection_failure_at(&self, address: &Address, now: Instant) {
        let mut state = self.lock();
        let Some(node) = state.nodes.get_mut(address) else { return };
        let doubled = if node.has_responded { 0 } else { node.failures.min(10) };
        let avoid = AVOID.saturating_mul(1 << doubled).min(AVOID_LONGEST);
        node.failures = node.failures.saturating_add(1);
        node.avoided_until = Some(now + avoid);
    }

    /// Evicts the least recently used channel to an address that is not configured. Calls in flight on it continue.
    fn evict_channel(&self, state: &mut NodesState) {
        let others = state.nodes.iter().filter(|(address, _)| !self.configured.contains(address));
        let oldest = others.min_by_key(|(_, node)| node.last_used).map(|(address, _)| address.clone());
        if let Some(oldest) = oldest {
            state.nodes.remove(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, NodesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NodesState {
    fn avoided_until(&self, address: &Address) -> Option<Instant> {
        self.nodes.get(address)?.avoided_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(count: usize) -> Nodes {
        let given = Address::list((0..count).map(|n| format!("http://127.0.0.1:{}", n + 1))).unwrap();
        Nodes::new(given, Options::default()).unwrap()
    }

    #[tokio::test]
    async fn a_node_that_never_responded_is_avoided_longer_each_time_and_called_again() {
        let (nodes, nobody, begin) = (nodes(2), RetryAfter::default(), Instant::now());
        let (a, b) = (nodes.configured()[0].clone(), nodes.configured()[1].clone());
        assert_eq!(nodes.choose_at(&nobody, begin), a);
        nodes.record_connection_failure_at(&a, begin);
        assert_eq!(nodes.choose_at(&nobody, begin), b);
        nodes.record_connection_failure_at(&b, begin);
        assert_eq!(
            nodes.choose_at(&nobody, begin),
            a,
            "if all are avoided, the one that may be used again first"
        );
        nodes.record_connection_failure_at(&a, begin);
        assert_eq!(nodes.choose_at(&nobody, begin), b);
        let is_avoided = |node, after| nodes.is_avoided_at(node, &nobody, begin + after);
        assert!(!is_avoided(&b, AVOID) && is_avoided(&a, AVOID) && !is_avoided(&a, 2 * AVOID));
        for _ in 0..40 {
            nodes.record_connection_failure_at(&a, begin);
        }
        assert!(is_avoided(&a, AVOID_LONGEST / 2) && !is_avoided(&a, AVOID_LONGEST));
        assert_eq!(nodes.choose_at(&nobody, begin + AVOID), b);
        assert_eq!(nodes.choose_at(&nobody, begin + AVOID_LONGEST), b, "nobody changes without need");
        nodes.record_success(&a);
        assert!(!is_avoided(&a, Duration::ZERO));
        for _ in 0..3 {
            nodes.record_connection_failure_at(&a, begin);
        }
        assert!(is_avoided(&a, AVOID / 2) && !is_avoided(&a, AVOID), "it can be reached, when it is up");
        nodes.clear_avoidance(&a);
        assert!(!is_avoided(&a, Duration::ZERO));
    }

    #[tokio::test]
    async fn a_call_avoids_a_node_for_as_long_as_the_node_asked_it_to() {
        let (nodes, mut retry_after, begin) = (nodes(2), RetryAfter::default(), Instant::now());
        let (a, b) = (nodes.configured()[0].clone(), nodes.configured()[1].clone());
        let wait = Duration::from_secs(2);
        retry_after.add(&a, wait, begin);
        assert_eq!(nodes.choose_at(&retry_after, begin), b);
        assert_eq!(nodes.choose_at(&RetryAfter::default(), begin), a);
        assert_eq!(retry_after.until(&a), Some(begin + wait));
        retry_after.add(&b, wait / 2, begin);
        assert_eq!(nodes.choose_at(&retry_after, begin), b);
        assert_eq!(nodes.choose_at(&retry_after, begin + wait), a);
    }

    #[tokio::test]
    async fn channels_are_bounded_and_those_to_configured_addresses_stay() {
        let nodes = nodes(3);
        for n in 0..500 {
            nodes.channel(&Address::new(&format!("http://127.0.0.2:{}", n + 1)).unwrap()).unwrap();
        }
        let state = nodes.lock();
        assert_eq!(state.nodes.len(), 3 + MAX_OTHER_CHANNELS);
        assert!(nodes.configured().iter().all(|address| state.nodes.contains_key(address)));
    }
}
