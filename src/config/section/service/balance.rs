//! `balance`: how a backend is chosen, and by what requests are told apart.

use std::collections::{HashMap, HashSet};

use http::HeaderName;

use crate::base::unit::print_duration;
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{Action, Balance, Key, Located, Route, SameSite, Service, Sticky};
use crate::config::parse::{Context, Table, Value, literal, nearest, quoted};
use crate::config::setting::{BALANCE_WORDS, Id, Setting};

/// Keys of the long form, and to which word they belong.
const BELONGING: [(&str, &str); 5] =
    [("key", "hash"), ("load", "hash"), ("cookie", "sticky"), ("ttl", "sticky"), ("same_site", "sticky")];

/// Reads `balance`.
pub(super) fn read(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Balance>,
) -> Located<Balance> {
    context.value(
        table,
        "balance",
        inherited,
        |context, setting, value| context.silent(|context| read_balance(context, setting, value)),
        print,
    )
}

fn print(balance: &Balance) -> String {
    match balance {
        Balance::P2c => literal("p2c"),
        Balance::RoundRobin => literal("round_robin"),
        Balance::LeastRequest => literal("least_request"),
        Balance::Hash { key, load } => {
            let load = load.map_or_else(|| literal("off"), |load| load.to_string());
            format!("{{ by = \"hash\", key = {}, load = {load} }}", literal(&print_key(key)))
        }
        Balance::Sticky(Sticky { cookie, ttl, same_site }) => {
            let ttl = ttl.map(|ttl| format!(", ttl = {}", literal(&print_duration(ttl)))).unwrap_or_default();
            let same_site = match same_site {
                SameSite::Lax => "lax",
                SameSite::Strict => "strict",
                SameSite::None => "none",
            };
            format!("{{ by = \"sticky\", cookie = {}{ttl}, same_site = \"{same_site}\" }}", literal(cookie))
        }
    }
}

fn read_balance(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Balance> {
    let short = value.get_ref().as_str();
    let entries = value.get_ref().as_table();
    if short.is_none() && entries.is_none() {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    }
    let table = context.open(Id::Balance, String::new(), entries, value.span());
    let word = match (short, table.get("by")) {
        (Some(text), _) => word(context, value, text)?,
        (None, Some((setting, value))) => context.read_word(setting, value)?,
        (None, None) => {
            context.missing(&table, "by");
            return None;
        }
    };
    for (name, owner) in BELONGING {
        if owner != word && table.has(name) {
            let message = format!("`{name}` has no meaning beside `by = \"{word}\"`");
            let help = format!("remove it, or balance by \"{owner}\"");
            context.error("conflict", table.span_of(name), message, help);
        }
    }
    Some(match word {
        "round_robin" => Balance::RoundRobin,
        "least_request" => Balance::LeastRequest,
        "hash" => hash(context, &table)?,
        "sticky" => Balance::Sticky(sticky(context, &table)?),
        _ => Balance::P2c,
    })
}

fn word(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<&'static str> {
    let found = BALANCE_WORDS.iter().find(|word| **word == text).copied();
    if found.is_none() {
        let message = format!("`balance` cannot be `{}`", quoted(text));
        let words: Vec<String> = BALANCE_WORDS.iter().map(|word| literal(word)).collect();
        let help = format!("write {}", words.join(" or "));
        let mut diagnostic =
            Diagnostic::error("invalid-value", &context.origin(value.span()), message).help(help);
        if let Some(near) = nearest(text, BALANCE_WORDS) {
            diagnostic = diagnostic.label(format!("did you mean \"{near}\"?"));
        }
        context.report(diagnostic);
    }
    found
}

fn hash(context: &mut Context<'_>, table: &Table<'_>) -> Option<Balance> {
    let legal = "\"client-ip\", \"path\", \"header:NAME\" or \"cookie:NAME\"";
    let key = match table.get("key") {
        None => Some(Key::ClientIp),
        Some((setting, value)) => {
            context.text(setting, value).and_then(|text| key(context, value, text, legal))
        }
    };
    let load = match table.get("load") {
        None => table.default_text("load").parse().ok(),
        Some((_, value)) if value.get_ref().as_str() == Some("off") => None,
        Some((setting, value)) => Some(u32::try_from(context.read_count(setting, value)?).ok()?),
    };
    Some(Balance::Hash { key: key?, load })
}

fn sticky(context: &mut Context<'_>, table: &Table<'_>) -> Option<Sticky> {
    let cookie = match table.get("cookie") {
        None => table.default_text("cookie").to_owned(),
        Some((setting, value)) => {
            let text = context.text(setting, value)?;
            name(context, value, text, "cookie")?.to_owned()
        }
    };
    let ttl = table.has("ttl").then(|| context.duration(table, "ttl", None).value);
    let same_site = match context.word(table, "same_site", None).value {
        "strict" => SameSite::Strict,
        "none" => SameSite::None,
        _ => SameSite::Lax,
    };
    Some(Sticky { cookie, ttl, same_site })
}

/// Warns of routes of a site whose sessions would overwrite each other: one cookie, different backends.
pub fn warn_of_shared_cookies(context: &mut Context<'_>, routes: &[Route]) {
    let mut owners: HashMap<&str, (&Route, HashSet<String>)> = HashMap::new();
    let mut told = HashSet::new();
    for route in routes {
        let Action::Proxy(service) = &route.action else { continue };
        let Balance::Sticky(Sticky { cookie, .. }) = &service.balance else { continue };
        let all = backends(service);
        let (owner, others) = owners.entry(cookie).or_insert((route, all.clone()));
        if *others != all && told.insert(cookie) {
            let message = format!(
                "the routes `{}` and `{}` have different backends and one cookie, `{cookie}`: each ends the other's \
                 sessions",
                owner.label, route.label
            );
            let help = "give one of them another: balance = { by = \"sticky\", cookie = \"…\" }";
            context.report(Diagnostic::warning("shared-cookie", &route.origin, message).help(help));
        }
    }
}

/// Everything that a cookie of the service may name.
fn backends(service: &Service) -> HashSet<String> {
    let written = |service: &Service| -> Vec<String> {
        service.backends.iter().map(|one| format!("{} {}", one.value.address, one.value.tls)).collect()
    };
    let found = |service: &Service| -> Vec<String> {
        service.sources.iter().map(|one| format!("{} {}", one.value.source, one.value.tls)).collect()
    };
    service.all().flat_map(|service| [written(service), found(service)]).flatten().collect()
}

/// Reads what requests are told apart by. `legal`: what may be written here.
pub(super) fn key(context: &mut Context<'_>, value: &Value<'_>, text: &str, legal: &str) -> Option<Key> {
    match text.split_once(':') {
        None if text == "client-ip" => return Some(Key::ClientIp),
        None if text == "path" && legal.contains("\"path\"") => return Some(Key::Path),
        Some(("header", field)) => {
            return Some(Key::Header(name(context, value, field, "header field")?.to_lowercase()));
        }
        Some(("cookie", cookie)) => {
            return Some(Key::Cookie(name(context, value, cookie, "cookie")?.to_owned()));
        }
        _ => {}
    }
    let message = format!("requests cannot be told apart by `{}`", quoted(text));
    let mut diagnostic = Diagnostic::error("invalid-value", &context.origin(value.span()), message)
        .help(format!("write {legal}"));
    let kind = text.split(':').next().unwrap_or_default();
    if let Some(near) = nearest(kind, &["client-ip", "path", "header", "cookie"]).filter(|near| *near != kind)
    {
        diagnostic = diagnostic.label(format!("did you mean `{near}`?"));
    }
    context.report(diagnostic);
    None
}

/// As it is written.
pub(super) fn print_key(key: &Key) -> String {
    match key {
        Key::ClientIp => "client-ip".into(),
        Key::Path => "path".into(),
        Key::Header(name) => format!("header:{name}"),
        Key::Cookie(name) => format!("cookie:{name}"),
    }
}

/// The name of a field or a cookie: both are tokens (RFC 9110 section 5.6.2, RFC 6265 section 4.1.1).
pub(in crate::config::section) fn name<'t>(
    context: &mut Context<'_>,
    value: &Value<'_>,
    text: &'t str,
    what: &str,
) -> Option<&'t str> {
    if HeaderName::from_bytes(text.as_bytes()).is_ok() {
        return Some(text);
    }
    let message = format!("`{}` is not the name of a {what}", quoted(text));
    let help = "a name has letters, digits, `-` and `_`, like \"session\" or \"X-User\"";
    context.error("invalid-name", value.span(), message, help);
    None
}
