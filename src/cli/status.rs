//! `tidegate status`: what is served and what is wrong, the wrong things first.

use std::path::Path;

use http::Method;
use serde_json::Value;

use super::table::{Ink, Paint, Table, count, list, number, some_of, text, texts, thousands};
use super::{EXIT_OK, Format, client, colour, print, print_json};
use crate::base::clock;

/// Rows shown of sites and of endpoints; the JSON has all.
const ROWS_MAX: usize = 50;
/// Hosts shown of a site.
const HOSTS_MAX: usize = 2;
/// Characters shown of the answer to a health check; the JSON has all.
const CHECK_MAX: usize = 40;
/// Certificates that expire sooner are shown in red.
const EXPIRY_DAYS_MIN: i64 = 14;

pub(super) fn status(socket: &Path, format: Format, site: Option<&str>) -> Result<u8, String> {
    let mut status = client::ask(socket, Method::GET, "/status", client::ANSWER_TIME_MAX)?;
    if let Some(name) = site {
        only_site(&mut status, name)?;
    }
    match format {
        Format::Json => print_json(&status),
        Format::Human => print(&render(&status, clock::wall().as_secs(), Paint(colour()))),
    }
    Ok(EXIT_OK)
}

/// Leaves one site, found by name or host, and its endpoints.
fn only_site(status: &mut Value, wanted: &str) -> Result<(), String> {
    let wanted = wanted.to_ascii_lowercase();
    let sites = list(status, "sites");
    let matches = |site: &&Value| text(site, "name") == wanted || texts(site, "hosts").contains(&&*wanted);
    let Some(site) = sites.iter().find(matches).cloned() else {
        let names = sites.iter().map(|site| text(site, "name"));
        let near = names.max_by(|a, b| strsim::jaro(a, &wanted).total_cmp(&strsim::jaro(b, &wanted)));
        let near = near.map(|name| format!(": did you mean `{name}`?")).unwrap_or_default();
        return Err(format!("no site has the name or host `{wanted}`{near}"));
    };
    // Services are called `site/route`.
    let prefix = format!("{}/", text(&site, "name"));
    for list in ["endpoints", "services"] {
        if let Some(all) = status.get_mut(list).and_then(Value::as_array_mut) {
            all.retain(|one| text(one, "service").starts_with(&prefix));
        }
    }
    if let Some(sites) = status.get_mut("sites") {
        *sites = Value::Array(vec![site]);
    }
    Ok(())
}

fn render(status: &Value, now: u64, paint: Paint) -> String {
    let mut out = paint.paint(Ink::Bold, &format!("tidegate {}", text(status, "version")));
    out += &format!(
        ", pid {}, up {}, generation {}, {}\n",
        number(status, "pid"),
        uptime(number(status, "uptime_ms")),
        number(status, "generation"),
        count(usize::try_from(number(status, "connections")).unwrap_or(usize::MAX), "connection"),
    );
    out += &super::certs::clock_line(status.get("clock").unwrap_or(&Value::Null), paint);
    out += &super::load::overload(status.get("overload").unwrap_or(&Value::Null), paint);
    let mut listeners = Table::default();
    for listener in list(status, "listeners") {
        let (kind, address) = (text(listener, "kind"), text(listener, "address"));
        listeners.row([(Ink::Plain, kind.to_owned()), (Ink::Plain, address.to_owned())]);
    }
    out += &section("listeners", &listeners, paint);
    out += &doctor(list(status, "doctor"), paint);
    out += &sites(list(status, "sites"), now, paint);
    out += &engine(status.get("engine").unwrap_or(&Value::Null), paint);
    out += &sources(list(status, "sources"), paint);
    out += &panics(list(status, "panics"), paint);
    out += &endpoints(list(status, "endpoints"), paint);
    out += &services(list(status, "services"), paint);
    out += &super::load::tenants(list(status, "tenants"), paint);
    let mut workers = Table::default();
    for worker in list(status, "workers") {
        let connections = usize::try_from(number(worker, "connections")).unwrap_or(usize::MAX);
        let id = number(worker, "id").to_string();
        workers.row([(Ink::Plain, id), (Ink::Plain, count(connections, "connection"))]);
    }
    out + &section("workers", &workers, paint)
}

pub(super) fn section(title: &str, table: &Table, paint: Paint) -> String {
    format!("\n{}\n{}", paint.paint(Ink::Bold, title), table.render(paint))
}

/// Signs that addresses are not those of clients; nothing where there are none.
fn doctor(findings: &[Value], paint: Paint) -> String {
    let mut table = Table::default();
    for found in findings {
        table.text(Ink::Red, text(found, "advice"));
    }
    if findings.is_empty() { String::new() } else { section("client addresses", &table, paint) }
}

fn sites(sites: &[Value], now: u64, paint: Paint) -> String {
    let quarantined = |site: &&Value| text(site, "state") == "quarantined";
    let bad = sites.iter().filter(quarantined);
    let good = sites.iter().filter(|site| !quarantined(site));
    let title = match bad.clone().count() {
        0 => count(sites.len(), "site"),
        n => format!("{}, {} quarantined", count(sites.len(), "site"), thousands(n)),
    };
    let mut table = Table::new(&["SITE", "HOSTS", "STATE", "GENERATION", "ROUTES", "CERTIFICATE"]);
    for site in bad.chain(good).take(ROWS_MAX) {
        let serving = site.get("serving").and_then(Value::as_bool).unwrap_or(true);
        let (ink, state) = match (quarantined(&site), serving) {
            (false, _) => (Ink::Green, "active"),
            (true, true) => (Ink::Red, "quarantined, last good version serves"),
            (true, false) => (Ink::Red, "quarantined, not served"),
        };
        table.row([
            (Ink::Plain, text(site, "name").to_owned()),
            (Ink::Plain, hosts(site)),
            (ink, state.to_owned()),
            (Ink::Plain, number(site, "generation").to_string()),
            (Ink::Plain, number(site, "routes").to_string()),
            certificate(site.get("certificate").unwrap_or(&Value::Null), now),
        ]);
        if let Some(reason) = site.get("reason").and_then(Value::as_str) {
            table.text(Ink::Red, &format!("  because: {reason}"));
        }
    }
    more(&mut table, sites.len(), "--format json shows all, or name a site with --site");
    section(&title, &table, paint)
}

/// The hosts, and how many names are served on demand.
fn hosts(site: &Value) -> String {
    let hosts = some_of(&texts(site, "hosts"), HOSTS_MAX);
    let Some(demand) = site.get("on_demand").filter(|demand| demand.is_object()) else { return hosts };
    let names = usize::try_from(number(demand, "names")).unwrap_or(usize::MAX);
    let joint = if hosts.is_empty() { "" } else { ", " };
    format!("{hosts}{joint}{} on demand", thousands(names))
}

pub(super) fn certificate(certificate: &Value, now: u64) -> (Ink, String) {
    let source = text(certificate, "source");
    let Some(not_after) = certificate.get("not_after").and_then(Value::as_u64) else {
        return match source {
            "acme" => (Ink::Red, "acme, not there yet".to_owned()),
            _ => (Ink::Plain, source.to_owned()),
        };
    };
    let seconds = i64::try_from(not_after).unwrap_or(i64::MAX).saturating_sub_unsigned(now);
    let days = seconds.div_euclid(86_400);
    // Automatic ones are renewed in time, and may be made for days only: `tidegate certs` says when that fails.
    let by_hand = source == "files";
    let ink = if days < EXPIRY_DAYS_MIN && by_hand { Ink::Red } else { Ink::Plain };
    match days {
        ..0 => (Ink::Red, format!("{source}, expired")),
        0 => (ink, format!("{source}, expires today")),
        1 => (ink, format!("{source}, expires tomorrow")),
        _ => (ink, format!("{source}, {days} days")),
    }
}

/// The container engine; nothing where none is asked.
fn engine(engine: &Value, paint: Paint) -> String {
    if !engine.is_object() {
        return String::new();
    }
    let mut table = Table::default();
    let trouble = engine.get("trouble").and_then(Value::as_str);
    let answered = engine.get("answered").and_then(Value::as_bool).unwrap_or_default();
    let (ink, state) = match (trouble, answered) {
        (Some(_), _) => (Ink::Red, "failing, its last containers and sites stay"),
        (None, false) => (Ink::Red, "no answer yet"),
        (None, true) => (Ink::Green, "answering"),
    };
    let containers = usize::try_from(number(engine, "containers")).unwrap_or(usize::MAX);
    let socket = (Ink::Plain, text(engine, "socket").to_owned());
    table.row([socket, (Ink::Plain, count(containers, "container")), (ink, state.to_owned())]);
    if let Some(trouble) = trouble {
        table.text(Ink::Red, &format!("  because: {trouble}"));
    }
    for problem in texts(engine, "problems").into_iter().take(ROWS_MAX) {
        table.text(Ink::Red, &format!("  {problem}"));
    }
    section("container engine", &table, paint)
}

/// Where endpoints are found; nothing where all are written.
fn sources(sources: &[Value], paint: Paint) -> String {
    if sources.is_empty() {
        return String::new();
    }
    let mut table = Table::new(&["SOURCE", "ENDPOINTS", "STATE"]);
    let trouble = |source: &&Value| source.get("trouble").is_some_and(Value::is_string);
    let good = sources.iter().filter(|source| !trouble(source));
    for source in sources.iter().filter(trouble).chain(good).take(ROWS_MAX) {
        let (ink, state) = match trouble(&source) {
            true => (Ink::Red, "failing, its last endpoints stay"),
            false => (Ink::Green, "answering"),
        };
        table.row([
            (Ink::Plain, text(source, "source").to_owned()),
            (Ink::Plain, number(source, "endpoints").to_string()),
            (ink, state.to_owned()),
        ]);
        if trouble(&source) {
            table.text(Ink::Red, &format!("  because: {}", text(source, "trouble")));
        }
    }
    more(&mut table, sources.len(), "--format json shows all");
    section(&count(sources.len(), "source"), &table, paint)
}

fn endpoints(endpoints: &[Value], paint: Paint) -> String {
    let down = |endpoint: &&Value| text(endpoint, "state") == "down";
    let bad = endpoints.iter().filter(down);
    let good = endpoints.iter().filter(|endpoint| !down(endpoint));
    let title = match bad.clone().count() {
        0 => count(endpoints.len(), "endpoint"),
        n => format!("{}, {} down", count(endpoints.len(), "endpoint"), thousands(n)),
    };
    let mut table = Table::new(&["SERVICE", "ADDRESS", "STATE", "IN FLIGHT", "FAILURES", "LAST CHECK"]);
    for endpoint in bad.chain(good).take(ROWS_MAX) {
        let ink = if down(&endpoint) { Ink::Red } else { Ink::Green };
        table.row([
            (Ink::Plain, text(endpoint, "service").to_owned()),
            (Ink::Plain, text(endpoint, "address").to_owned()),
            (ink, text(endpoint, "state").to_owned()),
            (Ink::Plain, number(endpoint, "in_flight").to_string()),
            (Ink::Plain, number(endpoint, "failures").to_string()),
            last_check(endpoint),
        ]);
        if let Some(why) = endpoint.get("because").and_then(Value::as_str) {
            table.text(Ink::Red, &format!("  because: {why}"));
        }
    }
    more(&mut table, endpoints.len(), "--format json shows all, or name a site with --site");
    section(&title, &table, paint)
}

/// What came of the last health check; all of it stands below where it takes the endpoint out.
fn last_check(endpoint: &Value) -> (Ink, String) {
    let Some(check) = endpoint.get("check").filter(|check| check.is_object()) else {
        return (Ink::Dim, "none".to_owned());
    };
    let well = check.get("well").and_then(Value::as_bool).unwrap_or(false);
    let answer = text(check, "answer");
    let answer = match answer.char_indices().nth(CHECK_MAX) {
        Some((end, _)) => format!("{}…", answer.get(..end).unwrap_or_default()),
        None => answer.to_owned(),
    };
    let ink = if well { Ink::Plain } else { Ink::Red };
    (ink, format!("{answer}, {} ago", uptime(number(check, "ago_ms"))))
}

/// Services whose endpoints all get requests because too few are in good standing.
fn panics(panics: &[Value], paint: Paint) -> String {
    let told = |panic: &Value| {
        let (service, good, reachable) =
            (text(panic, "service"), number(panic, "good"), number(panic, "reachable"));
        let line = format!(
            "panic in {service}: only {good} of {reachable} endpoints that can be reached are in good standing, all get requests"
        );
        format!("{}\n", paint.paint(Ink::Red, &line))
    };
    let mut out: String = panics.iter().take(ROWS_MAX).map(told).collect();
    if !out.is_empty() {
        out.insert(0, '\n');
    }
    out
}

/// Services that bound what goes to them; nothing where none does.
fn services(services: &[Value], paint: Paint) -> String {
    if services.is_empty() {
        return String::new();
    }
    let open = |service: &&Value| text(service, "breaker") == "open";
    let is_bad = |service: &&Value| open(service) || number(service, "queue") > 0;
    let bad = services.iter().filter(is_bad);
    let good = services.iter().filter(|service| !is_bad(service));
    let title = match bad.clone().count() {
        0 => count(services.len(), "bounded service"),
        n => format!("{}, {} refused or waited for", count(services.len(), "bounded service"), thousands(n)),
    };
    let mut table = Table::new(&["SERVICE", "IN FLIGHT", "QUEUE", "BREAKER"]);
    for service in bad.chain(good).take(ROWS_MAX) {
        let of = |name: &str| service.get(name).and_then(Value::as_u64);
        let limit = of("limit").map(|limit| format!(" of {limit}")).unwrap_or_default();
        let each = of("limit_per_endpoint").map(|each| format!(", {each} each")).unwrap_or_default();
        let in_flight = of("in_flight").map(|n| format!("{n}{limit}{each}")).unwrap_or_default();
        let queue =
            of("queue").map(|n| format!("{n} of {}", number(service, "queue_max"))).unwrap_or_default();
        let waits = of("queue").is_some_and(|n| n > 0);
        table.row([
            (Ink::Plain, text(service, "service").to_owned()),
            (Ink::Plain, in_flight),
            (if waits { Ink::Red } else { Ink::Plain }, queue),
            (if open(&service) { Ink::Red } else { Ink::Plain }, text(service, "breaker").to_owned()),
        ]);
    }
    more(&mut table, services.len(), "--format json shows all, or name a site with --site");
    section(&title, &table, paint)
}

fn more(table: &mut Table, total: usize, how: &str) {
    if total > ROWS_MAX {
        table.text(Ink::Dim, &format!("… and {} more ({how})", thousands(total - ROWS_MAX)));
    }
}

/// The two largest units: `3h 12m`, `42s`.
fn uptime(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {}s", s / 60, s % 60),
        3600..86_400 => format!("{}h {}m", s / 3600, s / 60 % 60),
        _ => format!("{}d {}h", s / 86_400, s / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn site(name: &str, state: &str) -> Value {
        let reason = (state == "quarantined").then_some("the key does not fit the certificate");
        json!({ "name": name, "hosts": [name], "state": state, "serving": true, "generation": 7, "reason": reason,
            "routes": 1, "certificate": { "source": "files", "not_after": NOW + 63 * 86_400 } })
    }

    fn status(sites: Vec<Value>) -> Value {
        json!({ "version": "0.1.0", "pid": 4711, "uptime_ms": 11_520_000, "generation": 7, "connections": 41,
            "listeners": [{ "kind": "https", "address": "0.0.0.0:443" }],
            "workers": [{ "id": 0, "connections": 41 }], "sites": sites,
            "endpoints": [
                { "service": "a.example/", "address": "10.0.0.1:80", "state": "up", "in_flight": 3, "failures": 0,
                  "last_error": null },
                { "service": "b.example/", "address": "10.0.0.2:80", "state": "down", "in_flight": 0, "failures": 9,
                  "because": "connection refused", "last_error": "connection refused" }] })
    }

    #[test]
    fn the_page_begins_with_a_summary_and_shows_the_bad_things_first_with_their_reason() {
        let page = render(
            &status(vec![site("a.example", "active"), site("b.example", "quarantined")]),
            NOW,
            Paint(false),
        );
        assert!(
            page.starts_with("tidegate 0.1.0, pid 4711, up 3h 12m, generation 7, 41 connections\n"),
            "{page}"
        );
        assert!(
            page.contains("\n2 sites, 1 quarantined\n") && page.contains("\n2 endpoints, 1 down\n"),
            "{page}"
        );
        let at = |needle: &str| page.find(needle).unwrap_or_else(|| panic!("no {needle} in\n{page}"));
        assert!(at("  b.example  b.example") < at("  because: the key does not fit"));
        assert!(at("because: the key does not fit") < at("  a.example  a.example"));
        assert!(at("10.0.0.2:80") < at("because: connection refused"));
        assert!(at("because: connection refused") < at("10.0.0.1:80"));
        assert!(page.contains("files, 63 days"));
    }

    #[test]
    fn ten_thousand_sites_fit_on_a_page() {
        let mut many: Vec<_> = (0..9_999).map(|i| site(&format!("s{i}.example"), "active")).collect();
        many.push(site("broken.example", "quarantined"));
        let page = render(&status(many), NOW, Paint(false));
        assert!(page.contains("broken.example"));
        assert!(
            page.contains("… and 9,950 more (--format json shows all, or name a site with --site)"),
            "{page}"
        );
        assert!(page.lines().count() < 80);
    }

    #[test]
    fn one_site_is_found_by_name_or_host_and_a_slip_is_answered_with_the_nearest() {
        let whole = status(vec![site("a.example", "active"), site("b.example", "active")]);
        let mut one = whole.clone();
        only_site(&mut one, "A.example").unwrap();
        assert_eq!((list(&one, "sites").len(), list(&one, "endpoints").len()), (1, 1));
        let error = only_site(&mut whole.clone(), "b.exmaple").unwrap_err();
        assert!(error.contains("did you mean `b.example`?"), "{error}");
        assert!(only_site(&mut status(vec![]), "x").is_err());
    }

    #[test]
    fn bounded_services_are_told_with_what_waits_and_only_where_there_are_any() {
        let row = |name: &str, queue: u64, breaker: Value| {
            json!({ "service": name, "in_flight": 40, "limit": 40, "limit_per_endpoint": 20, "queue": queue,
                "queue_max": 1000, "breaker": breaker })
        };
        let page = services(&[row("a//", 0, Value::Null), row("b//", 7, json!("closed"))], Paint(false));
        assert!(page.contains("2 bounded services, 1 refused or waited for"), "{page}");
        assert!(
            page.find("b//") < page.find("a//") && page.contains("40 of 40, 20 each  7 of 1000"),
            "{page}"
        );
        let breaker =
            json!({ "service": "c//", "in_flight": null, "limit": null, "queue": null, "breaker": "open" });
        assert!(services(&[breaker], Paint(false)).contains("open"));
        assert_eq!(services(&[], Paint(false)), "");
    }

    #[test]
    fn names_on_demand_are_counted_beside_the_hosts() {
        let of = |said: &[&str], names: Value| hosts(&json!({ "hosts": said, "on_demand": names }));
        assert_eq!(of(&["a.de"], Value::Null), "a.de");
        assert_eq!(of(&["a.de"], json!({ "names": 12_345 })), "a.de, 12,345 on demand");
        assert_eq!(of(&[], json!({ "names": 0 })), "0 on demand");
    }

    #[test]
    fn certificates_are_told_in_days() {
        let of = |source: &str, after: i64| {
            let not_after = NOW.saturating_add_signed(after);
            certificate(&json!({ "source": source, "not_after": not_after }), NOW)
        };
        assert_eq!(of("files", -1), (Ink::Red, "files, expired".into()));
        assert_eq!(of("files", 100), (Ink::Red, "files, expires today".into()));
        assert_eq!(of("files", 86_400 * 14), (Ink::Plain, "files, 14 days".into()));
        assert_eq!(of("internal", 86_400), (Ink::Plain, "internal, expires tomorrow".into()));
        assert_eq!(certificate(&json!({ "source": "internal", "not_after": null }), NOW).1, "internal");
        assert_eq!(certificate(&Value::Null, NOW).1, "");
        assert_eq!(of("acme", 86_400 * 5), (Ink::Plain, "acme, 5 days".into()));
        assert_eq!(of("acme", -1), (Ink::Red, "acme, expired".into()));
        let waiting = certificate(&json!({ "source": "acme", "not_after": null }), NOW);
        assert_eq!(waiting, (Ink::Red, "acme, not there yet".into()));
    }

    #[test]
    fn an_answer_with_nothing_in_it_is_no_panic() {
        assert!(render(&json!({}), NOW, Paint(true)).contains("0 sites"));
        assert_eq!([uptime(0), uptime(61_000), uptime(90_000_000)], ["0s", "1m 1s", "1d 1h"]);
    }
}
