//! Whether a peer that is waited for moves fast enough.
//!
//! Only the time in which the peer is waited for counts, so that a slow backend or a quiet event stream is nobody's
//! fault. It is judged in windows of waiting: what was fast before buys no leave to trickle later.

use std::cell::Cell;
use std::time::Duration;

use crate::base::clock::Millis;

/// The pace of one direction of one peer.
pub struct Pace {
    /// Bytes in a second of waiting; 0 = any.
    rate: u64,
    /// Milliseconds of waiting after which it is judged.
    window: u64,
    since: Cell<Option<Millis>>,
    waited: Cell<u64>,
    moved: Cell<u64>,
}

impl Pace {
    /// At least `rate` bytes in a second (0 = any), judged whenever the peer was waited for as long as `window`.
    pub fn new(rate: u64, window: Duration) -> Pace {
        let window = u64::try_from(window.as_millis()).unwrap_or(u64::MAX).max(1);
        Pace { rate, window, since: Cell::new(None), waited: Cell::new(0), moved: Cell::new(0) }
    }

    /// The peer is waited for from now on, if it was not before.
    pub fn wait(&self, now: Millis) {
        if self.since.get().is_none() {
            self.since.set(Some(now));
        }
    }

    /// The peer moved so many bytes; whether it has been too slow.
    #[must_use]
    pub fn moved(&self, now: Millis, bytes: u64) -> bool {
        let moved = self.moved.get().saturating_add(bytes);
        self.moved.set(moved);
        let Some(since) = self.since.take() else { return false };
        let waited = self.waited.get().saturating_add(now.0.saturating_sub(since.0));
        self.waited.set(waited);
        if waited < self.window {
            return false;
        }
        self.waited.set(0);
        self.moved.set(0);
        // Both sides times a thousand: the wait is in milliseconds.
        moved.saturating_mul(1_000) < self.rate.saturating_mul(waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000;

    #[test]
    fn a_trickle_is_too_slow_and_what_was_fast_before_does_not_help() {
        let pace = Pace::new(100, Duration::from_secs(30));
        assert!(!pace.moved(Millis(0), 1 << 30));
        let mut slow = 0;
        for turn in 0..20 {
            pace.wait(Millis(turn * 10 * SECOND));
            slow += u32::from(pace.moved(Millis((turn * 10 + 9) * SECOND), 1));
        }
        // 180 s of waiting are five windows; the gigabyte saves the first.
        assert_eq!(slow, 4);
    }

    #[test]
    fn who_is_not_waited_for_or_fast_enough_is_left_alone() {
        let pace = Pace::new(100, Duration::from_secs(30));
        for turn in 0..1_000 {
            assert!(!pace.moved(Millis(turn * 60 * SECOND), 1), "nobody waited");
        }
        for turn in 0..100 {
            pace.wait(Millis(turn * 10 * SECOND));
            pace.wait(Millis((turn * 10 + 5) * SECOND));
            assert!(!pace.moved(Millis((turn + 1) * 10 * SECOND), 1_000));
        }
        let any = Pace::new(0, Duration::from_secs(1));
        any.wait(Millis(0));
        assert!(!any.moved(Millis(u64::MAX), 0));
    }
}
