//! Full speed while the configuration changes a hundred times under it.

use std::time::Duration;

use crate::harness::{DEADLINE, Origin, Proxy, tool, within_for};

const SECONDS: u64 = 20;
const REWRITES: u32 = 100;
const CONNECTIONS: u64 = 32;

/// What wrk says about a number, as in `  Non-2xx or 3xx responses: 3`.
fn after<'a>(text: &'a str, label: &str) -> Option<&'a str> {
    text.lines().find_map(|l| l.trim().strip_prefix(label)).map(str::trim)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_under_full_load_fail_no_request_and_close_no_connection() {
    if !tool::requires("wrk", &["-v"]) {
        return;
    }
    let origin = Origin::saying("hello").await;
    let proxy = Proxy::builder()
        .set("server.max_requests_per_connection", "0")
        // wrk takes the SNI and the Host from the URL, and the URL has to resolve.
        .site("localhost", &origin.backends())
        .start()
        .await;
    let generation = |status: &serde_json::Value| status["generation"].as_u64().unwrap();
    let before = generation(&proxy.status().await);
    let url = format!("https://localhost:{}/", proxy.https().port());
    let args =
        crate::args!["-t1", format!("-c{CONNECTIONS}"), format!("-d{SECONDS}s"), "--timeout", "10s", url];
    let load = tokio::spawn(async move { tool::run("wrk", &args).await });
    // The pace of the story, not a wait for an effect: the rewrites are spread over the time of the load.
    let mut pace = tokio::time::interval(Duration::from_secs(SECONDS) * 9 / 10 / REWRITES);
    let mut broken = 0;
    for i in 0..REWRITES {
        pace.tick().await;
        if i % 2 == 0 {
            proxy.write_site("localhost", &format!("{}\nmax_body = \"{}KiB\"", origin.backends(), i + 1));
        } else {
            proxy.write_site("localhost", "backends = [\"127.0.0.1:99999\"");
        }
        let report = proxy.reload().await;
        broken += u32::from(report["quarantined"].as_array().is_some_and(|q| !q.is_empty()));
    }
    let output = within_for(DEADLINE * 3, "wrk", load).await.unwrap();
    let text = tool::stdout_of(&output);
    assert!(generation(&proxy.status().await) > before, "nothing was reloaded");
    assert!(broken >= REWRITES / 4, "only {broken} broken versions were seen");
    assert_eq!(after(&text, "Socket errors:"), None, "{text}");
    assert_eq!(after(&text, "Non-2xx or 3xx responses:"), None, "{text}");

    let line = text.lines().find(|l| l.contains(" requests in ")).expect("wrk's count");
    let done: f64 = line.split_whitespace().next().unwrap().parse().unwrap();
    let metrics = proxy.metrics().await;
    let counted = metrics.sum("tidegate_requests_total", &[("site", "localhost")]);
    // wrk drops what is on its way when its time is over: at most one request a connection.
    assert!((done..=done + CONNECTIONS as f64).contains(&counted), "wrk did {done}, we counted {counted}");
    assert_eq!(metrics.sum("tidegate_requests_total", &[("site", "localhost"), ("status", "5xx")]), 0.0);
    // wrk opens a connection to try the address first, then its own; any more would replace one that we closed.
    let opened = metrics.sum("tidegate_connections_opened_total", &[("listener", "https")]);
    assert!(opened <= CONNECTIONS as f64 + 2.0, "{opened} connections for {CONNECTIONS} clients");
    tool::report(&format!("{done} requests in {SECONDS} s over {REWRITES} rewrites, none failed"));
}
