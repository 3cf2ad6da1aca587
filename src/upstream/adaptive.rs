//! A limit on what is in flight that is found by latency. Pure: times and latencies come from the caller.
//!
//! Below its capacity a backend answers in the time that the work takes; above it requests wait inside, latency rises
//! and nothing is won. So a step every [`WINDOW_MS`] compares the window's mean latency with the smallest seen: while it
//! is within [`TOLERANCE`] the limit grows by its square root at most, beyond it shrinks in proportion (the gradient of
//! TCP Vegas). It begins low and grows fast until the first window in which requests waited. The smallest latency is only
//! seen while nothing waits, and a backend may become slower for good: so every [`PROBE_EVERY`] windows, and sooner where
//! shrinking does not help, the limit falls to a third for one window, and that window says what the smallest is.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use crate::base::clock::Millis;
use crate::config::model;

/// Time between two steps, in milliseconds.
pub const WINDOW_MS: u64 = 250;
/// Windows between two probes of the smallest latency: half a minute.
pub const PROBE_EVERY: u32 = 120;
/// Latency that is not taken for waiting, as a multiple of the smallest.
pub const TOLERANCE: f64 = 1.5;
/// Answers below which a window says nothing and is made longer.
const ANSWERS_MIN: u64 = 10;
/// The least that a step leaves of the limit.
const GRADIENT_MIN: f64 = 0.5;
/// What a probe leaves of the limit.
const PROBE_DIVISOR: f64 = 3.0;
/// How much of each step is taken.
const SMOOTHING: f64 = 0.2;
/// Growth in a window before requests were ever seen to wait.
const RISE: f64 = 1.5;
/// Windows in a row in which the limit shrank as fast as it may, before the smallest latency is doubted.
const VAIN_MAX: u32 = 8;

/// An adaptive limit. Outlives reloads.
#[derive(Debug, Default)]
pub struct Limit {
    /// In force; zero before the first look.
    limit: AtomicU32,
    window: Window,
    state: Mutex<State>,
}

/// What is gathered between two steps, by all workers.
#[derive(Debug, Default)]
struct Window {
    /// When it ends, in milliseconds of process time.
    ends: AtomicU64,
    answers: AtomicU64,
    sum_us: AtomicU64,
    min_us: AtomicU64,
    most_in_flight: AtomicU32,
}

/// What only the one who takes a step looks at.
#[derive(Debug, Default)]
struct State {
    limit: f64,
    /// The smallest latency, in microseconds; zero before the first window.
    base_us: f64,
    windows: u32,
    probing: bool,
    /// Requests were seen to wait.
    found: bool,
    /// Windows in a row in which it shrank as fast as it may.
    vain: u32,
}

impl Limit {
    /// What may be in flight now.
    pub fn now(&self, bounds: model::Adaptive) -> u32 {
        self.limit.load(Relaxed).clamp(bounds.min.min(bounds.max), bounds.max)
    }

    /// An answer began after this many microseconds, with so many in flight. `true` where the limit was changed.
    pub fn observe(&self, bounds: model::Adaptive, latency_us: u64, in_flight: u32, now: Millis) -> bool {
        let window = &self.window;
        window.answers.fetch_add(1, Relaxed);
        window.sum_us.fetch_add(latency_us, Relaxed);
        window.most_in_flight.fetch_max(in_flight, Relaxed);
        let smaller = |min: u64| (min == 0 || latency_us < min).then_some(latency_us.max(1));
        let _ = window.min_us.fetch_update(Relaxed, Relaxed, smaller);
        let ends = window.ends.load(Relaxed);
        if now.0 < ends || window.answers.load(Relaxed) < ANSWERS_MIN {
            return false;
        }
        // Who moves the end on takes the step.
        let next = now.0.saturating_add(WINDOW_MS);
        if window.ends.compare_exchange(ends, next, Relaxed, Relaxed).is_err() {
            return false;
        }
        let (answers, sum) = (window.answers.swap(0, Relaxed), window.sum_us.swap(0, Relaxed));
        let (min, most) = (window.min_us.swap(0, Relaxed), window.most_in_flight.swap(0, Relaxed));
        if ends == 0 || answers == 0 {
            // The first window has no beginning.
            return false;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = state.step(bounds, sum as f64 / answers as f64, min as f64, most);
        self.limit.swap(limit, Relaxed) != limit
    }
}

impl State {
    /// The next limit from a window's mean and smallest latency, and the most that was in flight in it.
    fn step(&mut self, bounds: model::Adaptive, mean_us: f64, min_us: f64, most: u32) -> u32 {
        let (low, high) = (f64::from(bounds.min.min(bounds.max)), f64::from(bounds.max));
        if self.base_us == 0.0 {
            *self = State { limit: low, base_us: min_us, ..State::default() };
        }
        self.windows += 1;
        if self.probing {
            // Nothing waited in this window, so this is what the work takes now.
            (self.probing, self.windows, self.vain, self.base_us) = (false, 0, 0, min_us);
            return whole(self.limit.clamp(low, high));
        }
        self.base_us = self.base_us.min(min_us);
        let gradient = (TOLERANCE * self.base_us / mean_us.max(1.0)).clamp(GRADIENT_MIN, 1.0);
        self.found |= gradient < 1.0;
        self.vain = if gradient > GRADIENT_MIN { 0 } else { self.vain + 1 };
        // A limit that nobody reached says nothing about more.
        let reached = f64::from(most) >= self.limit * 0.9;
        if gradient < 1.0 || reached {
            let wanted = self.limit * gradient + self.limit.sqrt();
            let next = self.limit * (1.0 - SMOOTHING) + wanted * SMOOTHING;
            let next = if self.found { next } else { next.max(self.limit * RISE) };
            self.limit = next.clamp(low, high);
        }
        self.probing = self.windows >= PROBE_EVERY || self.vain >= VAIN_MAX;
        whole(if self.probing { (self.limit / PROBE_DIVISOR).max(low) } else { self.limit.clamp(low, high) })
    }
}

fn whole(limit: f64) -> u32 {
    // In range: it lies between two bounds of 32 bits.
    limit.round() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: model::Adaptive = model::Adaptive { min: 4, max: 1000 };

    /// A backend with so many places, each taking so long, under so much demand; the limit after some windows.
    fn run(limit: &Limit, from: u64, windows: u64, places: u32, work_us: u64, demand: u32) -> u32 {
        let end = from + windows * WINDOW_MS;
        let mut now = from;
        while now < end {
            let in_flight = limit.now(BOUNDS).min(demand);
            // With more in flight than places everybody waits in proportion.
            let latency = work_us.max(work_us * u64::from(in_flight) / u64::from(places));
            for _ in 0..in_flight.max(ANSWERS_MIN as u32) {
                limit.observe(BOUNDS, latency, in_flight, Millis(now));
            }
            now += (latency / 1000).max(1);
        }
        limit.now(BOUNDS)
    }

    #[test]
    fn under_any_overload_it_finds_what_the_backend_can_do_at_once() {
        for (places, work_us) in [(10, 10_000), (50, 20_000), (200, 5_000)] {
            let limit = Limit::default();
            let found = run(&limit, 1_000, 400, places, work_us, 100_000);
            assert!((places..=places * 9 / 4).contains(&found), "{places} places: {found}");
        }
    }

    #[test]
    fn it_keeps_what_it_found_over_ten_minutes_of_overload() {
        let limit = Limit::default();
        let found = run(&limit, 1_000, 2_400, 50, 20_000, 100_000);
        assert!(
            (50..=113).contains(&found),
            "the waiting must not be taken for the work in the end: {found}"
        );
    }

    #[test]
    fn a_backend_that_becomes_slower_or_smaller_is_followed() {
        let limit = Limit::default();
        run(&limit, 1_000, 400, 50, 20_000, 100_000);
        let soon = run(&limit, 102_000, 40, 50, 80_000, 100_000);
        assert!(soon >= 25, "ten seconds later it has not been strangled: {soon}");
        let slower = run(&limit, 200_000, 1_000, 50, 80_000, 100_000);
        assert!((45..=113).contains(&slower), "four times the work, as many places: {slower}");
        let smaller = run(&limit, 600_000, 1_000, 10, 80_000, 100_000);
        assert!((10..=25).contains(&smaller), "{smaller}");
    }

    #[test]
    fn without_demand_it_does_not_grow_and_bounds_are_kept() {
        let limit = Limit::default();
        assert_eq!(limit.now(BOUNDS), 4);
        assert!(run(&limit, 1_000, 400, 1_000, 10_000, 5) <= 8);
        let narrow = model::Adaptive { min: 3, max: 7 };
        assert_eq!(Limit::default().now(narrow), 3);
        for (mean, min) in [(1e9, 1.0), (1.0, 1.0), (0.0, 0.0)] {
            let mut state = State::default();
            for _ in 0..500 {
                let next = state.step(narrow, mean, min, 1000);
                assert!((3..=7).contains(&next), "{next}");
            }
        }
    }
}
