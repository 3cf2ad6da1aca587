//! Which pages of other origins may use a site (CORS, as the Fetch standard has it). Preflight questions are answered here,
//! before anybody is asked who they are: browsers send no credentials with them.

use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};

use crate::config::model::{self, CorsOrigin};

/// Bytes of the names of fields that a preflight question asks for, where they are said back.
const ASKED_BYTES_MAX: usize = 1_024;

/// Compiled.
#[derive(Debug, Clone)]
pub struct Cors {
    any: bool,
    origins: Box<[CorsOrigin]>,
    credentials: bool,
    methods: HeaderValue,
    /// `None`: those asked for.
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    max_age: HeaderValue,
}

impl Cors {
    /// Compiles it.
    pub fn compile(said: &model::Cors) -> Cors {
        let list = |names: &[String]| HeaderValue::from_str(&names.join(", ")).ok();
        let none = HeaderValue::from_static("");
        Cors {
            any: said.origins.contains(&CorsOrigin::Any),
            origins: said.origins.clone().into(),
            credentials: said.credentials,
            methods: list(&said.methods).unwrap_or(none),
            headers: if said.headers.is_empty() { None } else { list(&said.headers) },
            expose: if said.expose.is_empty() { None } else { list(&said.expose) },
            max_age: HeaderValue::from(said.max_age.as_secs()),
        }
    }

    /// What an answer says to a page of this origin; nothing where it may not.
    pub fn allows(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut origins = headers.get_all(header::ORIGIN).iter();
        let origin = origins.next().filter(|_| origins.next().is_none())?;
        if self.any {
            return Some(HeaderValue::from_static("*"));
        }
        let text = origin.to_str().ok()?;
        self.origins.iter().any(|known| takes(known, text)).then(|| origin.clone())
    }

    /// Whether a request is a preflight question.
    pub fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
        *method == Method::OPTIONS
            && headers.contains_key(header::ORIGIN)
            && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
    }

    /// The answer to a preflight question, besides what [`Cors::dress`] adds to every answer.
    pub fn preflight(&self, asked: &HeaderMap) -> (StatusCode, HeaderMap) {
        let mut headers = HeaderMap::new();
        if self.allows(asked).is_some() {
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone());
            let wanted = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
            let wanted = wanted.filter(|value| value.len() <= ASKED_BYTES_MAX).cloned();
            if let Some(value) = self.headers.clone().or(wanted) {
                headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, value);
            }
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone());
        }
        if self.headers.is_none() {
            headers.append(header::VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
        }
        (StatusCode::NO_CONTENT, headers)
    }

    /// Makes an answer say who may read it. What the backend said about that goes: there is one truth.
    pub fn dress(&self, headers: &mut HeaderMap, allowed: Option<&HeaderValue>) {
        for name in [
            header::ACCESS_CONTROL_ALLOW_ORIGIN,
            header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            headers.remove(name);
        }
        if let Some(allowed) = allowed {
            let _ = headers.try_insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed.clone());
            if self.credentials {
                let yes = HeaderValue::from_static("true");
                let _ = headers.try_insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
            }
            if let Some(expose) = &self.expose {
                let _ = headers.try_insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
            }
        }
        // A cache must not give one origin's answer to another, nor to one that may not.
        if !self.any && !varies(headers) {
            let _ = headers.try_append(header::VARY, HeaderValue::from_static("Origin"));
        }
    }
}

fn varies(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::VARY).iter();
    let mut names = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    names.any(|name| matches!(name.trim_ascii(), b"*") || name.trim_ascii().eq_ignore_ascii_case(b"origin"))
}

/// Whether an origin, as a browser writes it, is one that was said.
fn takes(known: &CorsOrigin, origin: &str) -> bool {
    match known {
        CorsOrigin::Any => true,
        CorsOrigin::Exact(text) => **text == *origin,
        CorsOrigin::Below { scheme, rest } => {
            let label = origin.strip_prefix(&**scheme).and_then(|text| text.strip_suffix(&**rest));
            label.is_some_and(|label| {
                let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
                !label.is_empty() && label.bytes().all(legal)
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn said(origins: Vec<CorsOrigin>) -> model::Cors {
        model::Cors {
            origins,
            credentials: false,
            methods: vec!["GET".into(), "POST".into()],
            headers: Vec::new(),
            expose: vec!["x-total".into()],
            max_age: Duration::from_secs(600),
        }
    }

    fn asked(origin: &'static str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, HeaderValue::from_static(origin));
        headers
    }

    #[test]
    fn only_the_origins_that_are_said_may_read_answers() {
        let below = CorsOrigin::Below { scheme: "https://".into(), rest: ".shop.test".into() };
        let cors = Cors::compile(&said(vec![CorsOrigin::Exact("https://app.test".into()), below]));
        for good in ["https://app.test", "https://a.shop.test", "https://a-1.shop.test"] {
            assert_eq!(cors.allows(&asked(good)).unwrap(), good);
        }
        for bad in [
            "https://app.test.evil",
            "http://app.test",
            "https://app.test:8443",
            "null",
            "https://shop.test",
            "https://a.b.shop.test",
            "https://evil.test/.shop.test",
            "https://evilshop.test",
            "https://.shop.test",
            "*",
        ] {
            assert!(cors.allows(&asked(bad)).is_none(), "{bad}");
        }
        let mut twice = asked("https://app.test");
        twice.append(header::ORIGIN, HeaderValue::from_static("https://evil.test"));
        assert!(cors.allows(&twice).is_none() && cors.allows(&HeaderMap::new()).is_none());
    }

    #[test]
    fn answers_carry_our_word_alone_and_caches_are_told() {
        let said =
            model::Cors { credentials: true, ..said(vec![CorsOrigin::Exact("https://app.test".into())]) };
        let cors = Cors::compile(&said);
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        let mut refused = headers.clone();
        cors.dress(&mut headers, cors.allows(&asked("https://app.test")).as_ref());
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://app.test");
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_CREDENTIALS], "true");
        assert_eq!(headers[header::ACCESS_CONTROL_EXPOSE_HEADERS], "x-total");
        assert_eq!(headers.get_all(header::VARY).iter().count(), 2);
        cors.dress(&mut headers, None);
        assert_eq!(headers.get_all(header::VARY).iter().count(), 2, "said once");
        cors.dress(&mut refused, None);
        assert!(!refused.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) && varies(&refused));
        let any = Cors::compile(&model::Cors { credentials: false, ..self::said(vec![CorsOrigin::Any]) });
        let mut headers = HeaderMap::new();
        any.dress(&mut headers, any.allows(&asked("https://x.test")).as_ref());
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(!headers.contains_key(header::VARY));
    }

    #[test]
    fn preflight_questions_are_answered_whole() {
        let cors = Cors::compile(&said(vec![CorsOrigin::Exact("https://app.test".into())]));
        let mut question = asked("https://app.test");
        assert!(!Cors::is_preflight(&Method::OPTIONS, &question));
        question.insert(header::ACCESS_CONTROL_REQUEST_METHOD, HeaderValue::from_static("PUT"));
        question.insert(header::ACCESS_CONTROL_REQUEST_HEADERS, HeaderValue::from_static("x-a"));
        assert!(
            Cors::is_preflight(&Method::OPTIONS, &question) && !Cors::is_preflight(&Method::GET, &question)
        );
        let (status, headers) = cors.preflight(&question);
        assert_eq!(status, 204);
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_METHODS], "GET, POST");
        assert_eq!(headers[header::ACCESS_CONTROL_ALLOW_HEADERS], "x-a");
        assert_eq!(headers[header::ACCESS_CONTROL_MAX_AGE], "600");
        let mut stranger = question.clone();
        stranger.insert(header::ORIGIN, HeaderValue::from_static("https://evil.test"));
        assert!(!cors.preflight(&stranger).1.contains_key(header::ACCESS_CONTROL_ALLOW_METHODS));
    }
}
