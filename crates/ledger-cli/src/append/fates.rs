//! What became of each line: as ranges, for nearly all lines share the fate of the one before.

use serde_json::{Value, json};

/// Ranges that are shown; beyond that they are counted.
const SHOWN: usize = 10;

/// Numbers in ranges, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<(u64, u64)>);

impl Ranges {
    /// Adds a number. Those that come are nearly in order.
    pub(super) fn add(&mut self, number: u64) {
        let at = self.0.partition_point(|(_, last)| *last < number);
        let joins_next = self.0.get(at).is_some_and(|(first, _)| *first == number + 1);
        let joins_last = at > 0 && self.0[at - 1].1 + 1 == number;
        match (joins_last, joins_next) {
            (true, true) => {
                self.0[at - 1].1 = self.0[at].1;
                self.0.remove(at);
            }
            (true, false) => self.0[at - 1].1 = number,
            (false, true) => self.0[at].0 = number,
            (false, false) => self.0.insert(at, (number, number)),
        }
    }

    pub(super) fn has(&self, number: u64) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < number);
        self.0.get(at).is_some_and(|(first, _)| *first <= number)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn count(&self) -> u64 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// "3 to 7, 9 and 12 to 14"
    pub(super) fn text(&self) -> String {
        let range = |(first, last): &(u64, u64)| {
            if first == last { first.to_string() } else { format!("{first} to {last}") }
        };
        let mut parts: Vec<_> = self.0.iter().take(SHOWN).map(range).collect();
        if self.0.len() > SHOWN {
            parts.push(format!("others ({} in all)", self.count()));
        }
        match parts.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} and {last}", others.join(", ")),
            None => "none".to_owned(),
        }
    }

    pub(super) fn object(&self) -> Value {
        self.0.iter().map(|(first, last)| json!([first, last])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_kept_in_ranges_in_whatever_order_they_come() {
        let mut ranges = Ranges::default();
        for number in [3, 1, 2, 9, 7, 5, 6, 12] {
            ranges.add(number);
        }
        assert_eq!(ranges.0, [(1, 3), (5, 7), (9, 9), (12, 12)]);
        assert_eq!((ranges.text().as_str(), ranges.count()), ("1 to 3, 5 to 7, 9 and 12", 8));
        let mut many = Ranges::default();
        (0..100).for_each(|number| many.add(number * 2 + 1));
        assert!(many.text().ends_with("and others (100 in all)"), "{}", many.text());
        assert_eq!(Ranges::default().text(), "none");
    }
}
