//! The cases of a pack: requests that a rule must find something in, or must leave alone.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::compile::{Set, compile};
use super::field::{Body, Facts, Kind};
use super::pack::{Case, Pack, Severity, quoted};
use super::scan::{Look, Scratch};

/// A request of a case.
pub struct Request {
    method: String,
    target: http::Uri,
    headers: HeaderMap,
    body: Option<Vec<u8>>,
}

impl Request {
    /// Makes the request of a case.
    ///
    /// # Errors
    /// A sentence where it could not be sent like that.
    pub fn of(case: &Case) -> Result<Request, String> {
        let bad = |what: &str, text: &str| format!("the {what} `{}` cannot be sent", quoted(text));
        let target = case.target.parse::<http::Uri>().ok().filter(|_| case.target.starts_with('/'));
        let target = target.ok_or_else(|| bad("target", &case.target))?;
        let mut headers = HeaderMap::new();
        for (name, value) in &case.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad("field name", name))?;
            let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| bad("field value", value))?;
            headers.append(name, value);
        }
        if case.body.is_some() && !headers.contains_key(header::CONTENT_TYPE) {
            headers
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        let usual = if case.body.is_some() { "POST" } else { "GET" };
        let method = case.method.clone().unwrap_or_else(|| usual.to_owned());
        Ok(Request { method, target, headers, body: case.body.clone().map(String::into_bytes) })
    }

    /// What a proxy finds in it that looks at so many bytes of a body.
    pub fn look(&self, set: &Set, prefix: usize, off: &[u64], scratch: &mut Scratch) -> Look {
        let kind = self.body.as_ref().map(|_| Kind::of(&self.headers));
        let mut facts = Facts {
            method: &self.method,
            path: self.target.path(),
            seen: None,
            query: self.target.query(),
            headers: &self.headers,
            body: kind.map_or(Body::None, Body::Ahead),
        };
        let found = set.look(&facts, off, scratch);
        let (Look::WantsBody, Some(kind), Some(body)) = (found, kind, &self.body) else { return found };
        facts.body = Body::Here(kind, body.get(..prefix).unwrap_or(body));
        set.look(&facts, off, scratch)
    }
}

/// A case that did not go as its pack says.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The rule.
    pub rule: String,
    /// Which of its cases, from 1.
    pub case: usize,
    /// What happened.
    pub why: String,
}

/// Runs all cases of a pack against the pack alone; gives how many there were and those that failed.
///
/// # Errors
/// A sentence where the pack cannot be compiled.
pub fn run(pack: &Pack, prefix: usize) -> Result<(usize, Vec<Failure>), String> {
    let set = compile([pack], Severity::Low)?;
    let (mut count, mut failures) = (0, Vec::new());
    let mut scratch = Scratch::default();
    for (at, rule) in pack.rules.iter().enumerate() {
        // The rule alone: another one that finds the same request first proves nothing about it.
        let mut off = vec![u64::MAX; pack.rules.len().div_ceil(64)];
        if let Some(word) = off.get_mut(at / 64) {
            *word &= !(1 << (at % 64));
        }
        for (number, case) in rule.cases.iter().enumerate() {
            count += 1;
            let mut fail =
                |why: String| failures.push(Failure { rule: rule.id.clone(), case: number + 1, why });
            match Request::of(case).map(|request| request.look(&set, prefix, &off, &mut scratch)) {
                Err(why) => fail(why),
                Ok(Look::Overworked) => fail("it takes more work than a request may cost".into()),
                Ok(Look::Match(_)) if !case.hit => fail("it is matched, and must not be".into()),
                Ok(Look::Clean | Look::WantsBody) if case.hit => {
                    fail("it is not matched, and must be".into())
                }
                Ok(_) => {}
            }
        }
    }
    Ok((count, failures))
}
