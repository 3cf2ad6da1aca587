//! The shapes of an access record. Written straight into bytes: no allocation, no intermediate value.
//!
//! Everything a client sends is hostile here: control characters, quotes and bytes that are not UTF-8 are escaped,
//! so that a record is always one line, one valid JSON object, and harmless on a terminal.

use std::io::Write;
use std::net::IpAddr;

use crate::base::address::truncated;
use crate::base::clock;
use crate::base::outcome::Outcome;
use crate::base::policy::Marks;
use crate::base::record::Privacy;

/// Bytes of one text field; longer ones are cut and end in `…`.
pub const FIELD_BYTES_MAX: usize = 8 * 1024;

/// What is known about a request when it has ended. Texts may hold any bytes.
#[derive(Debug, Clone)]
pub struct Record<'a> {
    /// Wall time of the request head, in milliseconds since 1970.
    pub wall_ms: u64,
    /// Request id, as sent in `X-Request-Id`.
    pub request_id: &'a str,
    /// Client address, whole; cut here where privacy asks for it.
    pub client: IpAddr,
    /// Site, or `none`.
    pub site: &'a str,
    /// Route label, or `none`.
    pub route: &'a str,
    /// Service of the endpoint that was asked last; empty where none was.
    pub service: &'a str,
    /// Request method.
    pub method: &'a str,
    /// Host asked for, without port.
    pub host: &'a str,
    /// Path as it came, without query.
    pub path: &'a str,
    /// Query without `?`.
    pub query: Option<&'a str>,
    /// HTTP version towards the client.
    pub version: http::Version,
    /// TLS version (`1.2`, `1.3`); empty on plain HTTP.
    pub tls: &'a str,
    /// SHA-256 of the client's certificate in hexadecimal; empty where none was shown.
    pub client_cert: &'a str,
    /// Its subject.
    pub client_subject: &'a str,
    /// Status sent; 0 where none was.
    pub status: u16,
    /// How the request ended.
    pub outcome: Outcome,
    /// Bytes of the request body.
    pub bytes_in: u64,
    /// Bytes of the response body.
    pub bytes_out: u64,
    /// Microseconds from the request head to the end.
    pub micros: u64,
    /// Endpoint that was asked last; empty where none was.
    pub upstream: &'a str,
    /// Microseconds until the backend's first byte.
    pub upstream_micros: Option<u64>,
    /// Endpoints tried.
    pub tries: u32,
    /// `User-Agent`; empty where absent.
    pub user_agent: &'a [u8],
    /// `Referer`; empty where absent.
    pub referer: &'a [u8],
    /// Who it came from; empty where nobody was asked.
    pub user: &'a str,
    /// Policies in shadow that would have refused it.
    pub would_block: Marks,
    /// Id of the virtual patch that recognised it; empty where none did.
    pub patch: &'a str,
    /// Generation of the configuration that served the request.
    pub generation: u64,
}

/// Fields of the JSON shape: name and meaning. The table in `docs/operations.md` is written from this one.
pub const FIELDS: &[(&str, &str)] = &[
    ("time", "when the request head arrived, UTC, RFC 3339 with milliseconds"),
    ("id", "request id, as in `X-Request-Id`: 32 hexadecimal digits, or what a trusted proxy sent"),
    ("worker", "number of the worker"),
    ("client", "client address; cut to /24 (IPv4) or /48 (IPv6) under `privacy = \"strict\"`"),
    ("site", "site, `none` where no site has the name"),
    ("route", "route inside the site, `none` where no route matched"),
    (
        "service",
        "service asked last: site, `/`, route, and `#` with the part of a `split` it went to; `null` where none was",
    ),
    ("method", "request method"),
    ("host", "host asked for"),
    ("path", "path as it came, without the query"),
    ("query", "query; only with `privacy = \"full\"`, absent where there was none"),
    ("protocol", "`h1`, `h1.0` or `h2`"),
    ("tls", "TLS version, `1.2` or `1.3`; `null` on plain HTTP"),
    ("client_cert", "SHA-256 of the client's certificate, absent where it showed none"),
    (
        "client_subject",
        "subject of the client's certificate; only with `privacy = \"full\"`, absent where it showed none",
    ),
    ("status", "status sent; 0 where none was"),
    ("outcome", "how the request ended: a code of the outcome table"),
    ("blame", "whose fault the ending was: `none`, `client`, `tidegate`, `upstream`"),
    ("bytes_in", "bytes of the request body"),
    ("bytes_out", "bytes of the response body"),
    ("duration_us", "microseconds from the request head to the end"),
    ("upstream", "endpoint asked last; `null` where none was"),
    ("upstream_us", "microseconds until the backend's first byte; `null` where none came"),
    ("tries", "endpoints tried"),
    ("user_agent", "`User-Agent`; only with `privacy = \"full\"`, absent where there was none"),
    ("referer", "`Referer`; only with `privacy = \"full\"`, absent where there was none"),
    (
        "user",
        "who the client is, as `auth` found out; only with `privacy = \"full\"`, absent where nobody was asked",
    ),
    ("would_block", "policies in shadow that would have refused the request; absent where none would"),
    ("patch", "id of the virtual patch that recognised the request; absent where none did"),
    ("generation", "generation of the configuration that served the request"),
];

/// The formatted second, kept until the next one begins.
#[derive(Debug, Default)]
pub(super) struct Stamp {
    second: Option<u64>,
    rfc3339: Vec<u8>,
    clf: Vec<u8>,
}

impl Stamp {
    fn at(&mut self, second: u64) -> &Stamp {
        if self.second != Some(second) {
            self.second = Some(second);
            let (year, month, day) = clock::civil(second / 86_400);
            let (h, m, s) = (second / 3600 % 24, second / 60 % 60, second % 60);
            let name = MONTHS.get(month as usize - 1).unwrap_or(&"Jan");
            self.rfc3339.clear();
            put(&mut self.rfc3339, format_args!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}"));
            self.clf.clear();
            put(&mut self.clf, format_args!("{day:02}/{name}/{year:04}:{h:02}:{m:02}:{s:02} +0000"));
        }
        self
    }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// One JSON object and a line feed. Written piece by piece: `format!` costs more than all the rest of a record.
pub(super) fn json(out: &mut Vec<u8>, r: &Record<'_>, worker: usize, privacy: Privacy, stamp: &mut Stamp) {
    out.extend_from_slice(b"{\"time\":\"");
    out.extend_from_slice(&stamp.at(r.wall_ms / 1000).rfc3339);
    out.push(b'.');
    let ms = r.wall_ms % 1000;
    out.extend([100, 10, 1].map(|unit| b'0' + u8::try_from(ms / unit % 10).unwrap_or(0)));
    out.push(b'Z');
    text(out, b"\",\"id\":\"", r.request_id.as_bytes());
    number(out, b"\",\"worker\":", worker as u64);
    out.extend_from_slice(b",\"client\":\"");
    address(out, client(r, privacy));
    text(out, b"\",\"site\":\"", r.site.as_bytes());
    text(out, b"\",\"route\":\"", r.route.as_bytes());
    text_or_null(out, b"\",\"service\":", r.service);
    text(out, b",\"method\":\"", r.method.as_bytes());
    text(out, b"\",\"host\":\"", r.host.as_bytes());
    text(out, b"\",\"path\":\"", r.path.as_bytes());
    if let (Privacy::Full, Some(query)) = (privacy, r.query) {
        text(out, b"\",\"query\":\"", query.as_bytes());
    }
    word(out, b"\",\"protocol\":\"", protocol(r.version));
    text_or_null(out, b"\",\"tls\":", r.tls);
    if !r.client_cert.is_empty() {
        text_or_null(out, b",\"client_cert\":", r.client_cert);
        if privacy == Privacy::Full && !r.client_subject.is_empty() {
            text_or_null(out, b",\"client_subject\":", r.client_subject);
        }
    }
    number(out, b",\"status\":", r.status.into());
    word(out, b",\"outcome\":\"", r.outcome.code());
    word(out, b"\",\"blame\":\"", r.outcome.row().blame.as_str());
    number(out, b"\",\"bytes_in\":", r.bytes_in);
    number(out, b",\"bytes_out\":", r.bytes_out);
    number(out, b",\"duration_us\":", r.micros);
    text_or_null(out, b",\"upstream\":", r.upstream);
    match r.upstream_micros {
        Some(micros) => number(out, b",\"upstream_us\":", micros),
        None => out.extend_from_slice(b",\"upstream_us\":null"),
    }
    number(out, b",\"tries\":", r.tries.into());
    if privacy == Privacy::Full {
        for (name, value) in
            [(b",\"user_agent\":\"".as_slice(), r.user_agent), (b",\"referer\":\"", r.referer)]
        {
            if !value.is_empty() {
                text(out, name, value);
                out.push(b'"');
            }
        }
    }
    if privacy == Privacy::Full && !r.user.is_empty() {
        text_or_null(out, b",\"user\":", r.user);
    }
    if !r.would_block.is_empty() {
        let mut before = b",\"would_block\":[\"".as_slice();
        for kind in r.would_block.iter() {
            text(out, before, kind.as_str().as_bytes());
            before = b"\",\"";
        }
        out.extend_from_slice(b"\"]");
    }
    if !r.patch.is_empty() {
        text(out, b",\"patch\":\"", r.patch.as_bytes());
        out.push(b'"');
    }
    number(out, b",\"generation\":", r.generation);
    out.extend_from_slice(b"}\n");
}

/// The "combined" line of the Apache server, with its escapes.
pub(super) fn combined(out: &mut Vec<u8>, r: &Record<'_>, privacy: Privacy, stamp: &mut Stamp) {
    put(out, format_args!("{} - ", client(r, privacy)));
    match privacy {
        // A blank would end the field.
        Privacy::Full if !r.user.is_empty() => apache(out, r.user.replace(' ', "_").as_bytes()),
        _ => out.push(b'-'),
    }
    out.extend_from_slice(b" [");
    out.extend_from_slice(&stamp.at(r.wall_ms / 1000).clf);
    out.extend_from_slice(b"] \"");
    apache(out, r.method.as_bytes());
    out.push(b' ');
    apache(out, r.path.as_bytes());
    if let (Privacy::Full, Some(query)) = (privacy, r.query) {
        out.push(b'?');
        apache(out, query.as_bytes());
    }
    let version = match r.version {
        http::Version::HTTP_10 => "HTTP/1.0",
        http::Version::HTTP_2 => "HTTP/2.0",
        http::Version::HTTP_3 => "HTTP/3.0",
        _ => "HTTP/1.1",
    };
    put(out, format_args!(" {version}\" {} {}", r.status, r.bytes_out));
    for value in [r.referer, r.user_agent] {
        out.extend_from_slice(b" \"");
        match privacy {
            Privacy::Full if !value.is_empty() => apache(out, value),
            _ => out.push(b'-'),
        }
        out.push(b'"');
    }
    out.push(b'\n');
}

fn client(r: &Record<'_>, privacy: Privacy) -> IpAddr {
    match privacy {
        Privacy::Strict => truncated(r.client),
        Privacy::Full => r.client.to_canonical(),
    }
}

fn address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            number(out, b"", a.into());
            [b, c, d].into_iter().for_each(|octet| number(out, b".", octet.into()));
        }
        IpAddr::V6(v6) => put(out, format_args!("{v6}")),
    }
}

fn protocol(version: http::Version) -> &'static str {
    match version {
        http::Version::HTTP_10 => "h1.0",
        http::Version::HTTP_2 => "h2",
        http::Version::HTTP_3 => "h3",
        _ => "h1",
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text); // a Vec takes everything
}

fn number(out: &mut Vec<u8>, name: &[u8], value: u64) {
    out.extend_from_slice(name);
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// A word of ours, in which nothing needs an escape.
fn word(out: &mut Vec<u8>, name: &[u8], word: &'static str) {
    out.extend_from_slice(name);
    out.extend_from_slice(word.as_bytes());
}

/// Closes its own quotes, because `null` has none.
fn text_or_null(out: &mut Vec<u8>, name: &[u8], value: &str) {
    if value.is_empty() {
        out.extend_from_slice(name);
        out.extend_from_slice(b"null");
    } else {
        out.extend_from_slice(name);
        text(out, b"\"", value.as_bytes());
        out.push(b'"');
    }
}

/// `name` holds everything up to the opening quote; the closing one belongs to what comes next.
fn text(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    let (value, cut) = bounded(value);
    // Without an early end, so that the compiler may look at many bytes at once.
    let plain =
        value.iter().fold(true, |plain, &b| plain & (b' '..0x7f).contains(&b) & (b != b'"') & (b != b'\\'));
    if plain {
        out.extend_from_slice(value);
    } else {
        for chunk in value.utf8_chunks() {
            escape_json(out, chunk.valid());
            if !chunk.invalid().is_empty() {
                out.extend_from_slice(b"\\ufffd");
            }
        }
    }
    if cut {
        out.extend_from_slice("…".as_bytes());
    }
}

fn escape_json(out: &mut Vec<u8>, value: &str) {
    let mut plain = 0;
    for (at, c) in value.char_indices() {
        // RFC 8259 section 7 asks for the first three; DEL and C1 are for whoever reads the log on a terminal.
        if !matches!(c, '"' | '\\' | '\0'..='\x1f' | '\x7f'..='\u{9f}') {
            continue;
        }
        out.extend_from_slice(value.as_bytes().get(plain..at).unwrap_or_default());
        match c {
            '"' => out.extend_from_slice(b"\\\""),
            '\\' => out.extend_from_slice(b"\\\\"),
            c => put(out, format_args!("\\u{:04x}", u32::from(c))),
        }
        plain = at + c.len_utf8();
    }
    out.extend_from_slice(value.as_bytes().get(plain..).unwrap_or_default());
}

fn apache(out: &mut Vec<u8>, value: &[u8]) {
    let (value, cut) = bounded(value);
    for byte in value {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            0x20..=0x7e => out.push(*byte),
            byte => put(out, format_args!("\\x{byte:02x}")),
        }
    }
    if cut {
        out.extend_from_slice(b"...");
    }
}

fn bounded(value: &[u8]) -> (&[u8], bool) {
    match value.get(..FIELD_BYTES_MAX) {
        Some(head) if value.len() > FIELD_BYTES_MAX => (head, true),
        _ => (value, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_become_dates() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (20_513, (2026, 3, 1)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(clock::civil(days), date, "{days}");
        }
    }

    #[test]
    fn the_second_is_formatted_once_and_follows_the_clock_both_ways() {
        let mut stamp = Stamp::default();
        assert_eq!(stamp.at(951_782_399).rfc3339, b"2000-02-28T23:59:59");
        assert_eq!(stamp.at(951_782_400).clf, b"29/Feb/2000:00:00:00 +0000");
        assert_eq!(stamp.at(951_782_399).rfc3339, b"2000-02-28T23:59:59");
    }
}
