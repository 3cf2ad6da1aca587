//! Signed tokens (RFC 7519) in `Authorization: Bearer` (RFC 6750) or in a cookie.
//!
//! Algorithms are pinned twice: the configuration lists those that are taken, and a key takes only those of its own kind
//! and curve. What has a shared secret (HMAC) and `none` are no words of the configuration, so no token can choose them.
//! Signatures and claims are checked by a library; here is decided what is asked of it.

pub mod keys;
pub mod source;

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Header, Validation};
use serde_json::{Map, Value};

use super::{Files, Shared, Verdict, Wrong};
use crate::base::clock::Millis;
use crate::config::model::{self, JwtKeys};
use keys::Keys;
use source::Source;

/// Bytes of a token that is looked at.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How long a good token is remembered at most: a clock that is put right, or a new list of keys, counts soon.
const REMEMBER_MAX: Duration = Duration::from_secs(300);

/// Who may come in by a token, compiled.
pub struct Jwt {
    keys: Arc<Source>,
    /// What a key's algorithm is filled into.
    validation: Validation,
    algorithms: Vec<jsonwebtoken::Algorithm>,
    claim: String,
    require: Vec<(String, String)>,
    cookie: Option<String>,
    leeway: Duration,
    /// What of the settings a finding depends on.
    print: [u8; 32],
    shared: Arc<Shared>,
    /// What a client is asked with that showed nothing.
    pub challenge: HeaderValue,
    /// What one is told whose token is not good (RFC 6750 section 3.1).
    pub invalid: HeaderValue,
}

/// What a token says.
pub enum Read {
    /// The decision.
    Verdict(Verdict),
    /// There are no keys yet.
    NoKeys,
    /// It names a key that is not known: perhaps there are new ones.
    UnknownKey,
}

impl Jwt {
    /// Compiles it.
    ///
    /// # Errors
    /// What is wrong with the keys.
    pub fn compile(said: &model::Jwt, files: &Files, shared: &Arc<Shared>) -> Result<Jwt, Wrong> {
        let keys = match &said.keys {
            JwtKeys::Url(from) => shared.sources.obtain(from),
            JwtKeys::Pem(file) | JwtKeys::Set(file) => {
                let bytes = files.keys.as_deref().unwrap_or_default();
                let read = match &said.keys {
                    JwtKeys::Pem(_) => Keys::pem(bytes),
                    _ => Keys::set(bytes),
                };
                let wrong = |why| {
                    let message = format!("the keys in {} cannot be used: {why}", file.value.display());
                    let help = "a public key in PEM (RSA of 2048 bits or more, P-256, P-384, Ed25519), or a JWK set (RFC 7517)";
                    (file.origin.clone(), message, help.to_owned())
                };
                Arc::new(Source::fixed(read.map_err(wrong)?))
            }
        };
        let algorithms: Vec<_> = said.algorithms.iter().map(|algorithm| keys::library(*algorithm)).collect();
        let mut validation = Validation::new(jsonwebtoken::Algorithm::RS256);
        validation.leeway = said.leeway.as_secs();
        validation.validate_nbf = true;
        let mut required = vec!["exp"];
        if !said.issuer.is_empty() {
            validation.set_issuer(&said.issuer);
            required.push("iss");
        }
        match said.audience.as_slice() {
            [] => validation.validate_aud = false,
            audience => {
                validation.set_audience(audience);
                required.push("aud");
            }
        }
        validation.set_required_spec_claims(&required);
        let field = |text: String| HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Bearer"));
        Ok(Jwt {
            keys,
            validation,
            algorithms,
            claim: said.user.clone(),
            require: said.require.clone(),
            cookie: said.cookie.clone(),
            leeway: said.leeway,
            print: said.print(),
            shared: shared.clone(),
            challenge: field(format!("Bearer realm=\"{}\"", said.realm)),
            invalid: field(format!("Bearer realm=\"{}\", error=\"invalid_token\"", said.realm)),
        })
    }

    /// Where its keys come from.
    pub fn source(&self) -> &Arc<Source> {
        &self.keys
    }

    /// Who the request comes from. `wall` in seconds since 1970.
    pub fn check(&self, headers: &HeaderMap, now: Millis, wall: u64) -> Read {
        let Some(token) = self.token(headers) else { return Read::Verdict(Verdict::Missing) };
        if token.len() > TOKEN_BYTES_MAX {
            return Read::Verdict(Verdict::Wrong);
        }
        let Some(keys) = self.keys.current() else { return Read::NoKeys };
        let key = self.shared.remembered.key(&[b"jwt", &self.print, &keys.print, token]);
        if let Some(user) = self.shared.remembered.find(&key, now) {
            return Read::Verdict(Verdict::User(user));
        }
        match self.verify(token, &keys) {
            Ok((user, expires)) => {
                let left = Duration::from_secs(expires.saturating_sub(wall)) + self.leeway;
                self.shared.remembered.note(key, &user, now, left.min(REMEMBER_MAX));
                Read::Verdict(Verdict::User(user))
            }
            Err(Bad::UnknownKey) => Read::UnknownKey,
            Err(Bad::Token) => Read::Verdict(Verdict::Wrong),
            Err(Bad::NotEnough) => Read::Verdict(Verdict::Denied),
        }
    }

    /// The token of `Authorization`, else of the cookie.
    fn token<'h>(&self, headers: &'h HeaderMap) -> Option<&'h [u8]> {
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes()));
        bearer.or_else(|| cookie(headers, self.cookie.as_deref()?))
    }

    /// The user and when the token is over, in seconds since 1970.
    fn verify(&self, token: &[u8], keys: &Keys) -> Result<(Arc<str>, u64), Bad> {
        let header: Header = jsonwebtoken::decode_header(token).map_err(|_| Bad::Token)?;
        if !self.algorithms.contains(&header.alg) {
            return Err(Bad::Token);
        }
        // RFC 7515 section 4.1.11: what must be understood and is not makes the token invalid.
        if header.crit.is_some() {
            return Err(Bad::Token);
        }
        let mut validation = self.validation.clone();
        validation.algorithms = vec![header.alg];
        let mut candidates = keys.fitting(header.kid.as_deref(), header.alg).peekable();
        if candidates.peek().is_none() {
            return Err(Bad::UnknownKey);
        }
        for key in candidates {
            match jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation) {
                Ok(found) => return self.settle(&found.claims),
                // Without a name for its key, any of them may have signed it.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {}
                Err(_) => return Err(Bad::Token),
            }
        }
        Err(Bad::Token)
    }

    fn settle(&self, claims: &Map<String, Value>) -> Result<(Arc<str>, u64), Bad> {
        let met =
            |(name, wanted): &(String, String)| claims.get(name).is_some_and(|claim| says(claim, wanted));
        if !self.require.iter().all(met) {
            return Err(Bad::NotEnough);
        }
        let user = match claims.get(&self.claim) {
            Some(Value::String(text)) => super::user(text),
            Some(Value::Number(number)) => super::user(&number.to_string()),
            _ => None,
        };
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or(0.0);
        // From a token that was good at this moment: a number of this size.
        Ok((user.ok_or(Bad::NotEnough)?, expires as u64))
    }
}

enum Bad {
    Token,
    UnknownKey,
    NotEnough,
}

/// Whether a claim says a text: it is it, it is a list that has it, or (as `scope` does) a text of words that has it.
fn says(claim: &Value, wanted: &str) -> bool {
    match claim {
        Value::String(text) => text == wanted || text.split(' ').any(|word| word == wanted),
        Value::Array(list) => list.iter().any(|entry| entry.as_str() == Some(wanted)),
        Value::Bool(flag) => wanted == if *flag { "true" } else { "false" },
        Value::Number(number) => number.to_string() == wanted,
        Value::Null | Value::Object(_) => false,
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    let token = rest.strip_prefix(b" ")?.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer") && !token.is_empty()).then_some(token)
}

/// The cookie of a name; none where two of them differ, because the backend might read the other one.
fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h [u8]> {
    let pairs = headers.get_all(header::COOKIE).iter();
    let pairs = pairs.flat_map(|line| line.as_bytes().split(|&byte| byte == b';'));
    let mut values = pairs.filter_map(|pair| {
        let value = pair.trim_ascii().strip_prefix(name.as_bytes())?.strip_prefix(b"=")?;
        (!value.is_empty()).then_some(value)
    });
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}

#[cfg(test)]
mod tests;
