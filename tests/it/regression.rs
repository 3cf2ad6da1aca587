//! Bugs that were found once, each by the name of what it did.

use std::time::Duration;

use crate::harness::client::empty;
use crate::harness::wire::Framing;
use crate::harness::{Answer, Gate, Origin, Proxy, Wire, within};

const SITE: &str = "shop.test";

fn get(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {SITE}\r\n{fields}\r\n")
}

#[tokio::test]
async fn a_bad_request_behind_a_good_one_took_its_answer_away() {
    let origin = Origin::saying("good").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("{}no request\r\n\r\n", get("/", ""))).await;
    assert_eq!(wire.reply().await.text(), "good");
    assert_eq!(wire.reply().await.status, 400);
    wire.closed().await;
}

#[tokio::test]
async fn a_bad_request_that_came_while_a_good_one_was_served_was_never_answered() {
    let gate = Gate::default();
    let opened = gate.clone();
    let origin = Origin::scripted(move |mut exchange| {
        let gate = gate.clone();
        async move {
            gate.pass().await;
            let _ = exchange.answer(Answer::ok("good")).await;
            Some(exchange)
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(get("/", "")).await;
    origin.arrived(1).await;
    wire.send("no request\r\n\r\n").await;
    // Let it be read before the answer comes: a second connection is served in between.
    proxy.plain().await.get("other.test", "/").await;
    opened.open();
    assert_eq!(wire.reply().await.text(), "good");
    assert_eq!(wire.reply().await.status, 400);
    wire.closed().await;
}

#[tokio::test]
async fn the_400_for_a_pipelined_bad_request_stood_in_the_middle_of_an_answer() {
    const SIZE: usize = 8 << 20;
    let origin = Origin::answering(|_| Answer::ok(vec![b'x'; SIZE])).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("{}no request\r\n\r\n", get("/", ""))).await;
    let whole = wire.reply().await;
    assert!(whole.body.len() == SIZE && whole.body.iter().all(|&b| b == b'x'));
    assert_eq!(wire.reply().await.status, 400);
}

#[tokio::test]
async fn bytes_right_behind_a_request_to_switch_were_judged_as_http() {
    let origin = Origin::scripted(|mut exchange| async move {
        let _ =
            exchange.write("HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n").await;
        while let Ok(n) = exchange.wire.fill().await {
            if n == 0 {
                break;
            }
            let bytes = exchange.wire.exactly(n).await.unwrap_or_default();
            let _ = exchange.write(bytes).await;
        }
        exchange.close();
        Some(exchange)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &format!("{}\nupgrade = [\"echo\"]", origin.backends())).await;
    let mut wire = proxy.wire(SITE).await;
    let early = "\x01\n\0no http at all\n\n";
    wire.send(format!("{}{early}", get("/", "Connection: upgrade\r\nUpgrade: echo\r\n"))).await;
    assert_eq!(wire.reply_head().await.expect("an answer").status, 101);
    assert_eq!(wire.exactly(early.len()).await.expect("an echo"), early.as_bytes());
    // The tunnel is cut, not closed: its bytes were lost from the record.
    wire.reset();
    let record = proxy.record_with("TUNNEL").await;
    assert_eq!((&record["bytes_in"], &record["bytes_out"]), (&early.len().into(), &early.len().into()));
}

#[tokio::test]
async fn a_client_that_leaves_while_it_waits_for_a_switch_is_noticed() {
    let origin = Origin::scripted(|mut exchange| async move {
        exchange.until_closed().await;
        Some(exchange)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(get("/", "Connection: upgrade\r\nUpgrade: echo\r\n")).await;
    origin.arrived(1).await;
    wire.reset();
    proxy.record_with("CLIENT-GONE").await;
}

#[tokio::test]
async fn an_upgrade_with_a_body_was_made_a_tunnel() {
    let origin = Origin::answering(|r| Answer::ok(r.field("upgrade").unwrap_or("none"))).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    let fields = "Connection: upgrade\r\nUpgrade: echo\r\nContent-Length: 4\r\n";
    wire.send(format!("{}body", get("/", fields))).await;
    assert_eq!(wire.reply().await.text(), "none");
    assert_eq!(origin.only().body, b"body");
    assert_eq!(wire.get(SITE, "/").await.text(), "none");
}

#[tokio::test]
async fn a_length_beside_chunks_cut_the_answer_short() {
    for length in [3, 30] {
        let origin = Origin::scripted(move |mut exchange| async move {
            let head =
                format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n");
            let _ = exchange.write(head + "5\r\nabcde\r\n0\r\n\r\n").await;
            Some(exchange)
        })
        .await;
        let proxy = Proxy::with_site(SITE, &origin.backends()).await;
        proxy.get(SITE, "/").await.expect(502, "UPSTREAM-INVALID");
    }
}

#[tokio::test]
async fn a_truncated_answer_looked_whole_to_a_client_of_http10() {
    let origin = Origin::scripted(|mut exchange| async move {
        let _ = exchange.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n").await;
        None
    })
    .await;
    let proxy = Proxy::with_site(SITE, &format!("{}\nplain_http = true", origin.backends())).await;
    let mut wire = proxy.plain().await;
    wire.send(format!("GET / HTTP/1.0\r\nHost: {SITE}\r\n\r\n")).await;
    let ending = within("an ending", wire.try_reply_to("GET")).await;
    assert!(ending.is_err(), "{ending:?}");
    proxy.record_with("UPSTREAM-TRUNCATED").await;
}

#[tokio::test]
async fn the_body_of_a_get_in_chunks_was_lost() {
    let origin = Origin::answering(|r| Answer::ok(&r.body)).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..2 {
        wire.send(format!(
            "GET / HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        ))
        .await;
        assert_eq!(wire.reply().await.text(), "hello");
    }
    // A backend that did not read it would take it for its next request: there is none on that connection.
    assert_eq!(origin.accepted(), 2);
}

#[tokio::test]
async fn what_stood_behind_a_last_request_was_answered() {
    let origin = Origin::saying("last").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("{}no request\r\n\r\n", get("/", "Connection: close\r\n"))).await;
    assert_eq!(wire.reply().await.text(), "last");
    assert_eq!(wire.closed().await, b"", "RFC 9112 section 9.6");
}

#[tokio::test]
async fn a_connection_with_an_unread_body_was_closed_without_a_word() {
    let proxy = Proxy::with_site(SITE, "redirect = \"https://other.test/\"").await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 100000\r\n\r\n")).await;
    let reply = wire.reply().await;
    assert_eq!((reply.status / 100, reply.field("connection")), (3, Some("close")));
    // The client is still sending: it must be able to end without a reset.
    wire.send(vec![b'x'; 100_000]).await;
    wire.finish().await;
    assert_eq!(wire.fill().await.expect("a clean end, no reset"), 0);
}

#[tokio::test]
async fn a_short_unread_body_costs_no_connection() {
    let proxy = Proxy::with_site(SITE, "redirect = \"https://other.test/\"").await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..2 {
        wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 5\r\n\r\n")).await;
        wire.send("hello").await;
        let reply = wire.reply().await;
        assert_eq!((reply.status / 100, reply.field("connection")), (3, None));
    }
}

#[tokio::test]
async fn the_answer_of_a_backend_that_refuses_an_upload_and_hangs_up_was_lost() {
    let origin = Origin::scripted(|mut exchange| async move {
        let _ = exchange.answer(Answer::new(413).body("too much").close()).await;
        Some(exchange)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for _ in 0..5 {
        let mut wire = proxy.wire(SITE).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 4000000\r\n\r\n")).await;
        let _ = wire.try_send(vec![b'x'; 4_000_000]).await;
        let reply = wire.reply().await;
        assert_eq!((reply.status, reply.text().as_str()), (413, "too much"));
    }
}

#[tokio::test]
async fn an_upload_nobody_wanted_any_more_kept_both_connections_and_ended_in_a_408() {
    let origin = Origin::scripted(|mut exchange| async move {
        let _ = exchange.answer(Answer::ok("enough")).await;
        exchange.until_closed().await;
        Some(exchange)
    })
    .await;
    let proxy = Proxy::builder()
        .set("server.timeouts.head", "\"300ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 4000000\r\n\r\nxyz")).await;
    assert_eq!(wire.reply().await.text(), "enough");
    within("the backend's connection closes", async {
        while origin.open() > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    wire.finish().await;
    assert_eq!(wire.closed().await, b"", "nothing may follow the answer");
}

#[tokio::test]
async fn an_http2_stream_whose_window_stays_shut_was_kept_for_ever() {
    let origin = Origin::answering(|r| match r.target() {
        "/big" => Answer::ok(vec![b'x'; 16 << 20]),
        _ => Answer::ok("small"),
    })
    .await;
    let proxy = Proxy::builder()
        .set("server.timeouts.write", "\"500ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut client = proxy.h2(SITE).await;
    let request = client.request("GET", "/big").body(empty()).expect("a request");
    let unread = client.start(request).await.expect("a head");
    // Only that stream is reset: the connection is well.
    proxy.record_with("CLIENT-STALLED").await;
    assert_eq!(client.get("/small").await.text(), "small");
    assert!(within("the rest", crate::harness::client::read(unread)).await.is_err(), "it was cut");
}

#[tokio::test]
async fn a_body_that_broke_off_into_nonsense_was_taken_for_a_client_that_left() {
    let origin = Origin::scripted(|mut exchange| async move {
        exchange.read_body().await.ok()?;
        Some(exchange)
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"))
        .await;
    origin.arrived(1).await;
    wire.send("nonsense\r\n").await;
    wire.reply().await.expect(400, "BAD-FRAMING");
    wire.finish().await;
    assert_eq!(wire.closed().await, b"", "one answer, not two");
    assert_eq!(proxy.records(1).await.len(), 1);
}

#[tokio::test]
async fn a_backend_that_died_between_head_and_body_cost_an_idempotent_request() {
    // A container killed after its write of the head, before that of the body.
    let dying = Origin::scripted(|mut x| async move {
        x.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await.ok()?;
        None
    })
    .await;
    let living = Origin::saying("apple").await;
    let backends =
        format!("backends = [\"{}\", \"{}\"]\nbalance = \"round_robin\"", dying.address(), living.address());
    let proxy = Proxy::with_site(SITE, &backends).await;
    let mut h1 = proxy.wire(SITE).await;
    let mut h2 = proxy.h2(SITE).await;
    for _ in 0..5 {
        let reply = h1.get(SITE, "/").await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "apple"));
        assert_eq!(h2.get("/").await.status, 200);
    }
    assert!(dying.count() > 0, "the dying backend was never asked");
    // What may have had an effect is not repeated.
    let posts = || dying.requests().iter().filter(|r| r.method() == "POST").count();
    while posts() == 0 {
        let mut wire = proxy.wire(SITE).await;
        wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 1\r\n\r\nx")).await;
        let answered = wire.try_reply_to("POST").await;
        assert_eq!(answered.is_err(), posts() == 1, "{answered:?}");
    }
}

#[tokio::test]
async fn a_head_whose_body_takes_long_is_passed_on_before_it() {
    let gate = Gate::default();
    let opened = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let gate = gate.clone();
        async move {
            x.write("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n").await.ok()?;
            gate.pass().await;
            x.write("apple").await.ok()?;
            Some(x)
        }
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(get("/", "")).await;
    let head = within("the head alone", wire.reply_head()).await.unwrap();
    assert_eq!(head.status, 200);
    opened.open();
    let (body, _) = within("the body", wire.body(Framing::Length(5))).await.unwrap();
    assert_eq!(body, b"apple");
}

#[tokio::test]
async fn health_checks_over_http1_took_every_answer_for_one_that_nobody_had_asked_for() {
    let origin = Origin::saying("ok").await;
    let site = format!("{}\nhealth = {{ path = \"/up\", interval = \"50ms\" }}", origin.backends());
    let proxy = Proxy::with_site(SITE, &site).await;
    origin.arrived(4).await;
    assert!(!proxy.stderr().contains("unhealthy"), "{}", proxy.stderr());
    assert_eq!(proxy.status().await["endpoints"][0]["state"], "up");
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
}
