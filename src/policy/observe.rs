//! Watching for a while how clients use the sites, so that limits can be proposed from it.
//!
//! Off unless somebody asks, for a time that is bounded; then each worker counts in a [`Tally`] of its own, which has
//! room for a bounded number of clients, and hands it to the control plane at the end of every [`WINDOW`] through the
//! [`Watch`]: no lock and no shared cache line for a request. [`Merged`] adds the tallies of all workers up, [`Report`]
//! says what they come to. Nothing of it outlives the answer.
//!
//! Where there are more clients than room, a part of them is looked at: `sample` says which.

mod merge;
mod propose;
mod sample;
mod spread;

#[cfg(test)]
mod tests;

pub use merge::{Client, Merged, SiteSeen};
pub use propose::{Body, Cap, Limit, Report, SiteReport, site_cap};
pub use spread::Spread;

use std::collections::HashMap;
use std::hash::RandomState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use crate::base::address::ClientKey;
use crate::base::clock::Millis;
use sample::Sample;

/// Requests of a client are counted in windows of this length.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Clients that a worker tells apart in a window, over all sites: 48 bytes each.
const WORKER_CLIENTS: usize = 16_384;
/// Tallies of each worker that may wait for the control plane; what comes when it is that late is lost.
const WAITING_MAX: usize = 4;

/// What is watched: the same for all workers.
pub struct Plan {
    /// Tells one from the next.
    pub id: u64,
    /// The sites, each at its number.
    pub sites: Vec<Arc<str>>,
    /// When it began.
    pub begun: Millis,
    /// When workers stop by themselves.
    pub until: Millis,
    /// How many workers count.
    pub workers: usize,
    numbers: HashMap<Arc<str>, u32>,
    /// Which clients are looked at where they are too many: the same on all workers, and known to nobody else.
    seed: RandomState,
}

impl Plan {
    /// Watches these sites from now on.
    pub fn new(id: u64, sites: Vec<Arc<str>>, workers: usize, begun: Millis, time: Duration) -> Plan {
        let numbers = sites.iter().cloned().zip(0..).collect();
        Plan { id, sites, begun, until: begun.after(time), workers, numbers, seed: RandomState::new() }
    }

    fn window(&self, now: Millis) -> u32 {
        let since = now.0.saturating_sub(self.begun.0);
        u32::try_from(since / u64::try_from(WINDOW.as_millis()).unwrap_or(u64::MAX)).unwrap_or(u32::MAX)
    }
}

/// Where the control plane says what is watched, and workers leave what they counted.
#[derive(Default)]
pub struct Watch {
    plan: ArcSwapOption<Plan>,
    tallies: Mutex<Vec<Tally>>,
}

impl Watch {
    /// From now on this is watched; `None`: nothing.
    pub fn set(&self, plan: Option<Arc<Plan>>) {
        self.plan.store(plan);
    }

    /// What workers left since the last call.
    pub fn collect(&self) -> Vec<Tally> {
        std::mem::take(&mut *self.tallies())
    }

    /// Called by a worker every tick: begins, hands over and ends as the plan says.
    pub fn tick(&self, tally: &mut Option<Box<Tally>>, now: Millis) {
        let plan = self.plan.load();
        let plan = plan.as_ref().filter(|plan| now < plan.until);
        if let Some(counted) = tally {
            let goes_on = plan.is_some_and(|plan| plan.id == counted.plan.id);
            let window = counted.plan.window(now);
            if goes_on && window == counted.window {
                return;
            }
            let next = goes_on.then(|| Box::new(Tally::new(&counted.plan, window)));
            if let Some(mut counted) = std::mem::replace(tally, next) {
                counted.last = !goes_on;
                self.leave(*counted);
            }
        }
        if let (None, Some(plan)) = (&*tally, plan) {
            *tally = Some(Box::new(Tally::new(plan, plan.window(now))));
        }
    }

    fn leave(&self, tally: Tally) {
        let mut tallies = self.tallies();
        if tallies.len() < tally.plan.workers.saturating_mul(WAITING_MAX) {
            tallies.push(tally);
        }
    }

    fn tallies(&self) -> MutexGuard<'_, Vec<Tally>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one worker counted in one window.
pub struct Tally {
    plan: Arc<Plan>,
    window: u32,
    /// The worker counts no more.
    last: bool,
    clients: Sample<u32>,
    sites: Vec<Counted>,
    /// For each connection that was accepted: which it was of those its client had open.
    connections: Spread,
}

/// What one worker counted for a site in one window.
#[derive(Default)]
struct Counted {
    requests: u64,
    bodies: Spread,
    too_large: u64,
}

impl Tally {
    fn new(plan: &Arc<Plan>, window: u32) -> Tally {
        let sites = plan.sites.len();
        Tally {
            plan: plan.clone(),
            window,
            last: false,
            clients: Sample::new(sites, WORKER_CLIENTS, WORKER_CLIENTS, plan.seed.clone()),
            sites: std::iter::repeat_with(Counted::default).take(sites).collect(),
            connections: Spread::default(),
        }
    }

    /// A request that the limits are about to be asked about.
    pub fn request(&mut self, site: &str, client: ClientKey) {
        let Some(&number) = self.plan.numbers.get(site) else { return };
        let Some(counted) = self.sites.get_mut(number as usize) else { return };
        counted.requests += 1;
        if let Some(count) = self.clients.at(number, client) {
            *count = count.saturating_add(1);
        }
    }

    /// A request's body has ended; `too_large`: it was refused for its size.
    pub fn body(&mut self, site: &str, bytes: u64, too_large: bool) {
        let number = self.plan.numbers.get(site).copied();
        let Some(counted) = number.and_then(|number| self.sites.get_mut(number as usize)) else { return };
        counted.too_large += u64::from(too_large);
        if bytes > 0 && !too_large {
            counted.bodies.add(bytes, 1);
        }
    }

    /// A connection was let in, as the `nth` of those its client has open.
    pub fn connection(&mut self, nth: u32) {
        self.connections.add(u64::from(nth), 1);
    }
}
