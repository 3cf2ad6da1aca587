//! How often each rule matched at each site. A match is rare, but an attacker can make many: it costs an addition.
//!
//! Where a match is counted is settled when a configuration is compiled: a [`Row`] for each site with a cell for each rule.
//! The cells of a site come with its first match, since most sites never have one. A row whose site, mode or rules went
//! is added to the sums of those before it once nobody counts in it any more.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::config::model::Mode;

/// Cells of all rows, of 8 bytes each; what is beyond is counted together.
pub const CELLS_MAX: u64 = 1_000_000;
/// Pairs of site and rule that are remembered of rows that went; what is beyond is counted together.
pub const PAIRS_MAX: usize = 20_000;
/// What a pair beyond a bound is called.
pub const OTHER: &str = "other";

type Pair = (Arc<str>, Arc<str>, Mode);

/// The matches of one site, by position of the rule.
#[derive(Debug)]
pub struct Row {
    site: Arc<str>,
    mode: Mode,
    rules: Arc<[Arc<str>]>,
    cells: OnceLock<Box<[AtomicU64]>>,
    bound: Arc<Bound>,
}

/// What all rows have together.
#[derive(Debug, Default)]
struct Bound {
    cells: AtomicU64,
    /// Matches that have no cell of their own.
    beyond: AtomicU64,
}

impl Row {
    /// Counts a match of the rule at this position.
    pub fn add(&self, rule: usize) {
        let cells = self.cells.get_or_init(|| self.bound.take(self.rules.len()));
        cells.get(rule).unwrap_or(&self.bound.beyond).fetch_add(1, Relaxed);
    }

    fn matches(&self) -> impl Iterator<Item = (Pair, u64)> {
        let cells = self.cells.get().into_iter().flat_map(|cells| cells.iter());
        let found = self.rules.iter().zip(cells).map(|(rule, cell)| (rule, cell.load(Relaxed)));
        found
            .filter(|(_, count)| *count > 0)
            .map(|(rule, count)| ((self.site.clone(), rule.clone(), self.mode), count))
    }
}

impl Drop for Row {
    fn drop(&mut self) {
        if let Some(cells) = self.cells.get() {
            self.bound.cells.fetch_sub(cells.len() as u64, Relaxed);
        }
    }
}

impl Bound {
    /// So many cells, or none.
    fn take(&self, count: usize) -> Box<[AtomicU64]> {
        let more = |taken: u64| Some(taken + count as u64).filter(|all| *all <= CELLS_MAX);
        let taken = self.cells.fetch_update(Relaxed, Relaxed, more).is_ok();
        (0..if taken { count } else { 0 }).map(|_| AtomicU64::new(0)).collect()
    }
}

/// Matches by site, rule and mode, over all configurations since the start.
#[derive(Debug, Default)]
pub struct Counts {
    bound: Arc<Bound>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    rules: Arc<[Arc<str>]>,
    rows: HashMap<Arc<str>, Arc<Row>>,
    /// Rows that went, while an old configuration may still count in them.
    left: Vec<Arc<Row>>,
    sums: HashMap<Pair, u64>,
}

impl Counts {
    /// Where matches of these rules at these sites are counted, in the order of the sites.
    pub fn rows(&self, rules: Vec<Arc<str>>, sites: impl Iterator<Item = (Arc<str>, Mode)>) -> Vec<Arc<Row>> {
        let known = &mut *self.lock();
        if *known.rules != *rules {
            known.rules = rules.into();
        }
        let rules = known.rules.clone();
        let mut before = std::mem::take(&mut known.rows);
        let mut rows = Vec::new();
        for (site, mode) in sites {
            let row = match before.remove(&site) {
                Some(row) if row.mode == mode && Arc::ptr_eq(&row.rules, &rules) => row,
                other => {
                    known.left.extend(other);
                    let (cells, bound) = (OnceLock::new(), self.bound.clone());
                    Arc::new(Row { site: site.clone(), mode, rules: rules.clone(), cells, bound })
                }
            };
            known.rows.insert(site, row.clone());
            rows.push(row);
        }
        known.left.extend(before.into_values());
        self.fold(known);
        rows
    }

    /// Adds up rows in which nobody counts any more.
    fn fold(&self, known: &mut Known) {
        let sums = &mut known.sums;
        known.left.retain(|row| {
            if Arc::strong_count(row) > 1 {
                return true;
            }
            for (pair, count) in row.matches() {
                let full = sums.len() >= PAIRS_MAX;
                match sums.entry(pair) {
                    Entry::Occupied(mut sum) => *sum.get_mut() += count,
                    Entry::Vacant(_) if full => {
                        self.bound.beyond.fetch_add(count, Relaxed);
                    }
                    Entry::Vacant(place) => {
                        place.insert(count);
                    }
                }
            }
            false
        });
    }

    /// All of them: site, rule, mode, count.
    pub fn all(&self) -> Vec<(Arc<str>, Arc<str>, &'static str, u64)> {
        let known = self.lock();
        let mut sums = known.sums.clone();
        for (pair, count) in known.rows.values().chain(&known.left).flat_map(|row| row.matches()) {
            *sums.entry(pair).or_default() += count;
        }
        drop(known);
        let mut all: Vec<_> =
            sums.into_iter().map(|((site, rule, mode), count)| (site, rule, mode.as_str(), count)).collect();
        all.sort();
        let beyond = self.bound.beyond.load(Relaxed);
        if beyond > 0 {
            all.push((OTHER.into(), OTHER.into(), OTHER, beyond));
        }
        all
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    fn told(counts: &Counts) -> Vec<String> {
        let line = |(site, rule, mode, n)| format!("{site} {rule} {mode} {n}");
        counts.all().into_iter().map(line).collect()
    }

    fn sites(mode: Mode) -> impl Iterator<Item = (Arc<str>, Mode)> {
        ["a", "b"].into_iter().map(move |site| (Arc::from(site), mode))
    }

    #[test]
    fn counts_outlive_what_they_were_counted_under() {
        let counts = Counts::default();
        let old = counts.rows(rules(&["x", "y"]), sites(Mode::Shadow));
        old[0].add(1);
        old[1].add(0);
        let same = counts.rows(rules(&["x", "y"]), sites(Mode::Shadow));
        assert!(Arc::ptr_eq(&old[0], &same[0]));
        drop(same);
        // Another rule comes before those; one site goes. Who still has the old configuration counts in it.
        let new = counts.rows(rules(&["w", "x", "y"]), sites(Mode::Shadow).take(1));
        new[0].add(2);
        old[0].add(1);
        assert_eq!(told(&counts), ["a y shadow 3", "b x shadow 1"]);
        drop(old);
        let enforced = counts.rows(rules(&["w", "x", "y"]), sites(Mode::Enforce).take(1));
        enforced[0].add(2);
        drop(new);
        counts.rows(rules(&[]), sites(Mode::Enforce).take(0));
        drop(enforced);
        counts.rows(rules(&[]), sites(Mode::Enforce).take(0));
        assert_eq!(told(&counts), ["a y enforce 1", "a y shadow 3", "b x shadow 1"]);
        assert_eq!(counts.bound.cells.load(Relaxed), 0);
        assert!(counts.lock().left.is_empty());
    }

    #[test]
    fn there_is_a_bound_on_cells_and_nothing_is_lost_beyond() {
        let counts = Counts::default();
        let many: Vec<Arc<str>> = (0..CELLS_MAX / 2).map(|number| number.to_string().into()).collect();
        let sites = (0..3).map(|site: u32| (Arc::from(site.to_string()), Mode::Shadow));
        let rows = counts.rows(many, sites);
        assert_eq!(counts.bound.cells.load(Relaxed), 0, "nothing matched yet");
        rows.iter().for_each(|row| row.add(7));
        assert_eq!(told(&counts), ["0 7 shadow 1", "1 7 shadow 1", "other other other 1"]);
    }

    #[test]
    fn there_is_a_bound_on_what_is_remembered() {
        let counts = Counts::default();
        let many: Vec<Arc<str>> = (0..PAIRS_MAX + 10).map(|number| number.to_string().into()).collect();
        let rows = counts.rows(many, sites(Mode::Shadow).take(1));
        (0..PAIRS_MAX + 10).for_each(|rule| rows[0].add(rule));
        drop(rows);
        counts.rows(Vec::new(), sites(Mode::Shadow).take(0));
        let all = counts.all();
        assert_eq!((all.len(), all.last().unwrap().3), (PAIRS_MAX + 1, 10));
    }
}
