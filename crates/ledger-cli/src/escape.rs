//! Foreign text for a terminal: names, payloads and messages are whatever somebody wrote.
//!
//! A control character moves the cursor or begins an escape sequence (U+009B is one byte of such in some terminals), and
//! a character of the bidirectional algorithm (U+202E) shows text in another order than it has. Neither reaches a
//! terminal: both are written as their code. Which these are says [`ledger_core::control_characters`].

use std::fmt::Write as _;

use ledger_core::control_characters;
pub(crate) use ledger_core::control_characters::is_control;

/// Longest text of a cell of a table, characters: one long name does not widen every row.
const CELL: usize = 48;

/// Text on one line.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if is_control(c) => {
                let _ = write!(shown, "\\u{{{:x}}}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
    shown
}

/// Text of several lines, which stay.
pub(crate) fn visible_lines(text: &str) -> String {
    text.split('\n').map(visible).collect::<Vec<_>>().join("\n")
}

/// Text for a cell of a table: shortened in its middle, for names differ at both ends.
pub(crate) fn cell(text: &str) -> String {
    let text = visible(text);
    let count = text.chars().count();
    if count <= CELL {
        return text;
    }
    let half = (CELL - 1) / 2;
    let first: String = text.chars().take(half).collect();
    let last: String = text.chars().skip(count - half).collect();
    format!("{first}…{last}")
}

/// JSON whose strings have no such character, but its escape, which means the same.
pub(crate) fn json(text: &str) -> String {
    control_characters::escaped(text, |c| is_control(c) && c != '\n').unwrap_or_else(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_left() {
        assert_eq!(visible("a\u{202e}b\u{9b}2J\x1b[0m\r\n"), "a\\u{202e}b\\u{9b}2J\\u{1b}[0m\\r\\n");
        assert_eq!(visible("naïve ✓ 日本 👩\u{200d}🔬"), "naïve ✓ 日本 👩\u{200d}🔬");
        assert_eq!(visible_lines("one\ntwo\u{2066}"), "one\ntwo\\u{2066}");
        for c in (0..=0x10_ffff).filter_map(char::from_u32) {
            let shown = visible(&c.to_string());
            assert!(!shown.chars().any(is_control), "{:x}", u32::from(c));
        }
    }

    #[test]
    fn json_means_what_it_meant() {
        let value = serde_json::json!({ "a\u{202e}": "x\u{9b}\u{e0001}\x1b\n✓" });
        let shown = json(&value.to_string());
        assert!(!shown.chars().any(is_control), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }

    #[test]
    fn long_names_keep_both_ends() {
        let name = format!("begin{}end", "x".repeat(500));
        let short = cell(&name);
        assert!(
            short.starts_with("begin") && short.ends_with("end") && short.chars().count() <= CELL,
            "{short}"
        );
        assert_eq!(cell("short"), "short");
    }
}
