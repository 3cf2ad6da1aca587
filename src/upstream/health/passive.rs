//! Out for a time, tried by one request, back: what requests make of an endpoint.
//!
//! There is one state for both reasons to be out, so that they cannot contradict each other: an endpoint that cannot be
//! connected to ([`Cause::Connect`]) and one that was ejected because it fails requests. They differ in how long it is
//! out and in what brings it back: a connection, or a good answer. Whoever is out stays out for what it is out for.
//!
//! State, deadline and cause share one atomic, so that no thread sees one without the others. When the time is over one
//! request tries the endpoint: the compare-and-swap by which it takes the trial moves the time on as if it failed, so
//! that nobody else does and a trial whose end is never reported blocks nothing.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::base::clock::Millis;
use crate::config::model::Eject;

/// Failed connects in a row after which an endpoint is down.
pub const DOWN_AFTER: u32 = 2;

/// The first time an endpoint that cannot be connected to stays down, in milliseconds.
pub const BACKOFF_MIN_MS: u64 = 1_000;

/// The longest time it stays down between two trials, in milliseconds.
pub const BACKOFF_MAX_MS: u64 = 30_000;

/// Times an ejection is remembered to have happened, however often it did.
const TIMES_MAX: u32 = 1_000;

/// Why an endpoint is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Cause {
    /// It cannot be connected to.
    Connect = 1,
    /// Too many failures in a row.
    Consecutive = 2,
    /// Too many failures among its answers.
    ErrorRate = 3,
    /// Much slower than the others.
    Latency = 4,
}

impl Cause {
    /// Those of an ejection.
    pub const EJECTIONS: [Cause; 3] = [Cause::Consecutive, Cause::ErrorRate, Cause::Latency];

    /// The label in the metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Cause::Connect => "connect",
            Cause::Consecutive => "consecutive",
            Cause::ErrorRate => "error-rate",
            Cause::Latency => "latency",
        }
    }

    fn of(bits: u64) -> Cause {
        match bits {
            1 => Cause::Connect,
            3 => Cause::ErrorRate,
            4 => Cause::Latency,
            _ => Cause::Consecutive,
        }
    }
}

/// An endpoint that is out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Out {
    /// When one request may try it.
    pub until: Millis,
    /// One does already; `until` is then when the next may.
    pub tried: bool,
    /// Why.
    pub cause: Cause,
}

impl Out {
    /// Whether it is time to try it.
    pub fn due(&self, now: Millis) -> bool {
        self.until <= now
    }

    fn pack(self) -> u64 {
        // 56 bits of milliseconds are two million years.
        self.until.0.max(1) << 8 | u64::from(self.tried) << 7 | u64::from(self.cause as u8)
    }

    fn unpack(word: u64) -> Option<Out> {
        let out = || Out { until: Millis(word >> 8), tried: word & 0x80 != 0, cause: Cause::of(word & 0x7f) };
        (word != 0).then(out)
    }
}

/// Where an endpoint stands.
#[derive(Debug, Default)]
pub struct Standing {
    /// [`Out`], packed; zero is in.
    word: AtomicU64,
    /// Failed connects in a row.
    connects: AtomicU32,
    /// Failed requests in a row.
    failures: AtomicU32,
    /// How often it was ejected lately; `counted_at` is when that was true.
    times: AtomicU32,
    counted_at: AtomicU64,
}

impl Standing {
    /// Why and until when it is out, if it is.
    pub fn out(&self) -> Option<Out> {
        Out::unpack(self.word.load(Ordering::Acquire))
    }

    /// A connection could not be made. Gives for how many milliseconds the endpoint is out by that, if it is.
    pub fn connect_failed(&self, now: Millis) -> Option<u64> {
        let word = self.word.load(Ordering::Acquire);
        if Out::unpack(word).is_some_and(|out| !out.due(now) || out.cause != Cause::Connect) {
            // Out already. A hundred connects that fail together are one failure, and a trial counted itself.
            return None;
        }
        let failures = self.connects.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures < DOWN_AFTER {
            return None;
        }
        let pause = backoff_ms(failures);
        let out = Out { until: Millis(now.0.saturating_add(pause)), tried: false, cause: Cause::Connect };
        let won = self.word.compare_exchange(word, out.pack(), Ordering::AcqRel, Ordering::Relaxed).is_ok();
        (won && word == 0).then_some(pause)
    }

    /// A connection was made. `true` where that brings the endpoint back.
    pub fn connected(&self) -> bool {
        // Read first: the usual case then leaves the cache line shared among the workers.
        if self.connects.load(Ordering::Relaxed) != 0 {
            self.connects.store(0, Ordering::Relaxed);
        }
        self.back(|out| out.cause == Cause::Connect)
    }

    /// A request failed. Gives how many did in a row.
    pub fn failed(&self) -> u32 {
        self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// Counts failures in a row from zero.
    pub fn recount(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A request was answered well. `true` where that brings the endpoint back: it was the trial. Answers to requests
    /// from before the ejection say nothing new.
    pub fn answered_well(&self, now: Millis) -> bool {
        self.recount();
        let back = self.back(|out| out.cause != Cause::Connect && out.tried);
        if back {
            // From here on the time without an ejection counts.
            self.counted_at.store(now.0, Ordering::Relaxed);
        }
        back
    }

    fn back(&self, ends: impl Fn(Out) -> bool) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        Out::unpack(word).is_some_and(ends)
            && self.word.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Takes the endpoint out, for longer each time. Gives for how many milliseconds and the how manyth time it is;
    /// `None` where it is out already and no trial is under way.
    pub fn eject(&self, now: Millis, cause: Cause, rules: &Eject) -> Option<(u64, u32)> {
        let word = self.word.load(Ordering::Acquire);
        let before = Out::unpack(word);
        if before.is_some_and(|out| out.cause == Cause::Connect || !out.tried) {
            return None;
        }
        let times = self.times(now, rules).saturating_add(1).min(TIMES_MAX);
        let pause = pause_ms(times, rules);
        let out = Out { until: Millis(now.0.saturating_add(pause)), tried: false, cause };
        self.word.compare_exchange(word, out.pack(), Ordering::AcqRel, Ordering::Relaxed).ok()?;
        self.times.store(times, Ordering::Relaxed);
        self.counted_at.store(out.until.0, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        Some((pause, times))
    }

    /// How often it was ejected lately: each `time` in which it was not takes one off.
    pub fn times(&self, now: Millis, rules: &Eject) -> u32 {
        let well = now.0.saturating_sub(self.counted_at.load(Ordering::Relaxed));
        let forgiven = well.checked_div(millis(rules.time)).unwrap_or(0);
        let times = self.times.load(Ordering::Relaxed);
        times.saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// Takes the trial that is due. `true` for exactly one caller, who then sends one request. `rules` says when the next
    /// one is due should this one never end; without them an ejection is over.
    pub fn claim(&self, now: Millis, rules: Option<&Eject>) -> bool {
        let word = self.word.load(Ordering::Acquire);
        let Some(out) = Out::unpack(word).filter(|out| out.due(now)) else { return false };
        let pause = match (out.cause, rules) {
            (Cause::Connect, _) => backoff_ms(self.connects.load(Ordering::Relaxed).saturating_add(1)),
            (_, Some(rules)) => pause_ms(self.times.load(Ordering::Relaxed).max(1), rules),
            (_, None) => BACKOFF_MAX_MS,
        };
        let next = Out { until: Millis(now.0.saturating_add(pause)), tried: true, cause: out.cause };
        let won = self.word.compare_exchange(word, next.pack(), Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if won && out.cause == Cause::Connect {
            self.connects.fetch_add(1, Ordering::Relaxed);
        }
        won
    }

    /// The service ejects nobody any more: who is out by that is back.
    pub fn pardon(&self) -> bool {
        self.times.store(0, Ordering::Relaxed);
        self.recount();
        self.back(|out| out.cause != Cause::Connect)
    }
}

fn backoff_ms(failures: u32) -> u64 {
    let doublings = failures.saturating_sub(DOWN_AFTER).min(16);
    (BACKOFF_MIN_MS << doublings).min(BACKOFF_MAX_MS)
}

fn pause_ms(times: u32, rules: &Eject) -> u64 {
    millis(rules.time).saturating_mul(u64::from(times)).min(millis(rules.time_max))
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rules() -> Eject {
        Eject { time: Duration::from_secs(10), time_max: Duration::from_secs(25), ..Eject::default() }
    }

    #[test]
    fn an_ejection_lasts_longer_each_time_up_to_its_bound_and_good_conduct_is_remembered() {
        let (standing, rules) = (Standing::default(), rules());
        let mut now = Millis(0);
        for (pause, times) in [(10_000, 1), (20_000, 2), (25_000, 3), (25_000, 4)] {
            assert_eq!(standing.eject(now, Cause::Consecutive, &rules), Some((pause, times)));
            assert_eq!(standing.eject(now, Cause::ErrorRate, &rules), None, "it is out already");
            now = Millis(now.0 + pause);
            assert!(standing.claim(now, Some(&rules)) && standing.answered_well(now));
        }
        // One is taken off for each ten seconds in which nothing happened.
        let later = Millis(now.0 + 20_000);
        assert_eq!([now, later, Millis(later.0 + 600_000)].map(|at| standing.times(at, &rules)), [4, 2, 0]);
        assert_eq!(standing.eject(later, Cause::Consecutive, &rules), Some((25_000, 3)));
    }

    #[test]
    fn one_request_tries_it_and_decides() {
        let (standing, rules) = (Standing::default(), rules());
        standing.eject(Millis(0), Cause::ErrorRate, &rules);
        assert!(!standing.claim(Millis(9_999), Some(&rules)));
        assert!(standing.claim(Millis(10_000), Some(&rules)));
        assert!(!standing.claim(Millis(10_000), Some(&rules)), "one only");
        assert_eq!(standing.out().unwrap().until, Millis(20_000), "when nobody hears of it, another one may");
        // It fails: out again, for longer.
        assert_eq!(standing.eject(Millis(10_500), Cause::Consecutive, &rules), Some((20_000, 2)));
        assert!(standing.claim(Millis(30_500), Some(&rules)));
        assert!(standing.answered_well(Millis(30_600)) && standing.out().is_none());
        assert!(!standing.answered_well(Millis(30_700)), "told once");
    }

    #[test]
    fn answers_to_requests_from_before_bring_nobody_back() {
        let (standing, rules) = (Standing::default(), rules());
        standing.eject(Millis(0), Cause::Consecutive, &rules);
        assert!(!standing.answered_well(Millis(5)) && !standing.connected());
        assert_eq!(standing.out().map(|out| out.cause), Some(Cause::Consecutive));
    }

    #[test]
    fn a_connection_brings_back_only_what_could_not_be_connected_to() {
        let standing = Standing::default();
        assert_eq!([0, 0, 0].map(|at| standing.connect_failed(Millis(at))), [None, Some(1000), None]);
        assert_eq!(standing.eject(Millis(1), Cause::Latency, &rules()), None, "it is out already");
        assert!(!standing.answered_well(Millis(2)));
        assert!(standing.connected() && standing.out().is_none());
        assert!(!standing.connected());
    }

    #[test]
    fn without_rules_an_ejection_is_over() {
        let standing = Standing::default();
        standing.eject(Millis(0), Cause::Latency, &rules());
        assert!(standing.pardon() && standing.out().is_none() && !standing.pardon());
        standing.connect_failed(Millis(0));
        standing.connect_failed(Millis(0));
        assert!(!standing.pardon(), "that it cannot be connected to is nobody's rule");
    }

    #[test]
    fn a_packed_state_is_what_went_in() {
        for cause in [Cause::Connect, Cause::Consecutive, Cause::ErrorRate, Cause::Latency] {
            for (until, tried) in [(1, false), (u64::MAX >> 8, true)] {
                let out = Out { until: Millis(until), tried, cause };
                assert_eq!(Out::unpack(out.pack()), Some(out));
            }
        }
        assert_eq!(Out::unpack(0), None);
    }
}
