//! One backend address and all that is known about it. Shared by every worker, outlives reloads, holds no connection.
//!
//! Four independent facts decide whether it gets requests:
//!
//! * whether its source says that it ends ([`Endpoint::leave`]);
//! * what the health check says ([`Endpoint::set_health`]);
//! * whether it is out for a time because it cannot be connected to or fails requests ([`passive`]);
//! * how loaded it is: requests in flight, and a peak-sensitive moving average of its latency.
//!
//! Health and ejection are overruled where a whole service panics ([`group`]). Times are given by the caller. Everything is an
//! atomic except for texts, which are locked only when something fails and when somebody asks.
//!
//! [`passive`]: super::health::passive
//! [`group`]: super::health::group

mod latency;
mod ramp;

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::health::group::Group;
use super::health::passive::{Cause, Out, Standing};
use super::health::window::Tally;
use crate::base::address::EndpointAddress;
use crate::base::clock::Millis;
use crate::base::hash;
use latency::Latency;
use ramp::Ramp;

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
    /// The endpoints of that service.
    pub group: Arc<Group>,
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
    failures: AtomicU64,
    /// Its source says that it ends; the next snapshot will be without it.
    leaving: AtomicBool,
    /// The configuration in force has it as a backup.
    backup: AtomicBool,
    health: AtomicU8,
    /// When the health last changed.
    health_since: AtomicU64,
    standing: Standing,
    tally: Counts,
    /// By the causes of an ejection, in their order.
    ejections: [AtomicU64; Cause::EJECTIONS.len()],
    latency: Latency,
    ramp: Ramp,
    told: Mutex<Told>,
    /// When a failure was last logged, in milliseconds of process time, and how many were not since.
    logged_at: AtomicU64,
    unlogged: AtomicU64,
}

/// What is kept in words.
#[derive(Debug, Default)]
struct Told {
    last_error: Option<String>,
    ejected_because: Option<String>,
    checked: Option<Checked>,
}

/// The last answer to a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// What was asked, as in `GET /up`.
    pub asked: Arc<str>,
    /// Whether it was a good one.
    pub well: bool,
    /// What came, in words.
    pub answer: String,
    /// When.
    pub at: Millis,
}

/// [`Tally`], counted by workers; only where a rule of the service reads it.
#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    failures: AtomicU64,
    answers: AtomicU64,
    latency_us: AtomicU64,
}

/// What the health check says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Nothing yet, or there is no health check: taken as healthy.
    Unknown = 0,
    /// It answers as it should.
    Healthy = 1,
    /// It answers otherwise, or not in time.
    Unhealthy = 2,
    /// It cannot be connected to.
    Unreachable = 3,
    /// Nothing yet, and others of its service are healthy: it gets requests when it has answered.
    Joining = 4,
}

impl Health {
    /// The word in `status`.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Unknown => "unknown",
            Health::Healthy => "healthy",
            Health::Unhealthy => "unhealthy",
            Health::Unreachable => "unreachable",
            Health::Joining => "joining",
        }
    }
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
        group: Arc<Group>,
        address: EndpointAddress,
        tls: bool,
        name: &str,
    ) -> Endpoint {
        Endpoint {
            id,
            slot,
            service: group.service.clone(),
            group,
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
            failures: AtomicU64::new(0),
            leaving: AtomicBool::new(false),
            backup: AtomicBool::new(false),
            health: AtomicU8::new(Health::Unknown as u8),
            health_since: AtomicU64::new(0),
            standing: Standing::default(),
            tally: Counts::default(),
            ejections: Default::default(),
            latency: Latency::default(),
            ramp: Ramp::default(),
            told: Mutex::default(),
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

    /// The same, unless there are so many in flight already.
    pub fn begin_below(self: &Arc<Self>, cap: u32) -> Option<InFlight> {
        let below = |count: u32| (count < cap).then(|| count.saturating_add(1));
        self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, below).ok()?;
        Some(InFlight { endpoint: Arc::clone(self) })
    }

    /// Requests in flight, over all workers.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Whether the endpoint may get a request now.
    pub fn availability(&self, now: Millis) -> Availability {
        const NEVER: Availability = Availability::Down { retry_at: Millis(u64::MAX) };
        if self.is_leaving() {
            return NEVER;
        }
        match self.health() {
            Health::Unreachable | Health::Joining => return NEVER,
            Health::Unhealthy if !self.in_panic() => return NEVER,
            Health::Unhealthy | Health::Unknown | Health::Healthy => {}
        }
        match self.standing.out() {
            None => Availability::Up,
            Some(out) if out.due(now) => Availability::Trial,
            Some(out) if out.cause != Cause::Connect && self.in_panic() => Availability::Up,
            Some(out) => Availability::Down { retry_at: out.until },
        }
    }

    /// Whether nothing that is thought of it counts, because too much is thought of its like.
    fn in_panic(&self) -> bool {
        self.group.panics(self.is_backup())
    }

    /// Whether the configuration in force has it as a backup.
    pub fn is_backup(&self) -> bool {
        self.backup.load(Ordering::Relaxed)
    }

    pub(super) fn set_backup(&self, backup: bool) {
        self.backup.store(backup, Ordering::Relaxed);
    }

    /// Its source says that it ends, or that it stays after all. In force at once: the snapshot without it may have to wait
    /// for a reload, and a container that was told to end waits for nobody.
    pub fn leave(&self, leaving: bool, now: Millis) {
        if self.leaving.swap(leaving, Ordering::AcqRel) != leaving {
            self.group.reconsider(now);
        }
    }

    /// Whether its source says that it ends.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Acquire)
    }

    /// Takes the trial that is due. `true` for exactly one caller, who then sends one request; the next trial is put
    /// off as if this one had failed, until its end says otherwise.
    pub fn claim_trial(&self, now: Millis) -> bool {
        self.standing.claim(now, self.group.rules().as_deref())
    }

    /// Why and until when it is out, if it is.
    pub fn out(&self) -> Option<Out> {
        self.standing.out()
    }

    /// A connection was made: the endpoint can be reached.
    pub fn connect_succeeded(&self, now: Millis) {
        if self.standing.connected() {
            let (service, endpoint) = (&*self.service, &*self.label);
            tracing::info!(service, endpoint, "backend can be connected to again");
            self.ramp.rise();
            self.group.reconsider(now);
        }
    }

    /// An answer came on a shared connection. Where no other could be made, and this one lived on, its answers are what shows in a
    /// trial that the endpoint can be reached: no request would open another one.
    pub fn answered_on_shared(&self, now: Millis) {
        if self.out().is_some_and(|out| out.cause == Cause::Connect && out.tried) {
            self.connect_succeeded(now);
        }
    }

    /// A connection could not be made. `error` is a sentence for the operator.
    pub fn connect_failed(&self, now: Millis, error: &str) {
        self.note_failure(error);
        if let Some(pause) = self.standing.connect_failed(now) {
            let (service, endpoint) = (&*self.service, &*self.label);
            tracing::warn!(service, endpoint, "backend is down, for {}: {error}", seconds(pause));
            self.group.reconsider(now);
        }
    }

    /// The head of an answer came after so many microseconds.
    pub fn answered(&self, latency_us: u64, status: u16, now: Millis) {
        self.observe(latency_us, now);
        let failure = self.group.is_failure(status);
        if self.group.counts() {
            self.tally.requests.fetch_add(1, Ordering::Relaxed);
            self.tally.failures.fetch_add(u64::from(failure), Ordering::Relaxed);
            self.tally.answers.fetch_add(1, Ordering::Relaxed);
            self.tally.latency_us.fetch_add(latency_us, Ordering::Relaxed);
        }
        if failure {
            self.note_failure(&format!("it answered {status}"));
            self.strike(now);
        } else if self.standing.answered_well(now) {
            let (service, endpoint) = (&*self.service, &*self.label);
            tracing::info!(
                service,
                endpoint,
                "backend is back: the request that tried it was answered {status}"
            );
            self.ramp.rise();
            self.group.reconsider(now);
        }
    }

    /// No valid answer to a request came. `error` is a sentence for the operator.
    pub fn request_failed(&self, now: Millis, error: &str) {
        if self.group.counts() {
            self.tally.requests.fetch_add(1, Ordering::Relaxed);
        }
        self.broke_off(now, error);
    }

    /// An answer whose head came ([`Endpoint::answered`]) did not come to its end.
    pub fn broke_off(&self, now: Millis, error: &str) {
        self.note_failure(error);
        if self.group.counts() {
            self.tally.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.strike(now);
    }

    /// One more failure in a row.
    fn strike(&self, now: Millis) {
        let failures = self.standing.failed();
        match self.out() {
            Some(out) if out.cause != Cause::Connect && out.tried => {
                self.eject(now, out.cause, "the request that tried it failed");
            }
            Some(_) => {}
            None => {
                if self.group.consecutive().is_some_and(|most| failures >= most) {
                    self.eject(now, Cause::Consecutive, &format!("{failures} requests in a row failed"));
                }
            }
        }
    }

    /// Takes the endpoint out for a time, unless too many of its service would be out. `why` is a sentence for the
    /// operator.
    pub fn eject(&self, now: Millis, cause: Cause, why: &str) -> bool {
        let Some(rules) = self.group.rules() else { return false };
        let eject = || self.standing.eject(now, cause, &rules);
        // Whoever fails his trial is out already, and counted as that.
        let ejected = if self.out().is_some() { eject() } else { self.group.within_share(&rules, eject) };
        let Some((pause, times)) = ejected else {
            // Not before as many more have failed: looking at all endpoints is not for every failure.
            self.standing.recount();
            return false;
        };
        let because = match self.last_error() {
            Some(error) if cause != Cause::Latency => format!("{why}; the last: {error}"),
            _ => why.to_owned(),
        };
        let (service, endpoint) = (&*self.service, &*self.label);
        tracing::warn!(service, endpoint, times, "backend is ejected, for {}: {because}", seconds(pause));
        self.told().ejected_because = Some(because);
        let place = Cause::EJECTIONS.iter().position(|known| *known == cause);
        if let Some(count) = place.and_then(|place| self.ejections.get(place)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.group.reconsider(now);
        true
    }

    /// The service ejects nobody any more.
    pub(super) fn pardon(&self) {
        if self.standing.pardon() {
            let (service, endpoint) = (&*self.service, &*self.label);
            tracing::info!(service, endpoint, "backend is back: nothing is ejected any more");
        }
    }

    /// How often the endpoint was ejected for this cause.
    pub fn ejections(&self, cause: Cause) -> u64 {
        let place = Cause::EJECTIONS.iter().position(|known| *known == cause);
        place.and_then(|place| self.ejections.get(place)).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Why it was ejected last, also when that is over.
    pub fn ejected_because(&self) -> Option<String> {
        self.told().ejected_because.clone()
    }

    /// What it has done since the rules of its service want that known.
    pub fn tally(&self) -> Tally {
        let read = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        Tally {
            requests: read(&self.tally.requests),
            failures: read(&self.tally.failures),
            answers: read(&self.tally.answers),
            latency_us: read(&self.tally.latency_us),
        }
    }

    /// Something failed: counted and kept for `status`, without consequences for the endpoint's state.
    pub fn note_failure(&self, error: &str) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.told().last_error = Some(cut(error).to_owned());
    }

    /// What the health check says.
    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            1 => Health::Healthy,
            2 => Health::Unhealthy,
            3 => Health::Unreachable,
            4 => Health::Joining,
            _ => Health::Unknown,
        }
    }

    /// Since when it says so; process start where nothing was ever said.
    pub fn health_since(&self) -> Millis {
        Millis(self.health_since.load(Ordering::Relaxed))
    }

    /// Says what the health check found. A healthy endpoint was just connected to, so it can be reached.
    pub fn set_health(&self, health: Health, now: Millis) {
        let before = self.health();
        self.health.store(health as u8, Ordering::Release);
        if before != health {
            self.health_since.store(now.0, Ordering::Relaxed);
            if health == Health::Healthy && matches!(before, Health::Unhealthy | Health::Unreachable) {
                self.ramp.rise();
            }
            self.group.reconsider(now);
        }
        if health == Health::Healthy {
            self.connect_succeeded(now);
        }
    }

    /// Forgets what a health check once said: there is none any more.
    pub fn forget_health(&self, now: Millis) {
        self.told().checked = None;
        self.set_health(Health::Unknown, now);
    }

    /// It is new among others that have served a while: its slow start begins.
    pub fn rise(&self) {
        self.ramp.rise();
    }

    /// The share of its weight that counts in a slow start of this length: 0.1 when it is new or back, 1.0 at its end.
    pub fn ramp(&self, now: Millis, length: Duration) -> f64 {
        self.ramp.at(now, length)
    }

    /// Keeps the last answer to a health check.
    pub fn note_check(&self, mut checked: Checked) {
        checked.answer.truncate(cut(&checked.answer).len());
        self.told().checked = Some(checked);
    }

    /// The last answer to a health check.
    pub fn checked(&self) -> Option<Checked> {
        self.told().checked.clone()
    }

    /// Whether the endpoint gets requests. One that is due for a trial is not up yet.
    pub fn is_up(&self, now: Millis) -> bool {
        self.availability(now) == Availability::Up
    }

    /// Whether nothing speaks against the endpoint: what `status` and the metrics tell. One that gets requests only because
    /// its service panics is not in good standing.
    pub fn is_good(&self) -> bool {
        let well = matches!(self.health(), Health::Unknown | Health::Healthy);
        well && self.out().is_none() && !self.is_leaving()
    }

    /// Failures since the endpoint is known.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// What went wrong last, also when all is well again.
    pub fn last_error(&self) -> Option<String> {
        self.told().last_error.clone()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A text as it is kept.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(ERROR_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or(text)
}

/// Milliseconds for a log line.
fn seconds(ms: u64) -> String {
    format!("{} s", ms as f64 / 1000.0)
}

#[cfg(test)]
mod tests;
