//! Rate limits: `limit = "100 per 10s by client-ip"`, several of them, or tables.

use std::sync::Arc;
use std::time::Duration;

use super::mode;
use crate::base::unit::{Rate, parse_rate, print_duration};
use crate::config::model::{Limit, LimitKey, Located, Mode, Origin};
use crate::config::parse::{Context, Table, Value, literals, quoted};
use crate::config::setting::{Id, Setting};

/// The largest count and time of a rate; the settings table names them in `rate`.
const COUNT_MAX: u32 = 10_000_000;
const PER_MAX: Duration = Duration::from_secs(86_400);

/// Reads `limit` of a site or route.
pub fn read(context: &mut Context<'_>, table: &Table<'_>) -> Vec<Limit> {
    let fallback = Located { value: Vec::new(), origin: Origin::Default };
    let key = context.below(table, "limit");
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        if value.get_ref().is_str() || value.get_ref().is_table() {
            return Some(one(context, setting, &key, value).into_iter().collect());
        }
        let array = context.array(setting, value)?;
        Some(array.iter().filter_map(|entry| one(context, setting, &key, entry)).collect())
    };
    context
        .value(table, "limit", &fallback, read, |list: &Vec<Limit>| literals(list.iter().map(written)))
        .value
}

fn written(limit: &Limit) -> String {
    let mut text = limit.text.to_string();
    if limit.burst != limit.rate.count {
        text.push_str(&format!(" burst {}", limit.burst));
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
    let before = context.errors;
    let table = context.open(Id::Limit, key.to_owned(), Some(entries), value.span());
    let Some((setting, rate_value)) = table.get("rate") else {
        context.missing(&table, "rate");
        return None;
    };
    let text = context.text(setting, rate_value)?;
    let rate = rate(context, rate_value, text);
    // Not recorded one by one: the whole limit is one line of the effective configuration.
    let by = table.get("by").and_then(|(_, by)| key_of(context, by, by.get_ref().as_str()?));
    if let Some((setting, by)) = table.get("by").filter(|(_, by)| !by.get_ref().is_str()) {
        context.wrong_type("by", &setting.kind.expected(), by);
    }
    let burst = table.get("burst").and_then(|(setting, burst)| context.read_count(setting, burst));
    let mode = context.silent(|context| mode::read(context, &table));
    if context.errors > before {
        return None;
    }
    let burst = burst.and_then(|burst| u32::try_from(burst).ok());
    Some(Limit { mode, ..limit(context, value, rate?, by.unwrap_or(LimitKey::ClientIp), burst) })
}

fn short(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<Limit> {
    let (rate_text, by) = text.split_once(" by ").map_or((text, None), |(rate, by)| (rate, Some(by.trim())));
    let rate = rate(context, value, rate_text.trim());
    let key = match by {
        Some(by) => key_of(context, value, by),
        None => Some(LimitKey::ClientIp),
    };
    Some(limit(context, value, rate?, key?, None))
}

fn limit(context: &Context<'_>, value: &Value<'_>, rate: Rate, key: LimitKey, burst: Option<u32>) -> Limit {
    let by = match key {
        LimitKey::ClientIp => "client-ip",
        LimitKey::Site => "site",
    };
    let text = format!("{} per {} by {by}", rate.count, print_duration(rate.per));
    let burst = burst.unwrap_or(rate.count);
    let origin = context.origin(value.span());
    Limit { text: Arc::from(text), rate, burst, key, mode: Mode::Enforce, origin }
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

fn key_of(context: &mut Context<'_>, value: &Value<'_>, by: &str) -> Option<LimitKey> {
    match by {
        "client-ip" => return Some(LimitKey::ClientIp),
        "site" => return Some(LimitKey::Site),
        _ => {}
    }
    let later = ["header", "cookie", "path", "tenant"].iter().any(|word| by.starts_with(word));
    let message = if later {
        format!("limits by `{}` are not in this version", quoted(by))
    } else {
        format!("a limit cannot be `by {}`", quoted(by))
    };
    let code = if later { "not-in-this-version" } else { "invalid-value" };
    context.error(
        code,
        value.span(),
        message,
        "write \"client-ip\" (each client address) or \"site\" (one for all)",
    );
    None
}
