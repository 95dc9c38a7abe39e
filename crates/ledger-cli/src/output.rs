//! What is printed: text for people, or one JSON object per line.

use std::io::{self, Write as _};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ledger_client::Entry;
use serde_json::{Value, json};

use crate::args::PayloadFormat;

/// How many bytes of a binary payload people are shown.
const PREVIEW: usize = 32;

/// Where results go.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read it.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// One result: the object, or the text.
    pub(crate) fn result(&self, object: &Value, text: impl FnOnce() -> String) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{object}")?;
        } else {
            writeln!(out, "{}", text())?;
        }
        out.flush()
    }

    /// One entry, on one line.
    pub(crate) fn entry(&self, entry: &Entry, payload: PayloadFormat) -> io::Result<()> {
        self.result(&entry_json(entry, payload), || entry_line(entry, payload))
    }
}

/// An entry as an object: every field; the payload as text if it is UTF-8, and in base64 always, unless
/// another format was asked for.
pub(crate) fn entry_json(entry: &Entry, payload: PayloadFormat) -> Value {
    let mut object = json!({
        "context_id": entry.context_id.as_str(),
        "sequence": entry.sequence.0,
        "id": entry.id.to_string(),
        "key": entry.key.as_str(),
        "metadata": entry.metadata,
        "appended_at_ns": entry.appended_at_ns,
        "lamport_clock": entry.lamport.0,
        "epoch": entry.epoch.0,
        "content_hash": entry.content_hash.to_string(),
        "payload_bytes": entry.payload.len(),
    });
    match payload {
        PayloadFormat::Text => {
            if let Ok(text) = std::str::from_utf8(&entry.payload) {
                object["payload"] = text.into();
            }
            object["payload_base64"] = BASE64_STANDARD.encode(&entry.payload).into();
        }
        PayloadFormat::Hex => object["payload_hex"] = hex::encode(&entry.payload).into(),
        PayloadFormat::Base64 => object["payload_base64"] = BASE64_STANDARD.encode(&entry.payload).into(),
        PayloadFormat::None => {}
    }
    object
}

fn entry_line(entry: &Entry, payload: PayloadFormat) -> String {
    let mut line =
        format!("{:>6}  {}  {}", entry.sequence, time(entry.appended_at_ns), visible(entry.key.as_str()));
    let shown = match payload {
        PayloadFormat::Text => text(&entry.payload),
        PayloadFormat::Hex => hex::encode(&entry.payload),
        PayloadFormat::Base64 => BASE64_STANDARD.encode(&entry.payload),
        PayloadFormat::None => String::new(),
    };
    if !shown.is_empty() {
        line = format!("{line}  {shown}");
    }
    for (key, value) in &entry.metadata {
        line = format!("{line}  {}={}", visible(key), visible(value));
    }
    line
}

/// A payload for people: as it is if it is printable, else the first bytes in hex digits.
pub(crate) fn text(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) if text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t')) => {
            text.replace('\n', "\\n")
        }
        _ if payload.len() > PREVIEW => {
            format!("0x{}… ({} bytes)", hex::encode(&payload[..PREVIEW]), payload.len())
        }
        _ => format!("0x{}", hex::encode(payload)),
    }
}

/// Text without what could steer a terminal.
pub(crate) fn visible(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// A time for people: UTC, to the second (days to civil date as Hinnant's `civil_from_days`).
pub(crate) fn time(ns: u64) -> String {
    let seconds = ns / 1_000_000_000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_shown_as_text_only_if_they_are() {
        assert_eq!(text(b"market_size: 2.4B"), "market_size: 2.4B");
        assert_eq!(text(b"two\nlines"), "two\\nlines");
        assert_eq!(text(b"\x1b[2J"), "0x1b5b324a");
        assert_eq!(text(&[0xff; 40]), format!("0x{}… (40 bytes)", "ff".repeat(32)));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_827_696_000_000_000), "2000-02-29T12:34:56Z");
        assert_eq!(time(1_795_213_514_528_943_038), "2026-11-20T22:25:14Z");
    }
}
