//! How values are spread: a histogram that is exact for small values and to one in sixty-four for larger ones, and
//! bounded whatever comes.

use std::collections::BTreeMap;

/// Bits of a value that are told apart.
const BITS: u32 = 7;

/// A histogram of whole numbers. At most some four thousand different values are told apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spread {
    counts: BTreeMap<u64, u64>,
    max: u64,
}

impl Spread {
    /// `times` values more.
    pub fn add(&mut self, value: u64, times: u64) {
        if times > 0 {
            *self.counts.entry(rounded(value)).or_default() += times;
            self.max = self.max.max(value);
        }
    }

    /// Adds another one.
    pub fn merge(&mut self, other: &Spread) {
        for (value, times) in &other.counts {
            *self.counts.entry(*value).or_default() += times;
        }
        self.max = self.max.max(other.max);
    }

    /// How many values.
    pub fn count(&self) -> u64 {
        self.counts.values().sum()
    }

    /// The largest value.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value that so many of a thousand do not exceed; 0 where there is none.
    pub fn quantile(&self, permille: u64) -> u64 {
        let rank = self.count().saturating_mul(permille).div_ceil(1000).max(1);
        let mut so_far = 0u64;
        for (value, times) in &self.counts {
            so_far += times;
            if so_far >= rank {
                return (*value).min(self.max);
            }
        }
        self.max
    }

    /// What lies above a bound, added up: of each value the part that is more.
    pub fn excess(&self, bound: u64) -> u64 {
        let above = self.counts.range(bound.saturating_add(1)..);
        above.map(|(value, times)| ((*value).min(self.max) - bound).saturating_mul(*times)).sum()
    }

    /// How many values lie above a bound.
    pub fn above(&self, bound: u64) -> u64 {
        self.counts.range(bound.saturating_add(1)..).map(|(_, times)| times).sum()
    }
}

/// Rounds up what is too large to be told apart exactly: a bound that is taken from it is never too tight.
fn rounded(value: u64) -> u64 {
    let below = (u64::BITS - value.leading_zeros()).saturating_sub(BITS);
    value | ((1u64 << below) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_values_are_exact_and_large_ones_never_too_small() {
        for value in 0..128 {
            assert_eq!(rounded(value), value);
        }
        for value in [129u64, 1_000, 65_535, 1 << 40, u64::MAX - 3, u64::MAX] {
            let up = rounded(value);
            assert!(up >= value && up - value <= value / 64, "{value}: {up}");
        }
    }

    #[test]
    fn quantiles_and_excess_are_those_of_the_values() {
        let mut spread = Spread::default();
        (1..=100).for_each(|value| spread.add(value, 1));
        assert_eq!([500, 900, 990, 999, 1000].map(|q| spread.quantile(q)), [50, 90, 99, 100, 100]);
        assert_eq!((spread.excess(98), spread.above(98), spread.excess(100)), (1 + 2, 2, 0));
        let mut other = Spread::default();
        other.add(1_000_000, 2);
        spread.merge(&other);
        assert_eq!((spread.count(), spread.max(), spread.quantile(1000)), (102, 1_000_000, 1_000_000));
        assert_eq!(Spread::default().quantile(500), 0);
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut spread = Spread::default();
        (0..200_000u64).for_each(|at| spread.add(at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (at % 64), 1));
        assert!(spread.counts.len() <= 128 + 57 * 64, "{}", spread.counts.len());
    }
}
