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
//! Where too few primaries are in good standing and enough backups are, a share of the requests begins with the backups
//! ([`group`](super::health::group)); a cookie goes before that. An endpoint with as many requests as it may have is passed
//! over like one that was tried, but is no reason to ask one that is down.
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
use crate::base::hash::mix;
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
        self.choose_below(endpoints, ask, u32::MAX)
    }

    /// The same among those that have less than so many requests in flight. `None` also when others are up.
    pub fn choose_below(&self, endpoints: &[Weighted], ask: &Ask<'_>, cap: u32) -> Option<usize> {
        let mut tiers = [(Some(&self.primaries), false), (self.backups.as_ref(), true)];
        if self.backups.is_some() && begins_with_backups(endpoints, ask) {
            tiers.reverse();
        }
        tiers
            .into_iter()
            .filter_map(|(method, backup)| Some((method?, backup)))
            .find_map(|(method, backup)| {
                let field = Field { endpoints, ask, backup, slow_start: self.slow_start, cap };
                // Where everybody who is not held back is down, those who are held back serve.
                let all =
                    || self.slow_start.and_then(|_| method.choose(&Field { slow_start: None, ..field }));
                method.choose(&field).or_else(all)
            })
            .or_else(|| match again(endpoints, ask, cap) {
                Again::Up(at) => Some(at),
                Again::Full => None,
                Again::Down => soonest(endpoints, ask, cap),
            })
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

/// Whether this request is one of those that primaries, of which too few are in good standing, leave to the backups. A
/// key decides it once and for all, and who has a cookie stays where it is.
fn begins_with_backups(endpoints: &[Weighted], ask: &Ask<'_>) -> bool {
    let spill = endpoints.first().map_or(0, |one| one.endpoint.group.spill());
    if spill == 0 {
        return false;
    }
    let bits = match ask.affinity {
        Affinity::Endpoint(at) => match endpoints.get(at).filter(|one| one.endpoint.is_up(ask.now)) {
            Some(home) => return home.backup,
            None => ask.random,
        },
        Affinity::Key(key) => key,
        Affinity::None => ask.random,
    };
    // Other bits than those that choose among the endpoints.
    mix(bits ^ 0x5b11_b0ff) >> 48 < u64::from(spill)
}

/// What there is beside those that were chosen among.
enum Again {
    /// One that is up although it was tried, or drains.
    Up(usize),
    /// One is up that was not tried, and has as many requests as it may.
    Full,
    /// None is up.
    Down,
}

fn again(endpoints: &[Weighted], ask: &Ask<'_>, cap: u32) -> Again {
    let mut best = None;
    let mut any = false;
    for (at, weighted) in from(endpoints, ask.random).filter(|(_, one)| one.endpoint.is_up(ask.now)) {
        any = true;
        let drains = weighted.weight == 0;
        if weighted.endpoint.in_flight() >= cap {
            // Waiting for it is better than what failed already, or a session too many at one that drains.
            if !drains && !ask.tried.contains(at) {
                return Again::Full;
            }
            continue;
        }
        let rank = (drains, weighted.backup);
        if best.is_none_or(|(known, _)| rank < known) {
            best = Some((rank, at));
        }
    }
    match best {
        Some((_, at)) => Again::Up(at),
        None if any => Again::Full,
        None => Again::Down,
    }
}

fn soonest(endpoints: &[Weighted], ask: &Ask<'_>, cap: u32) -> Option<usize> {
    from(endpoints, ask.random)
        .filter(|(at, one)| !ask.tried.contains(*at) && one.endpoint.in_flight() < cap)
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
