//! Virtual patches: rules that recognise requests which exploit known holes, before a backend sees them.
//!
//! A [`pack`] is a TOML file of rules with their cases. [`mod@compile`] makes one automaton of all packs: every text of
//! a request ([`field`]), decoded in the ways that rules ask for ([`decode`]), goes through it once, and only rules whose
//! strings (`needle`) were found are tried ([`scan`]). All of that is linear in the request and bounded. A [`shelf`]
//! keeps what is in force: signed ([`sign`]), not expired, and with cases ([`case`]) that hold.
//!
//! No I/O here: files are read by the control plane, bodies by the data plane.

pub mod case;
pub mod compile;
pub mod counts;
pub mod decode;
pub mod field;
mod needle;
pub mod pack;
pub mod scan;
pub mod shelf;
pub mod sign;

use std::sync::Arc;

pub use compile::Set;
pub use field::{Body, Facts, Kind};
pub use scan::{Look, Scratch};

use crate::config::model::{self, Located, Mode};
use counts::{Counts, Row};
use shelf::InForce;

/// The id under which a request is counted that wants more work than one may cost.
pub const OVERWORK: &str = "too-much-work";

/// What is looked for at each site.
#[derive(Debug)]
pub struct Guard {
    /// The rules.
    pub in_force: Arc<InForce>,
    /// Bytes of a body that are looked at.
    pub body: usize,
    /// The id of [`OVERWORK`].
    pub overwork: Arc<str>,
    /// By position of the site; `None`: nothing is looked for there.
    sites: Vec<Option<ForSite>>,
}

/// What is different at a site.
#[derive(Debug, Clone)]
pub struct ForSite {
    /// Whether matches are refused.
    pub mode: Mode,
    /// A bit for each rule that is not asked; empty: none.
    pub off: Arc<[u64]>,
    /// Where matches are counted.
    row: Arc<Row>,
}

impl ForSite {
    /// Counts a match of the rule at this position; behind the last rule stands [`OVERWORK`].
    pub fn count(&self, rule: usize) {
        self.row.add(rule);
    }
}

impl Guard {
    /// What is looked for at these sites, in their order.
    pub fn new<'a>(
        in_force: Arc<InForce>,
        settings: &model::Patches,
        counts: &Counts,
        sites: impl Iterator<Item = (&'a Arc<str>, &'a model::SitePatches)> + Clone,
    ) -> Guard {
        let (nothing, overwork): (Arc<[u64]>, Arc<str>) = (Arc::from([]), OVERWORK.into());
        let set = &in_force.set;
        let guarded = |said: &model::SitePatches| !said.none && !set.rules.is_empty();
        let mode = |said: &model::SitePatches| said.mode.unwrap_or(settings.mode);
        let rules = set.rules.iter().map(|rule| &rule.id).chain([&overwork]).cloned().collect();
        let counted = sites.clone().filter(|(_, said)| guarded(said));
        let rows = counts.rows(rules, counted.map(|(site, said)| (site.clone(), mode(said))));
        let mut rows = rows.into_iter();
        let sites = sites.map(|(_, said)| {
            let row = if guarded(said) { rows.next() } else { None };
            row.map(|row| ForSite {
                mode: mode(said),
                off: if said.off.is_empty() { nothing.clone() } else { bits(set, &said.off) },
                row,
            })
        });
        Guard { sites: sites.collect(), body: settings.body, overwork, in_force }
    }

    /// What is looked for at a site.
    pub fn site(&self, position: usize) -> Option<&ForSite> {
        self.sites.get(position)?.as_ref()
    }
}

/// The rules that these names mean: their ids, their CVEs, their packs.
fn bits(set: &Set, names: &[Located<String>]) -> Arc<[u64]> {
    let mut bits = vec![0; set.rules.len().div_ceil(64)];
    for (at, rule) in set.rules.iter().enumerate() {
        let is =
            |name: &str| *name == *rule.id || *name == *rule.pack || rule.cve.iter().any(|cve| cve == name);
        if let Some(word) = bits.get_mut(at / 64).filter(|_| names.iter().any(|name| is(&name.value))) {
            *word |= 1 << (at % 64);
        }
    }
    bits.into()
}

#[cfg(test)]
mod tests;
