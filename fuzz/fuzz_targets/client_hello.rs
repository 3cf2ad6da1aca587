//! What comes on a TLS port before there is a site: rustls reads the ClientHello, wherever its bytes are cut, and what
//! it tells is looked up. The first byte of the input says how many bytes come at once.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;

fuzz_target!(|input: &[u8]| {
    let Some((piece, bytes)) = input.split_first() else { return };
    let mut acceptor = Acceptor::default();
    for mut piece in bytes.chunks(usize::from(*piece).max(1)) {
        while !piece.is_empty() {
            let Ok(read) = acceptor.read_tls(&mut (&mut piece as &mut dyn Read)) else { return };
            if read == 0 {
                break;
            }
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    if let Some(name) = hello.server_name() {
                        assert!(!name.is_empty() && name.is_ascii(), "{name}");
                    }
                    let _ = hello.alpn().map(|names| names.count());
                    return;
                }
                Err((_, mut alert)) => {
                    let mut out = Vec::new();
                    alert.write_all(&mut out).expect("memory");
                    return;
                }
            }
        }
    }
});
