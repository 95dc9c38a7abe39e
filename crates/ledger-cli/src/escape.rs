//! Foreign text for a terminal: names, payloads and messages are whatever somebody wrote.
//!
//! A control character moves the cursor or begins an escape sequence (U+009B is one byte of such in some terminals), and
//! a character of the bidirectional algorithm (U+202E) shows text in another order than it has. Neither reaches a
//! terminal: both are written as their code.

use std::fmt::Write as _;

/// Longest text of a cell of a table, characters: one long name does not widen every row.
const CELL: usize = 48;

/// Whether a character changes how what is around it is shown, or is shown as nothing at all. The joiners that scripts and
/// emoji need are none.
pub(crate) fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Text on one line.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if is_unsafe(c) => {
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
    if !text.chars().any(|c| is_unsafe(c) && c != '\n') {
        return text.to_owned();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(shown, "\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    shown
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
            assert!(!shown.chars().any(is_unsafe), "{:x}", u32::from(c));
        }
    }

    #[test]
    fn json_means_what_it_meant() {
        let value = serde_json::json!({ "a\u{202e}": "x\u{9b}\u{e0001}\x1b\n✓" });
        let shown = json(&value.to_string());
        assert!(!shown.chars().any(is_unsafe), "{shown}");
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
