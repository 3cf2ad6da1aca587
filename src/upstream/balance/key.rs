//! What a request is told apart by: the client's address, a header field, a cookie or the path. Looked at only where
//! somebody wants to know, and without a copy.

use std::net::IpAddr;

use http::HeaderMap;
use http::header::{self, HeaderName};

use crate::base::address::ClientKey;
use crate::base::hash;
use crate::config::model;

/// A compiled key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The client's address; of IPv6, its /64.
    ClientIp,
    /// The first value of a field.
    Header(HeaderName),
    /// The first cookie of this name.
    Cookie(Box<[u8]>),
    /// The path, without query.
    Path,
}

/// What is known of a request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The client, after trusted proxies.
    pub client: IpAddr,
    /// The fields as the client sent them.
    pub headers: &'a HeaderMap,
    /// The path as normalised.
    pub path: &'a str,
}

impl Key {
    /// Compiles a key. A name that is not one has been refused before; it would be absent from every request.
    pub fn compile(key: &model::Key) -> Key {
        match key {
            model::Key::ClientIp => Key::ClientIp,
            model::Key::Header(name) => {
                HeaderName::from_bytes(name.as_bytes()).map_or(Key::ClientIp, Key::Header)
            }
            model::Key::Cookie(name) => Key::Cookie(name.as_bytes().into()),
            model::Key::Path => Key::Path,
        }
    }

    /// The hash of a request's key, the same on every node; `None` where the request has no such thing, or an empty one.
    pub fn hash(&self, facts: &Facts<'_>) -> Option<u64> {
        let bytes = match self {
            Key::ClientIp => {
                return Some(hash::stable(0, &ClientKey::of(facts.client).0.to_le_bytes()));
            }
            Key::Header(name) => facts.headers.get(name)?.as_bytes(),
            Key::Cookie(name) => cookies(facts.headers, name).next()?,
            Key::Path => facts.path.as_bytes(),
        };
        (!bytes.is_empty()).then(|| hash::stable(0, bytes))
    }
}

/// The values of a cookie (RFC 6265 section 4.2.1), in all fields: HTTP/2 may split them.
pub fn cookies<'h>(headers: &'h HeaderMap, name: &[u8]) -> impl Iterator<Item = &'h [u8]> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .flat_map(|field| field.as_bytes().split(|&byte| byte == b';'))
        .filter_map(move |pair| value_of(pair, name))
}

/// The value of `name=value`, if that is its name.
pub(super) fn value_of<'h>(pair: &'h [u8], name: &[u8]) -> Option<&'h [u8]> {
    let value = pair.trim_ascii().strip_prefix(name)?.strip_prefix(b"=")?;
    Some(value.trim_ascii())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn of(key: &str, client: &str, headers: &HeaderMap, path: &str) -> Option<u64> {
        let key = match key.split_once(':') {
            None if key == "path" => model::Key::Path,
            None => model::Key::ClientIp,
            Some(("header", name)) => model::Key::Header(name.into()),
            Some((_, name)) => model::Key::Cookie(name.into()),
        };
        Key::compile(&key).hash(&Facts { client: client.parse().unwrap(), headers, path })
    }

    #[test]
    fn a_key_is_the_same_however_the_rest_of_the_request_looks() {
        let (one, two) = (
            headers(&[("x-user", "ann"), ("cookie", "a=1; session=s1; b=2")]),
            headers(&[("cookie", "session=s1"), ("x-user", "ann")]),
        );
        for key in ["header:x-user", "cookie:session"] {
            assert_eq!(of(key, "192.0.2.1", &one, "/a"), of(key, "192.0.2.2", &two, "/b"), "{key}");
            assert_eq!(of(key, "192.0.2.1", &HeaderMap::new(), "/a"), None, "{key}");
        }
        assert_ne!(
            of("header:x-user", "::1", &one, "/"),
            of("header:x-user", "::1", &headers(&[("x-user", "bob")]), "/")
        );
        assert_eq!(
            of("header:x-user", "::1", &headers(&[("x-user", "")]), "/"),
            None,
            "an empty one is none"
        );
        assert_eq!(of("path", "192.0.2.1", &one, "/a"), of("path", "::1", &two, "/a"));
        assert_ne!(of("path", "192.0.2.1", &one, "/a"), of("path", "192.0.2.1", &one, "/b"));
        assert_eq!(
            of("client-ip", "2001:db8::1", &one, "/"),
            of("client-ip", "2001:db8::2", &two, "/x"),
            "one /64"
        );
        assert_ne!(of("client-ip", "192.0.2.1", &one, "/"), of("client-ip", "192.0.2.2", &one, "/"));
    }

    #[test]
    fn cookies_are_found_in_every_field_and_by_their_whole_name() {
        let map = headers(&[
            ("cookie", "asession=1;session=2 ; sessions=3; Session=4"),
            ("cookie", "session=5; =; ;session"),
        ]);
        assert_eq!(cookies(&map, b"session").collect::<Vec<_>>(), [b"2", b"5"]);
    }
}
