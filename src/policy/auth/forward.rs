//! Another service says who a client is. It is asked by the data plane; here is decided what it is asked and what its
//! answer means.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Uri};
use sha2::{Digest, Sha256};

use super::remembered::Key;
use super::strip::Strip;
use super::{Shared, Wrong};
use crate::base::clock::Millis;
use crate::config::model::{self, CacheBy};

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
/// By these, services learn what they are asked about; some believe one of them more than another. None is the client's to say.
const TOLD: [HeaderName; 6] = [
    X_FORWARDED_METHOD,
    X_FORWARDED_URI,
    HeaderName::from_static("x-original-url"),
    HeaderName::from_static("x-original-uri"),
    HeaderName::from_static("x-original-method"),
    HeaderName::from_static("x-rewrite-url"),
];

/// Bytes of an answer's body that are passed on to the client: a page that asks who it is.
pub const BODY_BYTES_MAX: usize = 64 * 1024;

/// Answers that are used again, over all sites.
pub const ANSWERS_MAX: usize = 4_096;
/// Bytes of one of them: names and values that the backend gets. A larger one is not used again.
const ANSWER_BYTES_MAX: usize = 4 * 1024;

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
    pub target: Uri,
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
    cache: Option<Cache>,
    /// Cookies that the client gets: each name, and whether it is only the beginning of one.
    cookies: Box<[(Box<[u8]>, bool)]>,
}

/// When an answer is used again.
struct Cache {
    time: Duration,
    by: Box<[By]>,
    /// Names what an answer was given to: other settings, other answers.
    print: [u8; 32],
    shared: Arc<Shared>,
}

enum By {
    ClientIp,
    Method,
    Path,
    Field(HeaderName),
}

/// What is asked about, as the client sent it.
pub struct Facts<'a> {
    /// Its fields.
    pub headers: &'a HeaderMap,
    /// The host it asks for.
    pub host: &'a str,
    /// Who asks.
    pub client: IpAddr,
    /// The method.
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
}

/// Somebody was let in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Granted {
    /// Who it is, if that was said.
    pub user: Option<Arc<str>>,
    /// Fields for the backend.
    pub copied: Vec<(HeaderName, HeaderValue)>,
}

/// What an answer means.
pub enum Answer {
    /// Come in; with these cookies for the client.
    Pass(Granted, Vec<HeaderValue>),
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
    ///
    /// # Errors
    /// What is wrong with the address.
    pub fn compile(
        said: &model::ForwardAuth,
        site: &Arc<str>,
        shared: &Arc<Shared>,
    ) -> Result<Forward, Wrong> {
        let name = |text: &String| HeaderName::from_bytes(text.as_bytes()).ok();
        let target = Uri::try_from(&*said.url.target).map_err(|error| {
            let message = format!("`url`: {} cannot be asked for: {error}", said.url.text);
            (
                said.origin.clone(),
                message,
                "write an address like \"http://127.0.0.1:9091/verify\"".to_owned(),
            )
        })?;
        let cookie = |text: &String| match text.strip_suffix('*') {
            Some(beginning) => (beginning.as_bytes().into(), true),
            None => (text.as_bytes().into(), false),
        };
        Ok(Forward {
            target,
            authority: HeaderValue::from_str(&said.url.authority).unwrap_or(HeaderValue::from_static("")),
            timeout: said.timeout,
            user: said.user.as_ref().and_then(name),
            copy: said.copy.iter().filter_map(name).collect(),
            own: Strip::new(TOLD),
            in_flight: Arc::default(),
            in_flight_max: said.in_flight,
            cache: (!said.cache.is_zero()).then(|| Cache::compile(said, site, shared)),
            cookies: said.set_cookies.iter().map(cookie).collect(),
        })
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
        let cookies = headers.get_all(header::SET_COOKIE).iter().filter(|cookie| self.sets(cookie));
        let cookies = cookies.cloned().collect();
        Answer::Pass(Granted { user, copied: copied.collect() }, cookies)
    }

    /// Whether the client gets this cookie.
    fn sets(&self, cookie: &HeaderValue) -> bool {
        let named = cookie.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        let is = |(name, beginning): &(Box<[u8]>, bool)| {
            if *beginning { named.starts_with(name) } else { *named == **name }
        };
        self.cookies.iter().any(is)
    }

    /// What an answer about this is remembered by; `None`: none is.
    pub fn key(&self, facts: &Facts<'_>) -> Option<Key> {
        let cache = self.cache.as_ref()?;
        let address = facts.client.to_string();
        let mut parts: Vec<&[u8]> = vec![&cache.print, facts.host.as_bytes()];
        for by in &cache.by {
            match by {
                By::ClientIp => parts.push(address.as_bytes()),
                By::Method => parts.push(facts.method.as_str().as_bytes()),
                By::Path => parts.push(facts.target.as_bytes()),
                By::Field(name) => {
                    // No value has a line feed: it keeps the values of one field apart from those of the next.
                    parts.extend(facts.headers.get_all(name).iter().map(HeaderValue::as_bytes));
                    parts.push(b"\n");
                }
            }
        }
        Some(cache.shared.granted.key(&parts))
    }

    /// Who was let in lately under this key.
    pub fn find(&self, key: &Key, now: Millis) -> Option<Arc<Granted>> {
        self.cache.as_ref()?.shared.granted.find(key, now)
    }

    /// Remembers who was let in. An answer that sets cookies, or says that it is not to be stored, is for one client once.
    pub fn note(&self, key: Key, granted: &Granted, headers: &HeaderMap, now: Millis) {
        let Some(cache) = &self.cache else { return };
        let no_store = |value: &HeaderValue| {
            let words = value.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            words.into_iter().any(|word| word.eq_ignore_ascii_case(b"no-store"))
        };
        let once = headers.get_all(header::CACHE_CONTROL).iter().any(no_store)
            || headers.get_all(header::SET_COOKIE).iter().any(|cookie| self.sets(cookie));
        let size = |(name, value): &(HeaderName, HeaderValue)| name.as_str().len() + value.len();
        if !once && granted.copied.iter().map(size).sum::<usize>() <= ANSWER_BYTES_MAX {
            cache.shared.granted.note(key, &Arc::new(granted.clone()), now, cache.time);
        }
    }
}

impl Cache {
    fn compile(said: &model::ForwardAuth, site: &Arc<str>, shared: &Arc<Shared>) -> Cache {
        let by = |by: &CacheBy| match by {
            CacheBy::ClientIp => Some(By::ClientIp),
            CacheBy::Method => Some(By::Method),
            CacheBy::Path => Some(By::Path),
            CacheBy::Field(name) => HeaderName::from_bytes(name.as_bytes()).ok().map(By::Field),
        };
        let model::ForwardAuth { url, user, copy, cache_by, .. } = said;
        Cache {
            time: said.cache,
            by: cache_by.iter().filter_map(by).collect(),
            print: Sha256::digest(format!("{site:?} {:?} {user:?} {copy:?} {cache_by:?}", url.text)).into(),
            shared: shared.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{ForwardUrl, Located, Origin};

    fn forward(user: Option<&str>) -> Forward {
        cached(user, Duration::ZERO, CacheBy::usual())
    }

    fn cached(user: Option<&str>, cache: Duration, cache_by: Vec<CacheBy>) -> Forward {
        let url = crate::config::section::auth::forward_url("http://127.0.0.1:9091/verify?a=1").unwrap();
        let _: &ForwardUrl = &url;
        let said = model::ForwardAuth {
            url,
            origin: Origin::Default,
            ca_file: None::<Located<std::path::PathBuf>>,
            user: user.map(str::to_owned),
            copy: vec!["remote-groups".into()],
            timeout: Duration::from_secs(1),
            in_flight: 2,
            cache,
            cache_by,
            set_cookies: vec!["sid".into(), "csrf_*".into()],
        };
        let shared = Arc::new(Shared::new().unwrap());
        Forward::compile(&said, &"shop.test".into(), &shared).unwrap_or_else(|_| panic!("it compiles"))
    }

    #[test]
    fn an_answer_is_used_again_only_where_everything_it_depends_on_is_the_same() {
        let forward = cached(None, Duration::from_secs(10), CacheBy::usual());
        let mut headers = HeaderMap::new();
        headers.insert("cookie", HeaderValue::from_static("sid=ann"));
        let (none, mut other) = (HeaderMap::new(), HeaderMap::new());
        other.insert("authorization", HeaderValue::from_static("sid=ann"));
        let one: IpAddr = [192, 0, 2, 1].into();
        let facts = |headers, host, client: IpAddr, method, target| {
            forward.key(&Facts { headers, host, client, method, target }).unwrap()
        };
        let key = facts(&headers, "shop.test", one, &Method::GET, "/a?b");
        let granted = Granted {
            user: Some("ann".into()),
            copied: vec![(HeaderName::from_static("remote-groups"), HeaderValue::from_static("a"))],
        };
        forward.note(key, &granted, &HeaderMap::new(), Millis(0));
        assert_eq!(forward.find(&key, Millis(9_999)).as_deref(), Some(&granted));
        assert_eq!(forward.find(&key, Millis(10_000)), None);
        for key in [
            facts(&none, "shop.test", one, &Method::GET, "/a?b"),
            facts(&other, "shop.test", one, &Method::GET, "/a?b"),
            facts(&headers, "other.test", one, &Method::GET, "/a?b"),
            facts(&headers, "shop.test", [192, 0, 2, 2].into(), &Method::GET, "/a?b"),
            facts(&headers, "shop.test", one, &Method::POST, "/a?b"),
            facts(&headers, "shop.test", one, &Method::GET, "/a"),
        ] {
            assert_eq!(forward.find(&key, Millis(1)), None);
        }
        // What was for one client once, and what is too large.
        let key = facts(&headers, "shop.test", one, &Method::GET, "/once");
        for (name, value) in [("cache-control", "max-age=0, No-Store"), ("set-cookie", "sid=new; Path=/")] {
            let mut once = HeaderMap::new();
            once.insert(name, HeaderValue::from_static(value));
            forward.note(key, &granted, &once, Millis(0));
        }
        let large = HeaderValue::from_str(&"x".repeat(ANSWER_BYTES_MAX)).unwrap();
        let large = Granted { copied: vec![(HeaderName::from_static("x"), large)], user: None };
        forward.note(key, &large, &HeaderMap::new(), Millis(0));
        assert_eq!(forward.find(&key, Millis(1)), None);
        let never = cached(None, Duration::ZERO, CacheBy::usual());
        let (method, host, target) = (&Method::GET, "shop.test", "/");
        assert!(never.key(&Facts { headers: &headers, host, client: one, method, target }).is_none());
    }

    #[test]
    fn only_cookies_that_are_named_reach_the_client() {
        let mut headers = HeaderMap::new();
        for cookie in ["sid=1; HttpOnly", "SID=2", "csrf_a=3", "csrf_=4", "csrf=5", "sid2=6", "sid", "=7"] {
            headers.append("set-cookie", HeaderValue::from_static(cookie));
        }
        let Answer::Pass(_, cookies) = forward(None).read(StatusCode::OK, &headers) else {
            panic!("refused")
        };
        assert_eq!(cookies, ["sid=1; HttpOnly", "csrf_a=3", "csrf_=4", "sid"]);
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
        let Answer::Pass(granted, _) = read(204, &headers) else { panic!("refused") };
        assert_eq!((granted.user.as_deref(), granted.copied.len()), (Some("ann"), 2));
        assert!(matches!(read(200, &HeaderMap::new()), Answer::Nonsense), "a user without a name");
        assert!(matches!(
            forward(None).read(StatusCode::OK, &HeaderMap::new()),
            Answer::Pass(Granted { user: None, .. }, _)
        ));
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
