//! `tidegate suggest`: watches how clients use the sites, and prints limits that would fit.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::Value;

use super::table::{Ink, Paint, clean, count, list, number, text, texts, thousands};
use super::{EXIT_OK, Format, ShortOutput, Target, client, colour, print, print_json};
use crate::base::unit::{parse_duration, print_duration, print_size};

/// Time between two looks at how it goes.
const LOOK: Duration = Duration::from_millis(500);
/// Sites shown; the JSON has all.
const SITES_MAX: usize = 20;

#[derive(Debug, Args)]
pub(super) struct Suggest {
    /// The site, by its name or one of its hosts [default: all]
    site: Option<String>,
    /// How long to watch, from 1s to 1h; Ctrl-C ends it early and prints what was seen so far
    #[arg(long = "for", value_name = "TIME", default_value = "60s")]
    time: String,
    /// End what is being watched already, and print what was seen
    #[arg(long, conflicts_with_all = ["site", "time"])]
    end: bool,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: ShortOutput,
}

pub(super) fn suggest(asked: Suggest) -> Result<u8, String> {
    let socket = asked.target.socket()?;
    if !asked.end {
        let time = parse_duration(&asked.time).map_err(|why| format!("--for: {why}"))?;
        let mut path = format!("/observe?seconds={}", time.as_secs());
        if let Some(site) = &asked.site {
            let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*');
            if site.is_empty() || !site.bytes().all(legal) {
                return Err(format!("`{}` is not the name of a site", clean(site)));
            }
            path += &format!("&site={site}");
        }
        let begun = client::ask(&socket, Method::POST, &path, client::ANSWER_TIME_MAX)?;
        follow(&socket, number(&begun, "id"), time)?;
    }
    let report = client::ask(&socket, Method::POST, "/observe/end", client::RELOAD_TIME_MAX)?;
    match asked.output.format() {
        Format::Json => print_json(&report),
        Format::Human => print(&render(&report, Paint(colour()))),
    }
    Ok(EXIT_OK)
}

/// Looks until it is over, or somebody presses Ctrl-C; tells a terminal how it goes.
fn follow(socket: &Path, id: u64, time: Duration) -> Result<(), String> {
    let terminal = std::io::stderr().is_terminal();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("the command could not start: {error}"))?;
    let looks = (time + client::ANSWER_TIME_MAX).as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        let stopped = runtime.block_on(async {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => true,
                () = tokio::time::sleep(LOOK) => false,
            }
        });
        let now = client::ask(socket, Method::GET, "/observe", client::ANSWER_TIME_MAX)?;
        if now.get("running").and_then(Value::as_bool) != Some(true) || number(&now, "id") != id {
            return Err("somebody else has ended it with `tidegate suggest --end`".into());
        }
        if terminal {
            let requests = count(large(&now, "requests"), "request");
            let elapsed = number(&now, "elapsed_seconds");
            let _ = write!(
                std::io::stderr(),
                "\r\x1b[Kwatching: {elapsed} of {} s, {requests} (Ctrl-C ends it)",
                number(&now, "seconds")
            );
        }
        if stopped || now.get("over").and_then(Value::as_bool) == Some(true) {
            break;
        }
    }
    if terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    Ok(())
}

fn render(report: &Value, paint: Paint) -> String {
    let seconds = print_duration(Duration::from_secs(number(report, "seconds")));
    let early = report.get("early").and_then(Value::as_bool) == Some(true);
    let sites = list(report, "sites");
    let mut out = format!("Seen in {seconds}{}.\n", if early { ", ended early" } else { "" });
    if sites.is_empty() {
        out += "No request came as far as the limits of a site: there is nothing to suggest.\n";
    }
    for one in sites.iter().take(SITES_MAX) {
        out += &site(one, paint);
    }
    if sites.len() > SITES_MAX {
        let more = count(sites.len() - SITES_MAX, "site");
        out += &format!("\n{more} more, less busy: --format json shows all, or name one.\n");
    }
    let silent = large(report, "silent_sites");
    if silent > 0 && !sites.is_empty() {
        out += &format!("\n{} had no request.\n", count(silent, "site"));
    }
    out + &connections(report, paint)
}

fn site(one: &Value, paint: Paint) -> String {
    let none = Value::Null;
    let part = |name: &str| one.get(name).unwrap_or(&none);
    let (limit, windows, bodies) = (part("limit"), part("requests_per_client_and_window"), part("bodies"));
    let mut out = format!(
        "\n{}: {} from {}\n",
        paint.paint(Ink::Bold, &clean(text(one, "site"))),
        count(large(one, "requests"), "request"),
        count(large(one, "clients"), "client"),
    );
    out += &format!("  requests of a client in 10 s   {}\n", quantiles(windows, &|n| thousands(n)));
    if number(bodies, "count") > 0 {
        let size = |n: usize| print_size(n as u64);
        let of = count(large(bodies, "count"), "body").replace("bodys", "bodies");
        out += &format!("  size of {of:<22} {}\n", quantiles(bodies, &size));
    }
    if number(one, "connections_peak") > 0 {
        out += &format!("  connections at once            {}\n", thousands(large(one, "connections_peak")));
    }
    if let Some(top) = one.get("top_client").filter(|top| top.is_object()) {
        let percent = top.get("percent").and_then(Value::as_f64).unwrap_or_default();
        out += &format!("  busiest client                 {} ({percent:.1} %)\n", text(top, "client"));
    }
    for (policy, refused) in part("would_block").as_object().into_iter().flatten() {
        let refused = usize::try_from(refused.as_u64().unwrap_or_default()).unwrap_or(usize::MAX);
        out += &format!("  in shadow, `{policy}` would have refused {}\n", count(refused, "request"));
    }
    for warning in texts(one, "warnings") {
        out += &format!("  {}\n", paint.paint(Ink::Red, &format!("! {}", clean(warning))));
    }
    let percent = limit.get("refused_percent").and_then(Value::as_f64).unwrap_or_default();
    let refused = match number(limit, "refused") {
        0 => "would have refused nobody".to_owned(),
        n => format!(
            "would have refused about {} ({percent:.2} %) of {}",
            count(usize::try_from(n).unwrap_or(usize::MAX), "request"),
            count(large(limit, "refused_clients"), "client")
        ),
    };
    out += &format!("\n    {}  # {refused}\n", paint.paint(Ink::Green, text(limit, "toml")));
    for name in ["max_body", "max_connections"] {
        if part(name).is_object() {
            out += &format!("    {}\n", paint.paint(Ink::Green, text(part(name), "toml")));
        }
    }
    out
}

fn connections(report: &Value, paint: Paint) -> String {
    let none = Value::Null;
    let part = |name: &str| report.get(name).unwrap_or(&none);
    let (seen, cap) = (part("connections_per_client"), part("max_connections_per_client"));
    if !cap.is_object() {
        return String::new();
    }
    let refused = match number(cap, "refused") {
        0 => "would have refused none".to_owned(),
        n => format!("would have refused {}", count(usize::try_from(n).unwrap_or(usize::MAX), "connection")),
    };
    format!(
        "\n{}\n  connections of a client        {}\n\n    {}  # {refused}; {} is in force\n",
        paint.paint(Ink::Bold, "[server]"),
        quantiles(seen, &|n| thousands(n)),
        paint.paint(Ink::Green, text(cap, "toml")),
        number(cap, "in_force"),
    )
}

fn quantiles(values: &Value, shown: &dyn Fn(usize) -> String) -> String {
    let names = [("half", "p50"), ("90 %", "p90"), ("99 %", "p99"), ("99.9 %", "p99.9"), ("most", "max")];
    let each = names.map(|(word, name)| format!("{word} {}", shown(large(values, name))));
    each.join(", ")
}

fn large(value: &Value, name: &str) -> usize {
    usize::try_from(number(value, name)).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_seen_stands_before_what_is_proposed() {
        let spread = json!({ "count": 3, "p50": 1, "p90": 2, "p99": 3, "p99.9": 4, "max": 1234 });
        let report = json!({
            "seconds": 60, "early": true, "silent_sites": 2,
            "sites": [{
                "site": "shop\u{1b}", "requests": 9000, "clients": 1, "one_client_in": 1,
                "requests_per_client_and_window": spread, "bodies": spread, "connections_peak": 7,
                "top_client": { "client": "192.0.2.0", "percent": 61.25 },
                "would_block": { "rate-limit": 4 },
                "limit": { "toml": "limit = 1", "refused": 5, "refused_percent": 0.06, "refused_clients": 1 },
                "max_body": { "toml": "max_body = 2" }, "max_connections": null,
                "warnings": ["thin data"],
            }],
            "connections_per_client": spread,
            "max_connections_per_client": { "toml": "max = 3", "refused": 0, "in_force": 1024 },
        });
        let text = render(&report, Paint(false));
        for part in [
            "Seen in 1m, ended early.\n",
            "shop\u{fffd}: 9,000 requests from 1 client\n",
            "half 1, 90 % 2, 99 % 3, 99.9 % 4, most 1,234\n",
            "size of 3 bodies",
            "192.0.2.0 (61.2 %)",
            "in shadow, `rate-limit` would have refused 4 requests\n",
            "! thin data\n",
            "    limit = 1  # would have refused about 5 requests (0.06 %) of 1 client\n    max_body = 2\n",
            "2 sites had no request.\n",
            "    max = 3  # would have refused none; 1024 is in force\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        let nothing = render(&json!({ "seconds": 1, "sites": [], "silent_sites": 1 }), Paint(false));
        assert_eq!(nothing.lines().count(), 2, "{nothing}");
    }
}
