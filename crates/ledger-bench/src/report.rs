//! Everything in one run, as a table of figures, limits and ratios.

use std::{path::Path, time::Duration};

use serde_json::Value;

use crate::{
    All, disk, echo,
    measure::{self, client},
    node::Node,
    raw,
};

const PAYLOAD: usize = 256;

/// One line of the table.
struct Row {
    what: &'static str,
    measured: String,
    limit: String,
    ratio: String,
    target: &'static str,
    reached: bool,
}

/// The head of the table, which is printed as it grows.
fn begin() {
    println!("| what | measured | limit in this run | ratio | target | reached |");
    println!("| --- | --- | --- | --- | --- | --- |");
}

fn push(row: &Row) {
    let Row { what, measured, limit, ratio, target, reached } = row;
    println!(
        "| {what} | {measured} | {limit} | {ratio} | {target} | {} |",
        match (target.is_empty(), reached) {
            (true, _) => "",
            (false, true) => "yes",
            (false, false) => "**no**",
        }
    );
}

/// A rate against a limit.
fn rate(what: &'static str, rate: f64, limit: f64, of: &str, least: f64, target: &'static str) {
    let ratio = rate / limit;
    push(&Row {
        what,
        measured: format!("{rate:.0}/s"),
        limit: format!("{of}: {limit:.0}/s"),
        ratio: format!("{ratio:.2}"),
        target,
        reached: ratio >= least,
    });
}

/// A figure against a fixed bound.
fn bound(what: &'static str, value: f64, unit: &str, most: f64, target: &'static str) {
    push(&Row {
        what,
        measured: format!("{value:.1} {unit}"),
        limit: String::new(),
        ratio: String::new(),
        target,
        reached: value < most,
    });
}

fn number(value: &Value, name: &str) -> anyhow::Result<f64> {
    value[name].as_f64().ok_or_else(|| anyhow::anyhow!("ledgerctl did not report {name}: {value}"))
}

/// Measures everything.
pub(crate) async fn run(all: &All) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(&all.dir)?;
    let seconds = all.seconds.to_string();
    println!("{}\n", machine());
    begin();
    appends(dir.path(), all, &seconds).await?;
    reads(dir.path(), all, &seconds).await?;
    memory_and_restart(dir.path(), all.full).await?;
    println!(
        "\nThe root after each append in a context of 1 M entries is measured by `cargo bench -p ledger-core`."
    );
    Ok(())
}

async fn appends(dir: &Path, all: &All, seconds: &str) -> anyhow::Result<()> {
    eprintln!("bench: appends");
    let node = Node::start(&dir.join("appends"))?;
    // The limit before and after, because the machine's speed drifts.
    let before = raw::entries_per_second(dir, PAYLOAD, 256, all.seconds)?;
    let streams =
        ["append", "--contexts", "64", "--inflight", "4096", "--streams", "1", "--seconds", seconds];
    let append = number(&node.bench(&streams)?, "ops_per_second")?;
    let limit = f64::midpoint(before, raw::entries_per_second(dir, PAYLOAD, 256, all.seconds)?);
    rate("streaming append, 64 contexts, 4096 in flight", append, limit, "RocksDB, sync per 256", 0.5, "0.5");

    let echo = echo::Server::start()?;
    let payload_only = echo.unary(PAYLOAD, 64, all.seconds).await?;
    let before = echo.append(PAYLOAD, 64, all.seconds).await?;
    let unary = number(&node.bench(&["unary", "--inflight", "64", "--seconds", seconds])?, "ops_per_second")?;
    let limit = f64::midpoint(before, echo.append(PAYLOAD, 64, all.seconds).await?);
    rate("unary append, 64 in flight", unary, limit, "tonic, the same messages, not stored", 0.6, "0.6");
    let limit = f64::midpoint(payload_only, echo.unary(PAYLOAD, 64, all.seconds).await?);
    rate("the same, beside an echo of the payload alone", unary, limit, "tonic echo", 0.0, "");

    let median = || anyhow::Ok(disk::fdatasync(dir, 500)?.value_at_quantile(0.5) as f64 / 1000.0);
    let before = median()?;
    let alone = node.bench(&["unary", "--inflight", "1", "--contexts", "1", "--seconds", seconds])?;
    let alone = number(&alone, "p50_us")?;
    let sync = f64::midpoint(before, median()?);
    push(&Row {
        what: "one append, nothing else running, median",
        measured: format!("{alone:.0} µs"),
        limit: format!("fdatasync of 4 KiB appended: {sync:.0} µs"),
        ratio: format!("{:.2}", alone / sync),
        target: "under 3",
        reached: alone < 3.0 * sync,
    });

    let watch = node.bench(&["watch", "--watchers", "1000", "--rate", "100", "--seconds", seconds])?;
    let p99 = number(&watch, "append_p99_us")? / 1000.0;
    bound("1000 watchers, 100 appends/s: append p99", p99, "ms", 10.0, "10 ms, all delivered");
    Ok(())
}

async fn reads(dir: &Path, all: &All, seconds: &str) -> anyhow::Result<()> {
    eprintln!("bench: reads");
    let node = Node::start(&dir.join("reads"))?;
    let echo = echo::Server::start()?;
    let size = echo::entry_size(PAYLOAD);
    let before = echo.stream(size, all.seconds).await?;
    let replay = number(&node.bench(&["replay", "--seconds", seconds])?, "ops_per_second")?;
    let limit = f64::midpoint(before, echo.stream(size, all.seconds).await?);
    rate(
        "replay of 1 M entries, streaming Get",
        replay,
        limit,
        "tonic server stream",
        0.5,
        "0.5, Get or Watch",
    );
    let watched = number(&node.bench(&["replay", "--watch", "--seconds", seconds])?, "ops_per_second")?;
    rate("replay of 1 M entries, streaming Watch", watched, limit, "tonic server stream", 0.0, "");

    let proof = node.bench(&["proof", "--seconds", seconds])?;
    let round_trip = 1e6 / echo.unary(PAYLOAD, 1, 1.0).await?;
    let asked = number(&proof, "make_p50_us")?;
    push(&Row {
        what: "inclusion proof in 1 M entries: asked for over gRPC",
        measured: format!("{asked:.0} µs"),
        limit: format!("tonic echo, 1 in flight: {round_trip:.0} µs"),
        ratio: format!("{:.2}", asked / round_trip),
        target: "",
        reached: true,
    });
    bound("inclusion proof in 1 M entries: verified", number(&proof, "verify_p50_us")?, "µs", 10.0, "10 µs");

    let filtered = measure::filtered_get(&client(node.endpoint())?).await?;
    let millis = filtered.as_secs_f64() * 1000.0;
    bound("filtered Get of 10 entries of a rare key in 1 M", millis, "ms", 20.0, "20 ms");
    drop(node);
    let made = measure::proof(&dir.join("reads"))?.as_secs_f64() * 1e6;
    bound("inclusion proof in 1 M entries: made, in process", made, "µs", 100.0, "100 µs");
    Ok(())
}

async fn memory_and_restart(dir: &Path, full: bool) -> anyhow::Result<()> {
    eprintln!("bench: memory and restart");
    let data = dir.join("many");
    let node = Node::start(&data)?;
    measure::fill(&client(node.endpoint())?, "many", 100_000, 1_000_000, |_| "facts").await?;
    let mebibytes = node.resident_bytes()? as f64 / f64::from(1 << 20);
    bound("memory: 1 M entries in 100 000 contexts", mebibytes, "MiB resident", 1024.0, "1 GiB");
    if full {
        measure::fill(&client(node.endpoint())?, "many", 100_000, 9_000_000, |_| "facts").await?;
    }
    drop(node);
    let node = Node::start(&data)?;
    let serving: Duration = node.started_in + measure::first_read(node.endpoint(), "many-99999").await?;
    let what = if full {
        "restart after SIGKILL with 10 M entries in 100 000 contexts"
    } else {
        "restart after SIGKILL with 1 M entries in 100 000 contexts (10 M with --full)"
    };
    bound(what, serving.as_secs_f64(), "s until read", 2.0, "2 s");
    Ok(())
}

/// What was measured on.
pub(crate) fn machine() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let kernel = rustix::system::uname();
    format!(
        "{cpus} CPUs, {}, Linux {}",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.release().to_string_lossy()
    )
}
