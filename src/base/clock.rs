//! The one clock: monotonic milliseconds since the process began, and wall time.
//!
//! `std::time::Instant` is used here and nowhere else (`tests/tidy.rs` checks it), so that pure code takes times as
//! plain numbers and tests move time by hand.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::time::ClockId;

/// Milliseconds since the process began. 64 bits last 584 million years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// This moment moved into the future; saturates.
    pub fn after(self, duration: Duration) -> Millis {
        Millis(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

fn epoch() -> Instant {
    static EPOCH: OnceLock<Instant> = OnceLock::new();
    *EPOCH.get_or_init(Instant::now)
}

/// Now, in whole milliseconds of process time.
pub fn now() -> Millis {
    Millis(u64::try_from(epoch().elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Now, in microseconds of process time: for latencies.
pub fn micros() -> u64 {
    let elapsed = epoch().elapsed();
    // Not `as_micros`: 128 bits are more than is needed, nine times a request.
    elapsed.as_secs() * 1_000_000 + u64::from(elapsed.subsec_micros())
}

/// Now, in microseconds since the machine started, as of the kernel's last tick: up to 10 ms old, and several times
/// cheaper than [`micros`]. For how much time lies between two moments, and nothing else.
pub fn coarse_micros() -> u64 {
    kernel_micros(ClockId::MonotonicCoarse)
}

/// Processor time that this thread has used, in microseconds.
pub fn thread_micros() -> u64 {
    kernel_micros(ClockId::ThreadCPUTime)
}

fn kernel_micros(clock: ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    let (seconds, nanos) =
        (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    seconds * 1_000_000 + nanos / 1000
}

/// Wall clock, as the time since 1970 (UTC); zero if the clock stands before that.
pub fn wall() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO)
}

/// Days since 1970 as year, month and day of the Gregorian calendar. Years are counted from March, so that the
/// leap day is the last of its year; an era is the 400 years after which the calendar repeats.
pub fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coarse_clock_goes_on_and_never_back() {
        let first = coarse_micros();
        let mut last = first;
        while last == first {
            let now = coarse_micros();
            assert!(now >= last);
            last = now;
        }
    }
}
