//! What virtual patches cost a request, by the number of rules: `cargo bench --bench patches`.
//!
//! The requests are those of the test that counts false positives. Each is looked at as the proxy does it: the head, and
//! where a rule wants it, the first 8 KiB of the body. Time is that of one thread.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a bench prints and stops at errors"
)]
#![allow(dead_code, reason = "the requests are shared with tests")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, Uri};
use tidegate::policy::patch::compile::compile;
use tidegate::policy::patch::pack::{Pack, Severity};
use tidegate::policy::patch::{Body, Facts, Kind, Look, Scratch, Set};

#[path = "../tests/support/benign.rs"]
mod benign;

struct Request {
    method: &'static str,
    target: Uri,
    headers: HeaderMap,
    body: Option<(Kind, Vec<u8>)>,
}

fn requests() -> Vec<Request> {
    let one = |number| {
        let made = benign::request(7, number);
        let mut headers = HeaderMap::new();
        for (name, value) in &made.headers {
            headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        if let Some((kind, _)) = &made.body {
            headers.insert("content-type", HeaderValue::from_static(kind));
        }
        let body = made.body.map(|(_, text)| {
            let mut bytes = text.into_bytes();
            bytes.truncate(8_192);
            (Kind::of(&headers), bytes)
        });
        Request { method: made.method, target: made.target.parse().unwrap(), headers, body }
    };
    (0..4_000).map(one).collect()
}

fn look(set: &Set, request: &Request, scratch: &mut Scratch) -> Look {
    let mut facts = Facts {
        method: request.method,
        path: request.target.path(),
        seen: None,
        query: request.target.query(),
        headers: &request.headers,
        body: request.body.as_ref().map_or(Body::None, |(kind, _)| Body::Ahead(*kind)),
    };
    let found = set.look(&facts, &[], scratch);
    let (Look::WantsBody, Some((kind, bytes))) = (found, &request.body) else { return found };
    facts.body = Body::Here(*kind, bytes);
    set.look(&facts, &[], scratch)
}

/// So many rules: those that came with the program, and others of the same shapes about other words.
fn rules(count: usize) -> Set {
    let own = ["starter", "exposure"].map(|name| {
        let file = format!("{}/config/patches/{name}.toml", env!("CARGO_MANIFEST_DIR"));
        Pack::parse(&std::fs::read(file).unwrap()).unwrap()
    });
    let mut all = own[0].clone();
    all.rules.extend(own[1].rules.iter().cloned());
    let mut random = benign::Random(3);
    let mut word = || {
        (0..4)
            .map(|_| random.of(&["vul", "ner", "able", "plug", "in", "adm", "cfg", "xpl"]))
            .collect::<String>()
    };
    let mut text = "name = \"more\"\nversion = 1\nexpires = \"2099-12-31\"\n".to_owned();
    for number in 0..1_000 {
        let (a, b, c) = (word(), word(), word());
        let matches = match number % 4 {
            0 => format!(
                "{{ in = [\"path\"], decode = [\"percent\", \"path\", \"lower\"], contains = [\"/plugins/{a}-{number}/{b}.php\"] }}"
            ),
            1 => format!(
                "{{ all = [{{ in = [\"path\"], decode = [\"percent\", \"lower\"], contains = [\"/{a}{number}/\"] }}, {{ in = [\"query\", \"body:form\"], decode = [\"percent\", \"plus\", \"lower\"], regex = '(?:^|&){b}=[^&]{{0,80}}(?:\\.\\./|;|{c})' }}] }}"
            ),
            2 => format!(
                "{{ in = [\"query\", \"body:form\"], decode = [\"percent\", \"plus\", \"lower\"], regex = '{a}_{number}\\[[^\\]]{{0,40}}\\]=.{{0,40}}{b}' }}"
            ),
            _ => format!("{{ in = [\"headers\"], decode = [\"lower\"], contains = [\"{a}-{b}-{number}\"] }}"),
        };
        text += &format!(
            "[[rule]]\nid = \"more-{number}\"\ntitle = \"T\"\nseverity = \"high\"\nmatches = {matches}\ncase = [{{ hit = true }}, {{ hit = false }}]\n"
        );
    }
    all.rules.extend(Pack::parse(text.as_bytes()).unwrap().rules);
    all.rules.truncate(count);
    compile([&all], Severity::Low).unwrap()
}

/// The median over rounds, in nanoseconds a request.
fn measure(mut round: impl FnMut() -> usize) -> f64 {
    let mut all = Vec::new();
    let begun = Instant::now();
    while all.len() < 5 || begun.elapsed() < Duration::from_secs(2) {
        let start = Instant::now();
        let count = round();
        all.push(start.elapsed().as_nanos() as f64 / count as f64);
    }
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

fn main() {
    let all = requests();
    let bytes: usize = all
        .iter()
        .map(|r| {
            r.target.path().len()
                + r.target.query().map_or(0, str::len)
                + r.headers.values().map(HeaderValue::len).sum::<usize>()
                + r.body.as_ref().map_or(0, |(_, b)| b.len())
        })
        .sum();
    println!(
        "{} requests, {} bytes each on average, {} with a body",
        all.len(),
        bytes / all.len(),
        all.iter().filter(|r| r.body.is_some()).count()
    );
    let (plain, with_body): (Vec<&Request>, Vec<&Request>) =
        all.iter().partition(|request| request.body.is_none());
    for count in [0, 10, 100, 1_000] {
        let built = Instant::now();
        let set = rules(count);
        let built = built.elapsed();
        let mut scratch = Scratch::default();
        let mut over = |some: &[&Request]| {
            measure(|| {
                for request in some {
                    black_box(look(&set, black_box(request), &mut scratch));
                }
                some.len()
            })
        };
        let (head, body) = (over(&plain), over(&with_body));
        println!(
            "{count:>5} rules: {head:>8.0} ns without a body, {body:>8.0} ns with one; compiled in {built:?}"
        );
    }
    // What an attack on the matcher costs at most.
    let set = rules(1_000);
    let mut scratch = Scratch::default();
    let mut query = String::from("/?");
    for rule in 0..1_000 {
        query += &format!("vulnerable_{rule}[a]=");
    }
    for hostile in [
        "${${".repeat(1_900),
        "%25".repeat(2_600),
        "'or'union select ".replace(' ', "%20").repeat(300),
        "../".repeat(2_600),
        query,
    ] {
        let target: Uri = format!("/?{}", hostile.chars().take(8_000).collect::<String>()).parse().unwrap();
        let request = Request { method: "GET", target, headers: HeaderMap::new(), body: None };
        let took = measure(|| {
            black_box(look(&set, black_box(&request), &mut scratch));
            1
        });
        println!(
            "  hostile query {:?}…: {:.0} µs",
            hostile.chars().take(12).collect::<String>(),
            took / 1_000.0
        );
    }
}
