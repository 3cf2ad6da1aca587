//! The tallies of all workers, added up.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sample::Sample;
use super::{Plan, Spread, Tally};
use crate::base::address::ClientKey;

/// Clients told apart in all, over all sites and windows: 64 bytes each.
const CLIENTS: usize = 131_072;

/// What was seen so far.
pub struct Merged {
    plan: Arc<Plan>,
    /// Windows that some worker may still add to.
    open: BTreeMap<u32, Open>,
    clients: Sample<Seen>,
    sites: Vec<SiteSeen>,
    connections: Spread,
    ended: usize,
}

struct Open {
    clients: Sample<u32>,
    from: usize,
}

/// What was seen of a site.
#[derive(Debug, Default)]
pub struct SiteSeen {
    /// Requests.
    pub requests: u64,
    /// Requests of a client in a window.
    pub windows: Spread,
    /// Sizes of request bodies.
    pub bodies: Spread,
    /// Requests refused for their size.
    pub too_large: u64,
    /// Its clients, or those of them that were looked at.
    pub clients: Vec<Client>,
    /// One of so many clients was looked at.
    pub one_in: u64,
}

#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    most: u32,
}

/// What was seen of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    /// Which.
    pub key: ClientKey,
    /// Its requests.
    pub requests: u64,
    /// Its requests in the window in which they were most.
    pub most: u32,
}

impl Merged {
    /// Nothing was seen yet.
    pub fn new(plan: Arc<Plan>) -> Merged {
        let sites = plan.sites.len();
        Merged {
            open: BTreeMap::new(),
            clients: Sample::new(sites, CLIENTS, 0, plan.seed.clone()),
            sites: std::iter::repeat_with(SiteSeen::default).take(sites).collect(),
            connections: Spread::default(),
            ended: 0,
            plan,
        }
    }

    /// Adds what a worker counted; of another plan it is dropped.
    pub fn add(&mut self, tally: Tally) {
        if tally.plan.id != self.plan.id {
            return;
        }
        self.ended += usize::from(tally.last);
        self.connections.merge(&tally.connections);
        for (seen, counted) in self.sites.iter_mut().zip(&tally.sites) {
            seen.requests += counted.requests;
            seen.too_large += counted.too_large;
            seen.bodies.merge(&counted.bodies);
        }
        let plan = &self.plan;
        let open = self.open.entry(tally.window).or_insert_with(|| Open {
            clients: Sample::new(plan.sites.len(), CLIENTS, 0, plan.seed.clone()),
            from: 0,
        });
        open.from += 1;
        open.clients.no_more_than(&tally.clients);
        for (site, client, count) in tally.clients.into_all() {
            if let Some(sum) = open.clients.at(site, client) {
                *sum = sum.saturating_add(count);
            }
        }
        if open.from >= self.plan.workers {
            self.close(tally.window);
        }
    }

    /// Whether every worker has left its last tally.
    pub fn ended(&self) -> bool {
        self.ended >= self.plan.workers
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.sites.iter().map(|site| site.requests).sum()
    }

    /// All that was seen, site by site as in the plan, and for each connection which it was of its client's.
    pub fn finish(mut self) -> (Vec<SiteSeen>, Spread) {
        self.close(u32::MAX);
        for (site, seen) in (0u32..).zip(&mut self.sites) {
            seen.one_in = 1u64 << self.clients.bits(site);
        }
        for (site, key, Seen { requests, most }) in self.clients.into_all() {
            if let Some(seen) = self.sites.get_mut(site as usize) {
                seen.clients.push(Client { key, requests, most });
            }
        }
        for seen in &mut self.sites {
            seen.clients.sort_unstable_by_key(|client| (client.most, client.requests, client.key.0));
        }
        (self.sites, self.connections)
    }

    /// Takes in the windows up to this one: nobody adds to them any more.
    fn close(&mut self, window: u32) {
        while let Some(entry) = self.open.first_entry().filter(|entry| *entry.key() <= window) {
            let clients = entry.remove().clients;
            self.clients.no_more_than(&clients);
            for (site, client, &count) in clients.all() {
                if let Some(seen) = self.sites.get_mut(site as usize) {
                    seen.windows.add(u64::from(count), 1 << clients.bits(site));
                }
                if let Some(seen) = self.clients.at(site, client) {
                    seen.requests += u64::from(count);
                    seen.most = seen.most.max(count);
                }
            }
        }
    }
}
