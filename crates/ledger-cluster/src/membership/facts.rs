//! What a node reports about itself, and the keys under which gossip carries it.
//!
//! | key | value |
//! | --- | --- |
//! | `grpc` | the address of its gRPC service, `host:port` |
//! | `storage` | the id of its data directory, 32 hex digits |
//! | `ready` | `joining`, `ready`, `draining`, `read-only` or `decommission` |
//! | `zone` | its location, any short text |
//! | `format` | version of its storage format, decimal |
//! | `load` | entries per second and contexts, decimal, with a comma between |
//! | `pulse` | a number that changes about every second, see [`PULSE`] |
//! | `cluster` | the identity of the cluster that it belongs to, 32 hex digits; empty: none yet |
//! | `greets` | `1`: it takes part in authenticated sessions between nodes |
//! | `opened` | the durable index at which this start opened its data directory, decimal, see [`super::durability`] |
//! | `durable` | the durable index now, decimal |
//! | `leaves` | `no`, `replaced` or `fewer`: whether and how it is being decommissioned, see [`DecommissionMode`] |
//! | `slots.0` … `slots.15` | the slots it owns, see [`owned`] |
//! | `halted` | those of them for which it accepts no appends at the moment, see [`owned::encode_set`] |
//!
//! Each value is meaningful by itself, because gossip may deliver them one by one. A malformed value is ignored and
//! counted, and the previous one remains valid. An unknown key is of a newer version.

use std::fmt;

use ledger_core::{
    Epoch,
    node::{ClusterId, StorageId},
    ownership::slot_manager::DecommissionMode,
    plausible::MAX_DURABLE_INDEX,
    slot::Slot,
};

use super::owned;

/// Longest address or zone, in bytes.
pub const MAX_TEXT: usize = 253;

/// Why a fact about a node was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {text:?} must have 1 to {MAX_TEXT} bytes without blanks and control characters")]
pub struct BadText {
    what: &'static str,
    text: String,
}

pub(super) fn check(what: &'static str, text: &str) -> Result<(), BadText> {
    let good =
        (1..=MAX_TEXT).contains(&text.len()) && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    if good { Ok(()) } else { Err(BadText { what, text: text.chars().take(MAX_TEXT).collect() }) }
}

/// What a node announces to be ready for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Readiness {
    /// It started and is catching up.
    #[default]
    Joining,
    /// It serves.
    Ready,
    /// It serves and is transferring its slots to other nodes.
    Draining,
    /// It serves reads, and its disk accepts no writes.
    ReadOnly,
    /// It is stopping; this incarnation will not be heard again.
    Leaving,
}

impl Readiness {
    const ALL: [Self; 5] = [Self::Joining, Self::Ready, Self::Draining, Self::ReadOnly, Self::Leaving];

    /// Returns its name in gossip.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::ReadOnly => "read-only",
            Self::Leaving => "leaving",
        }
    }
}

/// The load of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NodeLoad {
    /// Entries appended per second, recently.
    pub entries_per_second: u64,
    /// Number of contexts that it holds.
    pub contexts: u64,
}

/// What a node reports about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The address of its gRPC service for other nodes and clients: `host:port`.
    pub grpc_address: String,
    /// Identity of its data directory.
    pub storage_id: StorageId,
    /// What it is ready for.
    pub readiness: Readiness,
    /// Its zone or rack, over which copies are spread; may be empty.
    pub zone: String,
    /// Version of its storage format.
    pub format: u32,
    /// Its load.
    pub load: NodeLoad,
    /// The durable index at which this start opened its data directory ([`ledger_store::Ledger::opening_index`]);
    /// `None`: not announced.
    pub opened: Option<u64>,
    /// The durable index now ([`ledger_store::Ledger::durable_index`]); `None`: not announced.
    pub durable: Option<u64>,
    /// Whether it is being decommissioned.
    pub decommission: Option<DecommissionMode>,
    /// The slots it owns, each once, with the epoch it owns it in.
    pub owned: Vec<(Slot, Epoch)>,
    /// Those of them for which it accepts no appends at the moment, because too few copies are in sync; ordered.
    pub halted: Vec<Slot>,
}

impl Facts {
    pub(super) fn validate(&self) -> Result<(), BadText> {
        check("gRPC address", &self.grpc_address)?;
        if self.zone.is_empty() { Ok(()) } else { check("zone", &self.zone) }
    }

    /// Returns the keys and values for gossip, the essential ones first. Gossip delivers them in this order, so a
    /// node that can contact this one has also heard whether its directory was rolled back.
    pub fn to_values(&self) -> Vec<(String, String)> {
        let NodeLoad { entries_per_second, contexts } = self.load;
        let mark = |key: &str, mark: Option<u64>| mark.map(|mark| (key.to_owned(), mark.to_string()));
        let mut values = Vec::from_iter(mark(OPENED, self.opened));
        values.extend([
            ("grpc".to_owned(), self.grpc_address.clone()),
            ("storage".to_owned(), self.storage_id.to_string()),
            ("ready".to_owned(), self.readiness.as_str().to_owned()),
            ("format".to_owned(), self.format.to_string()),
            ("zone".to_owned(), self.zone.clone()),
            (GREETS.to_owned(), "1".to_owned()),
            ("load".to_owned(), format!("{entries_per_second},{contexts}")),
            (LEAVES.to_owned(), decommission_text(self.decommission).to_owned()),
        ]);
        values.extend(mark(DURABLE, self.durable));
        let slots = owned::encode(&self.owned).into_iter().enumerate();
        values.extend(slots.map(|(group, value)| (format!("{SLOTS_PREFIX}{group}"), value)));
        values.push((HALTED.to_owned(), owned::encode_set(&self.halted)));
        values
    }
}

const SLOTS_PREFIX: &str = "slots.";
/// Nodes that predate sessions lack this key.
const GREETS: &str = "greets";
const OPENED: &str = "opened";
const DURABLE: &str = "durable";
const LEAVES: &str = "leaves";
const HALTED: &str = "halted";

const fn decommission_text(leaving: Option<DecommissionMode>) -> &'static str {
    match leaving {
        None => "no",
        Some(DecommissionMode::Replaced) => "replaced",
        Some(DecommissionMode::AllowFewer) => "fewer",
    }
}

/// The key of the cluster that the node belongs to. The task that keeps the view publishes it, because it changes
/// while the node runs.
pub(super) const CLUSTER: &str = "cluster";

/// The key of a number that keeps changing. A node that receives nothing is still heard: others see its heartbeat in
/// its requests. But others learn its values only from its responses, and it never responds. So a node whose pulse
/// stands still is cut off, even if its heartbeat advances.
pub(super) const PULSE: &str = "pulse";

/// What was heard of a node so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GossipedFacts {
    grpc_address: Option<String>,
    storage_id: Option<StorageId>,
    readiness: Readiness,
    zone: String,
    format: u32,
    load: NodeLoad,
    pulse: Option<u64>,
    greets: bool,
    cluster: Option<ClusterId>,
    opened: Option<u64>,
    durable: Option<u64>,
    leaving: Option<DecommissionMode>,
    owned: [Vec<(Slot, Epoch)>; owned::GROUPS as usize],
    halted: Vec<Slot>,
}

/// The outcome of reading a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ParseOutcome {
    Parsed,
    /// The key is unknown.
    Unknown,
    /// The value is malformed; the previous one remains valid.
    Bad,
}

impl GossipedFacts {
    /// Reads a value. Accepts any text.
    pub(super) fn read(&mut self, key: &str, value: &str) -> ParseOutcome {
        let taken = match key {
            "grpc" => check("", value).ok().map(|()| self.grpc_address = Some(value.to_owned())),
            "storage" => StorageId::parse(value).map(|id| self.storage_id = Some(id)),
            "ready" => Readiness::ALL
                .into_iter()
                .find(|readiness| readiness.as_str() == value)
                .map(|readiness| self.readiness = readiness),
            "format" => decimal(value).map(|format| self.format = format),
            "zone" => {
                (value.is_empty() || check("", value).is_ok()).then(|| value.clone_into(&mut self.zone))
            }
            "load" => NodeLoad::parse(value).map(|load| self.load = load),
            PULSE => decimal(value).map(|pulse| self.pulse = Some(pulse)),
            CLUSTER => {
                let id = ClusterId::parse(value);
                (id.is_some() || value.is_empty()).then(|| self.cluster = id)
            }
            GREETS => (value == "1").then(|| self.greets = true),
            OPENED => parse_durable_index(value).map(|mark| self.opened = Some(mark)),
            DURABLE => parse_durable_index(value).map(|mark| self.durable = Some(mark)),
            LEAVES => [None, Some(DecommissionMode::Replaced), Some(DecommissionMode::AllowFewer)]
                .into_iter()
                .find(|leaving| decommission_text(*leaving) == value)
                .map(|leaving| self.leaving = leaving),
            HALTED => owned::decode_set(value).map(|halted| self.halted = halted),
            _ => {
                let digits = key.strip_prefix(SLOTS_PREFIX).unwrap_or_default();
                // Allow one spelling per group, so that a node cannot have more of these keys than there are groups.
                let group = decimal::<u16>(digits).filter(|group| group.to_string() == digits);
                let Some((group, known)) =
                    group.and_then(|group| Some((group, self.owned.get_mut(usize::from(group))?)))
                else {
                    return ParseOutcome::Unknown;
                };
                owned::decode(group, value).map(|slots| *known = slots)
            }
        };
        if taken.is_some() { ParseOutcome::Parsed } else { ParseOutcome::Bad }
    }

    /// Returns the pulse, if the node announced one.
    pub(super) const fn pulse(&self) -> Option<u64> {
        self.pulse
    }

    /// Returns the cluster that the node belongs to.
    pub(super) const fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// Returns whether the node takes part in sessions.
    pub(super) const fn greets(&self) -> bool {
        self.greets
    }

    /// Returns the facts, once enough was heard to contact the node.
    pub(super) fn facts(&self) -> Option<Facts> {
        Some(Facts {
            grpc_address: self.grpc_address.clone()?,
            storage_id: self.storage_id?,
            readiness: self.readiness,
            zone: self.zone.clone(),
            format: self.format,
            load: self.load,
            opened: self.opened,
            durable: self.durable,
            decommission: self.leaving,
            owned: self.owned.concat(),
            halted: self.halted.clone(),
        })
    }
}

/// Combines keys and values of a node into its facts; also returns how many values were malformed.
#[doc(hidden)]
pub fn read_values<'a>(values: impl IntoIterator<Item = (&'a str, &'a str)>) -> (Option<Facts>, usize) {
    let mut heard = GossipedFacts::default();
    let bad = values.into_iter().filter(|(key, value)| heard.read(key, value) == ParseOutcome::Bad).count();
    (heard.facts(), bad)
}

impl NodeLoad {
    fn parse(text: &str) -> Option<Self> {
        let (entries_per_second, contexts) = text.split_once(',')?;
        Some(Self { entries_per_second: decimal(entries_per_second)?, contexts: decimal(contexts)? })
    }
}

/// Parses a durable index, and refuses values that no directory can reach.
fn parse_durable_index(text: &str) -> Option<u64> {
    decimal(text).filter(|mark| *mark <= MAX_DURABLE_INDEX)
}

/// Parses digits only: `u64::from_str` would accept a sign too.
fn decimal<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> Facts {
        Facts {
            grpc_address: "ledger-0.ledger:9090".into(),
            storage_id: StorageId([0xab; 16]),
            readiness: Readiness::Draining,
            zone: "eu-1a".into(),
            format: 3,
            load: NodeLoad { entries_per_second: 12, contexts: 345 },
            opened: Some(6),
            durable: Some(MAX_DURABLE_INDEX),
            decommission: Some(DecommissionMode::AllowFewer),
            owned: vec![
                (Slot::new(3).unwrap(), Epoch(9)),
                (Slot::new(1000).unwrap(), Epoch::new(1 << 31, 7)),
            ],
            halted: vec![Slot::new(1000).unwrap()],
        }
    }

    #[test]
    fn facts_survive_gossip() {
        let mut heard = GossipedFacts::default();
        for (key, value) in facts().to_values() {
            assert_eq!(heard.facts().is_some(), !matches!(&*key, "opened" | "grpc" | "storage"), "{key}");
            assert_eq!(heard.read(&key, &value), ParseOutcome::Parsed, "{key}={value}");
        }
        assert_eq!(heard.facts(), Some(facts()));
    }

    #[test]
    fn a_bad_value_leaves_what_was_known() {
        let mut heard = GossipedFacts::default();
        for (key, value) in facts().to_values() {
            heard.read(&key, &value);
        }
        let long = "x".repeat(254);
        let unfollowed = owned::encode(&[(Slot::new(0).unwrap(), Epoch(u64::MAX))])[0].clone();
        for (key, value) in [
            ("grpc", ""),
            ("grpc", "a b"),
            ("grpc", "a\nb"),
            ("grpc", &long),
            ("storage", "ab"),
            ("storage", &long),
            ("ready", "READY"),
            ("ready", ""),
            ("zone", "a\tb"),
            ("zone", &long),
            ("format", "-1"),
            ("format", "+1"),
            ("format", ""),
            ("format", "4294967296"),
            ("load", "1"),
            ("load", "1,2,3"),
            ("load", "1,-2"),
            ("load", "1,18446744073709551616"),
            ("opened", ""),
            ("opened", "-1"),
            ("durable", "18446744073709551616"),
            // No larger number could follow these.
            ("durable", "72057594037927936"),
            ("opened", "18446744073709551615"),
            ("greets", "yes"),
            ("cluster", "none"),
            ("cluster", &long),
            ("slots.0", &unfollowed),
            ("leaves", ""),
            ("leaves", "NO"),
            ("slots.0", "?"),
            ("slots.15", "A"),
            ("slots.15", &long),
            ("halted", "?"),
            ("halted", &long),
        ] {
            assert_eq!(heard.read(key, value), ParseOutcome::Bad, "{key}={value}");
        }
        for key in
            ["", "slots", "slots.", "slots.16", "slots.-1", "slots.07", "slots.99999999", "grpc2", "Grpc"]
        {
            assert_eq!(heard.read(key, "x"), ParseOutcome::Unknown, "{key}");
        }
        assert_eq!(heard.facts(), Some(facts()));
    }

    #[test]
    fn a_bad_name_is_refused() {
        for bad in ["a b", "a\u{7}", &"x".repeat(254)] {
            assert!(Facts { zone: bad.to_owned(), ..facts() }.validate().is_err(), "{bad:?}");
        }
        assert!(Facts { grpc_address: String::new(), ..facts() }.validate().is_err());
        assert!(Facts { zone: String::new(), ..facts() }.validate().is_ok());
    }

    proptest! {
        #[test]
        fn any_text_may_come_in(key in "(grpc|storage|ready|format|zone|load|opened|durable|leaves|halted|slots\\.[0-9]{1,2})", value in any::<String>()) {
            GossipedFacts::default().read(&key, &value);
        }
    }
}
