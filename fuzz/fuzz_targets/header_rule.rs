//! Header edits and trailers: whatever compiles leaves legal fields, what was removed is gone, what was set stands once.
//! The input is lines: a letter (`r`emove, `s`et, `a`dd, or a field of the message), a name, `:`, a value.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use tidegate::config::model;
use tidegate::base::template::Variable;
use tidegate::policy::header::{Facts, HeaderEdits};
use tidegate::proxy::fields;

struct Nothing;

impl Facts for Nothing {
    fn write(&self, _: Variable, out: &mut Vec<u8>) {
        out.extend_from_slice(b"x");
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut edits = model::HeaderEdits::default();
    let mut headers = HeaderMap::new();
    for line in text.split('\n').take(64) {
        let mut letters = line.chars();
        let kind = letters.next();
        let (name, value) = letters.as_str().split_once(':').unwrap_or((letters.as_str(), ""));
        let pair = (name.to_owned(), value.to_owned());
        match kind {
            Some('r') => edits.remove.push(pair.0),
            Some('s') => edits.set.push(pair),
            Some('a') => edits.add.push(pair),
            _ => {
                if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                    headers.append(name, value);
                }
            }
        }
    }
    let mut trailers = headers.clone();
    fields::clean_trailers(&mut trailers);
    for name in ["connection", "content-length", "host", "transfer-encoding", "x-forwarded-for", "cookie"] {
        assert!(!trailers.contains_key(name), "{name} in trailers");
    }
    let Ok(compiled) = HeaderEdits::compile(&edits) else { return };
    compiled.apply(&mut headers, &Nothing);
    let known =
        |name: &str, list: &[(String, String)]| list.iter().any(|(n, _)| n.eq_ignore_ascii_case(name));
    for name in &edits.remove {
        if !known(name, &edits.set) && !known(name, &edits.add) {
            assert!(!headers.contains_key(name.as_str()), "{name} was removed");
        }
    }
    for (name, _) in &edits.set {
        if !known(name, &edits.add) {
            assert_eq!(headers.get_all(name.as_str()).iter().count(), 1, "{name} was set");
        }
    }
    for (_, value) in &headers {
        assert!(!value.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
    }
    assert_eq!(compiled.is_empty(), edits.remove.is_empty() && edits.set.is_empty() && edits.add.is_empty());
});
