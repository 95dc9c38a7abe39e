//! What is printed: text for people, or one JSON object per line.
//!
//! In JSON, what may pass 2^53, where JavaScript and jq round, is a string of digits, as in the JSON mapping of Protocol
//! Buffers: times in nanoseconds (with a twin in RFC 3339), Lamport times, epochs. Counts and sequences are numbers: no
//! context has as many entries.

use std::io::{self, IsTerminal as _, Write as _};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use ledger_client::Entry;
use serde_json::{Value, json};

pub(crate) use crate::escape::{cell, visible};
use crate::{args::PayloadFormat, escape};

/// How many bytes of a binary payload people are shown.
const PREVIEW: usize = 32;
/// Fields that may pass 2^53, besides those that end with `_ns`.
const LARGE: [&str; 7] = [
    "lamport_clock",
    "received_lamport",
    "epoch",
    "accepted_epoch",
    "promised_epoch",
    "placed_in",
    "incarnation",
];

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

    /// One result: the object, or the text, which has nothing in it that steers a terminal.
    pub(crate) fn result(&self, object: &Value, text: impl FnOnce() -> String) -> io::Result<()> {
        let line = if self.json { json_line(object.clone()) } else { escape::visible_lines(&text()) };
        print(format!("{line}\n").as_bytes())
    }

    /// One entry, on one line.
    pub(crate) fn entry(&self, entry: &Entry, payload: PayloadFormat) -> io::Result<()> {
        if let PayloadFormat::Raw = payload {
            return print(&[&entry.payload[..], b"\n"].concat());
        }
        self.result(&entry_json(entry, payload), || entry_line(entry, payload))
    }

    /// Says something that is no result, to people: not where programs read.
    pub(crate) fn note(&self, text: &str) {
        if !self.json {
            complain(&format!("ledgerctl: {text}"));
        }
    }
}

/// Writes to standard output at once.
pub(crate) fn print(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Writes a line to standard error, which may be closed.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(io::stderr(), "{}", escape::visible_lines(line));
}

/// Whether standard output is a terminal.
pub(crate) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// An object as it is printed.
pub(crate) fn json_line(mut object: Value) -> String {
    widen(&mut object);
    escape::json(&object.to_string())
}

/// Large numbers as strings, and times twice.
fn widen(value: &mut Value) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(widen),
        Value::Object(fields) => {
            let mut times = Vec::new();
            for (name, value) in fields.iter_mut() {
                let stem = name.strip_suffix("_ns");
                let Some(number) =
                    value.as_u64().filter(|_| stem.is_some() || LARGE.contains(&name.as_str()))
                else {
                    widen(value);
                    continue;
                };
                *value = number.to_string().into();
                times.extend(stem.map(|stem| (stem.to_owned(), exact_time(number))));
            }
            for (name, time) in times {
                fields.entry(name).or_insert(time.into());
            }
        }
        _ => {}
    }
}

/// An entry as an object: every field; the payload once, in the format that was asked for. As text if it is none: in base64.
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
    put_payload(&mut object, &entry.payload, payload);
    object
}

/// Puts a payload into an object, once.
pub(crate) fn put_payload(object: &mut Value, bytes: &[u8], format: PayloadFormat) {
    match (format, std::str::from_utf8(bytes)) {
        (PayloadFormat::Text, Ok(text)) => object["payload"] = text.into(),
        (PayloadFormat::Text, Err(_)) | (PayloadFormat::Base64, _) => {
            object["payload_base64"] = BASE64_STANDARD.encode(bytes).into();
        }
        (PayloadFormat::Hex, _) => object["payload_hex"] = hex::encode(bytes).into(),
        (PayloadFormat::None | PayloadFormat::Raw, _) => {}
    }
}

fn entry_line(entry: &Entry, payload: PayloadFormat) -> String {
    let mut line =
        format!("{:>6}  {}  {}", entry.sequence, time(entry.appended_at_ns), visible(entry.key.as_str()));
    let shown = match payload {
        PayloadFormat::Text => text(&entry.payload),
        PayloadFormat::Hex => hex::encode(&entry.payload),
        PayloadFormat::Base64 => BASE64_STANDARD.encode(&entry.payload),
        PayloadFormat::None | PayloadFormat::Raw => String::new(),
    };
    if !shown.is_empty() {
        line = format!("{line}  {shown}");
    }
    for (key, value) in &entry.metadata {
        line = format!("{line}  {}={}", visible(key), visible(value));
    }
    line
}

/// A payload for people: as it is if it is text, else the first bytes in hex digits.
pub(crate) fn text(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) if text.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\r' | '\t')) => visible(text),
        _ if payload.len() > PREVIEW => {
            format!("0x{}… ({} bytes)", hex::encode(&payload[..PREVIEW]), payload.len())
        }
        _ => format!("0x{}", hex::encode(payload)),
    }
}

/// A time to the nanosecond, RFC 3339.
fn exact_time(ns: u64) -> String {
    let whole = time(ns);
    format!("{}.{:09}Z", whole.trim_end_matches('Z'), ns % 1_000_000_000)
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
    fn what_javascript_would_round_is_a_string_and_times_are_given_twice() {
        let max = u64::MAX;
        let object = json!({ "sequence": 7, "appended_at_ns": 1_795_213_514_528_943_038_u64, "ours": [{ "epoch": max }],
            "survivors": [{ "accepted_epoch": max, "promised_epoch": 1, "placed_in": max, "entries": 7 }] });
        let read: Value = serde_json::from_str(&json_line(object)).unwrap();
        let expected = json!({
            "sequence": 7, "appended_at_ns": "1795213514528943038", "appended_at": "2026-11-20T22:25:14.528943038Z",
            "ours": [{ "epoch": "18446744073709551615" }],
            "survivors": [{
                "accepted_epoch": "18446744073709551615", "promised_epoch": "1", "placed_in": "18446744073709551615", "entries": 7,
            }],
        });
        assert_eq!(read, expected);
    }

    #[test]
    fn a_payload_is_there_once() {
        for (format, bytes, field) in [
            (PayloadFormat::Text, &b"text"[..], "payload"),
            (PayloadFormat::Text, b"\xff", "payload_base64"),
            (PayloadFormat::Base64, b"text", "payload_base64"),
            (PayloadFormat::Hex, b"text", "payload_hex"),
        ] {
            let mut object = json!({});
            put_payload(&mut object, bytes, format);
            assert_eq!(object.as_object().unwrap().keys().collect::<Vec<_>>(), [field]);
        }
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(time(0), "1970-01-01T00:00:00Z");
        assert_eq!(time(951_827_696_000_000_000), "2000-02-29T12:34:56Z");
        assert_eq!(time(1_795_213_514_528_943_038), "2026-11-20T22:25:14Z");
    }
}
