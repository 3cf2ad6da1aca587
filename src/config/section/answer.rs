//! What is said to browsers beside a backend's own words: presets, HSTS, CORS.

use std::time::Duration;

use http::{HeaderName, Method};

use super::server::{default_texts, texts};
use crate::base::unit::print_duration;
use crate::config::model::{Cors, CorsOrigin, Hsts, Located, Origin, SecurityHeaders, SecurityPreset};
use crate::config::parse::{Context, Table, Value, literal, literals, quoted};
use crate::config::setting::{Id, Setting};

/// A year: less is not taken into the lists of browsers.
const PRELOAD_MIN: Duration = Duration::from_secs(365 * 86_400);

/// Reads `security_headers`.
pub(super) fn security(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Option<SecurityHeaders>>,
) -> Located<Option<SecurityHeaders>> {
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        context.silent(|context| read_security(context, setting, value))
    };
    let print = |said: &Option<SecurityHeaders>| match said {
        None => literal("off"),
        Some(said) => {
            format!("{{ preset = {}, replace = {} }}", literal(preset_word(said.preset)), said.replace)
        }
    };
    context.value(table, "security_headers", inherited, read, print)
}

fn preset_word(preset: SecurityPreset) -> &'static str {
    match preset {
        SecurityPreset::Basic => "basic",
        SecurityPreset::Strict => "strict",
    }
}

fn read_security(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Option<SecurityHeaders>> {
    match value.get_ref().as_str() {
        Some("off") => return Some(None),
        Some("basic") => {
            return Some(Some(SecurityHeaders { preset: SecurityPreset::Basic, replace: false }));
        }
        Some("strict") => {
            return Some(Some(SecurityHeaders { preset: SecurityPreset::Strict, replace: false }));
        }
        _ => {}
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let before = context.errors;
    let table = context.open(Id::Security, String::new(), Some(entries), value.span());
    if !table.has("preset") {
        context.missing(&table, "preset");
    }
    let preset = match context.word(&table, "preset", None).value {
        "strict" => SecurityPreset::Strict,
        _ => SecurityPreset::Basic,
    };
    let replace = context.flag(&table, "replace");
    (context.errors == before).then_some(Some(SecurityHeaders { preset, replace }))
}

/// Reads `hsts`.
pub(super) fn hsts(context: &mut Context<'_>, table: &Table<'_>) -> Option<Hsts> {
    let fallback = Located { value: None, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        context.silent(|context| read_hsts(context, setting, value))
    };
    let print = |said: &Option<Hsts>| match said {
        None => literal("off"),
        Some(said) => format!(
            "{{ max_age = {}, ramp = {}, include_subdomains = {}, preload = {} }}",
            literal(&print_duration(said.max_age)),
            said.ramp,
            said.include_subdomains,
            said.preload
        ),
    };
    context.value(table, "hsts", &fallback, read, print).value
}

fn read_hsts(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Option<Hsts>> {
    let defaults = Hsts { max_age: PRELOAD_MIN, include_subdomains: false, preload: false, ramp: true };
    match value.get_ref().as_str() {
        Some("off") => return Some(None),
        Some("on") => return Some(Some(defaults)),
        Some("clear") => return Some(Some(Hsts { max_age: Duration::ZERO, ramp: false, ..defaults })),
        _ => {}
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Hsts, String::new(), Some(entries), value.span());
    let said = Hsts {
        max_age: context.duration(&table, "max_age", None).value,
        ramp: context.flag(&table, "ramp"),
        include_subdomains: context.flag(&table, "include_subdomains"),
        preload: context.flag(&table, "preload"),
    };
    if said.preload && (!said.include_subdomains || said.max_age < PRELOAD_MIN) {
        let message = "`preload` needs `include_subdomains = true` and a `max_age` of a year";
        let help = "browsers carry it for all names below, and nobody is taken from their lists for months: say all three, or leave `preload`";
        context.error("conflict", table.span_of("preload"), message, help);
        return None;
    }
    Some(Some(said))
}

/// Reads `cors`.
pub(super) fn cors(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Option<Cors>>,
) -> Located<Option<Cors>> {
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        context.silent(|context| read_cors(context, setting, value))
    };
    context.value(table, "cors", inherited, read, print_cors)
}

fn print_cors(said: &Option<Cors>) -> String {
    let Some(said) = said else { return literal("off") };
    let origin = |origin: &CorsOrigin| match origin {
        CorsOrigin::Any => "*".to_owned(),
        CorsOrigin::Exact(text) => text.to_string(),
        CorsOrigin::Below { scheme, rest } => format!("{scheme}*{rest}"),
    };
    format!(
        "{{ origins = {}, credentials = {}, methods = {}, headers = {}, expose = {}, max_age = {} }}",
        literals(said.origins.iter().map(origin)),
        said.credentials,
        literals(&said.methods),
        literals(&said.headers),
        literals(&said.expose),
        literal(&print_duration(said.max_age))
    )
}

fn read_cors(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Option<Cors>> {
    let before = context.errors;
    if let Some(text) = value.get_ref().as_str() {
        if text == "off" {
            return Some(None);
        }
        let empty = context.open(Id::Cors, String::new(), None, value.span());
        let origin = origin(context, value, text)?;
        return Some(Some(of_origins(context, &empty, vec![origin])));
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Cors, String::new(), Some(entries), value.span());
    let origins = match table.get("origins") {
        Some((setting, value)) => texts(context, setting, value, origin),
        None => {
            context.missing(&table, "origins");
            None
        }
    };
    let cors = of_origins(context, &table, origins.unwrap_or_default());
    if context.errors == before && cors.origins.is_empty() {
        let help = "name at least one, like \"https://app.example\"; or say cors = \"off\"";
        context.error("missing", table.span_of("origins"), "`origins` is empty", help);
    }
    if cors.credentials && cors.origins.contains(&CorsOrigin::Exact("null".into())) {
        let message = "`credentials` for the origin `null`: every sandboxed page and local file has it";
        let help = "name the origins that may, or leave `credentials`";
        context.error("conflict", table.span_of("credentials"), message, help);
    }
    if cors.credentials && cors.origins.contains(&CorsOrigin::Any) {
        let message = "`credentials` for every origin: any page could act for whoever is signed in here";
        let help = "name the origins that may, or leave `credentials`; browsers refuse this too";
        context.error("conflict", table.span_of("credentials"), message, help);
    }
    (context.errors == before).then_some(Some(cors))
}

fn of_origins(context: &mut Context<'_>, table: &Table<'_>, origins: Vec<CorsOrigin>) -> Cors {
    let methods = match table.get("methods") {
        Some((setting, value)) => texts(context, setting, value, method).unwrap_or_default(),
        None => default_texts(table, "methods"),
    };
    Cors {
        origins,
        credentials: context.flag(table, "credentials"),
        methods,
        headers: names(context, table, "headers"),
        expose: names(context, table, "expose"),
        max_age: context.duration(table, "max_age", None).value,
    }
}

fn method(context: &mut Context<'_>, entry: &Value<'_>, text: &str) -> Option<String> {
    let legal = Method::from_bytes(text.as_bytes()).is_ok() && !text.bytes().any(|b| b.is_ascii_lowercase());
    if !legal {
        let message = format!("`{}` is not a method", quoted(text));
        context.error(
            "invalid-value",
            entry.span(),
            message,
            "write methods in capitals, like [\"GET\", \"POST\"]",
        );
    }
    legal.then(|| text.to_owned())
}

fn names(context: &mut Context<'_>, table: &Table<'_>, name: &str) -> Vec<String> {
    let Some((setting, value)) = table.get(name) else { return Vec::new() };
    let read = |context: &mut Context<'_>, entry: &Value<'_>, text: &str| {
        let name = HeaderName::from_bytes(text.as_bytes()).ok();
        if name.is_none() {
            let message = format!("`{}` is not a header field name", quoted(text));
            context.error(
                "invalid-header",
                entry.span(),
                message,
                "write letters, digits and `-`, like \"x-total\"",
            );
        }
        name.map(|name| name.as_str().to_owned())
    };
    texts(context, setting, value, read).unwrap_or_default()
}

/// An origin, as browsers write it: scheme, host, and a port that is not the scheme's own.
fn origin(context: &mut Context<'_>, entry: &Value<'_>, text: &str) -> Option<CorsOrigin> {
    match text {
        "*" => return Some(CorsOrigin::Any),
        "null" => return Some(CorsOrigin::Exact("null".into())),
        _ => {}
    }
    let lower = text.to_lowercase();
    let (scheme, rest) = lower.split_at(lower.find("://").map_or(0, |at| at + 3));
    let (wild, host) = rest.strip_prefix("*.").map_or((false, rest), |host| (true, host));
    let authority = http::uri::Authority::try_from(host).ok();
    let good = matches!(scheme, "https://" | "http://")
        && !host.contains(['@', '*'])
        && authority.as_ref().is_some_and(|authority| !authority.host().is_empty())
        && (!wild || host.contains('.'));
    if !good {
        let message = format!("`{}` is not an origin", quoted(text));
        let help = "write scheme and host without a path, like \"https://app.example\", \"https://app.example:8443\", \"https://*.app.example\" or \"*\"";
        context.error("invalid-value", entry.span(), message, help);
        return None;
    }
    let own = if scheme == "https://" { ":443" } else { ":80" };
    let host = host.strip_suffix(own).unwrap_or(host);
    Some(match wild {
        true => CorsOrigin::Below { scheme: scheme.into(), rest: format!(".{host}").into() },
        false => CorsOrigin::Exact(format!("{scheme}{host}").into()),
    })
}
