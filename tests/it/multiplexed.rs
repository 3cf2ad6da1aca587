//! Backends that speak HTTP/2: connections that many requests share, and what one of them must never do to another.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;

use crate::harness::client::{empty, full, read};
use crate::harness::h2_origin::{self, H2Origin, Settings, Stream};
use crate::harness::tls::Ca;
use crate::harness::{Answer, Gate, Origin, Proxy, Wire, wait_for, wait_until, within};

const SITE: &str = "shop.test";

fn site(address: std::net::SocketAddr) -> String {
    format!("backends = [\"{address}\"]\nupstream = {{ http = \"h2\" }}")
}

async fn shop(settings: Settings) -> (H2Origin, Proxy) {
    let origin = H2Origin::echoing(settings).await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    (origin, proxy)
}

// ---- what is spoken

#[tokio::test]
async fn a_plain_backend_gets_clean_http2_with_prior_knowledge() {
    let (origin, proxy) = shop(Settings::default()).await;
    let mut wire = proxy.wire(SITE).await;
    let reply = wire.ask("GET", "/a?b", SITE, "Connection: x-hop, te\r\nX-Hop: 1\r\nTE: trailers\r\n").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "GET /a 0"), "{}", reply.raw_head());
    let mut client = proxy.h2(SITE).await;
    let request = client.request("POST", "/up").header("cookie", "a=1").header("cookie", "b=2");
    assert_eq!(client.send(request.body(full("hello")).unwrap()).await.text(), "POST /up 5");
    let heads = origin.heads();
    let (first, second) = (&heads[0].0, &heads[1].0);
    assert_eq!(first.uri.to_string(), format!("http://{SITE}/a?b"));
    assert_eq!(first.headers["te"], "trailers", "RFC 9113 section 8.2.2");
    assert_eq!(second.headers["content-length"], "5");
    assert_eq!(second.headers["cookie"], "a=1; b=2");
    for (head, _) in &heads {
        for name in ["host", "connection", "x-hop", "transfer-encoding", "upgrade"] {
            assert!(!head.headers.contains_key(name), "{name}: {:?}", head.headers);
        }
        assert_eq!(head.headers["x-forwarded-host"], SITE);
    }
    assert_eq!(origin.accepted(), 1, "one connection carries both");
    let opened = proxy.metrics().await.sum("tidegate_upstream_connections_opened_total", &[]);
    assert_eq!(opened, 1.0);
}

#[tokio::test]
async fn trailers_travel_both_ways() {
    let origin = H2Origin::scripted(Settings::default(), |mut stream| async move {
        let (body, trailers) = stream.read().await.unwrap();
        assert_eq!((body.as_slice(), trailers["x-check"].as_bytes()), (&b"hello"[..], &b"7"[..]));
        let mut answer = stream.head(200, &[("trailer", "x-sum")], false);
        answer.send_data("body".into(), false).unwrap();
        answer
            .send_trailers(HeaderMap::from_iter([("x-sum".parse().unwrap(), "8".parse().unwrap())]))
            .unwrap();
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let mut client = proxy.h2(SITE).await;
    let trailers = HeaderMap::from_iter([("x-check".parse().unwrap(), "7".parse().unwrap())]);
    let body = full("hello").with_trailers(std::future::ready(Some(Ok(trailers)))).boxed();
    let reply = client.send(client.request("POST", "/").body(body).unwrap()).await;
    assert_eq!((reply.text().as_str(), &reply.trailers[..]), ("body", &[("x-sum".into(), "8".into())][..]));
    // The same for a client of HTTP/1.1.
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!(
        "POST / HTTP/1.1\r\nHost: {SITE}\r\nTE: trailers\r\nConnection: te\r\nTrailer: x-check\r\nTransfer-Encoding: \
         chunked\r\n\r\n5\r\nhello\r\n0\r\nx-check: 7\r\n\r\n"
    ))
    .await;
    let reply = wire.reply_to("POST").await;
    assert_eq!((reply.text().as_str(), &reply.trailers[..]), ("body", &[("x-sum".into(), "8".into())][..]));
}

async fn over_tls(alpn: &[&str]) -> (H2Origin, Proxy) {
    let ca = Ca::new("inner");
    let mut config = (*ca.leaf(&["api.internal"]).server_config()).clone();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let settings = Settings { tls: Some(Arc::new(config)), ..Settings::default() };
    let origin = H2Origin::echoing(settings).await;
    let builder = Proxy::builder();
    let file = builder.folder().join("inner.pem");
    std::fs::write(&file, ca.pem).unwrap();
    let site = format!(
        "backends = [\"https://{}\"]\nupstream = {{ http = \"h2\", ca_file = {file:?}, server_name = \"api.internal\" }}",
        origin.address()
    );
    let proxy = builder.site(SITE, &site).start().await;
    (origin, proxy)
}

#[tokio::test]
async fn an_encrypted_backend_is_asked_for_http2_by_alpn() {
    let (origin, proxy) = over_tls(&["h2", "http/1.1"]).await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "GET / 0");
    assert_eq!(origin.heads()[0].0.uri.scheme_str(), Some("https"));
}

#[tokio::test]
async fn an_encrypted_backend_that_agrees_to_no_http2_is_named_as_such() {
    for alpn in [&["http/1.1"][..], &[]] {
        let (origin, proxy) = over_tls(alpn).await;
        proxy.get(SITE, "/").await.expect(502, "UPSTREAM-PROTOCOL");
        assert_eq!(origin.count(), 0);
        // The log is read by a thread of the test's own.
        wait_until("it to be told", || proxy.stderr().contains("does not speak HTTP/2")).await;
        let failed = [("reason", "not-h2")];
        let failures = proxy.metrics().await.sum("tidegate_upstream_connection_failures_total", &failed);
        assert!(failures >= 1.0);
    }
}

#[tokio::test]
async fn a_plain_backend_that_speaks_no_http2_is_named_as_such() {
    let http1 = Origin::scripted(|mut x| async move {
        x.write("HTTP/1.1 505 HTTP Version Not Supported\r\nContent-Length: 0\r\n\r\n").await.ok()?;
        None
    })
    .await;
    let silent = Origin::scripted(|mut x| async move {
        x.until_closed().await;
        None
    })
    .await;
    for origin in [http1, silent] {
        let text = format!("{}\nconnect_timeout = \"1s\"", site(origin.address()));
        let proxy = Proxy::with_site(SITE, &text).await;
        proxy.get(SITE, "/").await.expect(502, "UPSTREAM-PROTOCOL");
        assert!(
            (1..=3).contains(&origin.count()),
            "it is tried again as often as one that refuses connections"
        );
        for seen in origin.requests() {
            assert_eq!(seen.head.line, "PRI * HTTP/2.0", "nothing but the preface reached it");
        }
    }
}

// ---- connections

/// A backend that holds every answer until the gate opens.
async fn held(settings: Settings, gate: &Gate) -> H2Origin {
    let gate = gate.clone();
    H2Origin::scripted(settings, move |mut stream| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            stream.answer(200, "done").await;
        }
    })
    .await
}

/// Asks many times at once.
async fn ask(proxy: &Proxy, host: &'static str, count: usize) -> tokio::task::JoinSet<u16> {
    let mut asks = tokio::task::JoinSet::new();
    let client = proxy.h2(host).await;
    for _ in 0..count {
        let mut sender = client.sender.clone();
        let request = client.request("GET", "/").body(empty()).unwrap();
        asks.spawn(async move {
            let response = sender.send_request(request).await.unwrap();
            let status = response.status().as_u16();
            let _ = read(response).await;
            status
        });
    }
    asks
}

#[tokio::test]
async fn requests_share_a_connection_up_to_the_backends_limit_and_no_further() {
    let gate = Gate::default();
    let origin = held(Settings { max_streams: Some(4), ..Settings::default() }, &gate).await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let asks = ask(&proxy, SITE, 10).await;
    origin.arrived(10).await;
    for connection in 0..3 {
        let carried = origin.heads().iter().filter(|(_, on)| *on == connection).count();
        assert!(carried <= 4, "connection {connection} carried {carried}");
    }
    assert_eq!(origin.accepted(), 3);
    gate.open();
    assert!(within("all", asks.join_all()).await.iter().all(|status| *status == 200));
}

#[tokio::test]
async fn with_every_stream_taken_a_request_waits_for_one_and_not_for_ever() {
    let gate = Gate::default();
    let origin = held(Settings { max_streams: Some(1), ..Settings::default() }, &gate).await;
    let proxy = Proxy::builder()
        .set("server.limits.upstream_h2_connections", "1")
        .site(SITE, &format!("{}\nconnect_timeout = \"500ms\"", origin.site()))
        .start()
        .await;
    let first = ask(&proxy, SITE, 1).await;
    origin.arrived(1).await;
    let reply = proxy.get(SITE, "/").await;
    reply.expect(503, "UPSTREAM-BUSY");
    assert!(reply.field("retry-after").is_some());
    assert_eq!(proxy.status().await["endpoints"][0]["state"], "up", "busy is not down");
    gate.open();
    assert_eq!(within("the first", first.join_all()).await, [200]);
    assert_eq!(within("one after the other", ask(&proxy, SITE, 5).await.join_all()).await, [200; 5]);
    assert_eq!(origin.accepted(), 1);
}

#[tokio::test]
async fn regression_an_endpoint_is_back_with_its_trial_although_a_connection_of_before_lives() {
    let gate = Gate::default();
    let settings = Settings { max_streams: Some(1), ..Settings::default() };
    let refuses = settings.refuses.clone();
    let (full, other) = (
        held(settings, &gate).await,
        H2Origin::scripted(Settings::default(), |mut stream| async move {
            stream.answer(200, "other").await;
        })
        .await,
    );
    let backends = format!("backends = [\"{}\", \"{}\"]", full.address(), other.address());
    let site = format!("{backends}\nupstream = {{ http = \"h2\" }}\nbalance = \"round_robin\"");
    let proxy = Proxy::builder().set("server.workers", "1").site(SITE, &site).start().await;
    // One of them takes the only stream.
    let asked = ask(&proxy, SITE, 2).await;
    full.arrived(1).await;
    refuses.store(true, Ordering::SeqCst);
    let state = async || {
        assert_eq!(proxy.get(SITE, "/").await.status, 200);
        let status = proxy.status().await;
        let all = status["endpoints"].as_array().unwrap();
        let one = all.iter().find(|one| one["address"] == full.address().to_string()).unwrap();
        one["state"].as_str().unwrap().to_owned()
    };
    wait_for("the endpoint to be down", || async { (state().await != "up").then_some(()) }).await;
    refuses.store(false, Ordering::SeqCst);
    gate.open();
    assert_eq!(within("both", asked.join_all()).await, [200, 200]);
    wait_for("the endpoint to be up", || async { (state().await == "up").then_some(()) }).await;
    assert_eq!(full.accepted(), 1, "its trial went on the connection that was there");
}

#[tokio::test]
async fn two_sites_never_share_a_connection_to_the_same_backend() {
    let origin = H2Origin::echoing(Settings::default()).await;
    let proxy = Proxy::builder().site(SITE, &origin.site()).site("other.test", &origin.site()).start().await;
    for host in [SITE, "other.test", SITE, "other.test"] {
        assert_eq!(proxy.get(host, "/").await.status, 200);
    }
    for (head, connection) in origin.heads() {
        assert_eq!(head.uri.host(), Some(if connection == 0 { SITE } else { "other.test" }));
    }
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn an_unused_connection_is_closed_and_one_in_use_is_not() {
    let gate = Gate::default();
    let origin = held(Settings::default(), &gate).await;
    let proxy = Proxy::builder()
        .set("server.timeouts.upstream_idle", "\"300ms\"")
        .site(SITE, &origin.site())
        .start()
        .await;
    let asks = ask(&proxy, SITE, 1).await;
    origin.arrived(1).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(origin.open(), 1);
    gate.open();
    within("the answer", asks.join_all()).await;
    wait_until("the idle connection to close", || origin.open() == 0).await;
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}

#[tokio::test]
async fn a_connection_on_which_the_backend_fell_silent_is_found_by_a_ping() {
    // It greets, takes the request, and never says anything again, not even to a ping.
    let origin = Origin::scripted(|mut x| async move {
        x.write(frame(4, 0, 0, &[])).await.ok()?;
        x.until_closed().await;
        None
    })
    .await;
    let proxy = Proxy::builder()
        .set("server.timeouts.upstream_ping", "\"1s\"")
        .site(SITE, &site(origin.address()))
        .start()
        .await;
    let mut wire = proxy.wire(SITE).await;
    wire.post(SITE, "/", "x").await.expect(502, "UPSTREAM-CLOSED");
    wait_until("the dead connection to close", || origin.open() == 0).await;
}

#[tokio::test]
async fn health_checks_speak_http2_too() {
    let origin = H2Origin::scripted(Settings::default(), |mut stream| async move {
        let status = if stream.path() == "/up" { 503 } else { 200 };
        stream.answer(status, "").await;
    })
    .await;
    let site = format!("{}\nhealth = {{ path = \"/up\", interval = \"200ms\", fall = 1 }}", origin.site());
    let proxy = Proxy::with_site(SITE, &site).await;
    wait_for("the endpoint to be taken out", || async {
        let state = proxy.status().await["endpoints"][0]["state"].clone();
        (state != "up").then_some(())
    })
    .await;
    assert_eq!(origin.heads()[0].0.uri.authority().unwrap().as_str(), SITE);
}

// ---- what comes back unprocessed

#[tokio::test]
async fn a_refused_stream_is_sent_to_another_endpoint_with_its_body_whatever_its_method() {
    let refusing = H2Origin::scripted(Settings::default(), |mut stream| async move {
        // It has looked at the body before it refuses.
        let _ = within("the body", stream.body.data()).await;
        stream.respond.send_reset(Reason::REFUSED_STREAM);
    })
    .await;
    let good = H2Origin::echoing(Settings::default()).await;
    let site = format!(
        "backends = [\"{}\", \"{}\"]\nbalance = \"round_robin\"\nupstream = {{ http = \"h2\" }}",
        refusing.address(),
        good.address()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..4 {
        assert_eq!(wire.post(SITE, "/pay", "hello").await.text(), "POST /pay 5");
    }
    assert_eq!(good.count(), 4);
    assert!(refusing.count() >= 2);
    let refused = proxy.metrics().await.sum("tidegate_upstream_streams_refused_total", &[]);
    assert_eq!(refused, refusing.count() as f64);
}

#[tokio::test]
async fn a_backend_that_refuses_every_stream_is_not_asked_for_ever() {
    let origin = H2Origin::scripted(Settings::default(), |mut stream| async move {
        stream.respond.send_reset(Reason::REFUSED_STREAM);
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.post(SITE, "/", "hello").await.expect(502, "UPSTREAM-RESET");
    assert!(origin.count() <= 3, "{}", origin.count());
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend(payload);
    out
}

const HEADERS: u8 = 1;

/// Reads frames until one of this kind; its stream.
async fn until(x: &mut crate::harness::Exchange, kind: u8) -> std::io::Result<u32> {
    loop {
        let head = x.wire.exactly(9).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        x.wire.exactly(length).await?;
        if head[3] == kind {
            return Ok(u32::from_be_bytes([head[5], head[6], head[7], head[8]]));
        }
    }
}

#[tokio::test]
async fn a_request_that_a_goaway_left_out_is_sent_again_on_another_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    let origin = Origin::scripted(move |mut x| {
        let first = counter.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            x.wire.exactly(6).await.ok()?;
            x.write(frame(4, 0, 0, &[])).await.ok()?;
            let stream = until(&mut x, HEADERS).await.ok()?;
            if first {
                // Last stream 0, NO_ERROR: nothing was processed.
                x.write(frame(7, 0, 0, &[0; 8])).await.ok()?;
            } else {
                // :status 200
                x.write(frame(HEADERS, 0x5, stream, &[0x88])).await.ok()?;
            }
            x.until_closed().await;
            None
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &site(origin.address())).await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(wire.post(SITE, "/pay", "hello").await.status, 200);
    assert_eq!(connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_backend_that_says_goodbye_finishes_what_it_has_and_gets_nothing_new() {
    let (gate, goodbye) = (Gate::default(), Gate::default());
    let origin = held(Settings { goodbye: goodbye.clone(), ..Settings::default() }, &gate).await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let old = ask(&proxy, SITE, 3).await;
    origin.arrived(3).await;
    goodbye.open();
    let mut done = 0;
    // Each request goes to a connection that takes it; none is lost on the one that is leaving.
    gate.open();
    for status in within("the old ones", old.join_all()).await {
        assert_eq!(status, 200);
        done += 1;
    }
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..10 {
        assert_eq!(wire.post(SITE, "/", "x").await.status, 200);
        done += 1;
    }
    assert_eq!(origin.accepted(), 2);
    assert_eq!((done, proxy.records(13).await.iter().filter(|r| r["status"] == 200).count()), (13, 13));
}

// ---- one client must not hold up another

#[tokio::test]
async fn clients_that_do_not_read_hold_up_nobody_else_on_the_same_connection() {
    let origin = H2Origin::scripted(Settings::default(), |mut stream| async move {
        let size = if stream.path() == "/big" { 4 << 20 } else { 64 << 10 };
        let mut answer = stream.head(200, &[], false);
        let _ = h2_origin::send(&mut answer, vec![b'x'; size].into(), true).await;
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    // A hundred unread answers, each larger than its stream's window: with a window of the usual size for the whole
    // connection, two would be enough to shut it.
    let mut slow = proxy.h2(SITE).await;
    let mut unread = Vec::new();
    for _ in 0..100 {
        let request = slow.request("GET", "/big").body(empty()).unwrap();
        unread.push(slow.start(request).await.expect("a head"));
    }
    for _ in 0..5 {
        let reply = proxy.get(SITE, "/small").await;
        assert_eq!((reply.status, reply.body.len()), (200, 64 << 10));
    }
    assert_eq!(origin.accepted(), 1, "all of it on one connection");
    // And what was held up is whole when it is read at last.
    unread.drain(1..);
    let last = within("a held answer", read(unread.pop().unwrap())).await.unwrap();
    assert_eq!(last.body.len(), 4 << 20);
}

// ---- resets, in both directions

/// Tells what the client's reset arrived as.
fn watching() -> (tokio::sync::mpsc::UnboundedSender<Reason>, tokio::sync::mpsc::UnboundedReceiver<Reason>) {
    tokio::sync::mpsc::unbounded_channel()
}

#[tokio::test]
async fn a_client_that_cancels_is_heard_by_the_backend_at_every_stage() {
    let (told, mut heard) = watching();
    let origin = H2Origin::scripted(Settings::default(), move |mut stream| {
        let told = told.clone();
        async move {
            let code = match stream.path().to_owned().as_str() {
                // Before the head of an answer.
                "/before" => stream.reset().await,
                // In the middle of an answer; with the client's body complete, or stuck before a window that stays
                // shut.
                "/during" | "/stuck" => {
                    let mut answer = stream.head(200, &[], false);
                    answer.send_data("beginning".into(), false).unwrap();
                    let reset = std::future::poll_fn(|cx| answer.poll_reset(cx));
                    within("a reset", reset).await.expect("a code")
                }
                _ => return stream.answer(200, "fine").await,
            };
            let _ = told.send(code);
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    for (path, upload) in [("/before", false), ("/during", false), ("/stuck", true)] {
        let mut client = proxy.bare_h2(SITE).await;
        let before = origin.count();
        let request = Request::post(format!("https://{SITE}{path}")).body(()).unwrap();
        let (response, mut body) = client.send_request(request, !upload).unwrap();
        if upload {
            let sending = h2_origin::send(&mut body, vec![0; 1 << 20].into(), true);
            let _ = tokio::time::timeout(Duration::from_secs(1), sending).await;
        }
        origin.arrived(before + 1).await;
        if path != "/before" {
            let response = within("a head", response).await.unwrap();
            body.send_reset(Reason::CANCEL);
            drop(response);
        } else {
            drop((response, body));
        }
        assert_eq!(within(path, heard.recv()).await, Some(Reason::CANCEL), "{path}");
    }
    assert_eq!(
        proxy.get(SITE, "/fine").await.status,
        200,
        "the connection is well: it opens further streams"
    );
    assert_eq!(origin.accepted(), 1);
}

#[tokio::test]
async fn a_backend_that_resets_is_heard_by_the_client_with_its_code() {
    let origin = H2Origin::scripted(Settings::default(), |mut stream| async move {
        let mut answer = stream.head(200, &[], false);
        answer.send_data("beginning".into(), false).unwrap();
        // Until the client has the beginning.
        let _ = stream.read().await;
        let code: u32 = stream.path().trim_start_matches('/').parse().unwrap();
        answer.send_reset(code.into());
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let cases = [
        (Reason::CANCEL, Reason::CANCEL),
        (Reason::ENHANCE_YOUR_CALM, Reason::ENHANCE_YOUR_CALM),
        (Reason::INTERNAL_ERROR, Reason::INTERNAL_ERROR),
        (Reason::REFUSED_STREAM, Reason::INTERNAL_ERROR),
        (Reason::PROTOCOL_ERROR, Reason::INTERNAL_ERROR),
        // It would make the beginning look whole.
        (Reason::NO_ERROR, Reason::CANCEL),
    ];
    for (sent, received) in cases {
        let mut client = proxy.bare_h2(SITE).await;
        let request = Request::post(format!("https://{SITE}/{}", u32::from(sent))).body(()).unwrap();
        let (response, mut body) = client.send_request(request, false).unwrap();
        let mut answer = within("a head", response).await.unwrap().into_body();
        assert_eq!(within("data", answer.data()).await.unwrap().unwrap(), "beginning");
        body.send_data(Bytes::new(), true).unwrap();
        let error = within("the reset", answer.data()).await.expect("not a clean end").unwrap_err();
        assert_eq!(error.reason(), Some(received), "for {sent:?}");
    }
    proxy.record_with("UPSTREAM-TRUNCATED").await;
}

#[tokio::test]
async fn a_reset_before_an_answer_is_a_failure_with_a_name() {
    let origin = H2Origin::scripted(Settings::default(), |mut stream| async move {
        stream.respond.send_reset(Reason::INTERNAL_ERROR);
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    proxy.get(SITE, "/").await.expect(502, "UPSTREAM-RESET");
    assert_eq!(origin.count(), 1, "it had its chance");
}

/// An answer with these fields whose head is there, and which is reset without an error once the gate opens.
async fn begun(fields: &'static [(&str, &str)], gate: &Gate) -> (H2Origin, Proxy, Wire) {
    let gate = gate.clone();
    let origin = H2Origin::scripted(Settings::default(), move |mut stream| {
        let gate = gate.clone();
        async move {
            let mut answer = stream.head(200, fields, false);
            answer.send_data("short".into(), false).unwrap();
            gate.pass().await;
            answer.send_reset(Reason::NO_ERROR);
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    assert_eq!(within("the head", wire.reply_head()).await.unwrap().status, 200);
    (origin, proxy, wire)
}

#[tokio::test]
async fn regression_an_answer_reset_without_an_error_before_its_end_is_not_taken_for_whole() {
    let gate = Gate::default();
    let (_origin, proxy, mut wire) = begun(&[], &gate).await;
    assert_eq!(within("the beginning", wire.chunk()).await.unwrap().as_deref(), Some(&b"short"[..]));
    gate.open();
    assert!(within("the end", wire.chunk()).await.is_err(), "no last chunk: the client sees that it was cut");
    proxy.record_with("UPSTREAM-TRUNCATED").await;
}

/// Begins an upload, and gives it up with this code as soon as the backend knows of it.
async fn give_up(proxy: &Proxy, length: Option<&str>, arrived: impl AsyncFnOnce(), code: Reason) {
    let mut client = proxy.bare_h2(SITE).await;
    let mut request = Request::post(format!("https://{SITE}/")).body(()).unwrap();
    if let Some(length) = length {
        request.headers_mut().insert("content-length", length.parse().unwrap());
    }
    let (response, mut body) = client.send_request(request, false).unwrap();
    body.send_data("beginning".into(), false).unwrap();
    arrived().await;
    body.send_reset(code);
    assert!(within("no answer", response).await.is_err());
}

#[tokio::test]
async fn regression_an_upload_given_up_without_an_error_is_neither_whole_nor_the_backends_fault() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::scripted(move |mut exchange| {
        let told = told.clone();
        async move {
            if exchange.request.method() == "GET" {
                let _ = exchange.answer(Answer::ok("well")).await;
                return Some(exchange);
            }
            let _ = told.send(exchange.read_body().await.is_ok());
            None
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    // More than it takes to eject an endpoint for what it did.
    for turn in 1..=12 {
        let length = [None, Some("100")][turn % 2];
        give_up(&proxy, length, async || origin.arrived(turn).await, Reason::NO_ERROR).await;
        assert_eq!(within("the end", heard.recv()).await, Some(false), "{length:?}: not taken for whole");
    }
    assert_eq!(proxy.get(SITE, "/").await.text(), "well", "the endpoint is in good standing");
    let records = proxy.records(13).await;
    let given_up = records.iter().filter(|record| record["outcome"] == "CLIENT-GONE").count();
    assert_eq!(given_up, 12, "{records:?}");
}

#[tokio::test]
async fn regression_an_upload_given_up_without_an_error_is_cut_at_an_http2_backend_too() {
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let origin = H2Origin::scripted(Settings::default(), move |mut stream| {
        let told = told.clone();
        async move {
            let _ =
                told.send(stream.read().await.map(|(body, _)| body.len()).map_err(|error| error.reason()));
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    for turn in 1..=2 {
        give_up(&proxy, None, async || origin.arrived(turn).await, Reason::NO_ERROR).await;
        assert_eq!(within("the reset", heard.recv()).await, Some(Err(Some(Reason::CANCEL))));
    }
}

#[tokio::test]
async fn an_answer_reset_without_an_error_before_its_length_is_not_taken_for_whole() {
    let gate = Gate::default();
    let (_origin, proxy, mut wire) = begun(&[("content-length", "100")], &gate).await;
    gate.open();
    assert!(within("the body", wire.exactly(100)).await.is_err(), "the client sees that it was cut");
    proxy.record_with("UPSTREAM-TRUNCATED").await;
}

// ---- bodies and their absence

#[tokio::test]
async fn an_early_answer_reaches_a_client_that_is_still_uploading() {
    let origin = H2Origin::scripted(Settings::default(), |mut stream| async move {
        // RFC 9113 section 8.1: behind the answer comes a reset without an error, because nobody reads the body.
        stream.answer(413, "too much").await;
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("PUT / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 100000000\r\n\r\nbeginning")).await;
    let reply = wire.reply_to("PUT").await;
    assert_eq!((reply.status, reply.text().as_str()), (413, "too much"));
    let mut client = proxy.h2(SITE).await;
    let (sender, body) = tokio::sync::mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    let request = client.request("PUT", "/").body(StreamBody::new(Pieces(body)).boxed()).unwrap();
    sender.send(Ok(Frame::data("beginning".into()))).await.unwrap();
    let reply = client.send(request).await;
    assert_eq!((reply.status, reply.text().as_str()), (413, "too much"));
    assert_eq!(client.get("/next").await.status, 413, "the client's connection goes on");
}

/// What a channel gives as a stream of frames.
struct Pieces(tokio::sync::mpsc::Receiver<Result<Frame<Bytes>, std::io::Error>>);

impl futures_core::Stream for Pieces {
    type Item = Result<Frame<Bytes>, std::io::Error>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

#[tokio::test]
async fn answers_without_a_body_stay_without_one_however_they_are_framed() {
    let origin = H2Origin::scripted(Settings::default(), |mut stream: Stream| async move {
        let (status, fields): (u16, &[(&str, &str)]) = match stream.path() {
            "/204" => (204, &[]),
            "/304" => (304, &[("content-length", "7"), ("etag", "\"a\"")]),
            "/205" => (205, &[]),
            _ => (200, &[("content-length", "7")]),
        };
        // The end comes in a frame of its own, except where the library behind the proxy counts lengths too closely.
        let at_once = status == 304;
        let mut answer = stream.head(status, fields, at_once);
        if at_once {
            return;
        }
        let whole = stream.head.method != "HEAD" && status == 200;
        let body = if whole { Bytes::from("content") } else { Bytes::new() };
        let _ = answer.send_data(body, true);
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.site()).await;
    let mut wire = proxy.wire(SITE).await;
    let mut client = proxy.h2(SITE).await;
    for (method, path, status, length) in [
        ("HEAD", "/", 200, Some("7")),
        ("GET", "/204", 204, None),
        ("GET", "/304", 304, None),
        ("GET", "/", 200, Some("7")),
    ] {
        let reply = wire.ask(method, path, SITE, "").await;
        let body = if (method, status) == ("GET", 200) { "content" } else { "" };
        assert_eq!((reply.status, reply.text().as_str()), (status, body), "{method} {path}");
        assert_eq!(reply.field("content-length"), length, "{method} {path}: {}", reply.raw_head());
        let request = client.request(method, path).body(empty()).unwrap();
        let reply = client.send(request).await;
        assert_eq!((reply.status, reply.text().as_str()), (status, body), "h2 {method} {path}");
    }
    let reply = wire.ask("GET", "/205", SITE, "").await;
    assert_eq!((reply.status, reply.body.len()), (205, 0));
    assert_eq!(wire.get(SITE, "/").await.text(), "content", "in step");
    for record in proxy.records(10).await {
        assert_eq!(record["outcome"], "OK", "{record}");
    }
}

#[tokio::test]
async fn http1_and_http2_backends_serve_routes_of_one_site_side_by_side() {
    let (new, old) =
        (H2Origin::echoing(Settings::default()).await, Origin::answering(|_| Answer::ok("old")).await);
    let text = format!(
        "{}\n[[site.\"{SITE}\".route]]\npath = \"/api/\"\nbackends = [\"{}\"]\nupstream = {{ http = \"h2\" }}",
        old.backends(),
        new.address()
    );
    let proxy = Proxy::with_site(SITE, &text).await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "old");
    assert_eq!(proxy.get(SITE, "/api/x").await.text(), "GET /api/x 0");
}
