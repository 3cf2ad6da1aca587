//! Everything has a bound. Each test makes one bound small and reaches it.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::harness::client::{empty, full};
use crate::harness::{Answer, Gate, Origin, Proxy, ProxyBuilder, Wire, tls, wait_for, wait_until, within};

const SITE: &str = "shop.test";

/// A proxy before one origin that says `ok`, with one setting made small.
async fn limited(key: &str, value: &str) -> (Origin, Proxy) {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder().set(key, value).site(SITE, &origin.backends()).start().await;
    (origin, proxy)
}

/// Closed without an answer, or with this one: a deadline may or may not leave room for a last word.
async fn closes(wire: &mut Wire, status: &str) {
    let rest = wire.closed().await;
    let text = String::from_utf8_lossy(&rest);
    assert!(text.is_empty() || text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
}

// ---- deadlines of the client's side

#[tokio::test]
async fn a_tls_handshake_that_does_not_finish_is_closed() {
    let (_origin, proxy) = limited("server.timeouts.handshake", "\"300ms\"").await;
    let mut silent = Wire::plain(proxy.https()).await;
    let mut half = Wire::plain(proxy.https()).await;
    half.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").await;
    silent.closed().await;
    half.closed().await;
    assert_eq!(proxy.get(SITE, "/").await.status, 200, "others are served");
}

#[tokio::test]
async fn a_request_head_that_does_not_finish_is_closed_however_busily_it_trickles() {
    let (origin, proxy) = limited("server.timeouts.head", "\"500ms\"").await;
    let mut half = proxy.wire(SITE).await;
    half.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\nX-A: ")).await;
    closes(&mut half, "408").await;

    let mut trickle = proxy.wire(SITE).await;
    trickle.send("GET / HTTP/1.1\r\nX-A: ").await;
    // A byte each round: progress must not extend the deadline. Writes begin to fail once the proxy has closed.
    let trickle = tokio::sync::Mutex::new(trickle);
    wait_for("the trickling client to be cut off", || async {
        trickle.lock().await.try_send("a").await.err()
    })
    .await;
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn an_idle_connection_is_closed_before_and_after_a_request() {
    let (_origin, proxy) = limited("server.timeouts.idle", "\"300ms\"").await;
    let mut used = proxy.wire(SITE).await;
    assert_eq!(used.get(SITE, "/").await.status, 200);
    closes(&mut used, "408").await;
    let mut plain = proxy.plain().await;
    assert_eq!(plain.get(SITE, "/").await.status, 308);
    closes(&mut plain, "408").await;
}

#[tokio::test]
async fn a_connection_that_never_asks_is_closed() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.timeouts.idle", "\"300ms\"")
        .set("server.timeouts.head", "\"300ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    for mut wire in [proxy.wire(SITE).await, proxy.plain().await] {
        closes(&mut wire, "408").await;
    }
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed_but_a_waiting_one_is_not() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let held = held.clone();
        async move {
            held.pass().await;
            x.answer(Answer::ok("late")).await.ok()?;
            Some(x)
        }
    })
    .await;
    let proxy = Proxy::builder()
        .set("server.timeouts.idle", "\"300ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let idle = proxy.h2(SITE).await;
    let mut waiting = proxy.h2(SITE).await;
    let answer = tokio::spawn(async move { waiting.get("/").await });
    origin.arrived(1).await;
    let _ = within("the idle h2 connection to end", idle.driver).await;
    // The idle one has outlived its deadline: the waiting one was as old and still gets its answer.
    gate.open();
    assert_eq!(answer.await.unwrap().text(), "late");
}

#[tokio::test]
async fn a_request_body_that_stops_arriving_is_given_up() {
    let (origin, proxy) = limited("server.timeouts.body", "\"300ms\"").await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 10\r\n\r\nhalf")).await;
    let reply = wire.reply_to("POST").await;
    reply.expect(408, "BODY-TIMEOUT");
    wire.closed().await;
    proxy.record_with("BODY-TIMEOUT").await;
    assert!(origin.requests().iter().all(|r| r.body.is_empty()), "half a body passed for a whole one");
}

#[tokio::test]
async fn a_client_that_stops_reading_is_given_up() {
    let origin = Origin::scripted(|mut x| async move {
        x.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1u64 << 30)).await.ok()?;
        let piece = vec![b'x'; 64 * 1024];
        while x.wire.io.write_all(&piece).await.is_ok() {}
        None
    })
    .await;
    let proxy = Proxy::builder()
        .set("server.timeouts.write", "\"500ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut h1 = proxy.wire(SITE).await;
    h1.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    proxy.record_with("CLIENT-STALLED").await;
    wait_until("the backend connection to end", || origin.open() == 0).await;
}

#[tokio::test]
async fn a_tunnel_in_which_nobody_speaks_is_closed() {
    let origin = Origin::scripted(|mut x| async move {
        x.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            .await
            .ok()?;
        x.until_closed().await;
        None
    })
    .await;
    let proxy = Proxy::builder()
        .set("server.timeouts.tunnel", "\"300ms\"")
        .site(SITE, &format!("{}\nupgrade = [\"echo\"]", origin.backends()))
        .start()
        .await;
    let mut wire = proxy.wire(SITE).await;
    let reply = wire.ask("GET", "/", SITE, "Connection: Upgrade\r\nUpgrade: echo\r\n").await;
    assert_eq!(reply.status, 101);
    assert!(wire.closed().await.is_empty());
    wait_until("the backend's side to end", || origin.open() == 0).await;
    proxy.record_with("TUNNEL").await;
}

// ---- sizes

#[tokio::test]
async fn a_head_that_is_too_large_is_431() {
    let (origin, proxy) = limited("server.limits.head", "\"8KiB\"").await;
    let big = format!("X-A: {}\r\n", "a".repeat(12 << 10));
    let mut wire = proxy.wire(SITE).await;
    let reply = wire.ask("GET", "/", SITE, &big).await;
    assert_eq!(reply.status, 431);
    wire.closed().await;
    let many: String = (0..60).map(|i| format!("X-{i}: {}\r\n", "b".repeat(200))).collect();
    assert_eq!(proxy.wire(SITE).await.ask("GET", "/", SITE, &many).await.status, 431);
    let mut h2 = proxy.h2(SITE).await;
    let request = h2.request("GET", "/").header("x-a", "a".repeat(12 << 10)).body(empty()).unwrap();
    match h2.start(request).await {
        Ok(answer) => assert_eq!(answer.status(), 431),
        Err(refused) => {
            assert!(refused.is_user() || h2.sender.is_closed() || !refused.is_timeout(), "{refused}")
        }
    }
    let small = format!("X-A: {}\r\n", "a".repeat(4 << 10));
    assert_eq!(proxy.wire(SITE).await.ask("GET", "/", SITE, &small).await.status, 200);
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn too_many_fields_are_431() {
    let (origin, proxy) = limited("server.limits.fields", "20").await;
    let fields = |n: usize| (0..n).map(|i| format!("X-{i}: 1\r\n")).collect::<String>();
    assert_eq!(proxy.wire(SITE).await.ask("GET", "/", SITE, &fields(40)).await.status, 431);
    let mut h2 = proxy.h2(SITE).await;
    let mut request = h2.request("GET", "/");
    for i in 0..40 {
        request = request.header(format!("x-{i}"), "1");
    }
    assert_eq!(h2.send(request.body(empty()).unwrap()).await.status, 431);
    assert_eq!(proxy.wire(SITE).await.ask("GET", "/", SITE, &fields(10)).await.status, 200);
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn a_target_that_is_too_long_is_414() {
    let (origin, proxy) = limited("server.limits.uri", "\"256B\"").await;
    let long = format!("/{}", "a".repeat(400));
    proxy.get(SITE, &long).await.expect(414, "URI-TOO-LONG");
    proxy.get(SITE, &format!("/?q={}", "a".repeat(400))).await.expect(414, "URI-TOO-LONG");
    proxy.h2(SITE).await.get(&long).await.expect(414, "URI-TOO-LONG");
    assert_eq!(proxy.get(SITE, &format!("/{}", "a".repeat(80))).await.status, 200);
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn a_body_over_the_sites_limit_is_413_before_it_is_sent() {
    let origin = Origin::answering(|r| Answer::ok(r.body.len().to_string())).await;
    let proxy = Proxy::with_site(SITE, &format!("{}\nmax_body = \"1KiB\"", origin.backends())).await;
    let mut wire = proxy.wire(SITE).await;
    // Only the head: the refusal does not wait for the bytes.
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 1025\r\n\r\n")).await;
    wire.reply_to("POST").await.expect(413, "BODY-TOO-LARGE");
    assert_eq!(origin.count(), 0);
    assert_eq!(proxy.wire(SITE).await.post(SITE, "/", &"a".repeat(1024)).await.text(), "1024");
    let mut h2 = proxy.h2(SITE).await;
    let request = h2.request("POST", "/").body(full(vec![0u8; 1025])).unwrap();
    h2.send(request).await.expect(413, "BODY-TOO-LARGE");
}

#[tokio::test]
async fn a_chunked_body_is_cut_where_it_passes_the_limit() {
    let origin = Origin::answering(|r| Answer::ok(r.body.len().to_string())).await;
    let proxy = Proxy::with_site(SITE, &format!("{}\nmax_body = \"1KiB\"", origin.backends())).await;
    let mut wire = proxy.wire(SITE).await;
    let chunk = format!("200\r\n{}\r\n", "a".repeat(512));
    wire.send(format!(
        "POST / HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n"
    ))
    .await;
    wire.reply_to("POST").await.expect(413, "BODY-TOO-LARGE");
    proxy.record_with("BODY-TOO-LARGE").await;
    assert!(
        origin.requests().iter().all(|r| r.body.is_empty()),
        "the backend took a cut body for a whole one"
    );
}

#[tokio::test]
async fn a_backends_head_that_is_too_large_is_its_fault() {
    let origin = Origin::answering(|_| Answer::ok("x").field("X-Big", &"a".repeat(32 << 10))).await;
    let proxy = Proxy::builder()
        .set("server.limits.upstream_head", "\"8KiB\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    proxy.get(SITE, "/").await.expect(502, "UPSTREAM-INVALID");
}

// ---- deadlines of the backend's side

/// A listener whose queue is full: the kernel drops further attempts, so connecting takes for ever.
pub fn full_listener() -> (SocketAddr, Vec<TcpStream>, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        queued.push(stream);
        assert!(queued.len() < 64, "the queue does not fill");
    }
    (address, queued, socket)
}

#[tokio::test]
async fn a_backend_that_does_not_accept_is_a_connect_timeout() {
    let (address, _queued, _socket) = full_listener();
    let proxy =
        Proxy::with_site(SITE, &format!("backends = [\"{address}\"]\nconnect_timeout = \"300ms\"")).await;
    proxy.get(SITE, "/").await.expect(504, "CONNECT-TIMEOUT");
}

#[tokio::test]
async fn the_connect_timeout_of_the_server_applies_where_the_site_has_none() {
    let (address, _queued, _socket) = full_listener();
    let proxy = Proxy::builder()
        .set("server.timeouts.connect", "\"300ms\"")
        .site(SITE, &format!("backends = [\"{address}\"]"))
        .start()
        .await;
    proxy.get(SITE, "/").await.expect(504, "CONNECT-TIMEOUT");
}

#[tokio::test]
async fn a_backend_that_never_answers_is_a_timeout() {
    let origin = Origin::scripted(|mut x| async move {
        x.until_closed().await;
        None
    })
    .await;
    let site = format!(
        "{}\n[[site.\"shop.test\".route]]\npath = \"/own\"\ntimeout = \"300ms\"\n{}",
        origin.backends(),
        origin.backends()
    );
    let proxy =
        Proxy::builder().set("server.timeouts.first_byte", "\"400ms\"").site(SITE, &site).start().await;
    proxy.get(SITE, "/").await.expect(504, "UPSTREAM-TIMEOUT");
    proxy.get(SITE, "/own").await.expect(504, "UPSTREAM-TIMEOUT");
    wait_until("the abandoned backend connections to end", || origin.open() == 0).await;
}

#[tokio::test]
async fn an_unused_backend_connection_is_closed() {
    let (origin, proxy) = limited("server.timeouts.upstream_idle", "\"300ms\"").await;
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
    wait_until("the pooled connection to end", || origin.open() == 0).await;
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
    assert_eq!(origin.accepted(), 2);
}

// ---- counts

#[tokio::test]
async fn a_connection_ends_gracefully_after_its_share_of_requests() {
    let (origin, proxy) = limited("server.max_requests_per_connection", "3").await;
    let mut wire = proxy.wire(SITE).await;
    for i in 1..=3 {
        let reply = wire.get(SITE, "/").await;
        let closing = reply.head.fields_of("connection").iter().any(|v| v.eq_ignore_ascii_case("close"));
        assert_eq!((reply.status, closing), (200, i == 3), "request {i}");
    }
    wire.closed().await;
    let mut h2 = proxy.h2(SITE).await;
    for _ in 0..3 {
        assert_eq!(h2.get("/").await.status, 200);
    }
    within("GOAWAY", h2.driver).await.unwrap().expect("a graceful end");
    assert_eq!(origin.count(), 6);
}

#[tokio::test]
async fn one_client_address_gets_only_its_share_of_connections() {
    let (_origin, proxy) = limited("server.max_connections_per_client", "2").await;
    let mut first = proxy.wire(SITE).await;
    let second = proxy.wire(SITE).await;
    assert!(proxy.try_get(SITE, "/").await.is_err(), "a third connection was served");
    assert_eq!(first.get(SITE, "/").await.status, 200, "those inside stay");
    drop(second);
    wait_for("the freed place", || async { proxy.try_get(SITE, "/").await.ok() }).await;
}

/// Requests over HTTP/2 and HTTP/1 beside each other, of which two are answered only when the gate opens.
async fn busy(set: impl Fn(ProxyBuilder) -> ProxyBuilder) -> (Origin, Gate, Proxy, Wire) {
    let gate = Gate::default();
    let wait = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let wait = wait.clone();
        async move {
            if x.request.target() == "/slow" {
                wait.pass().await;
            }
            x.answer(Answer::ok("ok")).await.ok()?;
            Some(x)
        }
    })
    .await;
    let builder = Proxy::builder().set("server.limits.requests_per_client", "2");
    let proxy = set(builder).site(SITE, &origin.backends()).start().await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("GET /slow HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    let mut h2 = proxy.h2(SITE).await;
    tokio::spawn(async move { h2.get("/slow").await });
    origin.arrived(2).await;
    (origin, gate, proxy, wire)
}

#[tokio::test]
async fn one_client_address_gets_only_its_share_of_requests_in_flight_over_all_its_connections() {
    let (origin, gate, proxy, mut wire) = busy(|builder| builder).await;
    let refused = proxy.get(SITE, "/").await;
    refused.expect(429, "CLIENT-BUSY");
    assert_eq!(refused.field("retry-after"), Some("1"));
    let mut h2 = proxy.h2(SITE).await;
    assert_eq!(h2.get("/").await.status, 429, "over HTTP/2 too");
    assert_eq!(origin.count(), 2, "what is refused reaches no backend");
    gate.open();
    assert_eq!(wire.reply().await.status, 200, "those inside stay");
    wait_for("room", || async { (proxy.get(SITE, "/").await.status == 200).then_some(()) }).await;
}

#[tokio::test]
async fn in_shadow_requests_in_flight_are_counted_and_not_refused_and_a_trusted_proxy_has_no_cap() {
    let shadow = |builder: ProxyBuilder| builder.set("server.limits.requests_per_client_mode", "\"shadow\"");
    let (_origin, _gate, proxy, _wire) = busy(shadow).await;
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
    let labels = [("site", SITE), ("policy", "in-flight")];
    assert_eq!(proxy.metrics().await.sum("tidegate_would_block_total", &labels), 1.0);
    let trusted = |builder: ProxyBuilder| builder.set("server.trusted_proxies", "[\"127.0.0.0/8\"]");
    let (_origin, _gate, proxy, _wire) = busy(trusted).await;
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
    assert_eq!(proxy.metrics().await.sum("tidegate_would_block_total", &labels), 0.0);
}

#[tokio::test]
async fn beyond_the_total_the_newest_connection_is_refused() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.max_connections", "3")
        .set("server.max_connections_per_client", "0")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(proxy.wire(SITE).await);
    }
    assert!(proxy.try_get(SITE, "/").await.is_err(), "a fourth connection was served");
    for wire in &mut held {
        assert_eq!(wire.get(SITE, "/").await.status, 200, "those inside stay");
    }
    held.pop();
    wait_for("the freed place", || async { proxy.try_get(SITE, "/").await.ok() }).await;
}

#[tokio::test]
async fn an_http2_connection_has_only_its_share_of_streams() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (n, m) = (now.clone(), most.clone());
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let (n, m, held) = (n.clone(), m.clone(), held.clone());
        async move {
            if x.request.target() != "/first" {
                m.fetch_max(n.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                held.pass().await;
            }
            n.fetch_sub(usize::from(x.request.target() != "/first"), Ordering::SeqCst);
            x.answer(Answer::ok("x")).await.ok()?;
            Some(x)
        }
    })
    .await;
    let proxy =
        Proxy::builder().set("server.limits.h2_streams", "2").site(SITE, &origin.backends()).start().await;
    let mut h2 = proxy.h2(SITE).await;
    // A first request makes sure that the client has seen our SETTINGS.
    assert_eq!(h2.get("/first").await.status, 200);
    let mut asks = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let (mut sender, request) = (h2.sender.clone(), h2.request("GET", "/").body(empty()).unwrap());
        asks.spawn(async move { sender.send_request(request).await.unwrap().status() });
    }
    // All ten were sent in one burst: once two are here, a third would be too, were it let through.
    origin.arrived(3).await;
    proxy.status().await;
    gate.open();
    for status in within("all ten", asks.join_all()).await {
        assert_eq!(status, 200);
    }
    assert!(most.load(Ordering::SeqCst) <= 2, "{} streams ran at once", most.load(Ordering::SeqCst));
}

/// An HTTP/2 frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

/// A connection that spoke the preface of HTTP/2 and nothing else.
pub async fn raw_h2(proxy: &Proxy) -> Wire {
    let config = tls::client_config(&proxy.ca_pem(), &["h2"], &[&rustls::version::TLS13]);
    let mut wire = tls::connect(config, proxy.https(), SITE).await.unwrap();
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    wire.send(frame(4, 0, 0, &[])).await;
    wire
}

#[tokio::test]
async fn a_flood_of_http2_resets_ends_the_connection() {
    let (_origin, proxy) = limited("server.limits.h2_resets", "10").await;
    let mut wire = raw_h2(&proxy).await;
    // :method GET, :scheme https, :path /, :authority shop.test
    let mut head = vec![0x82, 0x87, 0x84, 0x41, SITE.len() as u8];
    head.extend(SITE.as_bytes());
    let mut flood = Vec::new();
    for i in 0..5_000u32 {
        flood.extend(frame(1, 0x5, 1 + 2 * i, &head));
        flood.extend(frame(3, 0, 1 + 2 * i, &8u32.to_be_bytes()));
    }
    let _ = within("the flood", wire.io.write_all(&flood)).await;
    wire.closed().await;
    assert_eq!(proxy.get(SITE, "/").await.status, 200, "others are served");
}

#[tokio::test]
async fn broken_http2_ends_the_connection_and_nothing_else() {
    let (origin, proxy) = limited("server.workers", "1").await;
    let broken: &[&[u8]] = &[
        &frame(1, 0x5, 2, &[0x82]),                               // an even stream
        &frame(0, 0, 1, b"data"),                                 // data before headers
        &frame(9, 0x4, 1, &[0x82]),                               // continuation of nothing
        &frame(6, 0, 0, b"short"),                                // ping of a wrong length
        &frame(8, 0, 0, &0u32.to_be_bytes()),                     // window update by nothing
        &frame(1, 0x5, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), // HPACK overflow
        &[0xff; 64],                                              // no frame at all
    ];
    for bytes in broken {
        let mut wire = raw_h2(&proxy).await;
        let _ = wire.try_send(bytes).await;
        wire.closed().await;
    }
    assert_eq!(origin.count(), 0);
    assert_eq!(proxy.h2(SITE).await.get("/").await.status, 200);
}

// ---- rates

/// `N per 1h`, so that nothing is handed back while the test runs.
async fn rated(site: &str) -> (Origin, Proxy) {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &site.replace("BACKENDS", &origin.backends())).await;
    (origin, proxy)
}

#[tokio::test]
async fn a_client_gets_its_rate_and_then_429_with_the_time_to_wait() {
    let (origin, proxy) = rated("BACKENDS\nlimit = \"5 per 1h by client-ip\"").await;
    let mut wire = proxy.wire(SITE).await;
    for i in 1..=5 {
        assert_eq!(wire.get(SITE, "/").await.status, 200, "request {i}");
    }
    let reply = wire.get(SITE, "/").await;
    reply.expect(429, "RATE-LIMITED");
    let wait: u64 = reply.field("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1..=3600).contains(&wait), "{wait}");
    assert!(reply.field("ratelimit").is_some(), "{}", reply.raw_head());
    // Another connection, another protocol, the same client.
    proxy.h2(SITE).await.get("/").await.expect(429, "RATE-LIMITED");
    assert_eq!(origin.count(), 5);
    assert!(proxy.record_with("RATE-LIMITED").await["status"] == 429);
}

#[tokio::test]
async fn a_served_answer_says_what_is_left() {
    let (_origin, proxy) = rated("BACKENDS\nlimit = \"5 per 1h by client-ip\"").await;
    let mut wire = proxy.wire(SITE).await;
    let first = wire.get(SITE, "/").await.field("ratelimit").expect("RateLimit").to_string();
    let second = wire.get(SITE, "/").await.field("ratelimit").expect("RateLimit").to_string();
    // draft-ietf-httpapi-ratelimit-headers: `"policy";r=remaining;t=seconds`
    let remaining = |text: &str| -> u32 {
        let r = text
            .split(';')
            .find_map(|p| p.trim().strip_prefix("r="))
            .unwrap_or_else(|| panic!("no r= in {text}"));
        r.parse().unwrap()
    };
    assert_eq!((remaining(&first), remaining(&second)), (4, 3), "{first} / {second}");
}

#[tokio::test]
async fn clients_are_counted_apart_and_a_v6_64_is_one_client() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.trusted_proxies", "[\"127.0.0.1/32\"]")
        .site(SITE, &format!("{}\nlimit = \"2 per 1h by client-ip\"", origin.backends()))
        .start()
        .await;
    let mut wire = proxy.wire(SITE).await;
    let mut statuses = Vec::new();
    for client in [
        "192.0.2.1",
        "192.0.2.1",
        "192.0.2.1",
        "192.0.2.2",
        "2001:db8::1",
        "2001:db8::2",
        "2001:db8::3",
        "2001:db8:0:1::1",
    ] {
        statuses.push(wire.ask("GET", "/", SITE, &format!("X-Forwarded-For: {client}\r\n")).await.status);
    }
    assert_eq!(statuses, [200, 200, 429, 200, 200, 200, 429, 200]);
}

#[tokio::test]
async fn a_route_has_a_limit_of_its_own_beside_the_sites() {
    let (_origin, proxy) = rated(
        "BACKENDS\nlimit = \"5 per 1h by client-ip\"\n\
         [[site.\"shop.test\".route]]\npath = \"/login\"\nBACKENDS\nlimit = \"2 per 1h by client-ip\"",
    )
    .await;
    let mut wire = proxy.wire(SITE).await;
    let mut statuses = Vec::new();
    for path in ["/login", "/login", "/login", "/", "/", "/", "/"] {
        statuses.push(wire.get(SITE, path).await.status);
    }
    assert_eq!(&statuses[..5], [200, 200, 429, 200, 200], "the site's limit counts what the route let pass");
    assert_eq!(statuses.last(), Some(&429));
}

#[tokio::test]
async fn a_limit_in_shadow_refuses_nobody_and_says_what_it_would_have_refused() {
    let (origin, proxy) = rated(
        "BACKENDS\nlimit = [{ rate = \"1 per 1h\", mode = \"shadow\" }, { rate = \"3 per 1h\", by = \"site\" }]",
    )
    .await;
    let mut wire = proxy.wire(SITE).await;
    let replies = [wire.get(SITE, "/").await, wire.get(SITE, "/").await, wire.get(SITE, "/").await];
    assert!(replies.iter().all(|reply| reply.status == 200));
    let told = replies[1].field("ratelimit").expect("RateLimit");
    assert!(told.contains("r=1"), "a client hears of the limit that is enforced: {told}");
    wire.get(SITE, "/").await.expect(429, "RATE-LIMITED");
    assert_eq!(origin.count(), 3);

    let records = proxy.records(4).await;
    assert!(records[0].get("would_block").is_none(), "{}", records[0]);
    assert_eq!(records[1]["would_block"], serde_json::json!(["rate-limit"]));
    let would = proxy.metrics().await.sum("tidegate_would_block_total", &[("site", SITE)]);
    assert_eq!(would, 3.0, "it sees those that another limit refuses, too");

    // A reload that enforces it goes on with the buckets it has.
    proxy.write_site(SITE, &format!("{}\nlimit = {{ rate = \"1 per 1h\" }}", origin.backends()));
    proxy.reload().await;
    proxy.get(SITE, "/").await.expect(429, "RATE-LIMITED");
}

#[tokio::test]
async fn one_sites_limit_is_not_anothers() {
    let origin = Origin::saying("ok").await;
    let limited = format!("{}\nlimit = \"1 per 1h by client-ip\"", origin.backends());
    let proxy = Proxy::builder().site("a.test", &limited).site("b.test", &limited).start().await;
    for site in ["a.test", "b.test"] {
        assert_eq!(proxy.get(site, "/").await.status, 200);
        assert_eq!(proxy.get(site, "/").await.status, 429);
    }
}

#[tokio::test]
async fn a_reload_does_not_hand_out_a_fresh_allowance() {
    let (origin, proxy) = rated("BACKENDS\nlimit = \"2 per 1h by client-ip\"").await;
    for _ in 0..2 {
        assert_eq!(proxy.get(SITE, "/").await.status, 200);
    }
    let before = proxy.status().await;
    proxy.write_site(
        SITE,
        &format!("{}\nlimit = \"2 per 1h by client-ip\"\nmax_body = \"1MiB\"", origin.backends()),
    );
    proxy.reload().await;
    assert!(proxy.status().await["generation"] != before["generation"], "the change was not taken");
    assert_eq!(proxy.get(SITE, "/").await.status, 429);
}

// ---- PROXY protocol

fn proxied(site: &Origin, trusted: &str) -> ProxyBuilder {
    Proxy::builder()
        .set("server.trusted_proxies", trusted)
        .set("server.proxy_protocol", "true")
        .site(SITE, &format!("{}\nplain_http = true", site.backends()))
}

fn v2(source: [u8; 4], port: u16) -> Vec<u8> {
    let mut out = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    out.extend(source);
    out.extend([127, 0, 0, 1]);
    out.extend(port.to_be_bytes());
    out.extend(443u16.to_be_bytes());
    out
}

#[tokio::test]
async fn a_trusted_proxy_that_sends_no_header_is_refused_and_the_log_says_why() {
    let origin = Origin::saying("ok").await;
    let proxy = proxied(&origin, "[\"127.0.0.0/8\"]").start().await;
    let mut plain = proxy.plain().await;
    plain.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    plain.closed().await;
    wait_until("the log to say why", || {
        let log = proxy.stderr();
        log.contains("without a whole PROXY protocol header") && log.contains("proxy=\"127.0.0.1\"")
    })
    .await;
    let refused =
        proxy.metrics().await.sum("tidegate_connections_refused_total", &[("reason", "proxy-header")]);
    assert_eq!(refused, 1.0);
}

#[tokio::test]
async fn proxy_protocol_from_a_trusted_peer_gives_the_clients_address() {
    let origin = Origin::saying("ok").await;
    let proxy = proxied(&origin, "[\"127.0.0.0/8\"]").start().await;
    for header in [b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 443\r\n".to_vec(), v2([203, 0, 113, 7], 4711)] {
        let mut plain = proxy.plain().await;
        plain.send(&header).await;
        assert_eq!(plain.get(SITE, "/").await.status, 200);

        let mut tcp = tokio::net::TcpStream::connect(proxy.https()).await.unwrap();
        tcp.write_all(&header).await.unwrap();
        let config = tls::client_config(&proxy.ca_pem(), &["http/1.1"], &[&rustls::version::TLS13]);
        let mut wire = tls::connect_over(config, tcp, SITE).await.unwrap();
        assert_eq!(wire.get(SITE, "/").await.status, 200);
    }
    for seen in origin.requests() {
        assert_eq!(seen.field("x-forwarded-for"), Some("203.0.113.7"), "{}", seen.raw());
    }
}

#[tokio::test]
async fn proxy_protocol_v1_unknown_and_v2_local_keep_the_peers_address() {
    let origin = Origin::saying("ok").await;
    let proxy = proxied(&origin, "[\"127.0.0.0/8\"]").start().await;
    for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00"] {
        let mut wire = proxy.plain().await;
        wire.send(header).await;
        assert_eq!(wire.get(SITE, "/").await.status, 200);
    }
    assert!(origin.requests().iter().all(|r| r.field("x-forwarded-for") == Some("127.0.0.1")));
}

#[tokio::test]
async fn a_broken_or_missing_proxy_header_from_a_trusted_peer_closes_the_connection() {
    let origin = Origin::saying("ok").await;
    let proxy =
        proxied(&origin, "[\"127.0.0.0/8\"]").set("server.timeouts.handshake", "\"500ms\"").start().await;
    let request = format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n");
    for header in [
        "",
        "PROXY TCP4 300.0.0.1 127.0.0.1 1 2\r\n",
        "PROXY TCP4 1.2.3.4\r\n",
        "PROXY TCP4 1.2.3.4 127.0.0.1 4711 443 and more than is allowed in a line of the first version of this protocol, by far\r\n",
        "PROXY TCP5 1.2.3.4 127.0.0.1 1 2\r\n",
        "\r\n\r\n\0\r\nQUIT\n\x51\x11\x00\x0cxxxxxxxxxxxx",
    ] {
        let mut wire = proxy.plain().await;
        let _ = wire.try_send(format!("{header}{request}")).await;
        let rest = wire.closed().await;
        assert!(!String::from_utf8_lossy(&rest).contains(" 200 "), "{header:?} was let in");
    }
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn a_proxy_header_from_an_untrusted_peer_is_not_believed() {
    let origin = Origin::saying("ok").await;
    let proxy = proxied(&origin, "[\"192.0.2.0/24\"]").start().await;
    let mut wire = proxy.plain().await;
    let _ = wire
        .try_send(format!("PROXY TCP4 203.0.113.7 127.0.0.1 1 2\r\nGET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n"))
        .await;
    wire.closed().await;
    assert!(origin.requests().iter().all(|r| !r.raw().contains("203.0.113.7")));
    assert_eq!(proxy.plain().await.get(SITE, "/").await.status, 200, "an untrusted peer speaks HTTP at once");
}
