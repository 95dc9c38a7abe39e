//! What other nodes send: gossip, from the datagram to what a node says of itself, and the messages of replication.

use std::net::SocketAddr;

use ledger_cluster::{
    fuzzing,
    membership::gossip::{
        MAX_DATAGRAM,
        parts::{Assembler, MAX_PARTS, PART, PartOutcome, split},
    },
    membership::seal::{Keyring, Sealer},
    membership::{Facts, NodeLoad, Readiness, owned},
};
use ledger_core::{
    Epoch,
    node::StorageId,
    slot::{SLOTS, Slot},
};

use crate::Outcome;

/// With keys, without, and of another cluster.
fn sealers() -> [Sealer; 3] {
    let keys = || Keyring::of(&[[1; 32], [2; 32]]);
    [Sealer::new("fuzz", keys()), Sealer::new("fuzz", Keyring::none()), Sealer::new("other", keys())]
}

/// Datagrams of all of these, empty and full.
pub(super) fn sealed_seeds() -> Vec<Vec<u8>> {
    let payloads = [&b""[..], b"gossip", &[7; MAX_DATAGRAM]];
    let seal = |payload| sealers().map(|sealer| sealer.seal(payload).unwrap_or_default());
    payloads.into_iter().flat_map(seal).collect()
}

/// Law: what opens seals to something that opens to the same, and nothing opens in two clusters.
pub(super) fn run_sealed(input: &[u8]) -> Outcome {
    let opened = sealers().map(|sealer| {
        let opened = sealer.open(input);
        if let Ok(payload) = &opened {
            let again = sealer.seal(payload).map(|datagram| sealer.open(&datagram));
            assert!(again.is_err() || again == Ok(opened.clone()), "what opened does not open again");
        }
        opened
    });
    assert!(opened.iter().filter(|opened| opened.is_ok()).count() <= 1, "it opens in two clusters");
    let told = opened.map(|opened| match opened {
        Ok(payload) => format!("open {}", "x".repeat(payload.len().checked_ilog2().unwrap_or(0) as usize)),
        Err(error) => error.to_string(),
    });
    Outcome::of(&told.join("; "))
}

/// Parts of messages, each after its sender and its length.
pub(super) fn parts_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for len in [1, PART, 3 * PART + 5] {
        let parts = split(7, &vec![9; len]).unwrap_or_default();
        let framed = |port: u8| {
            let framed = |part: &Vec<u8>| [&[port], &(part.len() as u16).to_be_bytes()[..], part].concat();
            parts.iter().flat_map(framed).collect::<Vec<u8>>()
        };
        seeds.push(framed(1));
        seeds.push([framed(1), framed(2)].concat());
        seeds.push(
            parts.iter().rev().flat_map(|part| [&[3, 0, 12], &part[..part.len().min(12)]].concat()).collect(),
        );
    }
    seeds
}

/// Law: no message is longer than its parts can make it.
pub(super) fn run_parts(input: &[u8]) -> Outcome {
    let mut assembler = Assembler::default();
    let mut told = String::new();
    let mut rest = input;
    while let Some((&[port, high, low], more)) = rest.split_first_chunk::<3>() {
        let len = usize::from(u16::from_be_bytes([high, low])).min(more.len());
        let (part, more) = more.split_at(len);
        rest = more;
        let word = match assembler.take(SocketAddr::from(([127, 0, 0, 1], port.into())), part) {
            PartOutcome::Message(message) => {
                assert!(!message.is_empty() && message.len() <= PART * MAX_PARTS);
                "message "
            }
            PartOutcome::Incomplete { dropped: 0 } => "waiting ",
            PartOutcome::Incomplete { .. } => "given-up ",
            PartOutcome::Malformed => "malformed ",
        };
        // What comes again and again is one outcome.
        if told.len() < 60 && !told.ends_with(word) {
            told.push_str(word);
        }
    }
    Outcome::of(&told)
}

/// What nodes say of themselves, a line each.
pub(super) fn facts_seeds() -> Vec<Vec<u8>> {
    let all = (0..SLOTS).filter_map(Slot::new);
    let owned: [Vec<(Slot, Epoch)>; 3] = [
        Vec::new(),
        all.clone().map(|slot| (slot, Epoch::new(3, 9))).collect(),
        all.filter(|slot| slot.number() % 3 == 0).map(|slot| (slot, Epoch(slot.number().into()))).collect(),
    ];
    let facts = owned.into_iter().map(|owned| Facts {
        grpc_address: "10.0.0.1:50051".to_owned(),
        storage_id: StorageId([3; 16]),
        readiness: Readiness::Ready,
        zone: "eu-1".to_owned(),
        format: 1,
        load: NodeLoad { entries_per_second: 12, contexts: 34 },
        opened: Some(56),
        durable: Some(78),
        decommission: None,
        halted: owned.iter().map(|(slot, _)| *slot).step_by(2).collect(),
        owned,
    });
    let lines = |facts: Facts| {
        let line = |(key, value): (String, String)| format!("{key}={value}\n");
        facts.to_values().into_iter().map(line).collect::<String>().into_bytes()
    };
    facts.map(lines).collect()
}

/// Law: what was read is said again in a way that reads the same; slots come in order, each once.
pub(super) fn run_facts(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let pairs: Vec<_> = text.lines().filter_map(|line| line.split_once('=')).collect();
    let (facts, bad) = fuzzing::read_values(pairs.iter().copied());
    for (key, value) in &pairs {
        let group = key.strip_prefix("slots.").and_then(|group| group.parse().ok());
        if let Some(slots) = group.and_then(|group| owned::decode(group, value)) {
            assert!(slots.len() <= 64 && slots.is_sorted_by(|a, b| a.0 < b.0));
        }
    }
    let Some(facts) = facts else { return Outcome::of(&format!("nothing {}", "bad ".repeat(bad.min(9)))) };
    let values = facts.to_values();
    let said = values.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    let (again, bad_again) = fuzzing::read_values(said);
    assert_eq!((Some(&facts), 0), (again.as_ref(), bad_again));
    let size = "slot ".repeat((facts.owned.len().checked_ilog2().unwrap_or(0)) as usize);
    Outcome::of(&format!("{} {size} {}", facts.readiness, "bad ".repeat(bad.min(9))))
}

/// Messages, each after a byte that says which one it is.
pub(super) fn message_seeds() -> Vec<Vec<u8>> {
    let framed = |(kind, message): (usize, Vec<u8>)| [&[kind as u8], &message[..]].concat();
    fuzzing::messages().into_iter().map(framed).collect()
}

/// The laws are in `ledger_cluster::fuzzing`.
pub(super) fn run_message(input: &[u8]) -> Outcome {
    let Some((kind, message)) = input.split_first() else { return Outcome::of("") };
    let kind = usize::from(*kind) % fuzzing::MESSAGES.len();
    let told = fuzzing::MESSAGES[kind](message).unwrap_or_else(|error| error);
    // Which message it is counts, and has no digit.
    Outcome::of(&format!("{} {told}", "m".repeat(kind + 1)))
}
