//! `tidegate ban`, `unban` and `bans`: who is turned away.

use clap::Args;
use http::Method;
use serde_json::Value;

use super::table::{Ink, Paint, Table, clean, list, number, text};
use super::{EXIT_OK, Format, Output, Target, client, colour, print, print_json};
use crate::base::unit::{parse_duration, print_duration};
use std::time::Duration;

#[derive(Debug, Args)]
pub(super) struct Ban {
    /// Address or network (an IPv6 address stands for its /64)
    net: String,
    /// How long
    #[arg(long = "for", value_name = "TIME", default_value = "1h")]
    time: String,
    /// Why; `tidegate bans` shows it
    #[arg(long, value_name = "TEXT", default_value = "")]
    why: String,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct Unban {
    /// Address or network, as `tidegate bans` shows it
    net: String,
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
pub(super) struct Bans {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    output: Output,
}

pub(super) fn ban(asked: Ban) -> Result<u8, String> {
    let time = parse_duration(&asked.time).map_err(|why| format!("--for: {why}"))?;
    // Less than a second would be none at all.
    let seconds = time.as_millis().div_ceil(1000);
    let path = format!("/ban?net={}&seconds={seconds}&why={}", encoded(&asked.net), encoded(&asked.why));
    let banned = client::ask(&asked.target.socket()?, Method::POST, &path, client::ANSWER_TIME_MAX)?;
    match asked.output.format {
        Format::Json => print_json(&banned),
        Format::Human => {
            let time = print_duration(Duration::from_secs(number(&banned, "for_seconds")));
            print(&format!("{} is banned for {time}\n", text(&banned, "net")));
        }
    }
    Ok(EXIT_OK)
}

pub(super) fn unban(asked: Unban) -> Result<u8, String> {
    let path = format!("/unban?net={}", encoded(&asked.net));
    let ended = client::ask(&asked.target.socket()?, Method::POST, &path, client::ANSWER_TIME_MAX)?;
    match asked.output.format {
        Format::Json => print_json(&ended),
        Format::Human => print(&format!("{} is no longer banned\n", text(&ended, "net"))),
    }
    Ok(EXIT_OK)
}

pub(super) fn bans(asked: Bans) -> Result<u8, String> {
    let all = client::ask(&asked.target.socket()?, Method::GET, "/bans", client::ANSWER_TIME_MAX)?;
    match asked.output.format {
        Format::Json => print_json(&all),
        Format::Human => print(&render(&all, Paint(colour()))),
    }
    Ok(EXIT_OK)
}

fn render(all: &Value, paint: Paint) -> String {
    let bans = list(all, "bans");
    let mut table = Table::new(&["WHO", "WHERE", "BY", "LEFT", "WHY"]);
    for ban in bans {
        let site = text(ban, "site");
        let left = print_duration(Duration::from_secs(number(ban, "left_seconds")));
        let by = match text(ban, "mode") {
            "shadow" => format!("{} (shadow)", text(ban, "by")),
            _ => text(ban, "by").to_owned(),
        };
        table.row([
            (Ink::Plain, text(ban, "net").to_owned()),
            (Ink::Plain, if site.is_empty() { "all sites".to_owned() } else { site.to_owned() }),
            (Ink::Plain, by),
            (Ink::Plain, left),
            (Ink::Plain, clean(text(ban, "why"))),
        ]);
    }
    let mut out = if bans.is_empty() { "nobody is banned\n".to_owned() } else { table.render(paint) };
    match number(all, "in_file") {
        0 => {}
        networks => out += &format!("and the networks of the file of [bans]: {networks}\n"),
    }
    match number(all, "given_way") {
        0 => {}
        count => {
            out += &format!("{count} gave way because there was no room: `entries` in [bans] is small\n")
        }
    }
    out
}

/// For a query (RFC 3986 section 2.1).
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_reason_may_hold_any_text() {
        assert_eq!(encoded("a&b=c d%é"), "a%26b%3Dc%20d%25%C3%A9");
        assert_eq!(encoded("2001:db8::/32"), "2001%3Adb8%3A%3A%2F32");
    }

    #[test]
    fn the_list_says_who_where_why_and_for_how_long() {
        let nobody = json!({ "bans": [], "in_file": 0, "given_way": 0 });
        assert_eq!(render(&nobody, Paint(false)), "nobody is banned\n");
        let some = json!({
            "bans": [
                { "net": "192.0.2.7/32", "site": null, "by": "command", "mode": "enforce", "left_seconds": 3600, "why": "\u{1b}[31mabuse" },
                { "net": "2001:db8::/64", "site": "shop", "by": "offences", "mode": "shadow", "left_seconds": 61, "why": "x" },
            ],
            "in_file": 3,
            "given_way": 1,
        });
        let shown = render(&some, Paint(false));
        for part in
            ["192.0.2.7/32", "all sites", "1h", "offences (shadow)", "shop", "61s", "[bans]: 3", "1 gave way"]
        {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        assert!(!shown.contains('\x1b'));
    }
}
