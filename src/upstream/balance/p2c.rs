//! The power of two choices: two random endpoints, the one with the smaller load wins. Nearly as good as knowing the
//! least loaded of all, without every worker running after the same one.
//!
//! Weights count twice: both endpoints are drawn by weight, which decides while nothing is in flight, and what is in
//! flight is divided by the weight, which decides under load. Latency has a say in both, so that shares follow the
//! weights only among endpoints of like speed; who needs exact shares wants `round_robin`.

use super::{Candidate, Tried, Turns, Weighted, below, candidate};
use crate::base::clock::Millis;

/// Chooses among endpoints that are up and not tried.
pub(super) fn choose(
    turns: &Turns,
    endpoints: &[Weighted],
    now: Millis,
    random: u64,
    exclude: &Tried,
) -> Option<usize> {
    let first = match pick(endpoints, turns.draw(random)?, None, now, exclude)? {
        (at, Candidate::Eligible) => at,
        (at, _) => return Some(at),
    };
    let start = match turns.draw(random >> 32)? {
        // Drawn twice: any other.
        at if at == first => first + 1 + below(random >> 16, endpoints.len().saturating_sub(1)),
        at => at,
    };
    let second = match pick(endpoints, start, Some(first), now, exclude) {
        Some((at, Candidate::Eligible)) => at,
        Some((at, _)) => return Some(at),
        None => return Some(first),
    };
    let load = |at: usize| endpoints.get(at).map_or(f64::INFINITY, |one| one.endpoint.load(one.weight, now));
    Some(if load(second) < load(first) { second } else { first })
}

/// The first usable candidate from `start` on, in a circle, but not `except`.
fn pick(
    endpoints: &[Weighted],
    start: usize,
    except: Option<usize>,
    now: Millis,
    exclude: &Tried,
) -> Option<(usize, Candidate)> {
    let count = endpoints.len();
    (0..count)
        .map(|step| (start + step) % count)
        .filter(|&at| Some(at) != except)
        .map(|at| (at, candidate(endpoints, at, now, exclude)))
        .find(|(_, candidate)| *candidate != Candidate::No)
}
