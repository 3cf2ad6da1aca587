//! The framer alone: whole streams of bytes, cut at every place, must get the same verdict.

use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits { head: 1024, uri: 128, fields: 10 };

/// Runs a stream through the framer in pieces; gives what passed, and why it ended.
fn run(bytes: &[u8], piece: usize) -> (Vec<u8>, Option<Outcome>) {
    let mut framer = Framer::new(LIMITS);
    let (mut held, mut passed) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        held.extend_from_slice(piece);
        loop {
            if held.is_empty() {
                break;
            }
            match framer.step(&held) {
                Ok(Step::Pass(count)) => passed.extend(held.drain(..count)),
                Ok(Step::More | Step::Wait) => break,
                Err(outcome) => return (passed, Some(outcome)),
            }
        }
    }
    (passed, None)
}

fn verdict(text: &str) -> Option<Outcome> {
    let whole = run(text.as_bytes(), text.len().max(1)).1;
    for piece in 1..text.len().min(40) {
        assert_eq!(run(text.as_bytes(), piece).1, whole, "cut every {piece} bytes: {text:?}");
    }
    whole
}

#[test]
fn heads_with_more_than_one_reading_are_refused() {
    use Outcome::{BadFraming, BadHost, BadRequest};
    let head = |fields: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
    let cases = [
        ("GET / HTTP/1.1\nHost: a\n\n".to_owned(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n".to_owned(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n".to_owned(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n".to_owned(), BadRequest),
        ("GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n".to_owned(), BadRequest),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n".to_owned(), BadRequest),
        ("GET / HTTP/1.1\r\n: a\r\nHost: a\r\n\r\n".to_owned(), BadRequest),
        ("GET / HTTP/1.1\r\nno colon\r\nHost: a\r\n\r\n".to_owned(), BadRequest),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), BadRequest),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n".to_owned(), BadRequest),
        ("GET /a b HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), BadRequest),
        ("GET /#x HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), BadRequest),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n".to_owned(), BadRequest),
        ("GET / http/1.1\r\nHost: a\r\n\r\n".to_owned(), BadRequest),
        ("GET /\r\n\r\n".to_owned(), BadRequest),
        ("G\u{7f}T / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), BadRequest),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(), BadRequest),
        ("\r\n\n".to_owned(), BadRequest),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\n\r\n", "x".repeat(1100)), Outcome::HeadTooLarge),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), BadHost),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n".to_owned(), BadHost),
        (head("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), BadFraming),
        (head("Transfer-Encoding: chunked\r\nContent-Length: 1\r\n"), BadFraming),
        (head("Content-Length: 1\r\nContent-Length: 1\r\n"), BadFraming),
        (head("Content-Length: 1\r\nContent-Length: 2\r\n"), BadFraming),
        (head("Content-Length: 1, 1\r\n"), BadFraming),
        (head("Content-Length: +1\r\n"), BadFraming),
        (head("Content-Length: 0x1\r\n"), BadFraming),
        (head("Content-Length: \r\n"), BadFraming),
        (head("Content-Length: 99999999999999999999\r\n"), BadFraming),
        (head("Transfer-Encoding: gzip, chunked\r\n"), BadFraming),
        (head("Transfer-Encoding: chunked, chunked\r\n"), BadFraming),
        (head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), BadFraming),
        (head("Transfer-Encoding: xchunked\r\n"), BadFraming),
        (head("Transfer-Encoding: \"chunked\"\r\n"), BadFraming),
        (head("Transfer-Encoding: identity\r\n"), BadFraming),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), BadFraming),
    ];
    for (text, expected) in cases {
        assert_eq!(verdict(&text), Some(expected), "{text:?}");
    }
}

#[test]
fn chunks_with_more_than_one_reading_are_refused() {
    let body =
        |chunks: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    for chunks in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "5\r\nhello\rX0\r\n\r\n",
        "\r\nhello\r\n",
        "5 \r\nhello\r\n0\r\n\r\n",
        " 5\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
        "-1\r\nhello\r\n0\r\n\r\n",
        "5_0\r\nhello\r\n0\r\n\r\n",
        "ffffffffffffffff\r\nhello",
        "5;a\rb\r\nhello\r\n0\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\n\r\n",
        "0\r\n\n",
    ] {
        let text = body(chunks);
        assert!(matches!(verdict(&text), Some(Outcome::BadFraming)), "{chunks:?}: {:?}", verdict(&text));
    }
    assert_eq!(verdict(&body("0\r\n folded\r\n\r\n")), Some(Outcome::BadRequest));
    assert_eq!(verdict(&body(&format!("5;{}\r\nhello\r\n", "x".repeat(300)))), Some(Outcome::BadFraming));
}

#[test]
fn sizes_are_bounded_and_told_apart() {
    let uri = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(200));
    assert_eq!(verdict(&uri), Some(Outcome::UriTooLong));
    let endless = format!("GET /{}", "x".repeat(2_000));
    assert_eq!(verdict(&endless), Some(Outcome::UriTooLong));
    let field = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(2_000));
    assert_eq!(verdict(&field), Some(Outcome::HeadTooLarge));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(10));
    assert_eq!(verdict(&many), Some(Outcome::HeadTooLarge));
}

#[test]
fn honest_streams_pass_whole() {
    for text in [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n5;ext=\"1\"\r\nhello\r\nA\r\n0123456789\r\n\
         0\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: caf\u{e9}\t1\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    ] {
        for piece in [1, 2, 7, text.len()] {
            assert_eq!(run(text.as_bytes(), piece), (text.as_bytes().to_vec(), None), "{piece}: {text:?}");
        }
    }
}

#[test]
fn nothing_passes_behind_a_request_to_switch_protocols_until_it_is_decided() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n";
    let mut framer = Framer::new(LIMITS);
    assert_eq!(framer.step(head.as_bytes()), Ok(Step::Pass(head.len())));
    assert_eq!(framer.step(b"\x81\x05hello"), Ok(Step::Wait));
    framer.not_switched();
    assert_eq!(framer.step(b"\x81\x05hello\n"), Err(Outcome::BadRequest));
}

proptest! {
    #[test]
    fn any_bytes_get_one_verdict_however_they_are_cut(
        bytes in proptest::collection::vec(prop_oneof![
            Just(b"GET / HTTP/1.1\r\nHost: a\r\n".to_vec()),
            Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
            Just(b"Content-Length: 3\r\n".to_vec()),
            Just(b"\r\n".to_vec()),
            Just(b"3\r\nabc\r\n".to_vec()),
            Just(b"0\r\n\r\n".to_vec()),
            proptest::collection::vec(any::<u8>(), 0..6),
        ], 0..12),
        piece in 1usize..20,
    ) {
        let bytes = bytes.concat();
        let whole = run(&bytes, bytes.len().max(1));
        let cut = run(&bytes, piece);
        prop_assert_eq!(whole.1, cut.1);
        prop_assert_eq!(whole.0, cut.0);
    }
}
