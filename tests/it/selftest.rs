//! The harness against itself: a client that talks to an origin with nothing between must see what was scripted.

use crate::harness::tls::{self, Ca};
use crate::harness::wire::Framing;
use crate::harness::{Answer, Gate, Origin, Wire};

#[tokio::test]
async fn a_scripted_answer_arrives_as_written() {
    let origin = Origin::answering(|request| {
        Answer::ok(format!("you sent {}", request.body.len())).trailer("x-sum", "7").field("X-A", "1")
    })
    .await;
    let mut wire = Wire::plain(origin.address()).await;
    let reply = wire.post("a.test", "/p?q=1", "hello").await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "you sent 5"));
    assert_eq!(reply.trailers, [("x-sum".to_string(), "7".to_string())]);
    let seen = origin.only();
    assert_eq!((seen.method(), seen.target(), seen.field("host")), ("POST", "/p?q=1", Some("a.test")));
    assert_eq!(seen.body, b"hello");
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_a_close_ends_it() {
    let origin =
        Origin::answering(|r| if r.target() == "/last" { Answer::ok("").close() } else { Answer::ok("x") })
            .await;
    let mut wire = Wire::plain(origin.address()).await;
    assert_eq!(wire.get("a.test", "/1").await.status, 200);
    assert_eq!(wire.get("a.test", "/last").await.status, 200);
    assert!(wire.closed().await.is_empty());
    assert_eq!((origin.count(), origin.accepted()), (2, 1));
}

#[tokio::test]
async fn a_body_cut_short_is_an_error_not_a_short_body() {
    let origin = Origin::scripted(|mut x| async move {
        x.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await.ok();
        None
    })
    .await;
    let mut wire = Wire::plain(origin.address()).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(wire.try_reply_to("GET").await.is_err());
}

#[tokio::test]
async fn a_gate_holds_a_script_until_the_test_opens_it() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let held = held.clone();
        async move {
            x.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await.ok()?;
            held.pass().await;
            x.write("3\r\ntwo\r\n0\r\n\r\n").await.ok()?;
            Some(x)
        }
    })
    .await;
    let mut wire = Wire::plain(origin.address()).await;
    wire.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(wire.reply_head().await.unwrap().status, 200);
    assert_eq!(wire.chunk().await.unwrap().unwrap(), b"one");
    gate.open();
    assert_eq!(wire.body(Framing::Chunked).await.unwrap().0, b"two");
}

#[tokio::test]
async fn tls_origins_answer_clients_that_trust_their_ca() {
    let ca = Ca::new("selftest");
    let origin =
        Origin::answering_tls(ca.leaf(&["inner.test"]).server_config(), |_| Answer::ok("secret")).await;
    let config = tls::client_config(&ca.pem, &[], &[&rustls::version::TLS13]);
    let mut wire = tls::connect(config.clone(), origin.address(), "inner.test").await.unwrap();
    assert_eq!(wire.get("inner.test", "/").await.text(), "secret");
    assert!(tls::connect(config, origin.address(), "other.test").await.is_err());
}

#[tokio::test]
async fn a_killed_origin_refuses_connections() {
    let origin = Origin::saying("x").await;
    let address = origin.kill().await;
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
