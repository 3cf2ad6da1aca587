//! Shares: what one tenant may take of the node while others want it too.
//!
//! Everything that a node has little of is lent to whoever wants it, and shared by weight once it runs short:
//!
//! * **The processor**: [`usage`] says who uses more than its share, [`lanes`] whose turn it is among those. A worker asks
//!   them only while it is behind.
//! * **What is counted** (connections, connections to backends, requests in flight, handshakes): [`may_take`].
//! * **Memory**: bytes of bodies that wait to be sent on are counted, and matter in an overload.
//!
//! A [`Tenant`] outlives reloads. Its counts are the node's, over all workers; what changes with each request is counted
//! by each worker for itself and told ten times a second.

pub mod lanes;
pub mod usage;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::base::gentle;
use crate::config::model::Weights;
use crate::policy::overload::Load;

/// A tenant's place in the tables of workers; used again when the tenant is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Slot(pub u32);

impl Slot {
    /// Of what belongs to no tenant, or to none yet: handshakes before their hello, requests for unknown hosts.
    pub const NOBODY: Slot = Slot(0);

    /// Position in a table.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Whether a tenant may take one more of something, of which it has `own`.
///
/// Up to `lent` percent of `whole`, whoever comes first may have all of it. Of the rest each tenant may have what makes its
/// own share full, by weight among those that have any: the rest is kept for those that had less.
pub fn may_take(own: u32, all: u32, whole: u32, lent: u32, (weight, weights): (u32, u32)) -> bool {
    if u64::from(all) * 100 < u64::from(whole) * u64::from(lent) {
        return true;
    }
    u64::from(own) < share(whole.into(), weight, weights)
}

/// A tenant's share of something; at least one.
pub fn share(whole: u64, weight: u32, weights: u32) -> u64 {
    (whole.saturating_mul(weight.into()) / u64::from(weights.max(weight).max(1))).max(1)
}

/// Who owns sites, and what its sites have together.
#[derive(Debug)]
pub struct Tenant {
    /// Its name.
    pub name: Arc<str>,
    /// Its place in the tables of workers.
    pub slot: Slot,
    weight: AtomicU32,
    /// Open connections of clients.
    pub connections: Arc<AtomicU32>,
    /// Open connections to backends, those kept for later included.
    pub upstream: Arc<AtomicU32>,
    /// Requests in flight, as workers told last.
    pub in_flight: AtomicU32,
    /// Bytes of its bodies that wait here to be sent on, as workers told last.
    pub buffered: AtomicU64,
    /// Microseconds of processor time used.
    pub micros: AtomicU64,
    /// What was turned away because it had more than its share.
    pub shed: AtomicU64,
    /// What it used of the processor lately, in hundredths of its share, on the worker where that was most.
    pub percent: AtomicU32,
    /// The same since the last survey.
    pub peak: AtomicU32,
    /// It has more than its share of what runs short, as of the last survey.
    pub over: AtomicBool,
}

impl Tenant {
    fn new(name: &Arc<str>, slot: Slot, weight: u32) -> Tenant {
        Tenant {
            name: name.clone(),
            slot,
            weight: AtomicU32::new(weight),
            connections: Arc::default(),
            upstream: Arc::default(),
            in_flight: AtomicU32::default(),
            buffered: AtomicU64::default(),
            micros: AtomicU64::default(),
            shed: AtomicU64::default(),
            percent: AtomicU32::default(),
            peak: AtomicU32::default(),
            over: AtomicBool::default(),
        }
    }

    /// Whether it has more than its share of something.
    pub fn exceeds(&self, thing: Thing, whole: u64, levels: &Levels) -> bool {
        let own = match thing {
            Thing::Connections => self.connections.load(Relaxed).into(),
            Thing::Upstream => self.upstream.load(Relaxed).into(),
            Thing::InFlight => self.in_flight.load(Relaxed).into(),
            Thing::Buffered => self.buffered.load(Relaxed),
        };
        let (weight, weights) = levels.weights(thing, self);
        own > share(whole, weight, weights)
    }

    /// Whether it has anything, or used anything since the last survey, or was noted then.
    fn is_busy(&self) -> bool {
        self.in_flight.load(Relaxed) > 0
            || self.buffered.load(Relaxed) > 0
            || self.peak.load(Relaxed) > 0
            || self.percent.load(Relaxed) > 0
            || self.over.load(Relaxed)
            || self.connections.load(Relaxed) > 0
            || self.upstream.load(Relaxed) > 0
    }

    /// Its weight.
    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }
}

/// Leave to have one of something; dropping it gives it back.
#[derive(Debug)]
#[must_use = "it is counted only while this lives"]
pub struct Counted(Arc<AtomicU32>);

impl Counted {
    /// One more.
    pub fn one(count: &Arc<AtomicU32>) -> Counted {
        count.fetch_add(1, Relaxed);
        Counted(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Weights of the tenants that have any of a thing, together; brought up to date a few times a second.
#[derive(Debug, Default)]
pub struct Levels {
    /// Of those with connections.
    connections: AtomicU32,
    /// Of those with connections to backends.
    upstream: AtomicU32,
    /// Of those with requests in flight.
    in_flight: AtomicU32,
    /// Of those whose bodies hold memory.
    buffered: AtomicU32,
    /// How many tenants there are, whatever they have.
    tenants: AtomicU32,
    /// How the node is.
    pub load: Load,
}

/// What tenants have a share of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thing {
    /// Connections of clients.
    Connections,
    /// Connections to backends.
    Upstream,
    /// Requests in flight.
    InFlight,
    /// Bytes of bodies that wait here.
    Buffered,
}

impl Levels {
    /// A tenant's weight, and what it is a part of. Who is the only one that has anything still leaves room for one other of
    /// the usual weight, where there are others: what is taken does not come back at once.
    pub fn weights(&self, thing: Thing, tenant: &Tenant) -> (u32, u32) {
        let sum = match thing {
            Thing::Connections => &self.connections,
            Thing::Upstream => &self.upstream,
            Thing::InFlight => &self.in_flight,
            Thing::Buffered => &self.buffered,
        };
        let own = tenant.weight();
        (own, sum.load(Relaxed).max(own.saturating_add(self.kept())))
    }

    /// The weight for which room is left, of a tenant that has nothing yet: the usual one, where there are others at all.
    pub fn kept(&self) -> u32 {
        u32::from(self.tenants.load(Relaxed) > 1)
    }
}

/// All tenants.
#[derive(Debug, Default)]
pub struct Tenants {
    /// See [`Levels`].
    pub levels: Arc<Levels>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    tenants: HashMap<Arc<str>, Arc<Tenant>>,
    /// The same as a list, until one comes or goes.
    all: Option<Arc<[Arc<Tenant>]>>,
    weights: Weights,
    free: Vec<u32>,
    next: u32,
}

impl Tenants {
    /// The tenant of this name; the same one for as long as anything of it is left.
    pub fn get(&self, name: &Arc<str>) -> Arc<Tenant> {
        let mut known = self.lock();
        if let Some(tenant) = known.tenants.get(name) {
            return tenant.clone();
        }
        let slot = known.free.pop().unwrap_or_else(|| {
            known.next += 1;
            known.next
        });
        let tenant = Arc::new(Tenant::new(name, Slot(slot), known.weights.of(name)));
        known.tenants.insert(name.clone(), tenant.clone());
        known.all = None;
        self.levels.tenants.store(u32::try_from(known.tenants.len()).unwrap_or(u32::MAX), Relaxed);
        tenant
    }

    /// Weights as they are from now on.
    pub fn configure(&self, weights: &Weights) {
        let mut known = self.lock();
        known.weights = weights.clone();
        for (name, tenant) in &known.tenants {
            tenant.weight.store(weights.of(name), Relaxed);
        }
    }

    /// Forgets tenants of whom nothing is left.
    pub fn sweep(&self) {
        let known = &mut *self.lock();
        // The list holds each of them too.
        known.all = None;
        let free = &mut known.free;
        known.tenants.retain(|_, tenant| {
            let stays = Arc::strong_count(tenant) > 1
                || tenant.connections.load(Relaxed) > 0
                || tenant.upstream.load(Relaxed) > 0;
            if !stays {
                free.push(tenant.slot.0);
            }
            stays
        });
        self.levels.tenants.store(u32::try_from(known.tenants.len()).unwrap_or(u32::MAX), Relaxed);
    }

    /// All of them.
    pub fn all(&self) -> Arc<[Arc<Tenant>]> {
        let known = &mut *self.lock();
        known.all.get_or_insert_with(|| known.tenants.values().cloned().collect()).clone()
    }

    /// Adds up the weights of those that have something; gives the tenants about whom there is anything to be told, or
    /// was at the last survey. Of ten thousand most have nothing: they are read, not written to.
    pub fn survey(&self) -> Vec<Arc<Tenant>> {
        let all = self.all();
        let busy = gentle::often(all.iter()).filter(|tenant| tenant.is_busy());
        let busy: Vec<Arc<Tenant>> = busy.cloned().collect();
        let (mut connections, mut upstream, mut in_flight, mut buffered) = (0u32, 0u32, 0u32, 0u32);
        for tenant in gentle::often(&busy) {
            tenant.percent.store(tenant.peak.swap(0, Relaxed), Relaxed);
            let add = |sum: &mut u32, any: bool| {
                if any {
                    *sum = sum.saturating_add(tenant.weight());
                }
            };
            add(&mut connections, tenant.connections.load(Relaxed) > 0);
            add(&mut upstream, tenant.upstream.load(Relaxed) > 0);
            add(&mut in_flight, tenant.in_flight.load(Relaxed) > 0);
            add(&mut buffered, tenant.buffered.load(Relaxed) > 0);
        }
        self.levels.connections.store(connections, Relaxed);
        self.levels.upstream.store(upstream, Relaxed);
        self.levels.in_flight.store(in_flight, Relaxed);
        self.levels.buffered.store(buffered, Relaxed);
        busy
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(heavy: u32) -> Weights {
        Weights(Arc::new([(Arc::from("heavy"), heavy)].into_iter().collect()))
    }

    #[test]
    fn what_is_idle_is_lent_and_the_rest_is_kept_for_those_that_had_less() {
        // Alone: three quarters at once, and the rest too, since the share is all of it.
        assert!(may_take(74, 74, 100, 75, (1, 1)));
        assert!(may_take(99, 99, 100, 75, (1, 1)));
        // Two: the one that took what was lent gets nothing of the rest, the other does until its half is full.
        assert!(!may_take(75, 75, 100, 75, (1, 2)));
        assert!(may_take(0, 75, 100, 75, (1, 2)));
        assert!(may_take(24, 99, 100, 75, (1, 2)));
        // By weight.
        assert!(may_take(74, 80, 100, 75, (3, 4)) && !may_take(75, 80, 100, 75, (3, 4)));
        // Very many: each may have one.
        assert!(may_take(0, 100, 100, 75, (1, 100_000)) && !may_take(1, 100, 100, 75, (1, 100_000)));
        // Nobody was counted yet.
        assert!(may_take(0, 100, 100, 75, (5, 0)));
    }

    #[test]
    fn a_tenant_is_the_same_over_reloads_and_its_place_is_used_again() {
        let tenants = Tenants::default();
        tenants.configure(&weights(3));
        let (one, heavy) = (tenants.get(&"one".into()), tenants.get(&"heavy".into()));
        assert_eq!((one.slot, heavy.slot), (Slot(1), Slot(2)));
        assert_eq!((one.weight(), heavy.weight()), (1, 3));
        tenants.configure(&weights(5));
        assert!(Arc::ptr_eq(&heavy, &tenants.get(&"heavy".into())) && heavy.weight() == 5);
        let connection = Counted::one(&one.connections);
        drop(one);
        tenants.sweep();
        assert_eq!(tenants.get(&"one".into()).slot, Slot(1), "it has a connection");
        drop(connection);
        tenants.sweep();
        assert_eq!(tenants.get(&"other".into()).slot, Slot(1));
        assert_eq!(tenants.get(&"third".into()).slot, Slot(3));
    }

    #[test]
    fn a_survey_counts_those_that_have_something() {
        let tenants = Tenants::default();
        tenants.configure(&weights(3));
        let (one, heavy) = (tenants.get(&"one".into()), tenants.get(&"heavy".into()));
        let held = [Counted::one(&one.connections), Counted::one(&heavy.connections)];
        let upstream = Counted::one(&heavy.upstream);
        one.in_flight.store(7, Relaxed);
        assert_eq!(tenants.survey().len(), 2);
        let nothing = tenants.get(&"nothing".into());
        assert_eq!(tenants.survey().len(), 2, "whoever has nothing is passed by");
        nothing.peak.store(250, Relaxed);
        assert_eq!((tenants.survey().len(), nothing.percent.load(Relaxed)), (3, 250));
        assert_eq!((tenants.survey().len(), nothing.percent.load(Relaxed)), (3, 0), "and it is over");
        assert_eq!(tenants.survey().len(), 2);
        drop(nothing);
        tenants.sweep();
        let levels = &tenants.levels;
        let read = |tenant: &Tenant| {
            [Thing::Connections, Thing::Upstream, Thing::InFlight].map(|thing| levels.weights(thing, tenant))
        };
        assert_eq!(read(&one), [(1, 4), (1, 3), (1, 2)]);
        drop((held, upstream));
        tenants.survey();
        assert_eq!(read(&one), [(1, 2), (1, 2), (1, 2)]);
        assert_eq!(read(&heavy), [(3, 4), (3, 4), (3, 4)]);
        drop(heavy);
        tenants.sweep();
        assert_eq!(read(&one), [(1, 1), (1, 1), (1, 1)], "there is nobody else");
    }

    #[test]
    fn who_holds_more_than_its_share_of_what_bodies_hold_is_told_by_weight() {
        let tenants = Tenants::default();
        tenants.configure(&weights(3));
        let (one, heavy) = (tenants.get(&"one".into()), tenants.get(&"heavy".into()));
        let over = |of_one: u64, of_heavy: u64| {
            one.buffered.store(of_one, Relaxed);
            heavy.buffered.store(of_heavy, Relaxed);
            tenants.survey();
            let exceeds =
                |tenant: &Tenant| tenant.exceeds(Thing::Buffered, of_one + of_heavy, &tenants.levels);
            (exceeds(&one), exceeds(&heavy))
        };
        assert_eq!(over(0, 0), (false, false));
        assert_eq!(over(10 << 30, 30 << 30), (false, false), "as much as its weight");
        assert_eq!(over(11 << 30, 30 << 30), (true, false));
        assert_eq!(over(9 << 30, 30 << 30), (false, true));
        assert_eq!(over(1 << 30, 0), (true, false), "alone with it, but not on the node");
    }
}
