//! Layer 2, craft `upstream`: where requests go.
//!
//! A [`Service`] is compiled at reload and lives in the snapshot. Its [`Endpoint`]s live in the [`Registry`] beside the
//! snapshot, so that what is known about a backend (up or down, in flight, latency) outlives every reload. So does the
//! [`Ledger`] of each service: retries, breaker, queue.
//!
//! [`connect`] makes connections, [`answer`] checks what comes back on them, [`pool`] keeps idle ones for one worker,
//! [`multiplex`] shares those that speak HTTP/2. The rest is pure: it takes times and random bits and returns choices:
//! [`endpoint`], [`registry`], [`balance`], [`split`], [`health`], [`retry`], [`breaker`], [`capacity`], [`adaptive`].

pub mod adaptive;
pub mod answer;
pub mod balance;
pub mod breaker;
pub mod capacity;
pub mod connect;
pub mod drive;
pub mod endpoint;
pub mod health;
pub mod ledger;
pub mod multiplex;
pub mod pool;
pub mod registry;
pub mod retry;
pub mod split;

use std::sync::Arc;
use std::time::Duration;

use crate::base::clock::Millis;
use crate::config::model::{self, Http};
use balance::sticky::Sticky;
pub use balance::{Affinity, Ask, Balancer, Facts, Key, Tried, Weighted};
pub use endpoint::{Availability, Endpoint, Health, InFlight};
pub use ledger::Ledger;
pub use registry::Registry;
pub use retry::Retry;
pub use split::Split;

/// A compiled service.
#[derive(Debug)]
pub struct Service {
    /// `site/route-label`, unique in the config.
    pub name: Arc<str>,
    /// The endpoints in the order written.
    pub endpoints: Box<[Weighted]>,
    /// How one is chosen.
    pub balancer: Balancer,
    /// What a request says about that.
    pub attachment: Attachment,
    /// Deadline for connecting.
    pub connect_timeout: Duration,
    /// Deadline for the first byte of the answer.
    pub timeout: Duration,
    /// The active health check, if any.
    pub health: Option<Arc<model::Health>>,
    /// What takes an endpoint out that fails requests.
    pub eject: Option<model::Eject>,
    /// Share of endpoints in good standing, in percent, below which all are used.
    pub panic: Option<u8>,
    /// Which protocol is spoken.
    pub http: Http,
    /// Which PROXY protocol header begins each connection, if any.
    pub proxy_protocol: Option<model::ProxyHeader>,
    /// Protocols a client may change to, lower case.
    pub upgrade: Box<[String]>,
    /// What is tried again.
    pub retry: Retry,
    /// How much may be in flight, if that is bounded.
    pub capacity: Option<model::Capacity>,
    /// When nothing is sent, if ever.
    pub breaker: Option<model::Breaker>,
    /// What is known about its traffic.
    pub ledger: Arc<Ledger>,
}

/// What of a request decides where it belongs.
#[derive(Debug)]
pub enum Attachment {
    /// Nothing.
    None,
    /// Its key.
    Key(Key),
    /// Our cookie.
    Cookie(Sticky),
}

impl Service {
    /// Compiles a service; its endpoints are taken from the registry, or made there. `ledger` is what was kept for it.
    pub fn compile(service: &model::Service, registry: &Registry, ledger: Arc<Ledger>) -> Service {
        let endpoints: Box<[Weighted]> = service
            .backends
            .iter()
            .map(|backend| Weighted {
                endpoint: registry.obtain_named(
                    &service.name,
                    &backend.value.address,
                    backend.value.tls,
                    &backend.value.name,
                ),
                weight: backend.value.weight,
                backup: backend.value.backup,
            })
            .collect();
        // No site has a slash in its name.
        let site = service.name.split('/').next().unwrap_or_default();
        if service.breaker.is_none() {
            ledger.breaker.reset();
        }
        Service {
            name: Arc::clone(&service.name),
            balancer: Balancer::compile(&service.balance, service.slow_start, &endpoints),
            attachment: match &service.balance {
                model::Balance::P2c | model::Balance::RoundRobin | model::Balance::LeastRequest => {
                    Attachment::None
                }
                model::Balance::Hash { key, .. } => Attachment::Key(Key::compile(key)),
                model::Balance::Sticky(said) => {
                    Attachment::Cookie(Sticky::compile(said, site, &endpoints, registry.secret()))
                }
            },
            endpoints,
            connect_timeout: service.connect_timeout,
            timeout: service.timeout,
            health: service.health.clone().map(Arc::new),
            eject: service.eject.clone(),
            panic: service.panic,
            http: match service.upstream.http {
                // Where nothing is encrypted, nothing is chosen.
                Http::Auto if !service.backends.iter().any(|backend| backend.value.tls) => Http::H1,
                http => http,
            },
            proxy_protocol: service.upstream.proxy_protocol,
            upgrade: service.upgrade.clone().into_boxed_slice(),
            retry: Retry::compile(&service.retry),
            capacity: service.capacity.clone(),
            breaker: service.breaker.clone(),
            ledger,
        }
    }

    /// Takes over what it says about its endpoints, when it has come into force: a configuration that is refused changes
    /// nothing.
    pub fn adopt(&self, now: Millis) {
        let endpoints = || self.endpoints.iter().map(|weighted| &weighted.endpoint);
        match &self.health {
            // Nobody would ever take back what a health check that is now gone once said.
            None => endpoints().for_each(|endpoint| endpoint.forget_health(now)),
            // One that joins others that are well gets requests when it has answered. Where all are new, the first
            // requests would find none.
            Some(_) if endpoints().any(|endpoint| endpoint.health() == Health::Healthy) => {
                let new = endpoints().filter(|endpoint| endpoint.health() == Health::Unknown);
                new.for_each(|endpoint| endpoint.set_health(Health::Joining, now));
            }
            Some(_) => {}
        }
        if let Some(group) = endpoints().next().map(|endpoint| &endpoint.group) {
            let members = self.endpoints.iter().map(|weighted| (&weighted.endpoint, weighted.backup));
            group.adopt(members, self.eject.as_ref(), self.panic, now);
        }
    }

    /// Chooses an endpoint; see [`Balancer::choose`]. The index is for [`Tried`].
    pub fn choose(&self, ask: &Ask<'_>) -> Option<(usize, &Arc<Endpoint>)> {
        let at = self.balancer.choose(&self.endpoints, ask)?;
        self.endpoints.get(at).map(|weighted| (at, &weighted.endpoint))
    }

    /// Where a request belongs; costs nothing where the balancer does not ask.
    pub fn affinity(&self, facts: &Facts<'_>) -> Affinity {
        match &self.attachment {
            Attachment::None => Affinity::None,
            Attachment::Key(key) => key.hash(facts).map_or(Affinity::None, Affinity::Key),
            Attachment::Cookie(sticky) => sticky.affinity(facts.headers),
        }
    }
}
