//! The whole of normalising without a socket: raw bytes in, the bytes a backend would get out. Used by properties and
//! by fuzz targets; it calls what the proxy calls, in the same order.

use http::request::Parts;
use http::{HeaderName, HeaderValue, Request, Version};

use tidegate::base::outcome::Outcome;
use tidegate::proxy::guard::{Framer, Limits, Step};
use tidegate::proxy::{fields, normalize};

use super::strict::{self, Message, Read};

/// Limits as they are by default.
pub const LIMITS: Limits = Limits { head: 32 * 1024, uri: 8 * 1024, fields: 100 };

/// What became of a head.
pub struct Sent {
    /// As a backend gets it.
    pub bytes: Vec<u8>,
    /// The one host it was read to be for.
    pub host: String,
    /// The one path it was read to be for.
    pub path: String,
}

/// Reads one request head over HTTP/1 and writes it for a backend. `None`: no whole head, or one with its own meaning
/// that never reaches a backend (a request to switch protocols is sent without).
pub fn http1(bytes: &[u8]) -> Option<Result<Sent, Outcome>> {
    within(bytes, LIMITS)
}

fn within(bytes: &[u8], limits: Limits) -> Option<Result<Sent, Outcome>> {
    let length = match Framer::new(limits).step(bytes) {
        Ok(Step::Pass(length)) => length,
        Ok(Step::More | Step::Wait) => return None,
        Err(outcome) => return Some(Err(outcome)),
    };
    let (parts, chunked) = parse(&bytes[..length])?;
    Some(through(parts, chunked))
}

/// Makes a head out of what an HTTP/2 library hands over and writes it for a backend.
pub fn http2(method: &str, uri: &str, pairs: &[(Vec<u8>, Vec<u8>)]) -> Option<Result<Sent, Outcome>> {
    if pairs.len() > LIMITS.fields {
        return None;
    }
    let mut request = Request::builder().version(Version::HTTP_2).method(method).uri(uri).body(()).ok()?;
    for (name, value) in pairs {
        let name = HeaderName::from_lowercase(name).ok()?;
        request.headers_mut().append(name, HeaderValue::from_bytes(value).ok()?);
    }
    // What the library refuses itself (RFC 9113 section 8.2.2).
    let connection = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
    let mut te = request.headers().get_all("te").iter();
    if connection.iter().any(|name| request.headers().contains_key(*name)) || te.any(|v| v != "trailers") {
        return None;
    }
    Some(through(request.into_parts().0, false))
}

fn through(mut parts: Parts, chunked: bool) -> Result<Sent, Outcome> {
    let normalize::Reading { host, path } = normalize::read(&parts)?;
    let (host, whole) = (host.into_owned(), path.text.clone().into_owned());
    let changed = if whole == parts.uri.path() { None } else { Some(whole.clone()) };
    let (peer, port) = (HeaderValue::from_static("192.0.2.1"), HeaderValue::from(443));
    let sender = fields::Sender { peer: &peer, port: &port, trusted: false, secure: true };
    let id = HeaderValue::from_static("0123456789abcdef");
    let found = normalize::write(&mut parts, changed.as_deref(), &sender, id)?;
    fields::set_hop(&mut parts.headers, &found, parts.version);
    let mut bytes = format!("{} {} HTTP/1.1\r\n", parts.method, parts.uri).into_bytes();
    // The body's framing is hyper's to write; it does so by what the guard saw.
    if chunked {
        bytes.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    for (name, value) in &parts.headers {
        bytes.extend_from_slice(format!("{name}: ").as_bytes());
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    Ok(Sent { bytes, host, path: whole })
}

/// What hyper makes of a head that passed. `None` where its URI parser refuses the target: it answers 400 itself.
fn parse(head: &[u8]) -> Option<(Parts, bool)> {
    let head = head.strip_prefix(b"\r\n").unwrap_or(head);
    let mut lines = head.split(|&b| b == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next()?;
    let mut words = first.split(|&b| b == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let version = if version == b"HTTP/1.0" { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut request = Request::builder().version(version).method(method).uri(target).body(()).ok()?;
    let mut chunked = false;
    for line in lines.take_while(|line| !line.is_empty()) {
        let colon = line.iter().position(|&b| b == b':').expect("a colon: the guard saw to it");
        let name = HeaderName::from_bytes(&line[..colon]).expect("a name: the guard saw to it");
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).expect("a value");
        chunked |= name == "transfer-encoding";
        request.headers_mut().append(name, value);
    }
    Some((request.into_parts().0, chunked))
}

/// What must hold for whatever was sent; panics where it does not.
pub fn holds(sent: &Sent) {
    let Sent { bytes, host, path } = sent;
    let shown = bytes.escape_ascii().to_string();
    let Some(whole) = with_body(bytes) else { return };
    let message = match strict::request(&whole) {
        Read::Whole(message, end) => {
            assert_eq!(end, whole.len(), "more than one request: {shown}");
            message
        }
        other => panic!("{other:?}: {shown}"),
    };
    let wrong = strict::forwarded(&message);
    assert!(wrong.is_empty(), "{wrong:?}: {shown}");
    assert_eq!(path_of(&message), path, "another path: {shown}");
    assert_eq!(host_of(&message), *host, "another host: {shown}");
    for (name, ours) in [("x-forwarded-for", "192.0.2.1"), ("x-forwarded-proto", "https")] {
        assert_eq!(message.field(name).as_deref(), Some(ours), "{shown}");
    }
    // What was sent reads as what it is, and is sent again as it is.
    // It has grown by our fields and escapes.
    let roomy = Limits { head: 4 * LIMITS.head, uri: 4 * LIMITS.uri, fields: 2 * LIMITS.fields };
    let again = match within(bytes, roomy) {
        Some(Ok(again)) => again,
        Some(Err(outcome)) => panic!("{outcome:?} for what was sent: {shown}"),
        None => panic!("no head: {shown}"),
    };
    assert_eq!(sorted(&again.bytes), sorted(bytes), "not idempotent");
}

/// The bytes with a body as long as they say; `None` where that is not worth its memory.
fn with_body(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut whole = bytes.to_vec();
    let text = String::from_utf8_lossy(bytes).into_owned();
    if text.contains("\r\ntransfer-encoding: chunked\r\n") {
        whole.extend_from_slice(b"0\r\n\r\n");
    } else if let Some(length) = text.split("\r\ncontent-length: ").nth(1).and_then(|t| t.split('\r').next())
    {
        let length = length.parse().ok().filter(|length: &usize| *length < 1 << 16)?;
        whole.extend(std::iter::repeat_n(b'x', length));
    }
    Some(whole)
}

fn path_of(message: &Message) -> &str {
    message.second().split('?').next().unwrap_or_default()
}

/// The host as routed by: lower case, without port and dot at the end.
fn host_of(message: &Message) -> String {
    let text = message.field("host").expect("one host").to_ascii_lowercase();
    if let Some((literal, _)) = text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return literal.parse::<std::net::Ipv6Addr>().expect("an address").to_string();
    }
    let name = text.split(':').next().unwrap_or_default();
    name.strip_suffix('.').unwrap_or(name).to_string()
}

/// Lines in one order: hyper's map keeps none between different names.
fn sorted(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut lines: Vec<Vec<u8>> = bytes.split(|&b| b == b'\n').map(<[u8]>::to_vec).collect();
    lines.sort();
    lines
}
