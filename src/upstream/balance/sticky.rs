//! Sessions: a cookie says which endpoint a client was at.
//!
//! The cookie names the endpoint by a code: 128 bits of HMAC-SHA256 over site, address and scheme, under a key that only
//! the nodes have. So it tells nobody an address, nobody can make one up, and every node and every later process reads it
//! alike. The codes are made at reload; a request compares. A code is no secret: who is at an endpoint knows its code, and
//! could at most send its own requests there.
//!
//! A code that no endpoint has (forged, or the endpoint is gone) counts as none: the client is sent anywhere, and told.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::header::{self, HeaderMap, HeaderValue};

use super::key::{cookies, value_of};
use super::{Affinity, Weighted};
use crate::config::model::{self, SameSite};

/// Bytes of the key.
pub const KEY_BYTES: usize = 32;

/// Bytes of the code that a cookie carries, before they are text.
const CODE_BYTES: usize = 16;
/// Characters of the code.
const CODE_TEXT: usize = 22;

/// The key under which endpoints are named.
pub struct Secret(hmac::Key);

/// The cookie of a service.
#[derive(Debug)]
pub struct Sticky {
    name: Box<[u8]>,
    /// What follows the code.
    attributes: Box<str>,
    /// In order.
    codes: Box<[([u8; CODE_TEXT], usize)]>,
}

impl Secret {
    /// A key from random bytes.
    pub fn new(bytes: &[u8; KEY_BYTES]) -> Secret {
        Secret(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    fn code(&self, site: &str, weighted: &Weighted) -> [u8; CODE_TEXT] {
        let scheme = if weighted.endpoint.tls { "https" } else { "http" };
        let mut context = hmac::Context::with_key(&self.0);
        let address = weighted.endpoint.address.to_string();
        // A zero byte stands in none of them, so that no two triples make one text.
        for part in ["tidegate sticky 1", site, scheme, &address] {
            context.update(part.as_bytes());
            context.update(&[0]);
        }
        let tag = context.sign();
        let mut text = [0; CODE_TEXT];
        // 16 bytes are 22 characters, so there is room.
        let _ = BASE64_URL_SAFE_NO_PAD
            .encode_slice(tag.as_ref().get(..CODE_BYTES).unwrap_or_default(), &mut text);
        text
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Sticky {
    /// Compiles the cookie for these endpoints. Services of one site that have an endpoint in common have its code in
    /// common, so that a session is one over all routes.
    pub fn compile(said: &model::Sticky, site: &str, endpoints: &[Weighted], secret: &Secret) -> Sticky {
        let codes = endpoints.iter().enumerate().map(|(at, weighted)| (secret.code(site, weighted), at));
        let mut codes: Box<[_]> = codes.collect();
        codes.sort_unstable();
        let age = said.ttl.map(|ttl| format!("; Max-Age={}", ttl.as_secs())).unwrap_or_default();
        let same_site = match said.same_site {
            SameSite::Lax => "Lax",
            SameSite::Strict => "Strict",
            SameSite::None => "None",
        };
        Sticky {
            name: said.cookie.as_bytes().into(),
            attributes: format!("; Path=/{age}; HttpOnly; SameSite={same_site}").into(),
            codes,
        }
    }

    /// Where the cookies of a request say that it belongs.
    pub fn affinity(&self, headers: &HeaderMap) -> Affinity {
        let known = |code: &[u8]| {
            let found = self.codes.binary_search_by(|(known, _)| known.as_slice().cmp(code));
            found.ok().and_then(|at| self.codes.get(at)).map(|(_, endpoint)| *endpoint)
        };
        cookies(headers, &self.name).find_map(known).map_or(Affinity::None, Affinity::Endpoint)
    }

    /// The `Set-Cookie` that names an endpoint; `secure`: the client speaks TLS.
    pub fn set_cookie(&self, endpoint: usize, secure: bool) -> Option<HeaderValue> {
        let (code, _) = self.codes.iter().find(|(_, at)| *at == endpoint)?;
        let secure: &[u8] = if secure { b"; Secure" } else { b"" };
        HeaderValue::from_bytes(
            &[&self.name, b"=".as_slice(), code, self.attributes.as_bytes(), secure].concat(),
        )
        .ok()
    }
}

/// Takes cookies of these names out of a request: they are between the client and us.
pub fn strip(headers: &mut HeaderMap, names: &[Box<[u8]>]) {
    let ours = |pair: &[u8]| names.iter().any(|name| value_of(pair, name).is_some());
    let pairs = |field: &[u8]| field.split(|&byte| byte == b';').any(ours);
    if !headers.get_all(header::COOKIE).iter().any(|field| pairs(field.as_bytes())) {
        return;
    }
    let kept: Vec<HeaderValue> = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|field| {
            let pairs = field.as_bytes().split(|&byte| byte == b';').filter(|pair| !ours(pair));
            let kept = pairs
                .map(<[u8]>::trim_ascii)
                .filter(|pair| !pair.is_empty())
                .collect::<Vec<_>>()
                .join(&b"; "[..]);
            // A part of a legal value, so it is one.
            if kept.is_empty() { None } else { HeaderValue::from_bytes(&kept).ok() }
        })
        .collect();
    headers.remove(header::COOKIE);
    for value in kept {
        let _ = headers.try_append(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::registry::Registry;

    fn weighted(registry: &Registry, ports: &[u16]) -> Vec<Weighted> {
        let address = |port| crate::base::address::EndpointAddress::Name("backend.internal".into(), port);
        let one = |&port| Weighted {
            endpoint: registry.obtain(&"a/".into(), &address(port), false),
            weight: 1,
            backup: false,
        };
        ports.iter().map(one).collect()
    }

    fn said() -> model::Sticky {
        model::Sticky { cookie: "tidegate".into(), ttl: None, same_site: SameSite::Lax }
    }

    fn with_cookie(value: &str) -> HeaderMap {
        HeaderMap::from_iter([(header::COOKIE, HeaderValue::from_str(value).unwrap())])
    }

    fn cookie(sticky: &Sticky, at: usize) -> String {
        let set = sticky.set_cookie(at, false).unwrap();
        set.to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    #[test]
    fn a_cookie_survives_restarts_and_other_endpoints() {
        let (before, after) = (Registry::new(), Registry::new());
        let secret = || Secret::new(&[7; KEY_BYTES]);
        let one = Sticky::compile(&said(), "a", &weighted(&before, &[1, 2, 3]), &secret());
        let two = Sticky::compile(&said(), "a", &weighted(&after, &[9, 3, 8, 1]), &secret());
        assert_eq!(one.affinity(&with_cookie(&cookie(&one, 2))), Affinity::Endpoint(2));
        assert_eq!(two.affinity(&with_cookie(&cookie(&one, 2))), Affinity::Endpoint(1), "the same address");
        assert_eq!(two.affinity(&with_cookie(&cookie(&one, 1))), Affinity::None, "it is gone");
        let both = format!("{}; x=1; {}", cookie(&one, 1), cookie(&one, 0));
        assert_eq!(two.affinity(&with_cookie(&both)), Affinity::Endpoint(3), "the first that is known");
    }

    #[test]
    fn a_cookie_of_another_key_another_site_or_no_sense_is_none() {
        let registry = Registry::new();
        let all = weighted(&registry, &[1, 2]);
        let sticky = Sticky::compile(&said(), "a", &all, &Secret::new(&[7; KEY_BYTES]));
        let foreign = Sticky::compile(&said(), "a", &all, &Secret::new(&[8; KEY_BYTES]));
        let elsewhere = Sticky::compile(&said(), "b", &all, &Secret::new(&[7; KEY_BYTES]));
        for value in [
            cookie(&foreign, 0),
            cookie(&elsewhere, 0),
            "tidegate=".into(),
            format!("{}x", cookie(&sticky, 0)),
            "tidegate=backend.internal:1".into(),
            cookie(&sticky, 0).replace("tidegate", "other"),
        ] {
            assert_eq!(sticky.affinity(&with_cookie(&value)), Affinity::None, "{value}");
        }
        assert!(!cookie(&sticky, 0).contains("backend") && cookie(&sticky, 0) != cookie(&sticky, 1));
    }

    #[test]
    fn attributes_follow_the_settings() {
        let registry = Registry::new();
        let all = weighted(&registry, &[1]);
        let secret = Secret::new(&[7; KEY_BYTES]);
        let text = |said: &model::Sticky, secure| {
            let set = Sticky::compile(said, "a", &all, &secret).set_cookie(0, secure).unwrap();
            set.to_str().unwrap().split_once("; ").unwrap().1.to_owned()
        };
        assert_eq!(text(&said(), false), "Path=/; HttpOnly; SameSite=Lax");
        let strict = model::Sticky {
            ttl: Some(std::time::Duration::from_secs(3600)),
            same_site: SameSite::None,
            ..said()
        };
        assert_eq!(text(&strict, true), "Path=/; Max-Age=3600; HttpOnly; SameSite=None; Secure");
        assert!(Sticky::compile(&said(), "a", &all, &secret).set_cookie(1, true).is_none());
    }

    #[test]
    fn our_cookies_are_taken_out_and_others_left_as_they_are() {
        let names: Vec<Box<[u8]>> = vec![b"tidegate".as_slice().into()];
        for (before, after) in [
            ("a=1; tidegate=x; b=2", Some("a=1; b=2")),
            ("tidegate=x", None),
            ("tidegate=x;tidegate=y; a=1", Some("a=1")),
            ("tidegates=x;  odd ;b", Some("tidegates=x;  odd ;b")),
        ] {
            let mut headers = with_cookie(before);
            strip(&mut headers, &names);
            assert_eq!(headers.get(header::COOKIE).map(|value| value.to_str().unwrap()), after, "{before}");
        }
    }
}
