//! Rate limits: what they count, how exactly, and what clients hear. The simplest stories are in `limits`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::harness::{Answer, Origin, Proxy, ProxyBuilder, Wire};

const SITE: &str = "shop.test";

/// A proxy that believes what the test says of its clients' addresses.
fn believing(site: &str) -> ProxyBuilder {
    Proxy::builder().set("server.trusted_proxies", "[\"127.0.0.1/32\"]").site(SITE, site)
}

/// An origin whose answer has the status that the last part of the path names, else 200.
async fn obedient() -> Origin {
    Origin::answering(|request| {
        let named = request.target().rsplit('/').next().and_then(|last| last.parse().ok());
        Answer::new(named.unwrap_or(200))
    })
    .await
}

/// Statuses of requests, each with the fields given.
async fn statuses(wire: &mut Wire, path: &str, fields: &[&str]) -> Vec<u16> {
    let mut found = Vec::new();
    for field in fields {
        let field = if field.is_empty() { String::new() } else { format!("{field}\r\n") };
        found.push(wire.ask("GET", path, SITE, &field).await.status);
    }
    found
}

#[tokio::test]
async fn a_limit_by_header_or_cookie_counts_values_and_who_sends_none_by_address() {
    let origin = Origin::saying("ok").await;
    let site = format!(
        "{}\nlimit = \"1 per 1h by header:X-Api-Key\"\n\
         [[site.\"shop.test\".route]]\npath = \"/in/\"\nlimit = \"1 per 1h by cookie:session\"",
        origin.backends()
    );
    let proxy = believing(&site).start().await;
    let mut wire = proxy.wire(SITE).await;
    let keys = ["X-Api-Key: one", "x-api-key: two", "X-Api-Key: one", "X-Api-Key: two"];
    assert_eq!(statuses(&mut wire, "/", &keys).await, [200, 200, 429, 429]);
    // Leaving the key out is no way round: the address stands for it, an empty key included.
    let none = ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2"];
    assert_eq!(statuses(&mut wire, "/", &none).await, [200, 200]);
    let none = ["X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 192.0.2.2\r\nX-Api-Key:"];
    assert_eq!(statuses(&mut wire, "/", &none).await, [429, 429]);
    let cookies = [
        "X-Api-Key: a\r\nCookie: a=1; session=x",
        "X-Api-Key: b\r\nCookie: session=y",
        "X-Api-Key: c\r\nCookie: session=x; b=2",
    ];
    assert_eq!(statuses(&mut wire, "/in/", &cookies).await, [200, 200, 429]);
}

#[tokio::test]
async fn keys_combine_and_a_path_has_one_bucket_however_it_is_written() {
    let origin = Origin::saying("ok").await;
    let site = format!("{}\nlimit = \"1 per 1h by client-ip, path, method\"", origin.backends());
    let proxy = believing(&site).start().await;
    let mut wire = proxy.wire(SITE).await;
    let one = ["X-Forwarded-For: 192.0.2.1"];
    assert_eq!(statuses(&mut wire, "/a", &one).await, [200]);
    for spelling in ["/a", "/b/../a", "/%61", "/./a", "/a?x=1", "/a?x=2"] {
        assert_eq!(statuses(&mut wire, spelling, &one).await, [429], "{spelling}");
    }
    assert_eq!(statuses(&mut wire, "/b", &one).await, [200], "another path");
    assert_eq!(statuses(&mut wire, "/a", &["X-Forwarded-For: 192.0.2.2"]).await, [200], "another client");
    let posted = wire.ask("DELETE", "/a", SITE, "X-Forwarded-For: 192.0.2.1\r\n").await;
    assert_eq!(posted.status, 200, "another method");
}

#[tokio::test]
async fn a_net_is_limited_as_a_whole_whoever_sprays_within_it() {
    let origin = Origin::saying("ok").await;
    let site = format!(
        "{}\nlimit = [\"1 per 1h by client-ip\", {{ rate = \"3 per 1h\", by = \"client-net\", name = \"net\" }}]",
        origin.backends()
    );
    let proxy = believing(&site).start().await;
    let mut wire = proxy.wire(SITE).await;
    let sprayed = ["2001:db8::1", "2001:db8:0:1::1", "2001:db8:0:2::1", "2001:db8:0:ffff::1"];
    let fields = sprayed.map(|client| format!("X-Forwarded-For: {client}"));
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    assert_eq!(statuses(&mut wire, "/", &fields).await, [200, 200, 200, 429]);
    let refused = wire.ask("GET", "/", SITE, "X-Forwarded-For: 2001:db8:0:fffe::1\r\n").await;
    refused.expect(429, "RATE-LIMITED");
    assert_eq!(refused.field("ratelimit-policy"), Some("\"net\";q=3;w=3600"), "{}", refused.raw_head());
    let honest = ["X-Forwarded-For: 2001:db8:1::1", "X-Forwarded-For: 2001:db8:1::1"];
    assert_eq!(statuses(&mut wire, "/", &honest).await, [200, 429], "a neighbour in another /48");
}

#[tokio::test]
async fn a_tenants_sites_share_its_limit_and_other_tenants_do_not() {
    let origin = Origin::saying("ok").await;
    let site = |tenant: &str| {
        format!("tenant = \"{tenant}\"\n{}\nlimit = \"3 per 1h by tenant\"", origin.backends())
    };
    let proxy = Proxy::builder()
        .site("a.test", &site("ann"))
        .site("b.test", &site("ann"))
        .site("c.test", &site("bob"))
        .start()
        .await;
    let mut seen = Vec::new();
    for name in ["a.test", "b.test", "a.test", "b.test", "a.test", "c.test"] {
        seen.push(proxy.get(name, "/").await.status);
    }
    assert_eq!(seen, [200, 200, 200, 429, 429, 200]);
}

#[tokio::test]
async fn routes_that_name_one_limit_share_it_at_different_costs() {
    let origin = Origin::saying("ok").await;
    let limit = |cost: u32| format!("limit = {{ rate = \"10 per 1h\", name = \"api\", cost = {cost} }}");
    let route =
        |path: &str, cost| format!("[[site.\"shop.test\".route]]\npath = \"{path}\"\n{}\n", limit(cost));
    let site = format!("{}\n{}{}", origin.backends(), route("/search", 4), route("/page", 1));
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    let first = wire.get(SITE, "/search").await;
    assert!(first.field("ratelimit").unwrap().starts_with("\"api\";r=6;"), "{}", first.raw_head());
    let mut seen = Vec::new();
    for path in ["/page", "/search", "/search", "/page", "/page"] {
        seen.push(wire.get(SITE, path).await.status);
    }
    assert_eq!(seen, [200, 200, 429, 200, 429], "ten units: 4 + 1 + 4, then 1 for a page");
}

#[tokio::test]
async fn a_limit_of_statuses_counts_failed_logins_and_nothing_else() {
    let origin = obedient().await;
    let site = format!(
        "{}\nlimit = [\"100 per 1h by client-ip\", {{ rate = \"3 per 1h\", statuses = [401, \"403-404\"], name = \"guesses\" }}]",
        origin.backends()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for path in ["/200", "/401", "/200", "/403", "/500", "/404"] {
        let reply = wire.get(SITE, path).await;
        assert_eq!(format!("/{}", reply.status), path);
        let policy = reply.field("ratelimit-policy").unwrap_or_default();
        assert!(policy.starts_with("\"default\";q=100"), "told only when it refuses: {policy}");
    }
    let before = origin.count();
    let refused = proxy.h2(SITE).await.get("/200").await;
    refused.expect(429, "RATE-LIMITED");
    assert!(refused.field("ratelimit").unwrap().starts_with("\"guesses\";r=0;"), "{}", refused.raw_head());
    assert!(refused.field("retry-after").is_some());
    assert_eq!(origin.count(), before);
}

#[tokio::test]
async fn answers_of_our_own_count_by_their_status_too() {
    let site = "respond = { status = 403 }\nlimit = { rate = \"2 per 1h\", statuses = [403] }";
    let proxy = Proxy::with_site(SITE, site).await;
    let mut wire = proxy.wire(SITE).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(wire.get(SITE, "/").await.status);
    }
    assert_eq!(seen, [403, 403, 429, 429]);
}

#[tokio::test]
async fn a_limit_in_shadow_tells_clients_nothing_and_the_operator_everything() {
    let origin = Origin::saying("ok").await;
    let site = format!(
        "{}\nlimit = {{ rate = \"1 per 1h\", by = \"header:X-Api-Key\", mode = \"shadow\", name = \"trial\" }}",
        origin.backends()
    );
    let proxy = Proxy::with_site(SITE, &site).await;
    let mut wire = proxy.wire(SITE).await;
    for _ in 0..3 {
        let reply = wire.ask("GET", "/", SITE, "X-Api-Key: k\r\n").await;
        assert_eq!((reply.status, reply.field("ratelimit"), reply.field("retry-after")), (200, None, None));
    }
    let marked = proxy.records(3).await;
    let marked = marked.iter().filter(|record| record["would_block"][0] == "rate-limit").count();
    assert_eq!(marked, 2);
    let labels = [("site", SITE), ("policy", "rate-limit")];
    assert_eq!(proxy.metrics().await.sum("tidegate_would_block_total", &labels), 2.0);
}

/// Many clients of both protocols over several workers, all of them the same client by address.
async fn storm(proxy: &Arc<Proxy>, requests: Option<u32>, until: Option<Instant>) -> Storm {
    let storm = Arc::new(Storm::default());
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (proxy, storm) = (proxy.clone(), storm.clone());
        clients.spawn(async move {
            let (mut h1, mut h2) = match number % 2 {
                0 => (Some(proxy.wire(SITE).await), None),
                _ => (None, Some(proxy.h2(SITE).await)),
            };
            for sent in 0.. {
                let over = requests.is_some_and(|most| sent >= most);
                if over || until.is_some_and(|until| Instant::now() >= until) {
                    break;
                }
                let at = Instant::now();
                let status = match (&mut h1, &mut h2) {
                    (Some(h1), _) => h1.get(SITE, "/").await.status,
                    (_, Some(h2)) => h2.get("/").await.status,
                    _ => unreachable!(),
                };
                storm.note(at, status);
            }
        });
    }
    while let Some(ended) = clients.join_next().await {
        ended.expect("a client");
    }
    Arc::into_inner(storm).expect("all clients have ended")
}

#[derive(Default)]
struct Storm {
    allowed: AtomicU32,
    refused: AtomicU32,
    /// When the first refusal had come, and when the last request that was refused was sent.
    times: std::sync::Mutex<(Option<Instant>, Option<Instant>)>,
}

impl Storm {
    fn note(&self, sent: Instant, status: u16) {
        let count = match status {
            200 => &self.allowed,
            429 => &self.refused,
            other => panic!("{other}"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        if status == 429 {
            let mut times = self.times.lock().unwrap();
            times.0.get_or_insert_with(Instant::now);
            times.1 = times.1.max(Some(sent));
        }
    }
}

async fn over_two_workers(limit: &str) -> Arc<Proxy> {
    let site = format!("respond = {{ body = \"ok\" }}\nlimit = {limit}");
    Arc::new(Proxy::builder().set("server.workers", "2").site(SITE, &site).start().await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_requests_at_once_exactly_the_limit_passes_over_workers_and_protocols() {
    let proxy = over_two_workers("{ rate = \"500 per 1d\", burst = 123 }").await;
    let storm = storm(&proxy, Some(50), None).await;
    // 500 a day is one in 172.8 seconds, and this takes less.
    assert_eq!((storm.allowed.into_inner(), storm.refused.into_inner()), (123, 16 * 50 - 123));
    let verdicts = |verdict| ("verdict", verdict);
    let metrics = proxy.metrics().await;
    let sum = |verdict| metrics.sum("tidegate_limit_verdicts_total", &[("site", SITE), verdicts(verdict)]);
    assert_eq!((sum("allowed"), sum("limited")), (123.0, 677.0));
}

/// GCRA: in a span of `t` at most `burst + rate × t + 1` requests pass. At least that many less two do from the first refusal on:
/// before it the bucket may be full while clients are still connecting, and what does not fit into it is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_ten_seconds_a_limit_lets_pass_its_burst_and_its_rate_and_no_more() {
    let proxy = over_two_workers("{ rate = \"200 per 10s\", burst = 50 }").await;
    let begin = Instant::now();
    let storm = storm(&proxy, None, Some(begin + Duration::from_secs(10))).await;
    let whole = begin.elapsed().as_secs_f64();
    let (first, last) = storm.times.into_inner().unwrap();
    let surely = last.unwrap().duration_since(first.unwrap()).as_secs_f64();
    let (allowed, refused) = (storm.allowed.into_inner(), storm.refused.into_inner());
    let (most, least) = (50.0 + 20.0 * whole + 1.0, 50.0 + 20.0 * surely - 1.0);
    println!("allowed {allowed} of {}, between {least:.1} and {most:.1}", allowed + refused);
    assert!(f64::from(allowed) <= most, "{allowed} of {} passed, {most:.1} at most may", allowed + refused);
    assert!(
        f64::from(allowed) >= least,
        "{allowed} of {} passed, {least:.1} at least must",
        allowed + refused
    );
}
