//! From a host name to whatever serves it: exact names first, then wildcards.
//!
//! Two hash maps, so that a lookup costs the same for ten names and for a hundred thousand. Cleaning the name (case,
//! port, trailing dot, brackets) is the caller's work; nothing is cleaned here.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use crate::config::model::HostPattern;

/// Names and what they lead to.
#[derive(Debug, Clone)]
pub struct HostIndex<T> {
    exact: HashMap<Arc<str>, T, RandomState>,
    /// Keyed by what follows `*.`.
    wildcard: HashMap<Arc<str>, T, RandomState>,
}

impl<T> Default for HostIndex<T> {
    fn default() -> HostIndex<T> {
        HostIndex { exact: HashMap::default(), wildcard: HashMap::default() }
    }
}

impl<T> HostIndex<T> {
    /// Builds an index. Where one pattern stands twice the first one stays: the older site keeps its name.
    pub fn build(patterns: impl IntoIterator<Item = (HostPattern, T)>) -> HostIndex<T> {
        let mut index = HostIndex::default();
        for (pattern, value) in patterns {
            match pattern {
                HostPattern::Exact(name) => index.exact.entry(name).or_insert(value),
                HostPattern::Wildcard(suffix) => index.wildcard.entry(suffix).or_insert(value),
            };
        }
        index
    }

    /// What serves this host. `host` is lower case, without port and trailing dot. A wildcard stands for exactly one
    /// label, as in certificates (RFC 9525 section 6.3): `*.a.example` serves `x.a.example`, but neither `a.example`
    /// nor `x.y.a.example`.
    pub fn find(&self, host: &str) -> Option<&T> {
        if let Some(value) = self.exact.get(host) {
            return Some(value);
        }
        let (label, suffix) = host.split_once('.')?;
        if label.is_empty() {
            return None;
        }
        self.wildcard.get(suffix)
    }

    /// How many patterns the index holds.
    pub fn len(&self) -> usize {
        self.exact.len() + self.wildcard.len()
    }

    /// Whether the index holds no pattern.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(name: &str) -> HostPattern {
        HostPattern::Exact(name.into())
    }

    fn wildcard(suffix: &str) -> HostPattern {
        HostPattern::Wildcard(suffix.into())
    }

    #[test]
    fn exact_names_win_over_wildcards_and_wildcards_take_one_label() {
        let index = HostIndex::build([
            (wildcard("a.example"), 1),
            (exact("www.a.example"), 2),
            (exact("a.example"), 3),
            (exact("2001:db8::1"), 4),
        ]);
        assert_eq!(index.find("www.a.example"), Some(&2));
        assert_eq!(index.find("other.a.example"), Some(&1));
        assert_eq!(index.find("a.example"), Some(&3));
        assert_eq!(index.find("2001:db8::1"), Some(&4));
        for miss in ["", ".", ".a.example", "x.y.a.example", "xa.example", "example", "a.example."] {
            assert_eq!(index.find(miss), None, "{miss}");
        }
    }

    #[test]
    fn the_first_owner_of_a_name_keeps_it() {
        let index = HostIndex::build([(exact("a.example"), "older"), (exact("a.example"), "newer")]);
        assert_eq!((index.find("a.example"), index.len()), (Some(&"older"), 1));
        assert!(HostIndex::<()>::default().is_empty());
    }

    #[test]
    fn a_hundred_thousand_names_are_all_found() {
        let index = HostIndex::build((0..100_000u32).map(|i| match i % 2 {
            0 => (exact(&format!("shop{i}.example")), i),
            _ => (wildcard(&format!("shop{i}.example")), i),
        }));
        assert_eq!(index.len(), 100_000);
        for i in (0..100_000u32).step_by(2) {
            assert_eq!(index.find(&format!("shop{i}.example")), Some(&i));
            let i = i + 1;
            assert_eq!(index.find(&format!("www.shop{i}.example")), Some(&i));
            assert_eq!(index.find(&format!("shop{i}.example")), None);
        }
    }
}
