//! The effective settings: defaults, then one TOML file, then the environment, then flags, and where each came from.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use toml::Table;

use crate::{
    limits,
    settings::{
        check::check, config::Config, error::ConfigError, machine_memory::default_size,
        memory_plan::MemoryPlan, units::ByteSize,
    },
};

/// One source of settings: a name for messages, and what it sets.
#[derive(Debug, Clone)]
pub struct Layer {
    /// "default", "file …", "environment", "flag".
    pub name: String,
    /// The keys it sets.
    pub values: Table,
}

/// Settings with where each came from.
#[derive(Debug, Clone)]
pub struct Effective {
    /// The settings.
    pub config: Config,
    /// The source of each key that is set.
    pub sources: BTreeMap<String, String>,
}

impl Effective {
    /// Merges layers, the later over the earlier, over the defaults, and checks the result.
    ///
    /// # Errors
    /// [`ConfigError`] names the first key that is wrong, and the layer that set it.
    pub fn merge(layers: impl IntoIterator<Item = Layer>) -> Result<Self, ConfigError> {
        let mut merged = defaults()?;
        let mut sources: BTreeMap<_, _> =
            merged.keys().map(|key| (key.clone(), "default".to_owned())).collect();
        for layer in layers {
            for (key, value) in layer.values {
                sources.insert(key.clone(), layer.name.clone());
                merged.insert(key, value);
            }
        }
        let mut config: Config =
            merged.try_into().map_err(|error: toml::de::Error| ConfigError::Merge(error.to_string()))?;
        config.share_out(&mut sources);
        let effective = Self { config, sources };
        check(&effective.config, |key| effective.sources.get(key).cloned())?;
        Ok(effective)
    }

    /// As TOML, with a comment at each key that says where it came from.
    ///
    /// # Errors
    /// [`ConfigError::Merge`] if a value cannot be written as TOML.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        let table = Table::try_from(&self.config).map_err(|error| ConfigError::Merge(error.to_string()))?;
        let mut text = String::from("# The effective configuration of ledgerd.\n");
        for (key, value) in &table {
            let source = self.sources.get(key).map_or("default", String::as_str);
            let _ = writeln!(text, "{:<40} # {source}", format!("{key} = {value}"));
        }
        for (key, example) in NOT_SET {
            if !table.contains_key(key) {
                let _ = writeln!(text, "{:<40} # not set", format!("# {key} = {example}"));
            }
        }
        Ok(text)
    }
}

/// Settings without a default, and how they are written.
const NOT_SET: [(&str, &str); 13] = [
    ("accept_lost_writes", "…"),
    ("ready_file", "\"…\""),
    ("node_id", "\"…\""),
    ("gossip_advertise", "\"…\""),
    ("grpc_advertise", "\"…\""),
    ("seeds", "[\"…\"]"),
    ("cluster_key_file", "\"…\""),
    ("min_copies", "…"),
    ("zone", "\"…\""),
    ("first_nodes", "[\"…\"]"),
    ("tls_cert", "\"…\""),
    ("tls_key", "\"…\""),
    ("tls_client_ca", "\"…\""),
];

fn defaults() -> Result<Table, ConfigError> {
    Table::try_from(Config::default()).map_err(|error| ConfigError::Merge(error.to_string()))
}

/// Reads the configuration file.
///
/// # Errors
/// [`ConfigError::Unreadable`]; [`ConfigError::File`] names the line of an unknown key or a wrong value.
pub fn read_file(path: &Path) -> Result<Layer, ConfigError> {
    let unreadable = |reason| ConfigError::Unreadable { path: path.to_owned(), reason };
    let wrong =
        |error: toml::de::Error| ConfigError::File { path: path.to_owned(), reason: error.to_string() };
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    // Read as a whole configuration first: that names the line of a wrong key or value.
    toml::from_str::<Config>(&text).map_err(wrong)?;
    let values = toml::from_str(&text).map_err(wrong)?;
    Ok(Layer { name: format!("file {}", path.display()), values })
}

impl Config {
    /// Gives what is not set its part of the memory.
    fn share_out(&mut self, sources: &mut BTreeMap<String, String>) {
        let mut is_free = |key: &str, source: &str| {
            let of = sources.get_mut(key).filter(|of| *of == "default");
            of.map(|of| source.clone_into(of)).is_some()
        };
        if is_free("memory", "default: of this machine or control group") {
            self.memory = default_size();
        }
        let plan = MemoryPlan::of(self.memory);
        let parts = [
            ("block_cache", &mut self.block_cache, plan.block_cache),
            ("write_buffer", &mut self.write_buffer, plan.write_buffer),
            ("head_cache", &mut self.head_cache, plan.head_cache),
            ("max_in_flight", &mut self.max_in_flight, ByteSize(plan.in_flight.0.max(self.max_entry.0))),
            (
                "max_snapshot_message",
                &mut self.max_snapshot_message,
                ByteSize((plan.receiving.0 / 2).min(limits::SNAPSHOT_MESSAGE)),
            ),
        ];
        for (key, setting, part) in parts {
            if is_free(key, "default: part of memory") {
                *setting = part;
            }
        }
    }
}
