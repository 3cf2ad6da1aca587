//! A latency histogram with one writer: fixed buckets, integers only.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds in microseconds, inclusive: 0.5 ms to 60 s. Round numbers, because people set alerts on them.
pub const BOUNDS: [u64; 16] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// Buckets: one for each bound and one for what lies above.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// The bucket of a value: a binary search of four comparisons.
pub fn bucket(micros: u64) -> usize {
    BOUNDS.partition_point(|bound| *bound < micros)
}

/// Counts of one worker. One thread writes, any may read.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Histogram {
    /// Counts one value. Must only be called by the thread that owns the histogram.
    pub fn observe(&self, micros: u64) {
        if let Some(count) = self.counts.get(bucket(micros)) {
            super::shard::bump(count, 1);
        }
        super::shard::bump(&self.sum, micros);
    }
}

/// Histograms added up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Values in each bucket, not cumulative.
    pub counts: [u64; BUCKETS],
    /// Sum of the values in microseconds.
    pub sum: u64,
}

impl Totals {
    /// Adds what a worker counted.
    pub fn add(&mut self, histogram: &Histogram) {
        for (total, count) in self.counts.iter_mut().zip(&histogram.counts) {
            *total = total.wrapping_add(count.load(Relaxed));
        }
        self.sum = self.sum.wrapping_add(histogram.sum.load(Relaxed));
    }

    /// Adds other totals.
    pub fn merge(&mut self, other: &Totals) {
        for (total, count) in self.counts.iter_mut().zip(&other.counts) {
            *total = total.wrapping_add(*count);
        }
        self.sum = self.sum.wrapping_add(other.sum);
    }

    /// How many values were counted. Derived from the buckets, so that a scrape never shows a count that its own
    /// buckets contradict.
    pub fn count(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.wrapping_add(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive_and_every_value_has_a_bucket() {
        assert!(BOUNDS.is_sorted());
        assert_eq!(bucket(0), 0);
        for (i, bound) in BOUNDS.iter().enumerate() {
            assert_eq!(bucket(*bound), i);
            assert_eq!(bucket(*bound + 1), i + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn totals_add_up() {
        let (a, b) = (Histogram::default(), Histogram::default());
        a.observe(400);
        a.observe(2_000_000);
        b.observe(500);
        let mut totals = Totals::default();
        totals.add(&a);
        totals.add(&b);
        assert_eq!((totals.counts[0], totals.counts[11], totals.count(), totals.sum), (2, 1, 3, 2_000_900));
    }
}
