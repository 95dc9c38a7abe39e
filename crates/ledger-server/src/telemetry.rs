//! Logs: text for people or JSON for machines, on standard error.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write},
};

use tracing_subscriber::EnvFilter;

use crate::config::{Config, LogFormat};

/// Starts logging. Does nothing if the process logs already.
pub fn start(config: &Config) {
    // The filter was checked with the configuration.
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    // Without the last, a line that nobody reads any more (a closed pipe) would make whoever logs it panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Escaped(std::io::stderr()))
        .with_target(false)
        .log_internal_errors(false);
    let _ = match config.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// A log whose lines have nothing in them that clients wrote to steer a terminal. The subscriber escapes control characters;
/// this escapes what shows text in another order than it has, in a way that JSON understands.
struct Escaped<W>(W);

impl<W: Write> Write for Escaped<W> {
    /// Takes a whole line at a time, as the subscriber writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line).ok().and_then(escaped) {
            Some(escaped) => self.0.write_all(escaped.as_bytes())?,
            None => self.0.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The text with those characters escaped; `None` if it has none.
fn escaped(text: &str) -> Option<String> {
    let steers = |c: char| {
        matches!(c, '\u{80}'..='\u{9f}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.contains(steers).then(|| {
        text.chars().fold(String::with_capacity(text.len()), |mut shown, c| {
            if steers(c) {
                let _ = write!(shown, "\\u{:04x}", u32::from(c));
            } else {
                shown.push(c);
            }
            shown
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped_in_log_lines() {
        let mut out = Vec::new();
        Escaped(&mut out).write_all("context=a\u{202e}b\u{9b}2J ✓\n".as_bytes()).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "context=a\\u202eb\\u009b2J ✓\n");
    }
}
