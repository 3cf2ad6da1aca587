//! The framer alone: what passes, what is a fault, and the same verdict wherever the bytes are cut.

use super::*;
use proptest::prelude::*;

/// Runs the answers to one request through the framer in pieces; gives what passed, and what was wrong.
fn run(bytes: &[u8], piece: usize, method: &Method, upgrade: bool) -> (usize, Option<Fault>, bool) {
    let asked = Rc::new(Asked::default());
    asked.ask(method, upgrade);
    let mut framer = Framer::new(asked, 1024);
    let (mut held, mut passed) = (Vec::new(), 0);
    for piece in bytes.chunks(piece) {
        held.extend_from_slice(piece);
        while !held.is_empty() {
            match framer.step(&held) {
                Ok(Step::Pass(count)) => passed += held.drain(..count).count(),
                Ok(Step::More | Step::Wait) => break,
                Err(fault) => return (passed, Some(fault), false),
            }
        }
    }
    (passed, None, framer.between())
}

fn verdict(text: &str) -> Option<Fault> {
    let whole = run(text.as_bytes(), text.len().max(1), &Method::GET, false).1;
    for piece in 1..text.len().min(40) {
        assert_eq!(run(text.as_bytes(), piece, &Method::GET, false).1, whole, "every {piece}: {text:?}");
    }
    whole
}

#[test]
fn answers_with_more_than_one_reading_are_faults() {
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    let cases = [
        ("HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n".to_owned(), Fault::Grammar),
        ("HTTP/1.1 200 O\0K\r\n\r\n".to_owned(), Fault::Grammar),
        ("HTTP/1.1 200OK\r\n\r\n".to_owned(), Fault::Grammar),
        ("HTTP/1.1  200 OK\r\n\r\n".to_owned(), Fault::Grammar),
        ("HTTP/1.1 2e2 OK\r\n\r\n".to_owned(), Fault::Grammar),
        ("HTTP/1.1 +20 OK\r\n\r\n".to_owned(), Fault::Grammar),
        ("HTTP/1.1 099 Low\r\n\r\n".to_owned(), Fault::Grammar),
        ("HTTP/1.1 600 High\r\n\r\n".to_owned(), Fault::Grammar),
        ("HTTP/2 200\r\n\r\n".to_owned(), Fault::Grammar),
        ("http/1.1 200 OK\r\n\r\n".to_owned(), Fault::Grammar),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n".to_owned(), Fault::Grammar),
        (head("X: 1\r\n folded\r\n"), Fault::Grammar),
        (head("X : 1\r\n"), Fault::Grammar),
        (head("X: a\rb\r\n"), Fault::Grammar),
        (head("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n"), Fault::Framing),
        (head("Content-Length: 1\r\nContent-Length: 1\r\n"), Fault::Framing),
        (head("Content-Length: 1, 1\r\n"), Fault::Framing),
        (head("Content-Length: \r\n"), Fault::Framing),
        (head("Transfer-Encoding: gzip, chunked\r\n"), Fault::Framing),
        (head("Transfer-Encoding: identity\r\n"), Fault::Framing),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), Fault::Framing),
        (head("Transfer-Encoding: chunked\r\n") + "5 \r\nhello\r\n0\r\n\r\n", Fault::Framing),
        (head("Transfer-Encoding: chunked\r\n") + "0\r\nContent-Length: 1\r\n\r\n", Fault::Framing),
        (head("Content-Length: 2\r\n") + "okmore", Fault::Unasked),
        ("HTTP/1.1 204 No\r\n\r\nbody".to_owned(), Fault::Unasked),
        ("HTTP/1.1 304 No\r\nContent-Length: 4\r\n\r\nbody".to_owned(), Fault::Unasked),
        ("HTTP/1.1 101 Switch\r\n\r\n".to_owned(), Fault::Switched),
        ("HTTP/1.1 100 Go\r\n\r\n".repeat(17), Fault::Interim),
        (head(&format!("X: {}\r\n", "x".repeat(1024))), Fault::TooLarge),
    ];
    for (text, expected) in cases {
        assert_eq!(verdict(&text), Some(expected), "{text:?}");
    }
}

#[test]
fn honest_answers_pass_whole() {
    let whole = |text: &str, method: &Method, upgrade: bool| {
        let found = run(text.as_bytes(), 3, method, upgrade);
        assert_eq!((found.0, found.1), (text.len(), None), "{text:?}");
        found.2
    };
    let get = |text: &str| whole(text, &Method::GET, false);
    assert!(get("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
    assert!(get("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n"));
    assert!(get("HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 103 Hint\r\nLink: x\r\n\r\nHTTP/1.1 204 \r\n\r\n"));
    assert!(get("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x\r\nhello\r\n0\r\nSum: 1\r\n\r\n"));
    assert!(get("HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\n\r\n"));
    assert!(!get("HTTP/1.0 200 OK\r\n\r\nuntil the end"), "the end of the connection ends it");
    assert!(whole("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", &Method::HEAD, false));
    assert!(!whole("HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nany\nthing\0", &Method::GET, true));
}

proptest! {
    #[test]
    fn any_bytes_get_one_verdict_however_they_are_cut(
        bytes in proptest::collection::vec(prop_oneof![
            Just(b"HTTP/1.1 200 OK\r\n".to_vec()),
            Just(b"HTTP/1.1 100 Go\r\n\r\n".to_vec()),
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
        let whole = run(&bytes, bytes.len().max(1), &Method::GET, false);
        prop_assert_eq!(whole, run(&bytes, piece, &Method::GET, false));
    }
}
