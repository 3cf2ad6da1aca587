//! The same endpoint for the same key, within bounds: a Maglev table says in which order a key wants the endpoints, and
//! consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam, 2016) passes over those that carry more than a
//! factor of the mean load, so that one popular key does not take its endpoint down. What is passed over is not
//! forgotten: with the load, its keys come back.

use std::cell::OnceCell;

use super::field::{Candidate, Field};
use super::maglev::Maglev;
use super::{SCAN_MAX, Weighted, below};

/// Slots that a choice walks for each endpoint, before it looks at the endpoints one by one.
const WALK: usize = 4;

/// How keys are spread.
#[derive(Debug)]
pub(super) struct Ring {
    table: Maglev,
    /// How much of the mean load an endpoint may carry.
    factor: Option<f64>,
}

impl Ring {
    /// `load`: percent of the mean load that an endpoint may carry.
    pub fn compile(endpoints: &[Weighted], backup: bool, load: Option<u32>) -> Ring {
        let factor = load.map(|percent| f64::from(percent) / 100.0);
        Ring { table: Maglev::compile(endpoints, backup), factor }
    }

    /// The first endpoint in the key's order that is up, not tried and not full.
    pub fn choose(&self, field: &Field<'_>, key: u64) -> Option<usize> {
        let count = field.endpoints.len();
        // Looked at once, by those choices that need it.
        let room = OnceCell::new();
        let fits = |at: usize| match (self.factor, field.in_flight(at)) {
            (None, _) | (_, 0) => true,
            (Some(factor), in_flight) => {
                let share: f64 = *room.get_or_init(|| factor * mean(field));
                // Rounded up, as in the paper: at least one request has its place everywhere.
                f64::from(in_flight) < (share * field.weight(at)).ceil()
            }
        };
        let mut full = None;
        // Where hardly anybody is up the walk may miss them; the look at each does not. It begins at the key's own place,
        // or one endpoint would inherit everything.
        let start = below(key, count);
        let each = (0..count).map(|step| (start + step) % count);
        for at in self.table.wanted(key).take(count * WALK).chain(each) {
            match field.candidate(at) {
                Candidate::No => {}
                Candidate::Now => return Some(at),
                Candidate::Eligible if fits(at) => return Some(at),
                Candidate::Eligible => full = full.or(Some(at)),
            }
        }
        full
    }

    #[cfg(test)]
    pub fn table(&self) -> &Maglev {
        &self.table
    }
}

/// What is in flight for each unit of weight, this request included, over those that are up: all of them, or
/// [`SCAN_MAX`] from a random one on.
fn mean(field: &Field<'_>) -> f64 {
    let count = field.endpoints.len();
    let start = below(field.ask.random, count);
    let up = (0..count).map(|step| (start + step) % count).filter(|&at| field.is_up(at)).take(SCAN_MAX);
    let (in_flight, weight) = up.fold((1.0, 0.0), |(in_flight, weight), at| {
        (in_flight + f64::from(field.in_flight(at)), weight + field.weight(at))
    });
    if weight > 0.0 { in_flight / weight } else { f64::INFINITY }
}
