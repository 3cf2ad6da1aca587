//! What a route asks of a request besides its path: method, header fields, query parameters.
//!
//! All conditions of a route must hold. A field or parameter that stands several times fulfils a condition when any
//! one of its values does.

use std::borrow::Cow;

use http::Method;
use http::header::{HeaderMap, HeaderName};
use regex::bytes::Regex;

use super::{Miss, RequestHead};
use crate::base::escape;
use crate::config::model::{FieldCondition, FieldTest, Route};

/// The compiled conditions of one route.
#[derive(Debug, Clone)]
pub(super) struct Conditions {
    methods: Box<[Method]>,
    headers: Box<[(HeaderName, Test)]>,
    query: Box<[(Box<str>, Test)]>,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Absent,
    Equals(Box<[u8]>),
    Regex(Regex),
}

/// How many conditions a route has; the method list counts as one.
pub(super) fn count(route: &Route) -> usize {
    usize::from(!route.methods.is_empty()) + route.headers.len() + route.query.len()
}

impl Conditions {
    /// Compiles a route's conditions.
    ///
    /// # Errors
    /// A sentence naming the method, field or regex that is not legal.
    pub(super) fn compile(route: &Route) -> Result<Conditions, String> {
        let method = |name: &String| {
            Method::from_bytes(name.as_bytes())
                .map_err(|_| format!("`{name}` is not a method: write it like \"GET\""))
        };
        let header = |condition: &FieldCondition| {
            let name = HeaderName::from_bytes(condition.name.as_bytes())
                .map_err(|_| format!("`{}` is not the name of a header field", condition.name))?;
            Ok::<_, String>((name, Test::compile(condition)?))
        };
        let parameter = |condition: &FieldCondition| {
            Ok::<_, String>((condition.name.as_str().into(), Test::compile(condition)?))
        };
        Ok(Conditions {
            methods: route.methods.iter().map(method).collect::<Result<_, _>>()?,
            headers: route.headers.iter().map(header).collect::<Result<_, _>>()?,
            query: route.query.iter().map(parameter).collect::<Result<_, _>>()?,
        })
    }

    /// The first condition that fails; `None` when all hold.
    pub(super) fn miss(&self, head: &RequestHead<'_>) -> Option<Miss> {
        if !self.takes_method(head.method) {
            return Some(Miss::Method);
        }
        if let Some((name, _)) = self.headers.iter().find(|(name, test)| !test.field(name, head.headers)) {
            return Some(Miss::Header(name.clone()));
        }
        let query = head.query.unwrap_or("");
        let (name, _) = self.query.iter().find(|(name, test)| !test.parameter(name, query))?;
        Some(Miss::Query(name.clone()))
    }

    /// Whether all conditions hold. As [`Conditions::miss`], without building the reason.
    pub(super) fn hold(&self, head: &RequestHead<'_>) -> bool {
        self.takes_method(head.method)
            && self.headers.iter().all(|(name, test)| test.field(name, head.headers))
            && (self.query.is_empty() || {
                let query = head.query.unwrap_or("");
                self.query.iter().all(|(name, test)| test.parameter(name, query))
            })
    }

    fn takes_method(&self, method: &Method) -> bool {
        // RFC 9110 section 9.3.2: HEAD is GET without the content; who serves one serves the other.
        self.methods.is_empty()
            || self.methods.contains(method)
            || (*method == Method::HEAD && self.methods.contains(&Method::GET))
    }
}

impl Test {
    fn compile(condition: &FieldCondition) -> Result<Test, String> {
        Ok(match &condition.test {
            FieldTest::Present => Test::Present,
            FieldTest::Absent => Test::Absent,
            FieldTest::Equals(value) => Test::Equals(value.as_bytes().into()),
            FieldTest::Regex(pattern) => Test::Regex(Regex::new(pattern).map_err(|error| {
                format!(
                    "the condition `{} = \"~{pattern}\"` is not a regular expression: {error}",
                    condition.name
                )
            })?),
        })
    }

    fn field(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        let mut values = headers.get_all(name).iter().map(http::HeaderValue::as_bytes);
        match self {
            Test::Present => values.next().is_some(),
            Test::Absent => values.next().is_none(),
            Test::Equals(expected) => values.any(|value| value == &**expected),
            Test::Regex(regex) => values.any(|value| regex.is_match(value)),
        }
    }

    fn parameter(&self, name: &str, query: &str) -> bool {
        let mut values = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .filter(|(key, _)| decoded(key).eq(name.bytes()))
            .map(|(_, value)| value);
        match self {
            Test::Present => values.next().is_some(),
            Test::Absent => values.next().is_none(),
            Test::Equals(expected) => values.any(|value| decoded(value).eq(expected.iter().copied())),
            Test::Regex(regex) => values.any(|value| regex.is_match(&contiguous(value))),
        }
    }
}

/// The bytes of a query part with `%xx` and `+` undone, one at a time. A `%` that no two hex digits follow is itself.
fn decoded(raw: &str) -> impl Iterator<Item = u8> + '_ {
    let mut rest = raw.as_bytes();
    std::iter::from_fn(move || {
        let (&first, tail) = rest.split_first()?;
        rest = tail;
        Some(match (first, tail) {
            (b'+', _) => b' ',
            (b'%', [high, low, after @ ..]) => match (escape::hex(*high), escape::hex(*low)) {
                (Some(high), Some(low)) => {
                    rest = after;
                    high << 4 | low
                }
                _ => b'%',
            },
            _ => first,
        })
    })
}

/// As [`decoded`], in one piece for a regex; borrowed where nothing is encoded.
fn contiguous(raw: &str) -> Cow<'_, [u8]> {
    if raw.bytes().any(|byte| byte == b'%' || byte == b'+') {
        Cow::Owned(decoded(raw).collect())
    } else {
        Cow::Borrowed(raw.as_bytes())
    }
}
