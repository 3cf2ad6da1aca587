//! The check before hyper's client: whatever of a backend's bytes passes is one answer by the letter, wherever the
//! bytes are cut. The first byte of the input chooses the method.
#![no_main]

use std::rc::Rc;

use http::Method;
use libfuzzer_sys::fuzz_target;
use tidegate::net::http1::Step;
use tidegate::upstream::answer::{Asked, Fault, Framer};

#[path = "../../tests/it/harness/strict.rs"]
#[allow(dead_code)]
mod strict;

/// Runs the answer to one request through the framer in pieces; gives what passed, why it ended, and whether the
/// answer is complete.
fn run(bytes: &[u8], piece: usize, method: &Method) -> (Vec<u8>, Option<Fault>, bool) {
    let asked = Rc::new(Asked::default());
    asked.ask(method, false);
    let mut framer = Framer::new(asked, 4096);
    let (mut held, mut passed) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        held.extend_from_slice(piece);
        while !held.is_empty() {
            match framer.step(&held) {
                Ok(Step::Pass(count)) => passed.extend(held.drain(..count)),
                Ok(Step::More | Step::Wait) => break,
                Err(fault) => return (passed, Some(fault), framer.between()),
            }
        }
    }
    (passed, None, framer.between())
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, bytes)) = input.split_first() else { return };
    let method = if kind % 2 == 0 { Method::GET } else { Method::HEAD };
    let (passed, fault, complete) = run(bytes, bytes.len().max(1), &method);
    for piece in [1, 3, 64] {
        let cut = run(bytes, piece, &method);
        assert_eq!((&cut.0, cut.1), (&passed, fault), "cut every {piece} bytes");
    }
    // Interim answers, then one final one, and nothing behind it.
    let mut rest = &passed[..];
    let mut finals = 0;
    while !rest.is_empty() {
        assert_eq!(finals, 0, "bytes passed behind the final answer: {}", rest.escape_ascii());
        match strict::answer(rest, method.as_str(), true) {
            strict::Read::Whole(message, end) => {
                finals += usize::from(!message.second().starts_with('1'));
                rest = &rest[end..];
            }
            strict::Read::Part => break,
            // Two things are let pass on purpose: no space before no reason, and a length where there is no body.
            strict::Read::Bad(why) if why.starts_with("status line") || why.contains("with a body's") => {
                return;
            }
            strict::Read::Bad(why) => panic!("passed, but {why}: {}", rest.escape_ascii()),
        }
    }
    assert!(!complete || passed.is_empty() || finals == 1, "complete without an answer");
});
