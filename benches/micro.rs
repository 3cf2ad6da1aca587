//! What one step of a request costs, each alone: `cargo bench --bench micro` gives times, `scripts/count-instructions` the
//! instructions, which are the same on a busy machine and an idle one.
//!
//! A case is a closure that is called again and again. What it needs is made once, before.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a bench prints and stops at errors"
)]

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use criterion::Criterion;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, Version};

use tidegate::base::address::{CidrSet, EndpointAddress};
use tidegate::base::clock::Millis;
use tidegate::base::outcome::Outcome;
use tidegate::base::policy::Marks;
use tidegate::base::record::{AccessFormat, AccessTarget, Privacy};
use tidegate::config::model::{self, Balance, HostPattern, LimitKey};
use tidegate::policy::rate_limit::{self, Limiter};
use tidegate::proxy::{fields, normalize};
use tidegate::route::{HostIndex, RequestHead, Table};
use tidegate::telemetry::access::{self, Record};
use tidegate::telemetry::hub::Hub;
use tidegate::telemetry::shard::Ending;
use tidegate::upstream::balance::{Affinity, Ask, Balancer, Tried, Weighted};
use tidegate::upstream::registry::Registry;

/// One step.
type Step = Box<dyn FnMut()>;
/// Its name, and what makes it.
type Case = (&'static str, fn() -> Step);

const CASES: &[Case] = &[
    ("host, 1 site", || host(1)),
    ("host, 1,000 sites", || host(1_000)),
    ("host, 100,000 sites", || host(100_000)),
    ("path, 1 route", || path(1)),
    ("path, 100 routes", || path(100)),
    ("normalise, HTTP/1.1", || normalise(Version::HTTP_11)),
    ("normalise, HTTP/2", || normalise(Version::HTTP_2)),
    ("rate limit, one client", || limit(1)),
    ("rate limit, 100,000 clients", || limit(100_000)),
    ("address list, 100,000 networks", address_list),
    ("metrics", metrics),
    ("access record", access_record),
    ("balance, 2 endpoints", || balance(&Balance::P2c, 2)),
    ("balance, 100 endpoints", || balance(&Balance::P2c, 100)),
    ("balance by key, 100 endpoints", by_key),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--list-cases"] => CASES.iter().for_each(|(name, _)| println!("{name}")),
        // A fixed number of calls of one case, for a tool that counts instructions.
        ["--calls", name, calls] => {
            let calls: u64 = calls.parse().expect("a number of calls");
            let (_, make) = CASES.iter().find(|(known, _)| *known == name).expect("the name of a case");
            let mut step = make();
            step();
            counted(&mut step, calls);
        }
        _ => {
            let mut criterion = Criterion::default().configure_from_args();
            for (name, make) in CASES {
                let mut step = make();
                criterion.bench_function(name, |bencher| bencher.iter(&mut *step));
            }
            criterion.final_summary();
        }
    }
}

/// The calls whose instructions `scripts/count-instructions` collects, by this function's name: what is made before them
/// is not among them. A table with 100,000 sites costs a thousand times what 2,000 lookups do, and differs with its seed.
#[inline(never)]
fn counted(step: &mut Step, calls: u64) {
    (0..calls).for_each(|_| step());
}

/// From a host to its site: each in turn, as how far one name lies from its place depends on the table's seed.
fn host(sites: usize) -> Step {
    let names: Vec<String> = (0..sites).map(|at| format!("shop{at}.example")).collect();
    let all = names.iter().enumerate();
    let index = HostIndex::build(all.map(|(at, name)| (HostPattern::Exact(name.as_str().into()), at)));
    let mut next = 0;
    Box::new(move || {
        next = if next + 1 < names.len() { next + 1 } else { 0 };
        if let Some(name) = names.get(next) {
            black_box(index.find(black_box(name)));
        }
    })
}

/// A site as the parser makes it from this text.
fn site(text: &str) -> model::Site {
    let file = PathBuf::from("/bench.toml");
    let server = tidegate::config::load(&file).server;
    let server = server.unwrap_or_else(|| {
        let folder = tempfile::tempdir().expect("a folder");
        let main = folder.path().join("tidegate.toml");
        std::fs::write(&main, "").expect("an empty configuration");
        tidegate::config::load(&main).server.expect("every default")
    });
    let (site, problems) = tidegate::config::parse_site("shop.example", &file, text, &server);
    site.unwrap_or_else(|| panic!("{problems:?}"))
}

/// From a path to its route.
fn path(routes: usize) -> Step {
    let mut text = String::from("[site.\"shop.example\"]\nbackends = [\"127.0.0.1:1\"]\n");
    for at in 1..routes {
        text.push_str(&format!("[[site.\"shop.example\".route]]\npath = \"/part{at}/\"\n"));
    }
    let table = Table::compile(&site(&text).routes).expect("routes");
    let wanted = format!("/part{}/cart", routes / 2);
    let headers = HeaderMap::new();
    Box::new(move || {
        let head =
            RequestHead { method: &Method::GET, path: black_box(&wanted), query: None, headers: &headers };
        black_box(table.find(&head));
    })
}

/// Both halves of normalising a browser's head, and the copy of it that they need.
fn normalise(version: Version) -> Step {
    let target = match version {
        Version::HTTP_2 => "https://shop.example/cart?item=7",
        _ => "/cart?item=7",
    };
    let mut request = Request::get(target).version(version);
    if version != Version::HTTP_2 {
        request = request.header("host", "shop.example");
    }
    for (name, value) in BROWSER {
        request = request.header(*name, *value);
    }
    let (parts, ()) = request.body(()).expect("a head").into_parts();
    let (peer, port) = (HeaderValue::from_static("192.0.2.1"), HeaderValue::from_static("443"));
    Box::new(move || {
        let mut parts = parts.clone();
        black_box(normalize::read(&parts).is_ok());
        let sender = fields::Sender { peer: &peer, port: &port, trusted: false, secure: true };
        let id = HeaderValue::from_static("0123456789abcdef0123456789abcdef");
        black_box(normalize::write(&mut parts, None, &sender, id).is_ok());
    })
}

/// What a browser sends.
const BROWSER: &[(&str, &str)] = &[
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "de,en-US;q=0.7,en;q=0.3"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("cookie", "session=0123456789abcdef; theme=dark"),
    ("sec-fetch-dest", "document"),
    ("sec-fetch-mode", "navigate"),
    ("sec-fetch-site", "same-origin"),
    ("priority", "u=0, i"),
];

/// A limit by address, asked by so many clients in turn. None is refused.
fn limit(clients: u32) -> Step {
    let text =
        "[site.\"shop.example\"]\nbackends = [\"127.0.0.1:1\"]\nlimit = \"10000000 per 1s by client-ip\"\n";
    let said = site(text).limits.remove(0);
    assert_eq!(said.keys, [LimitKey::ClientIp]);
    let table = Arc::new(rate_limit::Table::new(1 << 20));
    let limiter = Limiter::compile(&said, &table, 1);
    let (headers, mut next) = (HeaderMap::new(), 0u32);
    Box::new(move || {
        next = (next + 1) % clients;
        let facts = rate_limit::Facts {
            client: IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + next)),
            headers: &headers,
            path: "/",
            method: &Method::GET,
            user: None,
        };
        black_box(limiter.check(limiter.bucket(black_box(&facts))));
    })
}

/// Whether an address lies in one of many networks.
fn address_list() -> Step {
    let network =
        |at: u32| ipnet::Ipv4Net::new(Ipv4Addr::from(0x1400_0000 + (at << 8)), 24).expect("a network");
    let set = CidrSet::unwritten((0..100_000).map(|at| network(at).into()));
    let mut next = 0u32;
    Box::new(move || {
        next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        black_box(set.contains(IpAddr::V4(Ipv4Addr::from(black_box(next)))));
    })
}

/// A request's numbers.
fn metrics() -> Step {
    let hub = Hub::new(1);
    let (shard, series) = (hub.shard(0), hub.series("shop.example", "/"));
    Box::new(move || {
        shard.request(black_box(&Ending {
            series,
            method: &Method::GET,
            status: 200,
            outcome: Outcome::Served,
            bytes_in: 0,
            bytes_out: 128,
            micros: 740,
            upstream_micros: Some(600),
        }));
    })
}

/// A line of the access log; it goes to /dev/null.
fn access_record() -> Step {
    let target = AccessTarget::File("/dev/null".into());
    let (mut sinks, control) =
        access::start(&target, AccessFormat::Json, Privacy::Strict, 1).expect("an access log");
    let sink = sinks.remove(0);
    Box::new(move || {
        let _ = &control;
        sink.write(black_box(&record()));
    })
}

fn record() -> Record<'static> {
    Record {
        wall_ms: 951_782_400_042,
        request_id: "0123456789abcdef0123456789abcdef",
        client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 77)),
        site: "shop.example",
        route: "/",
        service: "shop.example//",
        method: "GET",
        host: "shop.example",
        path: "/cart",
        query: Some("item=7"),
        version: Version::HTTP_11,
        tls: "1.3",
        client_cert: "",
        client_subject: "",
        status: 200,
        outcome: Outcome::Served,
        bytes_in: 0,
        bytes_out: 128,
        micros: 740,
        upstream: "10.0.0.1:8080",
        upstream_micros: Some(600),
        tries: 1,
        user_agent: b"",
        user: "",
        referer: b"",
        would_block: Marks::default(),
        patch: "",
        generation: 1,
    }
}

fn endpoints(count: u16) -> Vec<Weighted> {
    let registry = Registry::new();
    let service: Arc<str> = "shop.example//".into();
    let endpoint = |at: u16| {
        let address = EndpointAddress::Socket(([10, 0, 0, 1], 8_000 + at).into());
        Weighted { endpoint: registry.obtain(&service, &address, false), weight: 1, backup: false }
    };
    (0..count).map(endpoint).collect()
}

fn chooses(balance: &Balance, count: u16, affinity: impl Fn(u64) -> Affinity + 'static) -> Step {
    let all = endpoints(count);
    let balancer = Balancer::compile(balance, None, &all);
    let (tried, mut random) = (Tried::default(), 7u64);
    Box::new(move || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let ask = Ask { now: Millis(1_000), random, affinity: affinity(random), tried: &tried };
        black_box(balancer.choose(&all, black_box(&ask)));
    })
}

/// An endpoint for a request.
fn balance(balance: &Balance, count: u16) -> Step {
    chooses(balance, count, |_| Affinity::None)
}

/// An endpoint for a request that belongs somewhere.
fn by_key() -> Step {
    let balance = Balance::Hash { key: model::Key::ClientIp, load: Some(125) };
    chooses(&balance, 100, Affinity::Key)
}
