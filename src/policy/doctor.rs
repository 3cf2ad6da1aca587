//! The client-IP doctor: finds out when the addresses that limits, bans and logs know are not those of clients.
//!
//! * A peer is a well-known proxy (a content delivery network) that `trusted_proxies` does not have: everybody behind it has
//!   its address. Seen once per connection.
//! * A peer in a private network sends a large part of all requests, and most of them carry fields that proxies add: an
//!   unknown proxy of the operator's own.
//! * One public address sends most of the requests: perhaps a proxy, perhaps an attacker.
//!
//! In the first two cases limits by address would hit people who did nothing, so that they count but refuse nobody
//! ([`Doctor::doubted`]). **In the third they go on**: whoever could turn off its own limit by being loud, or by sending a
//! field, would do so. A private address cannot be had from outside, and the networks of a well-known proxy are its
//! operator's alone.
//!
//! Workers feed every eighth request to a [`Sketch`] of their own and hand it over once a second; the control plane
//! looks as often and tells what is new, and again every hour.

mod sketch;

#[cfg(test)]
mod tests;

pub use sketch::{PLACES, Place, Sketch};

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::base::address::CidrSet;
use crate::base::address::{ClientKey, is_inner};
use crate::base::clock::Millis;
use crate::base::trust;

/// One of so many requests is looked at.
pub const EVERY: u64 = 8;
/// Requests below which nothing is said.
pub const REQUESTS_MIN: u64 = 2_000;
/// How long requests are added up.
const SPAN: Duration = Duration::from_secs(60);
/// The part of the requests, in a hundred, from which one address is worth a word.
const LOUD: u64 = 50;
/// The part from which an address inside that says it is a proxy is believed to be one.
const INNER: u64 = 25;
/// Time between two lines of the log about one finding, and how long one stands without being seen again.
const TELL_EVERY: Duration = Duration::from_secs(3_600);
const STANDS: Duration = Duration::from_secs(3_600);
/// Findings remembered; more than that nobody would read.
const FINDINGS_MAX: usize = 32;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Connections come from a well-known proxy, or one that `[networks]` names.
    Known(Arc<str>),
    /// An address inside is a proxy.
    Inner(ClientKey),
    /// An address sends most of the requests.
    Loud(ClientKey),
}

/// A finding that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stands {
    /// What.
    pub finding: Finding,
    /// The part of the requests, in a hundred; 0 where that is not known.
    pub percent: u64,
    /// When it was first seen.
    pub first: Millis,
    /// When it was last seen.
    pub last: Millis,
    told: Option<Millis>,
}

impl Finding {
    /// The word in metrics and in `status`.
    pub fn kind(&self) -> &'static str {
        match self {
            Finding::Known(_) => "known-proxy",
            Finding::Inner(_) => "inner-proxy",
            Finding::Loud(_) => "loud-address",
        }
    }

    /// Whether limits by address refuse nobody there.
    pub fn is_doubted(&self) -> bool {
        !matches!(self, Finding::Loud(_))
    }
}

/// What workers found, and what they are told; shared by all.
#[derive(Default)]
pub struct Doctor {
    state: Mutex<State>,
    /// Counts up when [`Doctor::doubted`] changes.
    generation: AtomicU64,
}

#[derive(Default)]
struct State {
    sketch: Sketch,
    began: Millis,
    findings: Vec<Stands>,
    doubted: Vec<ClientKey>,
}

impl Doctor {
    /// A worker hands over what it saw since the last time.
    pub fn hear(&self, sketch: &Sketch, known: &[Arc<str>], now: Millis) {
        let mut state = self.state();
        state.sketch.merge(sketch);
        for name in known {
            state.find(Finding::Known(name.clone()), 0, now);
        }
    }

    /// Looks at what was heard. Gives the findings that are to be told now.
    pub fn look(&self, now: Millis) -> Vec<Stands> {
        let mut state = self.state();
        let whole = now >= state.began.after(SPAN);
        for (finding, percent) in judge(&state.sketch, whole) {
            state.find(finding, percent, now);
        }
        if whole {
            state.sketch = Sketch::default();
            state.began = now;
        }
        state.findings.retain(|stands| now < stands.last.after(STANDS));
        let doubted = state.findings.iter().filter_map(|stands| match stands.finding {
            Finding::Inner(key) => Some(key),
            _ => None,
        });
        let doubted: Vec<ClientKey> = doubted.take(PLACES).collect();
        if doubted != state.doubted {
            state.doubted = doubted;
            self.generation.fetch_add(1, Ordering::Release);
        }
        let due = |stands: &&mut Stands| stands.told.is_none_or(|told| now >= told.after(TELL_EVERY));
        let told = state.findings.iter_mut().filter(due).map(|stands| {
            stands.told = Some(now);
            stands.clone()
        });
        told.collect()
    }

    /// Forgets everything: it was turned off.
    pub fn forget(&self) {
        let mut state = self.state();
        let doubted = !state.doubted.is_empty();
        *state = State::default();
        self.generation.fetch_add(u64::from(doubted), Ordering::Release);
    }

    /// What stands now.
    pub fn findings(&self) -> Vec<Stands> {
        self.state().findings.clone()
    }

    /// The number of changes of [`Doctor::doubted`] so far.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Addresses at which limits by address refuse nobody.
    pub fn doubted(&self) -> Vec<ClientKey> {
        self.state().doubted.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn find(&mut self, finding: Finding, percent: u64, now: Millis) {
        let room = self.findings.len() < FINDINGS_MAX;
        match self.findings.iter_mut().find(|stands| stands.finding == finding) {
            Some(known) => (known.last, known.percent) = (now, percent),
            None if room => {
                self.findings.push(Stands { finding, percent, first: now, last: now, told: None });
            }
            None => {}
        }
    }
}

/// What the requests of up to a minute say. `whole`: the minute is over; before, only proxies inside are told, because
/// each moment in which people are refused for them counts.
fn judge(sketch: &Sketch, whole: bool) -> Vec<(Finding, u64)> {
    if sketch.total() < REQUESTS_MIN / EVERY {
        return Vec::new();
    }
    let judged = sketch.all().filter_map(|place| {
        let percent = place.sure() * 100 / sketch.total();
        let inner = is_inner(place.key.address());
        let proxied = place.forwarded * 2 > place.sure();
        match (inner && proxied, percent) {
            (true, INNER..) => Some((Finding::Inner(place.key), percent)),
            (false, percent) if whole && percent > LOUD => Some((Finding::Loud(place.key), percent)),
            _ => None,
        }
    });
    judged.collect()
}

/// The proxy that an address belongs to: one of `own`, the lists of `[networks]` with `proxy = true`, or a well-known one.
pub fn proxy_at(own: &[(Arc<str>, Arc<CidrSet>)], address: std::net::IpAddr) -> Option<Arc<str>> {
    let address = address.to_canonical();
    let found = own.iter().find(|(_, set)| set.contains(address));
    found.map(|(name, _)| name.clone()).or_else(|| trust::name_of(address).map(Arc::from))
}
