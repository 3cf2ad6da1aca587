//! The guard before hyper: whatever it lets pass is a row of requests by the letter, wherever the bytes are cut.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::base::outcome::Outcome;
use tidegate::proxy::guard::{Framer, Limits, Step};

#[path = "../../tests/it/harness/strict.rs"]
#[allow(dead_code)]
mod strict;

const LIMITS: Limits = Limits { head: 4096, uri: 1024, fields: 20 };

/// Runs a stream through the guard's framer in pieces; gives what passed, and why it ended.
fn run(bytes: &[u8], piece: usize) -> (Vec<u8>, Option<Outcome>) {
    let mut framer = Framer::new(LIMITS);
    let (mut held, mut passed) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(piece) {
        held.extend_from_slice(piece);
        while !held.is_empty() {
            match framer.step(&held) {
                Ok(Step::Pass(count)) => passed.extend(held.drain(..count)),
                Ok(Step::More) => break,
                // As the guard does where the backend did not switch.
                Ok(Step::Wait) if framer.switching() => framer.not_switched(),
                Ok(Step::Wait) => return (passed, None),
                Err(outcome) => return (passed, Some(outcome)),
            }
        }
    }
    (passed, None)
}

fuzz_target!(|bytes: &[u8]| {
    let (passed, verdict) = run(bytes, bytes.len().max(1));
    for piece in [1, 3, 64] {
        let cut = run(bytes, piece);
        assert_eq!(cut, (passed.clone(), verdict), "cut every {piece} bytes");
    }
    let mut rest = &passed[..];
    while !rest.is_empty() {
        // RFC 9112 section 2.2: one empty line before a request is ignored.
        let start = rest.strip_prefix(b"\r\n").unwrap_or(rest);
        match strict::request(start) {
            strict::Read::Whole(_, end) => rest = &start[end..],
            strict::Read::Part => break,
            // What is bad may only begin behind what passed.
            strict::Read::Bad(why) => panic!("passed, but {why}: {}", rest.escape_ascii()),
        }
    }
    // What is not refused and not waited for has passed up to a line that is not whole.
    if verdict.is_none() && passed.len() == bytes.len() {
        return;
    }
    // By the letter, and refused: only for a limit, or for what the guard refuses on purpose.
    if let (strict::Read::Whole(message, end), Some(outcome), true) =
        (strict::request(bytes), verdict, passed.is_empty())
    {
        let trailer = ["content-length", "transfer-encoding", "host", "authorization", "trailer"];
        let ours = end > 2048
            || message.fields.len() > 20
            || message.second().len() > 1024
            || message.field_is_padded()
            || message.trailers.iter().any(|(name, _)| trailer.contains(&name.as_str()));
        assert!(ours, "refused with {outcome:?}, but by the letter: {}", bytes.escape_ascii());
    }
});
