//! Rate limits: `limit = "100 per 10s by client-ip"`, several of them, or tables.

pub(super) mod key;

use std::sync::Arc;
use std::time::Duration;

use super::{mode, service};
use crate::base::unit::{Rate, parse_rate, print_duration};
use crate::config::model::{Limit, LimitKey, Located, Mode, Origin, Statuses};
use crate::config::parse::{Context, Table, Value, literals, quoted};
use crate::config::setting::{Id, Setting};

/// The largest count and time of a rate; the settings table names them in `rate`.
const COUNT_MAX: u32 = 10_000_000;
const PER_MAX: Duration = Duration::from_secs(86_400);
/// Limits of one site or route that count by status: a request carries what it owes to them until it is answered.
const BY_STATUS_MAX: usize = 2;

/// Reads `limit` of a site or route.
pub fn read(context: &mut Context<'_>, table: &Table<'_>) -> Vec<Limit> {
    let fallback = Located { value: Vec::new(), origin: Origin::Default };
    let key = context.below(table, "limit");
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        if value.get_ref().is_str() || value.get_ref().is_table() {
            return Some(one(context, setting, &key, value).into_iter().collect());
        }
        let array = context.array(setting, value)?;
        let found: Vec<Limit> = array.iter().filter_map(|entry| one(context, setting, &key, entry)).collect();
        if found.iter().filter(|limit| limit.statuses.is_some()).count() > BY_STATUS_MAX {
            let message = format!("more than {BY_STATUS_MAX} limits count by `statuses`");
            context.error("too-many", value.span(), message, "put statuses of one purpose into one limit");
        }
        Some(found)
    };
    context
        .value(table, "limit", &fallback, read, |list: &Vec<Limit>| literals(list.iter().map(written)))
        .value
}

fn written(limit: &Limit) -> String {
    let mut text = limit.text.to_string();
    if limit.cost != 1 {
        text.push_str(&format!(" cost {}", limit.cost));
    }
    if limit.mode == Mode::Shadow {
        text.push_str(" in shadow");
    }
    text
}

fn one(context: &mut Context<'_>, setting: &Setting, key: &str, value: &Value<'_>) -> Option<Limit> {
    if let Some(text) = value.get_ref().as_str() {
        return short(context, value, text);
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    // Not recorded one by one: the whole limit is one line of the effective configuration.
    context.silent(|context| {
        let table = context.open(Id::Limit, key.to_owned(), Some(entries), value.span());
        long(context, &table, value)
    })
}

fn long(context: &mut Context<'_>, table: &Table<'_>, value: &Value<'_>) -> Option<Limit> {
    let before = context.errors;
    let Some((setting, rate_value)) = table.get("rate") else {
        context.missing(table, "rate");
        return None;
    };
    let text = context.text(setting, rate_value)?;
    let rate = rate(context, rate_value, text);
    let keys = key::read(context, table);
    let count = |context: &mut Context<'_>, name: &str| {
        let (setting, value) = table.get(name)?;
        context.read_count(setting, value).and_then(|count| u32::try_from(count).ok())
    };
    let burst = count(context, "burst");
    let cost = count(context, "cost").unwrap_or(1);
    let name = name(context, table);
    let statuses = statuses(context, table);
    let mode = mode::read(context, table);
    if context.errors > before {
        return None;
    }
    let rate = rate?;
    let burst = burst.unwrap_or(rate.count);
    if cost > burst {
        let message =
            format!("`cost` is {cost}, and a full bucket holds {burst}: no request would ever pass");
        let help = "make `cost` smaller, or `burst` larger";
        context.error("conflict", table.span_of("cost"), message, help);
        return None;
    }
    let origin = context.origin(value.span());
    Some(limit(Limit { text: Arc::from(""), rate, burst, keys: keys?, cost, statuses, name, mode, origin }))
}

/// A structured field's string (RFC 9651 section 3.3.3) of plain characters.
fn name(context: &mut Context<'_>, table: &Table<'_>) -> Option<Arc<str>> {
    let (setting, value) = table.get("name")?;
    let text = context.text(setting, value)?;
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Some(Arc::from(text));
    }
    let message = format!("`{}` cannot be the name of a limit", quoted(text));
    context.error(
        "invalid-name",
        value.span(),
        message,
        "a name has letters, digits, `-`, `_` and `.`, like \"login\"",
    );
    None
}

fn statuses(context: &mut Context<'_>, table: &Table<'_>) -> Option<Statuses> {
    let (_, value) = table.get("statuses")?;
    let before = context.errors;
    let found = service::statuses(context, table, "statuses");
    if context.errors == before && found.0.is_empty() {
        let help =
            "name at least one status, like [401, 403], or remove `statuses`: every request is counted then";
        context.error("missing", value.span(), "`statuses` is empty: nothing would ever be counted", help);
    }
    Some(found)
}

fn short(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<Limit> {
    let (rate_text, by) = text.split_once(" by ").map_or((text, None), |(rate, by)| (rate, Some(by.trim())));
    let rate = rate(context, value, rate_text.trim());
    let keys = match by {
        Some(by) => key::listed(context, value, by),
        None => Some(vec![LimitKey::ClientIp]),
    };
    let rate = rate?;
    Some(limit(Limit {
        text: Arc::from(""),
        rate,
        burst: rate.count,
        keys: keys?,
        cost: 1,
        statuses: None,
        name: None,
        mode: Mode::Enforce,
        origin: context.origin(value.span()),
    }))
}

/// Gives a limit the text that its buckets are known by.
fn limit(limit: Limit) -> Limit {
    let mut text =
        format!("{} per {} by {}", limit.rate.count, print_duration(limit.rate.per), key::print(&limit.keys));
    if limit.burst != limit.rate.count {
        text.push_str(&format!(" burst {}", limit.burst));
    }
    if let Some(statuses) = &limit.statuses {
        text.push_str(&format!(" of {}", service::print_statuses(statuses)));
    }
    if let Some(name) = &limit.name {
        text.push_str(&format!(" as {name}"));
    }
    Limit { text: Arc::from(text), ..limit }
}

fn rate(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<Rate> {
    let example = "write it like \"100 per 10s by client-ip\"; at most 10000000 per \"1d\"";
    match parse_rate(text) {
        Ok(rate) if rate.count <= COUNT_MAX && rate.per <= PER_MAX => Some(rate),
        Ok(_) => {
            context.error(
                "out-of-range",
                value.span(),
                format!("the limit `{}` is out of range", quoted(text)),
                example,
            );
            None
        }
        Err(sentence) => {
            let found = sentence.split(": write").next().unwrap_or_default();
            context.error("invalid-value", value.span(), format!("`limit`: {}", quoted(found)), example);
            None
        }
    }
}
