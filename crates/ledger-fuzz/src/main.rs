//! `ledger-fuzz`: runs fuzz targets, or one input again.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ledger_fuzz::{Budget, Finding, Report, Target, fuzz, replay, targets};

const USAGE: &str = "\
usage: ledger-fuzz all|TARGET SECONDS [SEED]   fuzz every target or one, for so long each
       ledger-fuzz replay TARGET FILE          run one input again
       ledger-fuzz list                        name the targets";

/// Where inputs that broke something are saved.
const FINDINGS: &str = "target/fuzz-findings";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["list"] => {
            for target in targets::ALL {
                println!("{}", target.name);
            }
            Ok(true)
        }
        ["replay", target, file] => target_named(target).and_then(|target| again(target, Path::new(file))),
        [name, seconds] => run(name, seconds, None),
        [name, seconds, seed] => run(name, seconds, Some(seed)),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn run(name: &str, seconds: &str, seed: Option<&str>) -> Result<bool, String> {
    let seconds: u64 =
        seconds.parse().map_err(|_| format!("{seconds} is not a number of seconds\n{USAGE}"))?;
    let seed = match seed {
        Some(seed) => seed.parse().map_err(|_| format!("{seed} is not a seed: give a number\n{USAGE}"))?,
        None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64),
    };
    let chosen = match name {
        "all" => targets::ALL,
        name => std::slice::from_ref(target_named(name)?),
    };
    let mut clean = true;
    for target in chosen {
        // The seed comes first: what kills the process (an exhausted stack) can only be repeated with it.
        println!("{}: {seconds} s, seed {seed}", target.name);
        let report = fuzz(target, Budget::Time(Duration::from_secs(seconds)), seed);
        show(&report);
        if let Some(finding) = &report.finding {
            clean = false;
            save(report.target, finding)?;
        }
    }
    Ok(clean)
}

fn show(report: &Report) {
    let seconds = report.elapsed.as_secs_f64().max(1e-9);
    println!(
        "{}: {} runs, {:.0}/s, {} outcomes, slowest {:?}, peak memory {} MiB, {}",
        report.target,
        report.runs,
        report.runs as f64 / seconds,
        report.outcomes,
        report.slowest,
        report.peak_memory / 1024,
        if report.finding.is_some() { "a finding" } else { "no finding" },
    );
}

fn save(target: &str, finding: &Finding) -> Result<(), String> {
    let name = format!("{target}-{}", short_name(&finding.input));
    let path = PathBuf::from(FINDINGS).join(name);
    std::fs::create_dir_all(FINDINGS)
        .and_then(|()| std::fs::write(&path, &finding.input))
        .map_err(|e| format!("cannot save the finding to {}: {e}", path.display()))?;
    println!("{target}: {}", finding.what);
    println!("repeat with: cargo run --release -p ledger-fuzz -- replay {target} {}", path.display());
    Ok(())
}

fn again(target: &Target, file: &Path) -> Result<bool, String> {
    let input = std::fs::read(file).map_err(|e| format!("cannot read {}: {e}", file.display()))?;
    match replay(target, &input) {
        Ok(_) => println!("{}: no finding", target.name),
        Err(what) => {
            println!("{}: {what}", target.name);
            return Ok(false);
        }
    }
    Ok(true)
}

fn target_named(name: &str) -> Result<&'static Target, String> {
    targets::named(name).ok_or_else(|| format!("there is no target {name}\n{USAGE}"))
}

/// A short name for an input.
fn short_name(input: &[u8]) -> String {
    use ledger_core::hash::{Blake3, Hasher as _};
    Blake3::digest(input).to_string()[..12].to_owned()
}
