//! The PROXY header: one verdict wherever the bytes are cut, once an error always an error, nothing taken beyond the
//! header, and what we write reads back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate::net::proxy_protocol::{Parsed, V2_BYTES_MAX, parse, write_v2};

fuzz_target!(|bytes: &[u8]| {
    let whole = parse(bytes);
    let mut ended = None;
    for length in 0..=bytes.len().min(V2_BYTES_MAX) {
        let part = parse(&bytes[..length]);
        match ended {
            None if part != Ok(Parsed::Incomplete) => ended = Some(part),
            None => {}
            Some(before) => assert_eq!(part, before, "another verdict for {length} bytes"),
        }
    }
    if bytes.len() <= V2_BYTES_MAX {
        assert_eq!(whole, ended.unwrap_or(Ok(Parsed::Incomplete)));
    }
    let Ok(Parsed::Complete(header)) = whole else { return };
    assert!((1..=bytes.len().min(V2_BYTES_MAX)).contains(&header.consumed));
    assert_eq!(header.source.is_some(), header.destination.is_some());
    if let (Some(source), Some(destination)) = (header.source, header.destination) {
        let written = write_v2(source, destination);
        let Ok(Parsed::Complete(again)) = parse(&written) else { panic!("what we wrote does not read") };
        assert_eq!(again.consumed, written.len());
        assert_eq!(
            again.source.map(|s| (s.ip().to_canonical(), s.port())),
            Some((source.ip().to_canonical(), source.port()))
        );
    }
});
