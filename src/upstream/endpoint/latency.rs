//! How long an endpoint takes to answer.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::clock::Millis;

/// Time in which a latency loses its weight in the average to 1/e, in milliseconds.
const DECAY_MS: f64 = 10_000.0;

/// What is assumed of an endpoint that has not answered yet, in microseconds: slow enough that a new endpoint is not
/// flooded before its first answer, quick enough that it gets one.
pub(super) const UNKNOWN_LATENCY_US: u32 = 10_000;

/// Averages below this count as this, in microseconds, so that an idle endpoint never looks free of charge.
const LATENCY_US_MIN: f64 = 50.0;

/// Peak-sensitive moving average: a latency above the average replaces it at once, one below pulls it down the more
/// the longer ago the last one was. Without answers it fades, so that an endpoint that was slow is tried again.
///
/// The average (microseconds, 32 bits) and the time of the last answer (milliseconds, 32 bits, wraps after 49 days)
/// share one atomic, so that no thread sees one without the other. Zero is "never observed".
#[derive(Debug, Default)]
pub(super) struct Latency(AtomicU64);

impl Latency {
    pub(super) fn observe(&self, latency_us: u64, now: Millis) {
        let latency = u32::try_from(latency_us).unwrap_or(u32::MAX).max(1);
        let next = |packed: u64| {
            let average = if packed == 0 {
                f64::from(latency)
            } else {
                // At least a millisecond, so that answers of the same millisecond count too.
                let weight = (-elapsed_ms(packed, now).max(1.0) / DECAY_MS).exp();
                let faded = f64::from(low_half(packed)) * weight;
                if f64::from(latency) > faded {
                    f64::from(latency)
                } else {
                    faded + f64::from(latency) * (1.0 - weight)
                }
            };
            // In range: it lies between two values of 32 bits. At least 1 keeps it apart from "never".
            Some(u64::from(low_half(now.0)) << 32 | u64::from((average.round() as u32).max(1)))
        };
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
    }

    pub(super) fn is_unknown(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    pub(super) fn average_us(&self, now: Millis) -> f64 {
        match self.0.load(Ordering::Relaxed) {
            0 => f64::from(UNKNOWN_LATENCY_US),
            packed => {
                let faded = f64::from(low_half(packed)) * (-elapsed_ms(packed, now) / DECAY_MS).exp();
                faded.max(LATENCY_US_MIN)
            }
        }
    }
}

/// Milliseconds since a packed average was written. Times of other threads may lie a little ahead: that is zero.
fn elapsed_ms(packed: u64, now: Millis) -> f64 {
    let elapsed = low_half(now.0).wrapping_sub(low_half(packed >> 32));
    if elapsed > u32::MAX / 2 { 0.0 } else { f64::from(elapsed) }
}

fn low_half(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0)
}
