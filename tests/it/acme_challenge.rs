//! Who else asks for the answers to challenges while one is open, and what they get.

use std::collections::BTreeMap;

use rustls::version::{TLS12, TLS13};

use crate::acme::{all_issued, asking, automatic};
use crate::harness::front::Fault;
use crate::harness::pebble::Ports;
use crate::harness::tls::{client_config, connect};
use crate::harness::{Front, Gate, Origin, Pebble, Proxy, Wire, wait_for, wait_until};

/// More workers than cores: each must know every answer.
const WORKERS: usize = 4;
/// Connections that certainly reach all of them: one missing has a chance of (3/4)^120.
const CONNECTIONS: usize = 120;

struct House {
    pebble: Pebble,
    front: Front,
    proxy: Proxy,
    gate: Gate,
    origin: Origin,
}

/// A site whose challenge is published, and the authority not yet told.
async fn open_challenge(kind: &str) -> Option<House> {
    if !Pebble::is_here() {
        return None;
    }
    let origin = Origin::saying("the backend's own").await;
    let ports = Ports::free();
    let pebble = Pebble::start(ports, &[("PEBBLE_WFE_NONCEREJECT", "0")]).await;
    let front = Front::of(&pebble).await;
    let gate = Gate::default();
    front.plan("/chalZ/", 1, Fault::Hold(gate.clone()));
    let proxy = asking(&pebble, ports, &format!("[{kind:?}]"))
        .set("acme.directory", &format!("{:?}", front.directory()))
        .set("server.workers", &WORKERS.to_string())
        .site("shop.test", &automatic(&origin))
        .site("plain.test", &format!("{}\nplain_http = true", origin.backends()))
        .site("secure.test", &origin.backends())
        .start()
        .await;
    wait_until("the challenge to be open", || !front.asked("/chalZ/").is_empty()).await;
    Some(House { pebble, front, proxy, gate, origin })
}

const FOLDER: &str = "/.well-known/acme-challenge/";

#[tokio::test]
async fn every_worker_answers_http_01_and_only_for_the_exact_token() {
    let Some(house) = open_challenge("http-01").await else { return };
    let token = house.front.tokens("http-01", "shop.test").pop().expect("a token");
    let path = format!("{FOLDER}{token}");
    let mut bodies = BTreeMap::<String, usize>::new();
    for _ in 0..CONNECTIONS {
        let reply = house.proxy.plain().await.get("shop.test", &path).await;
        assert_eq!((reply.status, reply.field("content-type")), (200, Some("application/octet-stream")));
        *bodies.entry(reply.text()).or_default() += 1;
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    let body = bodies.keys().next().unwrap().clone();
    let print = body.strip_prefix(&format!("{token}.")).expect("token, point, print of the key");
    assert_eq!(print.len(), 43, "SHA-256 in base64url");
    let workers: std::collections::BTreeSet<_> =
        house.proxy.records(CONNECTIONS).await.iter().map(|record| record["worker"].to_string()).collect();
    assert_eq!(workers.len(), WORKERS, "{workers:?}");

    // Whatever host is asked, known or not, over TLS too: whoever validates decides under which name.
    for host in ["plain.test", "secure.test", "nobody.test", "127.0.0.1"] {
        assert_eq!(house.proxy.plain().await.get(host, &path).await.text(), body, "{host}");
    }
    assert_eq!(house.proxy.get("secure.test", &path).await.text(), body);
    let head = house.proxy.plain().await.ask("HEAD", &path, "shop.test", "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    let query = format!("{path}?x=1");
    assert_eq!(house.proxy.plain().await.get("shop.test", &query).await.text(), body);

    // None of these is the token: they are routed as usual, and never answered with what is not theirs.
    let spoofs = [
        format!("{FOLDER}../acme-challenge/{token}"),
        format!("{FOLDER}../x"),
        format!("{FOLDER}%2e%2e/x"),
        format!("{FOLDER}./{token}"),
        format!("/x/..{FOLDER}{token}"),
        format!("/{path}"),
        format!("{path}/"),
        format!("{path}/x"),
        format!("{path}%00"),
        format!("{path}%2f"),
        format!("{FOLDER}%{:02x}{}", token.as_bytes()[0], &token[1..]),
        path.to_uppercase(),
        FOLDER.to_owned(),
        format!("{FOLDER}nobody-made-this"),
        format!("{FOLDER}{}", "t".repeat(4000)),
    ];
    for spoof in &spoofs {
        for host in ["plain.test", "shop.test", "nobody.test"] {
            let reply = house.proxy.plain().await.get(host, spoof).await;
            assert!(!reply.text().contains(print), "{host} {spoof}: {}", reply.text());
        }
    }
    // To the backend of a plain site the token's own path goes with every other method.
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let fields = "Content-Length: 0\r\n";
        let reply = house.proxy.plain().await.ask(method, &path, "plain.test", fields).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "the backend's own"), "{method}");
    }
    house.gate.open();
    all_issued(&house.proxy, &["shop.test".into()]).await;
    // Taken back: the path is like any other.
    assert_eq!(house.proxy.plain().await.get("plain.test", &path).await.text(), "the backend's own");
    assert_eq!(house.proxy.plain().await.get("shop.test", &path).await.status, 308);
}

#[tokio::test]
async fn tls_alpn_01_is_answered_for_its_name_to_whoever_offers_nothing_else() {
    let Some(house) = open_challenge("tls-alpn-01").await else { return };
    let https = house.proxy.https();
    // The certificate of the challenge signs itself, so a client that checks says which one it was shown.
    let shown = |alpn: &'static [&'static str], name: &'static str, sni: bool| {
        let ca = house.proxy.ca_pem();
        async move {
            let mut config = rustls::ClientConfig::clone(&client_config(&ca, alpn, &[&TLS13, &TLS12]));
            config.enable_sni = sni;
            config.dangerous().set_certificate_verifier(std::sync::Arc::new(seen::Anything));
            connect(std::sync::Arc::new(config), https, name).await
        }
    };
    let challenged = |wire: &Wire| {
        // id-pe-acmeIdentifier, 1.3.6.1.5.5.7.1.31 (RFC 8737 section 6.1).
        let oid = [0x06, 0x08, 0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x01, 0x1f];
        wire.tls.leaf.windows(oid.len()).any(|window| window == oid)
    };
    for _ in 0..CONNECTIONS / 4 {
        let wire = shown(&["acme-tls/1"], "shop.test", true).await.expect("the challenge's certificate");
        assert!(challenged(&wire) && wire.tls.alpn == "acme-tls/1");
    }
    let wire = shown(&["acme-tls/1"], "SHOP.test", true).await.expect("names have no case");
    assert!(challenged(&wire));

    // No name, another name, a name of a site that has its certificate: refused.
    for (name, sni) in
        [("shop.test", false), ("secure.test", true), ("nobody.test", true), ("www.shop.test", true)]
    {
        assert!(shown(&["acme-tls/1"], name, sni).await.is_err(), "{name} {sni}");
    }
    // RFC 8737 section 3: the authority offers `acme-tls/1` alone. Others are ordinary clients of ordinary sites.
    for alpn in [&["acme-tls/1", "http/1.1"] as &[&str], &["h2", "acme-tls/1"], &["acme-tls/1", "acme-tls/1"]]
    {
        let other = shown(alpn, "secure.test", true).await;
        assert!(
            other.is_err() || other.is_ok_and(|wire| !challenged(&wire) && wire.tls.alpn != "acme-tls/1")
        );
        let own = shown(alpn, "shop.test", true).await;
        assert!(own.is_err(), "{alpn:?}: it has no certificate but the challenge's");
    }
    house.gate.open();
    all_issued(&house.proxy, &["shop.test".into()]).await;
    assert!(shown(&["acme-tls/1"], "shop.test", true).await.is_err(), "taken back");
    let wire = shown(&["h2"], "shop.test", true).await.expect("the site");
    assert!(!challenged(&wire));
}

mod seen {
    //! A client that accepts whatever it is shown: to look at it.

    use rustls::DigitallySignedStruct;
    use rustls::SignatureScheme;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};

    #[derive(Debug)]
    pub struct Anything;

    impl ServerCertVerifier for Anything {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            rustls::crypto::aws_lc_rs::default_provider()
                .signature_verification_algorithms
                .supported_schemes()
        }
    }
}
