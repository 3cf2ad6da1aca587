//! Bandwidth: bodies that are too fast are delayed, and arrive whole. Times are bounded from below alone: nothing may be
//! faster than its limit, however slow the machine.

use std::time::{Duration, Instant};

use crate::harness::client::full;
use crate::harness::{Answer, Origin, Proxy};

const SITE: &str = "shop.test";
/// At 16 KiB a second a second's worth passes at once; the rest of 64 KiB takes three.
const BODY: usize = 64 * 1024;
/// Those three seconds, less a piece and a tick for each of two bodies.
const LEAST: Duration = Duration::from_millis(2400);

fn body() -> Vec<u8> {
    (0..BODY).map(|at| (at % 251) as u8).collect()
}

async fn generous() -> Origin {
    Origin::answering(|request| match request.method() {
        "POST" => Answer::ok(request.body.len().to_string()),
        _ => Answer::ok(body()),
    })
    .await
}

#[tokio::test]
async fn an_answer_comes_no_faster_than_its_limit_and_whole_by_both_protocols() {
    let origin = generous().await;
    let site = format!("{}\nbandwidth = {{ down = \"16KiB/s by client-ip\" }}", origin.backends());
    // Shorter than the waits: who waits for its bandwidth is neither stalled nor idle.
    let proxy = Proxy::builder()
        .set("server.timeouts.write", "\"300ms\"")
        .set("server.timeouts.idle", "\"300ms\"")
        .site(SITE, &site)
        .start()
        .await;
    for http2 in [false, true] {
        let begin = Instant::now();
        let reply = match http2 {
            false => proxy.get(SITE, "/").await,
            true => proxy.h2(SITE).await.get("/").await,
        };
        let took = begin.elapsed();
        assert!(reply.status == 200 && reply.body == body(), "{} bytes", reply.body.len());
        assert!(took >= LEAST, "{took:?}");
    }
    let waits = proxy.metrics().await.sum("tidegate_bandwidth_waits_total", &[("direction", "down")]);
    assert!(waits > 2.0, "{waits}");
}

#[tokio::test]
async fn all_connections_of_a_client_share_its_bandwidth() {
    let origin = generous().await;
    let site = format!("{}\nbandwidth = {{ down = \"32KiB/s by client-ip\" }}", origin.backends());
    let proxy = Proxy::with_site(SITE, &site).await;
    let begin = Instant::now();
    let (one, two) = tokio::join!(proxy.get(SITE, "/"), async { proxy.h2(SITE).await.get("/").await });
    let took = begin.elapsed();
    assert!(one.body == body() && two.body == body());
    assert!(took >= LEAST, "128 KiB at 32 KiB a second came within {took:?}");
}

#[tokio::test]
async fn an_upload_goes_no_faster_than_its_limit_and_whole() {
    let origin = generous().await;
    let site = format!("{}\nbandwidth = {{ up = \"16KiB/s by site\" }}", origin.backends());
    let proxy = Proxy::builder().set("server.timeouts.body", "\"300ms\"").site(SITE, &site).start().await;
    let begin = Instant::now();
    let mut wire = proxy.wire(SITE).await;
    let reply = wire.post(SITE, "/", &"x".repeat(BODY)).await;
    assert_eq!((reply.status, reply.text()), (200, BODY.to_string()));
    assert!(begin.elapsed() >= LEAST, "{:?}", begin.elapsed());
    // The line is the whole site's: the next upload waits at once.
    let begin = Instant::now();
    let mut h2 = proxy.h2(SITE).await;
    let request = h2.request("POST", "/").body(full(body())).unwrap();
    assert_eq!(h2.send(request).await.text(), BODY.to_string());
    assert!(begin.elapsed() >= LEAST, "{:?}", begin.elapsed());
    assert!(proxy.metrics().await.sum("tidegate_bandwidth_waits_total", &[("direction", "up")]) > 2.0);
}

#[tokio::test]
async fn in_shadow_nobody_waits_and_what_would_have_is_marked() {
    let origin = generous().await;
    let site = format!(
        "{}\nbandwidth = {{ down = \"1KiB/s\", up = \"1KiB/s\", mode = \"shadow\" }}",
        origin.backends()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(wire.get(SITE, "/").await.body, body());
    assert_eq!(wire.post(SITE, "/", &"x".repeat(BODY)).await.status, 200);
    for record in proxy.records(2).await {
        assert_eq!(record["would_block"][0], "bandwidth", "{record}");
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_bandwidth_waits_total", &[]), 0.0);
    assert_eq!(metrics.sum("tidegate_would_block_total", &[("policy", "bandwidth")]), 2.0);
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_is_let_go() {
    let origin = generous().await;
    let site = format!("{}\nbandwidth = {{ down = \"1KiB/s\" }}", origin.backends());
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    let head = wire.reply_head().await.unwrap();
    assert_eq!(head.status, 200);
    wire.reset();
    proxy.record_with("CLIENT-GONE").await;
    assert_eq!(proxy.metrics().await.sum("tidegate_connections_active", &[]), 0.0);
}
