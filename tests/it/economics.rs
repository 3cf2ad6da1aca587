//! What a connection may cost: caps of sites, handshakes in flight, descriptors. Whoever is over is turned away early,
//! with a reason in the metrics and a line in the log, and nobody inside notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use rustls::version::TLS13;
use tokio::net::TcpStream;

use crate::harness::client::empty;
use crate::harness::tls::{client_config, connect};
use crate::harness::{Answer, Gate, H2, Origin, Proxy, Wire, tool, wait_for, wait_until, within};

const SITE: &str = "shop.test";
const REFUSED: &str = "tidegate_connections_refused_total";

async fn sum(proxy: &Proxy, name: &str, label: (&str, &str)) -> f64 {
    proxy.metrics().await.sum(name, &[label])
}

// ---- caps of a site

#[tokio::test]
async fn a_site_has_only_its_share_of_connections_and_takes_no_other_sites() {
    let origin = Origin::saying("ok").await;
    let capped = |max: u32| format!("{}\nmax_connections = {max}", origin.backends());
    let proxy = Proxy::builder().site(SITE, &capped(2)).site("other.test", &origin.backends()).start().await;
    let mut first = proxy.wire(SITE).await;
    let second = proxy.wire(SITE).await;
    assert!(proxy.try_wire(SITE).await.is_err(), "a third connection was let in");
    assert_eq!(proxy.get("other.test", "/").await.status, 200);
    assert_eq!(first.get(SITE, "/").await.status, 200, "those inside stay");
    assert_eq!(sum(&proxy, REFUSED, ("reason", "site-cap")).await, 1.0);
    assert_eq!(sum(&proxy, "tidegate_site_connections_active", ("site", SITE)).await, 2.0);
    assert_eq!(proxy.site(SITE).await["connections"], 2);
    let log = proxy.stderr();
    assert!(log.contains("`max_connections` allows") && log.contains(SITE), "{log}");
    drop(second);
    let _third = wait_for("the freed place", || async { proxy.try_wire(SITE).await.ok() }).await;
    // A reload changes the cap for new connections; those that are open count already.
    proxy.write_site(SITE, &capped(3));
    proxy.reload().await;
    let _fourth = proxy.wire(SITE).await;
    assert!(proxy.try_wire(SITE).await.is_err());
    assert_eq!(first.get(SITE, "/").await.status, 200);
}

// ---- handshakes in flight

#[tokio::test]
async fn silent_handshakes_give_way_and_lock_nobody_out() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.limits.handshakes", "16")
        .set("server.timeouts.handshake", "\"1h\"")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut beside = proxy.wire(SITE).await;
    let mut silent = Vec::new();
    for number in 0..60 {
        silent.push(TcpStream::connect(proxy.https()).await.unwrap());
        if number % 10 == 9 {
            // The silent ones have a moment in which the newest is refused; then the oldest of them give way.
            wait_for(&format!("an answer after {number} silent ones"), || async {
                (proxy.try_get(SITE, "/").await.ok()?.status == 200).then_some(())
            })
            .await;
            assert_eq!(beside.get(SITE, "/").await.status, 200);
        }
    }
    let gave_way = ("tidegate_tls_handshake_failures_total", "gave-way");
    wait_for("all but sixteen to be closed", || async {
        let (old, new) = (
            sum(&proxy, gave_way.0, ("reason", gave_way.1)).await,
            sum(&proxy, REFUSED, ("reason", "handshake-queue")).await,
        );
        (old >= 1.0 && old + new >= 44.0).then_some(())
    })
    .await;
    wait_for("the gauge", || async {
        let waiting = sum(&proxy, "tidegate_tls_handshakes_active", ("waiting", "client")).await;
        (14.0..=16.0).contains(&waiting).then_some(())
    })
    .await;
    assert!(proxy.stderr().contains("the oldest gave way"), "{}", proxy.stderr());
}

/// Clients of the flood below, and how many handshakes the worker holds.
const FLOOD: usize = 100;
const HANDSHAKES: usize = 16;

/// Full handshakes as fast as they go, beside a client that asks for pages: it is answered throughout.
#[tokio::test]
async fn a_flood_of_handshakes_leaves_open_connections_their_share() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.limits.handshakes", &HANDSHAKES.to_string())
        .set("server.max_connections_per_client", "0")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let mut beside = proxy.wire(SITE).await;
    let stop = Gate::default();
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    // On a thread of its own: the flood must not slow down the client that is watched.
    let thread = {
        let (address, ca, stop, counts) = (proxy.https(), proxy.ca_pem(), stop.clone(), counts.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut flood = tokio::task::JoinSet::new();
                for _ in 0..FLOOD {
                    let (ca, counts) = (ca.clone(), counts.clone());
                    flood.spawn(async move {
                        loop {
                            // A configuration of its own has no ticket to resume with.
                            let config = client_config(&ca, &["http/1.1"], &[&TLS13]);
                            let refused = usize::from(connect(config, address, SITE).await.is_err());
                            counts[refused].fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                stop.pass().await;
            });
        })
    };
    wait_until("the flood", || counts.iter().all(|count| count.load(Ordering::Relaxed) > 20)).await;
    let mut times = Vec::new();
    while times.len() < 100 {
        let began = Instant::now();
        assert_eq!(beside.get(SITE, "/").await.status, 200);
        times.push(began.elapsed());
    }
    stop.open();
    tokio::task::spawn_blocking(move || thread.join().unwrap()).await.unwrap();
    times.sort();
    let [done, refused] = [0, 1].map(|at: usize| counts[at].load(Ordering::Relaxed));
    tool::report(&format!(
        "beside {done} handshakes done and {refused} refused: median {:?}, p99 {:?}, {} KiB",
        times[50],
        times[98],
        tool::rss_kib(proxy.pid())
    ));
    let shed = sum(&proxy, REFUSED, ("reason", "handshake-queue")).await
        + sum(&proxy, "tidegate_tls_handshake_failures_total", ("reason", "gave-way")).await;
    assert!(shed > 0.0 && proxy.stderr().contains("`handshakes` in [server.limits]"), "{}", proxy.stderr());
    assert_eq!(proxy.get(SITE, "/").await.status, 200, "afterwards all is as before");
}

// ---- descriptors

/// Files that the process under test may have open.
const FILES: u64 = 200;

#[tokio::test]
async fn descriptors_never_run_out_and_the_control_plane_keeps_its_reserve() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.max_connections_per_client", "0")
        .set("server.timeouts.handshake", "\"1h\"")
        .files(FILES)
        .site(SITE, &format!("{}\nplain_http = true", origin.backends()))
        .start()
        .await;
    let mut beside = proxy.wire(SITE).await;
    let mut held = Vec::new();
    for _ in 0..(2 * FILES) {
        held.push(TcpStream::connect(proxy.http()).await.unwrap());
    }
    let metrics = wait_for("connections to be refused", || async {
        let metrics = proxy.metrics().await;
        let refused = metrics.sum(REFUSED, &[]);
        let open = metrics.sum("tidegate_connections_active", &[]);
        (refused + open >= 2.0 * FILES as f64).then_some(metrics)
    })
    .await;
    assert_eq!(metrics.sum(REFUSED, &[("reason", "descriptors")]), 0.0, "accept never failed");
    assert!(metrics.sum("process_open_fds", &[]) < FILES as f64, "{}", metrics.0);
    assert_eq!(metrics.sum("process_max_fds", &[]), FILES as f64);
    let most = metrics.sum("tidegate_descriptors", &[("kind", "max")]);
    assert!(metrics.sum("tidegate_descriptors", &[("kind", "used")]) <= most && most < FILES as f64);
    // The control plane answers, a reload reads its files, a backend is reached.
    assert_eq!(proxy.status().await["sites"][0]["name"], SITE);
    proxy.write_site(SITE, &format!("{}\nplain_http = true\nmax_body = \"1MiB\"", origin.backends()));
    assert_eq!(proxy.reload().await["updated"][0], SITE);
    assert_eq!(beside.get(SITE, "/").await.status, 200);
    assert!(proxy.stderr().contains("`max_connections` in [server] allows"), "{}", proxy.stderr());
    drop(held);
    wait_for("new clients", || async { proxy.try_get(SITE, "/").await.ok() }).await;
}

#[tokio::test]
async fn without_a_descriptor_for_a_backend_the_request_is_told_so_and_the_next_one_is_served() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let held = held.clone();
        async move {
            held.pass().await;
            x.answer(Answer::ok("ok").close()).await.ok()?;
            Some(x)
        }
    })
    .await;
    let proxy = Proxy::builder()
        .set("server.limits.h2_streams", "1000")
        // So that descriptors run out first.
        .set("server.shares.in_flight", "100000")
        .files(FILES)
        .site(SITE, &origin.backends())
        .start()
        .await;
    let h2 = proxy.h2(SITE).await;
    let mut asks = tokio::task::JoinSet::new();
    for _ in 0..(2 * FILES) {
        let (mut sender, request) = (h2.sender.clone(), h2.request("GET", "/").body(empty()).unwrap());
        asks.spawn(async move {
            sender.ready().await.unwrap();
            sender.send_request(request).await.unwrap().status().as_u16()
        });
    }
    let refused = wait_for("requests without a descriptor", || async {
        let refused = sum(&proxy, "tidegate_outcomes_total", ("outcome", "NO-DESCRIPTOR")).await;
        (refused > 0.0 && refused + origin.count() as f64 >= 2.0 * FILES as f64).then_some(refused)
    })
    .await;
    assert!(proxy.metrics().await.sum("process_open_fds", &[]) < FILES as f64);
    gate.open();
    let statuses = within("all answers", asks.join_all()).await;
    assert_eq!(statuses.iter().filter(|status| **status == 503).count() as f64, refused);
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), origin.count());
    assert!(proxy.stderr().contains("none is left for a backend"), "{}", proxy.stderr());
    assert_eq!(proxy.get(SITE, "/").await.status, 200);
    assert_eq!(
        sum(&proxy, "tidegate_endpoint_up", ("service", &format!("{SITE}//"))).await,
        1.0,
        "it was not the endpoint's fault"
    );
}

/// The limit is lowered from outside, below what is in use: nothing of the arithmetic holds any more.
#[tokio::test]
async fn when_the_system_gives_no_descriptor_accepting_rests_and_goes_on() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &format!("{}\nplain_http = true", origin.backends())).await;
    let mut beside = proxy.plain().await;
    assert_eq!(beside.get(SITE, "/").await.status, 200);
    let pid = Pid::from_raw(proxy.pid() as i32);
    let most = getrlimit(Resource::Nofile).maximum;
    let before = prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum: most }).expect("prlimit");
    let began = Instant::now();
    let waiting = TcpStream::connect(proxy.http()).await.unwrap();
    wait_until("the log to say so", || proxy.stderr().contains("the system gives no more file descriptors"))
        .await;
    // What has its descriptor already is served on.
    for _ in 0..10 {
        assert_eq!(beside.get(SITE, "/").await.status, 200);
    }
    let rested = began.elapsed();
    prlimit(pid, Resource::Nofile, before).expect("prlimit");
    let mut waiting = Wire::over(waiting);
    assert_eq!(waiting.get(SITE, "/").await.status, 200, "who waited is served");
    // One try in a tenth of a second; a loop that does not rest makes a million.
    let tries = sum(&proxy, REFUSED, ("reason", "descriptors")).await;
    let most = 2.0 + rested.as_secs_f64().max(1.0) / 0.1 * 2.0;
    assert!((1.0..=most).contains(&tries), "{tries} tries in {rested:?}");
    assert_eq!(proxy.status().await["sites"][0]["name"], SITE);
}
