//! How often each rule matched at each site. A match is rare, but an attacker can make many: it costs one short lock.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::model::Mode;

/// Pairs of site and rule that are counted on their own; what is beyond is counted together.
pub const PAIRS_MAX: usize = 20_000;
/// Parts of the table, so that workers seldom wait for each other.
const PARTS: usize = 16;
/// What a pair beyond the bound is called.
pub const OTHER: &str = "other";

type Pair = (Arc<str>, Arc<str>, Mode);

/// Matches by site, rule and mode.
#[derive(Debug, Default)]
pub struct Counts {
    parts: [Mutex<HashMap<Pair, u64>>; PARTS],
    beyond: AtomicU64,
}

impl Counts {
    /// Counts a match.
    pub fn add(&self, site: &Arc<str>, rule: &Arc<str>, mode: Mode) {
        // Sites and rules live as long as their snapshot: where they lie tells them apart well enough.
        let place = site.as_ptr() as usize / 16 + rule.as_ptr() as usize / 64;
        let Some(part) = self.parts.get(place % PARTS) else { return };
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        let full = part.len() >= PAIRS_MAX / PARTS;
        let pair = (site.clone(), rule.clone(), mode);
        match part.get_mut(&pair) {
            Some(count) => *count += 1,
            None if full => {
                self.beyond.fetch_add(1, Ordering::Relaxed);
            }
            None => {
                part.insert(pair, 1);
            }
        }
    }

    /// All of them: site, rule, mode, count.
    pub fn all(&self) -> Vec<(Arc<str>, Arc<str>, &'static str, u64)> {
        let mut sums: HashMap<Pair, u64> = HashMap::new();
        for part in &self.parts {
            for (pair, count) in part.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                // The same names may lie elsewhere after a reload.
                *sums.entry(pair.clone()).or_default() += count;
            }
        }
        let mut all: Vec<_> =
            sums.into_iter().map(|((site, rule, mode), count)| (site, rule, mode.as_str(), count)).collect();
        all.sort();
        let beyond = self.beyond.load(Ordering::Relaxed);
        if beyond > 0 {
            all.push((OTHER.into(), OTHER.into(), OTHER, beyond));
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_names_are_one_count_wherever_they_lie() {
        let counts = Counts::default();
        for _ in 0..3 {
            counts.add(&"a.test".into(), &"log4shell".into(), Mode::Shadow);
        }
        counts.add(&"a.test".into(), &"log4shell".into(), Mode::Enforce);
        let all: Vec<_> = counts
            .all()
            .into_iter()
            .map(|(site, rule, mode, n)| format!("{site} {rule} {mode} {n}"))
            .collect();
        assert_eq!(all, ["a.test log4shell enforce 1", "a.test log4shell shadow 3"]);
    }

    #[test]
    fn there_is_a_bound() {
        let counts = Counts::default();
        for number in 0..PAIRS_MAX * 2 {
            counts.add(&format!("site-{number}").into(), &"x".into(), Mode::Shadow);
        }
        let all = counts.all();
        assert!(all.len() <= PAIRS_MAX + 1);
        assert_eq!(all.iter().map(|(.., count)| count).sum::<u64>(), PAIRS_MAX as u64 * 2);
        assert_eq!(&*all.last().unwrap().0, OTHER);
    }
}
