//! Processor time of the nodes' processes.

use std::{fs, time::Duration};

use anyhow::Context as _;
use tokio::time::{Instant, sleep};

/// Waits until processes use less than a tenth of a processor, for at most 20 s.
pub(crate) async fn quiet(processes: &[u32]) -> anyhow::Result<()> {
    let used = || processes.iter().map(|id| ticks(*id)).sum::<anyhow::Result<u64>>();
    let begin = Instant::now();
    loop {
        let before = used()?;
        sleep(Duration::from_millis(500)).await;
        // A tick is 10 ms.
        if used()? - before < 5 || begin.elapsed() > Duration::from_secs(20) {
            return Ok(());
        }
    }
}

/// Processor time of a process so far, seconds.
pub(crate) fn processor(process: u32) -> anyhow::Result<f64> {
    Ok(ticks(process)? as f64 / 100.0)
}

/// Processor time of a process, ticks of 10 ms.
fn ticks(process: u32) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, in brackets, may hold anything; utime and stime are the 12th and 13th fields after it.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<_> = rest.split_whitespace().collect();
    let field = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).context("/proc/…/stat");
    Ok(field(11)? + field(12)?)
}
