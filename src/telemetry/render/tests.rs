//! The way from a counted request to a line of text.

use super::*;
use crate::telemetry::hub::{ReloadResult, SERIES_MAX, SeriesId};
use crate::telemetry::shard::{Ending, Shard};

fn get(shard: &Shard, series: SeriesId, status: u16) {
    shard.request(&Ending {
        series,
        method: &http::Method::GET,
        status,
        outcome: Outcome::Served,
        bytes_in: 10,
        bytes_out: 200,
        micros: 1_500,
        upstream_micros: Some(900),
    });
}

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|l| l == line)
}

#[test]
fn two_shards_are_summed() {
    let hub = Hub::new(2);
    let series = hub.series("shop.example", "/api/");
    let here = hub.shard(0);
    get(&here, series, 200);
    get(&here, series, 404);
    here.add(Counter::RetryBudget, 3);
    here.gauge_add(Gauge::ActiveHttps, 2);
    let hub2 = hub.clone();
    std::thread::spawn(move || {
        let there = hub2.shard(1);
        get(&there, series, 200);
        there.limit(series, false);
        there.add(Counter::RetryBudget, 1);
        there.gauge_add(Gauge::ActiveHttps, 1);
        there.gauge_add(Gauge::ActiveHttps, -2);
    })
    .join()
    .unwrap();
    let text = hub.render();
    for line in [
        r#"tidegate_requests_total{site="shop.example",route="/api/",method="GET",status="2xx"} 2"#,
        r#"tidegate_requests_total{site="shop.example",route="/api/",method="GET",status="4xx"} 1"#,
        r#"tidegate_request_duration_seconds_bucket{site="shop.example",route="/api/",le="0.001"} 0"#,
        r#"tidegate_request_duration_seconds_bucket{site="shop.example",route="/api/",le="0.0025"} 3"#,
        r#"tidegate_request_duration_seconds_bucket{site="shop.example",route="/api/",le="+Inf"} 3"#,
        r#"tidegate_request_duration_seconds_sum{site="shop.example",route="/api/"} 0.0045"#,
        r#"tidegate_upstream_first_byte_seconds_count{site="shop.example"} 3"#,
        r#"tidegate_request_bytes_total{site="shop.example",route="/api/"} 30"#,
        r#"tidegate_response_bytes_total{site="shop.example",route="/api/"} 600"#,
        r#"tidegate_limit_verdicts_total{site="shop.example",route="/api/",verdict="limited"} 1"#,
        r#"tidegate_outcomes_total{outcome="OK",blame="none"} 3"#,
        "tidegate_retry_budget_exhausted_total 4",
        r#"tidegate_connections_active{listener="https"} 1"#,
        "tidegate_workers 2",
    ] {
        assert!(has(&text, line), "missing {line}\n{text}");
    }
    assert_eq!((hub.connections(0), hub.connections(1)), (2, 0), "a worker below zero shows as zero");
}

#[test]
fn label_values_that_read_alike_when_joined_stay_apart() {
    let hub = Hub::new(1);
    let shard = hub.shard(0);
    get(&shard, hub.series("ab", "c"), 200);
    get(&shard, hub.series("a", "bc"), 200);
    get(&shard, hub.series("a", "bc"), 200);
    let text = hub.render();
    assert!(has(&text, r#"tidegate_requests_total{site="ab",route="c",method="GET",status="2xx"} 1"#));
    assert!(has(&text, r#"tidegate_requests_total{site="a",route="bc",method="GET",status="2xx"} 2"#));
}

#[test]
fn label_values_are_escaped() {
    let hub = Hub::new(1);
    get(&hub.shard(0), hub.series("s", "~^/a\\d\"\n"), 200);
    let line = r#"tidegate_requests_total{site="s",route="~^/a\\d\"\n",method="GET",status="2xx"} 1"#;
    assert!(has(&hub.render(), line));
}

#[test]
fn counters_never_go_back_over_a_reload() {
    let hub = Hub::new(1);
    let shard = hub.shard(0);
    get(&shard, hub.series("a", "/"), 200);
    // A reload asks for the ids anew, in another order and with new routes between them.
    let b = hub.series("b", "/");
    let a = hub.series("a", "/");
    get(&shard, b, 200);
    get(&shard, a, 200);
    hub.reloaded(ReloadResult::Partial);
    hub.set_generation(2);
    let text = hub.render();
    assert!(has(&text, r#"tidegate_requests_total{site="a",route="/",method="GET",status="2xx"} 2"#));
    assert!(has(&text, r#"tidegate_reloads_total{result="partial"} 1"#));
    assert!(has(&text, r#"tidegate_reloads_total{result="refused"} 0"#));
    assert!(has(&text, "tidegate_config_generation 2"));
    assert!(!has(&text, "tidegate_last_reload_timestamp_seconds 0"));
}

#[test]
fn unmatched_requests_and_clients_words_make_no_series() {
    let hub = Hub::new(1);
    let shard = hub.shard(0);
    for method in ["BREW", "MAKECOFFEE"] {
        shard.request(&Ending {
            series: SeriesId::NONE,
            method: &method.parse().unwrap(),
            status: 404,
            outcome: Outcome::UnknownHost,
            bytes_in: 0,
            bytes_out: 0,
            micros: 1,
            upstream_micros: None,
        });
    }
    let text = hub.render();
    assert!(has(&text, r#"tidegate_requests_total{site="none",route="none",method="other",status="4xx"} 2"#));
    assert!(has(&text, r#"tidegate_outcomes_total{outcome="UNKNOWN-HOST",blame="client"} 2"#));
    assert!(!text.contains("BREW"));
    assert!(!text.contains("tidegate_upstream_first_byte_seconds"), "no backend answered");
}

#[test]
fn the_table_of_series_is_bounded_and_says_so() {
    let hub = Hub::new(1);
    for i in 0..SERIES_MAX - 2 {
        assert_ne!(hub.series("s", &i.to_string()), SeriesId::OTHER);
    }
    assert_eq!(hub.series("s", "one too many"), SeriesId::OTHER);
    assert_eq!(hub.series("s", "0"), hub.series("s", "0"), "known names keep their id");
    assert_ne!(hub.series("s", "0"), SeriesId::OTHER);
    get(&hub.shard(0), SeriesId::OTHER, 200);
    let text = hub.render();
    assert!(has(&text, "tidegate_series_refused_total 1"));
    assert!(has(&text, r#"tidegate_requests_total{site="other",route="other",method="GET",status="2xx"} 1"#));
}

#[test]
fn twenty_thousand_series_render_and_idle_ones_cost_no_line() {
    let hub = Hub::new(2);
    let shards = [hub.shard(0), hub.shard(1)];
    for i in 0..20_000 {
        let busy = hub.series(&format!("site-{i}.example"), "/");
        hub.series(&format!("site-{i}.example"), "/idle/");
        get(&shards[i % 2], busy, 200);
    }
    let text = hub.render();
    assert_eq!(text.lines().filter(|l| l.starts_with("tidegate_requests_total{")).count(), 20_000);
    assert!(!text.contains("/idle/"));
    // Each busy series: 1 request line, 19 of each histogram, 2 of bytes; nothing else grows with the sites.
    assert!(text.lines().count() < 20_000 * 41 + 400, "{}", text.lines().count());
    let requests = |text: &str| text.lines().filter(|l| l.starts_with("tidegate_req")).collect::<String>();
    assert_eq!(requests(&text), requests(&hub.render()), "a second scrape sums the same cells");
}

#[test]
fn a_reading_given_twice_is_shown_once() {
    let hub = Hub::new(1);
    hub.set_gauges(Box::new(|readings| {
        readings.push(Reading::new(Metric::EndpointUp, &["s", "10.0.0.1:80"], 0.0));
        readings.push(Reading::new(Metric::EndpointUp, &["s", "10.0.0.2:80"], 1.0));
        readings.push(Reading::new(Metric::EndpointUp, &["s", "10.0.0.1:80"], 1.0));
    }));
    let text = hub.render();
    let lines: Vec<_> = text.lines().filter(|l| l.starts_with("tidegate_endpoint_up{")).collect();
    assert_eq!(
        lines,
        [
            r#"tidegate_endpoint_up{service="s",address="10.0.0.1:80"} 1"#,
            r#"tidegate_endpoint_up{service="s",address="10.0.0.2:80"} 1"#
        ]
    );
}

#[test]
fn the_collector_is_accepted_by_a_registry() {
    let hub = Hub::new(1);
    get(&hub.shard(0), hub.series("a", "/"), 200);
    let registry = prometheus::Registry::new();
    registry.register(Box::new(HubCollector::new(hub.clone()))).unwrap();
    let families = registry.gather();
    assert!(families.iter().any(|f| f.name() == "tidegate_requests_total"));
    assert!(families.iter().all(|f| !f.get_metric().is_empty()));
}
