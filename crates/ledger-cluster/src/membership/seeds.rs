//! Where a node looks for other nodes: addresses and DNS names, given as `host:port`.
//!
//! chitchat gets the addresses and greets one of them now and then while it runs. This module keeps the names and
//! looks them up repeatedly: a headless service resolves to the current pods, and a node that starts first must find
//! those that start later. chitchat would look up names too, but only once a minute, and with a warning for each
//! failed attempt.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::SocketAddr,
    time::Duration,
};

use futures::future::join_all;
use ledger_store::limited;
use tokio::{net::lookup_host, time::timeout};

#[cfg(test)]
mod tests;

/// Most seeds that are accepted.
pub const MAX_SEEDS: usize = 64;
/// Most addresses of one name that are used: the lowest ones, so that all nodes use the same.
pub const MAX_ADDRESSES: usize = 64;

const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest DNS name, in bytes (RFC 1035 §2.3.4).
const MAX_NAME: usize = 253;

/// Why the seeds were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SeedError {
    /// A seed is not of the form `host:port`.
    #[error(
        "seed {seed:?} is not host:port, address:port or [IPv6 address]:port with a port from 1 to 65535"
    )]
    NotHostPort {
        /// As given.
        seed: String,
    },
    /// There are too many.
    #[error(
        "{count} seeds are given: at most {MAX_SEEDS} are allowed, and one DNS name may stand for many nodes"
    )]
    TooMany {
        /// Number of seeds given.
        count: usize,
    },
}

/// The seeds, sorted into addresses and names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seeds {
    addresses: BTreeSet<SocketAddr>,
    names: BTreeSet<String>,
}

impl Seeds {
    /// Checks and sorts seeds.
    ///
    /// # Errors
    /// [`SeedError`] if a seed is malformed or there are too many.
    pub fn parse<S: AsRef<str>>(seeds: &[S]) -> Result<Self, SeedError> {
        if seeds.len() > MAX_SEEDS {
            return Err(SeedError::TooMany { count: seeds.len() });
        }
        let mut parsed = Self::default();
        for seed in seeds {
            let seed = seed.as_ref().trim();
            let refused = || SeedError::NotHostPort { seed: seed.chars().take(300).collect() };
            if let Ok(address) = seed.parse::<SocketAddr>() {
                if address.port() == 0 {
                    return Err(refused());
                }
                parsed.addresses.insert(address);
                continue;
            }
            let (host, port) = seed.rsplit_once(':').ok_or_else(refused)?;
            let port_is_good = port.parse::<u16>().is_ok_and(|port| port > 0);
            let host_is_good = (1..=MAX_NAME).contains(&host.len())
                && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
            if !port_is_good || !host_is_good {
                return Err(refused());
            }
            parsed.names.insert(seed.to_owned());
        }
        Ok(parsed)
    }

    /// Returns the seeds that are addresses.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addresses.iter().copied()
    }

    /// Returns whether any seed is a name that must be looked up.
    pub fn has_names(&self) -> bool {
        !self.names.is_empty()
    }
}

/// The names among the seeds and what each one last resolved to.
#[derive(Debug)]
pub struct Resolver {
    names: BTreeMap<String, Name>,
    ipv4_only: bool,
}

#[derive(Debug, Default)]
struct Name {
    /// The addresses of the last lookup that found any.
    addresses: BTreeSet<SocketAddr>,
    failing: bool,
}

/// What deserves a log line: a change, not an attempt.
#[derive(Debug, PartialEq, Eq)]
enum News {
    Found,
    Failed(String),
}

impl Resolver {
    /// Creates a resolver of the names among the seeds, for a socket bound to `listen`: an IPv4 socket reaches no
    /// IPv6 address.
    pub fn new(seeds: &Seeds, listen: SocketAddr) -> Self {
        let names = seeds.names.iter().map(|name| (name.clone(), Name::default())).collect();
        Self { names, ipv4_only: listen.is_ipv4() }
    }

    /// Looks up all names concurrently, and returns the addresses known now. A name that fails keeps its previous
    /// addresses, because DNS may be down while the cluster is up.
    pub async fn resolve(&mut self) -> HashSet<SocketAddr> {
        let lookups = self.names.keys().map(|name| async {
            let lookup = match timeout(LOOKUP_TIMEOUT, lookup_host(name.as_str())).await {
                Ok(Ok(found)) => Ok(found.collect()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {} s", LOOKUP_TIMEOUT.as_secs())),
            };
            (name.clone(), lookup)
        });
        for (name, lookup) in join_all(lookups).await {
            match self.note(&name, lookup) {
                Some(News::Found) => {
                    let addresses = self.names.get(&name).map(|name| &name.addresses);
                    limited!(info, seed = name, ?addresses, "a seed's name was looked up");
                }
                Some(News::Failed(error)) => {
                    limited!(warn, seed = name, error, "a seed's name can't be looked up; trying on");
                }
                None => {}
            }
        }
        self.names.values().flat_map(|name| &name.addresses).copied().collect()
    }

    /// Records the outcome of a lookup, and returns what changed.
    fn note(&mut self, name: &str, lookup: Result<Vec<SocketAddr>, String>) -> Option<News> {
        let ipv4_only = self.ipv4_only;
        let name = self.names.get_mut(name)?;
        let reachable = lookup.and_then(|found| {
            let mut all: BTreeSet<_> =
                found.into_iter().filter(|address| address.is_ipv4() || !ipv4_only).collect();
            while all.len() > MAX_ADDRESSES {
                all.pop_last();
            }
            if all.is_empty() {
                Err("it has no address that this node can reach".to_owned())
            } else {
                Ok(all)
            }
        });
        match reachable {
            Ok(found) => {
                let news = name.failing || name.addresses != found;
                *name = Name { addresses: found, failing: false };
                news.then_some(News::Found)
            }
            Err(error) => {
                let news = !name.failing;
                name.failing = true;
                news.then_some(News::Failed(error))
            }
        }
    }
}
