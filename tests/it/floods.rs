//! Floods: what a hostile client may do before its connection ends, each with its reason. Those that last are [`storms`].
//!
//! [`storms`]: crate::storms

use std::time::Duration;

use rustls::version::TLS13;
use tokio::task::JoinSet;

use crate::harness::client::empty;
use crate::harness::tls::{client_config, connect};
use crate::harness::{Answer, Gate, Origin, Proxy, Wire, wait_for, within};
use crate::limits::{frame, raw_h2};

pub const SITE: &str = "shop.test";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
pub const RESET: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// `:method`, `:scheme https`, `:path /`, `:authority shop.test`; 0x82 is GET, 0x83 POST.
pub fn head(method: u8) -> Vec<u8> {
    let mut head = vec![method, 0x87, 0x84, 0x41, SITE.len() as u8];
    head.extend(SITE.as_bytes());
    head
}

pub fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(0x82))
}

pub fn post(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &head(0x83))
}

/// Kind and payload of the next frame.
async fn next(wire: &mut Wire) -> std::io::Result<(u8, Vec<u8>)> {
    let header = wire.exactly(9).await?;
    let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
    Ok((header[3], wire.exactly(length as usize).await?))
}

/// Code and words of the GOAWAY that ends this connection.
async fn goaway(mut wire: Wire, what: &str) -> (u32, String) {
    within(what, async {
        loop {
            let (kind, payload) = next(&mut wire).await.unwrap_or_else(|e| panic!("{what}: {e}"));
            if kind == GOAWAY {
                let code = u32::from_be_bytes(payload[4..8].try_into().unwrap());
                let words = String::from_utf8_lossy(&payload[8..]).into_owned();
                wire.closed().await;
                return (code, words);
            }
        }
    })
    .await
}

/// RFC 9113 section 7.
const ENHANCE_YOUR_CALM: u32 = 11;

async fn shop() -> (Origin, Proxy) {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    (origin, proxy)
}

/// A stream that is opened and reset at once.
fn reset(n: u32) -> Vec<u8> {
    [get(2 * n + 1), frame(RESET, 0, 2 * n + 1, &8u32.to_be_bytes())].concat()
}

#[tokio::test]
async fn each_flood_of_frames_ends_its_connection_with_a_reason() {
    let origin = Origin::saying("ok").await;
    // All of them come from one address here.
    let proxy = Proxy::builder()
        .set("server.limits.flood_delay", "\"0s\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let floods: [(&str, Vec<u8>, &str); 7] = [
        ("resets", (0..600).flat_map(reset).collect(), "reset"),
        ("pings", frame(PING, 0, 0, &[0; 8]).repeat(300), "PING"),
        ("settings", frame(SETTINGS, 0, 0, &[]).repeat(100), "SETTINGS"),
        ("empty-data", [post(1), frame(DATA, 0, 1, &[]).repeat(300)].concat(), "empty DATA"),
        ("window-updates", frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes()).repeat(3_000), "WINDOW_UPDATE"),
        ("priorities", frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1]).repeat(1_500), "PRIORITY"),
        ("unknown-frames", frame(0xbe, 0, 0, b"?").repeat(300), "unknown"),
    ];
    for (reason, bytes, words) in floods {
        let mut wire = raw_h2(&proxy).await;
        let _ = wire.try_send(&bytes).await;
        let (code, said) = goaway(wire, reason).await;
        assert!(code == ENHANCE_YOUR_CALM && said.contains(words), "{reason}: {code} {said}");
        let counted = proxy.metrics().await.sum("tidegate_floods_total", &[("reason", reason)]);
        assert_eq!(counted, 1.0, "{reason}");
        assert_eq!(proxy.get(SITE, "/").await.status, 200, "others are served");
    }
    let ended = proxy.metrics().await.sum("tidegate_outcomes_total", &[("outcome", "CLIENT-FLOOD")]);
    assert!(ended >= 7.0, "{ended}");
}

#[tokio::test]
async fn of_a_rapid_reset_next_to_nothing_reaches_the_backend() {
    let (origin, proxy) = shop().await;
    let mut wire = raw_h2(&proxy).await;
    let _ = wire.try_send(&(0..3_000).flat_map(reset).collect::<Vec<u8>>()).await;
    let (code, _) = goaway(wire, "the goodbye").await;
    assert_eq!(code, ENHANCE_YOUR_CALM);
    assert_eq!(proxy.get(SITE, "/").await.status, 200, "others are served");
    // A stream whose reset came in a later piece than its head may have begun: one for each piece at most.
    assert!(origin.count() < 50, "{} requests reached the backend", origin.count());
}

#[tokio::test]
async fn a_client_that_cancels_some_gets_all_that_it_still_wants() {
    let (origin, proxy) = shop().await;
    let mut wire = raw_h2(&proxy).await;
    // Fifty are cancelled at once, the one behind them is not.
    wire.send([(0..50).flat_map(reset).collect::<Vec<u8>>(), get(101)].concat()).await;
    within("the answer", async {
        loop {
            let header = wire.exactly(9).await.unwrap();
            wire.exactly(usize::from(header[1]) * 256 + usize::from(header[2])).await.unwrap();
            if header[3] == HEADERS && header[8] == 101 {
                break;
            }
        }
    })
    .await;
    assert!(origin.count() >= 1);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_floods_total", &[]), 0.0);
    assert!(metrics.sum("tidegate_requests_reset_early_total", &[]) >= 25.0, "nothing was done for most");
}

#[tokio::test]
async fn who_floods_waits_and_is_served_then() {
    let (_origin, proxy) = shop().await;
    let mut before = proxy.h2(SITE).await;
    assert_eq!(before.get("/").await.status, 200);
    for _ in 0..2 {
        let mut wire = raw_h2(&proxy).await;
        let _ = wire.try_send(frame(PING, 0, 0, &[0; 8]).repeat(300)).await;
        goaway(wire, "the goodbye").await;
    }
    // The first flood comes from nobody who is known, the second had to wait.
    let waited = async |at_least: f64| {
        let waited = proxy.metrics().await.sum("tidegate_flood_delays_total", &[]);
        assert!(waited >= at_least, "{waited} connections waited");
    };
    waited(1.0).await;
    assert_eq!(proxy.get(SITE, "/").await.status, 200, "the next connection from there is served");
    waited(2.0).await;
    assert_eq!(before.get("/").await.status, 200, "one that is open feels nothing");
}

#[tokio::test]
async fn a_flood_that_the_library_ends_is_counted_and_who_sent_it_waits() {
    let (_origin, proxy) = shop().await;
    // `a: b`, as a literal without a name in the table.
    let fields = frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'].repeat(3_000)).repeat(20);
    let floods = [
        ("fields without end", [frame(HEADERS, 0, 1, &head(0x82)), fields].concat()),
        (
            "CONTINUATION",
            [frame(HEADERS, 0, 1, &head(0x82)), frame(CONTINUATION, 0, 1, &[]).repeat(150)].concat(),
        ),
        ("tiny DATA", [post(1), frame(DATA, 0, 1, b"x").repeat(60_000)].concat()),
    ];
    for (nth, (what, bytes)) in floods.into_iter().enumerate() {
        let mut wire = raw_h2(&proxy).await;
        let _ = wire.try_send(&bytes).await;
        let (code, said) = goaway(wire, what).await;
        assert_eq!(code, ENHANCE_YOUR_CALM, "{what}: {said}");
        // The goodbye may arrive before the connection's end is noticed.
        wait_for(&format!("{what} to be counted"), || async {
            let metrics = proxy.metrics().await;
            (metrics.sum("tidegate_floods_total", &[("reason", "excess")]) == nth as f64 + 1.0).then_some(())
        })
        .await;
        assert_eq!(proxy.get(SITE, "/").await.status, 200, "who waited is served");
        let waited = proxy.metrics().await.sum("tidegate_flood_delays_total", &[]);
        assert!(waited > nth as f64, "{what}: {waited} connections waited");
    }
}

#[tokio::test]
async fn an_answer_that_was_read_whole_holds_no_backend_while_its_client_takes_nothing() {
    let origin = Origin::answering(|_| Answer::ok("x".repeat(2_000))).await;
    let proxy = Proxy::builder().set("server.workers", "1").site(SITE, &origin.backends()).start().await;
    let mut wire = raw_h2(&proxy).await;
    wire.send(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    for n in 0..20 {
        wire.send(get(2 * n + 1)).await;
        within("the head of an answer", async { while next(&mut wire).await.unwrap().0 != HEADERS {} }).await;
    }
    assert_eq!((origin.count(), origin.accepted()), (20, 1), "one connection carried them all");
    // Then the windows are opened, and each stream gets its own.
    let open = |n: u32| frame(WINDOW_UPDATE, 0, 2 * n + 1, &4_000u32.to_be_bytes());
    wire.send((0..20).flat_map(open).collect::<Vec<u8>>()).await;
    let mut taken = 0;
    within("the answers", async {
        while taken < 20 * 2_000 {
            let (kind, payload) = next(&mut wire).await.unwrap();
            taken += if kind == DATA { payload.len() } else { 0 };
        }
    })
    .await;
    assert!(proxy.records(20).await.iter().all(|record| record["outcome"] == "OK"));
}

#[tokio::test]
async fn requests_in_flight_end_with_the_flood_that_came_beside_them() {
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
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = raw_h2(&proxy).await;
    wire.send(get(1)).await;
    origin.arrived(1).await;
    let _ = wire.try_send(frame(PING, 0, 0, &[0; 8]).repeat(300)).await;
    let (code, _) = goaway(wire, "the goodbye").await;
    assert_eq!(code, ENHANCE_YOUR_CALM);
    assert_eq!(proxy.record_with("CLIENT-FLOOD").await["status"], 499);
    gate.open();
}

#[tokio::test]
async fn honest_clients_stay_below_every_budget() {
    let (_origin, proxy) = shop().await;
    let mut h2 = proxy.h2(SITE).await;
    // A browser that goes to another page: a hundred streams are cancelled at once.
    let mut cancelled = JoinSet::new();
    for _ in 0..100 {
        let (mut sender, request) = (h2.sender.clone(), h2.request("GET", "/").body(empty()).unwrap());
        cancelled.spawn(async move {
            drop(tokio::time::timeout(Duration::ZERO, sender.send_request(request)).await)
        });
    }
    cancelled.join_all().await;
    for _ in 0..50 {
        assert_eq!(h2.get("/").await.status, 200);
    }
    assert_eq!(proxy.metrics().await.sum("tidegate_floods_total", &[]), 0.0);
}

#[tokio::test]
async fn a_client_that_leaves_stream_after_stream_unread_loses_its_connection() {
    let origin = Origin::answering(|_| Answer::ok("x".repeat(100_000))).await;
    let proxy = Proxy::builder()
        .set("server.timeouts.write", "\"300ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut wire = raw_h2(&proxy).await;
    // SETTINGS_INITIAL_WINDOW_SIZE 0: nothing of a body may be sent.
    wire.send(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    wire.send((0..20).flat_map(|n| get(2 * n + 1)).collect::<Vec<u8>>()).await;
    let (code, said) = goaway(wire, "the goodbye").await;
    assert!(code == ENHANCE_YOUR_CALM && said.contains("unread"), "{code} {said}");
    assert_eq!(proxy.metrics().await.sum("tidegate_floods_total", &[("reason", "stalls")]), 1.0);
}

#[tokio::test]
async fn a_connection_that_is_old_is_closed_gracefully() {
    let origin = Origin::saying("ok").await;
    let proxy =
        Proxy::builder().set("server.timeouts.age", "\"1ms\"").site(SITE, &origin.backends()).start().await;
    let mut wire = proxy.wire(SITE).await;
    // The handshake alone takes longer, but the clock of connections is coarse: one request or two.
    let mut last = wire.get(SITE, "/").await;
    if last.field("connection") != Some("close") {
        tokio::time::sleep(Duration::from_millis(250)).await;
        last = wire.get(SITE, "/").await;
    }
    assert_eq!((last.status, last.field("connection")), (200, Some("close")));
    wire.closed().await;
}

#[tokio::test]
async fn an_upload_that_trickles_is_given_up_also_if_it_calls_itself_grpc() {
    let origin = Origin::scripted(|mut x| async move {
        x.read_body().await.ok()?;
        x.answer(Answer::ok("whole")).await.ok()?;
        Some(x)
    })
    .await;
    let proxy = Proxy::builder()
        .set("server.timeouts.body", "\"1s\"")
        .set("server.limits.body_rate", "\"100B\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    for (kind, expected) in [("text/plain", 408), ("application/grpc+proto", 408)] {
        let mut wire = proxy.wire(SITE).await;
        wire.send(format!(
            "POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Type: {kind}\r\nContent-Length: 12\r\n\r\n"
        ))
        .await;
        // The pace is what is tested: slower than the rate, faster than the deadline.
        let mut pace = tokio::time::interval(Duration::from_millis(300));
        let reply = within("the end of the trickle", async {
            for _ in 0..12 {
                pace.tick().await;
                if wire.try_send("x").await.is_err() {
                    break;
                }
            }
            wire.reply_to("POST").await
        })
        .await;
        assert_eq!(reply.status, expected, "{kind}");
    }
}

#[tokio::test]
async fn the_end_of_a_small_answer_is_not_kept_for_whoever_takes_a_byte_of_it() {
    let origin = Origin::answering(|_| Answer::ok("x".repeat(10_000))).await;
    let proxy = Proxy::builder()
        .set("server.timeouts.write", "\"300ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut wire = raw_h2(&proxy).await;
    // One byte of each answer: the library takes over the whole of it, and nobody would be left to give it up.
    wire.send(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 1])).await;
    wire.send((0..60).flat_map(|n| get(2 * n + 1)).collect::<Vec<u8>>()).await;
    let (code, said) = goaway(wire, "the goodbye").await;
    assert!(code == ENHANCE_YOUR_CALM && said.contains("unread"), "{code} {said}");
    let whole = proxy.records(60).await.iter().filter(|record| record["outcome"] == "OK").count();
    assert!(whole <= 256 * 1024 / 10_000 + 2, "{whole} were kept without a deadline");
    assert_eq!(proxy.status().await["endpoints"][0]["failures"], 0, "no fault of the backend");
}

#[tokio::test]
async fn a_small_answer_that_nobody_takes_is_no_answer_that_was_served() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.timeouts.write", "\"300ms\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut wire = raw_h2(&proxy).await;
    wire.send(frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await;
    wire.send(get(1)).await;
    assert_eq!(proxy.record_with("CLIENT-STALLED").await["bytes_out"], 2);
    assert_eq!(proxy.status().await["endpoints"][0]["failures"], 0, "no fault of the backend");
}

#[tokio::test]
async fn an_honest_client_with_a_small_window_gets_every_byte() {
    let body: String = (0..200_000u32).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    let expected = body.clone();
    let origin = Origin::answering(move |r| match r.target() {
        "/small" => Answer::ok(&body[..9_000]),
        _ => Answer::ok(&body),
    })
    .await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let config = client_config(&proxy.ca_pem(), &["h2"], &[&TLS13]);
    let wire = connect(config, proxy.https(), SITE).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1_000);
    let (sender, connection) = within("h2", builder.handshake::<_, bytes::Bytes>(wire.io)).await.unwrap();
    tokio::spawn(connection);
    // All at once, so that much is offered and little written.
    let mut asked = JoinSet::new();
    for n in 0..60 {
        let (mut sender, expected) = (sender.clone(), expected.clone());
        let (path, length) = if n % 3 == 0 { ("/", expected.len()) } else { ("/small", 9_000) };
        asked.spawn(async move {
            let request = http::Request::get(format!("https://{SITE}{path}")).body(()).unwrap();
            let (response, _) = sender.send_request(request, true).unwrap();
            let mut incoming = response.await.unwrap().into_body();
            let mut all = Vec::new();
            while let Some(piece) = incoming.data().await {
                let piece = piece.unwrap();
                incoming.flow_control().release_capacity(piece.len()).unwrap();
                all.extend(piece);
            }
            assert_eq!(all, &expected.as_bytes()[..length], "{path}");
        });
    }
    within("all answers", async {
        while let Some(done) = asked.join_next().await {
            done.unwrap()
        }
    })
    .await;
    assert_eq!(proxy.metrics().await.sum("tidegate_floods_total", &[]), 0.0);
}
