//! What is spoken: HTTP version and PROXY protocol towards backends, protocols that clients may change to.

use super::server::texts;
use crate::config::model::{Http, Located, ProxyHeader};
use crate::config::parse::{Context, Table, Value, literals, quoted};
use crate::config::setting::Setting;

/// Longest name of a protocol.
const NAME_MAX: usize = 64;

/// `http` and `proxy_protocol` of `upstream = { … }`.
pub fn of_upstream(context: &mut Context<'_>, table: &Table<'_>) -> (Http, Option<ProxyHeader>) {
    let http = match context.word(table, "http", None).value {
        "h2" => Http::H2,
        "auto" => Http::Auto,
        _ => Http::H1,
    };
    let header = match context.word(table, "proxy_protocol", None).value {
        "v1" => Some(ProxyHeader::V1),
        "v2" => Some(ProxyHeader::V2),
        _ => None,
    };
    if http != Http::H1 && header.is_some() {
        let message = format!(
            "`proxy_protocol` and `http = \"{}\"` exclude each other: an HTTP/2 connection carries many clients, its \
             header names one",
            word(http)
        );
        let help = "keep one of them; the client's address also stands in X-Forwarded-For";
        context.error("conflict", table.span_of("proxy_protocol"), message, help);
    }
    (http, header)
}

/// How `upstream` shows its protocols.
pub fn print(http: Http, header: Option<ProxyHeader>) -> String {
    let http = word(http);
    match header {
        None => format!("http = \"{http}\""),
        Some(ProxyHeader::V1) => format!("http = \"{http}\", proxy_protocol = \"v1\""),
        Some(ProxyHeader::V2) => format!("http = \"{http}\", proxy_protocol = \"v2\""),
    }
}

fn word(http: Http) -> &'static str {
    match http {
        Http::H1 => "h1",
        Http::H2 => "h2",
        Http::Auto => "auto",
    }
}

/// `upgrade` of a site or route.
pub fn upgrade(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Vec<String>>,
) -> Located<Vec<String>> {
    context.value(table, "upgrade", inherited, read_upgrade, |list: &Vec<String>| literals(list))
}

fn read_upgrade(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Vec<String>> {
    texts(context, setting, value, |context, entry, text| {
        let name = text.to_ascii_lowercase();
        if name == "h2c" {
            let message = "`h2c` cannot be an upgrade: requests inside it would pass every route and limit";
            let help = "clients speak HTTP/2 over TLS; backends do with upstream = { http = \"h2\" }";
            context.error("invalid-value", entry.span(), message, help);
            return None;
        }
        // RFC 9110 section 7.8: a protocol is a token, with a `/version` perhaps.
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&b);
        if name.is_empty() || name.len() > NAME_MAX || name == "*" || !name.bytes().all(legal) {
            let message = format!("`{}` is not the name of a protocol", quoted(text));
            let help = "write what clients send in `Upgrade`, like [\"websocket\"], or [] for none";
            context.error("invalid-value", entry.span(), message, help);
            return None;
        }
        Some(name)
    })
}
