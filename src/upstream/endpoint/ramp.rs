//! How far an endpoint that is new or back has got in its slow start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::clock::Millis;

/// The share of its weight with which an endpoint begins.
const RAMP_MIN: f64 = 0.1;

/// It has risen, and nobody has looked since.
const RISEN: u64 = u64::MAX;

/// When a ramp began, in milliseconds of process time; zero where none ever did, [`RISEN`] before the first look: what
/// brings an endpoint back need not know the time, and time in which nobody wants the endpoint is not part of its start.
#[derive(Debug, Default)]
pub(super) struct Ramp(AtomicU64);

impl Ramp {
    pub(super) fn rise(&self) {
        self.0.store(RISEN, Ordering::Relaxed);
    }

    /// From [`RAMP_MIN`] to 1.0 within `length`.
    pub(super) fn at(&self, now: Millis, length: Duration) -> f64 {
        let began = match self.0.load(Ordering::Relaxed) {
            0 => return 1.0,
            RISEN => {
                let began = now.0.max(1);
                // Of several workers that look first, one says when; they are no more than a moment apart.
                let _ = self.0.compare_exchange(RISEN, began, Ordering::Relaxed, Ordering::Relaxed);
                began
            }
            began => began,
        };
        let elapsed = now.0.saturating_sub(began) as f64 / (length.as_millis() as f64).max(1.0);
        (RAMP_MIN + (1.0 - RAMP_MIN) * elapsed).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ramp_begins_at_the_first_look_and_rises_in_a_line() {
        let (ramp, length) = (Ramp::default(), Duration::from_secs(30));
        assert_eq!(ramp.at(Millis(5), length), 1.0, "it was always there");
        ramp.rise();
        let at = |ms: u64| (ramp.at(Millis(1_000_000 + ms), length) * 100.0).round();
        assert_eq!([0, 10_000, 20_000, 30_000, 90_000].map(at), [10.0, 40.0, 70.0, 100.0, 100.0]);
        ramp.rise();
        assert_eq!(ramp.at(Millis(0), length), 0.1, "again, and at time zero too");
        assert_eq!(ramp.at(Millis(1), Duration::ZERO), 0.1);
        assert_eq!(ramp.at(Millis(2), Duration::ZERO), 1.0);
    }
}
