//! Retries, queues and the breaker: what happens when backends fail or have too much to do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::harness::client::{empty, full};
use crate::harness::h2_origin::Settings;
use crate::harness::{Answer, Gate, H2Origin, Origin, Proxy, Reply, wait_for, wait_until, within};

const SITE: &str = "shop.test";

/// An address on which nothing listens.
async fn dead() -> std::net::SocketAddr {
    Origin::saying("").await.kill().await
}

/// A backend that answers when the gate opens, and knows how many it had at once.
struct Busy {
    origin: Origin,
    gate: Gate,
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Busy {
    async fn start() -> Busy {
        let gate = Gate::default();
        let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (passing, inside, peak) = (gate.clone(), now.clone(), most.clone());
        let origin = Origin::scripted(move |mut x| {
            let (passing, inside, peak) = (passing.clone(), inside.clone(), peak.clone());
            async move {
                peak.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                passing.pass().await;
                let body = x.read_body().await;
                inside.fetch_sub(1, Ordering::SeqCst);
                body.ok()?;
                x.answer(Answer::ok("done")).await.ok()?;
                Some(x)
            }
        })
        .await;
        Busy { origin, gate, now, most }
    }

    fn most(&self) -> usize {
        self.most.load(Ordering::SeqCst)
    }
}

/// The service's row in the status.
async fn service(proxy: &Proxy) -> serde_json::Value {
    proxy.status().await["services"][0].clone()
}

async fn waiting(proxy: &Proxy, n: u64) {
    wait_for(&format!("{n} requests in the queue"), || async {
        (service(proxy).await["queue"] == n).then_some(())
    })
    .await;
}

fn asking(proxy: &Arc<Proxy>, target: &'static str) -> tokio::task::JoinHandle<Reply> {
    let proxy = proxy.clone();
    tokio::spawn(async move { proxy.get(SITE, target).await })
}

async fn with(site: &str, workers: &str) -> Arc<Proxy> {
    Arc::new(Proxy::builder().set("server.workers", workers).site(SITE, site).start().await)
}

// ---- retries

#[tokio::test]
async fn a_dead_service_under_load_is_tried_no_more_often_than_the_budget_allows() {
    let (a, b, c) = (dead().await, dead().await, dead().await);
    let requests = 300;
    for (budget, floor) in [("20%", 0), ("0%", 5)] {
        let site = format!(
            "backends = [\"{a}\", \"{b}\", \"{c}\"]\nretry = {{ budget = \"{budget}\", floor = {floor} }}"
        );
        let proxy = with(&site, "2").await;
        let began = std::time::Instant::now();
        let mut h2 = proxy.h2(SITE).await;
        for _ in 0..requests {
            assert!(h2.get("/").await.status >= 502);
        }
        let seconds = began.elapsed().as_secs() + 2;
        let tries: u64 = proxy.records(requests).await.iter().map(|r| r["tries"].as_u64().unwrap()).sum();
        let allowed = requests as u64 + if floor == 0 { requests as u64 / 5 } else { floor * seconds };
        assert!(tries <= allowed, "{tries} tries for {requests} requests with {budget} and {floor}");
        let metrics = proxy.metrics().await;
        let retried = metrics.sum("tidegate_retries_total", &[("cause", "connect")]);
        assert_eq!(retried as u64, tries - requests as u64);
        assert!(metrics.sum("tidegate_retry_budget_exhausted_total", &[]) >= 200.0);
        crate::harness::tool::report(&format!(
            "{tries} tries for {requests} requests with {budget} and {floor} a second"
        ));
    }
}

#[tokio::test]
async fn nothing_is_tried_again_where_that_is_off_or_the_cause_is_not_named() {
    let (down, alive) = (dead().await, Origin::saying("alive").await);
    let site = format!("backends = [\"{down}\", \"{}\"]\nbalance = \"round_robin\"", alive.address());
    for retry in ["\"off\"", "{ tries = 1 }", "{ on = [\"reset\"] }"] {
        let proxy = with(&format!("{site}\nretry = {retry}"), "1").await;
        let first = [proxy.get(SITE, "/").await, proxy.get(SITE, "/").await];
        assert!(first.iter().any(|reply| reply.outcome() == "CONNECT-REFUSED"), "{retry}");
    }
}

#[tokio::test]
async fn a_try_that_takes_too_long_goes_to_another_backend_and_a_post_does_not() {
    let (slow, quick) = (Busy::start().await, Origin::saying("quick").await);
    let site = format!(
        "backends = [\"{}\", \"{}\"]\nbalance = \"round_robin\"\nretry = {{ per_try = \"300ms\" }}\ntimeout = \"1500ms\"",
        slow.origin.address(),
        quick.address()
    );
    let proxy = with(&site, "1").await;
    for _ in 0..2 {
        assert_eq!(proxy.get(SITE, "/").await.text(), "quick");
    }
    // A try takes a turn, so whose turn it is first says nothing.
    let late = slow.origin.count();
    assert!(late >= 1 && quick.count() == 2, "{late}");
    let mut ended = Vec::new();
    for _ in 0..2 {
        ended.push(proxy.wire(SITE).await.post(SITE, "/", "x").await.outcome());
    }
    ended.sort();
    assert_eq!(ended, ["", "UPSTREAM-TIMEOUT"], "sent once is sent once");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_retries_total", &[("cause", "timeout")]) as usize, late);
    slow.gate.open();
}

#[tokio::test]
async fn a_slow_backend_without_another_has_the_whole_time_of_an_answer() {
    let slow = Busy::start().await;
    let site = format!("{}\nretry = {{ per_try = \"100ms\" }}", slow.origin.backends());
    let proxy = with(&site, "1").await;
    let asked = asking(&proxy, "/");
    slow.origin.arrived(1).await;
    // Two probes of the status, each longer than a tick of the timers, are more than `per_try`.
    let tries = proxy.clone();
    wait_for("time to pass", || async {
        (tries.status().await["uptime_ms"].as_u64()? > 1_500).then_some(())
    })
    .await;
    slow.gate.open();
    let reply = asked.await.unwrap();
    assert_eq!((reply.status, slow.origin.count()), (200, 1));
}

#[tokio::test]
async fn the_time_for_all_tries_is_told_apart_from_the_time_of_one() {
    let (one, two) = (Busy::start().await, Busy::start().await);
    let site = format!(
        "backends = [\"{}\", \"{}\"]\nretry = {{ per_try = \"200ms\", total = \"700ms\" }}\ntimeout = \"20s\"",
        one.origin.address(),
        two.origin.address()
    );
    let proxy = with(&site, "1").await;
    proxy.get(SITE, "/").await.expect(504, "TOTAL-TIMEOUT");
    assert_eq!((one.origin.count(), two.origin.count()), (1, 1));
    assert_eq!(proxy.record_with("TOTAL-TIMEOUT").await["tries"], 2);
    one.gate.open();
    two.gate.open();
}

#[tokio::test]
async fn a_status_leads_to_another_backend_only_where_it_is_named_and_nothing_is_repeated_that_may_not_be() {
    let ill = Origin::answering(|_| Answer::new(503).body("ill")).await;
    let well = Origin::saying("well").await;
    let site =
        format!("backends = [\"{}\", \"{}\"]\nbalance = \"round_robin\"", ill.address(), well.address());
    let statuses = |replies: &[Reply]| {
        let mut all: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
        all.sort_unstable();
        all
    };
    let plain = with(&site, "1").await;
    assert_eq!(statuses(&[plain.get(SITE, "/").await, plain.get(SITE, "/").await]), [200, 503]);
    let proxy = with(&format!("{site}\nretry = {{ on = [\"connect\", \"503\"] }}"), "1").await;
    assert_eq!(statuses(&[proxy.get(SITE, "/").await, proxy.get(SITE, "/").await]), [200, 200]);
    let mut wire = proxy.wire(SITE).await;
    assert_eq!(statuses(&[wire.post(SITE, "/", "x").await, wire.post(SITE, "/", "x").await]), [200, 503]);
    assert!(proxy.metrics().await.sum("tidegate_retries_total", &[("cause", "status")]) >= 1.0);
    // Where every backend says so, the last one's answer is the answer, as the backend gave it.
    let worse = Origin::answering(|_| Answer::new(503).body("worse")).await;
    let site =
        format!("backends = [\"{}\", \"{}\"]\nretry = {{ on = [\"503\"] }}", ill.address(), worse.address());
    let proxy = with(&site, "1").await;
    let reply = proxy.get(SITE, "/").await;
    assert!(reply.status == 503 && ["ill", "worse"].contains(&reply.text().as_str()), "{}", reply.text());
    assert_eq!(proxy.record_with("OK").await["tries"], 2);
}

// ---- capacity

#[tokio::test]
async fn a_backend_never_has_more_than_its_cap_on_any_number_of_workers_and_the_rest_waits_and_is_served() {
    let busy = Busy::start().await;
    let proxy = with(&format!("{}\ncapacity = {{ per_endpoint = 3 }}", busy.origin.backends()), "4").await;
    let asked: Vec<_> = (0..20).map(|_| asking(&proxy, "/")).collect();
    waiting(&proxy, 17).await;
    busy.origin.arrived(3).await;
    let row = service(&proxy).await;
    assert_eq!((row["in_flight"].as_u64(), row["limit_per_endpoint"].as_u64()), (Some(3), Some(3)));
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_queue_length", &[]), 17.0);
    assert_eq!(metrics.sum("tidegate_service_in_flight", &[]), 3.0);
    let page = crate::harness::tool::text(&proxy.command(&["status"]).stdout);
    assert!(
        page.contains("1 bounded service, 1 refused or waited for") && page.contains("17 of 1000"),
        "{page}"
    );
    busy.gate.open();
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!((busy.most(), busy.origin.count()), (3, 20));
    assert_eq!(proxy.metrics().await.sum("tidegate_queue_waits_total", &[("result", "served")]), 17.0);
    wait_until("the queue to be told of", || {
        let log = proxy.stderr();
        log.contains("requests wait: ") && log.contains("no request waits any more")
    })
    .await;
}

#[tokio::test]
async fn a_full_queue_and_a_long_wait_are_503_with_a_time_to_come_back() {
    let busy = Busy::start().await;
    let capacity = "capacity = { service = 1, queue = 1, queue_time = \"500ms\" }";
    let proxy = with(&format!("{}\n{capacity}", busy.origin.backends()), "1").await;
    let inside = asking(&proxy, "/");
    busy.origin.arrived(1).await;
    let queued = asking(&proxy, "/");
    waiting(&proxy, 1).await;
    for reply in [proxy.get(SITE, "/").await, queued.await.unwrap()] {
        assert_eq!(reply.status, 503);
        assert!(["QUEUE-FULL", "QUEUE-TIMEOUT"].contains(&reply.outcome().as_str()), "{}", reply.raw_head());
        assert!(reply.field("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }
    proxy.record_with("QUEUE-FULL").await;
    proxy.record_with("QUEUE-TIMEOUT").await;
    busy.gate.open();
    assert_eq!(inside.await.unwrap().status, 200);
    assert_eq!(busy.origin.count(), 1, "what was refused was never sent");
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_the_queue_at_once_over_h1_and_h2() {
    let busy = Busy::start().await;
    let proxy = with(&format!("{}\ncapacity = {{ service = 1 }}", busy.origin.backends()), "1").await;
    let inside = asking(&proxy, "/");
    busy.origin.arrived(1).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    let mut h2 = proxy.h2(SITE).await;
    let request = h2.request("GET", "/").body(empty()).unwrap();
    let stream = tokio::spawn(h2.sender.send_request(request));
    waiting(&proxy, 2).await;
    drop(wire);
    stream.abort();
    waiting(&proxy, 0).await;
    assert_eq!(proxy.metrics().await.sum("tidegate_queue_waits_total", &[("result", "gone")]), 2.0);
    busy.gate.open();
    assert_eq!(inside.await.unwrap().status, 200);
    assert_eq!(h2.get("/").await.status, 200, "the connection lives");
    assert_eq!(busy.origin.count(), 2);
}

#[tokio::test]
async fn an_upload_is_not_read_while_it_waits() {
    let busy = Busy::start().await;
    let proxy = with(&format!("{}\ncapacity = {{ service = 1 }}", busy.origin.backends()), "1").await;
    let inside = asking(&proxy, "/");
    busy.origin.arrived(1).await;
    // Far more than all the buffers on the way hold.
    let size = 64 * 1024 * 1024;
    let sent = Arc::new(AtomicUsize::new(0));
    let (counter, through) = (sent.clone(), proxy.clone());
    let upload = tokio::spawn(async move {
        let mut wire = through.wire(SITE).await;
        wire.send(format!("PUT / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: {size}\r\n\r\n")).await;
        let piece = vec![0; 64 * 1024];
        for _ in 0..size / piece.len() {
            wire.send(&piece).await;
            counter.fetch_add(piece.len(), Ordering::SeqCst);
        }
        wire.reply_to("PUT").await
    });
    waiting(&proxy, 1).await;
    let mut before = usize::MAX;
    wait_for("the client to be stopped", || {
        let now = sent.load(Ordering::SeqCst);
        let stopped = now == std::mem::replace(&mut before, now) && now > 0;
        async move {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            stopped.then_some(())
        }
    })
    .await;
    assert!(sent.load(Ordering::SeqCst) < size / 2, "{} bytes were taken", sent.load(Ordering::SeqCst));
    busy.gate.open();
    assert_eq!((inside.await.unwrap().status, upload.await.unwrap().status), (200, 200));
    assert_eq!(busy.origin.requests().iter().map(|request| request.body.len()).max(), Some(size));
}

#[tokio::test]
async fn those_who_wait_survive_a_hundred_reloads_and_go_to_a_backend_that_came_meanwhile() {
    let (old, new) = (Busy::start().await, Origin::saying("new").await);
    let capacity = "capacity = { per_endpoint = 1, queue_time = \"10m\" }";
    let proxy = with(&format!("{}\n{capacity}", old.origin.backends()), "2").await;
    let inside = asking(&proxy, "/");
    old.origin.arrived(1).await;
    let queued: Vec<_> = (0..10).map(|_| asking(&proxy, "/")).collect();
    waiting(&proxy, 10).await;
    for turn in 0..100 {
        proxy.write_site(
            SITE,
            &format!("{}\n{capacity}\nmax_body = \"{}KiB\"", old.origin.backends(), turn + 1),
        );
        proxy.reload().await;
        // Who waits looks again, and has a place for as long as it looks.
        wait_for(&format!("ten to wait for the one, after {turn}"), || async {
            let row = service(&proxy).await;
            (row["queue"] == 10 && row["in_flight"] == 1).then_some(())
        })
        .await;
        assert_eq!(old.origin.count(), 1, "nobody went in beside it");
    }
    // The old backend is still at its one request; a new one takes all that wait.
    proxy.write_site(
        SITE,
        &format!("backends = [\"{}\", \"{}\"]\n{capacity}", old.origin.address(), new.address()),
    );
    proxy.reload().await;
    for reply in queued {
        assert_eq!(reply.await.unwrap().text(), "new");
    }
    old.gate.open();
    assert_eq!(inside.await.unwrap().text(), "done");
    assert_eq!(old.origin.count(), 1);
}

#[tokio::test]
async fn a_cap_that_is_raised_or_taken_away_lets_those_in_who_wait() {
    let busy = Busy::start().await;
    let site = |capacity: &str| format!("{}\ncapacity = {capacity}", busy.origin.backends());
    let proxy = with(&site("{ service = 1 }"), "2").await;
    let asked: Vec<_> = (0..8).map(|_| asking(&proxy, "/")).collect();
    waiting(&proxy, 7).await;
    proxy.write_site(SITE, &site("{ service = 4 }"));
    proxy.reload().await;
    busy.origin.arrived(4).await;
    waiting(&proxy, 4).await;
    proxy.write_site(SITE, &site("\"off\""));
    proxy.reload().await;
    busy.origin.arrived(8).await;
    busy.gate.open();
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn streams_of_an_http2_backend_count_as_requests_do() {
    let (gate, now, most) = (Gate::default(), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (passing, inside, peak) = (gate.clone(), now.clone(), most.clone());
    let origin = H2Origin::scripted(Settings::default(), move |mut x| {
        let (passing, inside, peak) = (passing.clone(), inside.clone(), peak.clone());
        async move {
            peak.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            passing.pass().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            x.answer(200, "done").await;
        }
    })
    .await;
    let site = format!("{}\ncapacity = {{ per_endpoint = 2 }}", origin.site());
    let proxy = with(&site, "2").await;
    let mut h2 = proxy.h2(SITE).await;
    let mut asked = Vec::new();
    for _ in 0..6 {
        let request = h2.request("POST", "/").body(full("x")).unwrap();
        asked.push(tokio::spawn(h2.sender.send_request(request)));
    }
    waiting(&proxy, 4).await;
    origin.arrived(2).await;
    gate.open();
    for response in asked {
        assert_eq!(within("an answer", response).await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn three_times_what_a_backend_can_do_is_answered_or_refused_and_never_more_than_the_cap_gets_in() {
    const CAP: usize = 8;
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (inside, peak) = (now.clone(), most.clone());
    let origin = Origin::scripted(move |mut x| {
        let (inside, peak) = (inside.clone(), peak.clone());
        async move {
            peak.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            // The work of a request: what the story is about, not a wait for an effect.
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            inside.fetch_sub(1, Ordering::SeqCst);
            x.answer(Answer::ok("done")).await.ok()?;
            Some(x)
        }
    })
    .await;
    let capacity = format!("capacity = {{ per_endpoint = {CAP}, queue = {CAP}, queue_time = \"200ms\" }}");
    let proxy = with(&format!("{}\n{capacity}", origin.backends()), "2").await;
    // Places and queue hold two thirds of the clients: the others are refused, and come again at once.
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..3 * CAP {
        let proxy = proxy.clone();
        clients.spawn(async move {
            let mut wire = proxy.wire(SITE).await;
            let (mut served, mut refused) = (0, 0);
            for _ in 0..60 {
                let reply = wire.get(SITE, "/").await;
                match reply.status {
                    200 => served += 1,
                    503 => {
                        assert!(
                            reply.field("retry-after").is_some() && reply.outcome().starts_with("QUEUE-")
                        );
                        refused += 1;
                    }
                    other => panic!("{other}: {}", reply.raw_head()),
                }
            }
            (served, refused)
        });
    }
    let ended = within("the load", clients.join_all()).await;
    let (served, refused) = ended.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert_eq!((served + refused, origin.count()), (3 * CAP * 60, served), "what was refused was never sent");
    assert!(served > 0 && refused > 0, "{served} served, {refused} refused");
    assert!(most.load(Ordering::SeqCst) <= CAP, "{} at once", most.load(Ordering::SeqCst));
    assert_eq!(
        (service(&proxy).await["queue"].as_u64(), service(&proxy).await["in_flight"].as_u64()),
        (Some(0), Some(0))
    );
    crate::harness::tool::report(&format!(
        "{served} served, {refused} refused, at most {} at once",
        most.load(Ordering::SeqCst)
    ));
}

#[tokio::test]
async fn an_adaptive_limit_is_shown_stays_in_its_bounds_and_refuses_nobody_it_could_serve() {
    let origin = Origin::saying("ok").await;
    let capacity = "capacity = { adaptive = true, adaptive_min = 2, adaptive_max = 5 }";
    let proxy = with(&format!("{}\n{capacity}", origin.backends()), "2").await;
    let asked: Vec<_> = (0..50).map(|_| asking(&proxy, "/")).collect();
    for reply in asked {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    let row = service(&proxy).await;
    assert!(row["adaptive"] == true && (2..=5).contains(&row["limit"].as_u64().unwrap()), "{row}");
}

// ---- the breaker

#[tokio::test]
async fn a_service_that_fails_as_a_whole_is_left_alone_and_taken_back_by_one_trial() {
    let ill = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let is_ill = ill.clone();
    let origin = Origin::answering(move |_| match is_ill.load(Ordering::SeqCst) {
        true => Answer::new(502).body("ill"),
        false => Answer::ok("well"),
    })
    .await;
    let breaker = "breaker = { requests = 10, open = \"1s\" }";
    let proxy = with(&format!("{}\n{breaker}", origin.backends()), "1").await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..10 {
        assert_eq!(wire.get(SITE, "/").await.text(), "ill");
    }
    let reply = wire.get(SITE, "/").await;
    reply.expect(503, "CIRCUIT-OPEN");
    assert_eq!((reply.field("retry-after"), origin.count()), (Some("1"), 10));
    assert_eq!(service(&proxy).await["breaker"], "open");
    assert_eq!(proxy.metrics().await.sum("tidegate_breaker_open", &[]), 1.0);
    wait_for("a trial", || async { (proxy.get(SITE, "/").await.text() == "ill").then_some(()) }).await;
    proxy.get(SITE, "/").await.expect(503, "CIRCUIT-OPEN");
    ill.store(false, Ordering::SeqCst);
    wait_for("the service to be taken back", || async {
        (proxy.get(SITE, "/").await.text() == "well").then_some(())
    })
    .await;
    for _ in 0..20 {
        assert_eq!(proxy.get(SITE, "/").await.text(), "well");
    }
    assert_eq!(service(&proxy).await["breaker"], "closed");
    let log = proxy.stderr();
    assert!(log.contains("the breaker opens") && log.contains("the breaker closes"), "{log}");
}

#[tokio::test]
async fn an_open_breaker_survives_a_reload_and_not_its_own_end() {
    let address = dead().await;
    let site = |rest: &str| format!("backends = [\"{address}\"]\nbreaker = {rest}");
    let proxy = with(&site("{ requests = 5, open = \"1h\" }"), "1").await;
    for _ in 0..5 {
        proxy.get(SITE, "/").await;
    }
    proxy.get(SITE, "/").await.expect(503, "CIRCUIT-OPEN");
    proxy.write_site(SITE, &site("{ requests = 6, open = \"1h\" }"));
    proxy.reload().await;
    proxy.get(SITE, "/").await.expect(503, "CIRCUIT-OPEN");
    proxy.write_site(SITE, &site("\"off\""));
    proxy.reload().await;
    assert_eq!(proxy.get(SITE, "/").await.outcome(), "CONNECT-REFUSED");
    proxy.write_site(SITE, &site("{ requests = 5 }"));
    proxy.reload().await;
    assert_eq!(proxy.get(SITE, "/").await.outcome(), "CONNECT-REFUSED", "closed to begin with");
}
