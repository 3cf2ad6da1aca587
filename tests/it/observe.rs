//! What is counted, what is written down, what a client is told, and what is not said.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::harness::proxy::TIDEGATE;
use crate::harness::{Answer, Origin, Proxy, Wire, wait_for};

const SITE: &str = "shop.test";

#[tokio::test]
async fn the_counters_agree_with_what_was_sent() {
    let origin = Origin::answering(|r| match r.target() {
        "/404" => Answer::new(404),
        "/500" => Answer::new(500),
        _ => Answer::ok("ok"),
    })
    .await;
    let proxy = Proxy::builder().set("server.workers", "2").site(SITE, &origin.backends()).start().await;
    for (path, n) in [("/", 7), ("/404", 3), ("/500", 2)] {
        for _ in 0..n {
            proxy.get(SITE, path).await;
        }
    }
    proxy.records(12).await;
    let count = |metrics: &crate::harness::proxy::Metrics, class: &str| {
        metrics.sum("tidegate_requests_total", &[("site", SITE), ("status", class)])
    };
    let metrics = proxy.metrics().await;
    assert_eq!(
        (count(&metrics, "2xx"), count(&metrics, "4xx"), count(&metrics, "5xx")),
        (7.0, 3.0, 2.0),
        "{}",
        metrics.0
    );
}

#[tokio::test]
async fn counters_never_go_back_over_a_reload_or_a_removed_site() {
    let origin = Origin::saying("ok").await;
    let proxy =
        Proxy::builder().site("a.test", &origin.backends()).site("b.test", &origin.backends()).start().await;
    for _ in 0..5 {
        proxy.get("a.test", "/").await;
    }
    proxy.records(5).await;
    let total = || async { proxy.metrics().await.sum("tidegate_requests_total", &[]) };
    let before = total().await;
    assert_eq!(before, 5.0);
    proxy.write_site("a.test", &format!("{}\nmax_body = \"1MiB\"", origin.backends()));
    proxy.reload().await;
    assert!(total().await >= before);
    proxy.get("a.test", "/").await;
    proxy.records(6).await;
    assert_eq!(proxy.metrics().await.sum("tidegate_requests_total", &[("site", "a.test")]), 6.0);
}

#[tokio::test]
async fn clients_cannot_make_up_series() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let series = |text: &str| text.lines().filter(|l| !l.starts_with('#')).count();
    proxy.wire(SITE).await.ask("BREW", "/", SITE, "").await;
    proxy.plain().await.get("nobody.test", "/").await;
    proxy.records(2).await;
    let before = series(&proxy.metrics().await.0);
    for i in 0..50 {
        proxy.wire(SITE).await.ask(&format!("M{i}"), &format!("/{i}"), SITE, "").await;
        proxy.plain().await.get(&format!("n{i}.test"), "/").await;
    }
    proxy.records(102).await;
    let metrics = proxy.metrics().await;
    assert_eq!(series(&metrics.0), before, "{}", metrics.0);
    assert!(!metrics.0.contains("n7.test") && !metrics.0.contains("M7"));
}

#[tokio::test]
async fn the_metrics_page_is_prometheus_text_with_help_and_type_for_all() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    proxy.get(SITE, "/").await;
    let text = proxy.metrics().await.0;
    for line in text.lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s)).unwrap_or(name);
        let typed =
            |n: &str| text.contains(&format!("# TYPE {n} ")) && text.contains(&format!("# HELP {n} "));
        assert!(typed(name) || typed(family), "{name} has no HELP and TYPE");
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn a_record_tells_the_story_of_a_request() {
    let origin = Origin::saying("hello").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    proxy.wire(SITE).await.ask("GET", "/a?b=c", SITE, "User-Agent: t/1\r\n").await;
    let record = proxy.records(1).await.remove(0);
    for (key, value) in [
        ("site", Value::from(SITE)),
        ("method", "GET".into()),
        ("host", SITE.into()),
        ("path", "/a".into()),
        ("status", 200.into()),
        ("outcome", "OK".into()),
        ("client", "127.0.0.1".into()),
        ("upstream", origin.address().to_string().into()),
    ] {
        assert_eq!(record[key], value, "{key} in {record}");
    }
    assert_eq!(record["id"], origin.only().field("x-request-id").unwrap());
}

#[tokio::test]
async fn strict_privacy_keeps_addresses_queries_and_cookies_out() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::builder()
        .set("log.privacy", "\"strict\"")
        .set("server.trusted_proxies", "[\"127.0.0.1/32\"]")
        .site(SITE, &origin.backends())
        .start()
        .await;
    let fields = "X-Forwarded-For: 198.51.100.77\r\nCookie: session=topsecret\r\nAuthorization: Bearer topsecret\r\n\
                  Referer: https://ref.test/?q=topsecret\r\n";
    proxy.wire(SITE).await.ask("GET", "/p?token=topsecret", SITE, fields).await;
    let record = proxy.records(1).await.remove(0).to_string();
    assert!(record.contains("198.51.100.0"), "{record}");
    for secret in ["198.51.100.77", "topsecret"] {
        assert!(!record.contains(secret), "{secret} is in {record}");
        assert!(!proxy.stderr().contains(secret), "{secret} is in the process log");
    }
}

#[tokio::test]
async fn the_log_cannot_be_forged_from_outside() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let evil = "/%0a%7b%22outcome%22:%22forged%22%7d\"}";
    proxy.wire(SITE).await.ask("GET", evil, SITE, "User-Agent: \"},{\"\x1b[31m\\\r\n").await;
    proxy.get(SITE, "/after").await;
    // Every line parses (access_log sees to it), and there are as many as there were requests.
    assert_eq!(proxy.records(2).await.len(), 2);
}

#[tokio::test]
async fn the_combined_format_is_what_log_tools_expect() {
    let origin = Origin::saying("hello").await;
    let proxy =
        Proxy::builder().set("log.format", "\"combined\"").site(SITE, &origin.backends()).start().await;
    proxy.wire(SITE).await.ask("GET", "/a", SITE, "User-Agent: t/1\r\n").await;
    let line = wait_for("a line", || async {
        let text = std::fs::read_to_string(proxy.path().join("access.log")).ok()?;
        text.lines().next().map(str::to_string)
    })
    .await;
    let shape =
        regex::Regex::new(r#"^127\.0\.0\.1 - - \[[^\]]+\] "GET /a HTTP/1\.1" 200 5 "[^"]*" "t/1""#).unwrap();
    assert!(shape.is_match(&line), "{line}");
}

#[tokio::test]
async fn the_log_file_is_opened_again_on_sighup_and_on_sigusr1() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    for (signal, aside) in [(Signal::HUP, "access.log.1"), (Signal::USR1, "access.log.2")] {
        proxy.get(SITE, "/before").await;
        proxy.records(1).await;
        std::fs::rename(proxy.path().join("access.log"), proxy.path().join(aside)).unwrap();
        proxy.signal(signal);
        wait_for("a record in the new file", || async {
            proxy.get(SITE, "/after").await;
            (!proxy.access_log().is_empty()).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn an_access_log_that_could_not_be_opened_is_told_and_opened_by_a_later_reload() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let (folder, config) = (proxy.path().join("later"), proxy.path().join("access.log"));
    let (old, new) = (config.display().to_string(), folder.join("access.log").display().to_string());
    proxy.edit_config(|text| {
        assert!(text.contains(&old), "{text}");
        text.replace(&old, &new)
    });
    let reload = proxy.command(&["reload"]);
    let said = String::from_utf8_lossy(&reload.stdout).into_owned();
    assert!(reload.status.code() == Some(1) && said.contains("the access log stays where it was"), "{said}");
    std::fs::create_dir(&folder).unwrap();
    assert!(proxy.command(&["reload"]).status.success());
    wait_for("a record where it belongs", || async {
        proxy.get(SITE, "/").await;
        std::fs::read_to_string(&new).ok().filter(|text| !text.is_empty())
    })
    .await;
}

#[tokio::test]
async fn our_own_answers_come_as_the_client_likes_them() {
    let proxy = Proxy::with_site(SITE, "backends = [\"127.0.0.1:1\"]").await;
    let mut wire = proxy.wire(SITE).await;
    for (accept, kind) in [
        ("text/html,application/xhtml+xml", "text/html"),
        ("application/json", "application/problem+json"),
        ("application/problem+json", "application/problem+json"),
        ("text/plain", "text/plain"),
        ("*/*", "text/plain"),
    ] {
        let reply = wire.ask("GET", "/", SITE, &format!("Accept: {accept}\r\n")).await;
        assert!(reply.status >= 502);
        assert!(reply.field("content-type").unwrap().starts_with(kind), "{accept}: {}", reply.raw_head());
        let id = reply.field("x-request-id").expect("the request id");
        assert!(reply.text().contains(id), "{accept}: {}", reply.text());
        if kind.ends_with("json") {
            let problem: Value = serde_json::from_slice(&reply.body).expect("RFC 9457");
            assert_eq!(problem["status"], reply.status);
            assert!(problem["title"].is_string());
        }
        // RFC 9209: the proxy's name first, then parameters.
        let status = reply.field("proxy-status").unwrap();
        assert!(status.starts_with("tidegate;") && status.contains("error="), "{status}");
        for inside in ["127.0.0.1:1", "src/"] {
            assert!(
                !reply.text().contains(inside) && !status.contains(inside),
                "{inside} is told to the client"
            );
        }
    }
}

#[tokio::test]
async fn an_error_page_cannot_carry_a_clients_script() {
    let proxy = Proxy::with_site(SITE, "backends = [\"127.0.0.1:1\"]").await;
    let reply = proxy
        .wire(SITE)
        .await
        .ask("GET", "/%3Cscript%3E?<script>alert(1)</script>", SITE, "Accept: text/html\r\n")
        .await;
    assert!(!reply.text().contains("<script>"), "{}", reply.text());
}

#[tokio::test]
async fn a_trace_context_is_continued() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    proxy
        .wire(SITE)
        .await
        .ask("GET", "/", SITE, &format!("traceparent: 00-{id}-00f067aa0ba902b7-01\r\n"))
        .await;
    assert!(origin.only().field("traceparent").unwrap().contains(id));
}

#[tokio::test]
async fn quarantine_shows_in_the_metrics() {
    let origin = Origin::saying("ok").await;
    let proxy = Proxy::with_site(SITE, &origin.backends()).await;
    assert_eq!(proxy.metrics().await.sum("tidegate_site_quarantined", &[]), 0.0);
    proxy.write_site(SITE, "backends = [");
    proxy.reload().await;
    assert_eq!(proxy.metrics().await.sum("tidegate_site_quarantined", &[]), 1.0);
}

/// `tidegate run 2>&1 | tee log`, and `tee` has died: whoever logged panicked, and a listener was closed with it.
#[tokio::test]
async fn regression_nobody_reads_the_process_log_any_more() {
    let origin = Origin::saying("ok").await;
    let site = format!("{}\nplain_http = true", origin.backends());
    let mut first =
        Proxy::builder().set("server.max_connections_per_client", "1").site(SITE, &site).start().await;
    first.signal(Signal::TERM);
    assert!(first.ended().await.success());
    let mut command = Command::new(TIDEGATE);
    command.args(["run", "--config"]).arg(first.config()).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let http = lines
        .find_map(|line| line.trim().strip_prefix("http ")?.trim().strip_prefix("http://")?.parse().ok());
    let http = http.expect("where it listens");
    assert!(lines.any(|line| line == "ready"));

    let mut wire = Wire::plain(http).await;
    assert_eq!(wire.get(SITE, "/").await.status, 200);
    // One too many: a line of the log, said by who accepts.
    Wire::plain(http).await.closed().await;
    drop(wire);
    wait_for("the next to be served", || async {
        let mut wire = Wire::plain(http).await;
        wire.try_send(format!("GET / HTTP/1.1\r\nHost: {SITE}\r\n\r\n")).await.ok()?;
        (wire.try_reply_to("GET").await.ok()?.status == 200).then_some(())
    })
    .await;
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let ended = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "{ended}");
}
