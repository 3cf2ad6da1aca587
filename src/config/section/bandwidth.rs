//! `bandwidth = { down = "2MiB/s by client-ip" }`: bytes in a second.

use std::sync::Arc;

use super::limit::key;
use super::mode;
use crate::base::unit::{parse_size, print_size};
use crate::config::model::{Bandwidth, Flow, LimitKey, Located, Mode, Origin};
use crate::config::parse::{Context, Table, Value, literals, quoted};
use crate::config::setting::{Id, Setting};

/// The slowest and the fastest rate; the settings table names them.
const RATE_MIN: u64 = 1 << 10;
const RATE_MAX: u64 = 1 << 40;

/// Reads `bandwidth` of a site or route.
pub fn read(context: &mut Context<'_>, table: &Table<'_>) -> Bandwidth {
    if !table.has("bandwidth") {
        return Bandwidth::default();
    }
    let fallback = Located { value: Bandwidth::default(), origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        context.silent(|context| {
            let Some(entries) = value.get_ref().as_table() else {
                context.wrong_type(setting.name, &setting.kind.expected(), value);
                return None;
            };
            let table = context.open(Id::Bandwidth, String::new(), Some(entries), value.span());
            let (down, up) = (flows(context, &table, "down"), flows(context, &table, "up"));
            let mode = mode::read(context, &table);
            if !table.has("down") && !table.has("up") {
                let help = "say `down = \"2MiB/s by client-ip\"`, `up`, or both";
                context.error("missing", value.span(), "`bandwidth` limits neither `down` nor `up`", help);
            }
            Some(Bandwidth { down, up, mode })
        })
    };
    context.value(table, "bandwidth", &fallback, read, print).value
}

fn print(bandwidth: &Bandwidth) -> String {
    let list = |flows: &[Flow]| literals(flows.iter().map(|flow| &flow.text));
    let (down, up) = (list(&bandwidth.down), list(&bandwidth.up));
    let mode = if bandwidth.mode == Mode::Shadow { ", mode = \"shadow\"" } else { "" };
    format!("{{ down = {down}, up = {up}{mode} }}")
}

fn flows(context: &mut Context<'_>, table: &Table<'_>, name: &str) -> Vec<Flow> {
    let Some((setting, value)) = table.get(name) else { return Vec::new() };
    if let Some(text) = value.get_ref().as_str() {
        return flow(context, name, value, text).into_iter().collect();
    }
    if !value.get_ref().is_array() {
        context.wrong_type(name, &setting.kind.expected(), value);
        return Vec::new();
    }
    let mut found = Vec::new();
    for entry in context.array(setting, value).unwrap_or_default() {
        match entry.get_ref().as_str() {
            Some(text) => found.extend(flow(context, name, entry, text)),
            None => context.wrong_type(
                &format!("an entry of `{name}`"),
                "a rate like \"2MiB/s by client-ip\"",
                entry,
            ),
        }
    }
    found
}

fn flow(context: &mut Context<'_>, name: &str, value: &Value<'_>, text: &str) -> Option<Flow> {
    let (rate, by) = text.split_once(" by ").map_or((text, None), |(rate, by)| (rate, Some(by)));
    let help = "write it like \"2MiB/s by client-ip\", from \"1KiB/s\" to \"1TiB/s\"";
    let size = rate.trim().strip_suffix("/s").and_then(|size| parse_size(size.trim_end()).ok());
    let rate = size.filter(|size| (RATE_MIN..=RATE_MAX).contains(size));
    if rate.is_none() {
        let (code, why) = match size {
            Some(_) => ("out-of-range", "is out of range"),
            None => ("invalid-value", "is not so much in a second"),
        };
        context.error(code, value.span(), format!("`{name}`: `{}` {why}", quoted(text)), help);
    }
    let keys = match by {
        Some(by) => key::listed(context, value, by)?,
        None => vec![LimitKey::ClientIp],
    };
    let rate = rate?;
    let text = format!("{}/s by {}", print_size(rate), key::print(&keys));
    Some(Flow { text: Arc::from(text), rate, keys })
}
