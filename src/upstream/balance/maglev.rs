//! A table from keys to endpoints, after "Maglev: A Fast and Reliable Software Network Load Balancer" (NSDI 2016),
//! section 3.4: each endpoint has an order of its own in which it likes the slots, and they take slots in turn. Shares
//! are even to a few slots, and when an endpoint leaves, hardly any slot moves that was not its own.
//!
//! A heavier endpoint takes its turn more often. The table depends on addresses and weights alone: not on the order of
//! the list, nor on anything that differs between nodes or processes.

use super::Weighted;
use crate::base::hash::mix;

/// Sizes of tables, primes. A table has a hundred slots for each endpoint, 1 % of it at most rounds an endpoint's share.
/// Few sizes, because another size is another table: nearly every key moves when the number of endpoints passes 20, 163 or
/// 1,310. The smallest takes 4 KiB.
const SIZES: [usize; 4] = [2_039, 16_381, 131_071, 1_048_573];

/// Slots for each endpoint, at least.
const SLOTS_PER_ENDPOINT: usize = 100;

/// The table.
#[derive(Debug)]
pub(super) struct Maglev {
    slots: Box<[u16]>,
}

/// An endpoint while the table is filled.
struct Filler {
    at: u16,
    hash: u64,
    weight: u64,
    /// The slot it looks at next, and how far the one after that is.
    next: usize,
    skip: usize,
    /// Parts of a turn saved up.
    credit: u64,
}

impl Maglev {
    /// The table of primaries, or of backups; those that drain have no part in it.
    pub fn compile(endpoints: &[Weighted], backup: bool) -> Maglev {
        let taking = endpoints.iter().enumerate();
        let taking = taking.filter(|(_, weighted)| weighted.backup == backup && weighted.weight > 0);
        let mut fillers: Vec<Filler> = taking
            .filter_map(|(at, weighted)| {
                let (at, hash) = (u16::try_from(at).ok()?, weighted.endpoint.hash);
                Some(Filler { at, hash, weight: weighted.weight.into(), next: 0, skip: 1, credit: 0 })
            })
            .collect();
        fillers.sort_unstable_by_key(|filler| (filler.hash, filler.at));
        let wanted = fillers.len() * SLOTS_PER_ENDPOINT;
        let [.., largest] = SIZES;
        let size = SIZES.into_iter().find(|&size| size >= wanted).unwrap_or(largest);
        for filler in &mut fillers {
            filler.next = remainder(mix(filler.hash), size);
            filler.skip = 1 + remainder(mix(!filler.hash), size - 1);
        }
        Maglev { slots: fill(&mut fillers, size).into_boxed_slice() }
    }

    /// Endpoints in the order in which a key wants them: its own slot and all that follow, in a circle. Which endpoint
    /// stands in the next slot is as good as random, so that what one leaves is shared by all others.
    pub fn wanted(&self, key: u64) -> impl Iterator<Item = usize> + '_ {
        let (before, from) = self.slots.split_at(remainder(key, self.slots.len()));
        from.iter().chain(before).map(|&at| usize::from(at))
    }

    #[cfg(test)]
    pub fn slots(&self) -> &[u16] {
        &self.slots
    }
}

fn fill(fillers: &mut [Filler], size: usize) -> Vec<u16> {
    let full = fillers.iter().map(|filler| filler.weight).max().unwrap_or(0);
    let mut slots: Vec<Option<u16>> = vec![None; if full == 0 { 0 } else { size }];
    let mut left = slots.len();
    while left > 0 {
        for filler in &mut *fillers {
            filler.credit += filler.weight;
            if filler.credit < full || left == 0 {
                continue;
            }
            filler.credit -= full;
            // The size is a prime: an endpoint's order visits every slot, so a free one is found.
            while let Some(Some(_)) = slots.get(filler.next) {
                filler.next = (filler.next + filler.skip) % size;
            }
            if let Some(slot) = slots.get_mut(filler.next) {
                *slot = Some(filler.at);
                left -= 1;
            }
        }
    }
    slots.into_iter().flatten().collect()
}

fn remainder(hash: u64, size: usize) -> usize {
    hash.checked_rem(size as u64).and_then(|rest| usize::try_from(rest).ok()).unwrap_or(0)
}
