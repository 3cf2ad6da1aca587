//! Who we are to a client: versions, names, certificates, resumption.

use std::io::{Read, Write};
use std::pin::Pin;
use std::task::Poll;

use rustls::ClientConnection;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::tls::{Ca, Pair, client_config, connect};
use crate::harness::{Answer, DEADLINE, Gate, Origin, Proxy, ProxyBuilder, Wire, tool, wait_for, within};

const SITE: &str = "shop.test";

/// A builder with a certificate from files in its folder.
fn with_files(pair: &Pair, backends: &str) -> ProxyBuilder {
    let builder = Proxy::builder();
    put(builder.folder(), pair);
    builder.site(SITE, &files(backends))
}

fn put(folder: &std::path::Path, pair: &Pair) {
    std::fs::create_dir_all(folder.join("sites")).unwrap();
    std::fs::write(folder.join("sites/shop.key"), &pair.key).unwrap();
    std::fs::write(folder.join("sites/shop.pem"), &pair.cert).unwrap();
}

/// Paths are relative to the file that names them.
fn files(backends: &str) -> String {
    format!("{backends}\ncertificate = {{ cert = \"shop.pem\", key = \"shop.key\" }}")
}

#[tokio::test]
async fn a_client_without_a_known_name_is_refused() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    assert!(proxy.try_wire("nobody.test").await.is_err());
    assert!(proxy.try_wire("shop.test.evil.test").await.is_err());
    // An IP address is not sent as SNI (RFC 6066 section 3).
    assert!(proxy.try_wire("127.0.0.1").await.is_err());
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}

#[tokio::test]
async fn a_default_certificate_answers_clients_without_a_name() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.default_certificate", &format!("\"{SITE}\""))
        .site(SITE, &origin.backends())
        .start()
        .await;
    let address = proxy.https();
    let args = crate::args!["s_client", "-connect", address, "-noservername", "-brief"];
    let output = tool::run("openssl", &args).await;
    let said = tool::text(&output.stderr) + &tool::text(&output.stdout);
    assert!(said.contains("CONNECTION ESTABLISHED"), "{said}");
}

#[tokio::test]
async fn alpn_and_both_versions_are_agreed_on() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let ca = proxy.ca_pem();
    for (offer, agreed) in [(&["h2", "http/1.1"][..], "h2"), (&["http/1.1"], "http/1.1"), (&[], "")] {
        for version in [&TLS12, &TLS13] {
            let wire = connect(client_config(&ca, offer, &[version]), proxy.https(), SITE).await.unwrap();
            assert_eq!(
                (wire.tls.alpn.as_str(), wire.tls.version),
                (agreed, format!("{:?}", version.version))
            );
        }
    }
    // RFC 7301 section 3.2: no protocol in common ends the handshake.
    assert!(connect(client_config(&ca, &["spdy/1"], &[&TLS13]), proxy.https(), SITE).await.is_err());
    let mut silent = connect(client_config(&ca, &[], &[&TLS13]), proxy.https(), SITE).await.unwrap();
    assert_eq!(silent.get(SITE, "/").await.status, 200, "without ALPN it is HTTP/1.1");
}

#[tokio::test]
async fn the_key_exchange_is_post_quantum_where_the_client_can() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    assert!(proxy.wire(SITE).await.tls.group.contains("X25519MLKEM768"));
}

#[tokio::test]
async fn old_protocol_versions_are_refused() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for version in ["1.0", "1.1"] {
        let output = proxy
            .curl(SITE, &["--tlsv1.0", "--tls-max", version, "--ciphers", "DEFAULT@SECLEVEL=0"], "/")
            .await;
        assert!(!output.status.success(), "TLS {version} was accepted");
    }
    let output = proxy.curl(SITE, &["--tls-max", "1.2"], "/").await;
    assert_eq!(tool::stdout_of(&output), "ok");
}

#[tokio::test]
async fn a_returning_client_resumes_its_session_also_after_a_reload() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for version in [&TLS13, &TLS12] {
        // One configuration is one session cache.
        let config = client_config(&proxy.ca_pem(), &["http/1.1"], &[version]);
        let mut first = connect(config.clone(), proxy.https(), SITE).await.unwrap();
        assert_eq!(first.get(SITE, "/").await.status, 200);
        assert!(!first.tls.resumed);
        let mut second = connect(config.clone(), proxy.https(), SITE).await.unwrap();
        assert!(second.tls.resumed, "{version:?}");
        assert_eq!(second.get(SITE, "/").await.status, 200);
        proxy.write_site(
            "other.test",
            &format!("{}\nmax_body = \"{}KiB\"", origin.backends(), u16::from(version.version)),
        );
        proxy.reload().await;
        assert_eq!(proxy.site("other.test").await["state"], "active");
        assert!(
            connect(config, proxy.https(), SITE).await.unwrap().tls.resumed,
            "{version:?} after a reload"
        );
    }
}

/// Reads what comes until the client has so many tickets; gives the bytes that came beside them.
async fn tickets(tls: &mut TlsStream<TcpStream>, count: u32) -> Vec<u8> {
    let mut came = Vec::new();
    let mut piece = [0; 1024];
    let reading = std::future::poll_fn(|cx| {
        loop {
            let mut room = ReadBuf::new(&mut piece);
            let read = Pin::new(&mut *tls).poll_read(cx, &mut room);
            if let Poll::Ready(Ok(())) = &read {
                assert!(!room.filled().is_empty(), "the connection ended");
                came.extend_from_slice(room.filled());
            }
            if tls.get_ref().1.tls13_tickets_received() >= count {
                return Poll::Ready(());
            }
            match read {
                Poll::Ready(read) => read.unwrap(),
                Poll::Pending => return Poll::Pending,
            }
        }
    });
    within("tickets", reading).await;
    came
}

#[tokio::test]
async fn tickets_come_to_whoever_asks_nothing() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let shake = async |alpn: &[&str]| {
        let connector = TlsConnector::from(client_config(&proxy.ca_pem(), alpn, &[&TLS13]));
        let tcp = TcpStream::connect(proxy.https()).await.unwrap();
        connector.connect(SITE.try_into().unwrap(), tcp).await.unwrap()
    };
    for alpn in [&["http/1.1"][..], &["h2"], &[]] {
        let mut tls = shake(alpn).await;
        let came = tickets(&mut tls, 2).await;
        assert_eq!(came.is_empty(), alpn != ["h2"], "{alpn:?}: {came:?}");
    }
}

/// Shakes hands, and says `first` in the packet of the handshake's end.
fn shake_and_say(proxy: &Proxy, first: &[u8]) -> (ClientConnection, std::net::TcpStream) {
    let config = client_config(&proxy.ca_pem(), &["http/1.1"], &[&TLS13]);
    let mut tls = ClientConnection::new(config, SITE.try_into().unwrap()).unwrap();
    let mut tcp = std::net::TcpStream::connect(proxy.https()).unwrap();
    tcp.set_read_timeout(Some(DEADLINE)).unwrap();
    while tls.wants_write() {
        tls.write_tls(&mut tcp).unwrap();
    }
    while tls.is_handshaking() {
        assert!(tls.read_tls(&mut tcp).unwrap() > 0, "the connection ended");
        tls.process_new_packets().unwrap();
    }
    tls.writer().write_all(first).unwrap();
    let mut packet = Vec::new();
    while tls.wants_write() {
        tls.write_tls(&mut packet).unwrap();
    }
    tcp.write_all(&packet).unwrap();
    (tls, tcp)
}

#[tokio::test(flavor = "multi_thread")]
async fn tickets_go_with_the_answer_and_wait_for_no_client() {
    let gate = Gate::default();
    let wait = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let wait = wait.clone();
        async move {
            x.read_body().await.ok()?;
            wait.pass().await;
            x.answer(Answer::ok("answered")).await.ok()?;
            Some(x)
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let head = format!(" / HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n");
    // What is said with the handshake, what before the tickets came, and what after them.
    for (first, then) in [
        (format!("GET{head}"), "\r\n"),
        (format!("POST{head}Content-Length: 4\r\n\r\n"), "body"),
        (format!("POST{head}Content-Length: 4\r\n\r\nbo"), "dy"),
        (format!("GET{head}\r\n"), ""),
    ] {
        let answer = tokio::task::block_in_place(|| {
            let (mut tls, mut tcp) = shake_and_say(&proxy, first.as_bytes());
            if then.is_empty() {
                // The whole request was there: they come with the answer at the latest.
                gate.open();
            }
            while tls.tls13_tickets_received() < 2 {
                assert!(tls.read_tls(&mut tcp).expect("tickets") > 0, "the connection ended");
                tls.process_new_packets().unwrap();
            }
            gate.open();
            let mut stream = rustls::Stream::new(&mut tls, &mut tcp);
            stream.write_all(then.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an end that TLS vouches for");
            answer
        });
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("answered"), "{first}: {answer}");
    }
}

#[tokio::test]
async fn a_session_of_one_site_is_not_resumed_on_another() {
    let origin = Origin::saying("ok").await;
    let proxy =
        Proxy::builder().site("a.test", &origin.backends()).site("b.test", &origin.backends()).start().await;
    let mut wire = proxy.wire("a.test").await;
    wire.get("a.test", "/").await;
    wire.get("b.test", "/").await.expect(421, "MISDIRECTED");
}

#[tokio::test]
async fn each_site_shows_its_own_certificate_and_a_wildcard_its_wildcards() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .site("a.test", &origin.backends())
        .site("wild", &format!("hosts = [\"*.w.test\"]\n{}", origin.backends()))
        .start()
        .await;
    let (a, w1, w2) =
        (proxy.wire("a.test").await, proxy.wire("x.w.test").await, proxy.wire("y.w.test").await);
    assert_ne!(a.tls.leaf, w1.tls.leaf);
    assert_eq!(w1.tls.leaf, w2.tls.leaf);
    assert!(proxy.try_wire("x.y.w.test").await.is_err(), "a wildcard takes one label");
}

#[tokio::test]
async fn certificate_files_are_served_and_reloaded_when_they_change() {
    let origin = Origin::saying("ok").await;
    let ca = Ca::new("files");
    let proxy = with_files(&ca.leaf(&[SITE]), &origin.backends()).start().await;
    let config = client_config(&ca.pem, &["http/1.1"], &[&TLS13]);
    let mut old = connect(config.clone(), proxy.https(), SITE).await.unwrap();
    let before = old.tls.leaf.clone();
    put(proxy.path(), &ca.leaf(&[SITE]));
    wait_for("the new certificate", || async {
        let fresh = connect(client_config(&ca.pem, &[], &[&TLS13]), proxy.https(), SITE).await.ok()?;
        (fresh.tls.leaf != before).then_some(())
    })
    .await;
    assert_eq!(old.get(SITE, "/").await.status, 200, "connections made with the old one live on");
}

#[tokio::test]
async fn a_certificate_that_cannot_work_leaves_the_old_one_in_place() {
    let origin = Origin::saying("ok").await;
    let ca = Ca::new("files");
    let good = ca.leaf(&[SITE]);
    let proxy = with_files(&good, &origin.backends()).start().await;
    let key_of_another = Pair { cert: good.cert.clone(), key: ca.leaf(&[SITE]).key };
    let not_pem = Pair { cert: "hello".into(), key: good.key.clone() };
    for broken in [key_of_another, not_pem] {
        put(proxy.path(), &broken);
        let report = proxy.reload().await;
        assert_eq!(report["quarantined"][0], SITE, "{report}");
        let mut wire = connect(client_config(&ca.pem, &[], &[&TLS13]), proxy.https(), SITE).await.unwrap();
        assert_eq!(wire.get(SITE, "/").await.status, 200);
    }
    put(proxy.path(), &good);
    proxy.reload().await;
    assert_eq!(proxy.site(SITE).await["state"], "active");
}

#[tokio::test]
async fn regression_a_site_in_quarantine_is_shown_with_its_renewed_certificate() {
    let origin = Origin::saying("ok").await;
    let ca = Ca::new("files");
    let mut proxy = with_files(&ca.leaf(&[SITE]), &origin.backends()).start().await;
    let shown = async |proxy: &Proxy| {
        let mut wire = connect(client_config(&ca.pem, &[], &[&TLS13]), proxy.https(), SITE).await.unwrap();
        assert_eq!(wire.get(SITE, "/").await.text(), "ok");
        wire.tls.leaf
    };
    let first = shown(&proxy).await;
    proxy.write_site(SITE, "backends = [");
    proxy.reload().await;
    assert_eq!(proxy.site(SITE).await["state"], "quarantined");
    assert_eq!(shown(&proxy).await, first);
    // Its text names no file any more, and nobody says that they changed.
    put(proxy.path(), &ca.leaf(&[SITE]));
    wait_for("the renewed certificate", || async { (shown(&proxy).await != first).then_some(()) }).await;
    let second = shown(&proxy).await;
    assert_eq!(proxy.site(SITE).await["state"], "quarantined");
    // Renewed while nothing runs.
    proxy.kill();
    put(proxy.path(), &ca.leaf(&[SITE]));
    proxy.restart().await;
    let third = shown(&proxy).await;
    assert!(third != second && third != first);
    // And the copy that was kept is that of the last one that served.
    proxy.kill();
    std::fs::remove_file(proxy.path().join("sites/shop.pem")).unwrap();
    proxy.restart().await;
    assert_eq!(shown(&proxy).await, third);
}

#[tokio::test]
async fn regression_a_renewed_certificate_is_shown_although_the_servers_part_is_wrong() {
    let origin = Origin::saying("ok").await;
    let ca = Ca::new("files");
    let proxy = with_files(&ca.leaf(&[SITE]), &origin.backends()).start().await;
    let shown = async || {
        let mut wire = connect(client_config(&ca.pem, &[], &[&TLS13]), proxy.https(), SITE).await.unwrap();
        assert_eq!(wire.get(SITE, "/").await.text(), "ok");
        wire.tls.leaf
    };
    let mut before = shown().await;
    // Settings that are wrong, and no TOML at all.
    for broken in ["\n[server]\nworkers = \"many\"\n", "\n[server\n"] {
        proxy.edit_config(|text| text + broken);
        let report = proxy.reload().await;
        assert_eq!(report["refused"], true, "{report}");
        assert_eq!(shown().await, before);
        put(proxy.path(), &ca.leaf(&[SITE]));
        wait_for("the renewed certificate", || async { (shown().await != before).then_some(()) }).await;
        before = shown().await;
    }
}

#[tokio::test]
async fn the_internal_ca_survives_a_restart() {
    let origin = Origin::saying("ok").await;
    let mut proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let before = proxy.ca_pem();
    proxy.restart().await;
    assert_eq!(proxy.ca_pem(), before);
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
    use std::os::unix::fs::PermissionsExt;
    for entry in std::fs::read_dir(proxy.path().join("state/internal-ca")).unwrap().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let mode = entry.metadata().unwrap().permissions().mode() & 0o077;
        assert!(!text.contains("PRIVATE KEY") || mode == 0, "{:?} is readable by others", entry.path());
    }
}

/// rustls would put an alert in front of the answer, and clients of plain HTTP would read garbage.
#[tokio::test]
async fn plain_http_on_the_https_port_is_answered_in_plain_http() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = Wire::plain(proxy.https()).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    while within("the answer", wire.fill()).await.unwrap() > 0 {}
    let answer = String::from_utf8(wire.ahead.clone()).expect("text alone, no TLS alert");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("PLAIN-ON-TLS"), "{answer}");
    assert_eq!(origin.count(), 0);
    assert_eq!(proxy.get(SITE, "/").await.text(), "ok");
}
