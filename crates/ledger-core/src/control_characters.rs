//! Characters that steer whatever shows them: what nobody may send to a terminal or a log through a name, a payload or a message.
//!
//! | characters | why |
//! | --- | --- |
//! | C0, DEL, C1 (general category Cc) | move the cursor, begin escape sequences (U+009B is one byte of such in some terminals), end lines |
//! | [`Bidi_Control`](https://www.unicode.org/reports/tr9/): U+061C, U+200E, U+200F, U+202A–202E, U+2066–2069 | show text in another order than it has (CVE-2021-42574, "Trojan Source") |
//! | U+2028, U+2029 | end lines |
//! | others that are shown as nothing: U+00AD, U+115F, U+1160, U+180E, U+200B, U+2060–206F, U+3164, U+FEFF, U+FFA0, U+FFF9–FFFB, U+1BCA0–1BCA3, U+1D173–1D17A, U+E0000–E007F | two names that look alike are not |
//!
//! The joiners U+200C and U+200D and the variation selectors are none: scripts and emoji need them.

use std::fmt::Write as _;

/// Returns whether a terminal shows nothing for a character, or shows the text around it differently because of it.
pub fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Returns the text with those characters escaped that are to be, as JSON writes them: it means the same within a string of
/// JSON. `None` if there are none.
pub fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Option<String> {
    if !text.chars().any(&is_escaped) {
        return None;
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if !is_escaped(c) => shown.push(c),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // A string takes all that is written to it.
                    let _ = write!(shown, "\\u{unit:04x}");
                }
            }
        }
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_unicode_calls_bidirectional_controls_and_what_ends_lines_steers() {
        // PropList.txt: Bidi_Control.
        let bidi = ['\u{61c}', '\u{200e}', '\u{200f}']
            .into_iter()
            .chain('\u{202a}'..='\u{202e}')
            .chain('\u{2066}'..='\u{2069}');
        assert_eq!(bidi.clone().count(), 12);
        assert!(bidi.chain(['\u{2028}', '\u{2029}', '\u{85}']).all(is_control));
        let controls = ('\0'..='\u{1f}').chain('\u{7f}'..='\u{9f}');
        assert_eq!(controls.clone().count(), 65);
        assert!(controls.into_iter().all(is_control));
        assert!(
            ['\u{200b}', '\u{feff}', '\u{3164}', '\u{e0041}', '\u{2062}', '\u{1d173}']
                .into_iter()
                .all(is_control)
        );
    }

    #[test]
    fn what_people_write_does_not_steer() {
        for text in [
            "naïve ✓ 日本 한국어 👩\u{200d}🔬 ❤\u{fe0f}",
            "می\u{200c}خواهم",
            "שלום العربية",
            "a\u{a0}b c\u{3000}d e\u{301}",
        ] {
            assert!(!text.chars().any(is_control), "{text}");
        }
        let count = (0..=0x10_ffff).filter_map(char::from_u32).filter(|c| is_control(*c)).count();
        assert_eq!(count, 242, "a change of the list is a change of this number");
    }

    #[test]
    fn an_escape_is_what_json_means_by_it() {
        assert_eq!(
            escaped("a\u{202e}b\u{e0001}\u{1d173}", is_control).unwrap(),
            "a\\u202eb\\udb40\\udc01\\ud834\\udd73"
        );
        assert_eq!(escaped("one\r\n\ttwo", is_control).unwrap(), "one\\r\\n\\ttwo");
        assert_eq!(escaped("one\r\n", |c| is_control(c) && c != '\n').unwrap(), "one\\r\n");
        assert_eq!(escaped("plain ✓", is_control), None);
    }
}
