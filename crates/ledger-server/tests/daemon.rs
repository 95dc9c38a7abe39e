//! The binary: configuration and its precedence, ready file, signals, exit codes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests")]

use std::{
    fs,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

fn ledgerd() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ledgerd"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LEDGER_") || name == "GRPC_PORT" {
            command.env_remove(name);
        }
    }
    command
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn printed(command: &mut Command) -> String {
    let output = run(command.arg("config"));
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn line<'a>(config: &'a str, key: &str) -> &'a str {
    config
        .lines()
        .find(|line| line.starts_with(&format!("{key} =")))
        .unwrap_or_else(|| panic!("{key} in {config}"))
}

#[test]
fn the_defaults_just_work() {
    let config = printed(&mut ledgerd());
    for (key, value) in [
        ("data_dir", "\"./data\""),
        ("grpc_listen", "\"0.0.0.0:50051\""),
        ("http_listen", "\"127.0.0.1:50080\""),
        ("durability", "\"always\""),
        ("max_entry", "\"4032KiB\""),
    ] {
        let line = line(&config, key);
        assert!(line.contains(value) && line.ends_with("# default"), "{line}");
    }
    toml::from_str::<toml::Table>(&config).unwrap();
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledgerd.toml");
    let text = "cluster = \"file\"\nhash_suite = \"sha256\"\nlog = \"debug\"\nmax_entry = 1024\ngrpc_listen = \"127.0.0.1:1\"\n";
    fs::write(&file, text).unwrap();
    let layered = || {
        let mut command = ledgerd();
        command.env("LEDGER_CONFIG", &file).env("LEDGER_HASH_SUITE", "blake3").env("LEDGER_LOG", "warn");
        command
    };
    let config = printed(layered().args(["--log", "error"]));
    assert!(line(&config, "cluster").contains("\"file\"") && line(&config, "cluster").contains("# file "));
    assert!(line(&config, "max_entry").contains("\"1KiB\"") || line(&config, "max_entry").contains("1024"));
    assert!(
        line(&config, "hash_suite").contains("blake3")
            && line(&config, "hash_suite").ends_with("# environment")
    );
    assert!(line(&config, "log").contains("error") && line(&config, "log").ends_with("# flag"));
    assert!(line(&config, "lanes").ends_with("# default"));

    // A list has commas where it is one word.
    let listed = |command: &mut Command| {
        let config = printed(command.args(["--node-id", "a", "--gossip-listen", "127.0.0.1:0"]));
        line(&config, "seeds").to_owned()
    };
    let flag = listed(ledgerd().args(["--seeds", "a:1,b:2"]));
    assert!(flag.starts_with("seeds = [\"a:1\", \"b:2\"]") && flag.ends_with("# flag"), "{flag}");
    let variable = listed(ledgerd().env("LEDGER_SEEDS", "a:1,b:2"));
    assert!(variable.starts_with("seeds = [\"a:1\", \"b:2\"]"), "{variable}");
    let config = printed(ledgerd().args(["--insecure-gossip"]));
    assert!(line(&config, "insecure_gossip").starts_with("insecure_gossip = true"), "{config}");
    assert!(config.contains("# node_id = \"…\"") && config.contains("# min_copies = …"), "{config}");

    // The predecessor's variable sets the port alone, above the file and below the rest.
    let config = printed(layered().env("GRPC_PORT", "7"));
    assert!(line(&config, "grpc_listen").contains("127.0.0.1:7"));
    let config = printed(ledgerd().env("GRPC_PORT", "7"));
    assert!(line(&config, "grpc_listen").contains("0.0.0.0:7"));
    let config = printed(layered().env("GRPC_PORT", "7").env("LEDGER_GRPC_LISTEN", "127.0.0.1:8"));
    assert!(line(&config, "grpc_listen").contains("127.0.0.1:8"));
    let config = printed(layered().env("GRPC_PORT", "7").args(["--grpc-listen", "127.0.0.1:9"]));
    assert!(line(&config, "grpc_listen").contains("127.0.0.1:9"));
}

#[test]
fn a_wrong_configuration_names_the_key_and_exits_with_2() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledgerd.toml");
    for (text, part) in [
        ("no_such_key = 1\n", "no_such_key"),
        ("lanes = \"many\"\n", "lanes"),
        ("max_entry = \"4MB\"\n", "4MB"),
        ("max_entry = 0\n", "max_entry"),
        ("memory = \"64MiB\"\n", "memory"),
        ("cluster = \"a b\"\n", "cluster"),
        ("tls_cert = \"x.pem\"\n", "tls_key"),
        ("log = \"==\"\n", "log"),
        ("node_id = \"a b\"\n", "node_id"),
        ("seeds = [\"ledger:50052\"]\n", "node_id"),
        ("node_id = \"a\"\n", "cluster_key_file"),
        ("[unclosed\n", "ledgerd.toml"),
    ] {
        fs::write(&file, text).unwrap();
        let output = run(ledgerd().arg("--config").arg(&file));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}: {errors}");
        assert!(errors.contains(part), "{text}: {errors}");
    }
    for (name, value) in
        [("GRPC_PORT", "many"), ("LEDGER_GRPC_LISTEN", "nowhere"), ("LEDGER_CONFIG", "/no/such/file")]
    {
        let output = run(ledgerd().env(name, value));
        assert_eq!(output.status.code(), Some(2), "{name}: {output:?}");
    }
    assert_eq!(run(ledgerd().arg("--no-such-flag")).status.code(), Some(2));
    let output = run(ledgerd().env("LEDGER_DATADIR", "/tmp"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert!(errors.contains("LEDGER_DATADIR") && errors.contains("LEDGER_DATA_DIR"), "{errors}");
}

#[test]
fn empty_variables_and_those_of_kubernetes_are_no_settings() {
    let mut command = ledgerd();
    for (name, value) in [
        ("LEDGER_ZONE", ""),
        ("LEDGER_LANES", ""),
        ("LEDGER_GRPC_LISTEN", ""),
        ("GRPC_PORT", "tcp://10.96.0.7:50051"),
        ("GRPC_SERVICE_HOST", "10.96.0.7"),
        ("LEDGER_PORT", "tcp://10.96.0.8:50051"),
        ("LEDGER_SERVICE_HOST", "10.96.0.8"),
        ("LEDGER_SERVICE_PORT_GRPC", "50051"),
        ("LEDGER_PORT_50051_TCP_ADDR", "10.96.0.8"),
        ("LEDGER_ENDPOINT", "http://127.0.0.1:1"),
    ] {
        command.env(name, value);
    }
    let config = printed(&mut command);
    assert!(line(&config, "grpc_listen").ends_with("# default"), "{config}");
    assert!(config.contains("# zone ="), "{config}");
}

#[test]
fn the_example_file_holds_the_defaults() {
    let example = Path::new("../../deploy/ledgerd.example.toml");
    let text = fs::read_to_string(example).unwrap();
    // Everything in it is commented out: uncommented, it is a configuration, and the default one.
    let settings = |line: &&str| line.starts_with('#') && line.contains(" = ") && !line.starts_with("# ");
    let text = text.lines().filter(settings).map(|line| &line[1..]).collect::<Vec<_>>().join("\n");
    toml::from_str::<ledger_server::Config>(&text).unwrap();
    let mut keys: toml::Table = toml::from_str(&text).unwrap();
    for key in toml::Table::try_from(ledger_server::Config::default()).unwrap().keys() {
        assert!(keys.contains_key(key), "{key} is not in the example");
    }
    for key in [
        "ready_file",
        "node_id",
        "gossip_advertise",
        "grpc_advertise",
        "seeds",
        "cluster_key_file",
        "min_copies",
        "zone",
        "first_nodes",
        "tls_cert",
        "tls_key",
        "tls_client_ca",
        "accept_lost_writes",
        // Of the machine.
        "memory",
    ] {
        assert!(keys.remove(key).is_some(), "{key} is not in the example");
    }
    let config: ledger_server::Config = keys.try_into().unwrap();
    assert_eq!(config, ledger_server::Config::default());
}

fn start(dir: &Path, more: &[&str]) -> Child {
    let mut command = ledgerd();
    command.args(["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--ready-file"]);
    command.arg(dir.join("ready.json")).arg("--data-dir").arg(dir.join("data")).args(more);
    command.stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_ready(dir: &Path) -> serde_json::Value {
    let started = Instant::now();
    loop {
        if let Ok(text) = fs::read_to_string(dir.join("ready.json")) {
            return serde_json::from_str(&text).unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(20), "not ready in time");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
}

#[test]
fn a_node_says_when_it_is_ready_and_stops_cleanly_on_a_signal() {
    for name in ["-TERM", "-INT"] {
        let dir = tempfile::tempdir().unwrap();
        let child = start(dir.path(), &["--log-format", "json"]);
        let ready = wait_ready(dir.path());
        assert_eq!(ready["pid"], child.id());
        for key in ["grpc", "http"] {
            let address: std::net::SocketAddr = ready[key].as_str().unwrap().parse().unwrap();
            assert!(address.port() != 0 && std::net::TcpStream::connect(address).is_ok());
        }
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(!dir.path().join("ready.json").exists());
        let log = String::from_utf8(output.stderr).unwrap();
        for line in log.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap();
        }
        assert!(
            log.contains("\"message\":\"serving\"") && log.contains("\"message\":\"shut down\""),
            "{log}"
        );
    }
}

#[test]
fn a_hangup_ends_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let child = start(dir.path(), &[]);
    let ready = wait_ready(dir.path());
    for _ in 0..3 {
        signal(&child, "-HUP");
    }
    // It still accepts after the signals, and ends by the one that ends it.
    std::net::TcpStream::connect(ready["grpc"].as_str().unwrap()).unwrap();
    signal(&child, "-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("SIGHUP"), "{log}");
}

#[test]
fn what_keeps_a_node_from_starting_has_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let child = start(dir.path(), &[]);
    let ready = wait_ready(dir.path());
    // The directory is in use.
    let second = start(dir.path(), &[]).wait_with_output().unwrap();
    assert_eq!(second.status.code(), Some(3), "{second:?}");
    // The address is in use.
    let other = tempfile::tempdir().unwrap();
    let taken = run(ledgerd()
        .args([
            "--http-listen",
            "127.0.0.1:0",
            "--grpc-listen",
            ready["grpc"].as_str().unwrap(),
            "--data-dir",
        ])
        .arg(other.path()));
    assert_eq!(taken.status.code(), Some(4), "{taken:?}");
    assert!(String::from_utf8_lossy(&taken.stderr).contains("grpc_listen"));
    // No such TLS files.
    let tls = run(ledgerd()
        .args(["--tls-cert", "/no/cert", "--tls-key", "/no/key", "--data-dir"])
        .arg(other.path()));
    assert_eq!(tls.status.code(), Some(4), "{tls:?}");
    signal(&child, "-TERM");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));
}

#[test]
fn the_help_names_defaults_environment_and_exit_codes() {
    let output = run(ledgerd().arg("--help"));
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for part in [
        "--data-dir",
        "--grpc-listen",
        "--http-listen",
        "LEDGER_DATA_DIR",
        "GRPC_PORT",
        "0.0.0.0:50051",
        "Exit codes",
    ] {
        assert!(help.contains(part), "{part} in {help}");
    }
    assert!(!help.contains("test-panic") && !help.contains("stdin"));
}

#[test]
fn a_node_whose_parent_died_stops_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = ledgerd();
    command.args(["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--ready-file"]);
    command.arg(dir.path().join("ready.json")).arg("--data-dir").arg(dir.path().join("data"));
    command.arg("--exit-when-stdin-closes").stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    wait_ready(dir.path());
    assert!(child.try_wait().unwrap().is_none(), "it serves while the pipe is open");
    // Nobody reads what it logs, either.
    drop((child.stderr.take(), child.stdin.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(!dir.path().join("ready.json").exists());
}
