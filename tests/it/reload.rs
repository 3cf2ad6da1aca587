//! Change anything at any hour and nobody notices; break anything and only its own site does.

use rustix::process::Signal;
use tokio::io::AsyncWriteExt;

use crate::harness::wire::Framing;
use crate::harness::{Answer, Gate, Origin, Proxy, wait_for, wait_until, within};

const SITE: &str = "shop.test";

/// Polls until the site answers with this text.
async fn serves(proxy: &Proxy, site: &str, text: &str) {
    wait_for(&format!("{site} to say {text}"), || async {
        (proxy.try_get(site, "/").await.ok()?.text() == text).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_changed_file_is_noticed_without_being_told() {
    let (old, new) = (Origin::saying("old").await, Origin::saying("new").await);
    let proxy = Proxy::with_site(SITE, &old.backends()).await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "old");
    let before = proxy.status().await["generation"].as_u64().unwrap();
    proxy.write_site(SITE, &new.backends());
    serves(&proxy, SITE, "new").await;
    assert!(proxy.status().await["generation"].as_u64().unwrap() > before);
    proxy.write_site("fresh.test", &new.backends());
    serves(&proxy, "fresh.test", "new").await;
    proxy.remove_site("fresh.test");
    wait_for("the removed site to go", || async { proxy.try_wire("fresh.test").await.err() }).await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "new");
}

#[tokio::test]
async fn sighup_reloads() {
    let (old, new) = (Origin::saying("old").await, Origin::saying("new").await);
    let proxy = Proxy::with_site(SITE, &old.backends()).await;
    proxy.write_site(SITE, &new.backends());
    proxy.signal(Signal::HUP);
    serves(&proxy, SITE, "new").await;
}

#[tokio::test]
async fn slow_work_gives_way_to_workers() {
    let origin = Origin::saying("x").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    proxy.reload().await;
    let tasks = std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).unwrap();
    let mut nice = Vec::new();
    for task in tasks.flatten() {
        // A thread may end meanwhile.
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let (name, fields) = stat.rsplit_once(')').unwrap();
        let fields: Vec<_> = fields.split_whitespace().collect();
        nice.push((name.split_once('(').unwrap().1.to_owned(), fields[16].parse::<i32>().unwrap()));
    }
    let of = |prefix: &str| {
        let all: Vec<_> =
            nice.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, nice)| *nice).collect();
        assert!(!all.is_empty(), "no thread {prefix} among {nice:?}");
        all
    };
    let workers = of("worker-");
    assert!(of("slow-work").iter().all(|slow| *slow == (workers[0] + 10).min(19)), "{nice:?}");
    assert!(workers.iter().all(|worker| *worker == workers[0]), "{nice:?}");
}

#[tokio::test]
async fn a_reload_reports_what_it_did() {
    let origin = Origin::saying("x").await;
    let proxy =
        Proxy::builder().site("a.test", &origin.backends()).site("b.test", &origin.backends()).start().await;
    let nothing = proxy.reload().await;
    assert_eq!(nothing["changed"], false, "{nothing}");
    // Both happen in one step from the reload's point of view or in two: the watcher may be first with one of them.
    proxy.write_site("c.test", &origin.backends());
    proxy.reload().await;
    assert_eq!(proxy.site("c.test").await["state"], "active");
    proxy.remove_site("c.test");
    proxy.reload().await;
    assert!(proxy.site("c.test").await.is_null());
}

#[tokio::test]
async fn a_broken_site_is_quarantined_and_everyone_else_takes_the_new_version() {
    let (old, new) = (Origin::saying("old").await, Origin::saying("new").await);
    let proxy =
        Proxy::builder().site("a.test", &old.backends()).site("b.test", &old.backends()).start().await;
    let kinds = [
        ("syntax", "backends = ["),
        ("an unknown key", "bakends = [\"127.0.0.1:1\"]"),
        ("a wrong type", "backends = 7"),
        ("a bad backend", "backends = [\"127.0.0.1:99999\"]"),
        (
            "a missing certificate",
            "backends = [\"127.0.0.1:1\"]\ncertificate = { cert = \"none.pem\", key = \"none.key\" }",
        ),
        (
            "a bad regex",
            "backends = [\"127.0.0.1:1\"]\n[[site.\"a.test\".route]]\npath = \"~(\"\nrespond = { status = 200 }",
        ),
        ("another site's name", "hosts = [\"b.test\"]\nbackends = [\"127.0.0.1:1\"]"),
    ];
    for (what, broken) in kinds {
        proxy.write_site("a.test", broken);
        proxy.write_site("b.test", &new.backends());
        proxy.reload().await;
        let site = proxy.site("a.test").await;
        assert_eq!(
            (&site["state"], &site["serving"]),
            (&"quarantined".into(), &true.into()),
            "{what}: {site}"
        );
        assert!(!site["reason"].as_str().unwrap_or_default().is_empty(), "{what}: {site}");
        assert_eq!(proxy.get("a.test", "/").await.text(), "old", "{what}");
        assert_eq!(proxy.get("b.test", "/").await.text(), "new", "{what}");
        proxy.write_site("a.test", &old.backends());
        proxy.write_site("b.test", &old.backends());
        proxy.reload().await;
        assert_eq!(proxy.site("a.test").await["state"], "active", "{what}");
    }
}

#[tokio::test]
async fn quarantine_lasts_over_a_restart() {
    let origin = Origin::saying("last good").await;
    let mut proxy =
        Proxy::builder().site("a.test", &origin.backends()).site("b.test", &origin.backends()).start().await;
    assert_eq!(proxy.get("a.test", "/").await.text(), "last good");
    proxy.write_site("a.test", "backends = [");
    proxy.restart().await;
    assert_eq!(proxy.get("a.test", "/").await.text(), "last good");
    assert_eq!(proxy.get("b.test", "/").await.text(), "last good");
    assert_eq!(proxy.site("a.test").await["state"], "quarantined");
    // And over a second one: the broken text never becomes the last good one.
    proxy.restart().await;
    assert_eq!(proxy.get("a.test", "/").await.text(), "last good");
}

#[tokio::test]
async fn a_site_that_was_never_good_stops_nobody() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .site("a.test", "backends = [\"nonsense:port\"]")
        .site("b.test", &origin.backends())
        .start()
        .await;
    assert_eq!(proxy.get("b.test", "/").await.text(), "ok");
    let site = proxy.site("a.test").await;
    assert_eq!((&site["state"], &site["serving"]), (&"quarantined".into(), &false.into()));
    proxy.plain().await.get("a.test", "/").await.expect(503, "SITE-UNAVAILABLE");
    proxy.write_site("a.test", &origin.backends());
    serves(&proxy, "a.test", "ok").await;
}

#[tokio::test]
async fn a_bad_server_section_refuses_the_reload_whole() {
    let (old, new) = (Origin::saying("old").await, Origin::saying("new").await);
    let proxy = Proxy::with_site(SITE, &old.backends()).await;
    let before = proxy.status().await["generation"].clone();
    proxy.edit_config(|text| text.replace("drain = \"2s\"", "drain = \"soon\""));
    proxy.write_site(SITE, &new.backends());
    let report = proxy.reload().await;
    assert_eq!(report["changed"], false, "{report}");
    let problem =
        report["diagnostics"].as_array().unwrap().iter().find(|d| d["severity"] == "error").unwrap();
    assert!(problem["message"].as_str().unwrap().contains("soon"), "{problem}");
    assert!(
        problem["line"].as_u64().is_some() && problem["file"].as_str().unwrap().ends_with("tidegate.toml")
    );
    assert_eq!(proxy.get(SITE, "/").await.text(), "old");
    assert_eq!(proxy.status().await["generation"], before);
    proxy.edit_config(|text| text.replace("drain = \"soon\"", "drain = \"3s\""));
    proxy.reload().await;
    assert_eq!(proxy.get(SITE, "/").await.text(), "new");
}

#[tokio::test]
async fn a_setting_that_needs_a_restart_is_named() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    proxy.edit_config(|text| text.replace("workers = 1", "workers = 2"));
    let report = proxy.reload().await;
    assert!(report["restart_needed"].to_string().contains("server.workers"), "{report}");
    assert_eq!(proxy.get(SITE, "/").await.text(), "ok");
}

/// Sends a first chunk, waits at the gate, sends the last one.
async fn in_two_parts(gate: &Gate) -> Origin {
    let gate = gate.clone();
    Origin::scripted(move |mut x| {
        let gate = gate.clone();
        async move {
            x.write("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n").await.ok()?;
            gate.pass().await;
            x.write("4\r\nlast\r\n0\r\n\r\n").await.ok()?;
            Some(x)
        }
    })
    .await
}

#[tokio::test]
async fn requests_and_tunnels_in_flight_survive_change_and_removal_of_their_site() {
    let gate = Gate::default();
    let (download, new) = (in_two_parts(&gate).await, Origin::saying("new").await);
    let echo = Origin::scripted(|mut x| async move {
        x.write("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            .await
            .ok()?;
        loop {
            if x.wire.ahead.is_empty() && x.wire.fill().await.ok()? == 0 {
                return None;
            }
            let bytes = std::mem::take(&mut x.wire.ahead);
            x.write(bytes).await.ok()?;
        }
    })
    .await;
    let proxy = Proxy::builder()
        .site("d.test", &download.backends())
        .site("w.test", &format!("{}\nupgrade = [\"echo\"]", echo.backends()))
        .start()
        .await;
    let mut reading = proxy.wire("d.test").await;
    reading.send("GET / HTTP/1.1\r\nHost: d.test\r\n\r\n").await;
    within("the head", reading.reply_head()).await.unwrap();
    assert_eq!(within("the first part", reading.chunk()).await.unwrap().unwrap(), b"first");
    let mut tunnel = proxy.wire("w.test").await;
    assert_eq!(
        tunnel.ask("GET", "/", "w.test", "Connection: Upgrade\r\nUpgrade: echo\r\n").await.status,
        101
    );

    proxy.write_site("d.test", &new.backends());
    proxy.write_site("w.test", &new.backends());
    proxy.reload().await;
    assert_eq!(proxy.get("d.test", "/").await.text(), "new");
    tunnel.send("ping").await;
    assert_eq!(within("the echo", tunnel.exactly(4)).await.unwrap(), b"ping");

    proxy.remove_site("d.test");
    proxy.remove_site("w.test");
    proxy.reload().await;
    tunnel.send("pong").await;
    assert_eq!(within("the echo", tunnel.exactly(4)).await.unwrap(), b"pong");
    gate.open();
    assert_eq!(within("the rest", reading.body(Framing::Chunked)).await.unwrap().0, b"last");
}

#[tokio::test]
async fn a_keep_alive_connection_sees_the_new_version_at_its_next_request() {
    let (old, new) = (Origin::saying("old").await, Origin::saying("new").await);
    let proxy = Proxy::with_site(SITE, &old.backends()).await;
    let (mut h1, mut h2) = (proxy.wire(SITE).await, proxy.h2(SITE).await);
    assert_eq!((h1.get(SITE, "/").await.text(), h2.get("/").await.text()), ("old".into(), "old".into()));
    proxy.write_site(SITE, &new.backends());
    proxy.reload().await;
    assert_eq!((h1.get(SITE, "/").await.text(), h2.get("/").await.text()), ("new".into(), "new".into()));
}

#[tokio::test]
async fn a_listener_can_be_added_and_others_are_not_touched() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut open = proxy.wire(SITE).await;
    assert_eq!(open.get(SITE, "/").await.status, 200);
    proxy.edit_config(|text| {
        text.replace("http = [\"127.0.0.1:0\"]", "http = [\"127.0.0.1:0\", \"127.0.0.2:0\"]")
    });
    let report = proxy.reload().await;
    // Either it listens now, or it says that it cannot without a restart: never silence.
    let status = proxy.status().await.to_string();
    assert!(
        status.contains("127.0.0.2:") || report["restart_needed"].to_string().contains("server.http"),
        "{report}"
    );
    assert_eq!(open.get(SITE, "/").await.status, 200);
}

// ---- stopping

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_takes_nothing_new() {
    let gate = Gate::default();
    let origin = in_two_parts(&gate).await;
    let mut proxy =
        Proxy::builder().set("server.drain", "\"15s\"").site(SITE, &origin.backends()).start().await;
    let mut reading = proxy.wire(SITE).await;
    let mut idle = proxy.wire(SITE).await;
    reading.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    within("the head", reading.reply_head()).await.unwrap();
    proxy.signal(Signal::TERM);
    let https = proxy.https();
    wait_until("the port to close", || std::net::TcpStream::connect(https).is_err()).await;
    idle.closed().await;
    gate.open();
    assert_eq!(within("the rest", reading.body(Framing::Chunked)).await.unwrap().0, b"firstlast");
    assert!(proxy.ended().await.success());
    let log = proxy.access_log();
    assert!(log.iter().any(|r| r["outcome"] == "OK"), "the last record was written before the end: {log:?}");
}

#[tokio::test]
async fn the_drain_deadline_ends_what_does_not_finish() {
    let origin = in_two_parts(&Gate::default()).await;
    let mut proxy =
        Proxy::builder().set("server.drain", "\"300ms\"").site(SITE, &origin.backends()).start().await;
    let mut reading = proxy.wire(SITE).await;
    reading.send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await;
    within("the head", reading.reply_head()).await.unwrap();
    proxy.signal(Signal::TERM);
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn sigterm_ends_http2_connections_gracefully() {
    let gate = Gate::default();
    let held = gate.clone();
    let origin = Origin::scripted(move |mut x| {
        let held = held.clone();
        async move {
            held.pass().await;
            x.answer(Answer::ok("finished")).await.ok()?;
            Some(x)
        }
    })
    .await;
    let mut proxy =
        Proxy::builder().set("server.drain", "\"15s\"").site(SITE, &origin.backends()).start().await;
    let mut h2 = proxy.h2(SITE).await;
    let answer = tokio::spawn(async move { (h2.get("/").await.text(), h2.driver) });
    origin.arrived(1).await;
    proxy.signal(Signal::TERM);
    let https = proxy.https();
    wait_until("the port to close", || std::net::TcpStream::connect(https).is_err()).await;
    gate.open();
    let (text, driver) = within("the answer", answer).await.unwrap();
    assert_eq!(text, "finished");
    within("the connection's end", driver).await.unwrap().expect("a graceful end");
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn an_upload_in_flight_survives_a_reload() {
    let origin = Origin::answering(|r| Answer::ok(r.body.len().to_string())).await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let mut wire = proxy.wire(SITE).await;
    wire.send(format!("POST / HTTP/1.1\r\nHost: {SITE}\r\nContent-Length: 10\r\n\r\nfirst")).await;
    origin.arrived(1).await;
    proxy.write_site("other.test", &origin.backends());
    assert_eq!(proxy.reload().await["quarantined"].as_array().map(Vec::len), Some(0));
    wire.io.write_all(b"secnd").await.unwrap();
    assert_eq!(wire.reply_to("POST").await.text(), "10");
}
