//! Who may be chosen: the endpoints of a service as one request sees them, primaries or backups.
//!
//! A slow start is thinning: an endpoint whose ramp stands at 30 % is passed over by 7 of 10 requests that would have gone
//! to it, and counts with 30 % of its weight where loads are compared. Which requests are passed over is drawn by the key
//! where they have one, so that a key moves to a returning endpoint once and stays.

use std::time::Duration;

use super::{Affinity, Ask, Availability, Weighted};
use crate::base::hash::mix;

/// What a balancer may do with a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Candidate {
    /// Compare it with others.
    Eligible,
    /// Choose it: this request has won its trial.
    Now,
    /// Pass it over.
    No,
}

/// The endpoints as one request sees them.
#[derive(Clone, Copy)]
pub(super) struct Field<'a> {
    pub endpoints: &'a [Weighted],
    pub ask: &'a Ask<'a>,
    /// Backups are chosen from, not primaries.
    pub backup: bool,
    pub slow_start: Option<Duration>,
    /// Who has so many requests in flight is passed over.
    pub cap: u32,
}

impl Field<'_> {
    /// Looks at one candidate. May take its trial.
    pub fn candidate(&self, at: usize) -> Candidate {
        match self.endpoints.get(at) {
            Some(weighted) if weighted.weight > 0 && !self.is_early(at, weighted) => self.look(at, weighted),
            _ => Candidate::No,
        }
    }

    /// Whether a request whose cookie names this endpoint may go there. May take its trial. One that drains is left to
    /// the sessions it has.
    pub fn welcomes(&self, at: usize) -> bool {
        self.endpoints.get(at).is_some_and(|weighted| self.look(at, weighted) != Candidate::No)
    }

    fn look(&self, at: usize, weighted: &Weighted) -> Candidate {
        if weighted.backup != self.backup || self.ask.tried.contains(at) {
            return Candidate::No;
        }
        // Before its trial is taken, which nobody would then end.
        if self.cap < u32::MAX && weighted.endpoint.in_flight() >= self.cap {
            return Candidate::No;
        }
        match weighted.endpoint.availability(self.ask.now) {
            Availability::Up => Candidate::Eligible,
            Availability::Trial if weighted.endpoint.claim_trial(self.ask.now) => Candidate::Now,
            Availability::Trial | Availability::Down { .. } => Candidate::No,
        }
    }

    /// The weight as it counts now; 0.0 where there is no such endpoint.
    pub fn weight(&self, at: usize) -> f64 {
        self.endpoints.get(at).map_or(0.0, |weighted| f64::from(weighted.weight) * self.ramp(weighted))
    }

    /// Requests in flight at an endpoint, over all workers.
    pub fn in_flight(&self, at: usize) -> u32 {
        self.endpoints.get(at).map_or(0, |weighted| weighted.endpoint.in_flight())
    }

    /// Whether an endpoint is one of those that share the load.
    pub fn is_up(&self, at: usize) -> bool {
        self.endpoints.get(at).is_some_and(|weighted| {
            weighted.backup == self.backup && weighted.weight > 0 && weighted.endpoint.is_up(self.ask.now)
        })
    }

    fn ramp(&self, weighted: &Weighted) -> f64 {
        self.slow_start.map_or(1.0, |length| weighted.endpoint.ramp(self.ask.now, length))
    }

    /// Whether this request is one of those that a slow start keeps from the endpoint.
    fn is_early(&self, at: usize, weighted: &Weighted) -> bool {
        let ramp = self.ramp(weighted);
        if ramp >= 1.0 {
            return false;
        }
        let bits = match self.ask.affinity {
            Affinity::Key(key) => mix(key ^ weighted.endpoint.hash),
            _ => mix(self.ask.random.wrapping_add(at as u64)),
        };
        (bits >> 11) as f64 >= ramp * (1u64 << 53) as f64
    }
}
