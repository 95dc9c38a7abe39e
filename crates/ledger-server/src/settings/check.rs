//! Whether the settings are right, each by itself and all together.

use std::time::Duration;

use ledger_cluster::membership::{facts::MAX_TEXT, seeds::Seeds};
use ledger_core::{
    limits::MAX_PAYLOAD,
    node::{MAX_REPLICAS, NodeId},
};

use crate::{
    limits,
    settings::{
        cluster,
        config::{Config, DurabilityMode, Operators},
        error::ConfigError,
        memory_plan::MIN_MEMORY,
        units::{ByteSize, HumanDuration},
    },
};

/// Checks what can be without opening a file. `set_by` names the source of a key; `None` stands for the default.
///
/// # Errors
/// [`ConfigError::Value`] names the first key that is wrong, its value, and what would be right.
pub(super) fn check(config: &Config, set_by: impl Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
    let wrong = |key: &'static str, value: String, reason: String| ConfigError::Value {
        key,
        value,
        source_name: set_by(key).unwrap_or_else(|| "default".to_owned()),
        reason,
    };
    let sizes = [
        ("memory", config.memory, MIN_MEMORY.0, 1 << 50),
        ("max_entry", config.max_entry, 1, MAX_PAYLOAD as u64),
        ("max_response", config.max_response, limits::MIN_RESPONSE, limits::MAX_MESSAGE),
        ("max_snapshot_message", config.max_snapshot_message, 1 << 10, limits::MAX_MESSAGE),
        ("max_in_flight", config.max_in_flight, config.max_entry.0, u64::from(u32::MAX)),
    ];
    for (key, value, least, most) in sizes {
        if value.0 < least || value.0 > most {
            let reason = format!("it must be {} to {}", ByteSize(least), ByteSize(most));
            return Err(wrong(key, value.to_string(), reason));
        }
    }
    if config.max_connections < limits::MIN_CONNECTIONS {
        let reason = format!("it must be {} at least", limits::MIN_CONNECTIONS);
        return Err(wrong("max_connections", config.max_connections.to_string(), reason));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    if config.cluster.is_empty() || config.cluster.len() > 64 || !config.cluster.chars().all(plain) {
        let reason = "a cluster's name has 1 to 64 letters, digits, dashes, dots or underscores".to_owned();
        return Err(wrong("cluster", format!("`{}`", config.cluster), reason));
    }
    if config.durability == DurabilityMode::Interval && config.sync_interval.0.is_zero() {
        let reason = "syncing at an interval needs one above zero".to_owned();
        return Err(wrong("sync_interval", config.sync_interval.to_string(), reason));
    }
    let tls = [&config.tls_cert, &config.tls_key];
    if tls.iter().any(|path| path.is_some()) != tls.iter().all(|path| path.is_some()) {
        let reason = "TLS needs tls_cert and tls_key, both".to_owned();
        return Err(wrong("tls_cert", format!("{:?}", config.tls_cert), reason));
    }
    if config.tls_client_ca.is_some() && config.tls_cert.is_none() {
        let reason = "checking clients needs TLS: set tls_cert and tls_key too".to_owned();
        return Err(wrong("tls_client_ca", format!("{:?}", config.tls_client_ca), reason));
    }
    if let Some(number) = config.accept_lost_writes
        && config.node_id.is_some()
        && config.copies > 1
    {
        let reason = "a member of a cluster must not go on with less than it promised: remove its data directory, so that it \
                      joins as a new member and copies what the others hold";
        return Err(wrong("accept_lost_writes", number.to_string(), reason.to_owned()));
    }
    if config.operators == Operators::Key && config.cluster_key_file.is_none() {
        let reason = "nobody could prove a key that the node does not have: set cluster_key_file".to_owned();
        return Err(wrong("operators", "key".to_owned(), reason));
    }
    check_cluster(config, wrong)?;
    if let Err(error) = config.log.parse::<tracing_subscriber::EnvFilter>() {
        return Err(wrong("log", format!("`{}`", config.log), error.to_string()));
    }
    Ok(())
}

/// The settings that concern a cluster. `wrong` makes the error of a key, its value and a reason.
fn check_cluster(
    config: &Config,
    wrong: impl Fn(&'static str, String, String) -> ConfigError,
) -> Result<(), ConfigError> {
    let quoted = |text: &str| format!("`{text}`");
    let listed = |texts: &[String]| format!("`{}`", texts.join(","));
    if !(1..=MAX_REPLICAS).contains(&config.copies) {
        return Err(wrong("copies", config.copies.to_string(), format!("it must be 1 to {MAX_REPLICAS}")));
    }
    if !(1..=config.copies).contains(&config.min_copies()) {
        let reason =
            format!("it must be 1 to {}: more copies than there should be are never reached", config.copies);
        return Err(wrong("min_copies", config.min_copies().to_string(), reason));
    }
    let (tick, second, hour) = (Duration::from_millis(10), Duration::from_secs(1), Duration::from_hours(1));
    let times = [
        ("gossip_interval", config.gossip_interval, tick, Duration::from_mins(1)),
        ("placement_grace", config.placement_grace, second, 7 * 24 * hour),
        ("anti_entropy_interval", config.anti_entropy_interval, 10 * tick, hour),
    ];
    for (key, value, least, most) in times {
        if !(least..=most).contains(&value.0) {
            let reason = format!("it must be {} to {}", HumanDuration(least), HumanDuration(most));
            return Err(wrong(key, value.to_string(), reason));
        }
    }
    let staleness = config.max_staleness;
    if !staleness.0.is_zero() && !(second..=hour).contains(&staleness.0) {
        let reason = format!(
            "it must be {} to {}, or 0s: as old as it is",
            HumanDuration(second),
            HumanDuration(hour)
        );
        return Err(wrong("max_staleness", staleness.to_string(), reason));
    }
    if let Some(zone) = &config.zone
        && !((1..=MAX_TEXT).contains(&zone.len())
            && zone.chars().all(|c| !c.is_control() && !c.is_whitespace()))
    {
        return Err(wrong(
            "zone",
            quoted(zone),
            format!("it must have 1 to {MAX_TEXT} bytes without blanks"),
        ));
    }
    if let Some(address) = &config.grpc_advertise
        && Seeds::parse(&[address]).is_err()
    {
        let reason = "it must be host:port, address:port or [IPv6 address]:port".to_owned();
        return Err(wrong("grpc_advertise", quoted(address), reason));
    }
    if let Err(error) = Seeds::parse(&config.seeds) {
        return Err(wrong("seeds", listed(&config.seeds), error.to_string()));
    }
    if let Err(reason) = cluster::first_nodes(config) {
        return Err(wrong("first_nodes", listed(&config.first_nodes), reason));
    }

    let Some(node_id) = &config.node_id else { return check_standalone(config, wrong) };
    if let Err(error) = NodeId::new(node_id) {
        return Err(wrong("node_id", quoted(node_id), error.to_string()));
    }
    let listen = config.gossip_listen;
    if config.cluster_key_file.is_none() && !config.insecure_gossip && !listen.ip().is_loopback() {
        let reason = "gossip over a network needs keys: write one of `openssl rand -base64 32` to a file that every node \
                      of the cluster gets; or, where the network is trusted as a whole, set insecure_gossip = true";
        return Err(wrong("cluster_key_file", "not set".to_owned(), reason.to_owned()));
    }
    let advertised = config.gossip_advertise.unwrap_or(listen);
    if advertised.ip().is_unspecified() {
        let key = if config.gossip_advertise.is_some() { "gossip_advertise" } else { "gossip_listen" };
        let reason = "other nodes cannot reach it there: set gossip_advertise to an IP:PORT where they can";
        return Err(wrong(key, advertised.to_string(), reason.to_owned()));
    }
    Ok(())
}

/// A node that was meant for a cluster and forgot its name must not write by itself.
fn check_standalone(
    config: &Config,
    wrong: impl Fn(&'static str, String, String) -> ConfigError,
) -> Result<(), ConfigError> {
    let set = [
        ("seeds", (!config.seeds.is_empty()).then(|| config.seeds.join(","))),
        ("first_nodes", (!config.first_nodes.is_empty()).then(|| config.first_nodes.join(","))),
        ("cluster_key_file", config.cluster_key_file.as_ref().map(|path| path.display().to_string())),
        ("gossip_advertise", config.gossip_advertise.map(|address| address.to_string())),
    ];
    for (key, value) in set {
        if let Some(value) = value {
            let reason = "a node takes part in a cluster under its own name: set node_id too, or remove this";
            return Err(wrong(key, format!("`{value}`"), reason.to_owned()));
        }
    }
    Ok(())
}
