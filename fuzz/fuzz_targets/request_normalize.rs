//! A head over HTTP/1 is refused, or what is sent on is by the letter, means the same, and is sent on again as it is.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/harness/pipeline.rs"]
#[allow(dead_code)]
mod pipeline;
#[path = "../../tests/it/harness/strict.rs"]
#[allow(dead_code)]
mod strict;

fuzz_target!(|bytes: &[u8]| {
    if let Some(Ok(sent)) = pipeline::http1(bytes) {
        pipeline::holds(&sent);
    }
});
