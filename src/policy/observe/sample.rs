//! A bounded map from clients of sites to something counted. Where it would grow too large, only every second client
//! of the sites that have most is kept, then every fourth, and so on. Which ones, their hash decides: the same ones
//! everywhere, so that what several workers kept of a client is all there was of it, and the rest can be reckoned from
//! the share that was kept.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};

use crate::base::address::ClientKey;

/// So many halvings are enough for any number of clients.
const BITS_MAX: u8 = 48;

/// See the head of this file.
pub(super) struct Sample<V> {
    seen: HashMap<(u32, ClientKey), V, RandomState>,
    sites: Vec<Kept>,
    max: usize,
    seed: RandomState,
}

/// What is kept of a site's clients.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kept {
    /// One of 2^`bits` clients is kept.
    bits: u8,
    held: u32,
}

impl<V: Default> Sample<V> {
    /// Room for `max` clients, for `room` of them at once.
    pub(super) fn new(sites: usize, max: usize, room: usize, seed: RandomState) -> Sample<V> {
        let seen = HashMap::with_capacity_and_hasher(room, seed.clone());
        Sample { seen, sites: vec![Kept::default(); sites], max, seed }
    }

    /// What is counted for a client; `None` where it is one of those left out.
    pub(super) fn at(&mut self, site: u32, client: ClientKey) -> Option<&mut V> {
        let zeros = self.zeros(client);
        if zeros < self.bits(site) {
            return None;
        }
        if self.seen.len() >= self.max && !self.seen.contains_key(&(site, client)) {
            self.thin();
            if zeros < self.bits(site) {
                return None;
            }
        }
        let kept = self.sites.get_mut(site as usize)?;
        match self.seen.entry((site, client)) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => {
                kept.held += 1;
                Some(entry.insert(V::default()))
            }
        }
    }

    /// Of how many clients of a site one is kept, as a power of two.
    pub(super) fn bits(&self, site: u32) -> u8 {
        self.sites.get(site as usize).map_or(0, |kept| kept.bits)
    }

    /// Keeps no more of each site's clients than `other` does.
    pub(super) fn no_more_than<W: Default>(&mut self, other: &Sample<W>) {
        let mut fewer = false;
        for (kept, theirs) in self.sites.iter_mut().zip(&other.sites) {
            fewer |= theirs.bits > kept.bits;
            kept.bits = kept.bits.max(theirs.bits);
        }
        if fewer {
            self.purge();
        }
    }

    /// All that is kept.
    pub(super) fn into_all(self) -> impl Iterator<Item = (u32, ClientKey, V)> {
        self.seen.into_iter().map(|((site, client), value)| (site, client, value))
    }

    /// What is kept is looked through.
    pub(super) fn all(&self) -> impl Iterator<Item = (u32, ClientKey, &V)> {
        self.seen.iter().map(|((site, client), value)| (*site, *client, value))
    }

    fn zeros(&self, client: ClientKey) -> u8 {
        u8::try_from(self.seed.hash_one(client).trailing_zeros()).unwrap_or(u8::MAX)
    }

    /// Makes room for an eighth. The sites that have many clients pay for it: those that have few stay whole.
    fn thin(&mut self) {
        for _ in 0..u64::BITS {
            if self.seen.len() <= self.max / 8 * 7 {
                return;
            }
            let most = self.sites.iter().map(|kept| kept.held).max().unwrap_or(0);
            for kept in self.sites.iter_mut().filter(|kept| kept.held > most / 2) {
                kept.bits = kept.bits.saturating_add(1).min(BITS_MAX);
            }
            self.purge();
        }
    }

    fn purge(&mut self) {
        let Sample { seen, sites, seed, .. } = self;
        seen.retain(|(site, client), _| {
            let bits = sites.get(*site as usize).map_or(0, |kept| kept.bits);
            seed.hash_one(client).trailing_zeros() >= u32::from(bits)
        });
        sites.iter_mut().for_each(|kept| kept.held = 0);
        for (site, _) in seen.keys() {
            if let Some(kept) = sites.get_mut(*site as usize) {
                kept.held += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_its_bound_and_small_sites_stay_whole() {
        let mut sample: Sample<u32> = Sample::new(3, 1_000, 1_000, RandomState::new());
        for client in 0..100_000u128 {
            if let Some(count) = sample.at(0, ClientKey(client)) {
                *count += 1;
            }
            let few = client % 50;
            *sample.at(1, ClientKey(few)).unwrap() += 1;
        }
        assert!(sample.seen.len() <= 1_000 && sample.seen.capacity() < 4_000);
        assert_eq!((sample.bits(1), sample.bits(2)), (0, 0));
        assert_eq!(sample.all().filter(|(site, ..)| *site == 1).count(), 50);
        let kept = sample.all().filter(|(site, ..)| *site == 0).count() << sample.bits(0);
        assert!((70_000..130_000).contains(&kept), "{kept} reckoned of 100,000");
    }

    #[test]
    fn what_two_kept_of_a_client_is_all_there_was() {
        let seed = RandomState::new();
        let mut samples = [64, 512].map(|max| Sample::<u32>::new(1, max, max, seed.clone()));
        for client in 0..4_000u128 {
            for sample in &mut samples {
                for _ in 0..client % 7 + 1 {
                    sample.at(0, ClientKey(client)).into_iter().for_each(|count| *count += 1);
                }
            }
        }
        let [small, mut large] = samples;
        large.no_more_than(&small);
        let sorted = |sample: Sample<u32>| {
            let mut all: Vec<_> = sample.into_all().collect();
            all.sort_unstable_by_key(|(_, client, _)| client.0);
            all
        };
        let (small, large) = (sorted(small), sorted(large));
        assert!(!small.is_empty() && small == large);
        assert!(small.iter().all(|(_, client, count)| u128::from(*count) == client.0 % 7 + 1));
    }
}
