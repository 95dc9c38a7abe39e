//! Settings in the environment: what is a setting, what belongs to others, and what is a mistake.
//!
//! Kubernetes puts variables for every Service into every container of its namespace
//! (<https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>): those of a Service
//! named `ledger` begin with `LEDGER_`, and one named `grpc` sets `GRPC_PORT` to `tcp://…`. None of them is a setting.

use std::env;

use clap::Command;

use crate::settings::error::ConfigError;

/// What the variables of settings begin with.
const PREFIX: &str = "LEDGER_";
/// Variables of `ledgerctl`, which may run in the same environment.
const OF_LEDGERCTL: [&str; 5] =
    ["LEDGER_ENDPOINT", "LEDGER_CA", "LEDGER_CERT", "LEDGER_KEY", "LEDGER_CLUSTER_KEY_FILE"];

/// Takes a variable that is set to nothing for one that is not set.
pub fn without_empty(command: Command) -> Command {
    command.mut_args(|arg| {
        let is_empty = arg.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty());
        if is_empty { arg.env(None::<&'static str>) } else { arg }
    })
}

/// Refuses a variable that looks like a setting and is none: a mistyped name would otherwise change nothing, unnoticed.
///
/// # Errors
/// [`ConfigError::UnknownVariable`] names it, and the setting that is meant, if one is close.
pub fn check(
    command: &Command,
    variables: impl Iterator<Item = (String, String)>,
) -> Result<(), ConfigError> {
    let known: Vec<_> = command
        .get_arguments()
        .filter_map(|arg| Some(arg.get_env()?.to_string_lossy().into_owned()))
        .collect();
    for (name, value) in variables {
        let is_setting = known.contains(&name) || OF_LEDGERCTL.contains(&name.as_str());
        if name.starts_with(PREFIX) && !is_setting && !is_of_a_service(&name, &value) {
            let meant = known.iter().min_by_key(|setting| distance(setting, &name)).cloned();
            let meant = meant.filter(|setting| distance(setting, &name) <= name.len() / 3);
            return Err(ConfigError::UnknownVariable { name, meant });
        }
    }
    Ok(())
}

/// Whether a variable is one that Kubernetes sets for a Service.
pub fn is_of_a_service(name: &str, value: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some((_, port)) = name.rsplit_once("_SERVICE_PORT") {
        return (port.is_empty() || port.starts_with('_')) && is_number(value);
    }
    if name.ends_with("_SERVICE_HOST") {
        return true;
    }
    if name.ends_with("_PORT")
        && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
    {
        return true;
    }
    // NAME_PORT_50051_TCP, NAME_PORT_50051_TCP_ADDR, …_PORT, …_PROTO
    let Some((_, port)) =
        name.rsplit_once("_PORT_").filter(|(_, port)| port.starts_with(|c: char| c.is_ascii_digit()))
    else {
        return name.strip_suffix("_PORT").is_some_and(|name| is_of_a_service(name, "tcp://"));
    };
    let mut parts = port.split('_');
    parts.next().is_some_and(is_number)
        && parts.next().is_some_and(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol))
        && parts.next().is_none_or(|part| ["ADDR", "PORT", "PROTO"].contains(&part))
        && parts.next().is_none()
}

/// How many characters two names differ by (Levenshtein, "Binary codes capable of correcting deletions, insertions, and
/// reversals", 1966).
fn distance(one: &str, other: &str) -> usize {
    let mut before: Vec<usize> = (0..=other.len()).collect();
    for (row, a) in one.bytes().enumerate() {
        let mut now = vec![row + 1];
        for (column, b) in other.bytes().enumerate() {
            let changed = before[column] + usize::from(a != b);
            now.push(changed.min(before[column + 1] + 1).min(now[column] + 1));
        }
        before = now;
    }
    before.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kubernetes_sets_for_services_is_told_from_settings() {
        for (name, value) in [
            ("LEDGER_SERVICE_HOST", "10.0.0.1"),
            ("LEDGER_SERVICE_PORT", "50051"),
            ("LEDGER_SERVICE_PORT_GRPC", "50051"),
            ("LEDGER_PORT", "tcp://10.0.0.1:50051"),
            ("LEDGER_PORT_50051_TCP", "tcp://10.0.0.1:50051"),
            ("LEDGER_PORT_50051_TCP_PROTO", "tcp"),
            ("LEDGER_PORT_50051_TCP_PORT", "50051"),
            ("LEDGER_HEADLESS_PORT_50052_UDP_ADDR", "10.0.0.1"),
            ("GRPC_PORT", "tcp://10.0.0.1:50051"),
        ] {
            assert!(is_of_a_service(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("LEDGER_PORT", "50051"),
            ("LEDGER_GRPC_LISTEN", "tcp://x"),
            ("LEDGER_PORT_X_TCP", "1"),
            ("LEDGER_SERVICE_PORTS", "1"),
            ("GRPC_PORT", "50051"),
        ] {
            assert!(!is_of_a_service(name, value), "{name}={value}");
        }
    }

    #[test]
    fn a_mistyped_variable_is_refused_with_the_setting_that_is_meant() {
        let command =
            Command::new("x").arg(clap::Arg::new("data_dir").env("LEDGER_DATA_DIR").long("data-dir"));
        let refused = |name: &str| {
            check(&command, [(name.to_owned(), "x".to_owned())].into_iter()).unwrap_err().to_string()
        };
        assert!(refused("LEDGER_DATADIR").contains("LEDGER_DATA_DIR"));
        assert!(!refused("LEDGER_SOMETHING_ELSE_ENTIRELY").contains("LEDGER_DATA_DIR"));
        for name in ["LEDGER_DATA_DIR", "LEDGER_ENDPOINT", "LEDGER_SERVICE_HOST", "PATH"] {
            check(&command, [(name.to_owned(), "x".to_owned())].into_iter()).unwrap();
        }
    }
}
