//! Pairs of files, bad ones first.

use std::fs;

use rcgen::{CertificateParams, KeyPair};

use super::*;

struct Pair {
    cert: String,
    key: String,
}

fn pair(names: &[&str]) -> Pair {
    let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    Pair { cert: made.cert.pem(), key: made.signing_key.serialize_pem() }
}

fn block(label: &str, body: &str) -> String {
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

#[test]
fn each_bad_pair_is_told_which_file_and_why() {
    let (own, other) = (pair(&["a.test"]), pair(&["b.test"]));
    let encrypted = block("ENCRYPTED PRIVATE KEY", "AAAA");
    let old_encrypted = block("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA");
    let many = own.cert.repeat(17);
    let damaged_later = format!("{}{}", own.cert, block("CERTIFICATE", "AAAA"));
    let wrong_order = format!("{}{}", other.cert, own.cert);
    let cut = own.cert.replace("-----END CERTIFICATE-----", "");
    let cases: &[(&str, &str, Which, &str)] = &[
        ("", &own.key, Which::Cert, "is empty"),
        ("\u{30}\u{1}", &own.key, Which::Cert, "no certificate"),
        ("hello", &own.key, Which::Cert, "no certificate"),
        (&own.key, &own.key, Which::Cert, "private key but no certificate"),
        (&block("CERTIFICATE", "AAAA"), &own.key, Which::Cert, "no X.509"),
        (&block("CERTIFICATE", "*"), &own.key, Which::Cert, "damaged"),
        (&block("CERTIFICATE", ""), &own.key, Which::Cert, "no X.509"),
        (&cut, &own.key, Which::Cert, "damaged"),
        (&damaged_later, &own.key, Which::Cert, "Certificate 2"),
        (&many, &own.key, Which::Cert, "17 certificates"),
        (&wrong_order, &own.key, Which::Cert, "belongs to certificate 2"),
        (&own.cert, "", Which::Key, "is empty"),
        (&own.cert, "hello", Which::Key, "no private key"),
        (&own.cert, &own.cert, Which::Key, "certificate but no private key"),
        (&own.cert, &encrypted, Which::Key, "passphrase"),
        (&own.cert, &old_encrypted, Which::Key, "passphrase"),
        (&own.cert, &block("PRIVATE KEY", "AAAA"), Which::Key, "cannot be used"),
        (&own.cert, &block("PRIVATE KEY", "*"), Which::Key, "damaged"),
        (&own.cert, &other.key, Which::Key, "belongs to another certificate"),
    ];
    for (cert, key, which, said) in cases {
        let error = from_bytes(cert.as_bytes(), key.as_bytes()).unwrap_err();
        assert_eq!(error.which, *which, "{said}: {error}");
        assert!(error.message.contains(said), "wanted {said:?}: {error}");
        assert!(error.message.ends_with('.') && error.help.ends_with(['.', ')']), "{error}");
    }
    let der = own.cert.as_bytes();
    assert!(
        from_bytes(&[&[0x30, 0x82, 1, 2], der].concat()[..4], own.key.as_bytes())
            .unwrap_err()
            .message
            .contains("DER")
    );
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let own = pair(&["a.test"]);
    let (cert, key) = (folder.path().join("c.pem"), folder.path().join("k.pem"));
    fs::write(&cert, &own.cert).unwrap();
    let error = load(&cert, &key).unwrap_err();
    assert_eq!(error.which, Which::Key);
    assert!(error.message.ends_with("k.pem does not exist."), "{error}");
    let error = load(folder.path(), &key).unwrap_err();
    assert_eq!(error.which, Which::Cert);
    assert!(error.message.ends_with("is a folder."), "{error}");
    fs::write(&key, vec![b'x'; FILE_BYTES_MAX + 1]).unwrap();
    assert!(load(&cert, &key).unwrap_err().message.contains("larger than 1024 KiB"));
    fs::write(&key, &own.key).unwrap();
    load(&cert, &key).unwrap();
}

#[test]
fn names_and_expiry_come_from_the_leaf() {
    let mut params = CertificateParams::new([
        "Shop.Test".into(),
        "*.shop.test".into(),
        "192.0.2.1".into(),
        "2001:DB8::1".into(),
    ])
    .unwrap();
    params.not_after = rcgen::date_time_ymd(2001, 9, 9) + std::time::Duration::from_secs(6400);
    let key = KeyPair::generate().unwrap();
    let cert = params.self_signed(&key).unwrap();
    // Text around the blocks is allowed (RFC 7468 section 2).
    let text = format!("subject: shop\n{}\n", cert.pem());
    let identity = from_bytes(text.as_bytes(), key.serialize_pem().as_bytes()).unwrap();
    assert_eq!(identity.names, ["shop.test", "*.shop.test", "192.0.2.1", "2001:db8::1"]);
    assert_eq!(identity.not_after, 1_000_000_000, "an expired certificate is still loaded");

    for host in [
        "",
        ".",
        "test",
        "a.b.shop.test",
        ".shop.test",
        "shop.test.evil",
        "192.0.2.2",
        "*.test",
        "*.*.shop.test",
    ] {
        assert!(!names_cover(&identity, host), "{host}");
    }
    for host in ["shop.test", "SHOP.test.", "www.shop.test", "*.shop.test", "192.0.2.1", "2001:db8::1"] {
        assert!(names_cover(&identity, host), "{host}");
    }
}

#[test]
fn the_fingerprint_follows_the_bytes() {
    let own = pair(&["a.test"]);
    let of = |cert: &str, key: &str| from_bytes(cert.as_bytes(), key.as_bytes()).unwrap().fingerprint;
    let first = of(&own.cert, &own.key);
    assert_eq!(first, of(&own.cert, &own.key));
    assert_ne!(first, of(&format!("{}\n", own.cert), &own.key));
    assert_ne!(first, of(&own.cert, &format!("\n{}", own.key)));
    assert_ne!(of(&format!("{}\n", own.cert), &own.key), of(&own.cert, &format!("\n{}", own.key)));
}
