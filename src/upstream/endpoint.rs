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

mod latency;
mod ramp;

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::base::address::EndpointAddress;
use crate::base::clock::Millis;
use crate::base::hash;
use latency::Latency;
use ramp::Ramp;

/// Failed connects in a row after which an endpoint is down.
pub const DOWN_AFTER: u32 = 2;

/// The first time an endpoint stays down, in milliseconds.
pub const BACKOFF_MIN_MS: u64 = 1_000;

/// The longest time an endpoint stays down between two trials, in milliseconds.
pub const BACKOFF_MAX_MS: u64 = 30_000;

/// Time between two log lines about failures of one endpoint, in milliseconds.
pub const LOG_EVERY_MS: u64 = 1_000;

/// Weights below this count as this where loads are compared.
const WEIGHT_MIN: f64 = 0.01;

/// Bytes of an error's text that are kept.
pub const ERROR_BYTES_MAX: usize = 512;

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
    /// Whether what is exchanged with it leaves this machine in plain text. A name is taken for another machine.
    pub exposed: bool,
    /// The host part of the address, without brackets: for SNI.
    pub host: String,
    /// What its source calls it, such as the name of a container; empty for one that is written.
    pub name: Box<str>,
    /// Address and name as text: for the logs.
    pub label: String,
    /// Of address and scheme; the same on every node.
    pub hash: u64,
    in_flight: AtomicU32,
    failures_in_a_row: AtomicU32,
    failures: AtomicU64,
    /// Milliseconds of process time; zero while up.
    down_until: AtomicU64,
    health: AtomicU8,
    latency: Latency,
    ramp: Ramp,
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
        name: &str,
    ) -> Endpoint {
        Endpoint {
            id,
            slot,
            service,
            host: address.host(),
            label: match name {
                "" => address.to_string(),
                name => format!("{address} ({name})"),
            },
            name: name.into(),
            exposed: !tls && !address.is_loopback(),
            hash: hash::stable(u64::from(tls), address.to_string().as_bytes()),
            address,
            tls,
            in_flight: AtomicU32::new(0),
            failures_in_a_row: AtomicU32::new(0),
            failures: AtomicU64::new(0),
            down_until: AtomicU64::new(0),
            health: AtomicU8::new(Health::Unknown as u8),
            latency: Latency::default(),
            ramp: Ramp::default(),
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

    /// Says a failure in the process log, if it [may be](Endpoint::may_log): `what` happened, and `why`.
    pub fn log(&self, now: Millis, what: &str, why: &str) {
        let Some(more) = self.may_log(now) else { return };
        let (service, endpoint) = (&*self.service, &*self.label);
        match more {
            0 => tracing::warn!(service, endpoint, "{what}: {why}"),
            more => tracing::warn!(service, endpoint, "{what}: {why} (and {more} failures before)"),
        }
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
            self.ramp.rise();
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
        let before = self.health.swap(health as u8, Ordering::AcqRel);
        if health != Health::Unhealthy && before == Health::Unhealthy as u8 {
            self.ramp.rise();
        }
        if health == Health::Healthy {
            self.connect_succeeded();
        }
    }

    /// Forgets what a health check once said.
    pub fn forget_health(&self) {
        self.health.store(Health::Unknown as u8, Ordering::Release);
    }

    /// It is new among others that have served a while: its slow start begins.
    pub fn rise(&self) {
        self.ramp.rise();
    }

    /// The share of its weight that counts in a slow start of this length: 0.1 when it is new or back, 1.0 at its end.
    pub fn ramp(&self, now: Millis, length: Duration) -> f64 {
        self.ramp.at(now, length)
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
    /// plus the requests in flight for each unit of weight.
    pub fn load(&self, weight: f64, now: Millis) -> f64 {
        let in_flight = self.in_flight();
        if in_flight == 0 && self.latency.is_unknown() {
            // Nobody knows it yet and nobody is asking: it gets the next request, or it would never be known.
            return 0.0;
        }
        self.latency.average_us(now) * (f64::from(in_flight) / weight.max(WEIGHT_MIN) + 1.0)
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

#[cfg(test)]
mod tests;
