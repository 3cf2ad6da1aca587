//! Certificates of clients: who gets in, what the backend hears, what changes while connections live; and the
//! certificate that we show to backends.

use std::path::Path;
use std::sync::{Arc, Mutex};

use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::harness::tls::{Ca, Pair, client_config, client_config_as, connect};
use crate::harness::{Answer, H2, Origin, Proxy, ProxyBuilder, Reply, Wire, tool, wait_for, within};

const SITE: &str = "vault.test";

/// The authorities and lists that a site's files hold.
fn put(folder: &Path, ca: &str, list: Option<&str>) {
    std::fs::create_dir_all(folder.join("sites")).unwrap();
    std::fs::write(folder.join("sites/clients.pem"), ca).unwrap();
    if let Some(list) = list {
        std::fs::write(folder.join("sites/clients.crl"), list).unwrap();
    }
}

fn site(backends: &str, more: &str) -> String {
    format!("{backends}\ntls = {{ client_auth = {{ ca_file = \"clients.pem\"{more} }} }}")
}

/// An origin, and a proxy whose one site asks for certificates.
async fn vault(ca: &Ca, list: Option<&str>, more: &str) -> (Origin, Proxy) {
    let origin = Origin::saying("ok").await;
    let builder = Proxy::builder();
    put(builder.folder(), &ca.pem, list);
    let proxy = builder.site(SITE, &site(&origin.backends(), more)).start().await;
    (origin, proxy)
}

/// One request on a connection of its own; the error is the handshake's, which TLS 1.3 tells only after it.
async fn ask(proxy: &Proxy, pair: Option<&Pair>, name: &str) -> std::io::Result<Reply> {
    let mut wire = wire(proxy, pair, name).await?;
    wire.try_send(format!("GET / HTTP/1.1\r\nHost: {name}\r\n\r\n")).await?;
    within("an answer", wire.try_reply_to("GET")).await
}

async fn wire(proxy: &Proxy, pair: Option<&Pair>, name: &str) -> std::io::Result<Wire> {
    let versions = [&TLS13, &TLS12];
    let config = match pair {
        Some(pair) => client_config_as(&proxy.ca_pem(), &["http/1.1"], &versions, pair),
        None => client_config(&proxy.ca_pem(), &["http/1.1"], &versions),
    };
    connect(config, proxy.https(), name).await
}

async fn counted(proxy: &Proxy, reason: &str, outcome: &str, count: f64) {
    wait_for(&format!("{count} times {reason}"), || async {
        let metrics = proxy.metrics().await;
        let failures = metrics.sum("tidegate_tls_handshake_failures_total", &[("reason", reason)]);
        let outcomes = metrics.sum("tidegate_outcomes_total", &[("outcome", outcome)]);
        (failures == count && outcomes == count).then_some(())
    })
    .await;
}

// ---- who gets in

#[tokio::test]
async fn only_clients_whose_certificate_is_good_are_let_in_and_each_refusal_has_its_reason() {
    let (ca, other) = (Ca::new("clients"), Ca::new("other"));
    let (origin, proxy) = vault(&ca, Some(&ca.list(&[66], 10)), ", crl_file = \"clients.crl\"").await;
    let good = ca.client("ann", 1, 10);
    for (pair, reason, outcome) in [
        (None, "client-cert-missing", "CLIENT-CERT-MISSING"),
        (Some(other.client("ann", 1, 10)), "client-cert-untrusted", "CLIENT-CERT-UNTRUSTED"),
        (Some(ca.client("eve", 66, 10)), "client-cert-revoked", "CLIENT-CERT-REVOKED"),
        (Some(ca.client("old", 2, -1)), "client-cert-expired", "CLIENT-CERT-EXPIRED"),
        (Some(ca.leaf(&["ann.clients.test"])), "", ""),
    ] {
        let refused = ask(&proxy, pair.as_ref(), SITE).await;
        if reason.is_empty() {
            // Without an extended key usage it may be used for anything (RFC 5280 section 4.2.1.12).
            assert_eq!(refused.unwrap().status, 200);
            continue;
        }
        assert!(refused.is_err(), "{reason} was let in");
        counted(&proxy, reason, outcome, 1.0).await;
    }
    assert_eq!(ask(&proxy, Some(&good), SITE).await.unwrap().status, 200);
    assert_eq!(origin.count(), 2);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_client_certificates_total", &[("result", "verified")]), 2.0);
    assert!(proxy.stderr().contains("a client was refused in the handshake"), "{}", proxy.stderr());
    let records = proxy.records(2).await;
    assert_eq!(records[1]["client_cert"].as_str().unwrap().len(), 64);
    assert_eq!(records[1]["client_subject"], "CN=ann");
}

#[tokio::test]
async fn curl_and_openssl_get_in_with_a_certificate_and_not_without() {
    if !tool::requires("curl", &["--version"]) {
        return;
    }
    let ca = Ca::new("clients");
    let (_origin, proxy) = vault(&ca, None, "").await;
    let pair = ca.client("ann", 1, 10);
    let (cert, key) = (proxy.path().join("ann.pem"), proxy.path().join("ann.key"));
    std::fs::write(&cert, &pair.cert).unwrap();
    std::fs::write(&key, &pair.key).unwrap();
    let (cert, key) = (cert.display().to_string(), key.display().to_string());
    for version in ["1.2", "1.3"] {
        let limits = ["--tls-max", version, "--tlsv1.2"];
        let with = [&limits[..], &["--cert", &cert, "--key", &key]].concat();
        assert_eq!(tool::stdout_of(&proxy.curl(SITE, &with, "/").await), "ok");
        let without = proxy.curl(SITE, &limits, "/").await;
        assert!(!without.status.success(), "TLS {version}: {}", tool::text(&without.stdout));
        assert!(tool::text(&without.stderr).contains("alert"), "{}", tool::text(&without.stderr));
    }
}

#[tokio::test]
async fn an_optional_certificate_is_told_where_it_is_shown_and_never_taken_for_granted() {
    let (ca, other) = (Ca::new("clients"), Ca::new("other"));
    let (origin, proxy) = vault(&ca, None, ", mode = \"optional\"").await;
    assert_eq!(ask(&proxy, None, SITE).await.unwrap().status, 200);
    assert_eq!(ask(&proxy, Some(&ca.client("ann", 1, 10)), SITE).await.unwrap().status, 200);
    assert!(ask(&proxy, Some(&other.client("ann", 1, 10)), SITE).await.is_err(), "a wrong one is no none");
    let seen = origin.requests();
    assert_eq!(seen[0].field("x-client-cert-subject"), None);
    assert_eq!(seen[1].field("x-client-cert-subject"), Some("CN=ann"));
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_client_certificates_total", &[("result", "absent")]), 1.0);
}

#[tokio::test]
async fn a_site_with_client_certificates_is_never_served_over_plain_http() {
    let ca = Ca::new("clients");
    for mode in ["require", "optional"] {
        let origin = Origin::saying("ok").await;
        let builder = Proxy::builder().set("server.trusted_proxies", "[\"127.0.0.1/32\"]");
        put(builder.folder(), &ca.pem, None);
        let more = format!(", mode = \"{mode}\"");
        let proxy = builder.site(SITE, &site(&origin.backends(), &more)).start().await;
        let mut plain = proxy.plain().await;
        assert_eq!(plain.get(SITE, "/").await.status, 308);
        // A proxy in front that ended TLS has not seen a proof that we could believe.
        let mut plain = proxy.plain().await;
        let fields = "X-Forwarded-Proto: https\r\nX-Client-Cert-Subject: CN=ann\r\n";
        plain.ask("GET", "/", SITE, fields).await.expect(403, "CLIENT-CERT-MISSING");
        assert_eq!(origin.count(), 0);
    }
}

// ---- what the backend hears

const SPOOFED: &str = "X-Client-Cert-Subject: CN=root\r\nX_Client_Cert_Subject: CN=root\r\nx-client-cert-fingerprint: 00\r\n\
     X-Client_Cert-SAN: DNS:root\r\nClient-Cert: :AAAA:\r\nClient_Cert: :AAAA:\r\nClient-Cert-Chain: :AAAA:\r\n\
     X-Client-Cert-Verified: yes\r\nX-Client-Cert-Issuer: CN=root\r\nX-Client-Cert-Serial: 00\r\n";

#[tokio::test]
async fn nobody_can_say_who_they_are_but_by_their_certificate() {
    let ca = Ca::new("clients");
    let origin = Origin::saying("ok").await;
    let builder = Proxy::builder().set("server.trusted_proxies", "[\"127.0.0.1/32\"]");
    put(builder.folder(), &ca.pem, None);
    let proxy = builder
        .site(SITE, &site(&origin.backends(), ", forward = \"all\""))
        .site("quiet.test", &site(&origin.backends(), ", forward = \"none\""))
        .site("open.test", &format!("{}\nplain_http = true", origin.backends()))
        .start()
        .await;
    let pair = ca.client("ann", 1, 10);
    for name in [SITE, "quiet.test"] {
        let mut wire = wire(&proxy, Some(&pair), name).await.unwrap();
        assert_eq!(wire.ask("GET", "/", name, SPOOFED).await.status, 200);
    }
    let mut wire = proxy.wire("open.test").await;
    assert_eq!(wire.ask("GET", "/", "open.test", SPOOFED).await.status, 200);
    // Not even a trusted proxy, and not over plain HTTP.
    let mut plain = proxy.plain().await;
    assert_eq!(plain.ask("GET", "/", "open.test", SPOOFED).await.status, 200);
    let mut h2 = proxy.h2("open.test").await;
    let spoofed =
        h2.request("GET", "/").header("x-client-cert-subject", "CN=root").header("client-cert", ":AA:");
    let request = spoofed.body(crate::harness::client::empty()).unwrap();
    assert_eq!(h2.send(request).await.status, 200);
    let seen = origin.requests();
    for request in &seen {
        let raw = request.raw();
        assert!(!raw.contains("root") && !raw.contains(":AA") && !raw.contains("Verified"), "{raw}");
    }
    assert_eq!(seen[0].field("x-client-cert-subject"), Some("CN=ann"));
    assert_eq!(seen[0].field("x-client-cert-san"), Some("DNS:ann.clients.test"));
    assert_eq!(seen[0].field("x-client-cert-issuer"), Some("CN=clients"));
    assert!(seen[0].field("x-client-cert-fingerprint").is_some_and(|print| print.len() == 64));
    // RFC 9440: the certificate itself, in base64 between colons.
    let der = pair.parsed().0[0].to_vec();
    let sent = seen[0].field("client-cert").unwrap().trim_matches(':').to_owned();
    assert_eq!(base64(&der), sent);
    for request in &seen[1..] {
        assert!(!request.raw().to_ascii_lowercase().contains("client-cert"), "{}", request.raw());
    }
}

/// Plain base64, so that what is sent is not checked by the library that made it.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let value =
            chunk.iter().fold(0u32, |value, byte| value << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let shown = digit <= chunk.len();
            out.push(if shown { DIGITS[(value >> (18 - 6 * digit) & 63) as usize].into() } else { '=' });
        }
    }
    out
}

#[tokio::test]
async fn a_name_in_a_trailer_is_not_believed_either() {
    let ca = Ca::new("clients");
    let (origin, proxy) = vault(&ca, None, "").await;
    let mut wire = wire(&proxy, Some(&ca.client("ann", 1, 10)), SITE).await.unwrap();
    wire.send(format!(
        "POST / HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\nTrailer: X-Client-Cert-Subject, X-Sum\r\n\r\n\
         2\r\nhi\r\n0\r\nX-Client-Cert-Subject: CN=root\r\nX-Sum: 1\r\n\r\n"
    ))
    .await;
    assert_eq!(wire.reply_to("POST").await.status, 200);
    assert_eq!(origin.only().trailers, [("x-sum".to_owned(), "1".to_owned())]);
}

#[tokio::test]
async fn who_a_request_comes_from_follows_its_connection_and_nothing_else() {
    let ca = Ca::new("clients");
    // Echoes what it heard; the proxy shares its connections to it among all clients.
    let origin =
        Origin::answering(|request| Answer::ok(request.field("x-client-cert-subject").unwrap_or("nobody")))
            .await;
    let builder = Proxy::builder();
    put(builder.folder(), &ca.pem, None);
    let proxy = builder.site(SITE, &site(&origin.backends(), ", mode = \"optional\"")).start().await;
    let (ann, bob) = (ca.client("ann", 1, 10), ca.client("bob", 2, 10));
    let mut wires = Vec::new();
    for pair in [Some(&ann), Some(&bob), None] {
        wires.push(wire(&proxy, pair, SITE).await.unwrap());
    }
    let config = client_config_as(&proxy.ca_pem(), &["h2"], &[&TLS13], &bob);
    let mut h2 = H2::over(connect(config, proxy.https(), SITE).await.unwrap(), SITE).await;
    for _ in 0..3 {
        for (wire, name) in wires.iter_mut().zip(["CN=ann", "CN=bob", "nobody"]) {
            assert_eq!(wire.get(SITE, "/").await.text(), name);
        }
        assert_eq!(h2.get("/").await.text(), "CN=bob");
    }
    assert_eq!(origin.accepted(), 1, "one connection to the origin carried them all");
}

// ---- what changes while connections live

#[tokio::test]
async fn a_revocation_reaches_a_connection_that_is_open_and_spares_the_others() {
    let ca = Ca::new("clients");
    let (origin, proxy) = vault(&ca, Some(&ca.list(&[], 10)), ", crl_file = \"clients.crl\"").await;
    let (ann, eve) = (ca.client("ann", 1, 10), ca.client("eve", 66, 10));
    let mut good = wire(&proxy, Some(&ann), SITE).await.unwrap();
    let mut bad = wire(&proxy, Some(&eve), SITE).await.unwrap();
    let config = client_config_as(&proxy.ca_pem(), &["h2"], &[&TLS13], &eve);
    let mut bad_h2 = H2::over(connect(config, proxy.https(), SITE).await.unwrap(), SITE).await;
    assert_eq!((good.get(SITE, "/").await.status, bad.get(SITE, "/").await.status), (200, 200));
    assert_eq!(bad_h2.get("/").await.status, 200);
    put(proxy.path(), &ca.pem, Some(&ca.list(&[66], 10)));
    let report = proxy.reload().await;
    assert_eq!(report["updated"][0], SITE, "{report}");
    bad.get(SITE, "/").await.expect(403, "CLIENT-CERT-REVOKED");
    bad.closed().await;
    bad_h2.get("/").await.expect(403, "CLIENT-CERT-REVOKED");
    within("GOAWAY", bad_h2.driver).await.unwrap().expect("a graceful end");
    assert!(ask(&proxy, Some(&eve), SITE).await.is_err());
    for _ in 0..2 {
        assert_eq!(good.get(SITE, "/").await.status, 200, "who is not revoked notices nothing");
    }
    assert_eq!(origin.count(), 5);
}

#[tokio::test]
async fn files_that_cannot_be_used_leave_the_old_ones_in_force() {
    let ca = Ca::new("clients");
    let (_origin, proxy) = vault(&ca, Some(&ca.list(&[66], 10)), ", crl_file = \"clients.crl\"").await;
    let (ann, eve) = (ca.client("ann", 1, 10), ca.client("eve", 66, 10));
    for (authorities, list) in
        [("", ca.list(&[], 10)), ("hello", ca.list(&[], 10)), (&*ca.pem, String::new())]
    {
        put(proxy.path(), authorities, Some(&list));
        let report = proxy.reload().await;
        assert_eq!(report["quarantined"][0], SITE, "{report}");
        assert!(report.to_string().contains("bad-client-auth"), "{report}");
        assert_eq!(ask(&proxy, Some(&ann), SITE).await.unwrap().status, 200);
        assert!(ask(&proxy, Some(&eve), SITE).await.is_err(), "an empty file revokes nobody's revocation");
    }
    let other = Ca::new("other");
    put(proxy.path(), &other.pem, Some(&other.list(&[], 10)));
    proxy.reload().await;
    assert_eq!(proxy.site(SITE).await["state"], "active");
    assert!(ask(&proxy, Some(&ann), SITE).await.is_err());
    assert_eq!(ask(&proxy, Some(&other.client("zoe", 1, 10)), SITE).await.unwrap().status, 200);
}

#[tokio::test]
async fn regression_a_revocation_counts_although_the_site_is_in_quarantine() {
    let ca = Ca::new("clients");
    let (_origin, proxy) = vault(&ca, Some(&ca.list(&[], 10)), ", crl_file = \"clients.crl\"").await;
    let (ann, eve) = (ca.client("ann", 1, 10), ca.client("eve", 66, 10));
    proxy.write_site(SITE, "backends = [");
    proxy.reload().await;
    assert_eq!(ask(&proxy, Some(&eve), SITE).await.unwrap().status, 200);
    put(proxy.path(), &ca.pem, Some(&ca.list(&[66], 10)));
    wait_for("the revocation", || async { ask(&proxy, Some(&eve), SITE).await.is_err().then_some(()) }).await;
    assert_eq!(ask(&proxy, Some(&ann), SITE).await.unwrap().status, 200);
    assert_eq!(proxy.site(SITE).await["state"], "quarantined");
}

#[tokio::test]
async fn a_start_without_the_file_of_authorities_serves_nobody_there() {
    let ca = Ca::new("clients");
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .site(SITE, &site(&origin.backends(), ""))
        .site("open.test", &origin.backends())
        .start()
        .await;
    assert_eq!(proxy.site(SITE).await["serving"], false);
    assert!(ask(&proxy, Some(&ca.client("ann", 1, 10)), SITE).await.is_err());
    assert_eq!(ask(&proxy, None, "open.test").await.unwrap().status, 200);
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn a_ticket_or_a_connection_from_before_is_no_way_in() {
    let ca = Ca::new("clients");
    let origin = Origin::saying("ok").await;
    let builder = Proxy::builder();
    put(builder.folder(), &ca.pem, None);
    let proxy = builder.site(SITE, &origin.backends()).start().await;
    for version in [&TLS13, &TLS12] {
        proxy.write_site(SITE, &origin.backends());
        proxy.reload().await;
        // One configuration is one store of tickets.
        let config = client_config(&proxy.ca_pem(), &["http/1.1"], &[version]);
        let mut before = connect(config.clone(), proxy.https(), SITE).await.unwrap();
        assert_eq!(before.get(SITE, "/").await.status, 200);
        assert!(connect(config.clone(), proxy.https(), SITE).await.unwrap().tls.resumed);
        let seen = origin.count();
        proxy.write_site(SITE, &site(&origin.backends(), ""));
        proxy.reload().await;
        before.get(SITE, "/").await.expect(421, "MISDIRECTED");
        let again = async {
            let mut wire = connect(config, proxy.https(), SITE).await?;
            wire.try_send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await?;
            wire.try_reply_to("GET").await
        };
        assert!(within("the second", again).await.is_err(), "{version:?}");
        assert_eq!(origin.count(), seen);
        // Who has a certificate gets in, and proves it anew each time.
        let config = client_config_as(&proxy.ca_pem(), &["http/1.1"], &[version], &ca.client("ann", 1, 10));
        for _ in 0..2 {
            let mut wire = connect(config.clone(), proxy.https(), SITE).await.unwrap();
            assert_eq!(wire.get(SITE, "/").await.status, 200);
            assert!(!wire.tls.resumed);
        }
    }
}

#[tokio::test]
async fn one_certificate_of_ours_is_no_way_around_theirs() {
    let (ca, files) = (Ca::new("clients"), Ca::new("files"));
    let origin = Origin::saying("ok").await;
    let builder = Proxy::builder().set("server.default_certificate", "\"open.test\"");
    put(builder.folder(), &ca.pem, None);
    let pair = files.leaf(&[SITE, "open.test"]);
    std::fs::write(builder.folder().join("sites/all.pem"), &pair.cert).unwrap();
    std::fs::write(builder.folder().join("sites/all.key"), &pair.key).unwrap();
    let certificate = "\ncertificate = { cert = \"all.pem\", key = \"all.key\" }";
    let proxy = builder
        .site(SITE, &format!("{}{certificate}", site(&origin.backends(), "")))
        .site("open.test", &format!("{}{certificate}", origin.backends()))
        .start()
        .await;
    let anonymous = client_config(&files.pem, &["http/1.1"], &[&TLS13]);
    let known = client_config_as(&files.pem, &["http/1.1"], &[&TLS13], &ca.client("ann", 1, 10));
    let mut open = connect(anonymous, proxy.https(), "open.test").await.unwrap();
    open.get(SITE, "/").await.expect(421, "MISDIRECTED");
    assert_eq!(open.get("open.test", "/").await.status, 200);
    let mut vault = connect(known, proxy.https(), SITE).await.unwrap();
    vault.get("open.test", "/").await.expect(421, "MISDIRECTED");
    assert_eq!(vault.get(SITE, "/").await.status, 200);
    // Without a name in the handshake, the Host alone would decide.
    let script = format!("GET / HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n");
    let said = nameless(&proxy, &script).await;
    assert!(said.contains("421") && said.contains("MISDIRECTED"), "{said}");
}

/// A client that sends no server name: openssl, with a request on its standard input.
async fn nameless(proxy: &Proxy, request: &str) -> String {
    let (address, request) = (proxy.https().to_string(), request.to_owned());
    let run = tokio::task::spawn_blocking(move || {
        let mut child = std::process::Command::new("openssl")
            .args(["s_client", "-connect", &address, "-noservername", "-quiet"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("openssl");
        use std::io::Write;
        child.stdin.as_mut().unwrap().write_all(request.as_bytes()).unwrap();
        tool::text(&child.wait_with_output().unwrap().stdout)
    });
    within("openssl", run).await.unwrap()
}

#[tokio::test]
async fn a_revocation_list_past_its_date_refuses_or_counts_on_as_configured() {
    let ca = Ca::new("clients");
    let old = ca.list(&[66], -1);
    let (ann, eve) = (ca.client("ann", 1, 10), ca.client("eve", 66, 10));
    let (origin, proxy) = vault(&ca, Some(&old), ", crl_file = \"clients.crl\"").await;
    assert!(ask(&proxy, Some(&ann), SITE).await.is_err());
    counted(&proxy, "client-cert-unchecked", "CLIENT-CERT-UNCHECKED", 1.0).await;
    let check = proxy.command(&["check"]);
    let said = tool::text(&check.stdout) + &tool::text(&check.stderr);
    assert!(said.contains("is past its date: its clients are refused"), "{said}");
    let gauge = "tidegate_client_crl_next_update_timestamp_seconds";
    assert!(proxy.metrics().await.sum(gauge, &[("site", SITE)]) > 1.0);
    let more = ", crl_file = \"clients.crl\", expired_crl = \"accept\"";
    proxy.write_site(SITE, &site(&origin.backends(), more));
    proxy.reload().await;
    assert_eq!(ask(&proxy, Some(&ann), SITE).await.unwrap().status, 200);
    assert!(ask(&proxy, Some(&eve), SITE).await.is_err(), "what it names stays revoked");
}

// ---- the certificate that we show

/// A TLS server that asks for a certificate and answers with whose it saw; it keeps its connections open.
struct Asking {
    address: std::net::SocketAddr,
    accepted: Arc<Mutex<usize>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn asking(config: Arc<rustls::ServerConfig>) -> Asking {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let accepted = Arc::new(Mutex::new(0));
    let count = accepted.clone();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((tcp, _)) = listener.accept().await {
            *count.lock().unwrap() += 1;
            let acceptor = tokio_rustls::TlsAcceptor::from(config.clone());
            connections.spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let leaf = tls.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
                // The name is in the certificate as plain ASCII.
                let shown = leaf.map(|der| String::from_utf8_lossy(&der).into_owned()).unwrap_or_default();
                let name = ["first", "second", "third"]
                    .into_iter()
                    .find(|name| shown.contains(&format!("{name}.clients")));
                let body = name.unwrap_or("nobody");
                let mut buffer = vec![0; 16 * 1024];
                while let Ok(1..) = tls.read(&mut buffer).await {
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    if tls.write_all(answer.as_bytes()).await.is_err() || tls.flush().await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Asking { address, accepted, task }
}

fn keep(folder: &Path, name: &str, pair: &Pair) {
    std::fs::write(folder.join(format!("sites/{name}.pem")), &pair.cert).unwrap();
    std::fs::write(folder.join(format!("sites/{name}.key")), &pair.key).unwrap();
}

#[tokio::test]
async fn a_backend_that_asks_for_a_certificate_gets_the_one_of_its_route_and_no_connection_is_shared() {
    let (ca, clients) = (Ca::new("backends"), Ca::new("clients"));
    let backend = asking(ca.leaf(&["inner.test"]).server_config_asking(&clients.pem)).await;
    let builder = Proxy::builder();
    std::fs::create_dir_all(builder.folder().join("sites")).unwrap();
    std::fs::write(builder.folder().join("sites/inner.pem"), &ca.pem).unwrap();
    keep(builder.folder(), "first", &clients.client("first", 1, 10));
    keep(builder.folder(), "second", &clients.client("second", 2, 10));
    let backends = format!("backends = [\"https://{}\"]", backend.address);
    let upstream = |identity: &str| {
        format!("upstream = {{ ca_file = \"inner.pem\", server_name = \"inner.test\"{identity} }}")
    };
    let identity = |name: &str| format!(", cert = \"{name}.pem\", key = \"{name}.key\"");
    let text = format!(
        "[site.\"{SITE}\"]\n{backends}\n{}\n[[site.\"{SITE}\".route]]\npath = \"/second\"\n{}\n\
         [[site.\"{SITE}\".route]]\npath = \"/none\"\n{}\n",
        upstream(&identity("first")),
        upstream(&identity("second")),
        upstream(""),
    );
    let proxy = builder.site(SITE, &text).start().await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..3 {
        assert_eq!(wire.get(SITE, "/").await.text(), "first");
        assert_eq!(wire.get(SITE, "/second").await.text(), "second");
    }
    assert_eq!(*backend.accepted.lock().unwrap(), 2, "each certificate has its own connection, and keeps it");
    let refused = wire.get(SITE, "/none").await;
    refused.expect(502, "UPSTREAM-TLS");
    // A new certificate in the same files is shown without a restart, and old connections are not used for it.
    keep(proxy.path(), "first", &clients.client("third", 3, 10));
    wait_for("the new certificate", || async {
        (proxy.get(SITE, "/").await.text() == "third").then_some(())
    })
    .await;
    assert_eq!(wire.get(SITE, "/").await.text(), "third");
    // A key that does not fit leaves the old pair in force.
    std::fs::write(proxy.path().join("sites/first.key"), clients.client("x", 9, 10).key).unwrap();
    let report = proxy.reload().await;
    assert_eq!(report["quarantined"][0], SITE, "{report}");
    assert!(report.to_string().contains("belongs to another certificate"), "{report}");
    assert_eq!(proxy.get(SITE, "/").await.text(), "third");
}

#[tokio::test]
async fn plaintext_backends_are_refused_at_check_where_encryption_is_required() {
    let origin = Origin::saying("ok").await;
    let builder = Proxy::builder().set("server.require_encrypted_backends", "true");
    // This machine is exempt.
    let proxy = builder.site(SITE, &origin.backends()).start().await;
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
    proxy.write_site(SITE, "backends = [\"192.0.2.1:8080\"]");
    let check = proxy.command(&["check"]);
    let said = tool::text(&check.stdout) + &tool::text(&check.stderr);
    assert!(!check.status.success() && said.contains("is reached in plain text"), "{said}");
    let report = proxy.reload().await;
    assert_eq!(report["quarantined"][0], SITE, "{report}");
    assert_eq!(proxy.get(SITE, "/").await.status, 200, "its last good version goes on");
}
