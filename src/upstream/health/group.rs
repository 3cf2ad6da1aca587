//! The endpoints of a service together: how many may be ejected, and when nobody is believed any more.
//!
//! Health checks and ejections are opinions, and an opinion about too many is more often wrong than right: a check that
//! asks for a database which all share, a rule that is too strict, backends that are merely overloaded and would fall one
//! after the other if the rest had to carry everything. So two bounds stand against them:
//!
//! * an ejection is refused when more than `max_share` of the endpoints would be out by it;
//! * **panic**: when less than `panic` of the endpoints that can be reached are in good standing, all that can be reached
//!   get requests, whatever is thought of them.
//!
//! What cannot be connected to is a fact: it neither counts here nor gets requests by it. Endpoints that join and were
//! not asked yet, or that are told to end, count on neither side.
//!
//! The count is taken when something about an endpoint changes and once a second; a request reads one flag.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwapOption;

use super::passive::Cause;
use crate::base::clock::Millis;
use crate::config::model::Eject;
use crate::upstream::endpoint::{Endpoint, Health};

/// The endpoints of one service; lives beside the snapshots as they do.
#[derive(Debug)]
pub struct Group {
    /// The service's name.
    pub service: Arc<str>,
    rules: ArcSwapOption<Eject>,
    /// Whether requests are counted for rules that the control plane applies.
    counts: AtomicBool,
    /// In percent; zero is never.
    panic_below: AtomicU8,
    panicking: AtomicBool,
    panic_since: AtomicU64,
    /// Locked when something changes, never by a request that goes well.
    members: Mutex<Vec<Weak<Endpoint>>>,
}

/// How a service stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Muster {
    /// Endpoints that can be reached, as far as anybody knows.
    pub reachable: usize,
    /// Those of them that nothing is said against.
    pub good: usize,
}

impl Group {
    pub(in crate::upstream) fn new(service: Arc<str>) -> Group {
        Group {
            service,
            rules: ArcSwapOption::empty(),
            counts: AtomicBool::new(false),
            panic_below: AtomicU8::new(0),
            panicking: AtomicBool::new(false),
            panic_since: AtomicU64::new(0),
            members: Mutex::default(),
        }
    }

    /// Takes over what a configuration says, when it has come into force.
    pub fn adopt<'a>(
        &self,
        members: impl Iterator<Item = &'a Arc<Endpoint>>,
        rules: Option<&Eject>,
        panic: Option<u8>,
        now: Millis,
    ) {
        let members: Vec<Weak<Endpoint>> = members.map(Arc::downgrade).collect();
        if self.rules.load().as_deref() != rules {
            self.rules.store(rules.cloned().map(Arc::new));
        }
        let counts = rules.is_some_and(|rules| rules.error_rate.is_some() || rules.latency.is_some());
        self.counts.store(counts, Ordering::Relaxed);
        self.panic_below.store(panic.unwrap_or(0), Ordering::Relaxed);
        if rules.is_none() {
            members.iter().filter_map(Weak::upgrade).for_each(|endpoint| endpoint.pardon());
        }
        *self.lock() = members;
        self.reconsider(now);
    }

    /// The rules of ejection in force.
    pub fn rules(&self) -> Option<Arc<Eject>> {
        self.rules.load_full()
    }

    /// Whether an answer with this status is a failure.
    pub fn is_failure(&self, status: u16) -> bool {
        // Below 400 is none, whatever is configured; most answers end here.
        status >= 400 && self.rules.load().as_ref().is_some_and(|rules| rules.status.contains(status))
    }

    /// After how many failures in a row an endpoint is ejected.
    pub fn consecutive(&self) -> Option<u32> {
        self.rules.load().as_ref()?.consecutive
    }

    /// Whether the control plane wants requests counted.
    pub fn counts(&self) -> bool {
        self.counts.load(Ordering::Relaxed)
    }

    /// Whether all that can be reached get requests.
    pub fn panicking(&self) -> bool {
        self.panicking.load(Ordering::Relaxed)
    }

    /// The endpoints of the configuration in force.
    pub fn members(&self) -> Vec<Arc<Endpoint>> {
        self.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Ejects an endpoint by `eject`, unless too many would be out; one at a time, so that the bound holds.
    pub(in crate::upstream) fn within_share<T>(
        &self,
        rules: &Eject,
        eject: impl FnOnce() -> Option<T>,
    ) -> Option<T> {
        let members = self.lock();
        let (mut all, mut ejected) = (0usize, 0usize);
        for endpoint in members.iter().filter_map(Weak::upgrade) {
            all += 1;
            // One whose trial is under way is still out.
            ejected += usize::from(endpoint.out().is_some_and(|out| out.cause != Cause::Connect));
        }
        let allowed = (ejected + 1) * 100 <= usize::from(rules.max_share) * all;
        if allowed { eject() } else { None }
    }

    /// How the service stands.
    pub fn muster(&self) -> Muster {
        let mut muster = Muster::default();
        for endpoint in self.lock().iter().filter_map(Weak::upgrade) {
            let out = endpoint.out().map(|out| out.cause);
            let health = endpoint.health();
            let absent = endpoint.is_leaving() || matches!(health, Health::Unreachable | Health::Joining);
            if absent || out == Some(Cause::Connect) {
                continue;
            }
            muster.reachable += 1;
            muster.good += usize::from(out.is_none() && health != Health::Unhealthy);
        }
        muster
    }

    /// Looks whether the service is to panic, or no longer.
    pub fn reconsider(&self, now: Millis) {
        let below = self.panic_below.load(Ordering::Relaxed);
        let muster = self.muster();
        let panic = below > 0 && muster.good * 100 < usize::from(below) * muster.reachable;
        if self.panicking.swap(panic, Ordering::Relaxed) == panic {
            return;
        }
        let service = &*self.service;
        let Muster { reachable, good } = muster;
        if panic {
            self.panic_since.store(now.0, Ordering::Relaxed);
            tracing::warn!(
                service,
                "panic: of {reachable} backends that can be reached only {good} are in good standing (panic = {below}%): \
                 all of them get requests"
            );
        } else {
            let seconds = now.0.saturating_sub(self.panic_since.load(Ordering::Relaxed)) / 1000;
            tracing::info!(
                service,
                "the panic is over after {seconds} s: {good} of {reachable} backends that can be reached are in good standing"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Endpoint>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
