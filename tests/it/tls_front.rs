//! The TLS front against everything a socket can carry: old versions, broken and hostile bytes, clients that go away in
//! the middle. Nothing of it is served, each has its reason in the metrics, and nobody else notices.

use std::io::Write as _;
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use rustls::version::{TLS12, TLS13};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::harness::tls::{Ca, Pair, client_config, connect, hello};
use crate::harness::{H2, Origin, Proxy, ProxyBuilder, Wire, tool, wait_for, within};

const SITE: &str = "shop.test";
const FAILURES: &str = "tidegate_tls_handshake_failures_total";

async fn shop() -> (Origin, Proxy) {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    (origin, proxy)
}

/// A handshake message in records of at most so many bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |part: &[u8]| {
        let mut out = vec![22, 3, 1];
        out.extend((part.len() as u16).to_be_bytes());
        out.extend(part);
        out
    };
    message.chunks(size).flat_map(record).collect()
}

/// A ClientHello taken apart.
struct Hello {
    version: [u8; 2],
    random: Vec<u8>,
    session: Vec<u8>,
    ciphers: Vec<u8>,
    compression: Vec<u8>,
    extensions: Vec<(u16, Vec<u8>)>,
}

impl Hello {
    fn parse(record: &[u8]) -> Hello {
        let mut rest = &record[9..];
        let mut take = |n: usize| {
            let (taken, left) = rest.split_at(n);
            rest = left;
            taken.to_vec()
        };
        let version = take(2).try_into().unwrap();
        let random = take(32);
        let n = take(1)[0].into();
        let session = take(n);
        let n = u16::from_be_bytes(take(2).try_into().unwrap()).into();
        let ciphers = take(n);
        let n = take(1)[0].into();
        let compression = take(n);
        let mut left: usize = u16::from_be_bytes(take(2).try_into().unwrap()).into();
        let mut extensions = Vec::new();
        while left > 0 {
            let kind = u16::from_be_bytes(take(2).try_into().unwrap());
            let n: usize = u16::from_be_bytes(take(2).try_into().unwrap()).into();
            extensions.push((kind, take(n)));
            left -= 4 + n;
        }
        Hello { version, random, session, ciphers, compression, extensions }
    }

    /// The handshake message, with its header.
    fn message(&self) -> Vec<u8> {
        let mut body = self.version.to_vec();
        body.extend(&self.random);
        body.push(self.session.len() as u8);
        body.extend(&self.session);
        body.extend((self.ciphers.len() as u16).to_be_bytes());
        body.extend(&self.ciphers);
        body.push(self.compression.len() as u8);
        body.extend(&self.compression);
        if !self.extensions.is_empty() {
            let all: Vec<u8> = self
                .extensions
                .iter()
                .flat_map(|(kind, data)| {
                    [&kind.to_be_bytes()[..], &(data.len() as u16).to_be_bytes(), data].concat()
                })
                .collect();
            body.extend((all.len() as u16).to_be_bytes());
            body.extend(all);
        }
        let mut message = vec![1];
        message.extend(&(body.len() as u32).to_be_bytes()[1..]);
        message.extend(body);
        message
    }

    /// With another server name, of any bytes.
    fn named(mut self, name: &[u8]) -> Hello {
        let length = name.len() as u16;
        let mut data = (length + 3).to_be_bytes().to_vec();
        data.push(0);
        data.extend(length.to_be_bytes());
        data.extend(name);
        self.extensions.iter_mut().find(|(kind, _)| *kind == 0).expect("SNI").1 = data;
        self
    }
}

/// Sends bytes and reads what comes until the peer closes.
async fn answer(proxy: &Proxy, bytes: &[u8]) -> Vec<u8> {
    let mut wire = Wire::plain(proxy.https()).await;
    // The peer may close before all is written.
    let _ = wire.try_send(bytes).await;
    wire.closed().await
}

/// A fatal alert in the clear (RFC 8446 section 6).
fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

#[track_caller]
fn is_alert(found: &[u8], description: u8) {
    // The version in a record's header means nothing (RFC 8446 section 5.1).
    assert!(found.len() == 7 && found[3..] == alert(description)[3..] && found[0] == 21, "{found:02x?}");
}

/// Waits until a reason has this count.
async fn counted(proxy: &Proxy, reason: &str, count: f64) {
    wait_for(&format!("{count} failures for {reason}"), || async {
        let metrics = proxy.metrics().await;
        let found = metrics.sum(FAILURES, &[("reason", reason)]);
        assert!(found <= count, "{reason}: {found} instead of {count}");
        (found == count).then_some(())
    })
    .await;
}

// ---- versions and what went with them

#[tokio::test]
async fn a_hello_of_tls_1_0_or_1_1_is_answered_with_an_alert() {
    let (origin, proxy) = shop().await;
    let modern = hello(&client_config(&proxy.ca_pem(), &[], &[&TLS12]), SITE);
    for minor in [0, 1, 2] {
        let mut old = Hello::parse(&modern);
        old.version = [3, minor];
        old.ciphers = vec![0xc0, 0x13, 0x00, 0x2f];
        // supported_versions, which such a client did not know.
        old.extensions.retain(|(kind, _)| *kind != 43);
        is_alert(&answer(&proxy, &records(&old.message(), 4096)).await, 70);
        // Without any extension, as clients of that time sent it: the missing one is noticed first.
        old.extensions.clear();
        is_alert(&answer(&proxy, &records(&old.message(), 4096)).await, 40);
    }
    counted(&proxy, "version", 6.0).await;
    assert_eq!(origin.count(), 0);
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}

/// openssl s_client with this on its standard input; both outputs.
async fn s_client(proxy: &Proxy, args: &[&str], input: &'static str) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &proxy.https().to_string(), "-servername", SITE]).args(args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let running = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().expect("openssl");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).unwrap();
        // Kept open: s_client ends with its input, before the answer.
        let output = if input.is_empty() {
            drop(stdin);
            child.wait_with_output()
        } else {
            let output = child.wait_with_output();
            drop(stdin);
            output
        };
        let output = output.expect("openssl's output");
        tool::text(&output.stdout) + &tool::text(&output.stderr)
    });
    within("openssl", running).await.unwrap()
}

#[tokio::test]
async fn openssl_agrees_that_only_tls_1_2_and_1_3_are_spoken() {
    if !tool::requires("openssl", &["version"]) {
        return;
    }
    let (_origin, proxy) = shop().await;
    for (version, spoken) in [("-tls1", false), ("-tls1_1", false), ("-tls1_2", true), ("-tls1_3", true)] {
        let said = s_client(&proxy, &[version, "-cipher", "DEFAULT@SECLEVEL=0"], "").await;
        assert_eq!(said.contains("Server certificate"), spoken, "{version}: {said}");
        if spoken {
            assert!(said.contains("Compression: NONE") && said.contains("Secure Renegotiation IS"), "{said}");
        }
    }
}

#[tokio::test]
async fn openssl_gets_aes_with_128_bits_unless_it_prefers_chacha20_or_has_no_other() {
    if !tool::requires("openssl", &["version"]) {
        return;
    }
    let (_origin, proxy) = shop().await;
    let (a128, a256, chacha) =
        ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256");
    for (offered, agreed) in [
        ([a256, chacha, a128].join(":"), a128),
        ([chacha, a256, a128].join(":"), chacha),
        (a256.into(), a256),
    ] {
        let said = s_client(&proxy, &["-tls1_3", "-ciphersuites", &offered], "").await;
        assert!(said.contains(&format!("Cipher is {agreed}")), "{offered}: {said}");
    }
}

#[tokio::test]
async fn renegotiation_is_refused() {
    if !tool::requires("openssl", &["version"]) {
        return;
    }
    let (_origin, proxy) = shop().await;
    let said = s_client(&proxy, &["-tls1_2"], "R\n").await;
    assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}

#[tokio::test]
async fn compression_is_never_agreed_on() {
    let (_origin, proxy) = shop().await;
    let config = client_config(&proxy.ca_pem(), &[], &[&TLS12]);
    let mut offered = Hello::parse(&hello(&config, SITE));
    offered.compression = vec![1, 64, 0];
    let mut wire = Wire::plain(proxy.https()).await;
    wire.send(records(&offered.message(), 4096)).await;
    let head = wire.exactly(9 + 2 + 32 + 1).await.unwrap();
    assert_eq!((head[0], head[5]), (22, 2), "a ServerHello");
    let session = usize::from(head[43]);
    let rest = wire.exactly(session + 3).await.unwrap();
    assert_eq!(rest[session + 2], 0, "compression method");
    // Without the null method there is nothing to agree on.
    offered.compression = vec![1];
    let refused = answer(&proxy, &records(&offered.message(), 4096)).await;
    assert!(refused.len() == 7 && refused[0] == 21, "{refused:02x?}");
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}

// ---- fragments and sizes

/// Writes one byte at a time.
struct Dribble(TcpStream);

impl AsyncRead for Dribble {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Dribble {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let first = buf.len().min(1);
        Pin::new(&mut self.0).poll_write(cx, &buf[..first])
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[tokio::test]
async fn a_hello_byte_by_byte_and_over_many_records_is_read() {
    let (_origin, proxy) = shop().await;
    for version in [&TLS12, &TLS13] {
        for fragment in [None, Some(32)] {
            let mut config = client_config(&proxy.ca_pem(), &["http/1.1"], &[version]);
            Arc::get_mut(&mut config).unwrap().max_fragment_size = fragment;
            let tcp = TcpStream::connect(proxy.https()).await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let name = ServerName::try_from(SITE).unwrap();
            let shaken = TlsConnector::from(config).connect(name, Dribble(tcp));
            let mut tls = within("the handshake", shaken).await.unwrap();
            let request = format!("GET / HTTP/1.1\r\nHost: {SITE}\r\nConnection: close\r\n\r\n");
            tls.write_all(request.as_bytes()).await.unwrap();
            tls.flush().await.unwrap();
            let mut said = Vec::new();
            within("the answer", tls.read_to_end(&mut said)).await.unwrap();
            assert!(said.starts_with(b"HTTP/1.1 200"), "{version:?} {fragment:?}");
        }
    }
}

#[tokio::test]
async fn records_and_hellos_beyond_what_is_legal_end_the_connection() {
    let (origin, proxy) = shop().await;
    // RFC 8446 section 5.2: a record has at most 2^14 + 256 bytes, RFC 5246 allows 2^14 + 2048.
    let mut record = vec![22, 3, 1];
    record.extend((16_384u16 + 2_049).to_be_bytes());
    record.extend(vec![1; 20_000]);
    answer(&proxy, &record).await;
    // A hello that says it has a megabyte, and one that claims 16.
    for length in [[0x10, 0, 0], [0xff, 0xff, 0xff]] {
        let mut message = vec![1];
        message.extend(length);
        message.extend(vec![3; 1 << 20]);
        answer(&proxy, &records(&message, 16_384)).await;
    }
    // The same, with the length spread over records of one byte.
    let mut message = vec![1, 0x10, 0, 0];
    message.extend(vec![3; 100_000]);
    answer(&proxy, &records(&message, 1)).await;
    let failed = wait_for("four failures", || async {
        let metrics = proxy.metrics().await;
        (metrics.sum(FAILURES, &[]) == 4.0).then_some(metrics)
    })
    .await;
    assert!(failed.sum(FAILURES, &[("reason", "too-large")]) >= 3.0, "{}", failed.0);
    assert_eq!(origin.count(), 0);
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}

// ---- what is no TLS at all

#[tokio::test]
async fn bytes_that_are_no_tls_are_closed_without_an_answer() {
    let (origin, proxy) = shop().await;
    let sslv2 = [0x80, 0x2e, 0x01, 0x03, 0x01, 0x00, 0x15, 0x00, 0x00, 0x00, 0x10, 0x07, 0x00, 0xc0];
    let not_tls: [&[u8]; 6] = [
        &sslv2,
        &[0; 64],
        &[0xff; 600],
        b"\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x28",
        b"\x17\x03\x03\x00\x01x",
    ];
    for bytes in not_tls {
        assert_eq!(answer(&proxy, bytes).await, b"", "{bytes:02x?}");
    }
    counted(&proxy, "not-tls", not_tls.len() as f64).await;
    // A record that begins well.
    for bytes in [
        &b"\x16garbage, and more of it"[..],
        b"\x16\x03\x01\x00\x04\x01\x00\x00\x00",
        b"\x16\x03\x01\x00\x00",
        b"\x16\x03\x01\x00\x05\x02\x00\x00\x01x",
        b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",
    ] {
        let said = answer(&proxy, bytes).await;
        assert!(said.is_empty() || said[0] == 21, "{bytes:02x?}: {said:02x?}");
    }
    assert_eq!(origin.count(), 0);
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}

#[tokio::test]
async fn without_a_protocol_in_common_the_alert_says_so() {
    let (_origin, proxy) = shop().await;
    // no_application_protocol, RFC 7301 section 3.2.
    let bytes = hello(&client_config(&proxy.ca_pem(), &["spdy/1"], &[&TLS12]), SITE);
    is_alert(&answer(&proxy, &bytes).await, 120);
    // TLS 1.3 says it encrypted.
    let config = client_config(&proxy.ca_pem(), &["spdy/1"], &[&TLS13]);
    let refused = connect(config, proxy.https(), SITE).await.err().expect("no handshake").to_string();
    assert!(refused.contains("NoApplicationProtocol"), "{refused}");
    counted(&proxy, "alpn", 2.0).await;
}

#[tokio::test]
async fn server_names_that_are_none_are_refused_or_forgiven_and_never_served_as_another() {
    let (origin, proxy) = shop().await;
    let config = client_config(&proxy.ca_pem(), &[], &[&TLS13]);
    let with = |name: &[u8]| records(&Hello::parse(&hello(&config, SITE)).named(name).message(), 16_384);
    let long = format!("{}.test", "a".repeat(400));
    for name in [
        &b"shop.test\0"[..],
        b"shop.test\0.evil.test",
        b"",
        b"shop test",
        b"shop.test:443",
        long.as_bytes(),
        b"\xff\xfe",
        b"..",
        b"*.test",
    ] {
        let said = answer(&proxy, &with(name)).await;
        assert!(said.len() == 7 && said[0] == 21, "{:?}: {said:02x?}", String::from_utf8_lossy(name));
    }
    // An address is no name (RFC 6066 section 3): as if none was said.
    for name in [&b"127.0.0.1"[..], b"2001:db8::1"] {
        let said = answer(&proxy, &with(name)).await;
        assert!(said.len() == 7 && said[0] == 21, "{:?}: {said:02x?}", String::from_utf8_lossy(name));
    }
    // A trailing dot and capitals are forgiven: a ServerHello comes.
    for name in [&b"shop.test."[..], b"SHOP.Test"] {
        let mut wire = Wire::plain(proxy.https()).await;
        wire.send(with(name)).await;
        assert_eq!(wire.exactly(6).await.unwrap()[5], 2, "{:?}", String::from_utf8_lossy(name));
    }
    assert_eq!(origin.count(), 0);
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}

// ---- clients that go away

#[tokio::test]
async fn a_handshake_abandoned_at_any_stage_is_counted_and_hurts_nobody() {
    let (origin, proxy) = shop().await;
    let bytes = hello(&client_config(&proxy.ca_pem(), &[], &[&TLS13]), SITE);
    let mut beside = proxy.wire(SITE).await;
    for reset in [false, true] {
        for sent in [0, 1, 5, 9, bytes.len() / 2, bytes.len() - 1, bytes.len()] {
            let mut wire = Wire::plain(proxy.https()).await;
            wire.send(&bytes[..sent]).await;
            if sent == bytes.len() {
                // Our answer has come: the client goes instead of finishing.
                assert!(within("the server's flight", wire.fill()).await.unwrap() > 0);
            }
            match reset {
                true => wire.reset(),
                false => drop(wire),
            }
        }
        assert_eq!(beside.get(SITE, "/").await.status, 200);
    }
    let metrics = wait_for("all fourteen to be counted", || async {
        let metrics = proxy.metrics().await;
        (metrics.sum(FAILURES, &[]) == 14.0).then_some(metrics)
    })
    .await;
    let gone =
        ["no-bytes", "abandoned", "io"].iter().map(|reason| metrics.sum(FAILURES, &[("reason", reason)]));
    assert_eq!(gone.sum::<f64>(), 14.0, "{}", metrics.0);
    assert!(
        metrics.sum(FAILURES, &[("reason", "no-bytes")]) >= 1.0
            && metrics.sum(FAILURES, &[("reason", "abandoned")]) >= 5.0
    );
    assert_eq!(origin.count(), 2);
}

#[tokio::test]
async fn a_client_that_does_not_trust_us_is_counted_apart() {
    let (_origin, proxy) = shop().await;
    let stranger = Ca::new("stranger");
    for version in [&TLS12, &TLS13] {
        assert!(connect(client_config(&stranger.pem, &[], &[version]), proxy.https(), SITE).await.is_err());
    }
    counted(&proxy, "alert", 2.0).await;
}

#[tokio::test]
async fn a_silent_client_is_closed_when_the_handshakes_time_is_over() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.timeouts.handshake", "\"300ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let bytes = hello(&client_config(&proxy.ca_pem(), &[], &[&TLS13]), SITE);
    for sent in [0, 40, bytes.len()] {
        let mut wire = Wire::plain(proxy.https()).await;
        wire.send(&bytes[..sent]).await;
        wire.closed().await;
    }
    counted(&proxy, "timeout", 3.0).await;
}

// ---- policies

fn put(builder: &ProxyBuilder, pair: &Pair) {
    std::fs::create_dir_all(builder.folder().join("sites")).unwrap();
    std::fs::write(builder.folder().join("sites/all.key"), &pair.key).unwrap();
    std::fs::write(builder.folder().join("sites/all.pem"), &pair.cert).unwrap();
}

const CERTIFICATE: &str = "certificate = { cert = \"all.pem\", key = \"all.key\" }";

#[tokio::test]
async fn each_site_speaks_the_versions_of_its_own_policy() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.tls.profile", "\"modern\"")
        .site("modern.test", &origin.backends())
        .site("older.test", &format!("{}\ntls = {{ profile = \"intermediate\" }}", origin.backends()))
        .site(
            "least.test",
            &format!("{}\ntls = {{ profile = \"intermediate\", min_version = \"1.3\" }}", origin.backends()),
        )
        .start()
        .await;
    for (site, version, spoken) in [
        ("modern.test", &TLS13, true),
        ("modern.test", &TLS12, false),
        ("older.test", &TLS13, true),
        ("older.test", &TLS12, true),
        ("least.test", &TLS12, false),
    ] {
        let config = client_config(&proxy.ca_pem(), &["http/1.1"], &[version]);
        match connect(config, proxy.https(), site).await {
            Ok(mut wire) => {
                assert!(spoken, "{site} spoke {version:?}");
                assert_eq!(wire.get(site, "/").await.status, 200);
            }
            Err(error) => assert!(!spoken, "{site} {version:?}: {error}"),
        }
    }
    counted(&proxy, "version", 2.0).await;
}

#[tokio::test]
async fn a_connection_is_shared_only_by_sites_with_one_certificate_and_one_policy() {
    let origin = Origin::saying("ok").await;
    let ca = Ca::new("files");
    let site = |more: &str| format!("{}\n{CERTIFICATE}\n{more}", origin.backends());
    let builder = Proxy::builder();
    put(&builder, &ca.leaf(&["a.test", "b.test", "c.test"]));
    let proxy = builder
        .site("a.test", &site(""))
        .site("b.test", &site("tls = { profile = \"intermediate\" }"))
        .site("c.test", &site("tls = { profile = \"modern\" }"))
        .start()
        .await;
    let config = client_config(&ca.pem, &["h2"], &[&TLS13]);
    for (named, asked, status) in [
        ("a.test", "a.test", 200),
        ("a.test", "b.test", 200),
        ("b.test", "a.test", 200),
        ("a.test", "c.test", 421),
        ("c.test", "a.test", 421),
        ("c.test", "c.test", 200),
    ] {
        let wire = connect(config.clone(), proxy.https(), named).await.unwrap();
        let mut h2 = H2::over(wire, asked).await;
        assert_eq!(h2.get("/").await.status, status, "{named} asked for {asked}");
    }
    assert_eq!(proxy.record_with("MISDIRECTED").await["status"], 421);
}

#[tokio::test]
async fn a_connection_made_under_an_older_policy_is_sent_to_make_a_new_one() {
    let (origin, proxy) = shop().await;
    let config = client_config(&proxy.ca_pem(), &["http/1.1"], &[&TLS12]);
    let mut wire = connect(config.clone(), proxy.https(), SITE).await.unwrap();
    assert_eq!(wire.get(SITE, "/").await.status, 200);
    proxy.write_site(SITE, &format!("{}\ntls = {{ profile = \"modern\" }}", origin.backends()));
    proxy.reload().await;
    wire.get(SITE, "/").await.expect(421, "MISDIRECTED");
    assert!(connect(config, proxy.https(), SITE).await.is_err());
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}

// ---- a scanner

/// The first lines of a scan, where the scanner is there: `scripts/scan-tls` runs it in full.
#[tokio::test]
async fn openssl_finds_no_weak_cipher() {
    if !tool::requires("openssl", &["version"]) {
        return;
    }
    let (_origin, proxy) = shop().await;
    for weak in
        ["aNULL", "eNULL", "EXPORT", "RC4", "3DES", "MD5", "kRSA", "CBC", "PSK", "SHA1", "CAMELLIA", "ARIA"]
    {
        let args = ["-tls1_2", "-cipher", &format!("{weak}:@SECLEVEL=0")[..]];
        let said = s_client(&proxy, &args, "").await;
        assert!(!said.contains("Server certificate"), "{weak} was agreed on: {said}");
    }
}
