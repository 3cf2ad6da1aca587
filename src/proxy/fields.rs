//! Step 5, the fields: what is hop-by-hop stays on its hop, what says who the client is comes from us.
//!
//! One pass over a header map finds what must go; only what was found is removed, because each removal by name
//! costs a hash.

use std::net::IpAddr;

use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode, Version};

use crate::base::address::CidrSet;
use crate::base::outcome::Outcome;
use crate::net::http1::is_token;
use crate::proxy::client_cert;
use crate::proxy::context::Connection;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
/// Names a request in both directions.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Hops in `X-Forwarded-For` that are looked at, from the right; more than this many proxies is no real chain.
const HOPS_MAX: usize = 32;
/// Longest request id believed from a trusted proxy.
const REQUEST_ID_MAX: usize = 128;

/// What the pass over a request's fields found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The protocol a client wants to change to (RFC 9110 section 7.8), if `Connection` says so too.
    pub upgrade: Option<HeaderValue>,
    /// The client understands trailers (RFC 9110 section 10.1.4).
    pub te_trailers: bool,
    /// The client waits to be told to go on before it sends its body (RFC 9110 section 10.1.1).
    pub expects: bool,
}

/// Who a request comes from; what the fields are replaced with.
pub struct Sender<'a> {
    /// Address of the peer, as a field value.
    pub peer: &'a HeaderValue,
    /// Port of our listener.
    pub port: &'a HeaderValue,
    /// Whether the peer's own fields are believed.
    pub trusted: bool,
    /// Whether the client came over TLS.
    pub secure: bool,
}

/// What h2 lets through but RFC 9113 calls malformed. Over HTTP/1 the guard has looked at the bytes.
///
/// # Errors
/// [`Outcome::BadRequest`], [`Outcome::BadFraming`].
pub fn well_formed(headers: &HeaderMap) -> Result<(), Outcome> {
    let blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    for (name, value) in headers {
        // RFC 9110 section 5.1: the library takes a quotation mark for a token character; HTTP/1 does not.
        if name.as_str().contains('"') {
            return Err(Outcome::BadRequest);
        }
        // RFC 9113 section 8.2.1: a reader of HTTP/1 would trim it, and mean another value.
        let bytes = value.as_bytes();
        if blank(bytes.first()) || blank(bytes.last()) {
            return Err(Outcome::BadRequest);
        }
    }
    // RFC 9113 section 8.1.1; h2 compares only the first with the data.
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next() {
        let bytes = length.as_bytes();
        if bytes.is_empty() || !bytes.iter().all(u8::is_ascii_digit) || lengths.next().is_some() {
            return Err(Outcome::BadFraming);
        }
    }
    Ok(())
}

/// Removes what is hop-by-hop (RFC 9110 section 7.6.1) and what only we may say from a request.
///
/// # Errors
/// [`Outcome::BadRequest`] when `Connection` names a field that a message cannot do without,
/// [`Outcome::ExpectationFailed`] when something is expected that is not known here.
pub fn clean_request(headers: &mut HeaderMap, trusted: bool) -> Result<Found, Outcome> {
    let mut found = Found::default();
    let mut remove: Removals = Removals::default();
    let mut wants_upgrade = false;
    let (mut tunnels, mut padded) = (true, None);
    for (name, value) in headers.iter() {
        match name.as_str() {
            "connection" => wants_upgrade |= nominated(value, &mut remove)?,
            "te" => {
                found.te_trailers |= has_token(value, "trailers");
                remove.push(name);
            }
            "upgrade" => {
                tunnels &= is_tunnel(value);
                found.upgrade = Some(value.clone());
                remove.push(name);
            }
            // Set anew where the backend can be asked.
            "expect" => {
                found.expects |= expects_to_go_on(value)?;
                remove.push(name);
            }
            "keep-alive"
            | "proxy-connection"
            | "transfer-encoding"
            | "proxy-authorization"
            | "http2-settings" => remove.push(name),
            "forwarded" | "x-real-ip" | "x-client-ip" | "true-client-ip" | "cf-connecting-ip" => {
                if !trusted {
                    remove.push(name);
                }
            }
            "content-length" => padded = padded.or_else(|| unpadded(value)),
            other => {
                if is_lookalike(other) || client_cert::claims_identity(other, trusted) {
                    remove.push(name);
                }
            }
        }
    }
    if let Some(length) = padded {
        headers.insert(header::CONTENT_LENGTH, length);
    }
    // Only `Connection: upgrade` makes it an upgrade; h2c is never one here (it would tunnel past every policy).
    if !wants_upgrade || !tunnels {
        found.upgrade = None;
    }
    remove.apply(headers);
    Ok(found)
}

/// HTTP/2 may split a cookie into crumbs; HTTP/1.1 must have one line (RFC 9113 section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut crumbs = headers.get_all(header::COOKIE).iter();
    if crumbs.next().is_none() || crumbs.next().is_none() {
        return;
    }
    let crumbs = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    // Joined with empty ones, white space would stand at the ends.
    let crumbs: Vec<&[u8]> = crumbs.filter(|crumb| !crumb.is_empty()).collect();
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(b"; ".as_slice())) {
        headers.insert(header::COOKIE, whole);
    }
}

/// Sets the fields that tell a backend about the client.
pub fn set_forwarded(headers: &mut HeaderMap, sender: &Sender<'_>, host: HeaderValue, id: HeaderValue) {
    let proto = HeaderValue::from_static(if sender.secure { "https" } else { "http" });
    if sender.trusted {
        let chain = joined(headers, sender.peer);
        headers.insert(X_FORWARDED_FOR, chain);
        keep_or(headers, X_FORWARDED_PROTO, proto);
        keep_or(headers, X_FORWARDED_HOST, host);
        keep_or(headers, X_FORWARDED_PORT, sender.port.clone());
    } else {
        headers.insert(X_FORWARDED_FOR, sender.peer.clone());
        headers.insert(X_FORWARDED_PROTO, proto);
        headers.insert(X_FORWARDED_HOST, host);
        headers.insert(X_FORWARDED_PORT, sender.port.clone());
    }
    headers.insert(X_REQUEST_ID, id);
}

/// The client behind trusted proxies: the rightmost address of `X-Forwarded-For` that is not one of them.
pub fn client_address(headers: &HeaderMap, peer: IpAddr, proxies: &CidrSet) -> IpAddr {
    let mut client = peer;
    let lines: Vec<&[u8]> = headers.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    for hop in lines.iter().rev().flat_map(|line| line.rsplit(|&b| b == b',')).take(HOPS_MAX) {
        // What cannot be read was not written by a proxy of ours: whoever handed it on is the client.
        let hop = std::str::from_utf8(hop).ok().map(str::trim);
        let Some(address) = hop.and_then(parse_hop) else { break };
        client = address.to_canonical();
        if !proxies.contains(client) {
            break;
        }
    }
    client
}

/// Whether the client came over TLS: to us, or to a trusted proxy that says so. A redirect to HTTPS would otherwise
/// loop behind a balancer that terminates TLS itself.
pub fn came_secure(connection: &Connection, headers: &HeaderMap) -> bool {
    let told = || headers.get(X_FORWARDED_PROTO).is_some_and(|value| value == "https");
    connection.secure || (connection.trusted && told())
}

/// Says for which host and by which scheme a request came, whoever said so before.
pub fn set_place(headers: &mut HeaderMap, host: HeaderValue, port: HeaderValue, secure: bool) {
    let proto = HeaderValue::from_static(if secure { "https" } else { "http" });
    headers.insert(X_FORWARDED_PROTO, proto);
    headers.insert(X_FORWARDED_HOST, host);
    headers.insert(X_FORWARDED_PORT, port);
}

/// A request id sent by a trusted proxy, if it is short and plain.
pub fn request_id(headers: &HeaderMap) -> Option<HeaderValue> {
    let value = headers.get(X_REQUEST_ID)?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'=' | b'/' | b'+');
    let legal =
        !value.is_empty() && value.len() <= REQUEST_ID_MAX && value.as_bytes().iter().all(|&b| plain(b));
    legal.then(|| value.clone())
}

/// Removes what is hop-by-hop from a backend's answer, but for what a `101` is made of.
pub fn clean_response(headers: &mut HeaderMap, status: StatusCode) {
    let upgrade = status == StatusCode::SWITCHING_PROTOCOLS;
    let mut remove = Removals::default();
    // RFC 9110 section 8.6: these have no body, and a client that believed a length would wait for one.
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        headers.remove(header::CONTENT_LENGTH);
    }
    for (name, value) in headers.iter() {
        match name.as_str() {
            "connection" if !upgrade => {
                // A backend that nominates nonsense harms only its own answer: drop what can be dropped.
                let _ = nominated(value, &mut remove);
            }
            "upgrade" if !upgrade => remove.push(name),
            "keep-alive" | "proxy-connection" | "transfer-encoding" | "te" | "proxy-authenticate" => {
                remove.push(name);
            }
            _ => {}
        }
    }
    remove.apply(headers);
}

/// Gives a request for an HTTP/1.1 backend its hop-by-hop fields anew.
pub fn set_hop(headers: &mut HeaderMap, found: &Found, version: Version) {
    let connection = match (&found.upgrade, found.te_trailers) {
        (Some(protocol), _) if version == Version::HTTP_11 => {
            headers.insert(header::UPGRADE, protocol.clone());
            "upgrade"
        }
        (_, true) => {
            headers.insert(header::TE, HeaderValue::from_static("trailers"));
            "te"
        }
        _ => return,
    };
    headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
}

/// Names to remove. Nearly always none or `connection` alone, so it holds those without allocating.
#[derive(Default)]
struct Removals {
    connection: bool,
    others: Vec<HeaderName>,
}

impl Removals {
    fn push(&mut self, name: &HeaderName) {
        self.others.push(name.clone());
    }

    fn apply(self, headers: &mut HeaderMap) {
        if self.connection {
            headers.remove(header::CONNECTION);
        }
        for name in self.others {
            headers.remove(name);
        }
    }
}

/// Most fields that a request may name in `Connection`: each is looked for.
const NOMINATED_MAX: usize = 64;

/// Reads one `Connection` line into the removals; tells whether it says `upgrade`.
fn nominated(value: &HeaderValue, remove: &mut Removals) -> Result<bool, Outcome> {
    remove.connection = true;
    let mut upgrade = false;
    for token in value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii) {
        if token.eq_ignore_ascii_case(b"close")
            || token.eq_ignore_ascii_case(b"keep-alive")
            || token.is_empty()
        {
            continue;
        }
        if token.eq_ignore_ascii_case(b"upgrade") {
            upgrade = true;
            continue;
        }
        let name = HeaderName::from_bytes(token).map_err(|_| Outcome::BadRequest)?;
        match name.as_str() {
            // RFC 9110 section 7.6.1: fields meant for all recipients must not be nominated.
            "host" | "content-length" | "transfer-encoding" | "authorization" | "cookie" | "content-type"
            | "cache-control" | "content-encoding" | "set-cookie" => return Err(Outcome::BadRequest),
            _ if remove.others.len() == NOMINATED_MAX => return Err(Outcome::BadRequest),
            _ => remove.others.push(name),
        }
    }
    Ok(upgrade)
}

/// Whether one `Expect` line asks to be told to go on. Nobody could keep another promise that is only dropped (RFC 9110
/// section 10.1.1).
fn expects_to_go_on(value: &HeaderValue) -> Result<bool, Outcome> {
    let members = value.as_bytes().split(|&b| b == b',').map(<[u8]>::trim_ascii);
    let mut members = members.filter(|member| !member.is_empty()).peekable();
    let some = members.peek().is_some();
    let known = members.all(|member| member.eq_ignore_ascii_case(b"100-continue"));
    if known { Ok(some) } else { Err(Outcome::ExpectationFailed) }
}

/// Whether an OPTIONS request ends its way here, by its `Max-Forwards`; counts it down otherwise (RFC 9110 section 7.6.2).
///
/// # Errors
/// [`Outcome::BadRequest`] when it cannot be told.
pub fn is_last_hop(headers: &mut HeaderMap) -> Result<bool, Outcome> {
    let mut values = headers.get_all(header::MAX_FORWARDS).iter();
    let Some(value) = values.next() else { return Ok(false) };
    let digits = value.as_bytes();
    if values.next().is_some() || digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Outcome::BadRequest);
    }
    // More than we can count becomes as much as we can.
    let hops = value.to_str().ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or(u32::MAX);
    let Some(left) = hops.checked_sub(1) else { return Ok(true) };
    headers.insert(header::MAX_FORWARDS, HeaderValue::from(left));
    Ok(false)
}

/// A length without its leading zeros, if it has any: to some backends they make it octal.
fn unpadded(value: &HeaderValue) -> Option<HeaderValue> {
    let text = value.to_str().ok().filter(|text| text.len() > 1 && text.starts_with('0'))?;
    HeaderValue::from_str(text.trim_start_matches('0')).ok().map(|short| match short.is_empty() {
        true => HeaderValue::from_static("0"),
        false => short,
    })
}

/// A name that a backend which folds everything but letters and digits to `_` (CGI, WSGI, PHP) would take for one of
/// ours.
fn is_lookalike(name: &str) -> bool {
    let odd = |byte: u8| !byte.is_ascii_alphanumeric() && byte != b'-';
    name.bytes().any(odd) && is_ours(&name.replace(|c: char| c.is_ascii() && odd(c as u8), "-"))
}

/// Names that say who a client is or how a message is framed.
fn is_ours(name: &str) -> bool {
    matches!(
        name,
        "x-forwarded-for"
            | "x-forwarded-proto"
            | "x-forwarded-host"
            | "x-forwarded-port"
            | "x-real-ip"
            | "x-request-id"
            | "forwarded"
            | "x-client-ip"
            | "true-client-ip"
            | "cf-connecting-ip"
            | "content-length"
            | "transfer-encoding"
            | "host"
            | "connection"
    )
}

/// Removes from trailers what has no place behind a body (RFC 9110 section 6.5.1): a recipient that merges them into
/// the head would believe it.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    let mut remove = Removals::default();
    for name in trailers.keys() {
        let text = name.as_str();
        let claims = client_cert::claims_identity(text, false);
        if claims || is_ours(text) || is_lookalike(text) || is_head_only(text) {
            remove.push(name);
        }
    }
    remove.apply(trailers);
}

fn is_head_only(name: &str) -> bool {
    matches!(
        name,
        "authorization"
            | "cache-control"
            | "content-encoding"
            | "content-range"
            | "content-type"
            | "cookie"
            | "expect"
            | "http2-settings"
            | "keep-alive"
            | "max-forwards"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "proxy-connection"
            | "set-cookie"
            | "te"
            | "trailer"
            | "upgrade"
    )
}

/// Protocols by the grammar (RFC 9110 section 7.8), and none of them h2c.
fn is_tunnel(value: &HeaderValue) -> bool {
    value.as_bytes().split(|&b| b == b',').all(|protocol| {
        let mut parts = protocol.trim_ascii().splitn(2, |&b| b == b'/');
        let (name, version) = (parts.next().unwrap_or_default(), parts.next());
        let token = |text: &[u8]| !text.is_empty() && text.iter().all(|&b| is_token(b));
        token(name) && version.is_none_or(token) && !name.eq_ignore_ascii_case(b"h2c")
    })
}

fn has_token(value: &HeaderValue, token: &str) -> bool {
    let bytes = value.as_bytes();
    let first = |part: &[u8]| part.split(|&b| b == b';').next().unwrap_or_default().trim_ascii().to_vec();
    bytes.split(|&b| b == b',').any(|part| first(part).eq_ignore_ascii_case(token.as_bytes()))
}

fn joined(headers: &HeaderMap, peer: &HeaderValue) -> HeaderValue {
    let mut chain = Vec::new();
    for line in headers.get_all(X_FORWARDED_FOR) {
        chain.extend_from_slice(line.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(peer.as_bytes());
    HeaderValue::from_bytes(&chain).unwrap_or_else(|_| peer.clone())
}

/// Keeps one value of a trusted proxy; none or several become ours.
fn keep_or(headers: &mut HeaderMap, name: HeaderName, ours: HeaderValue) {
    let mut lines = headers.get_all(&name).iter();
    if lines.next().is_some() && lines.next().is_none() {
        return;
    }
    headers.insert(name, ours);
}

/// `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]:80`.
fn parse_hop(text: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address);
    }
    if let Some(rest) = text.strip_prefix('[') {
        return rest.split_once(']')?.0.parse().ok();
    }
    text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn connection_may_not_nominate_what_a_message_needs() {
        for name in ["host", "Content-Length", "authorization", "bad name"] {
            let mut headers = map(&[("connection", name)]);
            assert_eq!(clean_request(&mut headers, false), Err(Outcome::BadRequest), "{name}");
        }
    }

    #[test]
    fn hop_by_hop_fields_and_what_connection_nominates_are_removed() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "x-forwarded-for"),
            ("x-secret", "1"),
            ("keep-alive", "5"),
            ("te", "trailers, gzip;q=0"),
            ("transfer-encoding", "chunked"),
            ("proxy-authorization", "x"),
            ("upgrade", "websocket"),
            ("accept", "*/*"),
        ]);
        let found = clean_request(&mut headers, false).unwrap();
        assert_eq!(found, Found { te_trailers: true, ..Found::default() });
        assert_eq!(names(&headers), ["accept"]);
    }

    #[test]
    fn cookie_crumbs_become_one_line() {
        let mut headers = map(&[("cookie", "a=1"), ("accept", "*/*"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut headers);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
        let mut headers = map(&[("cookie", ""), ("cookie", "a=1"), ("cookie", "")]);
        join_cookies(&mut headers);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1"]);
    }

    #[test]
    fn an_answer_without_a_body_has_no_length() {
        let mut headers = map(&[("content-length", "3"), ("etag", "x")]);
        clean_response(&mut headers, StatusCode::NO_CONTENT);
        assert_eq!(names(&headers), ["etag"]);
        let mut headers = map(&[("content-length", "3")]);
        clean_response(&mut headers, StatusCode::OK);
        assert_eq!(names(&headers), ["content-length"]);
    }

    #[test]
    fn trailers_lose_what_belongs_into_a_head() {
        let mut trailers = map(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x_real.ip", "6.6.6.6"),
            ("connection", "close"),
            ("cookie", "a=1"),
            ("grpc-status", "0"),
            ("x_sum", "1"),
        ]);
        clean_trailers(&mut trailers);
        assert_eq!(names(&trailers), ["grpc-status", "x_sum"]);
    }

    #[test]
    fn lengths_lose_their_leading_zeros() {
        for (sent, written) in [("010", "10"), ("0", "0"), ("000", "0"), ("10", "10")] {
            let mut headers = map(&[("content-length", sent)]);
            clean_request(&mut headers, false).unwrap();
            assert_eq!(headers["content-length"], written);
        }
    }

    #[test]
    fn malformed_fields_of_http2_are_refused() {
        assert_eq!(well_formed(&map(&[("x-a", "b c"), ("content-length", "3"), ("x-empty", "")])), Ok(()));
        for fields in [[("x-a", " b")], [("x-a", "b\t")]] {
            assert_eq!(well_formed(&map(&fields)), Err(Outcome::BadRequest), "{fields:?}");
        }
        let quoted = HeaderName::from_lowercase(b"x\"a").unwrap();
        let quoted = HeaderMap::from_iter([(quoted, HeaderValue::from_static("b"))]);
        assert_eq!(well_formed(&quoted), Err(Outcome::BadRequest));
        for fields in [&[("content-length", "+3")][..], &[("content-length", "3"), ("content-length", "3")]] {
            assert_eq!(well_formed(&map(fields)), Err(Outcome::BadFraming), "{fields:?}");
        }
    }

    #[test]
    fn only_going_on_can_be_expected() {
        let expects =
            |fields: &[(&str, &str)]| clean_request(&mut map(fields), false).map(|found| found.expects);
        assert_eq!(expects(&[("expect", "100-Continue")]), Ok(true));
        assert_eq!(expects(&[("expect", "100-continue, 100-continue"), ("expect", "")]), Ok(true));
        assert_eq!(expects(&[("expect", " ,")]), Ok(false));
        for other in ["tea", "y 100-continue", "100-continue, tea", "100-continue;q=1", "100"] {
            assert_eq!(expects(&[("expect", other)]), Err(Outcome::ExpectationFailed), "{other}");
            let second = [("expect", "100-continue"), ("expect", other)];
            assert_eq!(expects(&second), Err(Outcome::ExpectationFailed), "{other}");
        }
    }

    #[test]
    fn max_forwards_counts_down_to_its_end() {
        for (said, last, left) in [
            ("0", true, "0"),
            ("000", true, "000"),
            ("1", false, "0"),
            ("10", false, "9"),
            ("99999999999999999999", false, "4294967294"),
        ] {
            let mut headers = map(&[("max-forwards", said)]);
            assert_eq!(is_last_hop(&mut headers), Ok(last), "{said}");
            assert_eq!(headers["max-forwards"], left, "{said}");
        }
        assert_eq!(is_last_hop(&mut HeaderMap::new()), Ok(false));
        for bad in ["", "-1", "+1", "1, 1", "1 ", "x", "0x1"] {
            assert_eq!(is_last_hop(&mut map(&[("max-forwards", bad)])), Err(Outcome::BadRequest), "{bad:?}");
        }
        let twice = &mut map(&[("max-forwards", "1"), ("max-forwards", "1")]);
        assert_eq!(is_last_hop(twice), Err(Outcome::BadRequest));
    }

    #[test]
    fn an_upgrade_needs_connection_to_say_so_and_is_never_h2c() {
        let upgrade = |fields: &[(&str, &str)]| clean_request(&mut map(fields), false).unwrap().upgrade;
        assert!(upgrade(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]).is_some());
        assert!(upgrade(&[("upgrade", "websocket")]).is_none());
        assert!(upgrade(&[("connection", "upgrade, http2-settings"), ("upgrade", "h2c")]).is_none());
    }

    #[test]
    fn what_an_untrusted_client_says_about_itself_is_replaced() {
        let mut headers = map(&[
            ("x-forwarded-for", "1.1.1.1"),
            ("x_forwarded_for", "1.1.1.1"),
            ("x-real-ip", "1.1.1.1"),
            ("forwarded", "for=1.1.1.1"),
            ("x-forwarded-host", "evil.example"),
            ("content_length", "5"),
        ]);
        clean_request(&mut headers, false).unwrap();
        let (peer, port) = (HeaderValue::from_static("192.0.2.1"), HeaderValue::from(443));
        let sender = Sender { peer: &peer, port: &port, trusted: false, secure: true };
        set_forwarded(
            &mut headers,
            &sender,
            HeaderValue::from_static("a.example"),
            HeaderValue::from_static("id"),
        );
        assert_eq!(
            names(&headers),
            ["x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-request-id"]
        );
        assert_eq!(headers["x-forwarded-for"], "192.0.2.1");
        assert_eq!(headers["x-forwarded-host"], "a.example");
    }

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_trusted_proxy() {
        let proxies = CidrSet::new(["10.0.0.0/8".parse().unwrap()]);
        let client = |lines: &[&str]| {
            let fields: Vec<_> = lines.iter().map(|line| ("x-forwarded-for", *line)).collect();
            client_address(&map(&fields), "10.0.0.1".parse().unwrap(), &proxies).to_string()
        };
        assert_eq!(client(&[]), "10.0.0.1");
        assert_eq!(client(&["1.1.1.1, 192.0.2.9, 10.0.0.7"]), "192.0.2.9");
        assert_eq!(client(&["1.1.1.1", "192.0.2.9"]), "192.0.2.9");
        assert_eq!(client(&["garbage, 10.0.0.7"]), "10.0.0.7");
        assert_eq!(client(&["[2001:db8::5]:443"]), "2001:db8::5");
        assert_eq!(client(&["::ffff:192.0.2.3"]), "192.0.2.3");
        // One unreadable hop must not hide the rest of its line, or what stands left of it would be believed.
        let mut headers = map(&[("x-forwarded-for", "9.9.9.9")]);
        headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(b"\xff, 192.0.2.9").unwrap());
        assert_eq!(client_address(&headers, "10.0.0.1".parse().unwrap(), &proxies).to_string(), "192.0.2.9");
    }
}
