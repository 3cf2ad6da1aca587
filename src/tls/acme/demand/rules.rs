//! Which site takes a name that no site has among its hosts: pure, and cheap enough for every unknown name.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::model::{Allowed, HostPattern, OnDemand};
use crate::config::section::host;

/// Longest name, in bytes: RFC 1035 section 2.3.4, in text form.
const NAME_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

/// The terms of one site.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The site.
    pub site: Arc<str>,
    /// Who owns it.
    pub tenant: Arc<str>,
    /// Its position in the snapshot.
    pub position: usize,
    /// What it says.
    pub said: Arc<OnDemand>,
}

/// The terms of all sites.
#[derive(Debug, Default)]
pub struct Rules {
    terms: Vec<Terms>,
    exact: HashMap<Arc<str>, usize>,
    /// Keyed by what follows `*.`.
    one_label: HashMap<Arc<str>, usize>,
    /// Keyed by what follows the dot.
    below: HashMap<Arc<str>, usize>,
    ask: Option<usize>,
    /// Some authority signs public names only.
    public_only: bool,
}

/// Whose a name is.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The site's terms.
    pub terms: &'a Terms,
    /// Its list allows the name; otherwise somebody must be asked.
    pub listed: bool,
}

impl Rules {
    /// Puts terms together. What two sites claim belongs to the first; clashes are told before, where they can be
    /// explained.
    pub fn new(terms: Vec<Terms>, public_only: bool) -> Rules {
        let mut rules = Rules { public_only, ..Rules::default() };
        for (index, terms) in terms.iter().enumerate() {
            for allowed in &terms.said.allow {
                match &allowed.value {
                    Allowed::Host(HostPattern::Exact(name)) => rules.exact.entry(name.clone()),
                    Allowed::Host(HostPattern::Wildcard(parent)) => rules.one_label.entry(parent.clone()),
                    Allowed::Below(parent) => rules.below.entry(parent.clone()),
                }
                .or_insert(index);
            }
            if terms.said.ask.is_some() {
                rules.ask.get_or_insert(index);
            }
        }
        rules.terms = terms;
        rules
    }

    /// The terms of every site that takes names.
    pub fn terms(&self) -> impl Iterator<Item = &Terms> {
        self.terms.iter()
    }

    /// Whether no site takes any name.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The site that takes this name (lower case, without a dot at its end): by the name itself, else by the longest
    /// suffix, else the one that asks. `None` also for what no authority signs.
    pub fn owner(&self, name: &str) -> Option<Owner<'_>> {
        if self.terms.is_empty() || !is_orderable(name) {
            return None;
        }
        if self.public_only && !host::public(&HostPattern::Exact(name.into())) {
            return None;
        }
        let listed = self.listed(name);
        let index = listed.or(self.ask)?;
        Some(Owner { terms: self.terms.get(index)?, listed: listed.is_some() })
    }

    fn listed(&self, name: &str) -> Option<usize> {
        if let Some(index) = self.exact.get(name) {
            return Some(*index);
        }
        let (_, parent) = name.split_once('.')?;
        if let Some(index) = self.one_label.get(parent) {
            return Some(*index);
        }
        let mut rest = name;
        while let Some((_, parent)) = rest.split_once('.') {
            if let Some(index) = self.below.get(parent) {
                return Some(*index);
            }
            rest = parent;
        }
        None
    }
}

/// Whether an authority could sign this name: a DNS name of two labels or more in preferred syntax (RFC 5280 section
/// 4.2.1.6), in lower case; no address, no underscore, no wildcard.
pub fn is_orderable(name: &str) -> bool {
    let legal = |label: &str| {
        let inner = label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && inner
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = |label: &str| !label.bytes().all(|byte| byte.is_ascii_digit());
    name.len() <= NAME_BYTES_MAX
        && name.rsplit_once('.').is_some_and(|(_, label)| last(label))
        && name.split('.').all(legal)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::unit::Rate;
    use crate::config::model::{Located, Origin};

    fn terms(site: &str, allow: &[&str], ask: bool) -> Terms {
        let allowed = |text: &&str| Located {
            value: crate::config::section::demand::allowed(text).unwrap(),
            origin: Origin::Default,
        };
        let ask = ask.then(|| Located {
            value: crate::config::section::demand::ask_url("http://127.0.0.1:1/").unwrap(),
            origin: Origin::Default,
        });
        let said = OnDemand {
            origin: Origin::Default,
            allow: allow.iter().map(allowed).collect(),
            ask,
            orders: Rate { count: 1, per: Duration::from_secs(1) },
        };
        Terms { site: site.into(), tenant: site.into(), position: 0, said: Arc::new(said) }
    }

    #[test]
    fn the_name_itself_then_the_longest_suffix_then_the_question() {
        let rules = Rules::new(
            vec![
                terms("one", &["shop.de", "*.one.de", ".deep.one.de"], false),
                terms("two", &[".one.de", "exact.deep.one.de"], false),
                terms("asks", &[], true),
            ],
            false,
        );
        for (name, site, listed) in [
            ("shop.de", "one", true),
            ("a.one.de", "one", true),
            ("b.a.one.de", "two", true),
            ("x.deep.one.de", "one", true),
            ("y.x.deep.one.de", "one", true),
            ("exact.deep.one.de", "two", true),
            ("www.shop.de", "asks", false),
            ("one.de", "asks", false),
        ] {
            let owner = rules.owner(name).unwrap();
            assert_eq!((&*owner.terms.site, owner.listed), (site, listed), "{name}");
        }
        let silent = Rules::new(vec![terms("one", &[".one.de"], false)], false);
        for name in ["one.de", "xone.de", "shop.de", ".one.de", "..one.de", "a_b.one.de", "*.one.de"] {
            assert!(silent.owner(name).is_none(), "{name}");
        }
    }

    #[test]
    fn what_nobody_signs_is_nobodys() {
        let all = Rules::new(vec![terms("asks", &[], true)], false);
        let long = format!("{}.de", "a.".repeat(126));
        for name in [
            "",
            ".",
            "de",
            "localhost",
            "127.0.0.1",
            "1.2.3.4.",
            "::1",
            "a..de",
            "-a.de",
            "a-.de",
            "a_b.de",
            "_acme.de",
            "*.a.de",
            "a b.de",
            "A.de",
            "ä.de",
            "a.de/",
            "a.123",
            &format!("{}.de", "a".repeat(64)),
            &long,
        ] {
            assert!(all.owner(name).is_none(), "{name:?}");
        }
        for name in ["a.de", "xn--bcher-kva.example.com", "1.2.3.de", &format!("{}.de", "a".repeat(63))] {
            assert!(all.owner(name).is_some(), "{name:?}");
        }
        let public = Rules::new(vec![terms("asks", &[], true)], true);
        assert!(public.owner("a.test").is_none() && public.owner("a.de").is_some());
    }
}
