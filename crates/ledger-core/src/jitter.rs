//! Spreading pauses, so that nodes that failed at the same moment do not try again together.

/// A share of a pause, drawn at random by the shell: each pause takes another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jitter(pub u16);

impl Jitter {
    /// Returns a pause between half of a bound and the bound.
    pub fn spread(self, bound: u64) -> u64 {
        let half = bound / 2;
        bound - half + half.saturating_mul(u64::from(self.0)) / u64::from(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_between_half_of_its_bound_and_the_bound() {
        for bound in [0, 1, 500, 10_001] {
            assert_eq!(Jitter(u16::MAX).spread(bound), bound);
            assert_eq!(Jitter(0).spread(bound), bound - bound / 2);
        }
        assert_eq!(Jitter(u16::MAX / 2).spread(1000), 749);
    }
}
