//! Containers and their labels, as an engine tells of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{FakeDocker, Origin, Proxy, ProxyBuilder, tool, wait_for};

const SITE: &str = "shop.test";

/// A proxy that asks an engine, and the engine's socket.
fn asking() -> (ProxyBuilder, PathBuf) {
    let builder = Proxy::builder();
    let socket = builder.folder().join("docker.sock");
    let builder = builder.set("docker.socket", &format!("\"unix://{}\"", socket.display()));
    (builder, socket)
}

async fn says(proxy: &Proxy, site: &str, path: &str, text: &str) {
    wait_for(&format!("{site}{path} to say {text}"), || async {
        (proxy.try_get(site, path).await.ok()?.text() == text).then_some(())
    })
    .await;
}

#[tokio::test]
async fn labels_make_sites_and_routes_that_follow_their_containers() {
    let (web, api, new) =
        (Origin::saying("web").await, Origin::saying("api").await, Origin::saying("new").await);
    let (builder, socket) = asking();
    let engine = FakeDocker::at(&socket);
    engine.start("web1", web.address(), &[("tidegate.site", SITE)]);
    let proxy = builder.start().await;
    // The first answer was waited for: the site was there before the first connection.
    assert_eq!(proxy.get(SITE, "/").await.text(), "web");
    assert_eq!(proxy.site(SITE).await["state"], "active");
    let labels = [
        ("tidegate.site", SITE),
        ("tidegate.path", "/api/"),
        ("tidegate.response_headers.set.X-From", "a label"),
    ];
    engine.start("api1", api.address(), &labels);
    says(&proxy, SITE, "/api/x", "api").await;
    assert_eq!(proxy.get(SITE, "/api/x").await.field("x-from"), Some("a label"));
    assert_eq!(proxy.get(SITE, "/").await.text(), "web");
    // Another container with the same labels takes over, and nothing is read again.
    let generation = |status: &serde_json::Value| status["sites"][0]["generation"].clone();
    engine.start(
        "web2",
        new.address(),
        &[("tidegate.site", SITE), ("tidegate.port", &new.address().port().to_string())],
    );
    says(&proxy, SITE, "/", "new").await;
    engine.kill("web1", "15");
    wait_for("one endpoint", || async {
        let status = proxy.status().await;
        let mut sources = status["sources"].as_array().unwrap().iter();
        let whole = sources.find(|s| s["source"] == "docker-labels:shop.test|/").unwrap().clone();
        (whole["endpoints"] == 1).then_some(generation(&status))
    })
    .await;
    for _ in 0..5 {
        assert_eq!(proxy.get(SITE, "/").await.text(), "new");
    }
    let endpoints = proxy.status().await["endpoints"].to_string();
    assert!(endpoints.contains("web2 web2"), "{endpoints}");
    engine.die("web1");
    // Nothing but reading was asked for, and that sparingly.
    let asked = engine.asked();
    let of = |path: &str| asked.iter().filter(|question| question.as_str() == path).count();
    assert_eq!((of("/_ping"), of("/v1.41/events"), of("/v1.41/containers/json")), (1, 1, 1), "{asked:?}");
}

#[tokio::test]
async fn regression_a_container_that_cannot_be_read_keeps_nobody_from_being_followed() {
    let (old, new, odd) =
        (Origin::saying("old").await, Origin::saying("new").await, Origin::saying("odd").await);
    let (builder, socket) = asking();
    let engine = FakeDocker::at(&socket);
    engine.start("web1", old.address(), &[("tidegate.site", SITE)]);
    engine.start("odd1", odd.address(), &[("tidegate.site", "odd.test")]);
    let mut proxy = builder.start().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "old");
    engine.spoil("odd1");
    wait_for("the container to be named", || async {
        let engine = proxy.status().await["engine"].to_string();
        (engine.contains("odd1") && engine.contains("cannot be read")).then_some(())
    })
    .await;
    assert_eq!(proxy.get("odd.test", "/").await.text(), "odd", "what is known of it stays");
    let port = new.address().port().to_string();
    engine.start("web2", new.address(), &[("tidegate.site", SITE), ("tidegate.port", &port)]);
    engine.die("web1");
    says(&proxy, SITE, "/", "new").await;
    // Nor does it at a start.
    proxy.restart().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "new");
    assert!(proxy.status().await["engine"].to_string().contains("odd1"));
}

#[tokio::test]
async fn regression_a_label_with_tens_of_thousands_of_dots_ends_nothing() {
    let (web, odd) = (Origin::saying("web").await, Origin::saying("odd").await);
    let (builder, socket) = asking();
    let engine = FakeDocker::at(&socket);
    engine.start("web1", web.address(), &[("tidegate.site", SITE)]);
    let proxy = builder.start().await;
    let deep = format!("tidegate.{}b", "a.".repeat(60_000));
    engine.start("odd1", odd.address(), &[("tidegate.site", "odd.test"), (&deep, "1")]);
    wait_for("the label to be told", || async {
        proxy.stderr().contains("more than 64 names").then_some(())
    })
    .await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "web");
}

#[tokio::test]
async fn a_bad_label_costs_its_site_the_new_version_and_nobody_else_anything() {
    let (good, bad) = (Origin::saying("good").await, Origin::saying("bad").await);
    let (builder, socket) = asking();
    let engine = FakeDocker::at(&socket);
    engine.start("good1", good.address(), &[("tidegate.site", SITE)]);
    engine.start("bad1", bad.address(), &[("tidegate.site", "bad.test"), ("tidegate.limit", "1000 per 1s")]);
    let proxy = builder.site("file.test", &good.backends()).start().await;
    assert_eq!(proxy.get("bad.test", "/").await.text(), "bad");
    let labels = [("tidegate.site", "bad.test"), ("tidegate.limit", "many"), ("tidegate.helth", "/up")];
    engine.start("bad2", bad.address(), &labels);
    let reason = wait_for("the quarantine", || async {
        proxy.site("bad.test").await["reason"].as_str().map(str::to_owned)
    })
    .await;
    assert!(reason.starts_with("docker:bad.test:"), "{reason}");
    let log = proxy.stderr();
    assert!(log.contains("(label `tidegate.limit` of the container bad2)"), "{log}");
    assert!(log.contains("unknown key `helth`") && log.contains("label `tidegate.helth`"), "{log}");
    // It goes on by its last good labels.
    for (site, text) in [("bad.test", "bad"), (SITE, "good"), ("file.test", "good")] {
        assert_eq!(proxy.get(site, "/").await.text(), text);
    }
    assert_eq!(proxy.site(SITE).await["state"], "active");
    // A site that a file defines is the file's, and a container without a certain port takes no part; both are told.
    engine.start("thief", bad.address(), &[("tidegate.site", "file.test")]);
    engine.start("good2", bad.address(), &[("tidegate.site", SITE), ("tidegate.port", "http")]);
    engine.start("stray", bad.address(), &[("tidegate.health", "/up")]);
    wait_for("all to be told", || async {
        let log = proxy.stderr();
        let told = [
            "`file.test` is already defined",
            "`tidegate.port`: `http` is no port",
            "container stray: its labels name no site",
        ];
        told.iter().all(|told| log.contains(told)).then_some(())
    })
    .await;
    for (site, text) in [("bad.test", "bad"), (SITE, "good"), ("file.test", "good")] {
        assert_eq!(proxy.get(site, "/").await.text(), text);
    }
    let status = proxy.command(&["status"]);
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("container stray: its labels name no site"), "{status}");
    // Mended labels are in force, and the quarantine ends.
    engine.start(
        "bad3",
        bad.address(),
        &[("tidegate.site", "bad.test"), ("tidegate.response_headers.set.X-V", "3")],
    );
    wait_for("the new labels", || async {
        (proxy.try_get("bad.test", "/").await.ok()?.field("x-v") == Some("3")).then_some(())
    })
    .await;
    // What `status` tells of a reload follows it.
    wait_for("the end of the quarantine", || async {
        (proxy.site("bad.test").await["state"] == "active").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_lost_engine_takes_nothing_away_not_even_over_a_restart() {
    let (one, two) = (Origin::saying("one").await, Origin::saying("two").await);
    let (builder, socket) = asking();
    let mut engine = FakeDocker::at(&socket);
    engine.start("one", one.address(), &[("tidegate.site", SITE)]);
    let mut proxy = builder.start().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "one");
    let file = proxy.path().join("state/containers.json");
    wait_for("the endpoints to be written down", || async { file.exists().then_some(()) }).await;
    engine.vanish();
    wait_for("the loss to be known", || async {
        proxy.status().await["engine"]["trouble"].is_string().then_some(())
    })
    .await;
    assert_eq!(proxy.metrics().await.sum("tidegate_container_engine_up", &[]), 0.0);
    assert!(proxy.stderr().contains("the last containers and sites stay"), "{}", proxy.stderr());
    proxy.reload().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "one");
    proxy.restart().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "one", "known from the last run");
    assert_eq!(proxy.site(SITE).await["state"], "active");
    // What happened meanwhile is seen when the engine is back.
    engine.forget("one");
    engine.appear();
    engine.start("two", two.address(), &[("tidegate.site", SITE)]);
    says(&proxy, SITE, "/", "two").await;
    assert!(proxy.status().await["engine"]["trouble"].is_null());
    assert_eq!(proxy.metrics().await.sum("tidegate_container_engine_up", &[]), 1.0);
    assert_eq!(proxy.metrics().await.sum("tidegate_discovery_failing", &[]), 0.0);
}

#[tokio::test]
async fn file_sites_go_to_containers_by_the_name_of_their_service() {
    let (one, two) = (Origin::saying("one").await, Origin::saying("two").await);
    let (builder, socket) = asking();
    let engine = FakeDocker::at(&socket);
    engine.start("one", one.address(), &[("tidegate.service", "web")]);
    let compose = [("com.docker.compose.project", "shop"), ("com.docker.compose.service", "web")];
    engine.start("two", two.address(), &compose);
    let composed = format!("backends = [\"docker://shop/web:{}\"]", two.address().port());
    let proxy =
        builder.site(SITE, "backends = [\"docker://web\"]").site("composed.test", &composed).start().await;
    says(&proxy, SITE, "/", "one").await;
    says(&proxy, "composed.test", "/", "two").await;
    let wrong = Proxy::with_site(SITE, "backends = [\"docker://web\"]").await;
    assert_eq!(wrong.get(SITE, "/").await.status, 503);
    let trouble = wrong.status().await["sources"][0]["trouble"].to_string();
    assert!(trouble.contains("add the section [docker]"), "{trouble}");
}

#[tokio::test]
async fn labels_of_a_swarm_service_count_for_its_tasks_and_change_while_these_run() {
    let (web, lone) = (Origin::saying("web").await, Origin::saying("lone").await);
    let (builder, socket) = asking();
    let engine = FakeDocker::at(&socket);
    let labels = |version| [("tidegate.site", SITE), ("tidegate.response_headers.set.X-V", version)];
    engine.service("web", &labels("1"));
    let task = [("com.docker.swarm.service.id", "web"), ("tidegate.response_headers.set.X-Own", "task")];
    engine.start("task1", web.address(), &task);
    // The manager is another node, and says nothing: its own labels count.
    let elsewhere = [("com.docker.swarm.service.id", "elsewhere"), ("tidegate.site", "lone.test")];
    engine.start("task2", lone.address(), &elsewhere);
    let proxy = builder.start().await;
    let reply = proxy.get(SITE, "/").await;
    assert_eq!(
        (reply.text().as_str(), reply.field("x-v"), reply.field("x-own")),
        ("web", Some("1"), Some("task"))
    );
    assert_eq!(proxy.get("lone.test", "/").await.text(), "lone");
    // `docker service update --label-add` starts no task anew.
    let both = [("tidegate.response_headers.set.X-Own", "service")];
    engine.service("web", &[&labels("2")[..], &both].concat());
    wait_for("the new label", || async {
        let reply = proxy.try_get(SITE, "/").await.ok()?;
        (reply.field("x-v") == Some("2") && reply.field("x-own") == Some("task")).then_some(())
    })
    .await;
    assert_eq!(proxy.status().await["endpoints"].as_array().unwrap().len(), 2);
}

/// Sites, containers of each, replacements.
const MANY: (usize, usize, usize) = (500, 4, 500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_containers_that_change_fifty_times_a_second_disturb_no_request() {
    let origin = Origin::saying("here").await;
    let (builder, socket) = asking();
    let engine = FakeDocker::at(&socket);
    let (sites, each, changes) = MANY;
    let site = |number: usize| format!("s{number}.test");
    let start = |number: usize, version: usize, labels: &[(&str, &str)]| {
        let site = site(number % sites);
        let mut all = vec![("tidegate.site", site.as_str())];
        all.extend(labels);
        engine.start(&format!("c{number}v{version}"), origin.address(), &all);
    };
    (0..sites * each).for_each(|number| start(number, 0, &[]));
    let timed = [Origin::saying("even").await, Origin::saying("odd").await];
    start_timed(&engine, 0, &timed);
    let proxy = builder.start().await;
    wait_for("every site", || async {
        (proxy.metrics().await.sum("tidegate_sites", &[("state", "active")]) == (sites + 1) as f64)
            .then_some(())
    })
    .await;
    let cpu = async || proxy.metrics().await.sum("process_cpu_seconds_total", &[]);
    let (cpu_before, memory_before) = (cpu().await, tool::rss_kib(proxy.pid()));
    let stop = AtomicBool::new(false);
    let steady = async {
        let mut client = proxy.h2("s0.test").await;
        let mut answers = 0;
        while !stop.load(Ordering::Relaxed) {
            assert_eq!(client.get("/").await.status, 200);
            answers += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        answers
    };
    let changing = async {
        let began = Instant::now();
        // The pace of the story, not a wait for an effect.
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        for change in 0..changes {
            pace.tick().await;
            let number = change % (sites * each);
            engine.die(&format!("c{number}v0"));
            // Every tenth comes with other labels.
            let version = change.to_string();
            let label = [("tidegate.response_headers.set.X-Version", version.as_str())];
            start(number, 1, if change % 10 == 0 { &label } else { &[] });
        }
        let took = began.elapsed();
        // The last labels that changed are in force, which all others are then, too.
        let last = changes - changes % 10 - 10;
        let asked = Instant::now();
        wait_for("the last labels", || async {
            let reply = proxy.try_get(&site(last % sites), "/").await.ok()?;
            (reply.field("x-version") == Some(last.to_string().as_str())).then_some(())
        })
        .await;
        stop.store(true, Ordering::Relaxed);
        (took, asked.elapsed())
    };
    let (answers, (took, lag), (came, went)) =
        tokio::join!(steady, changing, timing(&proxy, &engine, &timed));
    assert!(answers > 100, "{answers}");
    wait_for("every container", || async {
        let metrics = proxy.metrics().await;
        let found = metrics.sum("tidegate_discovered_endpoints", &[]);
        // All containers of a site are at one address here, and so are one endpoint.
        let containers = metrics.sum("tidegate_containers", &[]);
        (found == (sites + 1) as f64 && containers == (sites * each + 1) as f64).then_some(())
    })
    .await;
    tool::report(&format!(
        "{changes} changes in {took:?}; CPU {:.2} s; memory {} → {} KiB; last label after {lag:?}; {answers} answers",
        cpu().await - cpu_before,
        memory_before,
        tool::rss_kib(proxy.pid()),
    ));
    tool::report(&format!(
        "meanwhile: from `start` to the first request {}; from `kill` to the last {}",
        spread(came),
        spread(went)
    ));
}

const TIMED: &str = "timed.test";

fn start_timed(engine: &FakeDocker, round: usize, both: &[Origin; 2]) {
    let labels = [("tidegate.site", TIMED), ("tidegate.balance", "round_robin")];
    engine.start(&format!("timed{round}"), both[round % 2].address(), &labels);
}

/// One container takes the place of another, again and again: how long until the new one gets a request, and until the old
/// one, told to end, gets its last.
async fn timing(proxy: &Proxy, engine: &FakeDocker, both: &[Origin; 2]) -> (Vec<Duration>, Vec<Duration>) {
    let (mut came, mut went) = (Vec::new(), Vec::new());
    let mut wire = proxy.wire(TIMED).await;
    for round in 1..=50 {
        let new = ["even", "odd"][round % 2];
        let began = Instant::now();
        start_timed(engine, round, both);
        while wire.get(TIMED, "/").await.text() != new {}
        came.push(began.elapsed());
        let old = format!("timed{}", round - 1);
        let began = Instant::now();
        engine.kill(&old, "15");
        let (mut last, mut alone) = (Duration::ZERO, 0);
        // They take turns: when the new one has had several, the other has none.
        while alone < 4 {
            let is_new = wire.get(TIMED, "/").await.text() == new;
            alone = if is_new { alone + 1 } else { 0 };
            last = if is_new { last } else { began.elapsed() };
        }
        went.push(last);
        engine.die(&old);
    }
    (came, went)
}

fn spread(mut all: Vec<Duration>) -> String {
    all.sort_unstable();
    format!("{:?} (median), {:?} (longest of {})", all[all.len() / 2], all[all.len() - 1], all.len())
}
