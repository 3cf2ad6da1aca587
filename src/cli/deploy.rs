//! `tidegate deploy`: other endpoints for a site, once they are healthy.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

use clap::Args;
use http::Method;
use serde_json::Value;

use super::table::{Ink, Paint, Table, count, list, number, text};
use super::{EXIT_OK, EXIT_PROBLEM, Format, Output, Target, client, colour, print, print_json};
use crate::base::unit::{parse_duration, print_duration};
use crate::config::section::host;

/// Time between two looks at how it goes.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(super) struct Deploy {
    /// Site, or the NAME of `deploy://NAME` in its backends
    what: String,
    /// Address of a new endpoint; several times for several, all of which replace all that are there
    #[arg(long, value_name = "ADDRESS", required_unless_present = "back", num_args = 1.., conflicts_with = "back")]
    to: Vec<String>,
    /// Back to the endpoints before the last deployment
    #[arg(long)]
    back: bool,
    /// How long the new endpoints may take to become healthy
    #[arg(long, value_name = "TIME", default_value = "30s")]
    timeout: String,
    /// Let new requests wait until the old endpoints have finished, for this long at most: for those that must not run side
    /// by side
    #[arg(long, value_name = "TIME")]
    hold: Option<String>,
    /// How long to wait for requests that are still at the old endpoints
    #[arg(long, value_name = "TIME", default_value = "30s")]
    drain: String,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(super) fn deploy(asked: Deploy) -> Result<u8, String> {
    let socket = asked.target.socket()?;
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if asked.what.is_empty() || !asked.what.bytes().all(legal) {
        return Err(format!(
            "`{}` is not the name of a site or of a source",
            super::table::clean(&asked.what)
        ));
    }
    let time = |text: &str, name: &str| parse_duration(text).map_err(|why| format!("--{name}: {why}"));
    let (timeout, drain) = (time(&asked.timeout, "timeout")?, time(&asked.drain, "drain")?);
    for address in &asked.to {
        // Also keeps everything out that a query would have to encode.
        host::endpoint(address).map_err(|(message, help)| format!("{message}: {help}"))?;
    }
    let to = if asked.back { "back=1".to_owned() } else { format!("to={}", asked.to.join(",")) };
    let hold = asked.hold.as_deref().map(|text| time(text, "hold")).transpose()?;
    let mut path = format!(
        "/deploy?what={}&{to}&timeout_ms={}&drain_ms={}",
        asked.what,
        timeout.as_millis(),
        drain.as_millis()
    );
    if let Some(hold) = hold {
        path += &format!("&hold_ms={}", hold.as_millis());
    }
    let begun = client::ask(&socket, Method::POST, &path, client::ANSWER_TIME_MAX)?;
    let over = follow(&socket, number(&begun, "id"), timeout + hold.unwrap_or_default() + drain)?;
    let failed = text(&over, "phase") == "failed";
    match asked.output.format {
        Format::Json => print_json(&over),
        Format::Human => print(&render(&over, &asked.what, Paint(colour()))),
    }
    Ok(if failed { EXIT_PROBLEM } else { EXIT_OK })
}

/// Looks until it is over, a little longer than it may take; tells a terminal what is waited for.
fn follow(socket: &Path, id: u64, longest: Duration) -> Result<Value, String> {
    let terminal = std::io::stderr().is_terminal();
    let looks = (longest + client::ANSWER_TIME_MAX).as_millis() / LOOK.as_millis();
    let mut told = String::new();
    for _ in 0..looks {
        let all = client::ask(socket, Method::GET, "/deployments", client::ANSWER_TIME_MAX)?;
        let one = all.as_array().into_iter().flatten().find(|one| number(one, "id") == id);
        let one = one.ok_or("another deployment took its place: see the process log")?;
        if one.get("over").and_then(Value::as_bool) == Some(true) {
            return Ok(one.clone());
        }
        let waits = waits_for(one);
        if terminal && waits != told {
            let _ = writeln!(std::io::stderr(), "{waits}");
            told = waits;
        }
        std::thread::sleep(LOOK);
    }
    Err("the deployment does not end: see the process log".into())
}

fn waits_for(one: &Value) -> String {
    if text(one, "phase") == "hold" {
        return format!("new requests wait for {} at the old endpoints", requests(one));
    }
    if text(one, "phase") == "drain" {
        return format!("switched; waiting for {} at the old endpoints", requests(one));
    }
    let ill: Vec<String> = list(one, "endpoints")
        .iter()
        .filter(|endpoint| endpoint.get("healthy_after_ms").is_none_or(Value::is_null))
        .map(|endpoint| format!("{} ({})", text(endpoint, "address"), text(endpoint, "last_probe")))
        .collect();
    format!("waiting for {}", ill.join(", "))
}

fn requests(one: &Value) -> String {
    count(usize::try_from(number(one, "left")).unwrap_or(usize::MAX), "request")
}

fn render(one: &Value, what: &str, paint: Paint) -> String {
    let mut table = Table::default();
    for endpoint in list(one, "endpoints") {
        let (ink, state) = match endpoint.get("healthy_after_ms").and_then(Value::as_u64) {
            Some(ms) => (Ink::Green, format!("healthy after {}", seconds(ms))),
            None => (Ink::Red, "not healthy".to_owned()),
        };
        let address = text(endpoint, "address").to_owned();
        table.row([
            (Ink::Plain, address),
            (ink, state),
            (Ink::Plain, text(endpoint, "last_probe").to_owned()),
        ]);
    }
    let mut out = table.render(paint);
    if text(one, "phase") == "failed" {
        let why = format!("{what} was not deployed, nothing changed: {}", text(one, "error"));
        out += &format!("{}\n", paint.paint(Ink::Red, &why));
        return out;
    }
    let (new, old) = (list(one, "endpoints").len(), list(one, "replaced").len());
    out += &format!("{what}: {} in force, {} replaced", count(new, "endpoint"), count(old, "endpoint"));
    if let Some(ms) = one.get("held_ms").and_then(Value::as_u64) {
        out += &format!(", requests held for {}", seconds(ms));
    }
    out += &match one.get("drained_ms").and_then(Value::as_u64) {
        Some(_) if old == 0 => "\n".to_owned(),
        Some(ms) => format!(", which finished in {}\n", seconds(ms)),
        None => format!("; {} still there, left to finish\n", requests(one)),
    };
    out
}

fn seconds(ms: u64) -> String {
    print_duration(Duration::from_millis(ms))
}
