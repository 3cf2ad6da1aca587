//! `health`: active health checks.

use std::time::Duration;

use http::uri::Authority;

use super::eject;
use crate::base::unit::print_duration;
use crate::config::model::{BodyCheck, Check, Health, HostPattern, Http, HttpCheck, Located, Upstream};
use crate::config::parse::{Context, Table, Value, literal, quoted};
use crate::config::section::{header, host};
use crate::config::setting::{Id, Setting};

/// The longest `fast_interval` that nobody asked for.
const FAST_MAX: Duration = Duration::from_secs(1);

/// Which types of check know a setting that not all know.
const OWNERS: &[(&str, &str)] = &[
    ("path", "http"),
    ("method", "http"),
    ("host", "http"),
    ("status", "http"),
    ("body", "http"),
    ("service", "grpc"),
];

/// Reads `health`.
pub(super) fn read(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Option<Health>>,
) -> Located<Option<Health>> {
    context.value(
        table,
        "health",
        inherited,
        |context, setting, value| context.silent(|context| read_health(context, setting, value)),
        |health: &Option<Health>| health.as_ref().map_or_else(|| literal("off"), print),
    )
}

/// gRPC is spoken over HTTP/2 alone.
pub(super) fn check_protocol(
    context: &mut Context<'_>,
    table: &Table<'_>,
    health: &Option<Health>,
    upstream: &Upstream,
) {
    let grpc = health.as_ref().is_some_and(|health| matches!(health.check, Check::Grpc { .. }));
    if grpc && upstream.http == Http::H1 {
        let at = if table.has("health") { "health" } else { "upstream" };
        context.error(
            "conflict",
            table.span_of(at),
            "`health` asks over gRPC, but the backends are not spoken to over HTTP/2",
            "write upstream = { http = \"h2\" }, or another `health`, like \"tcp\"",
        );
    }
}

fn read_health(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Option<Health>> {
    let short = value.get_ref().as_str();
    if short == Some("off") {
        return Some(None);
    }
    let entries = value.get_ref().as_table();
    if short.is_none() && entries.is_none() {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    }
    let table = context.open(Id::Health, String::new(), entries, value.span());
    let kind = match short {
        Some(word @ ("tcp" | "grpc")) => word,
        Some(_) => "http",
        None => context.word(&table, "type", None).value,
    };
    for (name, owner) in OWNERS.iter().filter(|(name, owner)| *owner != kind && table.has(name)) {
        context.error(
            "conflict",
            table.span_of(name),
            format!("`{name}` says nothing to a check of the type \"{kind}\""),
            format!("remove it, or write type = \"{owner}\""),
        );
    }
    let check = match kind {
        "tcp" => Some(Check::Tcp),
        "grpc" => Some(Check::Grpc { service: text(context, &table, "service").unwrap_or_default() }),
        _ => http_check(context, &table, short.map(|text| (value, text))).map(Check::Http),
    };
    let interval = context.duration(&table, "interval", None).value;
    let fast = Located { value: interval.min(FAST_MAX), origin: crate::config::model::Origin::Default };
    let fast_interval = context.duration(&table, "fast_interval", Some(&fast)).value;
    let timeout = context.duration(&table, "timeout", None).value;
    let rise = u32::try_from(context.count(&table, "rise")).unwrap_or(u32::MAX);
    let fall = u32::try_from(context.count(&table, "fall")).unwrap_or(u32::MAX);
    let port = table.get("port").and_then(|(setting, value)| context.read_count(setting, value));
    let port = port.and_then(|port| u16::try_from(port).ok());
    let address = table.get("address").and_then(|(setting, value)| address(context, setting, value));
    Some(Some(Health { check: check?, address, port, interval, fast_interval, timeout, rise, fall }))
}

fn http_check(
    context: &mut Context<'_>,
    table: &Table<'_>,
    short: Option<(&Value<'_>, &str)>,
) -> Option<HttpCheck> {
    let path = match (short, table.get("path")) {
        (Some((value, text)), _) => health_path(context, value, text),
        (None, Some((setting, value))) => {
            let text = context.text(setting, value)?;
            health_path(context, value, text)
        }
        (None, None) => {
            context.missing(table, "path");
            None
        }
    };
    let head = context.word(table, "method", None).value == "HEAD";
    let status = eject::statuses(context, table, "status");
    let body = table.get("body").and_then(|(setting, value)| body(context, setting, value));
    if head && body.is_some() {
        context.error(
            "conflict",
            table.span_of("body"),
            "`body` needs a body, and an answer to HEAD has none",
            "remove `body`, or write method = \"GET\"",
        );
    }
    let host = table.get("host").and_then(|(setting, value)| host_field(context, setting, value));
    Some(HttpCheck { head, path: path?, host, status, body })
}

fn health_path(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<String> {
    let legal = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !legal {
        let message = format!("`health`: `{}` is not a path", quoted(text));
        context.error(
            "invalid-path",
            value.span(),
            message,
            "write a path that begins with `/`, like \"/up\", or \"tcp\", \"grpc\" or \"off\"",
        );
    }
    legal.then(|| text.to_owned())
}

fn body(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<BodyCheck> {
    let text = context.text(setting, value)?;
    match text.strip_prefix('~') {
        Some(pattern) => {
            header::regex(context, "body", value, pattern)?;
            Some(BodyCheck::Matches(pattern.to_owned()))
        }
        None if text.is_empty() => {
            let help = "write what it must contain, or remove `body`";
            context.error(
                "invalid-value",
                value.span(),
                "`body` is empty: every body contains nothing",
                help,
            );
            None
        }
        None => Some(BodyCheck::Contains(text.to_owned())),
    }
}

/// A name, perhaps with a port: what a `Host` field may say.
fn host_field(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<String> {
    let text = context.text(setting, value)?;
    let legal = text.parse::<Authority>().is_ok_and(|host| !host.as_str().contains('@'));
    if !legal {
        let message = format!("`host`: `{}` is not a host", quoted(text));
        let help =
            "write a name, with a port where it needs one, like \"shop.example\" or \"localhost:8080\"";
        context.error("invalid-host", value.span(), message, help);
    }
    legal.then(|| text.to_owned())
}

fn address(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<String> {
    let text = context.text(setting, value)?;
    match host::pattern(text) {
        Ok(HostPattern::Exact(name)) => Some(name.to_string()),
        Ok(HostPattern::Wildcard(_)) => {
            context.error("invalid-host", value.span(), "`address` has a `*`", "write one address or name");
            None
        }
        Err((message, _)) => {
            let help = "write an IP address or a name; the port has a setting of its own";
            context.error("invalid-host", value.span(), format!("`address`: {message}"), help);
            None
        }
    }
}

fn text(context: &mut Context<'_>, table: &Table<'_>, name: &str) -> Option<String> {
    let (setting, value) = table.get(name)?;
    context.text(setting, value).map(str::to_owned)
}

fn print(health: &Health) -> String {
    let mut parts: Vec<String> = Vec::new();
    match &health.check {
        Check::Tcp => parts.push("type = \"tcp\"".into()),
        Check::Grpc { service } => {
            parts.push("type = \"grpc\"".into());
            if !service.is_empty() {
                parts.push(format!("service = {}", literal(service)));
            }
        }
        Check::Http(check) => {
            parts.push(format!("path = {}", literal(&check.path)));
            if check.head {
                parts.push("method = \"HEAD\"".into());
            }
            if let Some(host) = &check.host {
                parts.push(format!("host = {}", literal(host)));
            }
            if check.status.0 != [(200, 399)] {
                parts.push(format!("status = {}", eject::print_statuses(&check.status)));
            }
            match &check.body {
                Some(BodyCheck::Contains(text)) => parts.push(format!("body = {}", literal(text))),
                Some(BodyCheck::Matches(text)) => {
                    parts.push(format!("body = {}", literal(&format!("~{text}"))))
                }
                None => {}
            }
        }
    }
    parts.extend(health.address.as_ref().map(|address| format!("address = {}", literal(address))));
    parts.extend(health.port.map(|port| format!("port = {port}")));
    parts.push(format!("interval = \"{}\"", print_duration(health.interval)));
    if health.fast_interval != health.interval.min(FAST_MAX) {
        parts.push(format!("fast_interval = \"{}\"", print_duration(health.fast_interval)));
    }
    parts.push(format!("timeout = \"{}\"", print_duration(health.timeout)));
    format!("{{ {}, rise = {}, fall = {} }}", parts.join(", "), health.rise, health.fall)
}
