//! Which endpoint gets a request. Pure: times, random bits and what is known of the request come from the caller.
//!
//! All balancers keep the same promises, in this order:
//!
//! 1. a primary that is up and was not tried for this request, as the balancer prefers;
//! 2. on the way there, a primary that is due for a trial and whose trial this request wins;
//! 3. the same of backups: no primary is up, or all that are were tried for this request;
//! 4. an endpoint that is up though it was tried, primaries first: no other lives;
//! 5. when all are down, the one not tried yet whose next trial is soonest, a random one of several. This fails open: a
//!    health check may be wrong and a backend may be back, and a small chance is better than a certain 503;
//! 6. none, when all are down and all were tried.
//!
//! An endpoint of weight 0 drains: it gets requests whose cookie names it ([`sticky`]), and others only where nothing else
//! is up. Where the service has a slow start, an endpoint that is new or back counts for less at first (`field`).

mod field;
mod hash;
mod key;
mod least_request;
mod maglev;
mod p2c;
mod round_robin;
pub mod sticky;
mod turns;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use super::endpoint::{Availability, Endpoint};
use crate::base::clock::Millis;
use crate::config::model::Balance;
use field::Field;
use hash::Ring;
pub use key::{Facts, Key, cookies};
pub use round_robin::Rotation;
pub use turns::Turns;

/// Endpoints of a service that [`Tried`] tells apart.
pub const TRIED_MAX: usize = 1024;

/// Endpoints that one choice looks at where it would have to look at all of them: more than these are sampled.
const SCAN_MAX: usize = 64;

/// An endpoint and its share.
#[derive(Debug, Clone)]
pub struct Weighted {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its share of the requests; 0: it drains.
    pub weight: u32,
    /// It gets requests only while no primary is up.
    pub backup: bool,
}

/// What a balancer is told of a request.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The time.
    pub now: Millis,
    /// 64 random bits.
    pub random: u64,
    /// Where the request belongs.
    pub affinity: Affinity,
    /// Endpoints that were tried for it.
    pub tried: &'a Tried,
}

/// Where a request belongs, by what it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Affinity {
    /// Nowhere: any endpoint is as good.
    #[default]
    None,
    /// Where all requests with this hash go.
    Key(u64),
    /// To the endpoint of this index: its cookie says so.
    Endpoint(usize),
}

/// How endpoints are chosen.
#[derive(Debug)]
pub struct Balancer {
    primaries: Method,
    /// `None` where there is no backup.
    backups: Option<Method>,
    slow_start: Option<Duration>,
}

/// How one is chosen among primaries, or among backups.
#[derive(Debug)]
enum Method {
    /// Two random endpoints, the less loaded wins. Also for `sticky`, where the cookie decides nothing.
    P2c(Turns),
    /// Weighted, in turn.
    RoundRobin(Rotation),
    /// The one with the fewest requests in flight.
    LeastRequest,
    /// By a key; requests without one as by `P2c`.
    Hash(Ring, Turns),
}

/// Which endpoints were tried for a request. Indices from [`TRIED_MAX`] on are not remembered: such an endpoint may be
/// tried twice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tried {
    words: [u64; TRIED_MAX / 64],
}

impl Balancer {
    /// Compiles a balancer for these endpoints. [`Balancer::choose`] is to be called with the same ones.
    pub fn compile(balance: &Balance, slow_start: Option<Duration>, endpoints: &[Weighted]) -> Balancer {
        let backups = endpoints.iter().any(|weighted| weighted.backup);
        Balancer {
            primaries: Method::compile(balance, endpoints, false),
            backups: backups.then(|| Method::compile(balance, endpoints, true)),
            slow_start,
        }
    }

    /// Chooses an endpoint, as an index. `None` when there is no endpoint, or when all are down and all were tried.
    pub fn choose(&self, endpoints: &[Weighted], ask: &Ask<'_>) -> Option<usize> {
        let tiers = [(Some(&self.primaries), false), (self.backups.as_ref(), true)];
        tiers
            .into_iter()
            .filter_map(|(method, backup)| Some((method?, backup)))
            .find_map(|(method, backup)| {
                let field = Field { endpoints, ask, backup, slow_start: self.slow_start };
                // Where everybody who is not held back is down, those who are held back serve.
                let all =
                    || self.slow_start.and_then(|_| method.choose(&Field { slow_start: None, ..field }));
                method.choose(&field).or_else(all)
            })
            .or_else(|| again(endpoints, ask))
            .or_else(|| soonest(endpoints, ask))
    }
}

impl Method {
    fn compile(balance: &Balance, endpoints: &[Weighted], backup: bool) -> Method {
        match balance {
            Balance::P2c | Balance::Sticky(_) => Method::P2c(Turns::compile(endpoints, backup)),
            Balance::RoundRobin => Method::RoundRobin(Rotation::compile(endpoints, backup)),
            Balance::LeastRequest => Method::LeastRequest,
            Balance::Hash { load, .. } => {
                Method::Hash(Ring::compile(endpoints, backup, *load), Turns::compile(endpoints, backup))
            }
        }
    }

    fn choose(&self, field: &Field<'_>) -> Option<usize> {
        match (self, field.ask.affinity) {
            (Method::Hash(ring, _), Affinity::Key(key)) => ring.choose(field, key),
            (Method::P2c(_), Affinity::Endpoint(at)) if field.welcomes(at) => Some(at),
            (Method::P2c(turns) | Method::Hash(_, turns), _) => p2c::choose(turns, field),
            (Method::RoundRobin(rotation), _) => rotation.choose(field),
            (Method::LeastRequest, _) => least_request::choose(field),
        }
    }
}

impl Tried {
    /// Remembers an index.
    pub fn insert(&mut self, at: usize) {
        if let Some(word) = self.words.get_mut(at / 64) {
            *word |= 1 << (at % 64);
        }
    }

    /// Whether an index was tried.
    pub fn contains(&self, at: usize) -> bool {
        self.words.get(at / 64).is_some_and(|word| word & (1 << (at % 64)) != 0)
    }
}

/// Every endpoint once, from a random one on.
fn from(endpoints: &[Weighted], random: u64) -> impl Iterator<Item = (usize, &Weighted)> {
    let start = below(random, endpoints.len());
    let all = endpoints.iter().enumerate();
    all.clone().skip(start).chain(all.take(start))
}

/// One that is up although it was tried, or drains.
fn again(endpoints: &[Weighted], ask: &Ask<'_>) -> Option<usize> {
    from(endpoints, ask.random)
        .filter(|(_, weighted)| weighted.endpoint.is_up(ask.now))
        .min_by_key(|(_, weighted)| (weighted.weight == 0, weighted.backup))
        .map(|(at, _)| at)
}

fn soonest(endpoints: &[Weighted], ask: &Ask<'_>) -> Option<usize> {
    from(endpoints, ask.random)
        .filter(|(at, _)| !ask.tried.contains(*at))
        .min_by_key(|(_, weighted)| match weighted.endpoint.availability(ask.now) {
            Availability::Up | Availability::Trial => Millis(0),
            Availability::Down { retry_at } => retry_at,
        })
        .map(|(at, _)| at)
}

/// A number below `bound` from the low 32 random bits; zero where the bound is.
fn below(random: u64, bound: usize) -> usize {
    let product = (random & u64::from(u32::MAX)).saturating_mul(bound as u64);
    usize::try_from(product >> 32).unwrap_or(0)
}
