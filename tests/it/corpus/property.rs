//! What holds for every head: it is refused, or what is sent on is by the letter, says the same, and is sent on again
//! as it is.

use proptest::prelude::*;

use super::case;
use crate::harness::pipeline::{self, holds};

/// Pieces of request lines and fields, honest and not; and bytes.
fn piece(pieces: &'static [&'static str]) -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        8 => prop::sample::select(pieces).prop_map(|text| text.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..4),
    ]
}

const METHODS: &[&str] = &["GET", "POST", "OPTIONS", "get", "M!", "TRACE", "CONNECT", ""];
const TARGETS: &[&str] = &[
    "/",
    "a",
    ".",
    "..",
    "%2e",
    "%2F",
    "%5c",
    "%00",
    "%41",
    "%e4",
    "\u{e4}",
    ";v=1",
    "?",
    "q=\u{e4}",
    "*",
    "#",
    "@",
    ":80",
    "http://a.test",
    "https://a.test",
    "ftp://a.test",
    "//",
    "\\",
    "[::1]",
    "{",
    "|",
    "~",
    "%",
];
const HOSTS: &[&str] =
    &["a.test", "A.test", "b.test", "a.test.", ":80", ":", "[::1]", "127.0.0.1", "127.1", "a..b", "_", "x@"];
const NAMES: &[&str] = &[
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "x-forwarded-for",
    "X_Forwarded_For",
    "x.real.ip",
    "te",
    "upgrade",
    "expect",
    "cookie",
    "trailer",
    "keep-alive",
    "x-a",
    "x_a",
    "forwarded",
    "x-request-id",
];
const VALUES: &[&str] = &[
    "",
    "1",
    "010",
    "chunked",
    "close",
    "upgrade",
    "x-forwarded-for",
    "host",
    "websocket",
    "h2c",
    "trailers",
    "a=1",
    "100-continue",
    "6.6.6.6",
    ", ",
    "\t",
    "\u{e4}",
    "a.test",
];

fn joined(pieces: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(piece(pieces), 0..most).prop_map(|pieces| pieces.concat())
}

fn head() -> impl Strategy<Value = Vec<u8>> {
    let field = (piece(NAMES), joined(VALUES, 3))
        .prop_map(|(n, v)| [n, b": ".to_vec(), v, b"\r\n".to_vec()].concat());
    let version = prop_oneof![9 => Just("HTTP/1.1"), 1 => Just("HTTP/1.0")];
    let parts =
        (piece(METHODS), joined(TARGETS, 6), version, joined(HOSTS, 3), prop::collection::vec(field, 0..6));
    parts.prop_map(|(method, target, version, host, fields)| {
        let target = if target.is_empty() { b"/".to_vec() } else { target };
        let line =
            [&method[..], b" ", &target, b" ", version.as_bytes(), b"\r\nHost: ", &host, b"\r\n"].concat();
        [line, fields.concat(), b"\r\n".to_vec()].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn every_head_is_refused_or_sent_on_by_the_letter(bytes in head()) {
        if let Some(Ok(sent)) = pipeline::http1(&bytes) {
            holds(&sent);
        }
    }

    #[test]
    fn every_head_of_http2_is_refused_or_sent_on_by_the_letter(
        method in piece(METHODS),
        host in joined(HOSTS, 3),
        target in joined(TARGETS, 6),
        fields in prop::collection::vec((piece(NAMES), joined(VALUES, 3)), 0..6),
    ) {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap_or_default();
        let uri = format!("https://{}/{}", text(host), text(target));
        if let Some(Ok(sent)) = pipeline::http2(&text(method), &uri, &fields) {
            holds(&sent);
        }
    }
}

/// The properties are only worth something if honest heads get through.
#[test]
fn every_case_of_the_corpus_holds_too() {
    let mut sent = 0;
    for section in case::sections("h1") {
        let lines = section.lines.iter().filter(|(key, _)| key == ">");
        let bytes: Vec<u8> = lines.flat_map(|(_, text)| case::bytes(text)).collect();
        if let Some(Ok(head)) = pipeline::http1(&bytes) {
            holds(&head);
            sent += 1;
        }
    }
    assert!(sent > 100, "only {sent} heads of the corpus got through");
}
