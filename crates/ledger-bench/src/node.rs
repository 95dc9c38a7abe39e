//! A `ledgerd` of its own for a measurement, and `ledgerctl` to measure it with.

use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use serde_json::Value;

/// How long a node may take to serve.
const TIMEOUT: Duration = Duration::from_mins(2);

/// A running node; killed when dropped.
pub(crate) struct Node {
    process: Child,
    endpoint: String,
    /// From the start of the process until it served.
    pub(crate) started_in: Duration,
}

/// A binary beside this one.
pub(crate) fn beside(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::current_exe()?.with_file_name(name);
    if !path.exists() {
        bail!("{} is missing: build everything first, with `./dev build`", path.display());
    }
    Ok(path)
}

impl Node {
    /// Starts a node on a data directory, and waits until it serves.
    pub(crate) fn start(data: &Path) -> anyhow::Result<Self> {
        let ready = data.with_extension("ready");
        // One of an earlier start would be taken for this one's.
        let _ = std::fs::remove_file(&ready);
        let begin = Instant::now();
        let mut process = Command::new(beside("ledgerd")?)
            .args(["--grpc-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0"])
            .args(["--data-dir".as_ref(), data.as_os_str(), "--ready-file".as_ref(), ready.as_os_str()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        loop {
            if let Some(address) = std::fs::read(&ready).ok().and_then(|text| grpc_address(&text)) {
                return Ok(Self {
                    process,
                    endpoint: format!("http://{address}"),
                    started_in: begin.elapsed(),
                });
            }
            if let Some(status) = process.try_wait()? {
                bail!("ledgerd ended before it served: {status}");
            }
            if begin.elapsed() > TIMEOUT {
                bail!("ledgerd does not serve within {TIMEOUT:?}");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Resident memory, bytes.
    pub(crate) fn resident_bytes(&self) -> anyhow::Result<u64> {
        resident_bytes(self.process.id())
    }

    /// Runs `ledgerctl bench`, and gives what it measured.
    pub(crate) fn bench(&self, args: &[&str]) -> anyhow::Result<Value> {
        let output = Command::new(beside("ledgerctl")?)
            .args(["--endpoint", &self.endpoint, "--json", "bench"])
            .args(args)
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            bail!("ledgerctl bench {} failed: {}", args.join(" "), output.status);
        }
        let text = String::from_utf8(output.stdout)?;
        let last = text.lines().last().context("ledgerctl printed nothing")?;
        Ok(serde_json::from_str(last)?)
    }
}

impl Drop for Node {
    /// With SIGKILL: the next start finds what a crash leaves.
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn grpc_address(ready: &[u8]) -> Option<String> {
    let ready: Value = serde_json::from_slice(ready).ok()?;
    ready["grpc"].as_str().map(str::to_owned)
}

/// Resident memory of a process, bytes.
pub(crate) fn resident_bytes(process: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kilobytes * 1024)
}
