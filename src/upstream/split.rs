//! Which part of a split service gets a request: what the client asks for by a field or a cookie, else where its session
//! is, else a draw. Pure, and nothing is stored: who belongs where follows from the request and the percentages.

use http::header::HeaderName;

use super::balance::{Facts, Key, cookies};
use crate::base::hash;
use crate::config::model;

/// Compiled `split`.
#[derive(Debug)]
pub struct Split {
    by: Option<Key>,
    /// Clients that are few on one site are not the same few on the next.
    salt: u64,
    branches: Box<[Rule]>,
}

/// Who goes to a branch.
#[derive(Debug)]
struct Rule {
    percent: u64,
    header: Option<HeaderName>,
    cookie: Option<Box<[u8]>>,
}

/// What a client says of a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    Always,
    Never,
    Whatever,
}

impl Split {
    /// Compiles the split of a service.
    pub fn compile(said: &model::Split, service: &str) -> Split {
        let rule = |branch: &model::Branch| Rule {
            percent: branch.percent.into(),
            header: branch.header.as_ref().and_then(|name| HeaderName::from_bytes(name.as_bytes()).ok()),
            cookie: branch.cookie.as_ref().map(|name| name.as_bytes().into()),
        };
        Split {
            by: said.by.as_ref().map(Key::compile),
            salt: hash::stable(0, service.as_bytes()),
            branches: said.branches.iter().map(rule).collect(),
        }
    }

    /// The branch for a request, `None`: the service itself. `home`: where its session is, if it has one; a branch to
    /// which nobody is drawn keeps no sessions.
    pub fn choose(
        &self,
        facts: &Facts<'_>,
        random: u64,
        home: impl FnOnce() -> Option<Option<usize>>,
    ) -> Option<usize> {
        let wishes = || self.branches.iter().map(|rule| rule.wish(facts));
        if let Some(at) = wishes().position(|wish| wish == Wish::Always) {
            return Some(at);
        }
        let at = match home().filter(|home| home.is_none_or(|at| self.draws(at))) {
            Some(home) => home?,
            None => self.drawn(facts, random)?,
        };
        Some(at).filter(|&at| wishes().nth(at) != Some(Wish::Never))
    }

    fn draws(&self, at: usize) -> bool {
        self.branches.get(at).is_some_and(|rule| rule.percent > 0)
    }

    fn drawn(&self, facts: &Facts<'_>, random: u64) -> Option<usize> {
        let bits = self.by.as_ref().and_then(|key| key.hash(facts)).unwrap_or(random);
        let point = (hash::mix(bits ^ self.salt) >> 32) * 100;
        // Each part begins where the one before it ends, so that a part that grows keeps whom it has.
        let mut end = 0;
        self.branches.iter().position(|rule| {
            end += rule.percent << 32;
            point < end
        })
    }
}

impl Rule {
    fn wish(&self, facts: &Facts<'_>) -> Wish {
        let header =
            self.header.as_ref().and_then(|name| facts.headers.get(name)).map(|value| value.as_bytes());
        let cookie = || self.cookie.as_ref().and_then(|name| cookies(facts.headers, name).next());
        let of = |said: Option<&[u8]>| match said {
            Some(b"always") => Wish::Always,
            Some(b"never") => Wish::Never,
            _ => Wish::Whatever,
        };
        match of(header) {
            Wish::Whatever => of(cookie()),
            said => said,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use http::{HeaderMap, HeaderValue};

    use super::*;

    fn split(by: Option<model::Key>, branches: &[(u32, bool)]) -> Split {
        let rule = |&(percent, words): &(u32, bool)| Rule {
            percent: percent.into(),
            header: words.then(|| HeaderName::from_static("x-canary")),
            cookie: words.then(|| b"canary".as_slice().into()),
        };
        Split { by: by.as_ref().map(Key::compile), salt: 7, branches: branches.iter().map(rule).collect() }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn choose(
        split: &Split,
        client: u32,
        headers: &HeaderMap,
        random: u64,
        home: Option<Option<usize>>,
    ) -> Option<usize> {
        let client = IpAddr::V4(Ipv4Addr::from_bits(client));
        split.choose(&Facts { client, headers, path: "/" }, random, || home)
    }

    #[test]
    fn shares_are_as_said_and_a_part_that_grows_keeps_whom_it_has() {
        let none = HeaderMap::new();
        let (five, ten) = ([(5, false), (20, false)], [(10, false), (20, false)]);
        for by in [None, Some(model::Key::ClientIp)] {
            let of = |branches: &[(u32, bool)], client: u32| {
                choose(&split(by.clone(), branches), client, &none, u64::from(client), None)
            };
            let count = |at: Option<usize>| (0..20_000).filter(|&client| of(&five, client) == at).count();
            // 20,000 draws: one standard deviation of 5 % is 31, of 20 % 57.
            let found = [Some(0), Some(1), None].map(count);
            assert!(found[0].abs_diff(1_000) < 150 && found[1].abs_diff(4_000) < 280, "{found:?}");
            assert!((0..2_000).all(|client| of(&five, client) != Some(0) || of(&ten, client) == Some(0)));
        }
        let sticky = split(Some(model::Key::ClientIp), &five);
        assert!(
            (0..500).all(|n| choose(&sticky, n, &none, 1, None) == choose(&sticky, n, &none, u64::MAX, None))
        );
    }

    #[test]
    fn nobody_and_everybody_are_exact() {
        let none = HeaderMap::new();
        assert!(
            (0..2_000).all(|random| choose(&split(None, &[(0, false)]), 1, &none, random, None).is_none())
        );
        assert!(
            (0..2_000).all(|random| choose(&split(None, &[(100, false)]), 1, &none, random, None) == Some(0))
        );
    }

    #[test]
    fn a_client_may_choose_by_field_or_cookie_and_the_field_goes_first() {
        for (pairs, percent, expected) in [
            (&[("x-canary", "always")][..], 0, Some(0)),
            (&[("x-canary", "never")], 100, None),
            (&[("cookie", "a=b; canary=always")], 0, Some(0)),
            (&[("cookie", "canary=never")], 100, None),
            (&[("x-canary", "never"), ("cookie", "canary=always")], 100, None),
            (&[("x-canary", "maybe"), ("cookie", "canary=always")], 0, Some(0)),
            (&[("x-canary", "ALWAYS")], 0, None),
        ] {
            let split = split(None, &[(percent, true)]);
            assert_eq!(choose(&split, 1, &headers(pairs), 99, None), expected, "{pairs:?}");
        }
    }

    #[test]
    fn a_session_stays_where_it_is_unless_its_part_is_closed() {
        let none = HeaderMap::new();
        for (percent, home, expected) in [(1, Some(0), Some(0)), (99, None, None), (0, Some(0), None)] {
            let split = split(None, &[(percent, true)]);
            assert!(
                (0..200).all(|random| choose(&split, 1, &none, random, Some(home)) == expected),
                "{percent}"
            );
            let never = headers(&[("x-canary", "never")]);
            assert_eq!(choose(&split, 1, &never, 1, Some(home)), None);
        }
    }
}
