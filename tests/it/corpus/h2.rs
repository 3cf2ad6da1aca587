//! HTTP/2: frames as written, then another stream on the same connection.

use super::case::{self, Section};
use super::recorder::{Event, Recorder, compare};
use super::{SITE, house, report};
use crate::harness::h2raw::{CONTINUATION, DATA, END_HEADERS, END_STREAM, End, HEADERS, RawH2, block, frame};
use crate::harness::{Proxy, tls, within};

/// Payload of one frame (RFC 9113 section 4.2: every peer takes as much).
const FRAME: usize = 16_384;

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The frames of a case, on stream 1.
fn frames(section: &Section) -> Vec<u8> {
    let (mut fields, mut trailers, mut data) = (Fields::new(), Fields::new(), Vec::new());
    let field = |text: &str| {
        let (name, value) = text.split_once(" =").unwrap_or_else(|| panic!("{text}"));
        (case::bytes(name), case::bytes(value.strip_prefix(' ').unwrap_or(value)))
    };
    for (key, value) in &section.lines {
        match key.as_str() {
            "request" => fields.extend(request(value)),
            "h" => fields.push(field(value)),
            "t" => trailers.push(field(value)),
            "data" => data.push(case::bytes(value)),
            _ => {}
        }
    }
    let end = if section.get("end") == Some("no") { 0 } else { END_STREAM };
    let mut out = head(&fields, if data.is_empty() && trailers.is_empty() { end } else { 0 });
    let last = data.len().saturating_sub(1);
    for (index, piece) in data.iter().enumerate() {
        let flags = if index == last && trailers.is_empty() { end } else { 0 };
        out.extend(frame(DATA, flags, 1, piece));
    }
    if !trailers.is_empty() {
        out.extend(head(&trailers, end));
    }
    out
}

/// `METHOD target`, to our site.
fn request(text: &str) -> Fields {
    let (method, path) = text.split_once(' ').expect("a method and a target");
    let pairs = [(":method", method), (":scheme", "https"), (":authority", SITE), (":path", path)];
    pairs.map(|(name, value)| (name.as_bytes().to_vec(), case::bytes(value))).to_vec()
}

fn head(fields: &Fields, flags: u8) -> Vec<u8> {
    let block = block(fields);
    let mut pieces = block.chunks(FRAME).peekable();
    let mut out = Vec::new();
    let (mut kind, mut flags) = (HEADERS, flags);
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { END_HEADERS } else { 0 };
        out.extend(frame(kind, flags | last, 1, piece));
        (kind, flags) = (CONTINUATION, 0);
    }
    out
}

fn safe(end: &End, expected: &str) -> bool {
    expected.split('|').any(|word| match (word, end) {
        ("reset", End::Reset(_)) | ("goaway", End::Closed(Some(_))) => true,
        (word, End::Whole { status, .. }) => word == status.to_string(),
        // An early answer, and the rest of the request is not wanted.
        (word, End::Cut { status, code: 0, .. }) => word == status.to_string(),
        _ => false,
    })
}

async fn run(proxy: &Proxy, recorder: &Recorder, section: &Section) -> Vec<String> {
    let expected = section.get("client").unwrap_or("reset|400");
    let config = tls::client_config(&proxy.ca_pem(), &["h2"], &[&rustls::version::TLS13]);
    let wire = tls::connect(config, proxy.https(), SITE).await.expect("TLS for h2");
    let mut h2 = RawH2::over(wire).await;
    h2.send(&frames(section)).await;
    let mut wrong = Vec::new();
    let end = within(&section.name, h2.end(1)).await;
    if !safe(&end, expected) {
        wrong.push(format!("the client saw {end:?} instead of {expected}"));
    }
    // One bad stream must not cost the others anything (RFC 9113 section 5.4.2).
    if !matches!(end, End::Closed(_)) {
        let block = block(&request("GET /follower"));
        h2.send(&frame(HEADERS, END_HEADERS | END_STREAM, 3, &block)).await;
        let follower = within("the stream behind it", h2.end(3)).await;
        if !matches!(&follower, End::Whole { status: 200, body, .. } if body == b"ok") {
            wrong.push(format!("the stream behind it saw {follower:?}"));
        }
    }
    let marker = within("the marker", async { proxy.plain().await.get(SITE, "/marker").await }).await;
    if marker.status != 200 || marker.text() != "ok" {
        wrong.push(format!("the next client was answered {} {:?}", marker.status, marker.text()));
    }
    // Streams have no order, so the two requests of ours are taken out wherever they stand.
    let mut events = recorder.take().await;
    let ours = |event: &Event| match event {
        Event::Request(message) => ["/follower", "/marker"].contains(&message.second()),
        _ => false,
    };
    events.retain(|event| !ours(event));
    wrong.extend(compare(&case::arrivals(section), &events));
    wrong
}

#[tokio::test]
async fn every_case_of_http2_ends_safely_on_both_sides() {
    let recorder = Recorder::start().await;
    let proxy = house(&recorder).await;
    let cases = case::sections("h2");
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    let mut findings = Vec::new();
    for section in &cases {
        let wrong = run(&proxy, &recorder, section).await;
        findings.extend(wrong.into_iter().map(|w| format!("{}: {w}", section.name)));
    }
    report(cases.len(), findings);
}
