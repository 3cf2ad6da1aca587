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
//! Panic is judged of primaries and of backups by themselves, and only where the others cannot take over. Primaries of
//! which too few are in good standing, with backups of which enough are, do not panic but spill over: they keep as much
//! as those in good standing would have to carry at the threshold, and the backups get the rest.
//!
//! What cannot be connected to is a fact: it neither counts here nor gets requests by it. Endpoints that join and were
//! not asked yet, or that are told to end, count on neither side.
//!
//! The count is taken when something about an endpoint changes and once a second; a request reads one flag.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
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
    /// Of primaries, and of backups.
    panics: [Panic; 2],
    /// How many of [`WHOLE`] requests go to backups although primaries are up.
    spill: AtomicU32,
    /// Locked when something changes, never by a request that goes well.
    members: Mutex<Vec<Weak<Endpoint>>>,
}

/// All requests, where shares of them are counted.
pub const WHOLE: u32 = 1 << 16;

#[derive(Debug, Default)]
struct Panic {
    now: AtomicBool,
    since: AtomicU64,
}

/// How the primaries of a service stand, or the backups.
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
            panics: Default::default(),
            spill: AtomicU32::new(0),
            members: Mutex::default(),
        }
    }

    /// Takes over what a configuration says, when it has come into force; of each endpoint whether it is a backup.
    pub fn adopt<'a>(
        &self,
        members: impl Iterator<Item = (&'a Arc<Endpoint>, bool)>,
        rules: Option<&Eject>,
        panic: Option<u8>,
        now: Millis,
    ) {
        let ranked = |(endpoint, backup): (&'a Arc<Endpoint>, bool)| {
            endpoint.set_backup(backup);
            Arc::downgrade(endpoint)
        };
        let members: Vec<Weak<Endpoint>> = members.map(ranked).collect();
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

    /// Whether all primaries, or all backups, that can be reached get requests.
    pub fn panics(&self, backup: bool) -> bool {
        self.panic(backup).now.load(Ordering::Relaxed)
    }

    /// Whether either panic.
    pub fn panicking(&self) -> bool {
        self.panics(false) || self.panics(true)
    }

    /// How many of [`WHOLE`] requests go to backups although primaries are up.
    pub fn spill(&self) -> u32 {
        self.spill.load(Ordering::Relaxed)
    }

    fn panic(&self, backup: bool) -> &Panic {
        let [primaries, backups] = &self.panics;
        if backup { backups } else { primaries }
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

    /// How the primaries stand, and how the backups.
    pub fn musters(&self) -> [Muster; 2] {
        let [mut primaries, mut backups] = [Muster::default(); 2];
        for endpoint in self.lock().iter().filter_map(Weak::upgrade) {
            let out = endpoint.out().map(|out| out.cause);
            let health = endpoint.health();
            let absent = endpoint.is_leaving() || matches!(health, Health::Unreachable | Health::Joining);
            if absent || out == Some(Cause::Connect) {
                continue;
            }
            let muster = if endpoint.is_backup() { &mut backups } else { &mut primaries };
            muster.reachable += 1;
            muster.good += usize::from(out.is_none() && health != Health::Unhealthy);
        }
        [primaries, backups]
    }

    /// How those stand who panic.
    pub fn muster_of_panic(&self) -> Muster {
        let mut all = Muster::default();
        for (muster, backup) in self.musters().into_iter().zip([false, true]) {
            if self.panics(backup) {
                all.reachable += muster.reachable;
                all.good += muster.good;
            }
        }
        all
    }

    /// Looks whether the service is to panic or to spill over, or no longer.
    pub fn reconsider(&self, now: Millis) {
        let below = usize::from(self.panic_below.load(Ordering::Relaxed));
        let [primaries, backups] = self.musters();
        self.set_spill(primaries.spill(backups, below), primaries, backups);
        self.set_panic(false, primaries.is_short(below) && !backups.can_take_over(below), primaries, now);
        self.set_panic(true, backups.is_short(below) && !primaries.can_take_over(below), backups, now);
    }

    fn set_spill(&self, spill: u32, primaries: Muster, backups: Muster) {
        let before = self.spill.swap(spill, Ordering::Relaxed);
        let service = &*self.service;
        if before == 0 && spill > 0 {
            let percent = spill.saturating_mul(100) / WHOLE;
            tracing::warn!(
                service,
                "too few backends are in good standing ({} of {} that can be reached): {percent} % of the requests go \
                 to backups ({} of {} in good standing)",
                primaries.good,
                primaries.reachable,
                backups.good,
                backups.reachable
            );
        } else if before > 0 && spill == 0 {
            tracing::info!(service, "requests are not shared with backups any more");
        }
    }

    fn set_panic(&self, backup: bool, panic: bool, muster: Muster, now: Millis) {
        let state = self.panic(backup);
        if state.now.swap(panic, Ordering::Relaxed) == panic {
            return;
        }
        let service = &*self.service;
        let Muster { reachable, good } = muster;
        let what = if backup { "backup backends" } else { "backends" };
        if panic {
            state.since.store(now.0, Ordering::Relaxed);
            let below = self.panic_below.load(Ordering::Relaxed);
            tracing::warn!(
                service,
                "panic: of {reachable} {what} that can be reached only {good} are in good standing (panic = {below}%): \
                 all of them get requests"
            );
        } else {
            let seconds = now.0.saturating_sub(state.since.load(Ordering::Relaxed)) / 1000;
            tracing::info!(
                service,
                "the panic is over after {seconds} s: {good} of {reachable} {what} that can be reached are in good standing"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Endpoint>>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Muster {
    /// Less than so many percent are in good standing.
    fn is_short(self, percent: usize) -> bool {
        self.good * 100 < percent * self.reachable
    }

    fn can_take_over(self, percent: usize) -> bool {
        self.good > 0 && !self.is_short(percent)
    }

    /// How many of [`WHOLE`] requests go to backups although primaries are up. Where none is, the balancer sees to it by
    /// itself, and to it that a primary is tried for its return.
    fn spill(self, backups: Muster, percent: usize) -> u32 {
        if self.good == 0 || !self.is_short(percent) || !backups.can_take_over(percent) {
            return 0;
        }
        let whole = u64::from(WHOLE);
        let kept = (self.good as u64 * 100 * whole).checked_div((percent * self.reachable) as u64);
        u32::try_from(whole.saturating_sub(kept.unwrap_or(whole))).unwrap_or(0)
    }
}
