use std::path::PathBuf;

use super::*;
use crate::settings::effective::{Effective, Layer};

const STORAGE: StorageId = StorageId([7; 16]);

fn merge(text: &str) -> Result<Config, ConfigError> {
    let values = toml::from_str(text).unwrap();
    Effective::merge([Layer { name: "file".to_owned(), values }]).map(|effective| effective.config)
}

fn cluster(text: &str) -> Result<Option<ClusterConfig>, ConfigError> {
    merge(text)?.cluster_config(STORAGE, Incarnation(9), SocketAddr::from(([127, 0, 0, 1], 50051)))
}

fn refused(text: &str) -> String {
    match cluster(text) {
        Ok(config) => panic!("{text} gave {config:?}"),
        Err(error) => error.to_string(),
    }
}

fn file(dir: &tempfile::TempDir, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_node_without_a_name_is_by_itself() {
    assert!(cluster("").unwrap().is_none());
    assert!(cluster("zone = \"eu-1a\"\ngrpc_advertise = \"ledger:50051\"").unwrap().is_none());
    for (text, key) in [
        ("seeds = [\"ledger:50052\"]", "seeds"),
        ("first_nodes = [\"a\", \"b\"]", "first_nodes"),
        ("cluster_key_file = \"/etc/key\"", "cluster_key_file"),
        ("gossip_advertise = \"10.0.0.1:50052\"", "gossip_advertise"),
    ] {
        let error = refused(text);
        assert!(error.starts_with(key) && error.contains("node_id"), "{error}");
    }
}

#[test]
fn a_cluster_is_what_the_settings_say() {
    let dir = tempfile::tempdir().unwrap();
    let keys = file(&dir, "keys", format!("# new, then old\n{}\n{}\n", "ab".repeat(32), "cd".repeat(32)));
    let text = format!(
        "cluster = \"prod\"\nnode_id = \"ledger-0\"\ngossip_advertise = \"10.0.0.5:0\"\nzone = \"eu-1a\"\n\
         seeds = [\"ledger:50052\", \"10.0.0.6:50052\"]\ncluster_key_file = {keys:?}\ncopies = 5\n\
         first_nodes = [\"ledger-0\", \"ledger-1\"]\ngossip_interval = \"100ms\"\nplacement_grace = \"2h\"\n\
         max_staleness = \"3s\"\nanti_entropy_interval = \"5s\"\ncatch_up_rate = \"8MiB\"\ngrpc_advertise = \"ledger-0.ledger:50051\"\n"
    );
    let config = cluster(&text).unwrap().unwrap();
    let MembershipConfig { cluster_id, node_id, incarnation, gossip_listen, seeds, keyring, .. } =
        &config.membership;
    assert_eq!((cluster_id.as_str(), node_id.as_str(), *incarnation), ("prod", "ledger-0", Incarnation(9)));
    assert_eq!(gossip_listen.to_string(), "0.0.0.0:50052");
    assert_eq!(config.membership.gossip_advertise.unwrap().to_string(), "10.0.0.5:0");
    assert_eq!(seeds.len(), 2);
    assert!(!keyring.is_empty());
    assert_eq!(config.membership.gossip_interval, Duration::from_millis(100));
    assert_eq!(config.membership.detector.min_silence, Duration::from_millis(400));
    assert!(config.membership.dead_node_grace > config.placement_grace);
    assert_eq!(config.facts.grpc_address, "ledger-0.ledger:50051");
    assert_eq!((config.facts.zone.as_str(), config.facts.storage_id), ("eu-1a", STORAGE));
    assert_eq!((config.replication_factor, config.write_quorum, config.catch_up_rate), (5, 2, 8 << 20));
    assert_eq!(config.first_nodes.iter().map(NodeId::as_str).collect::<Vec<_>>(), ["ledger-0", "ledger-1"]);
    assert_eq!(config.max_staleness, Some(Duration::from_secs(3)));
    assert_eq!(config.anti_entropy_interval, Duration::from_secs(5));
    assert!(config.tls.is_none());
}

#[test]
fn two_copies_acknowledge_unless_told_otherwise() {
    for (copies, min_copies) in [(1, 1), (2, 2), (3, 2), (7, 2)] {
        assert_eq!(merge(&format!("copies = {copies}")).unwrap().min_copies(), min_copies);
    }
    assert_eq!(merge("copies = 5\nmin_copies = 3").unwrap().min_copies(), 3);
    for (text, key) in [
        ("copies = 0", "copies"),
        ("copies = 8", "copies"),
        ("min_copies = 0", "min_copies"),
        ("min_copies = 4", "min_copies"),
    ] {
        assert!(refused(text).starts_with(key), "{text}");
    }
}

#[test]
fn gossip_goes_without_keys_on_loopback_or_when_told_so() {
    let node = "node_id = \"a\"\n";
    let error = refused(&format!("{node}gossip_listen = \"10.0.0.5:50052\""));
    assert!(error.contains("cluster_key_file") && error.contains("insecure_gossip"), "{error}");
    for more in
        ["gossip_listen = \"127.0.0.1:0\"", "gossip_listen = \"10.0.0.5:50052\"\ninsecure_gossip = true"]
    {
        assert!(cluster(&format!("{node}{more}")).unwrap().unwrap().membership.keyring.is_empty());
    }
}

#[test]
fn an_address_that_others_cannot_reach_is_refused_with_what_to_set() {
    let loopback = "node_id = \"a\"\ngossip_listen = \"127.0.0.1:0\"\n";
    let everywhere = SocketAddr::from(([0, 0, 0, 0], 50051));
    let config = merge(loopback).unwrap();
    let error = config.cluster_config(STORAGE, Incarnation(1), everywhere).unwrap_err().to_string();
    assert!(error.contains("0.0.0.0:50051") && error.contains("grpc_advertise"), "{error}");
    let config = merge(&format!("{loopback}grpc_advertise = \"[fd00::1]:7\"")).unwrap();
    let cluster = config.cluster_config(STORAGE, Incarnation(1), everywhere).unwrap().unwrap();
    assert_eq!(cluster.facts.grpc_address, "[fd00::1]:7");
    for text in ["", "gossip_advertise = \"0.0.0.0:7\"\n"] {
        let error = refused(&format!("node_id = \"a\"\ninsecure_gossip = true\n{text}"));
        assert!(error.starts_with("gossip_") && error.contains("set gossip_advertise"), "{error}");
    }
}

#[test]
fn a_wrong_value_names_its_key() {
    let node = "node_id = \"a\"\ngossip_listen = \"127.0.0.1:0\"\n";
    for (text, part) in [
        ("node_id = \"a b\"", "node_id is `a b`"),
        ("seeds = [\"nowhere\"]", "seeds is `nowhere`"),
        ("first_nodes = [\"a\", \"a\"]", "named twice"),
        ("first_nodes = [\"\"]", "first_nodes"),
        ("zone = \"a b\"", "zone"),
        ("zone = \"\"", "zone"),
        ("grpc_advertise = \"ledger-0\"", "grpc_advertise"),
        ("gossip_interval = \"1ms\"", "gossip_interval is 1ms"),
        ("placement_grace = \"0s\"", "placement_grace"),
        ("anti_entropy_interval = \"2h\"", "anti_entropy_interval"),
        ("max_staleness = \"500ms\"", "max_staleness"),
        ("max_staleness = \"2h\"", "max_staleness"),
    ] {
        let mut settings: toml::Table = toml::from_str(node).unwrap();
        settings.extend(toml::from_str::<toml::Table>(text).unwrap());
        let error = refused(&settings.to_string());
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn a_key_file_that_cannot_be_used_is_named_and_its_keys_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "c2VjcmV0IQ==";
    let long = file(&dir, "long", vec![b'#'; MAX_KEY_FILE as usize + 1]);
    for (path, part) in [
        (dir.path().join("missing"), "No such file"),
        (file(&dir, "empty", ""), "no cluster key"),
        (file(&dir, "short", secret), "cluster key 1"),
        (file(&dir, "binary", [0xff, 0xfe]), "UTF-8"),
        (long, "more than 65536 bytes"),
    ] {
        let error = refused(&format!(
            "node_id = \"a\"\ngossip_advertise = \"10.0.0.1:1\"\ncluster_key_file = {path:?}"
        ));
        assert!(error.contains(part) && error.contains("cluster_key_file"), "{error}");
        assert!(error.contains(&path.display().to_string()) && !error.contains(secret), "{error}");
    }
}

#[test]
fn nodes_use_their_tls_files_with_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key, ca) = (file(&dir, "cert", "C"), file(&dir, "key", "K"), file(&dir, "ca", "A"));
    let text =
        format!("node_id = \"a\"\ngossip_listen = \"127.0.0.1:0\"\ntls_cert = {cert:?}\ntls_key = {key:?}\n");
    let tls = cluster(&text).unwrap().unwrap().tls.unwrap();
    assert_eq!((tls.cert, tls.key, tls.ca), (b"C".to_vec(), b"K".to_vec(), None));
    let tls = cluster(&format!("{text}tls_client_ca = {ca:?}")).unwrap().unwrap().tls.unwrap();
    assert_eq!(tls.ca, Some(b"A".to_vec()));
    assert!(!format!("{tls:?}").contains('K'), "a key is never printed");
    let error = refused(&format!("{text}tls_client_ca = \"/no/ca\""));
    assert!(error.contains("/no/ca") && error.contains("tls_client_ca"), "{error}");
}
