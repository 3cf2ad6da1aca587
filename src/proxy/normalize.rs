//! Step 5: one reading of a request. Pure: a head in, one meaning or a refusal out, and a head to send.
//!
//! hyper has parsed the head; what it lets through but RFC 9110, 9112 and 9113 forbid, or what a backend might read in
//! another way, is decided here. Ambiguity is refused, never guessed. [`read`] and [`write()`] are the two halves of it;
//! the route is found between them. What the head says about the length of its body was decided on raw bytes (guard).

use std::borrow::Cow;
use std::net::{Ipv4Addr, Ipv6Addr};

use http::header::{HOST, HeaderValue};
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, Method, Uri, Version};

use crate::base::escape;
use crate::base::outcome::Outcome;
use crate::proxy::fields::{self, Found, Sender};

/// Longest name a host may have (RFC 1035 section 2.3.4).
const HOST_MAX: usize = 253;

/// What a head means.
pub struct Reading<'a> {
    /// Whom it is for; see [`host`].
    pub host: Cow<'a, str>,
    /// What it is for; see [`path`].
    pub path: Path<'a>,
}

/// Reads a head: the first half of normalising, before its route is known.
///
/// # Errors
/// Why it has no one meaning.
pub fn read(parts: &Parts) -> Result<Reading<'_>, Outcome> {
    method(&parts.method)?;
    scheme(&parts.uri)?;
    if parts.version >= Version::HTTP_2 {
        fields::well_formed(&parts.headers)?;
    }
    let host = host(&parts.uri, &parts.headers, parts.version)?;
    let path = path(parts.uri.path())?;
    // HTTP/2 has no guard over its bytes, and a DEL may stand in a query there.
    if parts.uri.query().is_some_and(|query| query.bytes().any(|b| b <= b' ' || b == 0x7f)) {
        return Err(Outcome::BadPath);
    }
    Ok(Reading { host, path })
}

/// Makes a head that was read ours to send: the second half. `path` is its path, where reading changed it.
///
/// # Errors
/// Why it cannot be sent on.
pub fn write(
    parts: &mut Parts,
    path: Option<&str>,
    sender: &Sender<'_>,
    id: HeaderValue,
) -> Result<Found, Outcome> {
    let found = fields::clean_request(&mut parts.headers, sender.trusted)?;
    if parts.version >= Version::HTTP_2 {
        fields::join_cookies(&mut parts.headers);
    }
    let host = match parts.headers.get(HOST) {
        Some(host) => host.clone(),
        // RFC 9113 section 8.3.1: made from the authority where HTTP/2 sent that alone.
        None => {
            let authority = parts.uri.authority().ok_or(Outcome::BadHost)?;
            let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Outcome::BadHost)?;
            parts.headers.insert(HOST, host.clone());
            host
        }
    };
    fields::set_forwarded(&mut parts.headers, sender, host, id);
    if let Some(target) = target(&parts.uri, path)? {
        parts.uri = target;
    }
    Ok(found)
}

/// The target in origin form (RFC 9112 section 3.2.1), where it is not what was sent.
fn target(uri: &Uri, path: Option<&str>) -> Result<Option<Uri>, Outcome> {
    let query = uri.query().and_then(escape);
    if let (None, None) = (path, &query) {
        match uri.path_and_query() {
            Some(_) if uri.authority().is_none() => return Ok(None),
            // An empty one, where a fragment was cut off, says that it is `/`, and is written as nothing.
            Some(target) if target.as_str() == "/" => return Ok(Some(Uri::from_static("/"))),
            Some(target) if target.as_str().starts_with('/') => return Ok(Some(target.clone().into())),
            _ => {}
        }
    }
    let path = path.unwrap_or_else(|| uri.path());
    let text = match query.as_deref().or(uri.query()) {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    PathAndQuery::try_from(text).map(|target| Some(target.into())).map_err(|_| Outcome::BadPath)
}

/// A query whose raw bytes above ASCII have become escapes (RFC 3986 section 2), if it had any: some backends split a
/// request line at them.
fn escape(query: &str) -> Option<String> {
    if query.is_ascii() {
        return None;
    }
    let mut out = String::with_capacity(query.len() * 3);
    for byte in query.bytes() {
        match byte {
            0x80.. => escape::push(&mut out, byte),
            _ => out.push(char::from(byte)),
        }
    }
    Some(out)
}

/// A target may name a scheme (RFC 9112 section 3.2.2); we are a gateway to no other than these.
fn scheme(uri: &Uri) -> Result<(), Outcome> {
    match uri.scheme() {
        None => Ok(()),
        Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => Ok(()),
        Some(_) => Err(Outcome::BadRequest),
    }
}

/// Refuses methods that make no sense at an edge: CONNECT would make us an open proxy, TRACE echoes secrets
/// (RFC 9110 section 9.3.8).
///
/// # Errors
/// [`Outcome::MethodRefused`].
pub fn method(method: &Method) -> Result<(), Outcome> {
    match *method {
        Method::CONNECT | Method::TRACE => Err(Outcome::MethodRefused),
        _ => Ok(()),
    }
}

/// The one host a request is for: lower case, no port, no trailing dot; IPv6 literals without brackets.
///
/// # Errors
/// [`Outcome::BadHost`] when it is missing, repeated, malformed, or said in two ways that differ
/// (RFC 9112 section 3.2, RFC 9113 section 8.3.1).
pub fn host<'a>(uri: &'a Uri, headers: &'a HeaderMap, version: Version) -> Result<Cow<'a, str>, Outcome> {
    let mut fields = headers.get_all(HOST).iter();
    let field = match fields.next() {
        Some(value) => Some(value.to_str().map_err(|_| Outcome::BadHost)?),
        None => None,
    };
    if fields.next().is_some() {
        return Err(Outcome::BadHost);
    }
    let authority = uri.authority().map(|authority| authority.as_str());
    let text = match (authority, field) {
        // Under HTTP/2 the authority may stand alone; HTTP/1.1 always owes a Host field.
        (Some(_), None) if version < Version::HTTP_2 => return Err(Outcome::BadHost),
        (Some(authority), None) => authority,
        (None, Some(field)) => field,
        (Some(authority), Some(field)) if authority.eq_ignore_ascii_case(field) => authority,
        _ => return Err(Outcome::BadHost),
    };
    host_name(text).ok_or(Outcome::BadHost)
}

/// Reads `name`, `name:port`, `v4:port`, `[v6]:port`.
fn host_name(text: &str) -> Option<Cow<'_, str>> {
    if let Some(rest) = text.strip_prefix('[') {
        let (literal, port) = rest.split_once(']')?;
        let address: Ipv6Addr = literal.parse().ok()?;
        let legal = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return legal.then(|| Cow::Owned(address.to_string()));
    }
    let name = match memchr::memchr(b':', text.as_bytes()).and_then(|at| text.split_at_checked(at)) {
        Some((name, port)) if port.strip_prefix(':').is_some_and(is_port) => name,
        Some(_) => return None,
        None => text,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() || name.len() > HOST_MAX {
        return None;
    }
    // One pass: legal characters, no empty label, and whether anything must be lowered.
    let (mut previous, mut upper) = (b'.', false);
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'A'..=b'Z' => upper = true,
            b'.' if previous != b'.' => {}
            _ => return None,
        }
        previous = byte;
    }
    // One dot at the end is the root's; two are an empty label.
    if previous == b'.' {
        return None;
    }
    // `127.1` and other spellings of an address that some resolvers accept. No name ends in a digit alone.
    if previous.is_ascii_digit() && ends_in_number(name) && name.parse::<Ipv4Addr>().is_err() {
        return None;
    }
    if upper { Some(Cow::Owned(name.to_ascii_lowercase())) } else { Some(Cow::Borrowed(name)) }
}

fn ends_in_number(name: &str) -> bool {
    name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}

fn is_port(text: &str) -> bool {
    text.is_empty()
        || (text.len() <= 5 && text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok())
}

/// A path and the other way in which a careless backend might read it.
#[derive(Debug, PartialEq, Eq)]
pub struct Path<'a> {
    /// Dot segments removed, unreserved characters decoded, escapes in upper case. Forwarded as this.
    pub text: Cow<'a, str>,
    /// What it becomes where separators and what else may stand in a segment are decoded, `//` merged, `;parameters` dropped, or
    /// all of that, as far as that differs. Each must lead to the same route, or the request would slip past a policy.
    pub others: Vec<String>,
}

/// Normalises a path (RFC 3986 section 6.2.2).
///
/// # Errors
/// [`Outcome::BadPath`] for broken escapes, encoded NUL and other control characters, and raw backslashes.
pub fn path(raw: &str) -> Result<Path<'_>, Outcome> {
    if !raw.starts_with('/') {
        return Err(Outcome::BadPath);
    }
    if is_plain(raw.as_bytes()) {
        return Ok(Path { text: Cow::Borrowed(raw), others: Vec::new() });
    }
    let decoded = escape::normal(raw).ok_or(Outcome::BadPath)?;
    let text = remove_dot_segments(&decoded);
    let mut others = Vec::new();
    // Of what the client wrote, and of what the backend gets to see.
    for shape in [&decoded, &text] {
        let undone = undone(shape);
        if !(shape.contains("//") || shape.contains(';') || undone.is_some()) {
            continue;
        }
        for laxity in LAXITIES {
            let escapes = undone.as_deref().filter(|_| laxity.decodes).unwrap_or(shape);
            let other = remove_dot_segments(&careless(escapes, laxity));
            if other != text && !others.contains(&other) {
                others.push(other);
            }
        }
    }
    let text = if text == raw { Cow::Borrowed(raw) } else { Cow::Owned(text) };
    Ok(Path { text, others })
}

/// Nothing to normalise and nothing ambiguous: true for nearly every request, so this is the only pass it costs.
fn is_plain(bytes: &[u8]) -> bool {
    let mut previous = 0u8;
    for &b in bytes {
        let plain = match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => true,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@' => true,
            b'/' | b'.' => previous != b'/',
            _ => false,
        };
        if !plain {
            return false;
        }
        previous = b;
    }
    true
}

/// RFC 3986 section 5.2.4.
fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                // A dot segment at the end stands for a folder: it leaves its slash.
                if last {
                    kept.push("");
                }
            }
            _ => kept.push(segment),
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in kept {
        out.push('/');
        out.push_str(segment);
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

/// Liberties that backends are known to take with a path.
#[derive(Clone, Copy)]
struct Laxity {
    /// Escapes of separators become separators, those of characters that may stand in a segment as they are become these.
    decodes: bool,
    /// Empty segments vanish.
    merges: bool,
    /// `;parameters` of segments vanish.
    drops: bool,
}

/// Each alone, in pairs, and all together.
#[allow(clippy::indexing_slicing, reason = "evaluated by the compiler, within bounds by the loop")]
const LAXITIES: [Laxity; 7] = {
    let mut all = [Laxity { decodes: false, merges: false, drops: false }; 7];
    let mut bits = 0;
    while bits < 7 {
        let set = bits + 1;
        all[bits] = Laxity { decodes: set & 1 != 0, merges: set & 2 != 0, drops: set & 4 != 0 };
        bits += 1;
    }
    all
};

/// Characters whose escapes nearly every backend undoes before it looks where a path leads: separators, and those of
/// `pchar` that are not unreserved (RFC 3986 section 3.3).
const UNDONE: &[u8] = b"/\\!$&'()*+,;=:@";

/// A path without those escapes; `None` where there are none. Its escapes are in upper case, and whole.
fn undone(path: &str) -> Option<String> {
    memchr::memchr(b'%', path.as_bytes())?;
    let (mut out, mut rest) = (String::with_capacity(path.len()), path);
    while let Some((before, escape)) =
        memchr::memchr(b'%', rest.as_bytes()).and_then(|at| rest.split_at_checked(at))
    {
        let (escape, behind) = escape.split_at_checked(3)?;
        out.push_str(before);
        match u8::from_str_radix(escape.get(1..)?, 16) {
            Ok(b'\\') => out.push('/'),
            Ok(byte) if UNDONE.contains(&byte) => out.push(char::from(byte)),
            _ => out.push_str(escape),
        }
        rest = behind;
    }
    out.push_str(rest);
    (out != path).then_some(out)
}

/// How a backend with these laxities reads a path whose escapes are undone, if it undoes them.
fn careless(path: &str, laxity: Laxity) -> String {
    let mut out = String::with_capacity(path.len());
    for segment in path.split('/').skip(1) {
        let name = if laxity.drops { segment.split(';').next().unwrap_or(segment) } else { segment };
        if laxity.merges && out.ends_with('/') {
            out.push_str(name);
        } else {
            out.push('/');
            out.push_str(name);
        }
    }
    if out.is_empty() {
        out.push('/');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(uri: &str, hosts: &[&str], version: Version) -> Result<String, Outcome> {
        let uri: Uri = uri.parse().unwrap();
        let mut headers = HeaderMap::new();
        for host in hosts {
            headers.append(HOST, http::HeaderValue::from_bytes(host.as_bytes()).unwrap());
        }
        host(&uri, &headers, version).map(Cow::into_owned)
    }

    #[test]
    fn hosts_that_are_missing_repeated_malformed_or_contradictory_are_refused() {
        let h1 = Version::HTTP_11;
        let bad: &[(&str, &[&str])] = &[
            ("/", &[]),
            ("/", &["a.example", "a.example"]),
            ("/", &[""]),
            ("/", &["a.example:port"]),
            ("/", &["a.example:99999"]),
            ("/", &["a.example:80:80"]),
            ("/", &["user@a.example"]),
            ("/", &["a.example/evil"]),
            ("/", &["a example"]),
            ("/", &["a.example,b.example"]),
            ("/", &["a..example"]),
            ("/", &[".example"]),
            ("/", &["a.example.."]),
            ("/", &["[::1"]),
            ("/", &["[::1]x"]),
            ("/", &["127.1"]),
            ("/", &["\u{e4}.example"]),
            ("http://a.example/", &[]),
            ("http://a.example/", &["b.example"]),
            ("http://user@a.example/", &["user@a.example"]),
        ];
        for (uri, hosts) in bad {
            assert_eq!(read(uri, hosts, h1), Err(Outcome::BadHost), "{uri} {hosts:?}");
        }
        assert_eq!(read("https://a.example/", &["b.example"], Version::HTTP_2), Err(Outcome::BadHost));
    }

    #[test]
    fn hosts_are_lower_case_without_port_and_trailing_dot() {
        let h1 = |host: &str| read("/", &[host], Version::HTTP_11).unwrap();
        assert_eq!(h1("Shop.Example:8443"), "shop.example");
        assert_eq!(h1("shop.example."), "shop.example");
        assert_eq!(h1("shop.example:"), "shop.example");
        assert_eq!(h1("[::1]:443"), "::1");
        assert_eq!(h1("127.0.0.1:1"), "127.0.0.1");
        assert_eq!(h1("_dmarc.a-b.example"), "_dmarc.a-b.example");
        assert_eq!(read("http://A.example/x", &["a.example"], Version::HTTP_11).unwrap(), "a.example");
        assert_eq!(read("https://a.example/", &[], Version::HTTP_2).unwrap(), "a.example");
    }

    #[test]
    fn paths_with_broken_or_dangerous_bytes_are_refused() {
        for raw in
            ["", "a", "*", "/%", "/%4", "/%zz", "/%00", "/a%0d%0aX:1", "/%7f", "/a\\b", "/a b", "/\u{7f}"]
        {
            assert_eq!(path(raw), Err(Outcome::BadPath), "{raw:?}");
        }
    }

    #[test]
    fn paths_are_normalised_as_rfc_3986_says() {
        let cases = [
            ("/", "/"),
            ("/a/b.c", "/a/b.c"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/../../etc", "/etc"),
            ("/a/b/..", "/a/"),
            ("/a/.", "/a/"),
            ("/%2e%2e/x", "/x"),
            ("/a/%2E./b", "/b"),
            ("/%61%7E", "/a~"),
            ("/%c3%a4", "/%C3%A4"),
            ("/\u{e4}", "/%C3%A4"),
            ("/.well-known/x", "/.well-known/x"),
            ("/a...b", "/a...b"),
            ("/..a", "/..a"),
            ("/a%2fb", "/a%2Fb"),
            ("/a//b", "/a//b"),
        ];
        for (raw, expected) in cases {
            assert_eq!(path(raw).unwrap().text, expected, "{raw}");
        }
        assert!(
            matches!(path("/plain/x").unwrap(), Path { text: Cow::Borrowed(_), others } if others.is_empty())
        );
    }

    #[test]
    fn the_careless_reading_is_told_when_it_differs() {
        for raw in [
            "/static/%2e%2e%2fadmin",
            "/x/..%2fadmin",
            "/a%5c..%5cadmin",
            "//admin",
            "/x//../admin",
            "/x/..;/admin",
            "/x;/..;v=1/admin;y",
            "/%2Fadmin",
            // What is left of it, `//.%5Cadmin`, has a careless reading that the whole of it has not.
            "/a%5Cb/..//.%5Cadmin",
        ] {
            assert!(path(raw).unwrap().others.contains(&"/admin".to_owned()), "{raw}: {:?}", path(raw));
        }
        for raw in ["/%40dmin/x", "/wiki/%3a", "/a%2Bb"] {
            assert_eq!(path(raw).unwrap().others.len(), 1, "regression: {raw} reads otherwise at a backend");
        }
        assert_eq!(path("/%40admin/x%20y").unwrap().others, ["/@admin/x%20y"]);
        assert_eq!(path("/a%2Fb").unwrap().others, ["/a/b"]);
        assert_eq!(path("/a;v=1").unwrap().others, ["/a"]);
        assert!(path("/a/%20b").unwrap().others.is_empty());
    }

    proptest! {
        #[test]
        fn normalising_twice_changes_nothing_and_leaves_no_dots(raw in "/[a-zA-Z0-9%./;\\\\\u{e4} ]{0,40}") {
            if let Ok(first) = path(&raw) {
                let text = first.text.into_owned();
                prop_assert!(text.starts_with('/'));
                prop_assert!(!text.split('/').any(|segment| segment == "." || segment == ".."));
                let second = path(&text).unwrap();
                prop_assert_eq!(&*second.text, &text);
            }
        }

        #[test]
        fn no_host_text_panics(text in "\\PC{0,60}") {
            if let Some(name) = host_name(&text) {
                prop_assert!(!name.is_empty() && name.len() <= HOST_MAX && !name.contains('/'));
            }
        }
    }
}
