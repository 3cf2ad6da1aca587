//! Clients that have said their last, and clients that no longer listen: the two look alike, and are not.

use std::io;

use tokio::io::AsyncReadExt;

use crate::harness::h2raw::frame;
use crate::harness::{Answer, Gate, Origin, Proxy, Wire, wait_for, wait_until, within};
use crate::limits::raw_h2;

const SITE: &str = "shop.test";

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {SITE}\r\n{fields}\r\n")
}

/// A backend that keeps `/slow` waiting at a gate, and a site that is served in the clear, too.
async fn slow_at(gate: &Gate) -> (Origin, Proxy) {
    let gate = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let gate = gate.clone();
        async move {
            if x.request.target().starts_with("/slow") {
                gate.pass().await;
            }
            let answer = Answer::ok(x.request.target());
            x.answer(answer).await.ok()?;
            Some(x)
        }
    })
    .await;
    let site = format!("{}\nplain_http = true", origin.backends());
    let proxy = Proxy::builder().set("server.workers", "1").site(SITE, &site).start().await;
    (origin, proxy)
}

/// The only worker has seen what was sent before: it serves what was sent after.
async fn caught_up(proxy: &Proxy) {
    assert_eq!(proxy.get(SITE, "/quick").await.status, 200);
}

#[tokio::test]
async fn a_client_that_closed_its_side_behind_its_request_got_no_answer() {
    // The last one asks for a protocol that the site does not switch to, so its request is one like any other.
    let fields = ["", "Connection: close\r\n", "Connection: upgrade\r\nUpgrade: chat\r\n"];
    for (tls, fields) in fields.into_iter().flat_map(|fields| [(false, fields), (true, fields)]) {
        let gate = Gate::default();
        let (origin, proxy) = slow_at(&gate).await;
        let mut wire = if tls { proxy.wire(SITE).await } else { proxy.plain().await };
        wire.send(get("/slow", fields)).await;
        origin.arrived(1).await;
        wire.finish().await;
        caught_up(&proxy).await;
        gate.open();
        assert_eq!(wire.reply().await.text(), "/slow", "TLS: {tls}, {fields:?}");
        assert_eq!(wire.closed().await, b"", "nothing may follow the last answer");
    }
}

#[tokio::test]
async fn every_request_before_the_client_closed_its_side_is_answered() {
    let gate = Gate::default();
    let (origin, proxy) = slow_at(&gate).await;
    let mut wire = proxy.plain().await;
    // What stands behind the last one is no request, and never will be one.
    wire.send(format!("{}{}GET /half HTT", get("/slow/1", ""), get("/slow/2", ""))).await;
    origin.arrived(1).await;
    wire.finish().await;
    caught_up(&proxy).await;
    gate.open();
    assert_eq!(wire.reply().await.text(), "/slow/1");
    assert_eq!(wire.reply().await.text(), "/slow/2");
    wire.closed().await;
    let seen: Vec<_> = origin.requests().iter().map(|r| r.target().to_owned()).collect();
    assert!(!seen.iter().any(|target| target.starts_with("/half")), "{seen:?}");
}

#[tokio::test]
async fn a_client_that_closes_its_side_inside_a_body_has_cut_it() {
    let origin = Origin::saying("whole").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 10\r\n\r\nhalf")).await;
    origin.arrived(1).await;
    wire.finish().await;
    proxy.record_with("CLIENT-GONE").await;
    wait_until("the backend connection to end", || origin.open() == 0).await;
    assert!(origin.only().body.is_empty(), "half a body passed for a whole one");
}

#[tokio::test]
async fn a_client_that_closed_its_side_is_not_waited_for_for_long() {
    let gate = Gate::default();
    let (origin, proxy) = slow_at(&gate).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(get("/slow", "")).await;
    origin.arrived(1).await;
    wire.finish().await;
    proxy.record_with("CLIENT-GONE").await;
    wire.closed().await;
}

/// Endless answers, and a proxy that soon gives up who does not read them.
async fn flood() -> Proxy {
    let origin = Origin::scripted(|mut x| async move {
        x.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 1u64 << 30)).await.ok()?;
        let piece = vec![b'x'; 64 * 1024];
        while x.write(&piece).await.is_ok() {}
        None
    })
    .await;
    let backends = origin.backends();
    // It serves for as long as the test runs.
    std::mem::forget(origin);
    let site = format!("{backends}\nplain_http = true");
    Proxy::builder().set("server.timeouts.write", "\"300ms\"").site(SITE, &site).start().await
}

/// Reads what had arrived when the proxy had given it up; says how it ended.
async fn ending(mut wire: Wire, proxy: &Proxy) -> io::Result<()> {
    proxy.record_with("CLIENT-STALLED").await;
    // Under HTTP/2 the stream may be given up a little before the connection.
    let closed =
        || async { (proxy.metrics().await.sum("tidegate_connections_active", &[]) == 0.0).then_some(()) };
    wait_for("the connection to be closed", closed).await;
    let mut waste = vec![0; 64 * 1024];
    within("the end", async {
        while wire.io.read(&mut waste).await? > 0 {}
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_a_client_did_not_read_was_kept_by_the_kernel_for_as_long_as_it_liked() {
    let proxy = flood().await;
    let mut h1 = proxy.plain().await;
    h1.send(get("/", "")).await;
    // An orderly end would stand behind all that was not read.
    assert_eq!(ending(h1, &proxy).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_an_http2_client_did_not_read_was_kept_by_the_kernel_for_as_long_as_it_liked() {
    let proxy = flood().await;
    let mut h2 = raw_h2(&proxy).await;
    let window = 0x7fff_ffffu32;
    h2.send(frame(4, 0, 0, &[[0, 4].as_slice(), &window.to_be_bytes()].concat())).await;
    h2.send(frame(8, 0, 0, &(window - 65_535).to_be_bytes())).await;
    let mut head = vec![0x82, 0x87, 0x84, 0x41, u8::try_from(SITE.len()).unwrap()];
    head.extend(SITE.as_bytes());
    h2.send(frame(1, 0x5, 1, &head)).await;
    assert_eq!(ending(h2, &proxy).await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}
