//! Floods: what a hostile client may cost, and that an honest one beside it is served.
//!
//! The storms last two seconds each. `TIDEGATE_FLOOD_SECONDS=30` makes them as long as one likes; memory and the honest
//! client's latency are reported, and only what no honest machine misses is asserted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::harness::client::empty;
use crate::harness::{Answer, Gate, Origin, Proxy, Wire, tool, within, within_for};
use crate::limits::{frame, raw_h2};

const SITE: &str = "shop.test";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `:method`, `:scheme https`, `:path /`, `:authority shop.test`; 0x82 is GET, 0x83 POST.
fn head(method: u8) -> Vec<u8> {
    let mut head = vec![method, 0x87, 0x84, 0x41, SITE.len() as u8];
    head.extend(SITE.as_bytes());
    head
}

fn get(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &head(0x82))
}

fn post(stream: u32) -> Vec<u8> {
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

#[tokio::test]
async fn each_flood_of_frames_ends_its_connection_with_a_reason() {
    let (_origin, proxy) = shop().await;
    let resets = |n: u32| [get(2 * n + 1), frame(RESET, 0, 2 * n + 1, &8u32.to_be_bytes())].concat();
    let floods: [(&str, Vec<u8>, &str); 7] = [
        ("resets", (0..600).flat_map(resets).collect(), "reset"),
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
async fn an_upload_that_trickles_is_given_up_and_grpc_is_not() {
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
    for (kind, expected) in [("text/plain", 408), ("application/grpc+proto", 200)] {
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

// ---- storms

fn storm_time() -> Duration {
    let seconds = std::env::var("TIDEGATE_FLOOD_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// Beyond what is stated, a worker may not grow by more.
const GROWTH_MIB_MAX: u64 = 64;
const ATTACKERS: usize = 8;

/// Attackers at work for a while, an honest client beside them, and what it cost.
async fn storm<F: Future<Output = ()> + Send + 'static>(
    what: &str,
    proxy: &Arc<Proxy>,
    attack: impl Fn(Arc<Proxy>, Arc<AtomicBool>) -> F,
) {
    let mut honest = proxy.h2(SITE).await;
    assert_eq!(honest.get("/").await.status, 200);
    let before = tool::rss_kib(proxy.pid());
    let over = Arc::new(AtomicBool::new(false));
    let mut attackers = JoinSet::new();
    for _ in 0..ATTACKERS {
        attackers.spawn(attack(proxy.clone(), over.clone()));
    }
    let (start, mut peak, mut took) = (Instant::now(), before, Vec::new());
    while start.elapsed() < storm_time() {
        let asked = Instant::now();
        let reply = within_for(Duration::from_secs(60), what, honest.get("/")).await;
        assert_eq!(reply.status, 200, "{what}: the honest client");
        took.push(asked.elapsed());
        peak = peak.max(tool::rss_kib(proxy.pid()));
    }
    over.store(true, Ordering::Relaxed);
    within_for(Duration::from_secs(60), what, async { while attackers.join_next().await.is_some() {} }).await;
    took.sort();
    let p99 = took[took.len() * 99 / 100];
    let after = tool::rss_kib(proxy.pid());
    tool::report(&format!(
        "{what}: memory {before} KiB before, {peak} at its peak, {after} after; {} honest requests, p99 {p99:.1?}",
        took.len()
    ));
    let growth = peak.saturating_sub(before) / 1024;
    assert!(growth < GROWTH_MIB_MAX, "{what}: {growth} MiB more");
}

/// Connects again and again, and each time sends these bytes over and over until the connection is closed.
async fn pour(proxy: Arc<Proxy>, over: Arc<AtomicBool>, first: Vec<u8>, bytes: Vec<u8>) {
    while !over.load(Ordering::Relaxed) {
        let Ok(mut wire) = tokio::time::timeout(Duration::from_secs(20), raw_h2(&proxy)).await else {
            continue;
        };
        if wire.io.write_all(&first).await.is_err() {
            continue;
        }
        let (mut from, mut to) = tokio::io::split(wire.io);
        // Whoever floods need not read; this one does, so that it can go on for long.
        let reading = tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
        while !over.load(Ordering::Relaxed) {
            let sent = tokio::time::timeout(Duration::from_secs(5), to.write_all(&bytes)).await;
            if !matches!(sent, Ok(Ok(()))) {
                break;
            }
        }
        reading.abort();
    }
}

async fn one_worker() -> Arc<Proxy> {
    let origin = Origin::answering(|r| match r.target() {
        "/large" => Answer::ok("x".repeat(1 << 20)),
        _ => Answer::ok("ok"),
    })
    .await;
    let proxy = Proxy::builder().set("server.workers", "1").site(SITE, &origin.backends()).start().await;
    // The origin lives as long as the test's runtime.
    std::mem::forget(origin);
    Arc::new(proxy)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_of_frames_leave_the_honest_client_served_and_memory_flat() {
    let proxy = one_worker().await;
    let resets: Vec<u8> = (0..2_000)
        .flat_map(|n| [get(2 * n + 1), frame(RESET, 0, 2 * n + 1, &8u32.to_be_bytes())].concat())
        .collect();
    let big =
        [frame(HEADERS, 0, 1, &head(0x82)), frame(CONTINUATION, 0, 1, &[0x40; 16_000]).repeat(20)].concat();
    let storms: [(&str, Vec<u8>, Vec<u8>); 6] = [
        ("rapid reset", vec![], resets),
        ("CONTINUATION", big, frame(CONTINUATION, 0, 1, &[0; 64])),
        ("PING", vec![], frame(PING, 0, 0, &[0; 8]).repeat(500)),
        ("SETTINGS", vec![], frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(500)),
        ("tiny DATA", post(1), frame(DATA, 0, 1, b"x").repeat(500)),
        ("empty DATA", post(1), frame(DATA, 0, 1, &[]).repeat(500)),
    ];
    for (what, first, bytes) in storms {
        storm(what, &proxy, |proxy, over| pour(proxy, over, first.clone(), bytes.clone())).await;
    }
    let floods = proxy.metrics().await.sum("tidegate_floods_total", &[]);
    assert!(floods >= 4.0, "{floods}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_of_slowness_leave_the_honest_client_served_and_memory_bounded() {
    let proxy = one_worker().await;
    // A thousand streams of a mebibyte each, and a window that lets nothing through.
    let large = |stream: u32| {
        let mut head = vec![0x82, 0x87, 0x04, 6];
        head.extend(b"/large");
        head.extend([0x41, SITE.len() as u8]);
        head.extend(SITE.as_bytes());
        frame(HEADERS, END_STREAM | END_HEADERS, stream, &head)
    };
    let stalled = [
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]),
        (0..125).flat_map(|n| large(2 * n + 1)).collect::<Vec<u8>>(),
    ]
    .concat();
    storm("window stall", &proxy, |proxy, over| hold(proxy, over, "h2", stalled.clone(), vec![])).await;
    let head = b"GET / HTTP/1.1\r\nHost: shop.test\r\n".to_vec();
    storm("slow head", &proxy, |proxy, over| hold(proxy, over, "http/1.1", head.clone(), b"X".to_vec()))
        .await;
    let body = format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 1000000\r\n\r\n").into_bytes();
    storm("slow body", &proxy, |proxy, over| hold(proxy, over, "http/1.1", body.clone(), b"x".to_vec()))
        .await;
    let read = format!("GET /large HTTP/1.1\r\nHost: {SITE}\r\n\r\n").into_bytes();
    storm("slow read", &proxy, |proxy, over| hold(proxy, over, "http/1.1", read.clone(), vec![])).await;
}

/// Opens fifty connections, says the beginning on each and then next to nothing.
async fn hold(proxy: Arc<Proxy>, over: Arc<AtomicBool>, alpn: &str, first: Vec<u8>, drip: Vec<u8>) {
    let mut held = Vec::new();
    for _ in 0..50 {
        if over.load(Ordering::Relaxed) {
            return;
        }
        let opened = match alpn {
            "h2" => Ok(raw_h2(&proxy).await),
            _ => proxy.try_wire(SITE).await,
        };
        let Ok(mut wire) = opened else { continue };
        let _ = wire.try_send(&first).await;
        held.push(wire);
        // One connection with a thousand stalled streams is what is meant, not fifty.
        if alpn == "h2" {
            break;
        }
    }
    while !over.load(Ordering::Relaxed) {
        for wire in &mut held {
            let _ = wire.try_send(&drip).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_handshakes_leaves_the_honest_client_served() {
    let proxy = one_worker().await;
    storm("handshakes", &proxy, |proxy, over| async move {
        while !over.load(Ordering::Relaxed) {
            // Complete ones, and ones that are left in the middle.
            drop(proxy.try_wire(SITE).await);
            if let Ok(mut tcp) = TcpStream::connect(proxy.https()).await {
                let _ = tcp.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await;
            }
        }
    })
    .await;
}
