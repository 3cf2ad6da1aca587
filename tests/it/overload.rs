//! What is given up when the node has too much to do, and that it comes back.

use std::sync::Arc;

use crate::harness::{Answer, Gate, Origin, Proxy, Wire, wait_for, within};

const NOISY: &str = "noisy.test";
const QUIET: &str = "quiet.test";
const CHEAP: &str = "cheap.test";

/// Three sites of one backend whose answers wait for the gate; one may be given up first.
async fn held(settings: &[(&str, &str)]) -> (Origin, Arc<Proxy>, Gate) {
    let gate = Gate::default();
    let passing = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let passing = passing.clone();
        async move {
            if x.request.target().contains("/held") {
                passing.pass().await;
            }
            x.answer(Answer::ok("done")).await.ok()?;
            Some(x)
        }
    })
    .await;
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
