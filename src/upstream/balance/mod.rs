//! Which endpoint gets a request. Pure: times and random bits come from the caller.
//!
//! Both balancers keep the same promises, in this order:
//!
//! 1. an endpoint that is up and was not tried for this request, as the balancer prefers;
//! 2. on the way there, an endpoint that is due for a trial and whose trial this request wins;
//! 3. an endpoint that is up though it was tried: no other lives;
//! 4. when all are down, the one not tried yet whose next trial is soonest, a random one of several. This fails open: a
//!    health check may be wrong and a backend may be back, and a small chance is better than a certain 503;
//! 5. none, when all are down and all were tried.

mod p2c;
mod round_robin;
mod turns;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use super::endpoint::{Availability, Endpoint};
use crate::base::clock::Millis;
use crate::config::model::Balance;
pub use round_robin::Rotation;
pub use turns::Turns;

/// Endpoints of a service that [`Tried`] tells apart.
pub const TRIED_MAX: usize = 1024;

/// An endpoint and its share.
#[derive(Debug, Clone)]
pub struct Weighted {
    /// The endpoint.
    pub endpoint: Arc<Endpoint>,
    /// Its share of the requests; zero counts as 1.
    pub weight: u32,
}

/// How endpoints are chosen.
#[derive(Debug)]
pub enum Balancer {
    /// Two random endpoints, the less loaded wins.
    P2c(Turns),
    /// Weighted, in turn.
    RoundRobin(Rotation),
}

/// Which endpoints were tried for a request. Indices from [`TRIED_MAX`] on are not remembered: such an endpoint may be
/// tried twice.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tried {
    words: [u64; TRIED_MAX / 64],
}

impl Balancer {
    /// Compiles a balancer for these endpoints. [`Balancer::choose`] is to be called with the same ones.
    pub fn compile(balance: Balance, endpoints: &[Weighted]) -> Balancer {
        match balance {
            Balance::P2c => Balancer::P2c(Turns::compile(endpoints)),
            Balance::RoundRobin => Balancer::RoundRobin(Rotation::compile(endpoints)),
        }
    }

    /// Chooses an endpoint, as an index. `random` is 64 random bits. `None` when there is no endpoint, or when all are
    /// down and all were tried.
    pub fn choose(&self, endpoints: &[Weighted], now: Millis, random: u64, exclude: &Tried) -> Option<usize> {
        let preferred = match self {
            Balancer::P2c(turns) => p2c::choose(turns, endpoints, now, random, exclude),
            Balancer::RoundRobin(rotation) => rotation.choose(endpoints, now, exclude),
        };
        preferred
            .or_else(|| from(endpoints, random).find(|(_, e)| e.is_up(now)).map(|(at, _)| at))
            .or_else(|| soonest(endpoints, now, random, exclude))
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

/// What a balancer may do with a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Candidate {
    /// Compare it with others.
    Eligible,
    /// Choose it: this request has won its trial.
    Now,
    /// Pass it over.
    No,
}

/// Looks at one candidate. May take its trial.
fn candidate(endpoints: &[Weighted], at: usize, now: Millis, exclude: &Tried) -> Candidate {
    let Some(Weighted { endpoint, .. }) = endpoints.get(at) else { return Candidate::No };
    if exclude.contains(at) {
        return Candidate::No;
    }
    match endpoint.availability(now) {
        Availability::Up => Candidate::Eligible,
        Availability::Trial if endpoint.claim_trial(now) => Candidate::Now,
        Availability::Trial | Availability::Down { .. } => Candidate::No,
    }
}

/// Every endpoint once, from a random one on.
fn from(endpoints: &[Weighted], random: u64) -> impl Iterator<Item = (usize, &Endpoint)> {
    let start = below(random, endpoints.len());
    let all = endpoints.iter().map(|weighted| &*weighted.endpoint).enumerate();
    all.clone().skip(start).chain(all.take(start))
}

fn soonest(endpoints: &[Weighted], now: Millis, random: u64, exclude: &Tried) -> Option<usize> {
    from(endpoints, random)
        .filter(|(at, _)| !exclude.contains(*at))
        .min_by_key(|(_, endpoint)| match endpoint.availability(now) {
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
