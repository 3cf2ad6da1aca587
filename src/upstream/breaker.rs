//! The circuit breaker of a service. Pure: times come from the caller.
//!
//! A service that fails as a whole is left alone: its requests are refused at once, so that neither they nor the
//! clients behind them pile up before something that cannot answer. After `open` one request is let through; if it is
//! answered the service is back, else the next trial is `open` later.
//!
//! How it differs from taking endpoints out (`endpoint`): that is about one endpoint among others, shifts its requests
//! to them, and fails open when all are bad. A breaker counts requests after all their tries, and says no.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::base::clock::Millis;
use crate::config::model;

/// Parts of the window; what is older than the window leaves it a part at a time.
const PARTS: u64 = 10;
/// Bits of a packed part: its number, requests, failures.
const COUNT_BITS: u32 = 20;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const NUMBER_MAX: u64 = (1 << 24) - 1;

/// What a service's breaker knows. Outlives reloads.
#[derive(Debug, Default)]
pub struct Breaker {
    parts: [AtomicU64; PARTS as usize],
    /// When the next trial is due, in milliseconds of process time; zero while closed.
    open_until: AtomicU64,
}

/// Whether a request may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Yes.
    Closed,
    /// Yes: it is the one that shows whether the service is back.
    Trial,
    /// No, and not before this time has passed.
    Open(Duration),
}

/// What a report changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// From now on requests are refused.
    Opened,
    /// From now on they are not.
    Closed,
}

impl Breaker {
    /// Asks for leave.
    pub fn ask(&self, rule: &model::Breaker, now: Millis) -> Pass {
        let until = self.open_until.load(Ordering::Acquire);
        if until == 0 {
            return Pass::Closed;
        }
        if until > now.0 {
            return Pass::Open(Duration::from_millis(until - now.0));
        }
        // Who moves the time on has the trial; one whose end is never reported blocks nothing.
        let next = now.after(rule.open).0;
        match self.open_until.compare_exchange(until, next, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Pass::Trial,
            Err(0) => Pass::Closed,
            Err(_) => Pass::Open(rule.open),
        }
    }

    /// A request that had leave has ended.
    pub fn report(&self, rule: &model::Breaker, now: Millis, pass: Pass, failed: bool) -> Change {
        if pass == Pass::Trial {
            if failed {
                return Change::None;
            }
            self.forget();
            let was = self.open_until.swap(0, Ordering::AcqRel);
            return if was == 0 { Change::None } else { Change::Closed };
        }
        if self.open_until.load(Ordering::Acquire) != 0 {
            // Sent before it opened: what is known of it is known.
            return Change::None;
        }
        self.count(rule, now, failed);
        if !failed || !self.is_failing(rule, now) {
            return Change::None;
        }
        let until = now.after(rule.open).0.max(1);
        match self.open_until.compare_exchange(0, until, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Change::Opened,
            Err(_) => Change::None,
        }
    }

    /// Whether requests are refused, trials excepted.
    pub fn is_open(&self) -> bool {
        self.open_until.load(Ordering::Relaxed) != 0
    }

    /// A reload took the breaker away: nobody would ever close it.
    pub fn reset(&self) {
        self.forget();
        self.open_until.store(0, Ordering::Release);
    }

    fn forget(&self) {
        self.parts.iter().for_each(|part| part.store(0, Ordering::Relaxed));
    }

    fn count(&self, rule: &model::Breaker, now: Millis, failed: bool) {
        let number = part_number(rule, now);
        let Some(part) = self.parts.get(usize::try_from(number % PARTS).unwrap_or(0)) else { return };
        let add = |packed| {
            let (of, all, bad) = unpack(packed);
            let (all, bad) = if of == number & NUMBER_MAX { (all, bad) } else { (0, 0) };
            Some(pack(number, (all + 1).min(COUNT_MAX), (bad + u64::from(failed)).min(COUNT_MAX)))
        };
        let _ = part.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    fn is_failing(&self, rule: &model::Breaker, now: Millis) -> bool {
        let newest = part_number(rule, now) & NUMBER_MAX;
        let (mut all, mut bad) = (0, 0);
        for part in &self.parts {
            let (number, of_part, bad_of_part) = unpack(part.load(Ordering::Relaxed));
            if newest.wrapping_sub(number) & NUMBER_MAX < PARTS {
                all += of_part;
                bad += bad_of_part;
            }
        }
        all >= u64::from(rule.requests) && bad * 100 >= all * u64::from(rule.failures)
    }
}

/// Counted from one, so that an empty part belongs to no time.
fn part_number(rule: &model::Breaker, now: Millis) -> u64 {
    let part = u64::try_from(rule.window.as_millis()).unwrap_or(u64::MAX) / PARTS;
    now.0 / part.max(1) + PARTS
}

fn pack(number: u64, all: u64, bad: u64) -> u64 {
    (number & NUMBER_MAX) << (2 * COUNT_BITS) | all << COUNT_BITS | bad
}

fn unpack(packed: u64) -> (u64, u64, u64) {
    (packed >> (2 * COUNT_BITS), packed >> COUNT_BITS & COUNT_MAX, packed & COUNT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> model::Breaker {
        let (window, open) = (Duration::from_secs(10), Duration::from_secs(5));
        model::Breaker { failures: 50, requests: 20, window, open }
    }

    fn run(breaker: &Breaker, at: u64, failed: bool) -> Change {
        let pass = breaker.ask(&rule(), Millis(at));
        assert!(!matches!(pass, Pass::Open(_)), "refused at {at}");
        breaker.report(&rule(), Millis(at), pass, failed)
    }

    #[test]
    fn it_opens_at_the_share_and_not_before_enough_requests() {
        let breaker = Breaker::default();
        for at in 0..19 {
            assert_eq!(run(&breaker, at, true), Change::None);
        }
        assert_eq!(run(&breaker, 19, true), Change::Opened);
        assert_eq!(breaker.ask(&rule(), Millis(20)), Pass::Open(Duration::from_millis(4_999)));
        let breaker = Breaker::default();
        for at in 0..200 {
            assert_eq!(run(&breaker, at, at % 5 < 2), Change::None, "{at}");
        }
    }

    #[test]
    fn failures_leave_the_window() {
        let breaker = Breaker::default();
        for at in 0..15 {
            run(&breaker, at, true);
        }
        for at in 0..15 {
            assert_eq!(run(&breaker, 11_000 + at, true), Change::None);
        }
        for at in 0..4 {
            assert_eq!(run(&breaker, 12_000 + at, true), Change::None);
        }
        assert_eq!(run(&breaker, 12_010, true), Change::Opened);
    }

    #[test]
    fn one_trial_at_a_time_closes_it_when_it_is_answered() {
        let breaker = Breaker::default();
        for at in 0..20 {
            run(&breaker, at, true);
        }
        let ask = |at| breaker.ask(&rule(), Millis(at));
        assert_eq!(ask(5_018), Pass::Open(Duration::from_millis(1)));
        assert_eq!(ask(5_019), Pass::Trial);
        assert!(matches!(ask(5_019), Pass::Open(_)), "one is enough");
        assert_eq!(breaker.report(&rule(), Millis(5_100), Pass::Trial, true), Change::None);
        assert!(matches!(ask(10_018), Pass::Open(_)));
        // A trial whose client went away is never reported.
        assert_eq!((ask(10_019), ask(15_019)), (Pass::Trial, Pass::Trial));
        assert_eq!(
            breaker.report(&rule(), Millis(15_050), Pass::Closed, false),
            Change::None,
            "an old request"
        );
        assert_eq!(breaker.report(&rule(), Millis(15_100), Pass::Trial, false), Change::Closed);
        assert_eq!(ask(15_101), Pass::Closed);
        // What was before is forgotten.
        for at in 0..19 {
            assert_eq!(run(&breaker, 15_200 + at, true), Change::None);
        }
    }

    #[test]
    fn counts_are_bounded_and_the_end_of_numbers_is_survived() {
        let breaker = Breaker::default();
        for at in [0, u64::MAX / 2, (NUMBER_MAX - 5) * 1_000, (NUMBER_MAX + 5) * 1_000] {
            for i in 0..19 {
                assert_eq!(run(&breaker, at + i, true), Change::None);
            }
            run(&breaker, at + 20, false);
        }
        let full = pack(NUMBER_MAX, COUNT_MAX, COUNT_MAX);
        assert_eq!(unpack(full), (NUMBER_MAX, COUNT_MAX, COUNT_MAX));
    }
}
