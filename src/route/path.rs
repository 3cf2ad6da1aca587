//! From a path to the routes that take it, best first: exact, then regexes as written, then prefixes, longest first.
//!
//! Exact paths and prefixes are hash lookups. Prefixes are not walked segment by segment: only the lengths that some
//! prefix has are looked at, and only where a segment ends there, so that a path of a thousand slashes costs no more
//! than the configuration allows. Regexes are tried one after the other; a site with several of them asks one combined
//! automaton first whether any matches at all.

use std::cmp::Reverse;
use std::collections::HashMap;

use foldhash::fast::RandomState;
use regex::{Regex, RegexSet};

use crate::config::model::{PathPattern, Route};

/// From this many regexes on, a combined automaton answers first whether any of them matches.
const REGEX_SET_FROM: usize = 4;

/// The paths of a site's routes.
#[derive(Debug, Default, Clone)]
pub(super) struct PathIndex {
    exact: HashMap<Box<str>, Vec<usize>, RandomState>,
    regexes: Vec<(Regex, Vec<usize>)>,
    any_regex: Option<RegexSet>,
    /// Keyed without the trailing slash; `/` is the empty text.
    prefixes: HashMap<Box<str>, Vec<usize>, RandomState>,
    /// Lengths of the keys of `prefixes`, each once, longest first.
    lengths: Vec<usize>,
}

/// The order in which routes are tried, as indices. `conditions` counts the conditions of a route.
pub(super) fn order(routes: &[Route], conditions: impl Fn(&Route) -> usize) -> Vec<usize> {
    let mut first_of_pattern: HashMap<&str, usize> = HashMap::new();
    let mut ranked: Vec<_> = routes
        .iter()
        .enumerate()
        .map(|(index, route)| {
            let (class, place) = match &route.path {
                PathPattern::Exact(_) => (0, 0),
                PathPattern::Regex(pattern) => (1, *first_of_pattern.entry(pattern).or_insert(index)),
                PathPattern::Prefix(prefix) => (2, usize::MAX - trimmed(prefix).len()),
            };
            (class, place, Reverse(conditions(route)), index)
        })
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, _, _, index)| index).collect()
}

impl PathIndex {
    /// Builds the index. `order` lists every route once; it decides among routes of the same path.
    ///
    /// # Errors
    /// The index of a route whose regex does not compile, and a sentence.
    pub(super) fn build(routes: &[Route], order: &[usize]) -> Result<PathIndex, (usize, String)> {
        let mut index = PathIndex::default();
        for &at in order {
            let Some(route) = routes.get(at) else { continue };
            match &route.path {
                PathPattern::Exact(path) => index.exact.entry(path.as_str().into()).or_default().push(at),
                PathPattern::Prefix(prefix) => {
                    index.prefixes.entry(trimmed(prefix).into()).or_default().push(at);
                }
                PathPattern::Regex(pattern) => index.add_regex(pattern, at)?,
            }
        }
        index.lengths = index.prefixes.keys().map(|prefix| prefix.len()).collect();
        index.lengths.sort_unstable_by_key(|&length| Reverse(length));
        index.lengths.dedup();
        if index.regexes.len() >= REGEX_SET_FROM {
            // The union may be larger than the automaton's size limit though each part is not; then there is no
            // shortcut, and the result is the same.
            index.any_regex = RegexSet::new(index.regexes.iter().map(|(regex, _)| regex.as_str())).ok();
        }
        Ok(index)
    }

    fn add_regex(&mut self, pattern: &str, at: usize) -> Result<(), (usize, String)> {
        if let Some((last, routes)) = self.regexes.last_mut()
            && last.as_str() == pattern
        {
            routes.push(at);
            return Ok(());
        }
        let regex = Regex::new(pattern)
            .map_err(|error| (at, format!("the path `~{pattern}` is not a regular expression: {error}")))?;
        self.regexes.push((regex, vec![at]));
        Ok(())
    }

    /// Offers every route that takes the path to `accept`, best first, until it says yes.
    pub(super) fn find(&self, path: &str, mut accept: impl FnMut(usize) -> bool) -> Option<usize> {
        let mut pick = |routes: &[usize]| routes.iter().copied().find(|&at| accept(at));
        if let Some(routes) = self.exact.get(path)
            && let Some(found) = pick(routes)
        {
            return Some(found);
        }
        if self.any_regex.as_ref().is_none_or(|set| set.is_match(path)) {
            for (regex, routes) in &self.regexes {
                if regex.is_match(path)
                    && let Some(found) = pick(routes)
                {
                    return Some(found);
                }
            }
        }
        for &length in &self.lengths {
            if let Some(head) = head_at_border(path, length)
                && let Some(routes) = self.prefixes.get(head)
                && let Some(found) = pick(routes)
            {
                return Some(found);
            }
        }
        None
    }
}

/// The prefix as it is compared: `/api/` and `/api` are one.
pub(super) fn trimmed(prefix: &str) -> &str {
    prefix.trim_end_matches('/')
}

/// The first `length` bytes of the path where a segment ends there. Length zero fits every path, also `*`
/// (RFC 9110 section 7.1: `OPTIONS *` names no path of its own).
fn head_at_border(path: &str, length: usize) -> Option<&str> {
    match path.as_bytes().get(length) {
        Some(b'/') => path.get(..length),
        Some(_) if length == 0 => Some(""),
        Some(_) => None,
        None if path.len() == length => Some(path),
        None => None,
    }
}
