//! What is given up when the node has too much to do, and that it comes back.

use std::sync::Arc;

use crate::harness::client::empty;
use crate::harness::{Answer, Gate, Origin, Proxy, Wire, wait_for, within};

const NOISY: &str = "noisy.test";
const QUIET: &str = "quiet.test";
const CHEAP: &str = "cheap.test";

/// Three sites of one backend whose answers wait for the gate; one may be given up first.
async fn held(settings: &[(&str, &str)]) -> (Origin, Arc<Proxy>, Gate) {
    let gate = Gate::default();
    let origin = Origin::gated(&gate, "/held").await;
    let site = origin.backends();
    let mut builder = Proxy::builder().site(NOISY, &site).site(QUIET, &site);
    builder = builder.site(CHEAP, &format!("{site}\npriority = \"low\""));
    for (key, value) in settings {
        builder = builder.set(key, value);
    }
    (origin, Arc::new(builder.start().await), gate)
}

async fn stage(proxy: &Proxy, wanted: u64) {
    wait_for(&format!("stage {wanted}"), || async {
        (proxy.status().await["overload"]["stage"] == wanted).then_some(())
    })
    .await;
}

async fn holding(proxy: &Arc<Proxy>, host: &'static str) -> tokio::task::JoinHandle<u16> {
    let mut wire = proxy.wire(host).await;
    tokio::spawn(async move { wire.get(host, "/held").await.status })
}

#[tokio::test]
async fn an_overload_is_shed_by_share_and_priority_told_and_over_when_it_is() {
    let settings = [
        ("server.shares.in_flight", "10"),
        ("server.shares.lend", "\"100%\""),
        ("server.overload.hold", "\"100ms\""),
    ];
    let (origin, proxy, gate) = held(&settings).await;
    let mut early = proxy.wire(NOISY).await;
    assert_eq!(early.get(NOISY, "/").await.head.field("connection"), None);
    // One tenant takes all that there is.
    let mut all = Vec::new();
    for _ in 0..10 {
        all.push(holding(&proxy, NOISY).await);
    }
    origin.arrived(11).await;
    stage(&proxy, 3).await;
    wait_for("the tenant to be over its share", || async {
        let status = proxy.status().await;
        status["tenants"]
            .as_array()
            .unwrap()
            .iter()
            .any(|t| t["name"] == NOISY && t["over"] == true)
            .then_some(())
    })
    .await;
    // Its idle connection was ended, new ones are refused; a site that may be given up first is; another one is not.
    early.closed().await;
    assert!(proxy.try_wire(NOISY).await.is_err());
    proxy.get(CHEAP, "/").await.expect(503, "OVERLOADED");
    let quiet = proxy.get(QUIET, "/").await;
    assert_eq!((quiet.status, quiet.head.field("connection")), (200, None));
    // Whoever operates it is answered, and told.
    let status = proxy.command_async(&["status"]).await;
    let page = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(page.contains("overload, stage 3: requests are refused; in-flight is at"), "{page}");
    assert!(page.contains(NOISY), "{page}");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_overload_stage", &[]), 3.0);
    assert!(metrics.sum("tidegate_pressure_ratio", &[("cause", "in-flight")]) >= 1.0);
    assert_eq!(metrics.sum("tidegate_shed_total", &[("reason", "overload")]), 1.0);
    assert!(metrics.sum("tidegate_connections_refused_total", &[("reason", "overload")]) >= 1.0);
    // It ends: everything comes back by itself.
    gate.open();
    for answer in all {
        assert_eq!(answer.await.unwrap(), 200);
    }
    stage(&proxy, 0).await;
    for host in [NOISY, QUIET, CHEAP] {
        assert_eq!(proxy.get(host, "/").await.status, 200, "{host}");
    }
    let log = proxy.stderr();
    assert_eq!(log.matches("overload: requests are refused").count(), 1, "one line a change: {log}");
    assert!(log.contains("overload: calm"), "{log}");
}

#[tokio::test]
async fn connections_that_run_short_are_not_kept_by_whoever_has_too_many() {
    let settings = [
        ("server.max_connections", "20"),
        ("server.shares.lend", "\"90%\""),
        ("server.overload.hold", "\"100ms\""),
    ];
    let (_origin, proxy, _gate) = held(&settings).await;
    let mut quiet = Vec::new();
    for _ in 0..2 {
        let mut wire = proxy.wire(QUIET).await;
        assert_eq!(wire.get(QUIET, "/").await.status, 200);
        quiet.push(wire);
    }
    // Four fifths of all are open now: they are kept for another request that never comes.
    let mut kept = Vec::new();
    for _ in 0..14 {
        let mut wire = proxy.wire(NOISY).await;
        assert_eq!(wire.get(NOISY, "/").await.status, 200);
        kept.push(wire);
    }
    for mut wire in kept {
        wire.closed().await;
    }
    stage(&proxy, 0).await;
    for wire in &mut quiet {
        assert_eq!(wire.get(QUIET, "/").await.status, 200, "within its share, it was left alone");
    }
}

#[tokio::test]
async fn where_nobody_has_too_many_connections_those_in_use_are_kept() {
    let origin = Origin::saying("done").await;
    let builder =
        Proxy::builder().set("server.max_connections", "20").set("server.overload.hold", "\"100ms\"");
    let proxy = builder.site(QUIET, &origin.backends()).start().await;
    let mut used = proxy.wire(QUIET).await;
    assert_eq!(used.get(QUIET, "/").await.status, 200);
    // The only tenant may have them all; four fifths are open now.
    let mut unused = Vec::new();
    for _ in 0..16 {
        let mut wire = proxy.wire(QUIET).await;
        assert_eq!(wire.get(QUIET, "/").await.status, 200);
        unused.push(wire);
    }
    let ends = async {
        for mut wire in unused {
            wire.closed().await;
        }
    };
    tokio::pin!(ends);
    loop {
        tokio::select! {
            () = &mut ends => break,
            reply = used.get(QUIET, "/") => assert_eq!(reply.status, 200, "in use, it is kept"),
        }
    }
    stage(&proxy, 0).await;
}

#[tokio::test]
async fn in_shadow_stages_are_told_and_nothing_is_given_up() {
    let settings = [
        ("server.shares.in_flight", "10"),
        ("server.shares.mode", "\"shadow\""),
        ("server.overload.mode", "\"shadow\""),
    ];
    let (origin, proxy, gate) = held(&settings).await;
    let mut all = Vec::new();
    for _ in 0..10 {
        all.push(holding(&proxy, NOISY).await);
    }
    origin.arrived(10).await;
    stage(&proxy, 3).await;
    assert_eq!(proxy.get(CHEAP, "/").await.status, 200);
    let labels = [("site", CHEAP), ("policy", "overload")];
    assert!(proxy.metrics().await.sum("tidegate_would_block_total", &labels) >= 1.0);
    gate.open();
    for answer in all {
        assert_eq!(answer.await.unwrap(), 200);
    }
}

// ---- clients

/// A plain connection of this client, by PROXY protocol.
async fn of_client(proxy: &Proxy, client: &str) -> Wire {
    let mut wire = proxy.plain().await;
    wire.send(format!("PROXY TCP4 {client} 192.0.2.200 4711 80\r\n")).await;
    wire
}

/// The status of an answer; `None`: the connection was closed instead.
async fn asked(wire: &mut Wire, target: &str) -> Option<u16> {
    // Who is refused may be closed before the request is written.
    let _ = wire.try_send(format!("GET {target} HTTP/1.1\r\nHost: {NOISY}\r\n\r\n")).await;
    wire.try_reply_to("GET").await.ok().map(|reply| reply.status)
}

#[tokio::test]
async fn a_client_over_its_share_of_connections_gets_no_more_and_others_of_the_same_site_do() {
    const GREEDY: &str = "203.0.113.1";
    const MODEST: &str = "203.0.113.2";
    let gate = Gate::default();
    let origin = Origin::gated(&gate, "/held").await;
    // One tenant: only who its clients are tells one connection from another.
    let proxy = Proxy::builder()
        .set("server.trusted_proxies", "[\"127.0.0.1/32\"]")
        .set("server.proxy_protocol", "true")
        .set("server.max_connections", "40")
        .set("server.shares.in_flight", "1000")
        .set("server.overload.hold", "\"100ms\"")
        .site(NOISY, &format!("plain_http = true\n{}", origin.backends()))
        .start()
        .await;
    let mut early = of_client(&proxy, GREEDY).await;
    assert_eq!(asked(&mut early, "/").await, Some(200));
    let mut modest = Vec::new();
    for _ in 0..3 {
        let mut wire = of_client(&proxy, MODEST).await;
        assert_eq!(asked(&mut wire, "/").await, Some(200));
        modest.push(wire);
    }
    let mut busy = Vec::new();
    for _ in 0..33 {
        let mut wire = of_client(&proxy, GREEDY).await;
        wire.send(format!("GET /held HTTP/1.1\r\nHost: {NOISY}\r\n\r\n")).await;
        busy.push(wire);
    }
    origin.arrived(4 + 33).await;
    stage(&proxy, 2).await;
    // Its idle connection is not kept, and it gets no new one.
    early.closed().await;
    wait_for("a new connection of the client to be refused", || async {
        let mut wire = of_client(&proxy, GREEDY).await;
        asked(&mut wire, "/").await.is_none().then_some(())
    })
    .await;
    // The other one of the site keeps what it has, and is let in.
    let mut fresh = of_client(&proxy, MODEST).await;
    assert_eq!(asked(&mut fresh, "/").await, Some(200));
    for wire in &mut modest {
        assert_eq!(asked(wire, "/").await, Some(200));
    }
    assert_eq!(proxy.status().await["overload"]["connections_per_client_max"], 20);
    let reason = [("reason", "overload-client")];
    assert!(proxy.metrics().await.sum("tidegate_connections_refused_total", &reason) >= 1.0);
    assert!(proxy.stderr().contains("a client has more than its share of connections"), "{}", proxy.stderr());
    gate.open();
    for wire in &mut busy {
        assert_eq!(wire.try_reply_to("GET").await.unwrap().status, 200);
    }
    drop(busy);
    stage(&proxy, 0).await;
    let mut again = of_client(&proxy, GREEDY).await;
    assert_eq!(asked(&mut again, "/").await, Some(200));
}

// ---- memory

#[tokio::test]
async fn when_memory_runs_short_whoever_holds_most_of_it_in_bodies_is_refused_alone() {
    let large = "x".repeat(512 * 1024);
    let origin =
        Origin::answering(move |r| Answer::ok(if r.target() == "/large" { &large } else { "ok" })).await;
    let site = origin.backends();
    let builder =
        Proxy::builder().set("server.overload.memory", "\"1TiB\"").set("server.overload.hold", "\"100ms\"");
    let proxy = builder.site(NOISY, &site).site(QUIET, &site).start().await;
    // Answers that nobody reads: what their windows do not let go waits here.
    let mut held = Vec::new();
    let mut connections = Vec::new();
    for _ in 0..2 {
        let mut h2 = proxy.h2(NOISY).await;
        for _ in 0..60 {
            let request = h2.request("GET", "/large").body(empty()).unwrap();
            held.push(h2.start(request).await.unwrap());
        }
        connections.push(h2);
    }
    let row = |status: &serde_json::Value| {
        let tenants = status["tenants"].as_array().unwrap().clone();
        tenants.into_iter().find(|tenant| tenant["name"] == NOISY).unwrap_or_default()
    };
    wait_for("the bodies to be counted", || async {
        (row(&proxy.status().await)["buffered_bytes"].as_u64() >= Some(512 * 1024)).then_some(())
    })
    .await;
    // What there is comes to what is used: full, and no more.
    wait_for("the tenant to be given up", || async {
        let status = proxy.status().await;
        let memory = status["overload"]["pressure_percent"]["memory"].as_u64().unwrap();
        if (97..105).contains(&memory) {
            return (status["overload"]["stage"] == 3 && row(&status)["over"] == true).then_some(());
        }
        let used = proxy.metrics().await.sum("process_resident_memory_bytes", &[]);
        proxy.edit_config(|text| {
            let other = |line: &&str| !line.starts_with("memory = ");
            let rest = text.lines().filter(other).collect::<Vec<_>>().join("\n");
            rest.replace("[server.overload]", &format!("[server.overload]\nmemory = \"{used}B\""))
        });
        assert_eq!(proxy.reload().await["refused"], false);
        None
    })
    .await;
    assert!(proxy.try_wire(NOISY).await.is_err(), "no new connection");
    // Its body has no room in the window of the connection.
    let request = connections[0].request("GET", "/").body(empty()).unwrap();
    assert_eq!(connections[0].start(request).await.unwrap().status(), 503);
    assert!(proxy.metrics().await.sum("tidegate_shed_total", &[("reason", "overload")]) >= 1.0);
    assert_eq!(proxy.get(QUIET, "/").await.status, 200);
    assert!(proxy.metrics().await.sum("tidegate_tenant_buffered_bytes", &[("tenant", NOISY)]) > 0.0);
    // They go, and with them what they held.
    drop((held, connections));
    wait_for("nothing to be held", || async {
        (row(&proxy.status().await)["buffered_bytes"].as_u64().unwrap_or(0) == 0).then_some(())
    })
    .await;
}
