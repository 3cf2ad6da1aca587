//! What a request is counted under: its address, fields, cookies, path, method or user, put together into one hash.
//!
//! Nothing is copied and nothing allocated. The hash is seeded per process: nobody can choose values that meet others'
//! buckets. What a request does not have (no such field, no such cookie, nobody authenticated) is replaced by its
//! client's address: leaving it out opens no way around the limit.

use std::hash::Hasher;
use std::net::IpAddr;

use http::header::{self, HeaderName};
use http::{HeaderMap, Method};

use crate::base::address::{ClientKey, truncated};
use crate::config::model::LimitKey;

/// What is known of a request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The client, after trusted proxies.
    pub client: IpAddr,
    /// The method.
    pub method: &'a Method,
    /// The path as normalised.
    pub path: &'a str,
    /// The fields as the client sent them.
    pub headers: &'a HeaderMap,
    /// Who was authenticated; `None`: nobody, or nobody yet.
    pub user: Option<&'a str>,
}

/// The compiled keys of a limit, all of which make its buckets together; none: one bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys(Box<[Key]>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Key {
    ClientIp,
    ClientNet,
    Path,
    Method,
    User,
    Header(HeaderName),
    Cookie(Box<[u8]>),
}

impl Keys {
    /// Compiles keys. `site` and `tenant` say whose the buckets are and are no part of the key. A name that is not one
    /// has been refused before.
    pub fn compile(keys: &[LimitKey]) -> Keys {
        let compiled = keys.iter().filter_map(|key| match key {
            LimitKey::Site | LimitKey::Tenant => None,
            LimitKey::ClientIp => Some(Key::ClientIp),
            LimitKey::ClientNet => Some(Key::ClientNet),
            LimitKey::Path => Some(Key::Path),
            LimitKey::Method => Some(Key::Method),
            LimitKey::User => Some(Key::User),
            LimitKey::Header(name) => {
                Some(HeaderName::from_bytes(name.as_bytes()).map_or(Key::ClientIp, Key::Header))
            }
            LimitKey::Cookie(name) => Some(Key::Cookie(name.as_bytes().into())),
        });
        Keys(compiled.collect())
    }

    /// Whether it can be told only once it is known who was authenticated.
    pub fn need_user(&self) -> bool {
        self.0.contains(&Key::User)
    }

    /// Whether an address is among them.
    pub fn have_address(&self) -> bool {
        self.0.iter().any(|key| matches!(key, Key::ClientIp | Key::ClientNet))
    }

    /// Feeds a request's keys to a hash.
    pub fn hash(&self, facts: &Facts<'_>, hasher: &mut impl Hasher) {
        for key in &self.0 {
            let value = match key {
                Key::ClientIp => None,
                Key::ClientNet => {
                    hasher.write_u128(ClientKey::of(truncated(facts.client)).0);
                    continue;
                }
                Key::Path => Some(facts.path.as_bytes()),
                Key::Method => Some(facts.method.as_str().as_bytes()),
                Key::User => facts.user.map(str::as_bytes),
                Key::Header(name) => facts.headers.get(name).map(|value| value.as_bytes()),
                Key::Cookie(name) => cookie(facts.headers, name),
            };
            // The length keeps `a` beside `bc` apart from `ab` beside `c`, and a value from an address.
            match value.filter(|value| !value.is_empty()) {
                Some(value) => {
                    hasher.write_usize(value.len());
                    hasher.write(value);
                }
                None => {
                    hasher.write_usize(0);
                    hasher.write_u128(ClientKey::of(facts.client).0);
                }
            }
        }
    }
}

/// The first cookie of this name (RFC 6265 section 4.2.1), in all fields: HTTP/2 may split them.
fn cookie<'h>(headers: &'h HeaderMap, name: &[u8]) -> Option<&'h [u8]> {
    let fields = headers.get_all(header::COOKIE).iter();
    let mut pairs = fields.flat_map(|field| field.as_bytes().split(|&byte| byte == b';'));
    pairs.find_map(|pair| Some(pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"=")?.trim_ascii()))
}

#[cfg(test)]
mod tests {
    use std::hash::DefaultHasher;

    use http::HeaderValue;

    use super::*;

    fn print(keys: &[LimitKey], facts: &Facts<'_>) -> u64 {
        let mut hasher = DefaultHasher::new();
        Keys::compile(keys).hash(facts, &mut hasher);
        hasher.finish()
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn each_key_looks_at_what_it_names_and_at_nothing_else() {
        let (one, two) = (
            headers(&[("x-api-key", "k1"), ("cookie", "a=1; session=s1")]),
            headers(&[("x-api-key", "k2"), ("cookie", "session=s2")]),
        );
        let base = Facts {
            client: "192.0.2.1".parse().unwrap(),
            method: &Method::GET,
            path: "/a",
            headers: &one,
            user: Some("ann"),
        };
        let others = [
            (LimitKey::ClientIp, Facts { client: "192.0.2.2".parse().unwrap(), ..base }),
            (LimitKey::ClientNet, Facts { client: "192.0.3.1".parse().unwrap(), ..base }),
            (LimitKey::Path, Facts { path: "/b", ..base }),
            (LimitKey::Method, Facts { method: &Method::POST, ..base }),
            (LimitKey::User, Facts { user: Some("bob"), ..base }),
            (LimitKey::Header("x-api-key".into()), Facts { headers: &two, ..base }),
            (LimitKey::Cookie("session".into()), Facts { headers: &two, ..base }),
        ];
        for (at, (key, other)) in others.iter().enumerate() {
            let keys = std::slice::from_ref(key);
            assert_ne!(print(keys, &base), print(keys, other), "{key}");
            for (also, (_, foreign)) in others.iter().enumerate() {
                // Header and cookie change together here, and another /24 is another address.
                let same_change = at == also || (at >= 5 && also >= 5) || (at == 0 && also == 1);
                if !same_change {
                    assert_eq!(print(keys, &base), print(keys, foreign), "{key} looks at change {also}");
                }
            }
        }
        let whole: Vec<LimitKey> = vec![LimitKey::ClientIp, LimitKey::Path];
        assert_ne!(print(&whole, &base), print(&whole, &others[0].1));
        assert_ne!(print(&whole, &base), print(&whole, &others[2].1));
        assert_eq!(print(&[LimitKey::Site], &base), print(&[LimitKey::Tenant], &others[0].1), "one bucket");
    }

    #[test]
    fn what_a_request_does_not_have_is_its_address() {
        let (none, empty) = (HeaderMap::new(), headers(&[("x-api-key", ""), ("cookie", "session=")]));
        let at = |client: &str, headers| Facts {
            client: client.parse().unwrap(),
            method: &Method::GET,
            path: "/",
            headers,
            user: None,
        };
        for key in [LimitKey::Header("x-api-key".into()), LimitKey::Cookie("session".into()), LimitKey::User]
        {
            let print = |client, headers| print(std::slice::from_ref(&key), &at(client, headers));
            assert_eq!(print("192.0.2.1", &none), print("192.0.2.1", &empty), "{key}");
            assert_ne!(print("192.0.2.1", &none), print("192.0.2.2", &none), "{key}");
            assert_eq!(print("2001:db8::1", &none), print("2001:db8::2", &none), "{key}");
        }
    }

    #[test]
    fn values_side_by_side_do_not_run_into_each_other() {
        let keys = [LimitKey::Header("a".into()), LimitKey::Header("b".into())];
        let facts = |headers| Facts {
            client: "192.0.2.1".parse().unwrap(),
            method: &Method::GET,
            path: "/",
            headers,
            user: None,
        };
        let (one, two) = (headers(&[("a", "x"), ("b", "yz")]), headers(&[("a", "xy"), ("b", "z")]));
        assert_ne!(print(&keys, &facts(&one)), print(&keys, &facts(&two)));
    }

    #[test]
    fn a_net_is_a_24_or_a_48() {
        let none = HeaderMap::new();
        let net = |client: &str| {
            let client = client.parse().unwrap();
            let facts = Facts { client, method: &Method::GET, path: "/", headers: &none, user: None };
            print(&[LimitKey::ClientNet], &facts)
        };
        assert_eq!(net("2001:db8:1:2::1"), net("2001:db8:1:ffff::2"));
        assert_ne!(net("2001:db8:1::1"), net("2001:db8:2::1"));
        assert_eq!(net("192.0.2.1"), net("::ffff:192.0.2.255"));
        assert_ne!(net("192.0.2.1"), net("192.0.3.1"));
    }
}
