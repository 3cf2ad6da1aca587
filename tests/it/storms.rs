//! Storms: floods that last. What each costs in memory, and how long an honest client waits beside it.
//!
//! They last two seconds each. `scripts/bench-storms` makes them thirty, with a release build, and prints the table; only
//! what no honest machine misses is asserted here, and nothing about time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustls::version::TLS13;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::floods::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, SETTINGS, SITE, get, head, post,
};
use crate::harness::tls::{client_config, connect};
use crate::harness::{Answer, Origin, Proxy, ProxyBuilder, tool, wait_for, within_for};
use crate::limits::{frame, raw_h2};

/// KiB that a connection may hold whose client does not read its answer of a megabyte: the kernel takes no more than 256 KiB
/// of it beside these, so that this is all there is.
const SLOW_READ_KIB_MAX: u64 = 384;
/// Beyond what is stated, a worker may not grow by more.
const GROWTH_MIB_MAX: u64 = 64;
const ATTACKERS: usize = 8;
/// The honest client asks as often as this, so that it is no flood itself.
const PACE: Duration = Duration::from_millis(5);
/// Connections that only stand there, and what each may cost.
const IDLE: usize = 10_000;
const IDLE_KIB_MAX: u64 = 100;

fn storm_time() -> Duration {
    let seconds = std::env::var("TIDEGATE_FLOOD_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// What attackers share.
#[derive(Clone)]
struct Attack {
    proxy: Arc<Proxy>,
    over: Arc<AtomicBool>,
    connections: Arc<AtomicUsize>,
}

impl Attack {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// One more connection was made.
    fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }
}

/// Attackers at work for a while, an honest client beside them, and what it cost.
async fn storm<F: Future<Output = ()> + Send + 'static>(
    what: &str,
    proxy: &Arc<Proxy>,
    attack: impl Fn(Attack) -> F + Send + 'static,
) {
    let mut honest = proxy.h2(SITE).await;
    assert_eq!(honest.get("/").await.status, 200);
    let before = tool::rss_kib(proxy.pid());
    let shared = Attack { proxy: proxy.clone(), over: Arc::default(), connections: Arc::default() };
    let attackers = shared.clone();
    // On a thread of its own, so that it is the proxy that the honest client waits for.
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut tasks = JoinSet::new();
            for _ in 0..ATTACKERS {
                tasks.spawn(attack(attackers.clone()));
            }
            within_for(storm_time() + Duration::from_secs(60), "the attackers", tasks.join_all()).await;
        });
    });
    let (start, mut peak, mut took) = (Instant::now(), before, Vec::new());
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while start.elapsed() < storm_time() {
        pace.tick().await;
        let asked = Instant::now();
        let reply = within_for(Duration::from_secs(60), what, honest.get("/")).await;
        assert_eq!(reply.status, 200, "{what}: the honest client");
        took.push(asked.elapsed());
        peak = peak.max(tool::rss_kib(proxy.pid()));
    }
    shared.over.store(true, Ordering::Relaxed);
    tokio::task::spawn_blocking(move || thread.join().expect("the attackers")).await.unwrap();
    wait_for("the attackers' connections to end", || async {
        let open = proxy.status().await["connections"].as_u64().expect("a number of connections");
        (open <= 8).then_some(())
    })
    .await;
    let after = tool::rss_kib(proxy.pid());
    took.sort();
    let [p50, p99] = [50, 99].map(|part| took[took.len() * part / 100].as_secs_f64() * 1e3);
    let [before_mib, peak_mib, after_mib] = [before, peak, after].map(|kib| kib as f64 / 1024.0);
    tool::report(&format!(
        "| {what} | {} | {before_mib:.1} | {peak_mib:.1} | {after_mib:.1} | {} | {p50:.2} | {p99:.2} |",
        shared.connections.load(Ordering::Relaxed),
        took.len()
    ));
    let growth = peak.saturating_sub(before) / 1024;
    let most = match what {
        "slow read" => shared.connections.load(Ordering::Relaxed) as u64 * SLOW_READ_KIB_MAX / 1024,
        what if what.starts_with("idle") => IDLE as u64 * IDLE_KIB_MAX / 1024,
        _ => GROWTH_MIB_MAX,
    };
    assert!(growth < most, "{what}: {growth} MiB more");
}

async fn one_worker(with: impl Fn(ProxyBuilder) -> ProxyBuilder) -> Arc<Proxy> {
    let origin = Origin::answering(|r| match r.target() {
        "/large" => Answer::ok("x".repeat(1 << 20)),
        _ => Answer::ok("ok"),
    })
    .await;
    let builder = Proxy::builder().set("server.workers", "1").set("server.max_requests_per_connection", "0");
    let proxy = with(builder.site(SITE, &origin.backends())).start().await;
    // The origin lives as long as the test's runtime.
    std::mem::forget(origin);
    Arc::new(proxy)
}

/// Connects again and again, and each time sends these bytes over and over until the connection is closed.
async fn pour(attack: Attack, first: Vec<u8>, bytes: Vec<u8>) {
    while !attack.is_over() {
        let Ok(mut wire) = tokio::time::timeout(Duration::from_secs(20), raw_h2(&attack.proxy)).await else {
            continue;
        };
        attack.connected();
        if wire.io.write_all(&first).await.is_err() {
            continue;
        }
        let (mut from, mut to) = tokio::io::split(wire.io);
        // Whoever floods need not read; this one does, so that it can go on for long.
        let reading = tokio::spawn(async move { tokio::io::copy(&mut from, &mut tokio::io::sink()).await });
        while !attack.is_over() {
            let sent = tokio::time::timeout(Duration::from_secs(5), to.write_all(&bytes)).await;
            if !matches!(sent, Ok(Ok(()))) {
                break;
            }
        }
        reading.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_of_frames_leave_the_honest_client_served_and_memory_flat() {
    let proxy = one_worker(|builder| builder).await;
    storm("nothing", &proxy, |_| async {}).await;
    let resets: Vec<u8> = (0..2_000)
        .flat_map(|n| [get(2 * n + 1), frame(RESET, 0, 2 * n + 1, &8u32.to_be_bytes())].concat())
        .collect();
    // Well-formed fields without end: what is malformed ends with its first frame.
    let fields = frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'].repeat(3_200)).repeat(20);
    let big = [frame(HEADERS, 0, 1, &head(0x82)), fields].concat();
    let storms: [(&str, Vec<u8>, Vec<u8>); 6] = [
        ("rapid reset", vec![], resets.clone()),
        ("CONTINUATION", big, frame(CONTINUATION, 0, 1, &[0; 64])),
        ("PING", vec![], frame(PING, 0, 0, &[0; 8]).repeat(500)),
        ("SETTINGS", vec![], frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 255, 255]).repeat(500)),
        ("tiny DATA", post(1), frame(DATA, 0, 1, b"x").repeat(500)),
        ("empty DATA", post(1), frame(DATA, 0, 1, &[]).repeat(500)),
    ];
    for (what, first, bytes) in storms {
        storm(what, &proxy, move |attack| pour(attack, first.clone(), bytes.clone())).await;
    }
    let metrics = proxy.metrics().await;
    let floods = metrics.sum("tidegate_floods_total", &[]);
    assert!(floods >= 4.0, "{floods}");
    assert!(metrics.sum("tidegate_flood_delays_total", &[]) >= 4.0, "who floods waits");
    // Attackers that each come from another address wait for nothing.
    let elsewhere = one_worker(|builder| builder.set("server.limits.flood_delay", "\"0s\"")).await;
    storm("rapid reset, no delay", &elsewhere, move |attack| pour(attack, vec![], resets.clone())).await;
    assert_eq!(elsewhere.metrics().await.sum("tidegate_flood_delays_total", &[]), 0.0);
}

/// A request for a mebibyte over HTTP/2.
fn large(stream: u32) -> Vec<u8> {
    let mut head = vec![0x82, 0x87, 0x04, 6];
    head.extend(b"/large");
    head.extend([0x41, SITE.len() as u8]);
    head.extend(SITE.as_bytes());
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &head)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storms_of_slowness_leave_the_honest_client_served_and_memory_bounded() {
    let proxy = one_worker(|builder| builder).await;
    // A thousand streams of a mebibyte each, over the attackers, and windows that let nothing or next to nothing through.
    for (what, window) in [("window stall", 0), ("one-byte windows", 1)] {
        let stalled = [
            frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, window]),
            (0..125).flat_map(|n| large(2 * n + 1)).collect::<Vec<u8>>(),
        ]
        .concat();
        storm(what, &proxy, move |attack| hold(attack, "h2", stalled.clone(), vec![])).await;
    }
    let head = b"GET / HTTP/1.1\r\nHost: shop.test\r\n".to_vec();
    let body = format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 1000000\r\n\r\n").into_bytes();
    let read = format!("GET /large HTTP/1.1\r\nHost: {SITE}\r\n\r\n").into_bytes();
    for (what, first, drip) in
        [("slow head", head, b"X".to_vec()), ("slow body", body, b"x".to_vec()), ("slow read", read, vec![])]
    {
        storm(what, &proxy, move |attack| hold(attack, "http/1.1", first.clone(), drip.clone())).await;
    }
}

/// Opens fifty connections, says the beginning on each and then next to nothing.
async fn hold(attack: Attack, alpn: &str, first: Vec<u8>, drip: Vec<u8>) {
    let mut held = Vec::new();
    for _ in 0..50 {
        if attack.is_over() {
            return;
        }
        let opened = match alpn {
            "h2" => Ok(raw_h2(&attack.proxy).await),
            _ => attack.proxy.try_wire(SITE).await,
        };
        let Ok(mut wire) = opened else { continue };
        attack.connected();
        let _ = wire.try_send(&first).await;
        held.push(wire);
        // One connection with its share of a thousand streams is what is meant, not fifty.
        if alpn == "h2" {
            break;
        }
    }
    while !attack.is_over() {
        for wire in &mut held {
            let _ = wire.try_send(&drip).await;
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_handshakes_leaves_the_honest_client_served() {
    let proxy = one_worker(|builder| builder).await;
    storm("handshakes", &proxy, |attack| async move {
        while !attack.is_over() {
            // Complete ones, and ones that are left in the middle.
            drop(attack.proxy.try_wire(SITE).await);
            attack.connected();
            if let Ok(mut tcp) = TcpStream::connect(attack.proxy.https()).await {
                attack.connected();
                let _ = tcp.write_all(&[22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3]).await;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_that_stand_there_leave_the_honest_client_served() {
    let limit = tool::raise_file_limit();
    if limit < IDLE as u64 + 2_000 {
        return tool::skip(&format!(
            "only {limit} files may be open (ulimit -Hn), {} are needed",
            IDLE + 2_000
        ));
    }
    let proxy = one_worker(|builder| {
        builder.set("server.max_connections", "12000").set("server.max_connections_per_client", "0")
    })
    .await;
    let config = client_config(&proxy.ca_pem(), &["http/1.1"], &[&TLS13]);
    storm("idle connections", &proxy, move |attack| {
        let config = config.clone();
        async move {
            let mut held = Vec::new();
            while held.len() < IDLE / ATTACKERS && !attack.is_over() {
                let Ok(mut wire) = connect(config.clone(), attack.proxy.https(), SITE).await else {
                    continue;
                };
                if wire.get(SITE, "/").await.status == 200 {
                    attack.connected();
                    held.push(wire);
                }
            }
            while !attack.is_over() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    })
    .await;
}
