//! One backend address and all that is known about it. Shared by every worker, outlives reloads, holds no connection.
//!
//! Three independent facts decide whether it gets requests:
//!
//! * what the health check says ([`Endpoint::set_health`]);
//! * whether connecting fails: after [`DOWN_AFTER`] failures in a row the endpoint is down for a time that doubles with
//!   each failed trial, from [`BACKOFF_MIN_MS`] to [`BACKOFF_MAX_MS`]. When the time has passed, one request tries it;
//!   the compare-and-swap by which it takes the trial moves the time on, so that nobody else does and a trial whose end
//!   is never reported blocks nothing;
//! * how loaded it is: requests in flight, and a peak-sensitive moving average of its latency.
//!
//! Times are given by the caller. Everything is an atomic except for the text of the last error, which is locked only
//! when something fails and when somebody asks.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::base::address::EndpointAddress;
use crate::base::clock::Millis;

/// Failed connects in a row after which an endpoint is down.
pub const DOWN_AFTER: u32 = 2;

/// The first time an endpoint stays down, in milliseconds.
pub const BACKOFF_MIN_MS: u64 = 1_000;

/// The longest time an endpoint stays down between two trials, in milliseconds.
pub const BACKOFF_MAX_MS: u64 = 30_000;

/// Time between two log lines about failures of one endpoint, in milliseconds.
pub const LOG_EVERY_MS: u64 = 1_000;

/// Bytes of an error's text that are kept.
pub const ERROR_BYTES_MAX: usize = 512;

/// Time in which a latency loses its weight in the average to 1/e, in milliseconds.
const DECAY_MS: f64 = 10_000.0;

/// What is assumed of an endpoint that has not answered yet, in microseconds: slow enough that a new endpoint is not
/// flooded before its first answer, quick enough that it gets one.
const UNKNOWN_LATENCY_US: u32 = 10_000;

/// Averages below this count as this, in microseconds, so that an idle endpoint never looks free of charge.
const LATENCY_US_MIN: f64 = 50.0;

/// One backend address.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in the process, never used again.
    pub id: u64,
    /// Small index for per-worker tables; used again when the endpoint is gone, so compare `id` too.
    pub slot: u32,
    /// The service it belongs to.
    pub service: Arc<str>,
    /// Where it is.
    pub address: EndpointAddress,
    /// Whether it is spoken to by TLS.
    pub tls: bool,
    /// The host part of the address, without brackets: for SNI.
    pub host: String,
    /// The address as text: for the access log.
    pub label: String,
    in_flight: AtomicU32,
    failures_in_a_row: AtomicU32,
    failures: AtomicU64,
    /// Milliseconds of process time; zero while up.
    down_until: AtomicU64,
    health: AtomicU8,
    latency: Latency,
    last_error: Mutex<Option<String>>,
    /// When a failure was last logged, in milliseconds of process time, and how many were not since.
    logged_at: AtomicU64,
    unlogged: AtomicU64,
}

/// What the health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Nothing yet, or there is no health check: taken as healthy.
    Unknown = 0,
    /// It answers.
    Healthy = 1,
    /// It does not.
    Unhealthy = 2,
}

/// Whether an endpoint may get a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Availability {
    /// Yes.
    Up,
    /// It was down and is due for a trial: only who wins [`Endpoint::claim_trial`] sends a request.
    Trial,
    /// No, and not before this time; `u64::MAX` where only the health check decides.
    Down {
        /// When it is due for a trial.
        retry_at: Millis,
    },
}

/// A request in flight; dropping it ends it.
#[derive(Debug)]
#[must_use = "the request is counted only while this lives"]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
}

impl Endpoint {
    pub(super) fn new(
        id: u64,
        slot: u32,
        service: Arc<str>,
        address: EndpointAddress,
        tls: bool,
    ) -> Endpoint {
        Endpoint {
            id,
            slot,
            service,
            host: address.host(),
            label: address.to_string(),
            address,
            tls,
            in_flight: AtomicU32::new(0),
            failures_in_a_row: AtomicU32::new(0),
            failures: AtomicU64::new(0),
            down_until: AtomicU64::new(0),
            health: AtomicU8::new(Health::Unknown as u8),
            latency: Latency::default(),
            last_error: Mutex::new(None),
            logged_at: AtomicU64::new(0),
            unlogged: AtomicU64::new(0),
        }
    }

    /// Whether a failure may be logged now, with the number of those that were not since the last: at most one line in
    /// [`LOG_EVERY_MS`] for each endpoint, or a dead backend under load would drown the log.
    pub fn may_log(&self, now: Millis) -> Option<u64> {
        let last = self.logged_at.load(Ordering::Relaxed);
        let due = last == 0 || now.0.saturating_sub(last) >= LOG_EVERY_MS;
        let won = due
            && self
                .logged_at
                .compare_exchange(last, now.0.max(1), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if won {
            return Some(self.unlogged.swap(0, Ordering::Relaxed));
        }
        self.unlogged.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Counts a request as in flight until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { endpoint: Arc::clone(self) }
    }

    /// Requests in flight, over all workers.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether the endpoint may get a request now.
    pub fn availability(&self, now: Millis) -> Availability {
        if self.health() == Health::Unhealthy {
            return Availability::Down { retry_at: Millis(u64::MAX) };
        }
        match self.down_until.load(Ordering::Acquire) {
            0 => Availability::Up,
            until if until <= now.0 => Availability::Trial,
            until => Availability::Down { retry_at: Millis(until) },
        }
    }

    /// Takes the trial that is due. `true` for exactly one caller, who then sends one request; the next trial is put
    /// off as if this one had failed, until [`Endpoint::connect_succeeded`] says otherwise.
    pub fn claim_trial(&self, now: Millis) -> bool {
        let due = self.down_until.load(Ordering::Acquire);
        if due == 0 || due > now.0 {
            return false;
        }
        let failures = self.failures_in_a_row.load(Ordering::Relaxed).saturating_add(1);
        let next = now.0.saturating_add(backoff_ms(failures));
        let won = self.down_until.compare_exchange(due, next, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if won {
            self.failures_in_a_row.store(failures, Ordering::Relaxed);
        }
        won
    }

    /// A connection was made: the endpoint is up.
    pub fn connect_succeeded(&self) {
        // Read first: the usual case then leaves the cache line shared among the workers.
        if self.failures_in_a_row.load(Ordering::Relaxed) != 0 {
            self.failures_in_a_row.store(0, Ordering::Relaxed);
        }
        if self.down_until.load(Ordering::Relaxed) != 0 {
            self.down_until.store(0, Ordering::Release);
        }
    }

    /// A connection could not be made. `error` is a sentence for the operator.
    pub fn connect_failed(&self, now: Millis, error: &str) {
        self.note_failure(error);
        if self.down_until.load(Ordering::Acquire) > now.0 {
            // Down already. A hundred connects that fail together are one failure, and a trial counted itself.
            return;
        }
        let failures = self.failures_in_a_row.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if failures >= DOWN_AFTER {
            self.down_until.fetch_max(now.0.saturating_add(backoff_ms(failures)), Ordering::AcqRel);
        }
    }

    /// Something else failed: counted and kept for `status`, without consequences for the endpoint's state.
    pub fn note_failure(&self, error: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut end = error.len().min(ERROR_BYTES_MAX);
        while !error.is_char_boundary(end) {
            end -= 1;
        }
        let text = error.get(..end).unwrap_or(error).to_owned();
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
    }

    /// What the health check says.
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            _ => Health::Unknown,
        }
    }

    /// Says what the health check found. A healthy endpoint was just connected to, so it is up at once.
    pub fn set_health(&self, health: Health) {
        self.health.store(health as u8, Ordering::Release);
        if health == Health::Healthy {
            self.connect_succeeded();
        }
    }

    /// Forgets what a health check once said.
    pub fn forget_health(&self) {
        self.health.store(Health::Unknown as u8, Ordering::Release);
    }

    /// Whether the endpoint gets requests: the word in `status`. One that is due for a trial is not up yet.
    pub fn is_up(&self, now: Millis) -> bool {
        self.availability(now) == Availability::Up
    }

    /// Failures since the endpoint is known.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// What went wrong last, also when all is well again.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// An answer began after this many microseconds.
    pub fn observe(&self, latency_us: u64, now: Millis) {
        self.latency.observe(latency_us, now);
    }

    /// What one more request would cost here, for comparison with other endpoints: latency in microseconds, times one
    /// plus the requests in flight for each unit of weight (zero counts as 1).
    pub fn load(&self, weight: u32, now: Millis) -> f64 {
        let in_flight = self.in_flight();
        if in_flight == 0 && self.latency.is_unknown() {
            // Nobody knows it yet and nobody is asking: it gets the next request, or it would never be known.
            return 0.0;
        }
        self.latency.average_us(now) * (f64::from(in_flight) / f64::from(weight.max(1)) + 1.0)
    }
}

impl InFlight {
    /// The endpoint the request is at.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

fn backoff_ms(failures: u32) -> u64 {
    let doublings = failures.saturating_sub(DOWN_AFTER).min(16);
    (BACKOFF_MIN_MS << doublings).min(BACKOFF_MAX_MS)
}

/// Peak-sensitive moving average: a latency above the average replaces it at once, one below pulls it down the more
/// the longer ago the last one was. Without answers it fades, so that an endpoint that was slow is tried again.
///
/// The average (microseconds, 32 bits) and the time of the last answer (milliseconds, 32 bits, wraps after 49 days)
/// share one atomic, so that no thread sees one without the other. Zero is "never observed".
#[derive(Debug, Default)]
struct Latency(AtomicU64);

impl Latency {
    fn observe(&self, latency_us: u64, now: Millis) {
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

    fn is_unknown(&self) -> bool {
        self.0.load(Ordering::Relaxed) == 0
    }

    fn average_us(&self, now: Millis) -> f64 {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint() -> Arc<Endpoint> {
        let address = EndpointAddress::Socket("[2001:db8::1]:80".parse().unwrap());
        Arc::new(Endpoint::new(1, 0, "a/".into(), address, false))
    }

    fn down(until: u64) -> Availability {
        Availability::Down { retry_at: Millis(until) }
    }

    #[test]
    fn two_failed_connects_in_a_row_take_it_down_for_a_second() {
        let endpoint = endpoint();
        endpoint.connect_failed(Millis(100), "refused");
        assert_eq!(endpoint.availability(Millis(100)), Availability::Up);
        endpoint.connect_succeeded();
        endpoint.connect_failed(Millis(200), "refused");
        assert!(endpoint.is_up(Millis(200)), "not in a row");
        endpoint.connect_failed(Millis(300), "refused again");
        assert_eq!(endpoint.availability(Millis(300)), down(1300));
        assert_eq!(endpoint.availability(Millis(1299)), down(1300));
        assert_eq!(endpoint.availability(Millis(1300)), Availability::Trial);
        assert_eq!((endpoint.failures(), endpoint.last_error().as_deref()), (3, Some("refused again")));
    }

    #[test]
    fn one_request_tries_it_again_and_the_time_doubles_up_to_its_bound() {
        let endpoint = endpoint();
        endpoint.connect_failed(Millis(0), "refused");
        endpoint.connect_failed(Millis(0), "refused");
        let mut now = 1000;
        for pause in [2000, 4000, 8000, 16_000, 30_000, 30_000] {
            assert!(endpoint.claim_trial(Millis(now)));
            assert!(!endpoint.claim_trial(Millis(now)), "one only");
            assert_eq!(endpoint.availability(Millis(now)), down(now + pause));
            endpoint.connect_failed(Millis(now + 1), "refused");
            assert_eq!(
                endpoint.availability(Millis(now + 1)),
                down(now + pause),
                "counted when it was claimed"
            );
            now += pause;
        }
        assert!(endpoint.claim_trial(Millis(now)));
        endpoint.connect_succeeded();
        assert!(endpoint.is_up(Millis(now)) && !endpoint.claim_trial(Millis(now)));
        endpoint.connect_failed(Millis(now), "refused");
        endpoint.connect_failed(Millis(now), "refused");
        assert_eq!(endpoint.availability(Millis(now)), down(now + 1000), "from the beginning");
    }

    #[test]
    fn many_connects_that_fail_together_are_one_failure() {
        let endpoint = endpoint();
        (0..100).for_each(|_| endpoint.connect_failed(Millis(5), "refused"));
        assert_eq!(endpoint.availability(Millis(5)), down(1005));
        assert_eq!(endpoint.failures(), 100);
    }

    #[test]
    fn threads_get_one_trial_between_them() {
        for _ in 0..200 {
            let endpoint = endpoint();
            endpoint.connect_failed(Millis(0), "refused");
            endpoint.connect_failed(Millis(0), "refused");
            let won = AtomicU32::new(0);
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        won.fetch_add(u32::from(endpoint.claim_trial(Millis(1000))), Ordering::Relaxed)
                    });
                }
            });
            assert_eq!(won.into_inner(), 1);
        }
    }

    #[test]
    fn the_health_check_overrules_and_brings_back() {
        let endpoint = endpoint();
        endpoint.set_health(Health::Unhealthy);
        assert_eq!(endpoint.availability(Millis(0)), down(u64::MAX));
        endpoint.forget_health();
        assert!(endpoint.is_up(Millis(0)) && endpoint.health() == Health::Unknown);
        endpoint.connect_failed(Millis(0), "refused");
        endpoint.connect_failed(Millis(0), "refused");
        endpoint.set_health(Health::Healthy);
        assert!(endpoint.is_up(Millis(0)) && endpoint.health() == Health::Healthy);
    }

    #[test]
    fn requests_in_flight_are_counted_by_guards() {
        let endpoint = endpoint();
        let guards: Vec<_> = (0..3).map(|_| endpoint.begin()).collect();
        assert_eq!((endpoint.in_flight(), guards[0].endpoint().id), (3, 1));
        drop(guards);
        assert_eq!(endpoint.in_flight(), 0);
    }

    #[test]
    fn failures_are_logged_once_a_second_and_the_rest_is_counted() {
        let endpoint = endpoint();
        assert_eq!(endpoint.may_log(Millis(0)), Some(0));
        assert_eq!(endpoint.may_log(Millis(10)), None);
        assert_eq!(endpoint.may_log(Millis(999)), None);
        assert_eq!(endpoint.may_log(Millis(1_001)), Some(2));
        assert_eq!(endpoint.may_log(Millis(1_002)), None);
    }

    #[test]
    fn the_average_jumps_to_peaks_falls_slowly_and_fades_when_idle() {
        let endpoint = endpoint();
        let load = |now| endpoint.load(1, Millis(now)).round();
        assert_eq!(load(0), 0.0, "unknown and idle: it must be tried");
        let asked = endpoint.begin();
        assert_eq!(load(0), 2.0 * f64::from(UNKNOWN_LATENCY_US), "unknown, one asks already");
        drop(asked);
        endpoint.observe(1_000, Millis(0));
        assert_eq!(load(0), 1_000.0);
        endpoint.observe(100_000, Millis(1));
        assert_eq!(load(1), 100_000.0, "a peak counts at once");
        endpoint.observe(1_000, Millis(2));
        assert!(load(2) > 99_000.0, "one quick answer does not excuse it");
        (0..5000).for_each(|ms| endpoint.observe(1_000, Millis(2 + ms * 10)));
        assert!(load(50_000) < 2_000.0, "many do");
        endpoint.observe(100_000, Millis(60_000));
        assert!((load(70_000) - 36_788.0).abs() < 2.0, "1/e after ten idle seconds");
        assert_eq!(load(10_000_000), 50.0, "never free");
        let _guards = [endpoint.begin(), endpoint.begin()];
        assert_eq!(load(10_000_000), 150.0);
    }

    #[test]
    fn times_that_wrap_or_run_backwards_and_huge_latencies_do_no_harm() {
        let endpoint = endpoint();
        let wrap = u64::from(u32::MAX);
        endpoint.observe(u64::MAX, Millis(wrap));
        assert_eq!(endpoint.load(1, Millis(wrap - 5)), f64::from(u32::MAX));
        assert!((endpoint.load(1, Millis(wrap + 10_000)) / f64::from(u32::MAX) - 0.3679).abs() < 0.001);
        endpoint.observe(0, Millis(wrap + 1));
        assert!(endpoint.load(1, Millis(wrap + 1)) > 4.0e9);
    }

    #[test]
    fn long_errors_are_cut_between_characters() {
        let endpoint = endpoint();
        endpoint.note_failure(&"ä".repeat(1000));
        assert_eq!(endpoint.last_error().unwrap(), "ä".repeat(ERROR_BYTES_MAX / 2));
        endpoint.note_failure(&format!("x{}", "ä".repeat(1000)));
        assert_eq!(endpoint.last_error().unwrap().len(), ERROR_BYTES_MAX - 1);
        assert_eq!((endpoint.host.as_str(), endpoint.is_up(Millis(0))), ("2001:db8::1", true));
    }
}
