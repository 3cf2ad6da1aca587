//! Whether a backend is well: what health checks ask and tell, what requests find out, and how much still reaches a backend
//! that goes wrong.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::h2_origin::{self, H2Origin, Settings};
use crate::harness::{Answer, Gate, Origin, Proxy, tool, wait_for, wait_until};

const SITE: &str = "shop.test";

async fn dead() -> SocketAddr {
    Origin::saying("").await.kill().await
}

/// What `status` says of an endpoint, by service and address.
async fn endpoint(proxy: &Proxy, service: &str, address: SocketAddr) -> Value {
    let status = proxy.status().await;
    let all = status["endpoints"].as_array().expect("endpoints").clone();
    let found = all.into_iter().find(|e| e["service"] == service && e["address"] == address.to_string());
    found.unwrap_or(Value::Null)
}

/// Waits until `status` says this of an endpoint.
async fn until(proxy: &Proxy, address: SocketAddr, key: &str, value: &str) -> Value {
    wait_for(&format!("{key} of {address} to be {value}"), || async {
        let found = endpoint(proxy, &format!("{SITE}//"), address).await;
        (found[key] == value).then_some(found)
    })
    .await
}

/// A gRPC server that answers a check with this status of the protocol and of its message.
async fn grpc(code: &'static str, serving: u8) -> H2Origin {
    H2Origin::scripted(Settings::default(), move |mut stream| async move {
        let asked = stream.read().await.map(|(body, _)| body).unwrap_or_default();
        assert_eq!(stream.path(), "/grpc.health.v1.Health/Check");
        assert_eq!(
            (stream.field("content-type"), stream.field("te")),
            (Some("application/grpc"), Some("trailers"))
        );
        assert_eq!(asked, [&[0, 0, 0, 0, 8, 0x0a, 6][..], b"shop.A"].concat());
        let mut body = stream.head(200, &[("content-type", "application/grpc")], false);
        if code == "0" {
            let message = Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, serving]);
            let _ = h2_origin::send(&mut body, message, false).await;
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", code.parse().unwrap());
        let _ = body.send_trailers(trailers);
    })
    .await
}

const GRPC: &str = "upstream = { http = \"h2\" }\nhealth = { type = \"grpc\", service = \"shop.A\" }";

#[tokio::test]
async fn whatever_is_wrong_is_told_in_plain_words() {
    // It listens, and nobody ever accepts.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = (silent.local_addr().unwrap(), silent);
    let refused = dead().await;
    let ill = Origin::answering(|_| Answer::new(503).body("Down for\nmaintenance")).await;
    let html = Origin::saying("<html>It works!</html>").await;
    let cut = Origin::scripted(|mut x| async move {
        x.write("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.ok()?;
        None
    })
    .await;
    let nonsense = Origin::scripted(|mut x| async move {
        x.write("SSH-2.0-OpenSSH\r\n").await.ok()?;
        None
    })
    .await;
    let web = H2Origin::scripted(Settings::default(), |mut stream| async move {
        stream.head(200, &[("content-type", "text/html")], true);
    })
    .await;
    let (out, unknown, without) = (grpc("0", 2).await, grpc("5", 0).await, grpc("12", 0).await);
    let port = refused.port();
    let cases = [
        (refused, "health = \"/up\"".to_owned(), "health check GET /up: connection refused: nothing listens on that port".to_owned()),
        (refused, "health = \"tcp\"".into(), "health check connecting: connection refused: nothing listens on that port".into()),
        (silent.0, "health = { path = \"/up\", timeout = \"300ms\" }".into(), "health check GET /up: connected, but no answer within 300ms".into()),
        (ill.address(), "health = \"/up\"".into(), "health check GET /up: answered 503, expected 200-399; it begins with \"Down for\\nmaintenance\"".into()),
        (
            html.address(),
            "health = { path = \"/up\", status = [\"200-299\", 304], body = \"ready\" }".into(),
            "health check GET /up: answered 200, but the body (22 bytes of it) does not contain \"ready\"; it begins with \"<html>It works!</html>\"".into(),
        ),
        (html.address(), "health = { path = \"/up\", method = \"HEAD\", status = [204] }".into(), "health check HEAD /up: answered 200, expected 204; it has no body".into()),
        (cut.address(), "health = { path = \"/up\", body = \"ready\" }".into(), "health check GET /up: answered 200, but the body broke off".into()),
        (nonsense.address(), "health = \"/up\"".into(), "health check GET /up: connected, but no valid answer came".into()),
        (html.address(), format!("health = {{ path = \"/up\", port = {port} }}"), format!("health check GET /up at 127.0.0.1:{port}: connection refused")),
        (html.address(), GRPC.into(), "health check gRPC Health/Check of shop.A: the backend does not speak HTTP/2".into()),
        (web.address(), GRPC.into(), "health check gRPC Health/Check of shop.A: answered with the content type \"text/html\": that is not gRPC".into()),
        (out.address(), GRPC.into(), "health check gRPC Health/Check of shop.A: it says NOT_SERVING".into()),
        (unknown.address(), GRPC.into(), "health check gRPC Health/Check of shop.A: grpc-status 5: it knows no service \"shop.A\"".into()),
        (without.address(), GRPC.into(), "health check gRPC Health/Check of shop.A: grpc-status 12: it does not have grpc.health.v1.Health".into()),
    ];
    let mut builder = Proxy::builder();
    for (number, (address, health, _)) in cases.iter().enumerate() {
        builder = builder.site(
            &format!("s{number}.test"),
            &format!("backends = [\"{address}\"]\npanic = \"off\"\n{health}"),
        );
    }
    let proxy = builder.start().await;
    for (number, (address, health, words)) in cases.iter().enumerate() {
        let service = format!("s{number}.test//");
        let found = wait_for("an answer", || async {
            let found = endpoint(&proxy, &service, *address).await;
            found["because"].is_string().then_some(found)
        })
        .await;
        let because = found["because"].as_str().unwrap();
        assert!(because.starts_with(words), "{health}: {because}");
        assert_eq!((&found["state"], &found["check"]["well"]), (&"down".into(), &false.into()), "{health}");
        let reached = if because.contains("refused") && !because.contains(" at ") {
            "unreachable"
        } else {
            "unhealthy"
        };
        assert_eq!(found["health"], reached, "{health}");
    }
    let page = proxy.command(&["status"]);
    let page = tool::text(&page.stdout);
    for (_, _, words) in &cases {
        assert!(page.contains(&format!("because: {words}")), "no `{words}` in\n{page}");
    }
    let log = proxy.stderr() + &proxy.stdout();
    assert!(log.contains("backend is unhealthy: GET /up: answered 503"), "{log}");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_endpoint_healthy", &[]), 0.0);
    assert!(metrics.sum("tidegate_health_probes_total", &[("result", "ill")]) >= cases.len() as f64);
}

#[tokio::test]
async fn whatever_is_well_is_told_too() {
    let host = Arc::new(Mutex::new(String::new()));
    let heard = host.clone();
    let plain = Origin::answering(move |request| {
        *heard.lock().unwrap() = request.field("host").unwrap_or_default().to_owned();
        match (request.method(), request.target()) {
            ("HEAD", "/up") => Answer::new(304),
            (_, "/up") => Answer::new(418).body("  READY, version 7"),
            _ => Answer::new(500),
        }
    })
    .await;
    let elsewhere = Origin::answering(|_| Answer::new(204)).await;
    let serving = grpc("0", 1).await;
    let (plain, port) = (plain.address(), elsewhere.address().port());
    let cases = [
        (plain, "health = { path = \"/up\", status = [418], body = \"READY\" }".to_owned(), "answered 418"),
        (plain, "health = { path = \"/up\", status = [418], body = \"~(?i)ready, version [0-9]+$\", host = \"inner:81\" }".into(), "answered 418"),
        (plain, "health = { path = \"/up\", method = \"HEAD\" }".into(), "answered 304"),
        (plain, "health = \"tcp\"".into(), "connected"),
        (plain, format!("health = {{ path = \"/\", port = {port}, address = \"127.0.0.1\" }}"), "answered 204"),
        (serving.address(), GRPC.into(), "SERVING"),
    ];
    for (address, health, words) in cases {
        let proxy = Proxy::with_site(SITE, &format!("backends = [\"{address}\"]\n{health}")).await;
        let found = until(&proxy, address, "health", "healthy").await;
        assert_eq!((&found["check"]["answer"], &found["because"]), (&words.into(), &Value::Null), "{health}");
        if health.contains("inner") {
            assert_eq!(*host.lock().unwrap(), "inner:81");
        }
        let page = tool::text(&proxy.command(&["status"]).stdout);
        assert!(page.contains(&format!("{words}, 0s ago")) || page.contains(" ago\n"), "{page}");
    }
}

#[tokio::test]
async fn a_backend_that_joins_gets_requests_when_it_has_answered_its_check() {
    let old = Origin::saying("old").await;
    let gate = Gate::default();
    let opened = gate.clone();
    let fresh = Origin::scripted(move |mut x| {
        let opened = opened.clone();
        async move {
            if x.request.target() == "/up" {
                opened.pass().await;
            }
            x.answer(Answer::ok("new")).await.ok()?;
            Some(x)
        }
    })
    .await;
    let site = |backends: &str| {
        format!(
            "backends = [{backends}]\nbalance = \"round_robin\"\nhealth = {{ path = \"/up\", timeout = \"1h\" }}"
        )
    };
    let proxy = Proxy::with_site(SITE, &site(&format!("\"{}\"", old.address()))).await;
    until(&proxy, old.address(), "health", "healthy").await;
    proxy.write_site(SITE, &site(&format!("\"{}\", \"{}\"", old.address(), fresh.address())));
    proxy.reload().await;
    until(&proxy, fresh.address(), "health", "joining").await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..50 {
        assert_eq!(wire.get(SITE, "/").await.text(), "old");
    }
    gate.open();
    until(&proxy, fresh.address(), "state", "up").await;
    let mut said = Vec::new();
    for _ in 0..4 {
        said.push(wire.get(SITE, "/").await.text());
    }
    said.sort();
    assert_eq!(said, ["new", "new", "old", "old"]);
}

#[tokio::test]
async fn backends_that_many_routes_share_are_asked_once() {
    let origin = Origin::saying("ok").await;
    let mut site = format!(
        "[site.\"{SITE}\"]\n{}\nhealth = {{ path = \"/up\", interval = \"1d\" }}\n",
        origin.backends()
    );
    for route in 0..20 {
        site += &format!("[[site.\"{SITE}\".route]]\npath = \"/{route}/\"\n");
    }
    let proxy = Proxy::with_site(SITE, &site).await;
    wait_for("every service to hear the answer", || async {
        let status = proxy.status().await;
        let all = status["endpoints"].as_array().unwrap().clone();
        (all.len() == 21 && all.iter().all(|e| e["health"] == "healthy")).then_some(())
    })
    .await;
    assert_eq!(origin.count(), 1);
}

#[tokio::test]
async fn a_hundred_reloads_keep_what_is_known_and_ask_nobody_anew() {
    let (well, failing) = (
        Origin::saying("ok").await,
        Origin::answering(|r| if r.target() == "/up" { Answer::ok("ok") } else { Answer::new(500) }).await,
    );
    let site = |number: usize| {
        format!(
            "backends = [\"{}\", \"{}\"]\nbalance = \"round_robin\"\ntimeout = \"{}s\"\n\
             health = {{ path = \"/up\", interval = \"1d\" }}\neject = {{ status = [\"500-599\"], time = \"1d\", time_max = \"1d\" }}",
            well.address(),
            failing.address(),
            60 + number
        )
    };
    let proxy = Proxy::with_site(SITE, &site(0)).await;
    until(&proxy, well.address(), "health", "healthy").await;
    until(&proxy, failing.address(), "health", "healthy").await;
    let mut wire = proxy.wire(SITE).await;
    let mut failed = 0;
    for _ in 0..20 {
        failed += usize::from(wire.get(SITE, "/").await.status == 500);
    }
    assert_eq!(failed, 5);
    for number in 1..=100 {
        proxy.write_site(SITE, &site(number));
        // Or the watcher was quicker.
        proxy.reload().await;
    }
    assert!(proxy.status().await["generation"].as_u64().unwrap() > 100, "each was put in force");
    for _ in 0..20 {
        assert_eq!(wire.get(SITE, "/").await.status, 200);
    }
    let found = endpoint(&proxy, &format!("{SITE}//"), failing.address()).await;
    assert_eq!(
        (&found["health"], &found["out"]["cause"]),
        (&"healthy".into(), &"consecutive".into()),
        "{found}"
    );
    let probes = |origin: &Origin| origin.requests().iter().filter(|r| r.target() == "/up").count();
    assert_eq!((probes(&well), probes(&failing)), (1, 1), "each was asked once, at the start");
}

#[tokio::test]
async fn a_thousand_backends_are_asked_evenly_and_a_bounded_number_at_once() {
    /// What a probe may have under way; see the manual.
    const UNDER_WAY_MAX: usize = 128;
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts: Arc<Mutex<HashMap<IpAddr, usize>>> = Arc::default();
    let (counted, peak) = (counts.clone(), most.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (open, peak, counted) = (open.clone(), peak.clone(), counted.clone());
            tokio::spawn(async move {
                peak.fetch_max(open.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let mut head = [0; 1024];
                let _ = stream.read(&mut head).await;
                let asked = stream.local_addr().unwrap().ip();
                *counted.lock().unwrap().entry(asked).or_default() += 1;
                // Counted as closed before the prober can know.
                open.fetch_sub(1, Ordering::SeqCst);
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
            });
        }
    });
    let backends: Vec<String> =
        (0..1000).map(|n| format!("\"127.1.{}.{}:{port}\"", n / 250, n % 250 + 1)).collect();
    let site =
        format!("backends = [{}]\nhealth = {{ path = \"/up\", interval = \"2s\" }}", backends.join(", "));
    let proxy = Proxy::with_site(SITE, &site).await;
    wait_until("all to be asked three times", || {
        let counts = counts.lock().unwrap();
        counts.len() == 1000 && counts.values().all(|count| *count >= 3)
    })
    .await;
    let most_asked = counts.lock().unwrap().values().copied().max().unwrap();
    // The first answer, a first turn within an interval, and what three intervals may differ.
    assert!(most_asked <= 6, "when all were asked three times one was asked {most_asked} times");
    let most = most.load(Ordering::SeqCst);
    assert!(most <= UNDER_WAY_MAX, "{most} connections at once");
    let metrics = proxy.metrics().await;
    assert_eq!(metrics.sum("tidegate_endpoint_healthy", &[]), 1000.0);
    assert!(metrics.sum("tidegate_health_probes_active", &[]) <= UNDER_WAY_MAX as f64);
}

// ---- backends that go wrong

#[tokio::test]
async fn a_backend_that_turns_slow_gets_little_by_either_way_of_balancing() {
    for (balance, rules, most) in
        [("p2c", "", 20), ("round_robin", "eject = { latency = 3, min_requests = 5 }", 25)]
    {
        let quick = [Origin::saying("1").await, Origin::saying("2").await, Origin::saying("3").await];
        let slow = Origin::scripted(|mut x| async move {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            x.answer(Answer::ok("slow")).await.ok()?;
            Some(x)
        })
        .await;
        let all: Vec<_> =
            quick.iter().chain([&slow]).map(|origin| format!("\"{}\"", origin.address())).collect();
        let site = format!("backends = [{}]\nbalance = \"{balance}\"\n{rules}", all.join(", "));
        let proxy = Proxy::with_site(SITE, &site).await;
        let mut wire = proxy.wire(SITE).await;
        for _ in 0..400 {
            assert_eq!(wire.get(SITE, "/").await.status, 200);
        }
        println!("slow, {balance}: {} of 400", slow.count());
        assert!(slow.count() <= most, "{balance}: {} of 400 went to the slow one", slow.count());
    }
}

#[tokio::test]
async fn a_backend_that_flaps_costs_no_request_and_gets_its_share_while_it_is_there() {
    let steady = Origin::saying("steady").await;
    let mut flapping = Origin::saying("flapping").await;
    let address = flapping.address();
    let site = format!("backends = [\"{}\", \"{address}\"]\nbalance = \"round_robin\"", steady.address());
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..3 {
        flapping.kill().await;
        for _ in 0..50 {
            assert_eq!(wire.get(SITE, "/").await.text(), "steady");
        }
        assert_eq!(endpoint(&proxy, &format!("{SITE}//"), address).await["state"], "down");
        flapping = Origin::answering_at(address, |_| Answer::ok("flapping")).await;
        // Requests are what tries it.
        wait_for("it to be found back", || async {
            (proxy.get(SITE, "/").await.text() == "flapping").then_some(())
        })
        .await;
        let mut share = 0;
        for _ in 0..50 {
            share += usize::from(wire.get(SITE, "/").await.text() == "flapping");
        }
        assert_eq!(share, 25);
    }
    let refused =
        proxy.metrics().await.sum("tidegate_upstream_connection_failures_total", &[("reason", "refused")]);
    println!("flaps: {refused} connects refused in 3 times");
    // Two to notice each time, then one trial a second, two seconds, four …
    assert!(refused <= 3.0 * 8.0, "{refused}");
    let log = proxy.stderr() + &proxy.stdout();
    assert!(
        log.contains("backend is down, for 1 s") && log.contains("backend can be connected to again"),
        "{log}"
    );
}

#[tokio::test]
async fn a_backend_that_fails_one_in_ten_gets_nothing_when_it_was_found_out() {
    let good = [Origin::saying("1").await, Origin::saying("2").await, Origin::saying("3").await];
    let number = Arc::new(AtomicUsize::new(0));
    let bad = Origin::answering(move |_| match number.fetch_add(1, Ordering::SeqCst) % 10 {
        9 => Answer::new(500),
        _ => Answer::ok("ok"),
    })
    .await;
    let all: Vec<_> = good.iter().chain([&bad]).map(|origin| format!("\"{}\"", origin.address())).collect();
    let site = format!(
        "backends = [{}]\nbalance = \"round_robin\"\neject = {{ error_rate = \"5%\", status = [\"500-599\"] }}",
        all.join(", ")
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let found = wait_for("it to be ejected", || async {
        let mut wire = proxy.wire(SITE).await;
        for _ in 0..40 {
            wire.get(SITE, "/").await;
        }
        let found = endpoint(&proxy, &format!("{SITE}//"), bad.address()).await;
        (found["out"]["cause"] == "error-rate").then_some(found)
    })
    .await;
    let because = found["because"].as_str().unwrap();
    assert!(because.starts_with("ejected: ") && because.contains("(error_rate = 5%)"), "{because}");
    let before = bad.count();
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..400 {
        assert_eq!(wire.get(SITE, "/").await.status, 200);
    }
    println!("500 for 10 %: found out after {before} requests, then {} of 400", bad.count() - before);
    // A trial after 30 s, should this machine have been that slow.
    assert!(bad.count() - before <= 1);
    let ejections = [("cause", "error-rate")];
    assert!(proxy.metrics().await.sum("tidegate_endpoint_ejections_total", &ejections) >= 1.0);
}

#[tokio::test]
async fn a_backend_that_accepts_and_never_answers_costs_five_requests_and_with_a_check_none() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let good = Origin::saying("ok").await;
    let site = format!(
        "backends = [\"{}\", \"{address}\"]\nbalance = \"round_robin\"\ntimeout = \"300ms\"\n",
        good.address()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut late = 0;
    for _ in 0..100 {
        late += usize::from(proxy.get(SITE, "/").await.status == 504);
    }
    println!("never answers: {late} of 100 without a check");
    assert_eq!(late, 5, "five in a row, and it is out");
    let log = proxy.stderr() + &proxy.stdout();
    assert!(log.contains("backend is ejected, for 30 s: 5 requests in a row failed; the last: "), "{log}");

    let check = "health = { path = \"/up\", timeout = \"300ms\" }";
    let proxy = Proxy::with_site(SITE, &format!("{site}{check}")).await;
    until(&proxy, address, "health", "unhealthy").await;
    for _ in 0..100 {
        assert_eq!(proxy.get(SITE, "/").await.status, 200);
    }
}

#[tokio::test]
async fn a_backend_that_lies_in_its_health_check_is_found_out_by_five_requests() {
    let good = Origin::saying("ok").await;
    let liar = Origin::answering(|request| match request.target() {
        "/up" => Answer::ok("never better"),
        _ => Answer::new(500),
    })
    .await;
    let site = format!(
        "backends = [\"{}\", \"{}\"]\nbalance = \"round_robin\"\nhealth = {{ path = \"/up\", interval = \"50ms\" }}\n\
         eject = {{ status = [\"500-599\"] }}",
        good.address(),
        liar.address()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    until(&proxy, liar.address(), "health", "healthy").await;
    let mut failed = 0;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..200 {
        failed += usize::from(wire.get(SITE, "/").await.status == 500);
    }
    println!("lies: {failed} of 200");
    assert_eq!(failed, 5);
    let found = endpoint(&proxy, &format!("{SITE}//"), liar.address()).await;
    assert_eq!((&found["health"], &found["state"]), (&"healthy".into(), &"down".into()), "{found}");
    let because = found["because"].as_str().unwrap();
    assert!(
        because.starts_with("ejected: 5 requests in a row failed; the last: it answered 500 (tried in "),
        "{because}"
    );
}

#[tokio::test]
async fn when_too_few_are_well_all_get_requests_and_everybody_is_told() {
    let ill = Arc::new(AtomicBool::new(true));
    let start = |name: &'static str, ill: Option<Arc<AtomicBool>>| {
        Origin::answering(move |request| {
            let ill = ill.as_ref().is_some_and(|ill| ill.load(Ordering::SeqCst));
            if request.target() == "/up" && ill { Answer::new(503) } else { Answer::ok(name) }
        })
    };
    let (a, b, c) =
        (start("a", None).await, start("b", Some(ill.clone())).await, start("c", Some(ill.clone())).await);
    let site = format!(
        "backends = [\"{}\", \"{}\", \"{}\"]\nbalance = \"round_robin\"\nhealth = {{ path = \"/up\", interval = \"50ms\" }}",
        a.address(),
        b.address(),
        c.address()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    until(&proxy, b.address(), "health", "unhealthy").await;
    until(&proxy, c.address(), "health", "unhealthy").await;
    until(&proxy, a.address(), "health", "healthy").await;
    let mut wire = proxy.wire(SITE).await;
    let mut said = String::new();
    for _ in 0..9 {
        said += &wire.get(SITE, "/").await.text();
    }
    assert_eq!(
        ["a", "b", "c"].map(|name| said.matches(name).count()),
        [3, 3, 3],
        "one of three is not half: {said}"
    );
    let status = proxy.status().await;
    assert_eq!(status["panics"][0]["good"], 1, "{status}");
    assert_eq!(
        proxy.metrics().await.sum("tidegate_service_panic", &[("service", &format!("{SITE}//"))]),
        1.0
    );
    let page = tool::text(&proxy.command(&["status"]).stdout);
    assert!(page.contains("panic in shop.test//: only 1 of 3 endpoints that can be reached"), "{page}");
    ill.store(false, Ordering::SeqCst);
    wait_for("the panic to be over", || async {
        (proxy.status().await["panics"].as_array().unwrap().is_empty()).then_some(())
    })
    .await;
    assert_eq!(proxy.metrics().await.sum("tidegate_service_panic", &[]), 0.0);
    let log = proxy.stderr() + &proxy.stdout();
    assert!(
        log.contains("panic: of 3 backends that can be reached only 1 are in good standing (panic = 50%)"),
        "{log}"
    );
    assert!(log.contains("the panic is over after "), "{log}");
}
