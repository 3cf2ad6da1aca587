//! One tenant's trouble stays its own: what it may have of the node while others want it too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustls::version::TLS13;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::harness::client::empty;
use crate::harness::h2_origin::{H2Origin, Settings};
use crate::harness::tls::{client_config, hello};
use crate::harness::{Answer, Gate, Origin, Proxy, ProxyBuilder, Reply, Wire, wait_for, wait_until, within};

const NOISY: &str = "noisy.test";
const QUIET: &str = "quiet.test";
/// A site that is answered without a backend, so that a request costs as little as it can.
const FIXED: &str = "[[site.\"{name}\".route]]\nrespond = { status = 200, body = \"ok\" }";

/// Two sites of one backend whose answers wait for the gate.
async fn held(settings: &[(&str, &str)]) -> (Origin, Arc<Proxy>, Gate) {
    let gate = Gate::default();
    let origin = Origin::gated(&gate, "/").await;
    let site = origin.backends();
    // So few in flight are an overload at once: that is another story.
    let builder = Proxy::builder().set("server.overload.mode", "\"shadow\"");
    let mut builder = builder.site(NOISY, &site).site(QUIET, &site);
    for (key, value) in settings {
        builder = builder.set(key, value);
    }
    (origin, Arc::new(builder.start().await), gate)
}

fn asking(proxy: &Arc<Proxy>, host: &'static str) -> JoinHandle<Reply> {
    let proxy = proxy.clone();
    tokio::spawn(async move { proxy.get(host, "/").await })
}

/// Asks until a request is let in: it takes a moment until everybody knows who has what.
async fn let_in(proxy: &Arc<Proxy>, origin: &Origin, arrived: usize) -> JoinHandle<Reply> {
    for _ in 0..1_000 {
        let asked = asking(proxy, NOISY);
        wait_until("a refusal or an arrival", || asked.is_finished() || origin.count() >= arrived).await;
        if !asked.is_finished() {
            return asked;
        }
    }
    panic!("nothing was let in");
}

async fn tenant(proxy: &Proxy, name: &str) -> serde_json::Value {
    let status = proxy.status().await;
    let tenants = status["tenants"].as_array().expect("tenants in the status").clone();
    tenants.into_iter().find(|tenant| tenant["name"] == name).unwrap_or_default()
}

#[tokio::test]
async fn a_tenant_over_its_share_of_requests_in_flight_is_refused_and_others_are_served() {
    let (origin, proxy, gate) =
        held(&[("server.shares.in_flight", "8"), ("server.shares.lend", "\"50%\"")]).await;
    let noisy: Vec<_> = (0..4).map(|_| asking(&proxy, NOISY)).collect();
    origin.arrived(4).await;
    let refused = proxy.get(NOISY, "/").await;
    refused.expect(503, "OVER-SHARE");
    assert!(refused.head.field("retry-after").is_some());
    let quiet: Vec<_> = (0..4).map(|_| asking(&proxy, QUIET)).collect();
    origin.arrived(8).await;
    assert_eq!(proxy.get(NOISY, "/").await.status, 503);
    wait_for("the status to tell", || async {
        let row = tenant(&proxy, NOISY).await;
        (row["in_flight"] == 4 && row["shed"] == 2 && row["connections"].as_u64() >= Some(4)).then_some(())
    })
    .await;
    gate.open();
    for answer in noisy.into_iter().chain(quiet) {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    // There is room again, and nothing is remembered.
    assert_eq!(proxy.get(NOISY, "/").await.status, 200);
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_shed_total", &[("reason", "share")]), 2.0);
    assert_eq!(metrics.sum("tidegate_tenant_shed_total", &[("tenant", NOISY)]), 2.0);
    assert_eq!(metrics.sum("tidegate_tenant_shed_total", &[("tenant", QUIET)]), 0.0);
}

#[tokio::test]
async fn a_weight_makes_a_share_larger_and_follows_a_reload() {
    let (origin, proxy, gate) =
        held(&[("server.shares.in_flight", "8"), ("server.shares.lend", "\"0%\"")]).await;
    let first: Vec<_> = (0..4).map(|_| asking(&proxy, NOISY)).collect();
    origin.arrived(4).await;
    proxy.get(NOISY, "/").await.expect(503, "OVER-SHARE");
    // Both have something in flight: with a weight of three against one, six of eight.
    let quiet = asking(&proxy, QUIET);
    origin.arrived(5).await;
    proxy.edit_config(|text| format!("{text}\n[tenant.\"{NOISY}\"]\nweight = 3\n"));
    assert_eq!(proxy.reload().await["refused"], false);
    let more = [let_in(&proxy, &origin, 6).await, let_in(&proxy, &origin, 7).await];
    wait_for("the seventh to be refused", || async {
        (tenant(&proxy, NOISY).await["in_flight"] == 6).then_some(())
    })
    .await;
    proxy.get(NOISY, "/").await.expect(503, "OVER-SHARE");
    gate.open();
    for answer in first.into_iter().chain(more).chain([quiet]) {
        assert_eq!(answer.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn what_others_do_not_use_is_lent_and_a_tenant_alone_may_have_everything() {
    let (origin, proxy, gate) =
        held(&[("server.shares.in_flight", "8"), ("server.shares.lend", "\"100%\"")]).await;
    let all: Vec<_> = (0..8).map(|_| asking(&proxy, NOISY)).collect();
    origin.arrived(8).await;
    gate.open();
    for answer in all {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    // One tenant on the whole node: there is nobody to leave anything to.
    let origin = Origin::saying("ok").await;
    let builder = Proxy::builder().set("server.max_connections", "6").set("server.shares.lend", "\"50%\"");
    let alone = builder.site(NOISY, &origin.backends()).start().await;
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(alone.wire(NOISY).await);
    }
    assert_eq!(held[5].get(NOISY, "/").await.status, 200);
}

#[tokio::test]
async fn slow_connections_of_one_tenant_leave_room_for_the_others() {
    let origin = Origin::saying("ok").await;
    let builder = Proxy::builder().set("server.max_connections", "20").set("server.shares.lend", "\"50%\"");
    let proxy = builder.site(NOISY, &origin.backends()).site(QUIET, &origin.backends()).start().await;
    let mut slow = Vec::new();
    for _ in 0..10 {
        let mut wire = proxy.wire(NOISY).await;
        wire.send(format!("GET / HTTP/1.1\r\nHost: {NOISY}\r\nX-Slow:")).await;
        slow.push(wire);
    }
    for _ in 0..5 {
        assert!(proxy.try_wire(NOISY).await.is_err(), "it has its share");
    }
    let mut quiet = Vec::new();
    for _ in 0..9 {
        quiet.push(proxy.wire(QUIET).await);
    }
    for wire in &mut quiet {
        assert_eq!(wire.get(QUIET, "/").await.status, 200);
    }
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_connections_refused_total", &[("reason", "share")]), 5.0);
    assert!(proxy.stderr().contains("more than its share"), "{}", proxy.stderr());
    // They go, and there is room again.
    drop(slow);
    wait_for("a connection to be let in again", || async { proxy.try_wire(NOISY).await.ok() }).await;
}

#[tokio::test]
async fn a_plain_connection_belongs_to_the_tenant_of_its_first_request() {
    let origin = Origin::saying("ok").await;
    let builder = Proxy::builder().set("server.max_connections", "10").set("server.shares.lend", "\"30%\"");
    let site = format!("{}\nplain_http = true", origin.backends());
    let proxy = builder.site(NOISY, &site).site(QUIET, &site).start().await;
    let mut held = Vec::new();
    for _ in 0..5 {
        let mut wire = proxy.plain().await;
        assert_eq!(wire.get(NOISY, "/").await.status, 200);
        held.push(wire);
    }
    let mut more = proxy.plain().await;
    let refused = more.get(NOISY, "/").await;
    refused.expect(503, "OVER-SHARE");
    assert_eq!(refused.head.field("connection"), Some("close"));
    assert_eq!(proxy.plain().await.get(QUIET, "/").await.status, 200);
    // Those that were there go on.
    assert_eq!(held[0].get(NOISY, "/").await.status, 200);
}

/// Files that the process under test may have open.
const FILES: u64 = 160;

#[tokio::test]
async fn backends_of_one_tenant_leave_descriptors_for_those_of_the_others() {
    let gate = Gate::default();
    let origin = Origin::gated(&gate, "/").await;
    let prompt = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.overload.mode", "\"shadow\"")
        .set("server.limits.h2_streams", "1000")
        // So that descriptors run short first.
        .set("server.shares.in_flight", "100000")
        .set("server.shares.lend", "\"50%\"")
        .files(FILES)
        .site(NOISY, &origin.backends())
        .site(QUIET, &prompt.backends())
        .start()
        .await;
    let mut quiet = proxy.h2(QUIET).await;
    assert_eq!(quiet.get("/").await.status, 200);
    let h2 = proxy.h2(NOISY).await;
    let mut asks = tokio::task::JoinSet::new();
    for _ in 0..FILES {
        let (mut sender, request) = (h2.sender.clone(), h2.request("GET", "/").body(empty()).unwrap());
        asks.spawn(async move {
            sender.ready().await.unwrap();
            sender.send_request(request).await.unwrap().status().as_u16()
        });
    }
    let reason = [("reason", "share-backends")];
    let refused = wait_for("all to have a connection or to be refused one", || async {
        let refused = proxy.metrics().await.sum("tidegate_shed_total", &reason);
        (refused > 0.0 && refused + origin.count() as f64 >= FILES as f64).then_some(refused)
    })
    .await;
    let metrics = proxy.metrics().await;
    let descriptors = |kind| metrics.sum("tidegate_descriptors", &[("kind", kind)]);
    assert!(descriptors("used") < descriptors("max"), "{}", metrics.0);
    assert_eq!(metrics.sum("tidegate_outcomes_total", &[("outcome", "NO-DESCRIPTOR")]), 0.0);
    // The other one still gets connections to its backend, however many it asks for at a time.
    let many: Vec<_> = (0..8)
        .map(|_| {
            let (mut sender, request) =
                (quiet.sender.clone(), quiet.request("GET", "/").body(empty()).unwrap());
            tokio::spawn(async move {
                sender.ready().await.unwrap();
                sender.send_request(request).await.unwrap().status().as_u16()
            })
        })
        .collect();
    for answer in many {
        assert_eq!(within("an answer", answer).await.unwrap(), 200);
    }
    let row = tenant(&proxy, NOISY).await;
    assert_eq!(
        (row["upstream"].as_u64(), row["shed"].as_f64()),
        (Some(origin.count() as u64), Some(refused))
    );
    gate.open();
    let statuses = within("all answers", asks.join_all()).await;
    assert_eq!(statuses.iter().filter(|status| **status == 503).count() as f64, refused);
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), origin.count());
    assert!(proxy.stderr().contains("more than its share of them at its backends"), "{}", proxy.stderr());
}

/// Clients of one tenant that try at a time in the story below, and handshakes that the worker holds: more than all of theirs,
/// and less than twice as many, so that they would be in nobody's way but take more than half of the queue.
const FLOOD: usize = 100;
const HANDSHAKES: usize = 128;

/// Says hello again and again until it is to stop, and goes as soon as there is an answer: the least that a handshake costs a
/// client, and all that it costs the server.
async fn say_hello(to: SocketAddr, hello: Arc<[u8]>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        let Ok(mut tcp) = TcpStream::connect(to).await else { continue };
        // Refused ones are closed: that is no failure of the flood.
        let _ = tcp.write_all(&hello).await;
        let _ = tcp.read(&mut [0; 64]).await;
    }
}

#[tokio::test]
async fn handshakes_for_one_tenant_leave_the_others_their_part_of_the_queue() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("server.overload.mode", "\"shadow\"")
        .set("server.limits.handshakes", &HANDSHAKES.to_string())
        .set("server.max_connections_per_client", "0")
        .set("server.shares.lend", "\"25%\"")
        .site(NOISY, &origin.backends())
        .site(QUIET, &origin.backends())
        .start()
        .await;
    let mut beside = proxy.wire(QUIET).await;
    let stop = Arc::new(AtomicBool::new(false));
    // On a thread of its own: the flood must not slow down whoever is beside it.
    let flood = {
        let hello: Arc<[u8]> = hello(&client_config(&proxy.ca_pem(), &["http/1.1"], &[&TLS13]), NOISY).into();
        let (address, stop) = (proxy.https(), stop.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let mut clients = tokio::task::JoinSet::new();
            for _ in 0..FLOOD {
                clients.spawn_on(say_hello(address, hello.clone(), stop.clone()), runtime.handle());
            }
            runtime.block_on(clients.join_all());
        })
    };
    let refused = [("reason", "share-handshakes")];
    wait_for("handshakes to be refused for a share", || async {
        (proxy.metrics().await.sum("tidegate_connections_refused_total", &refused) >= 100.0).then_some(())
    })
    .await;
    // It is alone, and the queue is never full of it: new connections of the other one come through beside it at the first
    // try, and those that are open are served.
    for _ in 0..3 {
        assert!(proxy.try_wire(QUIET).await.is_ok(), "{}", proxy.stderr());
        assert_eq!(beside.get(QUIET, "/").await.status, 200);
    }
    stop.store(true, Ordering::SeqCst);
    tokio::task::spawn_blocking(move || flood.join().unwrap()).await.unwrap();
    let metrics = proxy.metrics().await;
    assert!(metrics.sum("tidegate_tenant_shed_total", &[("tenant", NOISY)]) >= 100.0);
    assert_eq!(metrics.sum("tidegate_tenant_shed_total", &[("tenant", QUIET)]), 0.0);
    let told = proxy.stderr();
    assert!(
        told.contains("many TLS handshakes wait for the processor, most of them for one tenant"),
        "{told}"
    );
    assert_eq!(proxy.get(NOISY, "/").await.status, 200, "afterwards all is as before");
}

#[tokio::test]
async fn what_bodies_of_requests_hold_is_counted_for_their_tenant_and_given_back() {
    const BODY: usize = 40 * 1024;
    let gate = Gate::default();
    let passing = gate.clone();
    // It might give a request back: what was sent of it is kept until it answers.
    let origin = H2Origin::scripted(Settings::default(), move |mut stream| {
        let passing = passing.clone();
        async move {
            let whole = stream.read().await.is_ok_and(|(body, _)| body.len() == BODY);
            passing.pass().await;
            stream.answer(if whole { 200 } else { 400 }, "").await;
        }
    })
    .await;
    let site = origin.site();
    let proxy = Arc::new(Proxy::builder().site(NOISY, &site).site(QUIET, &site).start().await);
    let posts: Vec<_> = (0..3)
        .map(|_| {
            let proxy = proxy.clone();
            tokio::spawn(async move { proxy.wire(NOISY).await.post(NOISY, "/", &"x".repeat(BODY)).await })
        })
        .collect();
    let held = |name: &'static str| {
        let proxy = proxy.clone();
        async move { tenant(&proxy, name).await["buffered_bytes"].as_u64().unwrap_or(0) }
    };
    wait_for("all three to be held", || async { (held(NOISY).await == 3 * BODY as u64).then_some(()) }).await;
    assert_eq!(held(QUIET).await, 0);
    gate.open();
    for post in posts {
        assert_eq!(post.await.unwrap().status, 200);
    }
    wait_for("nothing to be held", || async { (held(NOISY).await == 0).then_some(()) }).await;
}

#[tokio::test]
async fn in_shadow_nothing_is_refused_and_what_would_have_been_is_told() {
    let (origin, proxy, gate) = held(&[
        ("server.shares.in_flight", "4"),
        ("server.shares.lend", "\"50%\""),
        ("server.shares.mode", "\"shadow\""),
    ])
    .await;
    let all: Vec<_> = (0..3).map(|_| asking(&proxy, NOISY)).collect();
    origin.arrived(3).await;
    gate.open();
    for answer in all {
        assert_eq!(answer.await.unwrap().status, 200);
    }
    let metrics = proxy.metrics().await;
    let labels = [("site", NOISY), ("policy", "share")];
    assert_eq!(metrics.sum("tidegate_would_block_total", &labels), 1.0);
    let marked = |record: &serde_json::Value| record["would_block"] == serde_json::json!(["share"]);
    assert_eq!(proxy.records(3).await.iter().filter(|record| marked(record)).count(), 1);
    assert_eq!(metrics.sum("tidegate_shed_total", &[]), 0.0);
}

// ---- the processor

/// Clients of one site that ask as fast as they are answered, until they are told to stop.
struct Crowd {
    stop: Arc<AtomicBool>,
    refused: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<()>>,
}

impl Crowd {
    async fn of(size: usize, proxy: &Arc<Proxy>) -> Crowd {
        let (stop, refused, served) = Default::default();
        let mut crowd = Crowd { stop, refused, served, tasks: Vec::new() };
        for _ in 0..size {
            let mut wire = proxy.wire(NOISY).await;
            let (stop, refused, served) = (crowd.stop.clone(), crowd.refused.clone(), crowd.served.clone());
            crowd.tasks.push(tokio::spawn(async move {
                while !stop.load(Ordering::SeqCst) {
                    let reply = wire.get(NOISY, "/").await;
                    match reply.status {
                        200 => served.fetch_add(1, Ordering::SeqCst),
                        _ => {
                            reply.expect(503, "OVER-SHARE");
                            refused.fetch_add(1, Ordering::SeqCst)
                        }
                    };
                }
            }));
        }
        crowd
    }

    async fn leaves(self) -> (usize, usize) {
        self.stop.store(true, Ordering::SeqCst);
        for task in self.tasks {
            task.await.unwrap();
        }
        (self.served.load(Ordering::SeqCst), self.refused.load(Ordering::SeqCst))
    }
}

async fn two_fixed(wait: &str) -> Arc<Proxy> {
    let site = |name: &str| FIXED.replace("{name}", name);
    let builder = Proxy::builder().set("server.shares.wait", wait).set("log.access", "\"off\"");
    Arc::new(builder.site(NOISY, &site(NOISY)).site(QUIET, &site(QUIET)).start().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_that_wants_the_whole_processor_waits_for_its_turns_and_nobody_else_does() {
    let proxy = two_fixed("\"1h\"").await;
    let crowd = Crowd::of(64, &proxy).await;
    let (mut h1, mut h2) = (proxy.wire(QUIET).await, proxy.h2(QUIET).await);
    // Until the crowd had to wait often: how fast that goes is the machine's.
    within("the crowd to wait", async {
        while proxy.metrics().await.sum("tidegate_share_waits_total", &[]) < 1_000.0 {
            assert_eq!(h1.get(QUIET, "/").await.status, 200);
            assert_eq!(h2.get("/").await.status, 200);
        }
    })
    .await;
    // New connections too.
    assert_eq!(proxy.get(QUIET, "/").await.status, 200);
    let (served, refused) = crowd.leaves().await;
    assert!(served > 0 && refused == 0, "{served} {refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn who_waited_too_long_for_a_turn_is_told_to_come_later() {
    let proxy = two_fixed("\"10ms\"").await;
    let crowd = Crowd::of(256, &proxy).await;
    let mut quiet = proxy.wire(QUIET).await;
    within("somebody to be refused", async {
        while crowd.refused.load(Ordering::SeqCst) == 0 {
            assert_eq!(quiet.get(QUIET, "/").await.status, 200);
        }
    })
    .await;
    let (served, refused) = crowd.leaves().await;
    assert!(served > 0, "{served} {refused}");
    // The crowd is gone: its tenant is one of all again, as soon as what it used is forgotten and the machine has time.
    wait_for("the tenant to be served again", || async {
        (proxy.get(NOISY, "/").await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_of_the_only_tenant_never_waits() {
    let site = FIXED.replace("{name}", NOISY);
    let proxy = Arc::new(Proxy::builder().set("log.access", "\"off\"").site(NOISY, &site).start().await);
    let crowd = Crowd::of(32, &proxy).await;
    wait_until("some thousand requests", || crowd.served.load(Ordering::SeqCst) > 5_000).await;
    crowd.leaves().await;
    assert_eq!(proxy.metrics().await.sum("tidegate_share_waits_total", &[]), 0.0);
}
