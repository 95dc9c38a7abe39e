//! Logs: text for people or JSON for machines, on standard error.

use std::io::{self, IsTerminal as _, Write};

use ledger_core::control_characters;
use tracing_subscriber::EnvFilter;

use crate::settings::config::{Config, LogFormat};

/// Starts logging. Does nothing if the process logs already.
pub fn start(config: &Config) {
    // The filter was checked with the configuration.
    let filter = EnvFilter::try_new(&config.log).unwrap_or_else(|_| EnvFilter::new("info"));
    let is_colored = config.log_format == LogFormat::Text && io::stderr().is_terminal();
    // Without the last, a line that nobody reads any more (a closed pipe) would make whoever logs it panic.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Escaped { out: io::stderr(), is_colored })
        .with_target(false)
        .log_internal_errors(false);
    let _ = match config.log_format {
        LogFormat::Text => builder.with_ansi(is_colored).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// A log whose lines have nothing in them that clients wrote to steer a terminal, or to look like a line of its own, in a way that
/// JSON understands.
struct Escaped<W> {
    out: W,
    /// Whether the subscriber colours its lines.
    is_colored: bool,
}

/// The sequences by which it does.
const COLOURS: [&str; 10] = ["[0m", "[1m", "[2m", "[3m", "[31m", "[32m", "[33m", "[34m", "[35m", "[36m"];

impl<W: Write> Write for Escaped<W> {
    /// Takes a whole line at a time, as the subscriber writes it.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(line).ok().and_then(|line| escaped(line, self.is_colored)) {
            Some(escaped) => self.out.write_all(escaped.as_bytes())?,
            None => self.out.write_all(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The line with those characters escaped; `None` if it has none. The end of the line is its own, and so are the sequences by which
/// the subscriber colours it; it lets those of values through as well.
fn escaped(line: &str, is_colored: bool) -> Option<String> {
    let (text, end) = line.strip_suffix('\n').map_or((line, ""), |text| (text, "\n"));
    if !text.chars().any(control_characters::is_control) {
        return None;
    }
    let mut shown = String::with_capacity(line.len());
    for (at, mut piece) in text.split('\x1b').enumerate() {
        if at > 0 {
            let colour = COLOURS.into_iter().find(|colour| is_colored && piece.starts_with(colour));
            shown.push_str(if colour.is_some() { "\x1b" } else { "\\u001b" });
            let (colour, rest) = piece.split_at(colour.map_or(0, str::len));
            shown.push_str(colour);
            piece = rest;
        }
        match control_characters::escaped(piece, control_characters::is_control) {
            Some(escaped) => shown.push_str(&escaped),
            None => shown.push_str(piece),
        }
    }
    shown.push_str(end);
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped_in_log_lines() {
        let mut out = Vec::new();
        Escaped { out: &mut out, is_colored: false }
            .write_all("context=a\u{202e}b\u{9b}2J ✓\n".as_bytes())
            .unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "context=a\\u202eb\\u009b2J ✓\n");
        // Nobody writes lines that are not the node's.
        let mut out = Vec::new();
        Escaped { out: &mut out, is_colored: false }
            .write_all("WARN refused reason=x\r\nERROR \u{2028}all is lost\u{e0041}\n".as_bytes())
            .unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "WARN refused reason=x\\r\\nERROR \\u2028all is lost\\udb40\\udc41\n"
        );
    }

    #[test]
    fn no_escape_sequence_of_a_value_comes_through() {
        #[derive(Clone, Default)]
        struct Lines(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);
        impl Write for Lines {
            fn write(&mut self, line: &[u8]) -> io::Result<usize> {
                self.0.lock().extend(line);
                Ok(line.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        for (is_json, is_colored) in [(false, false), (false, true), (true, false)] {
            let lines = Lines::default();
            let out = lines.clone();
            let writer = move || Escaped { out: out.clone(), is_colored };
            let builder = tracing_subscriber::fmt().with_writer(writer).with_ansi(is_colored);
            let value = "a\x1b[2Jb\x1b[8m\x07\r\nc";
            let say = || tracing::warn!(shown = %value, debugged = ?value, "said {value}");
            if is_json {
                tracing::subscriber::with_default(builder.json().flatten_event(true).finish(), say);
            } else {
                tracing::subscriber::with_default(builder.finish(), say);
            }
            let text = String::from_utf8(lines.0.lock().clone()).unwrap();
            let mut text = text.strip_suffix('\n').unwrap().to_owned();
            assert_eq!(is_colored, text.contains("\x1b[33m"), "{text:?}");
            for colour in COLOURS {
                text = text.replace(&format!("\x1b{colour}"), "");
            }
            assert!(!text.chars().any(control_characters::is_control), "{text:?}");
        }
    }
}
