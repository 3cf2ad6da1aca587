//! Backends: which one is asked, what happens when it fails, and what must never be asked twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::tls::Ca;
use crate::harness::{Answer, Origin, Proxy, wait_for, wait_until, within};

const SITE: &str = "shop.test";

/// An address on which nothing listens.
async fn dead() -> std::net::SocketAddr {
    Origin::saying("").await.kill().await
}

#[tokio::test]
async fn a_refused_connection_is_502_and_says_so() {
    let address = dead().await;
    let proxy = Proxy::with_site(SITE, &format!("backends = [\"{address}\"]")).await;
    let reply = proxy.get(SITE, "/").await;
    reply.expect(502, "CONNECT-REFUSED");
    assert!(reply.field("proxy-status").unwrap().contains("connection_refused"), "RFC 9209 section 2.3.4");
    assert!(
        !reply.text().contains(&address.to_string()),
        "the answer says nothing about the inside: {}",
        reply.text()
    );
    proxy.record_with("CONNECT-REFUSED").await;
}

#[tokio::test]
async fn with_all_backends_down_the_answer_is_a_gateway_error() {
    let (a, b) = (dead().await, dead().await);
    let proxy = Proxy::with_site(SITE, &format!("backends = [\"{a}\", \"{b}\"]")).await;
    for _ in 0..10 {
        let reply = proxy.get(SITE, "/").await;
        let ending = (reply.status, reply.outcome());
        assert!(
            ending == (502, "CONNECT-REFUSED".into()) || ending == (503, "NO-ENDPOINT".into()),
            "{ending:?}: {}",
            reply.raw_head()
        );
    }
}

#[tokio::test]
async fn a_dead_backend_costs_no_request_and_is_tried_again_later() {
    let (down, alive) = (dead().await, Origin::saying("alive").await);
    let site = format!("backends = [\"{down}\", \"{}\"]\nbalance = \"round_robin\"", alive.address());
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..20 {
        assert_eq!(wire.get(SITE, "/").await.text(), "alive");
    }
    // Nothing of a POST was sent either when connecting failed.
    assert_eq!(wire.post(SITE, "/", "x").await.text(), "alive");
    let status = proxy.status().await;
    let entry = status["endpoints"].as_array().unwrap().iter().find(|e| e["address"] == down.to_string());
    assert_eq!(entry.expect("the endpoint is listed")["state"], "down");
}

#[tokio::test]
async fn round_robin_follows_the_weights() {
    let (one, two) = (Origin::saying("one").await, Origin::saying("two").await);
    let site = format!(
        "backends = [{{ address = \"{}\", weight = 3 }}, \"{}\"]\nbalance = \"round_robin\"",
        one.address(),
        two.address()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..40 {
        wire.get(SITE, "/").await;
    }
    assert_eq!((one.count(), two.count()), (30, 10));
}

#[tokio::test]
async fn p2c_uses_every_backend() {
    let (one, two, three) = (Origin::saying("1").await, Origin::saying("2").await, Origin::saying("3").await);
    let site = format!(
        "backends = [\"{}\", \"{}\", \"{}\"]\nbalance = \"p2c\"",
        one.address(),
        two.address(),
        three.address()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    // One in three for each: missing one in 200 draws has a chance below 1 in 10^30.
    for _ in 0..200 {
        assert_eq!(wire.get(SITE, "/").await.status, 200);
    }
    assert!([&one, &two, &three].iter().all(|o| o.count() > 0));
}

#[tokio::test]
async fn backend_connections_are_kept_and_shared_by_clients() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for _ in 0..10 {
        assert_eq!(proxy.get(SITE, "/").await.status, 200);
    }
    assert_eq!((origin.count(), origin.accepted()), (10, 1));
}

#[tokio::test]
async fn a_pooled_connection_that_has_gone_stale_costs_nobody_a_request() {
    // It promises keep-alive and closes right after answering: the proxy may or may not have noticed in time.
    let origin = Origin::scripted(|mut x| async move {
        x.answer(Answer::ok("ok")).await.ok()?;
        None
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    for i in 0..50 {
        assert_eq!(wire.get(SITE, "/").await.status, 200, "request {i}");
    }
}

/// Resets the connection of the first request whose target begins with `/die`, and answers all others.
async fn dies_once() -> Origin {
    let asked = Arc::new(AtomicUsize::new(0));
    Origin::scripted(move |mut x| {
        let dies = x.request.target().starts_with("/die") && asked.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if dies {
                x.wire.reset();
                return None;
            }
            x.answer(Answer::ok("ok")).await.ok()?;
            Some(x)
        }
    })
    .await
}

#[tokio::test]
async fn an_idempotent_request_is_tried_again_when_a_reused_connection_dies_under_it() {
    let origin = dies_once().await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(wire.get(SITE, "/").await.status, 200);
    assert_eq!(wire.get(SITE, "/die").await.status, 200);
    assert_eq!(origin.requests().iter().filter(|request| request.target() == "/die").count(), 2);
}

#[tokio::test]
async fn a_request_that_is_sent_again_is_the_same_to_the_byte() {
    let origin = dies_once().await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(wire.get(SITE, "/").await.status, 200, "the connection is warm");
    let fields =
        b"X-Own: one\r\nCookie: a=1\r\nX-Own: two \xff\xe9\r\nX-Empty:\r\nAuthorization: Basic eDp5\r\n";
    wire.send(format!("DELETE /die%20b?c=%2F HTTP/1.1\r\nHost: {SITE}\r\n")).await;
    wire.send(fields).await;
    wire.send("\r\n").await;
    assert_eq!(wire.reply().await.status, 200);
    let sent: Vec<_> = origin.requests().into_iter().filter(|request| request.method() == "DELETE").collect();
    let [first, again] = &sent[..] else { panic!("{} requests", sent.len()) };
    assert_eq!(first.raw(), again.raw());
    assert_eq!(first.head.raw, again.head.raw);
    assert_eq!(again.head.fields_of("x-own").len(), 2);
    assert!(again.head.raw.windows(6).any(|bytes| bytes == b"two \xff\xe9"), "{}", again.raw());
}

#[tokio::test]
async fn a_post_that_was_sent_is_never_sent_again() {
    let origin = Origin::scripted(|mut x| async move {
        x.read_body().await.ok()?;
        if x.request.method() == "POST" {
            return None; // Dies after reading it: it may have been done.
        }
        x.answer(Answer::ok("ok")).await.ok()?;
        Some(x)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(wire.get(SITE, "/").await.status, 200, "the connection is warm");
    wire.post(SITE, "/pay", "amount=1").await.expect(502, "UPSTREAM-CLOSED");
    let posts = origin.requests().iter().filter(|r| r.method() == "POST").count();
    assert_eq!(posts, 1);
}

#[tokio::test]
async fn an_answer_cut_in_the_middle_is_cut_for_the_client_too() {
    for (what, head) in [
        ("length", "Content-Length: 1000\r\n\r\nhalf"),
        ("chunks", "Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"),
    ] {
        for reset in [false, true] {
            let origin = Origin::scripted(move |mut x| async move {
                x.write(format!("HTTP/1.1 200 OK\r\n{head}")).await.ok()?;
                if reset {
                    x.wire.reset();
                }
                None
            })
            .await;
            let proxy = Proxy::with_site(SITE, &origin.backends()).await;
            assert!(proxy.try_get(SITE, "/").await.not_whole(), "{what} {reset}: it looked whole over h1");
            let mut h2 = proxy.h2(SITE).await;
            let request = h2.request("GET", "/").body(crate::harness::client::empty()).unwrap();
            if let Ok(response) = h2.start(request).await {
                let whole = within("an ending", crate::harness::client::read(response)).await;
                assert!(whole.not_whole(), "{what} {reset}: it looked whole over h2");
            }
            if !reset {
                proxy.record_with("UPSTREAM-TRUNCATED").await;
            }
        }
    }
}

/// A cut answer is an error, or an error status: never a whole 200.
trait NotWhole {
    fn not_whole(self) -> bool;
}
impl<E> NotWhole for Result<crate::harness::Reply, E> {
    fn not_whole(self) -> bool {
        self.map_or(true, |reply| reply.status >= 500)
    }
}

#[tokio::test]
async fn a_backend_that_speaks_nonsense_is_an_invalid_answer() {
    for nonsense in [
        "hello\r\n\r\n",
        "HTTP/1.1 99 Low\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX A: 1\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ] {
        let origin = Origin::scripted(move |mut x| async move {
            x.write(nonsense).await.ok()?;
            x.until_closed().await;
            None
        })
        .await;
        let proxy = Proxy::with_site(SITE, &origin.backends()).await;
        let reply = proxy.get(SITE, "/").await;
        assert_eq!((reply.status, reply.outcome().as_str()), (502, "UPSTREAM-INVALID"), "{nonsense:?}");
    }
}

#[tokio::test]
async fn bytes_after_an_answer_never_reach_the_next_client() {
    let origin = Origin::scripted(|mut x| async move {
        if x.request.target() == "/evil" {
            x.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged").await.ok()?;
        } else {
            x.answer(Answer::ok("mine")).await.ok()?;
        }
        Some(x)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for _ in 0..10 {
        assert_eq!(proxy.get(SITE, "/evil").await.text(), "ok");
        assert_eq!(proxy.get(SITE, "/next").await.text(), "mine");
    }
}

#[tokio::test]
async fn a_backend_that_closes_before_answering_is_closed_not_timed_out() {
    let origin = Origin::scripted(|_| async { None }).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    proxy.get(SITE, "/").await.expect(502, "UPSTREAM-CLOSED");
}

#[tokio::test]
async fn a_name_that_does_not_resolve_is_named_as_such() {
    // RFC 6761 section 6.4: `.invalid` never resolves.
    let proxy = Proxy::with_site(SITE, "backends = [\"nowhere.invalid:80\"]").await;
    proxy.get(SITE, "/").await.expect(502, "UPSTREAM-NAME");
    let origin = Origin::saying("by name").await;
    let port = origin.address().port();
    let proxy = Proxy::with_site(SITE, &format!("backends = [\"localhost:{port}\"]")).await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "by name");
}

// ---- TLS to backends

#[tokio::test]
async fn https_backends_are_verified_against_the_given_ca_and_name() {
    let ca = Ca::new("inner");
    let origin =
        Origin::answering_tls(ca.leaf(&["api.internal"]).server_config(), |_| Answer::ok("secret")).await;
    let builder = Proxy::builder();
    std::fs::create_dir_all(builder.folder().join("sites")).unwrap();
    std::fs::write(builder.folder().join("sites/inner.pem"), &ca.pem).unwrap();
    std::fs::write(builder.folder().join("sites/other.pem"), Ca::new("other").pem).unwrap();
    let backends = format!("backends = [\"https://{}\"]", origin.address());
    let upstream = |ca: &str, name: &str| {
        format!("{backends}\nupstream = {{ ca_file = \"{ca}\", server_name = \"{name}\" }}")
    };
    let proxy = builder
        .site("good.test", &upstream("inner.pem", "api.internal"))
        .site("name.test", &upstream("inner.pem", "other.internal"))
        .site("ca.test", &upstream("other.pem", "api.internal"))
        .site("system.test", &backends)
        .start()
        .await;
    for site in ["name.test", "ca.test", "system.test"] {
        proxy.get(site, "/").await.expect(502, "UPSTREAM-TLS");
    }
    assert_eq!(origin.count(), 0, "nothing is said before the backend is known");
    assert_eq!(proxy.get("good.test", "/").await.text(), "secret");
}

#[tokio::test]
async fn an_https_backend_that_closes_after_each_answer_is_connected_to_anew_each_time() {
    let ca = Ca::new("inner");
    // The second connection resumes the session of the first, also where the server asks for another key share.
    let mut groups = vec![("every group", rustls::crypto::aws_lc_rs::default_provider())];
    let mut one = rustls::crypto::aws_lc_rs::default_provider();
    one.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::SECP384R1];
    groups.push(("a group nobody guesses", one));
    for (what, provider) in groups {
        let pair = ca.leaf(&["api.internal"]);
        let origin = Origin::answering_tls(pair.server_config_with(provider), |_| {
            Answer::ok("x").field("Connection", "close")
        })
        .await;
        let builder = Proxy::builder();
        std::fs::create_dir_all(builder.folder().join("sites")).unwrap();
        std::fs::write(builder.folder().join("sites/inner.pem"), &ca.pem).unwrap();
        let site = format!(
            "backends = [\"https://{}\"]\nupstream = {{ ca_file = \"inner.pem\", server_name = \"api.internal\" }}",
            origin.address()
        );
        let proxy = builder.set("server.workers", "1").site(SITE, &site).start().await;
        for turn in 0..5 {
            let reply = proxy.get(SITE, "/").await;
            assert_eq!(
                (reply.status, reply.text().as_str()),
                (200, "x"),
                "{what}, turn {turn}: {}",
                reply.raw_head()
            );
        }
    }
}

#[tokio::test]
async fn a_plain_backend_behind_https_is_a_tls_failure() {
    let origin = Origin::saying("plain").await;
    let proxy = Proxy::with_site(SITE, &format!("backends = [\"https://{}\"]", origin.address())).await;
    proxy.get(SITE, "/").await.expect(502, "UPSTREAM-TLS");
}

// ---- upgrades

async fn echo() -> Origin {
    Origin::scripted(|mut x| async move {
        if x.request.field("upgrade").is_none() {
            x.answer(Answer::new(426)).await.ok()?;
            return Some(x);
        }
        x.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\nearly").await.ok()?;
        loop {
            if x.wire.ahead.is_empty() && x.wire.fill().await.ok()? == 0 {
                return None;
            }
            let bytes = std::mem::take(&mut x.wire.ahead);
            x.write(bytes).await.ok()?;
        }
    })
    .await
}

const UPGRADE: &str = "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_from_the_first_one() {
    let origin = echo().await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    // Bytes may follow the request at once, before the 101 is there.
    wire.send(format!("GET /ws HTTP/1.1\r\nHost: {SITE}\r\n{UPGRADE}\r\nhello")).await;
    let reply = wire.reply().await;
    assert_eq!(reply.status, 101);
    assert_eq!(reply.field("upgrade"), Some("websocket"));
    assert_eq!(reply.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(within("both", wire.exactly(10)).await.unwrap(), b"earlyhello");
    let big: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
    wire.send(&big).await;
    assert_eq!(within("the echo", wire.exactly(big.len())).await.unwrap(), big);
    let seen = origin.only();
    assert!(seen.field("connection").unwrap().eq_ignore_ascii_case("upgrade"), "{}", seen.raw());
    drop(wire);
    wait_until("the backend's side to end", || origin.open() == 0).await;
    assert_eq!(proxy.record_with("TUNNEL").await["status"], 101);
}

#[tokio::test]
async fn an_upgrade_that_the_backend_refuses_is_an_ordinary_answer() {
    let origin = Origin::answering(|_| Answer::new(403).body("no sockets")).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    let reply = wire.ask("GET", "/ws", SITE, UPGRADE).await;
    assert_eq!((reply.status, reply.text().as_str()), (403, "no sockets"));
    assert_eq!(wire.get(SITE, "/").await.status, 403, "the connection goes on");
}

#[tokio::test]
async fn a_backend_that_switches_unasked_is_invalid() {
    let origin = Origin::scripted(|mut x| async move {
        x.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
            .await
            .ok()?;
        x.until_closed().await;
        None
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    proxy.get(SITE, "/").await.expect(502, "UPSTREAM-INVALID");
}

#[tokio::test]
async fn h2c_upgrades_are_not_forwarded() {
    let origin = Origin::saying("plain").await;
    let proxy = Proxy::with_site(SITE, &format!("{}\nplain_http = true", origin.backends())).await;
    let mut wire = proxy.plain().await;
    let fields =
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n";
    assert_eq!(wire.ask("GET", "/", SITE, fields).await.status, 200);
    let seen = origin.only();
    assert!(seen.field("upgrade").is_none() && seen.field("http2-settings").is_none(), "{}", seen.raw());
}

#[tokio::test]
async fn an_endpoint_that_comes_back_is_used_again() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let proxy = Proxy::with_site(SITE, &format!("backends = [\"{address}\"]")).await;
    assert!(proxy.get(SITE, "/").await.status >= 502);
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::{AsyncReadExt, AsyncWriteExt};
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nback")
                .await;
        }
    });
    wait_for("the endpoint to be used again", || async {
        (proxy.get(SITE, "/").await.text() == "back").then_some(())
    })
    .await;
}

#[tokio::test]
async fn however_an_answer_is_framed_its_connection_carries_the_next_request() {
    let origin = Origin::answering(|request| match request.target() {
        "/small" => Answer::ok("small"),
        "/empty" => Answer::new(204),
        "/chunks" => Answer::ok(vec![b'c'; 300_000]).chunked(),
        _ => Answer::ok(vec![b'x'; 1 << 20]),
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    let answers =
        [("/small", 5), ("/long", 1 << 20), ("/chunks", 300_000), ("/empty", 0), ("/long", 1 << 20)];
    for (path, length) in answers {
        assert_eq!(wire.get(SITE, path).await.body.len(), length, "{path}");
    }
    assert_eq!(origin.accepted(), 1);
}
