//! The CA on disk, damaged in every way first; then what it issues.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Barrier};

use super::*;

fn exact(name: &str) -> HostPattern {
    HostPattern::Exact(name.into())
}

#[test]
fn a_damaged_ca_is_an_error_and_stays_as_it_is() {
    type Damage = fn(&Path);
    let cases: &[(&str, Damage)] = &[
        ("ca.key is missing", |f| fs::remove_file(f.join("ca.key")).unwrap()),
        ("ca.pem is missing", |f| fs::remove_file(f.join("ca.pem")).unwrap()),
        ("is empty", |f| fs::write(f.join("ca.pem"), "").unwrap()),
        ("no private key", |f| fs::write(f.join("ca.key"), "x").unwrap()),
        ("another certificate", |f| {
            fs::write(f.join("ca.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        }),
        ("not the certificate of a CA", |f| {
            let leaf = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
            fs::write(f.join("ca.pem"), leaf.cert.pem()).unwrap();
            fs::write(f.join("ca.key"), leaf.signing_key.serialize_pem()).unwrap();
        }),
        ("has expired", |f| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.not_after = date_time_ymd(2020, 1, 1);
            fs::write(f.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
            fs::write(f.join("ca.key"), key.serialize_pem()).unwrap();
        }),
        ("holds other files", |f| {
            fs::remove_file(f.join("ca.key")).unwrap();
            fs::rename(f.join("ca.pem"), f.join("old.pem")).unwrap();
        }),
    ];
    for (said, damage) in cases {
        let state = tempfile::tempdir().unwrap();
        InternalCa::open(state.path()).unwrap();
        let folder = state.path().join("internal-ca");
        damage(&folder);
        let content = |name: &str| fs::read(folder.join(name)).ok();
        let before = (content("ca.pem"), content("ca.key"));
        let message = InternalCa::open(state.path()).unwrap_err();
        assert!(message.contains(said) && message.contains("backup"), "wanted {said:?}: {message}");
        assert_eq!(before, (content("ca.pem"), content("ca.key")), "{said}");
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1, "no litter: {said}");
    }
}

#[test]
fn a_state_folder_that_cannot_be_made_is_an_error() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("file");
    fs::write(&file, "").unwrap();
    let message = InternalCa::open(&file.join("state")).unwrap_err();
    assert!(message.contains("file/state"), "{message}");
}

#[test]
fn the_ca_is_made_once_and_its_key_is_private() {
    let state = tempfile::tempdir().unwrap();
    let deep = state.path().join("not/yet/there");
    let first = InternalCa::open(&deep).unwrap();
    let before = fs::read(first.ca_path()).unwrap();
    let second = InternalCa::open(&deep).unwrap();
    assert_eq!(fs::read(second.ca_path()).unwrap(), before);
    let mode = |path: &str| fs::metadata(deep.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode("internal-ca"), mode("internal-ca/ca.key"), mode("internal-ca/ca.pem")),
        (0o700, 0o600, 0o644)
    );
    let years = (first.not_after() - clock::wall().as_secs()) / (365 * DAY);
    assert!((9..=10).contains(&years));
}

#[test]
fn processes_racing_for_a_new_ca_agree_on_one() {
    let state = tempfile::tempdir().unwrap();
    let barrier = Arc::new(Barrier::new(8));
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let (state, barrier) = (state.path().to_owned(), barrier.clone());
            std::thread::spawn(move || {
                barrier.wait();
                let ca = InternalCa::open(&state).unwrap();
                // The public key is what a leaf is checked with: it must be the winner's for everyone.
                (ca.issuer.key().public_key_raw().to_vec(), fs::read(ca.ca_path()).unwrap())
            })
        })
        .collect();
    let seen: Vec<_> = racers.into_iter().map(|r| r.join().unwrap()).collect();
    assert!(seen.iter().all(|s| *s == seen[0]));
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1, "no litter");
}

#[test]
fn a_leaf_holds_the_names_and_is_verified_against_the_ca() {
    let state = tempfile::tempdir().unwrap();
    InternalCa::open(state.path()).unwrap();
    // Reopened, because the issuer is then read back from the file.
    let ca = InternalCa::open(state.path()).unwrap();
    assert!(ca.issue(&[exact("bücher.test")]).unwrap_err().contains("punycode"));

    let long = format!("{}.{}.test", "a".repeat(60), "b".repeat(60));
    let names = [
        exact("shop.test"),
        HostPattern::Wildcard("shop.test".into()),
        exact("127.0.0.1"),
        exact("::1"),
        exact(&long),
    ];
    let identity = ca.issue(&names).unwrap();
    assert_eq!(identity.names, ["shop.test", "*.shop.test", "127.0.0.1", "::1", long.as_str()]);
    let left = identity.not_after - clock::wall().as_secs();
    assert!(left <= LEAF_VALID && left > LEAF_VALID - 60);
    assert_eq!(identity.key.cert.len(), 1);

    let ca_der = pem::certificates(&fs::read(ca.ca_path()).unwrap(), "ca").unwrap().remove(0);
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca_der).unwrap();
    let verifier =
        rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), crate::tls::provider())
            .build()
            .unwrap();
    let verify = |host: &str| {
        use rustls::client::danger::ServerCertVerifier;
        let now = rustls_pki_types::UnixTime::now();
        let name = rustls_pki_types::ServerName::try_from(host).unwrap();
        verifier.verify_server_cert(&identity.key.cert[0], &[], &name, &[], now).map(|_| ())
    };
    for host in ["a.b.shop.test", "other.test", "127.0.0.2"] {
        assert!(verify(host).is_err(), "{host}");
    }
    for host in ["shop.test", "www.shop.test", "127.0.0.1", "::1", &long] {
        verify(host).unwrap();
    }
    assert_ne!(identity.fingerprint, ca.issue(&names).unwrap().fingerprint);
    // Nameless sites cannot be configured, but must not panic.
    assert!(ca.issue(&[]).unwrap().names.is_empty());
}
