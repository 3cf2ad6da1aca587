//! One parse, one re-serialisation: what reaches a backend is only ever what was meant, and what a client gets back
//! is only ever meant for it.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::AsyncWriteExt;

use crate::harness::client::{empty, full};
use crate::harness::wire::Framing;
use crate::harness::{Answer, Gate, Origin, Proxy, Wire, tool, within, within_for};

const SITE: &str = "shop.test";

async fn shop() -> (Origin, Proxy) {
    let origin = Origin::answering(|r| Answer::ok(format!("{} {}", r.method(), r.target()))).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    (origin, proxy)
}

/// Sends raw bytes on a connection of its own; expects this status, a close, and nothing at the origin.
async fn refused(proxy: &Proxy, origin: &Origin, what: &str, raw: &[u8], status: u16) {
    let before = origin.count();
    let mut wire = proxy.wire(SITE).await;
    wire.send(raw).await;
    let reply = within(what, wire.try_reply_to("GET")).await.unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_eq!(reply.status, status, "{what}: {}", reply.raw_head());
    wire.closed().await;
    assert_eq!(origin.count(), before, "{what}: it reached the origin as {:?}", origin.requests().last());
}

#[tokio::test]
async fn a_head_that_can_be_read_in_two_ways_is_refused_and_the_connection_closed() {
    let (origin, proxy) = shop().await;
    let cases: &[(&str, &[u8])] = &[
        ("no Host", b"GET / HTTP/1.1\r\n\r\n"),
        ("two Hosts", b"GET / HTTP/1.1\r\nHost: shop.test\r\nHost: evil.test\r\n\r\n"),
        ("two equal Hosts", b"GET / HTTP/1.1\r\nHost: shop.test\r\nHost: shop.test\r\n\r\n"),
        ("empty Host", b"GET / HTTP/1.1\r\nHost:\r\n\r\n"),
        ("Host with a path", b"GET / HTTP/1.1\r\nHost: shop.test/x\r\n\r\n"),
        ("Host with userinfo", b"GET / HTTP/1.1\r\nHost: evil@shop.test\r\n\r\n"),
        ("Host with a bad port", b"GET / HTTP/1.1\r\nHost: shop.test:99999\r\n\r\n"),
        ("Host with a space", b"GET / HTTP/1.1\r\nHost: shop.test evil\r\n\r\n"),
        ("Host against absolute-form", b"GET http://evil.test/ HTTP/1.1\r\nHost: shop.test\r\n\r\n"),
        ("space before the colon", b"GET / HTTP/1.1\r\nHost: shop.test\r\nX-A : 1\r\n\r\n"),
        ("obs-fold", b"GET / HTTP/1.1\r\nHost: shop.test\r\nX-A: 1\r\n 2\r\n\r\n"),
        ("field before any name", b"GET / HTTP/1.1\r\n Host: shop.test\r\n\r\n"),
        ("bare LF", b"GET / HTTP/1.1\r\nHost: shop.test\r\nX-A: 1\nX-B: 2\r\n\r\n"),
        ("bare LF after the request line", b"GET / HTTP/1.1\nHost: shop.test\r\n\r\n"),
        ("bare CR", b"GET / HTTP/1.1\r\nHost: shop.test\r\nX-A: 1\rX-B: 2\r\n\r\n"),
        ("NUL in a value", b"GET / HTTP/1.1\r\nHost: shop.test\r\nX-A: 1\x002\r\n\r\n"),
        ("control character in the target", b"GET /a\x01b HTTP/1.1\r\nHost: shop.test\r\n\r\n"),
        ("no version", b"GET /\r\nHost: shop.test\r\n\r\n"),
        ("unknown version", b"GET / HTTP/3.7\r\nHost: shop.test\r\n\r\n"),
        ("not HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello \r\n\r\n"),
    ];
    for (what, raw) in cases {
        refused(&proxy, &origin, what, raw, 400).await;
    }
}

#[tokio::test]
async fn a_body_of_ambiguous_length_is_refused() {
    let (origin, proxy) = shop().await;
    let cases: &[(&str, &str)] = &[
        ("differing lengths", "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        ("differing lengths in one field", "Content-Length: 5, 6\r\n\r\nhello!"),
        ("negative length", "Content-Length: -5\r\n\r\nhello"),
        ("signed length", "Content-Length: +5\r\n\r\nhello"),
        ("hexadecimal length", "Content-Length: 0x5\r\n\r\nhello"),
        ("huge length", "Content-Length: 99999999999999999999\r\n\r\nhello"),
        ("unknown coding", "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("chunked not last", "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n"),
        ("chunked twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    ];
    for (what, rest) in cases {
        let raw = format!("POST / HTTP/1.1\r\nHost: {SITE}\r\n{rest}");
        refused(&proxy, &origin, what, raw.as_bytes(), 400).await;
    }
}

#[tokio::test]
async fn content_length_with_transfer_encoding_never_smuggles_a_second_request() {
    let (origin, proxy) = shop().await;
    for te in ["chunked", "Chunked", "\tchunked", "identity", "xchunked", "chunked, chunked"] {
        let inner = "GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n";
        let raw = format!(
            "POST /outer HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: {}\r\nTransfer-Encoding: {te}\r\n\r\n0\r\n\r\n{inner}",
            5 + inner.len()
        );
        let mut wire = proxy.wire(SITE).await;
        wire.send(raw).await;
        let reply = wire.reply_to("POST").await;
        // RFC 9112 section 6.1: whatever the answer, the connection ends with it.
        let rest = wire.closed().await;
        assert_eq!(reply.status, 400, "{te}");
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "{te}: a second answer came");
    }
    assert_eq!(origin.count(), 0, "{:?}", origin.requests());
}

#[tokio::test]
async fn a_chunked_body_with_bad_syntax_never_arrives_whole() {
    let origin = Origin::scripted(|mut x| async move {
        x.read_body().await.ok()?;
        x.answer(Answer::ok("whole")).await.ok()?;
        Some(x)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for bad in [
        "zz\r\nhello\r\n0\r\n\r\n",
        "5\r\nhelloXX0\r\n\r\n",
        "-1\r\n\r\n",
        "5\nhello\n0\n\n",
        "ffffffffffffffffff\r\nx",
    ] {
        let mut wire = proxy.wire(SITE).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n{bad}"))
            .await;
        if let Ok(reply) = within("an ending", wire.try_reply_to("POST")).await {
            assert!(reply.status >= 400 && reply.text() != "whole", "{bad:?}: {}", reply.raw_head());
        }
        wire.closed().await;
    }
}

#[tokio::test]
async fn connect_and_trace_are_refused() {
    let (origin, proxy) = shop().await;
    let mut wire = proxy.wire(SITE).await;
    wire.ask("TRACE", "/", SITE, "").await.expect(405, "METHOD-REFUSED");
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("CONNECT {SITE}:443 HTTP/1.1\r\nHost: {SITE}:443\r\n\r\n")).await;
    wire.reply().await.expect(405, "METHOD-REFUSED");
    let mut h2 = proxy.h2(SITE).await;
    let request = h2.request("TRACE", "/").body(empty()).unwrap();
    h2.send(request).await.expect(405, "METHOD-REFUSED");
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn no_spelling_of_a_path_slips_past_a_route() {
    let origin = Origin::saying("public").await;
    let site = format!(
        "{}\n[[site.\"shop.test\".route]]\npath = \"/admin/\"\nrespond = {{ status = 403, body = \"no\" }}",
        origin.backends()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    for path in [
        "/admin",
        "/admin/",
        "/admin/x",
        "/admin?x",
        "/./admin/x",
        "/x/../admin/x",
        "/x/..//admin/x",
        "/x/%2e%2e/admin/x",
        "/x/%2E./admin/x",
        "/%61dmin/x",
        "/%61%64%6d%69%6e/",
        "//admin/x",
        "/x//../admin",
        "/../admin/x",
        "/admin%2fx",
        "/admin%2Fx",
        "/x%2f..%2fadmin",
        "/admin\\x",
        "/x\\..\\admin",
        "/x%5c..%5cadmin",
        "/admin%00",
        "/%00/../admin/",
        "/admin;a=b/x",
        "/admin/%2e",
        "/%2e/admin",
    ] {
        if path.contains(';') {
            continue; // Path parameters are part of a segment (RFC 3986 section 3.3): `admin;a=b` is another name.
        }
        let reply = proxy.get(SITE, path).await;
        assert!([400, 403].contains(&reply.status), "{path} was answered {}", reply.status);
    }
    assert_eq!(origin.count(), 0, "{:?}", origin.requests());
}

#[tokio::test]
async fn paths_that_mean_nothing_or_escape_the_root_are_bad_paths() {
    let (origin, proxy) = shop().await;
    for path in ["/a%00b", "/a%zzb", "/a%4", "/a\\b"] {
        proxy.get(SITE, path).await.expect(400, "BAD-PATH");
    }
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn a_path_is_forwarded_as_normalised_and_its_query_untouched() {
    let (origin, proxy) = shop().await;
    let cases = [
        ("/", "/"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/b/..", "/a/"),
        ("/%7euser/%41", "/~user/A"),
        ("/caf%c3%a9", "/caf%C3%A9"),
        ("/a%20b", "/a%20b"),
        ("/a?x=%2f..%2f&y=//", "/a?x=%2f..%2f&y=//"),
        ("/a?", "/a?"),
        ("/a;v=1,2/b:c@d", "/a;v=1,2/b:c@d"),
    ];
    let mut wire = proxy.wire(SITE).await;
    for (sent, expected) in cases {
        assert_eq!(wire.get(SITE, sent).await.text(), format!("GET {expected}"), "{sent}");
    }
    let reply = wire.get(SITE, "https://shop.test/absolute?x").await;
    assert_eq!(reply.text(), "GET /absolute?x", "the absolute form names the same thing");
    assert_eq!(origin.count(), cases.len() + 1);
}

#[tokio::test]
async fn hop_by_hop_fields_stop_here_in_both_directions() {
    let origin = Origin::answering(|_| {
        Answer::ok("x")
            .field("Connection", "X-Inner, keep-alive")
            .field("X-Inner", "1")
            .field("Keep-Alive", "timeout=5")
            .field("Proxy-Connection", "keep-alive")
            .field("X-Kept", "yes")
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    let fields = "Connection: keep-alive, X-Secret, X-Forwarded-For\r\nX-Secret: 1\r\nKeep-Alive: timeout=9\r\n\
                  Proxy-Connection: keep-alive\r\nTE: gzip, trailers\r\nX-Kept: yes\r\n";
    let reply = wire.ask("GET", "/", SITE, fields).await;
    assert_eq!(reply.status, 200);
    for name in ["x-inner", "keep-alive", "proxy-connection"] {
        assert!(reply.head.fields_of(name).is_empty(), "{name} reached the client");
    }
    assert_eq!(reply.field("x-kept"), Some("yes"));
    let seen = origin.only();
    for name in ["x-secret", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"] {
        assert!(seen.head.fields_of(name).is_empty(), "{name} reached the origin: {}", seen.raw());
    }
    assert!(!seen.field("te").unwrap_or_default().contains("gzip"), "{}", seen.raw());
    assert_eq!(seen.field("x-kept"), Some("yes"));
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"), "ours is not the client's to nominate");
}

#[tokio::test]
async fn forwarded_fields_of_an_untrusted_client_are_replaced() {
    let (origin, proxy) = shop().await;
    let mut wire = proxy.wire(SITE).await;
    let forged = "X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 7.7.7.7\r\nX-Forwarded-Proto: http\r\nX-Forwarded-Host: evil.test\r\n\
                  X-Forwarded-Port: 1\r\nX-Request-Id: forged\r\nX_Forwarded_For: 6.6.6.6\r\nX_Forwarded-Proto: http\r\n\
                  X-Real-Name: kept\r\n";
    assert_eq!(wire.ask("GET", "/", SITE, forged).await.status, 200);
    let seen = origin.only();
    assert_eq!(seen.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(seen.field("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.field("x-forwarded-host"), Some(SITE));
    assert_ne!(seen.field("x-forwarded-port").expect("a port"), "1");
    assert_ne!(seen.field("x-request-id").expect("a request id"), "forged");
    assert_eq!(seen.field("host"), Some(SITE), "Host passes through");
    assert_eq!(seen.field("x-real-name"), Some("kept"));
    assert!(!seen.raw().contains('_'), "an underscored look-alike went through: {}", seen.raw());
    assert!(!seen.raw().contains("6.6.6.6"));
}

#[tokio::test]
async fn forwarded_fields_of_a_trusted_proxy_are_believed_from_right_to_left() {
    let origin = Origin::saying("x").await;
    let proxy = Proxy::builder()
        .set("server.trusted_proxies", "[\"127.0.0.0/8\", \"10.0.0.0/8\"]")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut wire = proxy.wire(SITE).await;
    let fields = "X-Forwarded-For: 6.6.6.6, 203.0.113.9, 10.1.2.3\r\nX-Request-Id: 0123456789abcdef0123456789abcdef\r\n";
    assert_eq!(wire.ask("GET", "/", SITE, fields).await.status, 200);
    let seen = origin.only();
    assert!(seen.field("x-forwarded-for").unwrap().contains("203.0.113.9"), "{}", seen.raw());
    assert_eq!(seen.field("x-request-id"), Some("0123456789abcdef0123456789abcdef"));
    let record = proxy.records(1).await.remove(0);
    assert_eq!(record["client"], "203.0.113.9", "6.6.6.6 was said by somebody we do not trust: {record}");
}

#[tokio::test]
async fn every_request_has_an_id_of_its_own() {
    let (origin, proxy) = shop().await;
    let mut wire = proxy.wire(SITE).await;
    wire.get(SITE, "/1").await;
    wire.get(SITE, "/2").await;
    let ids: Vec<String> =
        origin.requests().iter().map(|r| r.field("x-request-id").unwrap().to_string()).collect();
    assert_ne!(ids[0], ids[1]);
    assert!(ids.iter().all(|id| id.len() >= 16), "{ids:?}");
}

#[tokio::test]
async fn http2_reaches_the_backend_as_clean_http1() {
    let (origin, proxy) = shop().await;
    let mut h2 = proxy.h2(SITE).await;
    let request = h2
        .request("POST", "/x?y=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .body(full("hello"))
        .unwrap();
    assert_eq!(h2.send(request).await.text(), "POST /x?y=1");
    let seen = origin.only();
    assert_eq!(seen.head.line, "POST /x?y=1 HTTP/1.1");
    assert_eq!(seen.field("host"), Some(SITE));
    // RFC 9113 section 8.2.3: crumbs are joined before they enter HTTP/1.1.
    assert_eq!(seen.field("cookie"), Some("a=1; b=2"));
    assert_eq!(seen.body, b"hello");
    assert!(!seen.raw().contains(":authority") && !seen.raw().contains(":path"));
}

#[tokio::test]
async fn an_http2_host_against_its_authority_is_refused() {
    let (origin, proxy) = shop().await;
    let mut h2 = proxy.h2(SITE).await;
    let request = h2.request("GET", "/").header("host", "evil.test").body(empty()).unwrap();
    h2.send(request).await.expect(400, "BAD-HOST");
    assert_eq!(origin.count(), 0);
}

#[tokio::test]
async fn trailers_travel_both_ways_over_http1_and_http2() {
    let origin =
        Origin::answering(|_| Answer::ok("body").field("Trailer", "x-sum").trailer("x-sum", "42")).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;

    let mut wire = proxy.wire(SITE).await;
    wire.send(format!(
        "POST / HTTP/1.1\r\nHost: {SITE}\r\nTE: trailers\r\nConnection: TE\r\nTrailer: x-check\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\nx-check: 7\r\n\r\n"
    ))
    .await;
    let reply = wire.reply_to("POST").await;
    assert_eq!(
        (reply.text().as_str(), reply.trailers.as_slice()),
        ("body", &[("x-sum".into(), "42".into())][..])
    );
    assert_eq!(origin.requests()[0].trailers, [("x-check".to_string(), "7".to_string())]);

    let mut h2 = proxy.h2(SITE).await;
    let frames = vec![
        Ok(Frame::data(Bytes::from("hello"))),
        Ok(Frame::trailers([("x-check".parse().unwrap(), "8".parse().unwrap())].into_iter().collect())),
    ];
    let body = StreamBody::new(Frames(frames.into_iter())).boxed();
    let request =
        h2.request("POST", "/").header("te", "trailers").header("trailer", "x-check").body(body).unwrap();
    let reply = h2.send(request).await;
    assert_eq!(reply.trailers, [("x-sum".to_string(), "42".to_string())]);
    assert_eq!(origin.requests()[1].trailers, [("x-check".to_string(), "8".to_string())]);
}

type FrameResult = Result<Frame<Bytes>, std::io::Error>;

/// An iterator as a stream of frames.
struct Frames(std::vec::IntoIter<FrameResult>);

impl futures_core::Stream for Frames {
    type Item = FrameResult;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<FrameResult>> {
        std::task::Poll::Ready(self.0.next())
    }
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_step() {
    let origin = Origin::answering(|r| match r.target() {
        "/204" => Answer::new(204),
        "/304" => Answer::new(304).field("ETag", "\"a\"").field("Content-Length", "1234"),
        "/empty" => Answer::ok(""),
        _ => Answer::ok("twelve bytes"),
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    let head = wire.ask("HEAD", "/", SITE, "").await;
    assert_eq!((head.status, head.field("content-length")), (200, Some("12")));
    assert_eq!(wire.get(SITE, "/204").await.status, 204);
    let not_modified = wire.get(SITE, "/304").await;
    assert_eq!((not_modified.status, not_modified.field("etag")), (304, Some("\"a\"")));
    assert_eq!(wire.get(SITE, "/empty").await.body, b"");
    assert_eq!(wire.get(SITE, "/").await.text(), "twelve bytes");
    assert_eq!(origin.accepted(), 1, "the backend connection stays usable too");
    let mut h2 = proxy.h2(SITE).await;
    let request = h2.request("HEAD", "/").body(empty()).unwrap();
    assert_eq!(h2.send(request).await.field("content-length"), Some("12"));
}

#[tokio::test]
async fn chunked_bodies_pass_and_their_extensions_do_not_matter() {
    let origin = Origin::answering(|r| Answer::ok(&r.body).chunked()).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!(
        "POST / HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    ))
    .await;
    assert_eq!(wire.reply_to("POST").await.text(), "hello world");
    assert_eq!(wire.post(SITE, "/", "again").await.text(), "again");
}

#[tokio::test]
async fn http10_clients_get_no_chunks_and_a_close() {
    let origin = Origin::answering(|_| Answer::ok("streamed").chunked()).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("GET / HTTP/1.0\r\nHost: {SITE}\r\n\r\n")).await;
    let reply = wire.reply().await;
    assert_eq!((reply.status, reply.text().as_str()), (200, "streamed"));
    assert!(reply.head.fields_of("transfer-encoding").is_empty());
    wire.closed().await;
    assert!(origin.only().head.line.ends_with("HTTP/1.1"), "the backend is spoken to in our own version");
    let mut wire = proxy.wire(SITE).await;
    wire.send("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(wire.reply().await.status, 400, "without a Host there is no site");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_origin, proxy) = shop().await;
    let mut wire = proxy.wire(SITE).await;
    let all: String = (0..20).map(|i| format!("GET /{i} HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).collect();
    wire.send(all).await;
    for i in 0..20 {
        assert_eq!(wire.reply().await.text(), format!("GET /{i}"));
    }
}

#[tokio::test]
async fn expect_100_continue_is_answered_before_the_body() {
    let origin = Origin::answering(|r| Answer::ok(&r.body)).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("PUT / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"))
        .await;
    let interim = within("100 Continue", wire.head()).await.unwrap().unwrap();
    assert_eq!(interim.second(), "100", "{}", interim.line);
    wire.send("hello").await;
    assert_eq!(wire.reply_to("PUT").await.text(), "hello");
}

#[tokio::test]
async fn interim_answers_of_the_backend_do_not_confuse_anyone() {
    let origin = Origin::scripted(|mut x| async move {
        x.write("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfinal").await.ok()?;
        Some(x)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..2 {
        assert_eq!(wire.get(SITE, "/").await.text(), "final");
    }
}

#[tokio::test]
async fn short_answers_in_two_packets_stay_in_step_and_their_connection_ends_without_a_reset() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::scripted(move |mut x| {
        let tell = tell.clone();
        async move {
            let body = x.request.target().to_owned();
            x.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await.ok()?;
            x.write(&body).await.ok()?;
            if body == "/last" {
                tell.send(x.wire.fill().await).ok()?;
                x.close();
            }
            Some(x)
        }
    })
    .await;
    let proxy = Proxy::builder()
        .set("server.timeouts.upstream_idle", "\"300ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut wire = proxy.wire(SITE).await;
    for path in ["/1", "/22", "/333", "/4444", "/last"] {
        assert_eq!(wire.get(SITE, path).await.text(), path);
    }
    assert_eq!(origin.accepted(), 1);
    let end = within("the end of the backend connection", told.recv()).await.unwrap();
    assert_eq!(end.expect("no reset"), 0);
}

fn event_source(
    gate: &Gate,
) -> impl Fn(
    crate::harness::Exchange,
) -> futures_core::future::BoxFuture<'static, Option<crate::harness::Exchange>>
+ use<> {
    let gate = gate.clone();
    move |mut x| {
        let gate = gate.clone();
        Box::pin(async move {
            x.write(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            )
            .await
            .ok()?;
            x.write("d\r\ndata: first\n\n\r\n").await.ok()?;
            gate.pass().await;
            x.write("e\r\ndata: second\n\n\r\n0\r\n\r\n").await.ok()?;
            Some(x)
        })
    }
}

#[tokio::test]
async fn server_sent_events_arrive_at_once() {
    let gate = Gate::default();
    let origin = Origin::scripted(event_source(&gate)).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;

    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\nAccept: text/event-stream\r\n\r\n")).await;
    assert_eq!(within("the head", wire.reply_head()).await.unwrap().status, 200);
    assert_eq!(within("the first event", wire.chunk()).await.unwrap().unwrap(), b"data: first\n\n");

    let mut h2 = proxy.h2(SITE).await;
    let request = h2.request("GET", "/").body(empty()).unwrap();
    let mut body = h2.start(request).await.unwrap().into_body();
    let first = within("the first event", body.frame()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "data: first\n\n");

    // Both clients have their first event while the backend still holds the second.
    gate.open();
    assert_eq!(wire.body(Framing::Chunked).await.unwrap().0, b"data: second\n\n");
    assert_eq!(within("the rest", body.collect()).await.unwrap().to_bytes(), "data: second\n\n");
}

/// Writes until the other side takes no byte for a second, or all is written; returns how much went.
async fn push(wire: &mut Wire, total: usize) -> usize {
    let piece = vec![b'x'; 64 * 1024];
    let mut sent = 0;
    while sent < total {
        match tokio::time::timeout(
            Duration::from_secs(1),
            wire.io.write(&piece[..piece.len().min(total - sent)]),
        )
        .await
        {
            Ok(n) => sent += n.expect("the connection lives"),
            Err(_stuck) => return sent,
        }
    }
    sent
}

#[tokio::test]
async fn an_upload_is_not_read_ahead_of_a_backend_that_does_not_read() {
    const TOTAL: usize = 200 << 20;
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let held = held.clone();
        async move {
            held.pass().await;
            let mut left = TOTAL - x.wire.ahead.len();
            while left > 0 {
                x.wire.ahead.clear();
                left -= x.wire.fill().await.ok().filter(|n| *n > 0)?;
            }
            x.wire.ahead.clear();
            x.answer(Answer::ok("all")).await.ok()?;
            Some(x)
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    let before = tool::rss_kib(proxy.pid());
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: {TOTAL}\r\n\r\n")).await;
    let sent = push(&mut wire, TOTAL).await;
    // What fits into the kernel's buffers of two connections, and no more.
    assert!(sent < 64 << 20, "{sent} bytes were taken although the backend reads nothing");
    let grown = tool::rss_kib(proxy.pid()).saturating_sub(before);
    assert!(grown < 16 << 10, "the proxy grew by {grown} KiB");
    gate.open();
    assert_eq!(sent + push(&mut wire, TOTAL - sent).await, TOTAL);
    wire.send("").await;
    assert_eq!(wire.reply_to("POST").await.text(), "all");
}

#[tokio::test]
async fn what_came_of_a_long_body_reaches_the_backend_though_its_client_pauses() {
    const TOTAL: usize = 1_000_000;
    let (told, mut came) = tokio::sync::watch::channel(0);
    let origin = Origin::scripted(move |mut x| {
        let told = told.clone();
        async move {
            while x.wire.ahead.len() < TOTAL {
                told.send_replace(x.wire.ahead.len());
                x.wire.fill().await.ok().filter(|n| *n > 0)?;
            }
            let answer = Answer::ok(std::mem::take(&mut x.wire.ahead));
            x.answer(answer).await.ok()?;
            Some(x)
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let body: Vec<u8> = (0..TOTAL as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: {TOTAL}\r\n\r\n")).await;
    // Ends within a packet, at odd places, and one byte before the end.
    let mut sent = 0;
    for end in [10, 300_000, 300_001, 700_123, TOTAL - 1] {
        wire.send(&body[sent..end]).await;
        within("the backend has all that was sent", came.wait_for(|count| *count == end)).await.unwrap();
        sent = end;
    }
    wire.send(&body[sent..]).await;
    let reply = wire.reply_to("POST").await;
    assert!(reply.body == body, "{} bytes came back, or others", reply.body.len());
}

/// What lay in the kernel when its client stopped was not read before there was more, and never where the window was full.
#[tokio::test]
async fn what_lies_in_the_kernel_when_a_client_pauses_is_read() {
    const TOTAL: usize = 4_000_000;
    const FIRST: usize = 1_000_000;
    const LAST: usize = 5_000;
    /// More than is held back to fill a packet.
    const HELD: usize = 64 * 1024;
    let (told, mut came) = tokio::sync::watch::channel(0);
    let origin = Origin::scripted(move |mut x| {
        let told = told.clone();
        async move {
            let mut known = 0;
            loop {
                told.send_modify(|count| *count += x.wire.ahead.len() - known);
                known = x.wire.ahead.len();
                x.wire.fill().await.ok().filter(|n| *n > 0)?;
            }
        }
    })
    .await;
    let site = format!("{}\nplain_http = true", origin.backends());
    let proxy = Proxy::with_site(SITE, &site).await;
    let head = format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: {TOTAL}\r\n\r\n");
    for turn in 1..=4 {
        let mut wire = if turn % 2 == 0 { proxy.plain().await } else { proxy.wire(SITE).await };
        wire.send(&head).await;
        for piece in [b'x'; FIRST].chunks(16 * 1024 - turn) {
            wire.send(piece).await;
        }
        // The worker has read all of it, and waits for a packet.
        let sent = turn * (FIRST + LAST);
        let nearly = came.wait_for(|count| *count + LAST + HELD >= sent);
        within("the backend has nearly all that was sent", nearly).await.unwrap();
        wire.send([b'x'; LAST]).await;
        within("it has all", came.wait_for(|count| *count == sent)).await.unwrap();
    }
}

#[tokio::test]
async fn a_download_is_not_read_ahead_of_a_client_that_does_not_read() {
    const TOTAL: usize = 200 << 20;
    let written = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = written.clone();
    let origin = Origin::scripted(move |mut x| {
        let count = count.clone();
        async move {
            x.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {TOTAL}\r\n\r\n")).await.ok()?;
            let piece = vec![b'y'; 64 * 1024];
            while count.load(std::sync::atomic::Ordering::SeqCst) < TOTAL {
                x.wire.io.write_all(&piece).await.ok()?;
                count.fetch_add(piece.len(), std::sync::atomic::Ordering::SeqCst);
            }
            Some(x)
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let before = tool::rss_kib(proxy.pid());
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    // Still when it stops growing for a second.
    let mut last = usize::MAX;
    loop {
        let now = written.load(std::sync::atomic::Ordering::SeqCst);
        if now == last && now > 0 {
            break;
        }
        last = now;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(last < 64 << 20, "{last} bytes were taken although the client reads nothing");
    let grown = tool::rss_kib(proxy.pid()).saturating_sub(before);
    assert!(grown < 16 << 10, "the proxy grew by {grown} KiB");
    let reply = within("the head", wire.reply_head()).await.unwrap();
    assert_eq!(reply.field("content-length"), Some(TOTAL.to_string().as_str()));
    let mut left = TOTAL - wire.ahead.len();
    while left > 0 {
        wire.ahead.clear();
        left -= within("more of the download", wire.fill()).await.unwrap();
    }
}

/// Chunks of all sizes, whose borders fall anywhere in what is written at once.
fn odd_chunks(total: usize) -> (Vec<u8>, Vec<u8>) {
    let body: Vec<u8> = (0..total).map(|n| b'a' + (n % 26) as u8).collect();
    let (mut framed, mut at, mut size) = (Vec::new(), 0, 1);
    while at < total {
        let end = (at + size).min(total);
        framed.extend(format!("{:x};n={at}\r\n", end - at).bytes());
        framed.extend_from_slice(&body[at..end]);
        framed.extend(b"\r\n");
        (at, size) = (end, size * 7 % 40_009);
    }
    framed.extend(b"0\r\nx-sum: 1\r\n\r\n");
    (body, framed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_arrive_whole_however_slowly_they_are_taken_and_wherever_they_are_cut() {
    let (body, framed) = odd_chunks(6 << 20);
    let framed = std::sync::Arc::new(framed);
    let origin = Origin::scripted(move |mut x| {
        let framed = framed.clone();
        async move {
            // The piece of each write; borders of chunks, and of their lines, stand alone somewhere.
            let piece = x.request.target().trim_start_matches('/').parse::<usize>().unwrap();
            x.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await.ok()?;
            let (tiny, rest) = framed.split_at(3_000);
            for piece in tiny.chunks(1).chain(rest.chunks(piece)) {
                x.write(piece).await.ok()?;
            }
            Some(x)
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for piece in [1_000, 65_537, 6 << 20] {
        for take in [700, 1 << 20] {
            let mut wire = proxy.wire(SITE).await;
            wire.send(format!("GET /{piece} HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
            let got = within_for(Duration::from_secs(60), "all of the chunks", async {
                let head = wire.reply_head().await.unwrap();
                assert_eq!(head.status, 200);
                if take < 1_000 {
                    // It takes nothing before everything in between is full, and then drop by drop for a while.
                    origin_rests(&origin).await;
                    let mut drops = vec![0; take];
                    for _ in 0..500 {
                        let n = tokio::io::AsyncReadExt::read(&mut wire.io, &mut drops).await.unwrap();
                        wire.ahead.extend_from_slice(&drops[..n]);
                    }
                }
                let mut got = Vec::new();
                while let Some(chunk) = wire.chunk().await.unwrap() {
                    got.extend(chunk);
                }
                got
            })
            .await;
            assert!(got == body, "{piece} {take}: {} of {} bytes", got.len(), body.len());
        }
        assert_eq!(proxy.h2(SITE).await.get(&format!("/{piece}")).await.body.len(), body.len(), "h2");
    }
}

/// Some time for an origin to fill what stands between it and a client that takes nothing.
async fn origin_rests(origin: &Origin) {
    origin.arrived(1).await;
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_client_that_goes_away_is_noticed_and_recorded() {
    let origin = Origin::scripted(|mut x| async move {
        x.until_closed().await;
        None
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("GET /slow HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    origin.arrived(1).await;
    wire.reset();
    proxy.record_with("CLIENT-GONE").await;
    crate::harness::wait_until("the backend connection to end", || origin.open() == 0).await;
}
