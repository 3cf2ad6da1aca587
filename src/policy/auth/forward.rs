//! Another service says who a client is. It is asked by the data plane; here is decided what it is asked and what its
//! answer means.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};

use super::strip::Strip;
use crate::config::model;

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");

/// Bytes of an answer's body that are passed on to the client: a page that asks who it is.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Fields of a request that are about its body, or that would make of the question another one: the body stays here, and
/// an answer must not be a part of one or "not modified".
const NOT_ASKED: &[HeaderName] = &[
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_RANGE,
    header::TRANSFER_ENCODING,
    header::TRAILER,
    header::EXPECT,
    header::RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::IF_RANGE,
    header::MAX_FORWARDS,
];

/// The service that is asked, compiled.
pub struct Forward {
    /// Path and query that are asked for.
    pub target: Arc<str>,
    /// `Host` of the question.
    pub authority: HeaderValue,
    /// From connecting to the end of the answer.
    pub timeout: Duration,
    user: Option<HeaderName>,
    /// Fields of its answer that the backend gets.
    pub copy: Box<[HeaderName]>,
    /// What only we may tell it.
    own: Strip,
    in_flight: Arc<AtomicU32>,
    in_flight_max: u32,
}

/// What an answer means.
pub enum Answer {
    /// Come in: this user, if it said so, and these fields for the backend.
    Pass(Option<Arc<str>>, Vec<(HeaderName, HeaderValue)>),
    /// The answer is the client's.
    Client,
    /// It says nothing that means anything.
    Nonsense,
}

/// A question that counts among those in flight until it is dropped.
pub struct Place(Arc<AtomicU32>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Forward {
    /// Compiles it.
    pub fn compile(said: &model::ForwardAuth) -> Forward {
        let name = |text: &String| HeaderName::from_bytes(text.as_bytes()).ok();
        Forward {
            target: said.url.target.clone(),
            authority: HeaderValue::from_str(&said.url.authority).unwrap_or(HeaderValue::from_static("")),
            timeout: said.timeout,
            user: said.user.as_ref().and_then(name),
            copy: said.copy.iter().filter_map(name).collect(),
            own: Strip::new([X_FORWARDED_METHOD, X_FORWARDED_URI]),
            in_flight: Arc::default(),
            in_flight_max: said.in_flight,
        }
    }

    /// Fields that only the service may write.
    pub fn own_fields(&self) -> impl Iterator<Item = &HeaderName> {
        self.copy.iter().chain(&self.user)
    }

    /// Leave for one more question.
    pub fn place(&self) -> Option<Place> {
        let before = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let place = Place(self.in_flight.clone());
        (before < self.in_flight_max).then_some(place)
    }

    /// Makes the fields of a request those of the question about it.
    pub fn question(&self, headers: &mut HeaderMap, method: &Method, path_and_query: &str) {
        self.own.apply(headers);
        for name in NOT_ASKED {
            headers.remove(name);
        }
        headers.insert(header::HOST, self.authority.clone());
        let text = |text: &str| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(""));
        headers.insert(X_FORWARDED_METHOD, text(method.as_str()));
        headers.insert(X_FORWARDED_URI, text(path_and_query));
    }

    /// What an answer means.
    pub fn read(&self, status: StatusCode, headers: &HeaderMap) -> Answer {
        match status.as_u16() {
            200..=299 => {}
            401 | 403 | 300..=303 | 307 | 308 => return Answer::Client,
            _ => return Answer::Nonsense,
        }
        let user = match &self.user {
            None => None,
            // Who is said to be somebody without a name is nobody that can be let in.
            Some(name) => {
                let text = headers.get(name).and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
                match text.and_then(super::user) {
                    Some(user) => Some(user),
                    None => return Answer::Nonsense,
                }
            }
        };
        let copied = self
            .copy
            .iter()
            .flat_map(|name| headers.get_all(name).iter().map(move |value| (name.clone(), value.clone())));
        Answer::Pass(user, copied.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{ForwardUrl, Located, Origin};

    fn forward(user: Option<&str>) -> Forward {
        let url = crate::config::section::auth::forward_url("http://127.0.0.1:9091/verify?a=1").unwrap();
        let _: &ForwardUrl = &url;
        Forward::compile(&model::ForwardAuth {
            url,
            origin: Origin::Default,
            ca_file: None::<Located<std::path::PathBuf>>,
            user: user.map(str::to_owned),
            copy: vec!["remote-groups".into()],
            timeout: Duration::from_secs(1),
            in_flight: 2,
        })
    }

    #[test]
    fn the_question_says_what_is_asked_for_and_nothing_of_a_body() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "shop.test"),
            ("cookie", "a=1"),
            ("content-length", "5"),
            ("content-type", "text/plain"),
            ("if-none-match", "\"x\""),
            ("range", "bytes=0-1"),
            ("x_forwarded_uri", "/public"),
            ("x-forwarded-method", "GET"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        forward(None).question(&mut headers, &Method::POST, "/admin?x=1");
        let mut told: Vec<String> =
            headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        told.sort_unstable();
        let expected = [
            "cookie: a=1",
            "host: 127.0.0.1:9091",
            "x-forwarded-method: POST",
            "x-forwarded-uri: /admin?x=1",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn only_2xx_lets_in_and_only_refusals_are_passed_on() {
        let mut headers = HeaderMap::new();
        headers.insert("remote-user", HeaderValue::from_static("ann"));
        headers.append("remote-groups", HeaderValue::from_static("a"));
        headers.append("remote-groups", HeaderValue::from_static("b"));
        let asked = forward(Some("remote-user"));
        let read =
            |status: u16, headers: &HeaderMap| asked.read(StatusCode::from_u16(status).unwrap(), headers);
        let Answer::Pass(user, copied) = read(204, &headers) else { panic!("refused") };
        assert_eq!((user.as_deref(), copied.len()), (Some("ann"), 2));
        assert!(matches!(read(200, &HeaderMap::new()), Answer::Nonsense), "a user without a name");
        assert!(matches!(forward(None).read(StatusCode::OK, &HeaderMap::new()), Answer::Pass(None, _)));
        for status in [401, 403, 302, 303, 307] {
            assert!(matches!(read(status, &headers), Answer::Client), "{status}");
        }
        for status in [100, 304, 400, 404, 429, 500, 503] {
            assert!(matches!(read(status, &headers), Answer::Nonsense), "{status}");
        }
    }

    #[test]
    fn questions_in_flight_are_bounded() {
        let asked = forward(None);
        let (first, second) = (asked.place(), asked.place());
        assert!(first.is_some() && second.is_some() && asked.place().is_none());
        drop(first);
        assert!(asked.place().is_some() && second.is_some());
    }
}
