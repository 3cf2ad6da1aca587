//! `Expect: 100-continue` from end to end, and answers that come before the request is complete.

use std::time::{Duration, Instant};

use crate::harness::client::full;
use crate::harness::{Answer, Gate, Origin, Proxy, wait_until, within};

const SITE: &str = "shop.test";

fn head(length: usize) -> String {
    format!("PUT / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\r\n")
}

#[tokio::test]
async fn the_backend_decides_when_the_client_is_told_to_go_on() {
    let gate = Gate::default();
    let inner = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let gate = inner.clone();
        async move {
            assert_eq!(x.request.field("expect"), Some("100-continue"), "it is passed on");
            gate.pass().await;
            x.write("HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
            x.read_body().await.ok()?;
            let body = x.request.body.clone();
            x.answer(Answer::ok(body)).await.ok()?;
            Some(x)
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..3 {
        wire.send(head(5)).await;
        gate.open();
        let interim = within("100 Continue", wire.head()).await.unwrap().unwrap();
        assert_eq!(interim.second(), "100", "{}", interim.line);
        wire.send("hello").await;
        let reply = wire.reply_to("PUT").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
    }
    assert_eq!(origin.accepted(), 1, "the connections stay in step on both sides");
}

#[tokio::test]
async fn a_backend_that_refuses_first_never_sees_the_body_and_the_client_is_never_asked() {
    let origin = Origin::scripted(|mut x| async move {
        // Nothing of the body is on its way.
        x.write("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno").await.ok()?;
        let mut rest = std::mem::take(&mut x.wire.ahead);
        while matches!(x.wire.fill().await, Ok(n) if n > 0) {
            rest.append(&mut x.wire.ahead);
        }
        assert!(rest.is_empty(), "{rest:?}");
        None
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(head(5)).await;
    let first = within("the answer", wire.head()).await.unwrap().unwrap();
    assert_eq!(first.second(), "413", "no 100 before it");
    assert_eq!(
        first.field("connection"),
        Some("close"),
        "nobody could tell a late body from the next request"
    );
    assert_eq!(within("its body", wire.exactly(2)).await.unwrap(), b"no");
    wire.finish().await;
    assert_eq!(wire.closed().await, b"");
    wait_until("the backend's connection to close", || origin.open() == 0).await;
    assert_eq!(proxy.get(SITE, "/").await.status, 413, "a new connection is fine");
}

#[tokio::test]
async fn a_request_smuggled_as_the_body_of_a_refused_one_is_not_answered() {
    let origin = Origin::answering(|r| Answer::new(if r.method() == "PUT" { 417 } else { 200 })).await;
    let refusing = Origin::scripted(|mut x| async move {
        x.write("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n").await.ok()?;
        Some(x)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &refusing.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    let inner = format!("GET /admin HTTP/1.1\r\nHost: {SITE}\r\n\r\n");
    wire.send(head(inner.len())).await;
    let first = within("the answer", wire.head()).await.unwrap().unwrap();
    assert_eq!(first.second(), "417");
    let _ = wire.try_send(inner).await;
    wire.finish().await;
    assert_eq!(wire.closed().await, b"", "one request, one answer");
    assert_eq!((refusing.count(), origin.count()), (1, 0));
}

#[tokio::test]
async fn a_backend_that_knows_nothing_of_it_gets_the_body_after_a_moment() {
    // It waits for the body and never says 100.
    let origin = Origin::answering(|r| Answer::ok(&r.body)).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    let before = Instant::now();
    wire.send(head(5)).await;
    let interim = within("100 Continue", wire.head()).await.unwrap().unwrap();
    assert_eq!(interim.second(), "100");
    assert!(before.elapsed() >= Duration::from_millis(800), "not before the backend had its chance");
    wire.send("hello").await;
    assert_eq!(wire.reply_to("PUT").await.text(), "hello");
}

#[tokio::test]
async fn a_client_that_sends_its_body_at_once_loses_nothing() {
    let origin = Origin::scripted(|mut x| async move {
        x.write("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
        x.read_body().await.ok()?;
        let body = x.request.body.clone();
        x.answer(Answer::ok(body)).await.ok()?;
        Some(x)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..3 {
        wire.send(format!("{}hello", head(5))).await;
        assert_eq!(wire.reply_to("PUT").await.text(), "hello");
    }
}

#[tokio::test]
async fn an_http2_client_gets_the_same_without_an_interim_answer() {
    let origin = Origin::scripted(|mut x| async move {
        assert_eq!(x.request.field("expect"), Some("100-continue"));
        if x.request.target() == "/refused" {
            x.answer(Answer::new(413).close()).await.ok()?;
            return None;
        }
        x.write("HTTP/1.1 100 Continue\r\n\r\n").await.ok()?;
        x.read_body().await.ok()?;
        let body = x.request.body.clone();
        x.answer(Answer::ok(body)).await.ok()?;
        Some(x)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut client = proxy.h2(SITE).await;
    for (path, status) in [("/", 200), ("/refused", 413), ("/", 200)] {
        let request = client.request("PUT", path).header("expect", "100-continue");
        let reply = client.send(request.body(full("hello")).unwrap()).await;
        assert_eq!(reply.status, status);
    }
}

#[tokio::test]
async fn without_a_body_nothing_is_expected_of_the_backend_and_another_expectation_is_refused() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.ask("GET", "/", SITE, "Expect: 100-continue\r\n").await;
    assert_eq!(origin.only().field("expect"), None);
    for other in ["tea", "100-continue, tea"] {
        let mut wire = proxy.wire(SITE).await;
        wire.send(format!(
            "PUT / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 2\r\nExpect: {other}\r\n\r\nhi"
        ))
        .await;
        let reply = wire.reply_to("PUT").await;
        reply.expect(417, "EXPECTATION-FAILED");
        assert_eq!(reply.field("connection"), Some("close"), "its body was not read");
        let mut client = proxy.h2(SITE).await;
        let request = client.request("PUT", "/").header("expect", other);
        client.send(request.body(full("hi")).unwrap()).await.expect(417, "EXPECTATION-FAILED");
        assert_eq!(client.get("/").await.status, 200, "the connection goes on");
    }
    assert!(origin.requests().iter().all(|request| request.method() == "GET"));
}

#[tokio::test]
async fn options_with_an_asterisk_asks_about_the_server_and_reaches_no_site() {
    let origin = Origin::saying("site").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for host in [SITE, "unknown.test"] {
        let mut wire = proxy.wire(SITE).await;
        let reply = wire.ask("OPTIONS", "*", host, "").await;
        assert_eq!((reply.status, reply.body.len()), (204, 0), "RFC 9110 section 9.3.7");
        assert!(reply.field("allow").is_some());
    }
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(wire.ask("GET", "*", SITE, "").await.status, 400, "RFC 9112 section 3.2.4");
    let mut client = proxy.bare_h2(SITE).await;
    let mut request = http::Request::builder().method("OPTIONS").uri("*").body(()).unwrap();
    *request.version_mut() = http::Version::HTTP_2;
    // A client library may refuse to send it; where it does not, the answer is ours.
    if let Ok((response, _)) = client.send_request(request, true)
        && let Ok(response) = within("an answer", response).await
    {
        assert!(matches!(response.status().as_u16(), 204 | 400), "{response:?}");
    }
    assert_eq!(origin.count(), 0);
    assert_eq!(proxy.get(SITE, "/").await.text(), "site");
}
