//! The endpoint with the fewest requests in flight for its weight; one of several at random, by weight.
//!
//! What is in flight is counted over all workers of this node, so a choice is as fresh as the counter. The price is a look
//! at every endpoint, at [`SCAN_MAX`] of them where there are more, from a random one on. Latency has no say: an endpoint
//! that fails at once looks free, so this wants a health check.

use super::field::{Candidate, Field};
use super::{SCAN_MAX, below};
use crate::base::hash::mix;

/// Chooses among endpoints that are up and not tried.
pub(super) fn choose(field: &Field<'_>) -> Option<usize> {
    let count = field.endpoints.len();
    let start = below(field.ask.random, count);
    let (mut best, mut least, mut tied, mut looked) = (None, f64::INFINITY, 0.0, 0);
    for at in (0..count).map(|step| (start + step) % count) {
        match field.candidate(at) {
            Candidate::No => continue,
            Candidate::Now => return Some(at),
            Candidate::Eligible => looked += 1,
        }
        let weight = field.weight(at);
        let in_flight = field.in_flight(at);
        let load = f64::from(in_flight) / weight;
        if load < least {
            (best, least, tied) = (Some(at), load, weight);
        } else if load == least {
            // The nth of equals takes the place with its share of all of them: each has its own in the end.
            tied += weight;
            let bits = mix(field.ask.random ^ (at as u64) << 32);
            if (bits >> 11) as f64 * tied < weight * (1u64 << 53) as f64 {
                best = Some(at);
            }
        }
        if looked == SCAN_MAX {
            break;
        }
    }
    best
}
