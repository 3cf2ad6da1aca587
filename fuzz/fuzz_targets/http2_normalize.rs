//! A head over HTTP/2 is refused, or what is sent on over HTTP/1.1 is by the letter and means the same. The input is
//! lines: the method, the URI, then name and value by turns.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/it/harness/pipeline.rs"]
#[allow(dead_code)]
mod pipeline;
#[path = "../../tests/it/harness/strict.rs"]
#[allow(dead_code)]
mod strict;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|&b| b == b'\n');
    let mut text = || lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let (Some(method), Some(uri)) = (text(), text()) else { return };
    let (method, uri) = (method.to_owned(), uri.to_owned());
    let mut fields = Vec::new();
    while let (Some(name), Some(value)) = (lines.next(), lines.next()) {
        fields.push((name.to_vec(), value.to_vec()));
    }
    if let Some(Ok(sent)) = pipeline::http2(&method, &uri, &fields) {
        pipeline::holds(&sent);
    }
});
