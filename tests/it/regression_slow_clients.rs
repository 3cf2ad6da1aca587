//! What a client that takes its time could make Tidegate believe of healthy backends, each by the name of what it did.

use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Answer, Origin, Proxy, Wire, wait_until, within};

const SITE: &str = "shop.test";
/// More than make the default `consecutive`, and the breaker of these stories.
const CLIENTS: usize = 6;
const BREAKER: &str = "breaker = { requests = 5, open = \"60s\" }";

/// No endpoint is out, and the next request is served.
async fn all_is_well(proxy: &Proxy) {
    let status = proxy.status().await;
    let endpoints = status["endpoints"].as_array().unwrap();
    assert!(!endpoints.is_empty() && endpoints.iter().all(|e| e["out"] == Value::Null), "{status:#}");
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}

async fn posting(proxy: &Proxy, length: usize, begin: &str) -> Wire {
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: {length}\r\n\r\n{begin}")).await;
    wire
}

#[tokio::test]
async fn an_upload_that_stood_still_took_the_backend_out_and_opened_the_breaker() {
    let origin = Origin::answering(|_| Answer::ok("ok")).await;
    let site = format!("{}\ntimeout = \"300ms\"\n{BREAKER}", origin.backends());
    let proxy = Proxy::builder().set("server.timeouts.body", "\"900ms\"").site(SITE, &site).start().await;
    let mut waiting = Vec::new();
    for _ in 0..CLIENTS {
        waiting.push(posting(&proxy, 9, "").await);
    }
    for wire in &mut waiting {
        wire.reply_to("POST").await.expect(408, "BODY-TIMEOUT");
    }
    all_is_well(&proxy).await;
}

#[tokio::test]
async fn a_backend_that_hung_up_on_a_slow_upload_was_taken_out() {
    let origin = Origin::scripted(|mut x| async move {
        if x.request.method() == "POST" {
            // Its own time for a request is over.
            x.wire.exactly(1).await.ok()?;
            return None;
        }
        x.answer(Answer::ok("ok")).await.ok()?;
        Some(x)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &format!("{}\n{BREAKER}", origin.backends())).await;
    for _ in 0..CLIENTS {
        posting(&proxy, 9, "a").await.reply_to("POST").await.expect(502, "UPSTREAM-CLOSED");
    }
    all_is_well(&proxy).await;
}

#[tokio::test]
async fn the_time_of_a_slow_upload_counted_as_the_backends() {
    let origins = [Origin::saying("ok").await, Origin::saying("ok").await];
    let backends = format!("backends = [\"{}\", \"{}\"]", origins[0].address(), origins[1].address());
    let proxy = Proxy::builder().set("server.workers", "1").site(SITE, &backends).start().await;
    // Both are known to be quick.
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..20 {
        assert_eq!(wire.get(SITE, "/").await.status, 200);
    }
    let before = [origins[0].count(), origins[1].count()];
    let mut slow = posting(&proxy, 2, "a").await;
    wait_until("the upload to begin", || origins[0].count() + origins[1].count() > 20).await;
    // The client's slowness itself.
    tokio::time::sleep(Duration::from_secs(2)).await;
    slow.send("b").await;
    assert_eq!(slow.reply_to("POST").await.status, 200);
    let at = usize::from(origins[1].count() > before[1]);
    let begun = origins[at].count();
    for _ in 0..60 {
        assert_eq!(wire.get(SITE, "/").await.status, 200);
    }
    assert!(origins[at].count() > begun, "it is asked as before");
}

#[tokio::test]
async fn a_backend_that_hung_up_on_a_client_that_did_not_read_was_taken_out() {
    let origin = Origin::scripted(|mut x| async move {
        if x.request.target() != "/big" {
            x.answer(Answer::ok("ok")).await.ok()?;
            return Some(x);
        }
        x.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1u64 << 30)).await.ok()?;
        let piece = vec![b'x'; 64 * 1024];
        // Until nobody has taken anything for so long.
        while tokio::time::timeout(Duration::from_secs(6), x.write(&piece)).await.is_ok_and(|w| w.is_ok()) {}
        None
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut readers = Vec::new();
    for _ in 0..CLIENTS {
        let mut wire = proxy.wire(SITE).await;
        wire.send(format!("GET /big HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
        readers.push(wire);
    }
    origin.arrived(CLIENTS).await;
    wait_until("the backend to give them up", || origin.open() == 0).await;
    for mut wire in readers {
        within("the end", async { while wire.fill().await.is_ok_and(|read| read > 0) {} }).await;
    }
    wait_until("all to be recorded", || {
        let log = proxy.access_log();
        log.iter().filter(|r| r["outcome"] == "UPSTREAM-TRUNCATED").count() == CLIENTS
    })
    .await;
    all_is_well(&proxy).await;
}

#[tokio::test]
async fn a_body_vanished_on_a_connection_kept_alive_by_http_1_0() {
    let origin = Origin::scripted(|mut x| async move {
        x.read_body().await.ok()?;
        let body = if x.request.body.is_empty() { b"empty".to_vec() } else { x.request.body.clone() };
        let head = "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length";
        x.write(format!("{head}: {}\r\n\r\n", body.len())).await.ok()?;
        x.write(body).await.ok()?;
        Some(x)
    })
    .await;
    let proxy = Proxy::builder().set("server.workers", "1").site(SITE, &origin.backends()).start().await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(wire.get(SITE, "/").await.text(), "empty");
    wire.send(format!(
        "POST / HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    ))
    .await;
    assert_eq!(wire.reply_to("POST").await.text(), "hello");
}

#[tokio::test]
async fn one_connection_that_could_not_be_opened_was_a_failure_of_everybody_who_waited_for_it() {
    // It listens, and nobody ever accepts: no SETTINGS come.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let site = format!(
        "backends = [\"{address}\"]\nupstream = {{ http = \"h2\" }}\nconnect_timeout = \"500ms\"\nretry = \"off\""
    );
    let proxy = Proxy::builder().set("server.workers", "1").site(SITE, &site).start().await;
    let mut waiting = Vec::new();
    for _ in 0..CLIENTS {
        let mut wire = proxy.wire(SITE).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
        waiting.push(wire);
    }
    for wire in &mut waiting {
        assert!(wire.reply().await.status >= 502);
    }
    let failures = proxy.metrics().await.sum("tidegate_upstream_connection_failures_total", &[]);
    silent.set_nonblocking(true).unwrap();
    let dialled = std::iter::from_fn(|| silent.accept().ok()).count();
    assert!(dialled < CLIENTS && failures == dialled as f64, "{failures} for {dialled}");
}

#[tokio::test]
async fn a_drain_cut_a_request_whose_head_was_half_here() {
    let origin = Origin::saying("served").await;
    let mut proxy =
        Proxy::builder().set("server.drain", "\"15s\"").site(SITE, &origin.backends()).start().await;
    let mut wire = proxy.wire(SITE).await;
    let mut idle = proxy.wire(SITE).await;
    wire.send("GET / HTTP/1.1\r\nHost: ").await;
    // What was sent is read before what another sends is answered.
    proxy.get(SITE, "/").await;
    proxy.signal(Signal::TERM);
    idle.closed().await;
    wire.send(format!("{SITE}\r\n\r\n")).await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.field("connection")), (200, Some("close")));
    wire.closed().await;
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn a_request_may_name_so_many_fields_in_connection_and_no_more() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for (count, status) in [(64, 200), (65, 400)] {
        let fields = format!("Connection: {}\r\n", vec!["x-a"; count].join(","));
        assert_eq!(proxy.wire(SITE).await.ask("GET", "/", SITE, &fields).await.status, status);
    }
}
