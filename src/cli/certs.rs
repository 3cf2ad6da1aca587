//! `tidegate certs`: every site's certificate, the wrong ones first; `--events`, `certs plan` and `certs renew`.

use std::path::Path;

use http::Method;
use serde_json::Value;

use super::table::{Ink, Paint, Table, count, list, number, some_of, text, texts, thousands};
use super::{EXIT_OK, EXIT_PROBLEM, Format, client, colour, print, print_json};
use crate::base::clock;

/// Rows shown; the JSON has all.
const ROWS_MAX: usize = 50;
/// Names shown of a certificate.
const NAMES_MAX: usize = 2;

/// Exits with 1 when a certificate failed or one is expired: for monitoring.
pub(super) fn list_all(socket: &Path, format: Format) -> Result<u8, String> {
    let certs = client::ask(socket, Method::GET, "/certs", client::ANSWER_TIME_MAX)?;
    let now = clock::wall().as_secs();
    match format {
        Format::Json => print_json(&certs),
        Format::Human => print(&render(&certs, now, Paint(colour()))),
    }
    let wrong_clock = certs.get("clock").is_some_and(|clock| text(clock, "state") == "wrong");
    let bad = wrong_clock || list(&certs, "certificates").iter().any(|row| rank(row, now) == 0);
    Ok(if bad { EXIT_PROBLEM } else { EXIT_OK })
}

/// What happened lately, the newest first: it stands where the eye begins, and more is rarely read.
pub(super) fn events(socket: &Path, format: Format) -> Result<u8, String> {
    let events = client::ask(socket, Method::GET, "/certs/events", client::ANSWER_TIME_MAX)?;
    match format {
        Format::Json => print_json(&events),
        Format::Human => print(&render_events(&events, clock::wall().as_secs(), Paint(colour()))),
    }
    Ok(EXIT_OK)
}

pub(super) fn plan(socket: &Path, format: Format) -> Result<u8, String> {
    let plan = client::ask(socket, Method::GET, "/certs/plan", client::ANSWER_TIME_MAX)?;
    match format {
        Format::Json => print_json(&plan),
        Format::Human if plan.is_null() => {
            print("nothing is planned: automatic certificates are off (no [acme] in the configuration)\n");
        }
        Format::Human => print(&render_plan(&plan, clock::wall().as_secs(), Paint(colour()))),
    }
    Ok(EXIT_OK)
}

pub(super) fn renew(socket: &Path, format: Format, name: &str) -> Result<u8, String> {
    // What is no site's name is refused here: it goes into a query as it stands.
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*' | b':');
    if name.is_empty() || !name.bytes().all(legal) {
        return Err(format!("`{}` is not the name of a site", super::table::clean(name)));
    }
    let path = format!("/certs/renew?site={name}");
    let answer = client::ask(socket, Method::POST, &path, client::ANSWER_TIME_MAX)?;
    match format {
        Format::Json => print_json(&answer),
        Format::Human => print(&format!("{name}: an order is queued; `tidegate certs` shows how it goes\n")),
    }
    Ok(EXIT_OK)
}

/// 0: needs a person; 1: on its way; 2: well.
fn rank(row: &Value, now: u64) -> u8 {
    let expired = row.get("not_after").and_then(Value::as_u64).is_some_and(|end| end <= now);
    // A name that no site says and that has no certificate may have been made up by a stranger.
    let made_up = row.get("on_demand").and_then(Value::as_bool).unwrap_or(false)
        && !row.get("not_after").is_some_and(Value::is_u64);
    match text(row, "state") {
        "failed" if !made_up => 0,
        _ if expired => 0,
        "valid" | "unused" => 2,
        _ => 1,
    }
}

fn render(certs: &Value, now: u64, paint: Paint) -> String {
    let mut rows: Vec<&Value> = list(certs, "certificates").iter().collect();
    let expiry = |row: &Value| row.get("not_after").and_then(Value::as_u64).unwrap_or(0);
    rows.sort_by_key(|row| (rank(row, now), expiry(row)));
    let bad = rows.iter().filter(|row| rank(row, now) == 0).count();
    let title = match bad {
        0 => count(rows.len(), "certificate"),
        n => format!("{}, {} in trouble", count(rows.len(), "certificate"), thousands(n)),
    };
    let mut table = Table::new(&["SITE", "NAMES", "FROM", "STATE", "EXPIRES", "RENEWAL"]);
    for row in rows.iter().take(ROWS_MAX) {
        table.row([
            (Ink::Plain, text(row, "site").to_owned()),
            (Ink::Plain, some_of(&texts(row, "names"), NAMES_MAX)),
            (Ink::Plain, from(row)),
            state(row, now),
            (Ink::Plain, time(row, "not_after", now)),
            (Ink::Plain, time(row, "renew_at", now)),
        ]);
        if let Some(url) = row.get("explanation").and_then(Value::as_str) {
            table.text(Ink::Dim, &format!("  the authority explains its renewal: {url}"));
        }
        if let Some(error) = row.get("last_error").and_then(Value::as_str) {
            let tries = usize::try_from(number(row, "attempts")).unwrap_or(usize::MAX);
            let tries =
                if tries > 1 { format!(" ({} in a row)", count(tries, "failure")) } else { String::new() };
            table.text(Ink::Red, &format!("  because: {error}{tries}"));
            if row.get("next_try").is_some_and(Value::is_u64) {
                table.text(Ink::Dim, &format!("  next try: {}", time(row, "next_try", now)));
            }
        }
    }
    if rows.len() > ROWS_MAX {
        let more = thousands(rows.len() - ROWS_MAX);
        table.text(Ink::Dim, &format!("… and {more} more (--format json shows all)"));
    }
    let clock = clock_line(certs.get("clock").unwrap_or(&Value::Null), paint);
    let off = certs.get("automatic").and_then(Value::as_bool).unwrap_or_default()
        && !certs.get("open").and_then(Value::as_bool).unwrap_or(true);
    let off = if off { "automatic certificates are off: the process log says why\n" } else { "" };
    format!("{}\n{clock}{off}{}", paint.paint(Ink::Bold, &title), table.render(paint))
}

/// What is to be known of the clock; empty while it is right.
pub(super) fn clock_line(clock: &Value, paint: Paint) -> String {
    let wrong = clock.get("message").and_then(Value::as_str);
    if let Some(why) = wrong.filter(|_| text(clock, "state") == "wrong") {
        let held = format!("clock: {why} Nothing is ordered or put in force until it is set (NTP).");
        return paint.paint(Ink::Red, &super::table::clean(&held)) + "\n";
    }
    match clock.get("synchronised").and_then(Value::as_bool) {
        Some(false) => {
            paint.paint(Ink::Dim, "clock: the kernel does not say that anything keeps it in time") + "\n"
        }
        _ => String::new(),
    }
}

/// `letsencrypt (managed)`, `internal`, `files`.
fn from(row: &Value) -> String {
    match (text(row, "ca"), text(row, "issuer")) {
        ("", _) => text(row, "source").to_owned(),
        (ca, "") => ca.to_owned(),
        (ca, engine) => format!("{ca} ({engine})"),
    }
}

fn state(row: &Value, now: u64) -> (Ink, String) {
    let mut word = text(row, "state").to_owned();
    if text(row, "source") == "internal until issued" {
        word += ", internal CA serves";
    }
    let ink = match rank(row, now) {
        0 => Ink::Red,
        1 => Ink::Bold,
        _ => Ink::Green,
    };
    (ink, word)
}

/// A moment as people count to it: `in 59 days`, `3 hours ago`; a dash where none is known.
fn time(row: &Value, name: &str, now: u64) -> String {
    let Some(at) = row.get(name).and_then(Value::as_u64) else { return "–".to_owned() };
    let seconds = at.abs_diff(now);
    let (n, word) = match seconds {
        0..120 => (seconds, "second"),
        120..7_200 => (seconds / 60, "minute"),
        7_200..172_800 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    let span = count(usize::try_from(n).unwrap_or(usize::MAX), word);
    if at >= now { format!("in {span}") } else { format!("{span} ago") }
}

fn render_events(events: &Value, now: u64, paint: Paint) -> String {
    let all = list(events, "events");
    let mut table = Table::new(&["WHEN", "WHAT", "SITE", "FROM"]);
    for row in all.iter().rev().take(ROWS_MAX) {
        let ink = match text(row, "event") {
            "failed" | "held" => Ink::Red,
            "dropped" => Ink::Plain,
            _ => Ink::Green,
        };
        let from = match (text(row, "ca"), text(row, "engine")) {
            (ca, "") => ca.to_owned(),
            (ca, engine) => format!("{ca} ({engine})"),
        };
        table.row([
            (Ink::Plain, time(row, "at", now)),
            (ink, text(row, "event").to_owned()),
            (Ink::Plain, text(row, "site").to_owned()),
            (Ink::Plain, from),
        ]);
        if let Some(message) = row.get("message").and_then(Value::as_str) {
            table.text(Ink::Dim, &format!("  because: {message}"));
        }
    }
    if all.len() > ROWS_MAX {
        let more = thousands(all.len() - ROWS_MAX);
        table.text(Ink::Dim, &format!("… and {more} older ones (--format json shows them)"));
    }
    format!("{}\n{}", paint.paint(Ink::Bold, &count(all.len(), "event")), table.render(paint))
}

/// What is left of the budget at each authority, then the queue.
fn render_plan(plan: &Value, now: u64, paint: Paint) -> String {
    let mut budget = Table::new(&["AUTHORITY", "ORDERS LEFT", "ASKED AGAIN"]);
    for row in list(plan, "budget") {
        budget.row([
            (Ink::Plain, text(row, "ca").to_owned()),
            (Ink::Plain, number(row, "orders_left").to_string()),
            (Ink::Plain, time(row, "held_until", now)),
        ]);
    }
    let queue = list(plan, "queue");
    let mut rows = Table::new(&["SITE", "EARLIEST", "ENGINE"]);
    for row in queue.iter().take(ROWS_MAX) {
        let due = number(row, "earliest") <= now;
        let earliest = if due { "now".to_owned() } else { time(row, "earliest", now) };
        let engine = match (text(row, "engine"), text(row, "engine_because")) {
            (engine, "") => engine.to_owned(),
            (engine, because) => format!("{engine}, because {because}"),
        };
        rows.row([(Ink::Plain, text(row, "site").to_owned()), (Ink::Plain, earliest), (Ink::Plain, engine)]);
    }
    if queue.len() > ROWS_MAX {
        let more = thousands(queue.len() - ROWS_MAX);
        rows.text(Ink::Dim, &format!("… and {more} more (--format json shows all)"));
    }
    let title = |text: &str| paint.paint(Ink::Bold, text);
    let queued = format!("{} in the queue", count(queue.len(), "certificate"));
    let expected = render_predictions(plan, paint);
    format!(
        "{}\n{}\n{}\n{}{expected}",
        title("budget"),
        budget.render(paint),
        title(&queued),
        rows.render(paint)
    )
}

/// What the next orders would fail of.
fn render_predictions(plan: &Value, paint: Paint) -> String {
    let found = list(plan, "predictions");
    let looked_up = usize::try_from(number(plan, "names_looked_up")).unwrap_or(usize::MAX);
    let left_out = usize::try_from(number(plan, "names_left_out")).unwrap_or(usize::MAX);
    if looked_up + left_out == 0 {
        return String::new();
    }
    let mut table = Table::new(&["SITE", "NAME", "EXPECTED"]);
    for row in found.iter().take(ROWS_MAX) {
        let ink = if text(row, "severity") == "failure" { Ink::Red } else { Ink::Bold };
        table.row([
            (Ink::Plain, text(row, "site").to_owned()),
            (Ink::Plain, text(row, "name").to_owned()),
            (ink, text(row, "severity").to_owned()),
        ]);
        table.text(ink, &format!("  because: {}", text(row, "message")));
    }
    if found.len() > ROWS_MAX {
        let more = thousands(found.len() - ROWS_MAX);
        table.text(Ink::Dim, &format!("… and {more} more (--format json shows all)"));
    }
    let mut title = format!("{} looked up, {}", count(looked_up, "name"), count(found.len(), "prediction"));
    if left_out > 0 {
        title += &format!(" ({} not looked up)", thousands(left_out));
    }
    let rows = if found.is_empty() { String::new() } else { table.render(paint) };
    format!("\n{}\n{rows}", paint.paint(Ink::Bold, &title))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn row(site: &str, state: &str, not_after: Option<u64>, error: Option<&str>) -> Value {
        json!({ "site": site, "names": [site], "source": "acme", "issuer": "managed", "ca": "letsencrypt",
            "state": state, "not_after": not_after, "renew_at": not_after.map(|end| end - 30 * 86_400),
            "last_error": error, "attempts": 2, "next_try": error.map(|_| NOW + 600) })
    }

    #[test]
    fn what_is_in_trouble_stands_first_with_the_reason_and_the_next_try() {
        let certs = json!({ "automatic": true, "open": true, "certificates": [
            row("good.de", "valid", Some(NOW + 60 * 86_400), None),
            row("new.de", "waiting", None, None),
            row("bad.de", "failed", Some(NOW + 5 * 86_400), Some("no A record")),
        ]});
        let page = render(&certs, NOW, Paint(false));
        assert!(page.starts_with("3 certificates, 1 in trouble\n"), "{page}");
        let at = |needle: &str| page.find(needle).unwrap_or_else(|| panic!("no {needle} in\n{page}"));
        assert!(at("bad.de") < at("because: no A record (2 failures in a row)"));
        assert!(at("because: no A record") < at("next try: in 10 minutes"));
        assert!(at("next try") < at("new.de") && at("new.de") < at("good.de"));
        assert!(page.contains("letsencrypt (managed)") && page.contains("in 60 days"), "{page}");
    }

    #[test]
    fn expired_is_trouble_and_waiting_is_not() {
        assert_eq!(rank(&row("a", "valid", Some(NOW), None), NOW), 0);
        assert_eq!(rank(&row("a", "waiting", None, None), NOW), 1);
        assert_eq!(rank(&row("a", "valid", Some(NOW + 1), None), NOW), 2);
        assert_eq!(rank(&json!({}), NOW), 1);
        let mut failed = row("a", "failed", None, Some("no A record"));
        assert_eq!(rank(&failed, NOW), 0);
        failed["on_demand"] = true.into();
        assert_eq!(rank(&failed, NOW), 1, "a stranger may have made the name up");
        failed["not_after"] = (NOW + 9).into();
        assert_eq!(rank(&failed, NOW), 0);
    }

    #[test]
    fn the_plan_shows_the_budget_and_who_is_next() {
        let plan = json!({
            "queue": [
                { "site": "a.de", "earliest": NOW - 5, "engine": "simple", "engine_because": "it can" },
                { "site": "b.de", "earliest": NOW + 3_600, "engine": "managed" },
            ],
            "budget": [{ "ca": "letsencrypt", "orders_left": 299, "held_until": null }],
        });
        assert_eq!(
            render_plan(&plan, NOW, Paint(false)),
            "budget\n  AUTHORITY    ORDERS LEFT  ASKED AGAIN\n  letsencrypt  299          –\n\n\
             2 certificates in the queue\n  SITE  EARLIEST       ENGINE\n  a.de  now            simple, because it can\n  \
             b.de  in 60 minutes  managed\n"
        );
        assert!(render_plan(&json!({}), NOW, Paint(true)).contains("0 certificates"));
    }

    #[test]
    fn the_plan_says_what_orders_would_fail_of() {
        let plan = json!({ "names_looked_up": 2, "names_left_out": 1, "predictions": [
            { "site": "a.de", "name": "www.a.de", "kind": "caa", "severity": "failure", "message": "CAA forbids it." },
        ]});
        assert_eq!(
            render_predictions(&plan, Paint(false)),
            "\n2 names looked up, 1 prediction (1 not looked up)\n  SITE  NAME      EXPECTED\n  a.de  www.a.de  failure\n\
             \x20   because: CAA forbids it.\n"
        );
        let well = json!({ "names_looked_up": 2, "names_left_out": 0, "predictions": [] });
        assert_eq!(render_predictions(&well, Paint(false)), "\n2 names looked up, 0 predictions\n");
    }

    #[test]
    fn events_are_told_the_newest_first() {
        let events = json!({ "events": [
            { "at": NOW - 7_200, "event": "issued", "site": "a.de", "ca": "letsencrypt", "engine": "simple" },
            { "at": NOW - 60, "event": "held", "site": null, "message": "This machine's clock is 90 s behind." },
        ]});
        let page = render_events(&events, NOW, Paint(false));
        let at = |needle: &str| page.find(needle).unwrap_or_else(|| panic!("no {needle} in\n{page}"));
        assert!(page.starts_with("2 events\n") && at("held") < at("issued"), "{page}");
        assert!(at("90 s behind") < at("letsencrypt (simple)"));
        assert!(render_events(&json!({}), NOW, Paint(true)).contains("0 events"));
    }

    #[test]
    fn a_wrong_clock_stands_above_everything() {
        let clock = json!({ "state": "wrong", "message": "It is off.\u{1b}[2J", "synchronised": true });
        let page = render(&json!({ "certificates": [], "clock": clock }), NOW, Paint(false));
        let second = page.lines().nth(1).unwrap();
        assert!(second.starts_with("clock: It is off.") && !second.contains('\u{1b}'), "{page}");
        let clock = json!({ "state": "right", "message": null, "synchronised": true });
        assert_eq!(clock_line(&clock, Paint(false)), "");
        assert!(clock_line(&json!({ "synchronised": false }), Paint(false)).contains("kernel"));
    }

    #[test]
    fn times_are_told_as_people_count() {
        let at = |seconds: i64| time(&json!({ "t": NOW.saturating_add_signed(seconds) }), "t", NOW);
        assert_eq!(at(1), "in 1 second");
        assert_eq!(at(-180), "3 minutes ago");
        assert_eq!(at(7_200), "in 2 hours");
        assert_eq!(at(90 * 86_400), "in 90 days");
        assert_eq!(time(&json!({}), "t", NOW), "–");
    }

    #[test]
    fn names_that_would_change_the_question_are_not_sent() {
        for name in ["", "a&b=c", "a b", "a/b", "a?b"] {
            assert!(renew(Path::new("/nowhere"), Format::Json, name).unwrap_err().contains("not the name"));
        }
    }
}
