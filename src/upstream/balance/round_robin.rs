//! In turn, by weight. Workers share nothing but the counter of turns.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::field::{Candidate, Field};
use super::{Turns, Weighted};

/// The sequence of turns and whose turn it is.
#[derive(Debug)]
pub struct Rotation {
    turns: Turns,
    next: AtomicUsize,
}

impl Rotation {
    pub(super) fn compile(endpoints: &[Weighted], backup: bool) -> Rotation {
        Rotation { turns: Turns::compile(endpoints, backup), next: AtomicUsize::new(0) }
    }

    /// Chooses among endpoints that are up and not tried. A turn that can not be used is given up rather than handed to
    /// its neighbour, so that what a missing endpoint leaves is shared by all others.
    pub(super) fn choose(&self, field: &Field<'_>) -> Option<usize> {
        let usable = |at: usize| field.candidate(at) != Candidate::No;
        let by_turn = (0..self.turns.len())
            .filter_map(|_| self.turns.at(self.next.fetch_add(1, Ordering::Relaxed)))
            .find(|&at| usable(at));
        // Other workers take turns in between, so a round of ours need not have seen every endpoint; this look does.
        by_turn.or_else(|| (0..field.endpoints.len()).find(|&at| usable(at)))
    }
}
