//! Progress of long transfers, on a terminal only.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar over so many bytes, or a count of bytes if the total is unknown.
pub(crate) fn bytes(total: Option<u64>) -> ProgressBar {
    match total {
        Some(total) => bar(ProgressBar::new(total), "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}"),
        None => bar(ProgressBar::no_length(), "{spinner} {bytes} {bytes_per_sec}"),
    }
}

/// A count of entries.
pub(crate) fn entries(total: Option<u64>) -> ProgressBar {
    match total {
        Some(total) => bar(ProgressBar::new(total), "{bar:40} {pos}/{len} entries {per_sec} {eta}"),
        None => bar(ProgressBar::no_length(), "{spinner} {pos} entries {per_sec}"),
    }
}

/// A count of slots.
pub(crate) fn slots(what: &'static str) -> ProgressBar {
    bar(ProgressBar::no_length(), "{spinner} {pos} slots {msg}").with_message(what)
}

fn bar(bar: ProgressBar, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
