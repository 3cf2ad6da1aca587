//! `by`: what a limit's buckets are kept for.

use std::sync::Arc;

use crate::config::diagnostic::Diagnostic;
use crate::config::model::LimitKey;
use crate::config::parse::{Context, Table, Value, nearest, quoted};
use crate::config::section::service;
use crate::config::setting::LIMIT_KEYS_MAX;

/// Words that stand alone.
const WORDS: [(&str, LimitKey); 8] = [
    ("client-ip", LimitKey::ClientIp),
    ("client-net", LimitKey::ClientNet),
    ("path", LimitKey::Path),
    ("method", LimitKey::Method),
    ("user", LimitKey::User),
    // The subject of a token is the user that it authenticates.
    ("jwt:sub", LimitKey::User),
    ("site", LimitKey::Site),
    ("tenant", LimitKey::Tenant),
];

/// Reads `by` of a table; absent, it is each client address.
pub(super) fn read(context: &mut Context<'_>, table: &Table<'_>) -> Option<Vec<LimitKey>> {
    let Some((setting, value)) = table.get("by") else { return Some(vec![LimitKey::ClientIp]) };
    if let Some(text) = value.get_ref().as_str() {
        return listed(context, value, text);
    }
    if !value.get_ref().is_array() {
        context.wrong_type("by", &setting.kind.expected(), value);
        return None;
    }
    let mut keys = Vec::new();
    for entry in context.array(setting, value)? {
        match entry.get_ref().as_str() {
            Some(text) => keys.push(one(context, entry, text)?),
            None => context.wrong_type("an entry of `by`", "a key like \"client-ip\"", entry),
        }
    }
    checked(context, value, keys)
}

/// Keys as one text: `client-ip, path`.
pub(in crate::config::section) fn listed(
    context: &mut Context<'_>,
    value: &Value<'_>,
    text: &str,
) -> Option<Vec<LimitKey>> {
    let keys = text.split(',').map(|key| one(context, value, key.trim()));
    let keys: Option<Vec<LimitKey>> = keys.collect();
    checked(context, value, keys?)
}

/// As it is written.
pub(in crate::config::section) fn print(keys: &[LimitKey]) -> String {
    keys.iter().map(LimitKey::to_string).collect::<Vec<_>>().join(", ")
}

fn one(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<LimitKey> {
    if let Some((_, key)) = WORDS.iter().find(|(word, _)| *word == text) {
        return Some(key.clone());
    }
    match text.split_once(':') {
        Some(("header", field)) => {
            let name = service::name(context, value, field, "header field")?;
            return Some(LimitKey::Header(Arc::from(name.to_lowercase())));
        }
        Some(("cookie", cookie)) => {
            return Some(LimitKey::Cookie(Arc::from(service::name(context, value, cookie, "cookie")?)));
        }
        _ => {}
    }
    let legal = "write \"client-ip\" (each client address), \"client-net\" (its /24 or /48), \"header:X-Api-Key\", \"cookie:session\", \
                 \"path\", \"method\", \"user\" (who was authenticated), \"site\" (one for all) or \"tenant\" (one for all sites of the tenant)";
    let message = format!("a limit cannot be `by {}`", quoted(text));
    let mut diagnostic =
        Diagnostic::error("invalid-value", &context.origin(value.span()), message).help(legal);
    let words: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
    if let Some(near) = nearest(text, &words).filter(|near| *near != text) {
        diagnostic = diagnostic.label(format!("did you mean `{near}`?"));
    }
    context.report(diagnostic);
    None
}

/// What is said twice, and what contradicts itself.
fn checked(context: &mut Context<'_>, value: &Value<'_>, keys: Vec<LimitKey>) -> Option<Vec<LimitKey>> {
    let twice = keys.iter().enumerate().find(|(at, key)| keys.iter().take(*at).any(|other| other == *key));
    let (code, message, help) = if keys.is_empty() {
        (
            "missing",
            "`by` is empty".to_owned(),
            "name what is counted on its own, like \"client-ip\", or remove `by`",
        )
    } else if let Some((_, key)) = twice {
        ("duplicate", format!("`by` names `{key}` twice"), "keep one of them")
    } else if keys.len() > LIMIT_KEYS_MAX {
        ("too-many", format!("`by` has {} keys, legal are {LIMIT_KEYS_MAX}", keys.len()), "")
    } else if keys.len() > 1 && keys.contains(&LimitKey::Site) {
        let help = "remove `site`: the buckets of a limit are always those of its site (or route)";
        ("conflict", "`site` is one bucket for all, and cannot stand beside other keys".to_owned(), help)
    } else if keys.contains(&LimitKey::ClientIp) && keys.contains(&LimitKey::ClientNet) {
        let message = "`client-ip` and `client-net` together are `client-ip`".to_owned();
        ("conflict", message, "keep one of them, or write two limits")
    } else {
        return Some(keys);
    };
    context.error(code, value.span(), message, help);
    None
}
