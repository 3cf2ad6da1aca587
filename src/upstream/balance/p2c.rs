//! The power of two choices: two random endpoints, the one with the smaller load wins. Nearly as good as knowing the
//! least loaded of all, without every worker running after the same one.
//!
//! Weights count twice: both endpoints are drawn by weight, which decides while nothing is in flight, and what is in
//! flight is divided by the weight, which decides under load. Latency has a say in both, so that shares follow the
//! weights only among endpoints of like speed; who needs exact shares wants `round_robin`.

use super::field::{Candidate, Field};
use super::{Turns, below};
use crate::base::hash::mix;

/// Draws before the nearest usable endpoint is taken: what one that is down leaves is shared by all others, not inherited
/// by its neighbour, while most are up.
const DRAWS_MAX: u64 = 4;

/// Chooses among endpoints that are up and not tried.
pub(super) fn choose(turns: &Turns, field: &Field<'_>) -> Option<usize> {
    let random = field.ask.random;
    let first = match pick(turns, field, random, None)? {
        (at, Candidate::Eligible) => at,
        (at, _) => return Some(at),
    };
    let second = match pick(turns, field, mix(random), Some(first)) {
        Some((at, Candidate::Eligible)) => at,
        Some((at, _)) => return Some(at),
        None => return Some(first),
    };
    let load = |at: usize| {
        field
            .endpoints
            .get(at)
            .map_or(f64::INFINITY, |one| one.endpoint.load(field.weight(at), field.ask.now))
    };
    Some(if load(second) < load(first) { second } else { first })
}

/// A usable candidate drawn by weight, but not `except`; where few are usable, the first one from a random place on.
fn pick(turns: &Turns, field: &Field<'_>, random: u64, except: Option<usize>) -> Option<(usize, Candidate)> {
    let drawn = (0..DRAWS_MAX).filter_map(|draw| turns.draw(mix(random.wrapping_add(draw))));
    let count = field.endpoints.len();
    let start = below(random >> 32, count);
    drawn
        .chain((0..count).map(|step| (start + step) % count))
        .filter(|&at| Some(at) != except)
        .map(|at| (at, field.candidate(at)))
        .find(|(_, candidate)| *candidate != Candidate::No)
}
