//! The nodes a client knows: a channel to each that was used, and which ones are worth trying.
//!
//! A node that failed is avoided for a moment; one that never answered, because it cannot be reached from here,
//! longer each time, up to half a minute. A node that asked one call to come back later
//! is avoided by that call for as long as it asked: others may be about contexts that it can serve. To avoid
//! means to prefer others: if all are avoided, the one that is free first is tried, so that nothing is
//! unavailable because it once was.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tonic::transport::Channel;

use crate::{
    ClientError, Options,
    address::Address,
    connect::Connector,
    pulse::{Pulse, UnderWay},
};

/// Channels kept beside those to the addresses that were given.
const CHANNELS: usize = 64;
/// How long a node is avoided after its connection failed; doubles each time if it has never answered.
const AVOID: Duration = Duration::from_secs(1);
/// The longest that a node is avoided.
const AVOID_LONGEST: Duration = Duration::from_secs(30);

/// The nodes a client knows.
#[derive(Debug)]
pub(crate) struct Nodes {
    options: Options,
    given: Vec<Address>,
    /// To the given addresses: taken without a lock where there is only one.
    channels: Vec<Channel>,
    known: Mutex<KnownState>,
}

#[derive(Debug, Default)]
struct KnownState {
    nodes: HashMap<Address, Node>,
    /// Which of the given addresses is used for what any node can answer.
    current: usize,
    /// Counts uses: the channel used least recently makes room.
    uses: u64,
}

#[derive(Debug)]
struct Node {
    channel: Channel,
    pulse: Pulse,
    used: u64,
    /// Failures in a row.
    failures: u32,
    has_answered: bool,
    avoided_until: Option<Instant>,
}

/// The nodes that asked to be left alone by one call, and until when.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeftAlone(Vec<(Address, Instant)>);

impl LeftAlone {
    /// A node asked for it.
    pub(crate) fn add(&mut self, node: &Address, wait: Duration, now: Instant) {
        self.0.retain(|(known, until)| known != node && *until > now);
        if !wait.is_zero() {
            self.0.push((node.clone(), now + wait));
        }
    }

    /// Until when a node asked to be left alone.
    pub(crate) fn until(&self, node: &Address) -> Option<Instant> {
        self.0.iter().find(|(known, _)| known == node).map(|(_, until)| *until)
    }
}

impl Nodes {
    /// Nodes at addresses, of which there is at least one. Connects when first used.
    pub(crate) fn new(given: Vec<Address>, options: Options) -> Result<Self, ClientError> {
        let mut nodes = Self { options, given, channels: Vec::new(), known: Mutex::default() };
        nodes.channels =
            nodes.given.iter().map(|address| nodes.channel(address)).collect::<Result<_, _>>()?;
        Ok(nodes)
    }

    /// The addresses that were given.
    pub(crate) fn given(&self) -> &[Address] {
        &self.given
    }

    /// The address, if it is the only one.
    pub(crate) fn only(&self) -> Option<(&Address, &Channel)> {
        match (self.given.as_slice(), self.channels.as_slice()) {
            ([address], [channel]) => Some((address, channel)),
            _ => None,
        }
    }

    /// A channel to the node in use.
    pub(crate) fn any_channel(&self) -> Channel {
        if let Some((_, channel)) = self.only() {
            return channel.clone();
        }
        let any = self.any(&LeftAlone::default());
        self.channel(&any).unwrap_or_else(|_| self.channels[0].clone())
    }

    /// A channel to a node: the one there is, or a new one.
    pub(crate) fn channel(&self, address: &Address) -> Result<Channel, ClientError> {
        let mut known = self.lock();
        known.uses += 1;
        let used = known.uses;
        if let Some(node) = known.nodes.get_mut(address) {
            node.used = used;
            return Ok(node.channel.clone());
        }
        let pulse = Pulse::default();
        let connector = Connector::new(self.options.connect_timeout, pulse.clone());
        let channel = self.options.endpoint(address.as_str())?.connect_with_connector_lazy(connector);
        let node = Node {
            channel: channel.clone(),
            pulse,
            used,
            failures: 0,
            has_answered: false,
            avoided_until: None,
        };
        known.nodes.insert(address.clone(), node);
        if known.nodes.len() > self.given.len() + CHANNELS {
            self.make_room(&mut known);
        }
        Ok(channel)
    }

    /// The node for what any node can answer: the same one as long as it can.
    pub(crate) fn any(&self, left_alone: &LeftAlone) -> Address {
        self.any_at(left_alone, Instant::now())
    }

    fn any_at(&self, left_alone: &LeftAlone, now: Instant) -> Address {
        let mut known = self.lock();
        let count = self.given.len();
        let free_at = |known: &KnownState, address: &Address| {
            known.avoided_until(address).max(left_alone.until(address)).unwrap_or(now)
        };
        for index in (known.current..known.current + count).map(|index| index % count) {
            let address = &self.given[index];
            if free_at(&known, address) <= now {
                if known.avoided_until(&self.given[known.current]).is_some_and(|until| until > now) {
                    known.current = index;
                }
                return address.clone();
            }
        }
        // Owners that were told of know as much.
        let others = known.nodes.keys().filter(|address| free_at(&known, address) <= now);
        let free = others.min_by_key(|address| known.nodes.get(*address).map(|node| node.failures)).cloned();
        free.unwrap_or_else(|| {
            let first = self.given.iter().min_by_key(|address| free_at(&known, address));
            first.unwrap_or(&self.given[0]).clone()
        })
    }

    /// Whether a node should be tried only if there is no other.
    pub(crate) fn is_avoided(&self, address: &Address, left_alone: &LeftAlone) -> bool {
        self.is_avoided_at(address, left_alone, Instant::now())
    }

    fn is_avoided_at(&self, address: &Address, left_alone: &LeftAlone, now: Instant) -> bool {
        let until = self.lock().avoided_until(address).max(left_alone.until(address));
        until.is_some_and(|until| until > now)
    }

    /// How many connections to a node have ended: unchanged, it is the node it was.
    pub(crate) fn ends(&self, address: &Address) -> u64 {
        self.lock().nodes.get(address).map_or(0, |node| node.pulse.ends())
    }

    /// A call to a node begins, and is under way until what this gives is dropped: then the connection is watched. `None`
    /// if the node is not known any more.
    pub(crate) fn under_way(&self, address: &Address) -> Option<UnderWay> {
        let known = self.lock();
        let node = known.nodes.get(address)?;
        Some(node.pulse.under_way(&node.channel, &self.options))
    }

    /// A node answered.
    pub(crate) fn answered(&self, address: &Address) {
        if self.only().is_some() {
            return;
        }
        if let Some(node) = self.lock().nodes.get_mut(address) {
            (node.failures, node.has_answered, node.avoided_until) = (0, true, None);
        }
    }

    /// Another node sends callers to this one.
    pub(crate) fn recommended(&self, address: &Address) {
        if let Some(node) = self.lock().nodes.get_mut(address).filter(|node| node.has_answered) {
            node.avoided_until = None;
        }
    }

    /// The connection to a node failed.
    pub(crate) fn broke(&self, address: &Address) {
        self.broke_at(address, Instant::now());
    }

    fn broke_at(&self, address: &Address, now: Instant) {
        let mut known = self.lock();
        let Some(node) = known.nodes.get_mut(address) else { return };
        let doubled = if node.has_answered { 0 } else { node.failures.min(10) };
        let avoid = AVOID.saturating_mul(1 << doubled).min(AVOID_LONGEST);
        node.failures = node.failures.saturating_add(1);
        node.avoided_until = Some(now + avoid);
    }

    /// Gives up the channel used least recently of those that were not given. Calls on it go on.
    fn make_room(&self, known: &mut KnownState) {
        let others = known.nodes.iter().filter(|(address, _)| !self.given.contains(address));
        let oldest = others.min_by_key(|(_, node)| node.used).map(|(address, _)| address.clone());
        if let Some(oldest) = oldest {
            known.nodes.remove(&oldest);
        }
    }

    fn lock(&self) -> MutexGuard<'_, KnownState> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownState {
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
    async fn a_node_that_never_answered_is_avoided_longer_each_time_and_tried_again() {
        let (nodes, nobody, begin) = (nodes(2), LeftAlone::default(), Instant::now());
        let (a, b) = (nodes.given()[0].clone(), nodes.given()[1].clone());
        assert_eq!(nodes.any_at(&nobody, begin), a);
        nodes.broke_at(&a, begin);
        assert_eq!(nodes.any_at(&nobody, begin), b);
        nodes.broke_at(&b, begin);
        assert_eq!(nodes.any_at(&nobody, begin), a, "if all are avoided, the one that is free first");
        nodes.broke_at(&a, begin);
        assert_eq!(nodes.any_at(&nobody, begin), b);
        let is_avoided = |node, after| nodes.is_avoided_at(node, &nobody, begin + after);
        assert!(!is_avoided(&b, AVOID) && is_avoided(&a, AVOID) && !is_avoided(&a, 2 * AVOID));
        for _ in 0..40 {
            nodes.broke_at(&a, begin);
        }
        assert!(is_avoided(&a, AVOID_LONGEST / 2) && !is_avoided(&a, AVOID_LONGEST));
        assert_eq!(nodes.any_at(&nobody, begin + AVOID), b);
        assert_eq!(nodes.any_at(&nobody, begin + AVOID_LONGEST), b, "nobody changes without need");
        nodes.answered(&a);
        assert!(!is_avoided(&a, Duration::ZERO));
        for _ in 0..3 {
            nodes.broke_at(&a, begin);
        }
        assert!(is_avoided(&a, AVOID / 2) && !is_avoided(&a, AVOID), "it can be reached, when it is up");
        nodes.recommended(&a);
        assert!(!is_avoided(&a, Duration::ZERO));
    }

    #[tokio::test]
    async fn a_node_is_left_alone_for_as_long_as_it_asks_by_the_call_it_asked() {
        let (nodes, mut left_alone, begin) = (nodes(2), LeftAlone::default(), Instant::now());
        let (a, b) = (nodes.given()[0].clone(), nodes.given()[1].clone());
        let wait = Duration::from_secs(2);
        left_alone.add(&a, wait, begin);
        assert_eq!(nodes.any_at(&left_alone, begin), b);
        assert_eq!(nodes.any_at(&LeftAlone::default(), begin), a);
        assert_eq!(left_alone.until(&a), Some(begin + wait));
        left_alone.add(&b, wait / 2, begin);
        assert_eq!(nodes.any_at(&left_alone, begin), b);
        assert_eq!(nodes.any_at(&left_alone, begin + wait), a);
    }

    #[tokio::test]
    async fn channels_are_bounded_and_those_to_given_addresses_stay() {
        let nodes = nodes(3);
        for n in 0..500 {
            nodes.channel(&Address::new(&format!("http://127.0.0.2:{}", n + 1)).unwrap()).unwrap();
        }
        let known = nodes.lock();
        assert_eq!(known.nodes.len(), 3 + CHANNELS);
        assert!(nodes.given().iter().all(|address| known.nodes.contains_key(address)));
    }
}
