//! `jwt = { … }`: signed tokens.

use std::sync::Arc;

use super::basic::realm;
use super::cert_user::pairs;
use crate::base::unit::print_duration;
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{JwksUrl, Jwt, JwtAlgorithm, JwtKeys};
use crate::config::parse::{Context, Table, Value, literal, literals, nearest, quoted};
use crate::config::section::server::texts;
use crate::config::section::service::located_path;
use crate::config::setting::{Id, Setting};

/// Where keys may come from, as it is written.
const KEYS: [&str; 3] = ["key_file", "jwks_file", "jwks_url"];
/// What is taken where nobody says it.
const DEFAULT: [JwtAlgorithm; 3] = [JwtAlgorithm::Rs256, JwtAlgorithm::Es256, JwtAlgorithm::EdDsa];

pub(super) fn read(context: &mut Context<'_>, auth: &Table<'_>) -> Option<Jwt> {
    let before = context.errors;
    let table = context.table(auth, "jwt", Id::Jwt);
    let algorithms = match table.get("algorithms") {
        Some((setting, value)) => algorithms(context, setting, value),
        None => DEFAULT.to_vec(),
    };
    let issuer = required(context, &table, "issuer");
    let audience = required(context, &table, "audience");
    if context.errors == before && issuer.is_empty() {
        let help = "name who issues the tokens, as their claim `iss` has it: anybody with a key could issue them otherwise";
        context.error("missing", table.span_of("issuer"), "`issuer` is empty", help);
    }
    let leeway = context.duration(&table, "leeway", None).value;
    let user = match table.get("user") {
        Some((setting, value)) => context.text(setting, value).unwrap_or_default().to_owned(),
        None => table.default_text("user").to_owned(),
    };
    let require = pairs(context, &table, "require");
    let cookie = table.get("cookie").and_then(|(setting, value)| cookie(context, setting, value));
    let realm = realm(context, &table);
    let keys = keys(context, &table);
    let jwt = Jwt { algorithms, issuer, audience, leeway, user, require, cookie, keys: keys?, realm };
    (context.errors == before).then_some(jwt)
}

fn required(context: &mut Context<'_>, table: &Table<'_>, name: &str) -> Vec<String> {
    match table.get(name) {
        None => {
            context.missing(table, name);
            Vec::new()
        }
        Some((setting, value)) => {
            let texts = texts(context, setting, value, |_, _, text| Some(text.to_owned()));
            texts.unwrap_or_default()
        }
    }
}

fn algorithms(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Vec<JwtAlgorithm> {
    let words: Vec<&str> = JwtAlgorithm::ALL.iter().map(|(word, _)| *word).collect();
    let found = texts(context, setting, value, |context, entry, text| {
        if let Some((_, algorithm)) = JwtAlgorithm::ALL.iter().find(|(word, _)| *word == text) {
            return Some(*algorithm);
        }
        let why = match text {
            "none" => "a token without a signature says nothing".to_owned(),
            "HS256" | "HS384" | "HS512" => {
                format!("`{text}` has a secret that whoever checks tokens could issue them with")
            }
            other => format!("`{}` is not an algorithm that is known here", quoted(other)),
        };
        let mut diagnostic = Diagnostic::error("invalid-value", &context.origin(entry.span()), why)
            .help(format!("legal are {}", literals(&words)));
        if let Some(near) = nearest(text, &words) {
            diagnostic = diagnostic.label(format!("did you mean \"{near}\"?"));
        }
        context.report(diagnostic);
        None
    });
    if value.get_ref().as_array().is_some_and(|array| array.is_empty()) {
        let help = format!("name at least one of {}", literals(&words));
        context.error("missing", value.span(), "`algorithms` is empty: no token could be good", help);
    }
    found.unwrap_or_default()
}

fn cookie(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<String> {
    let text = context.text(setting, value)?;
    // A token of RFC 9110 section 5.6.2, as RFC 6265 section 4.1.1 wants it.
    if text.is_empty() || !text.bytes().all(is_token) {
        let message = format!("`cookie`: `{}` is not the name of a cookie", quoted(text));
        context.error(
            "invalid-value",
            value.span(),
            message,
            "write letters, digits, `-` and `_`, like \"session\"",
        );
        return None;
    }
    Some(text.to_owned())
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn keys(context: &mut Context<'_>, table: &Table<'_>) -> Option<JwtKeys> {
    let said: Vec<&str> = KEYS.into_iter().filter(|name| table.has(name)).collect();
    let help = "say one of: jwks_url = \"https://id.example/keys\", jwks_file = \"keys.json\", key_file = \"public.pem\"";
    match said.as_slice() {
        [] => context.error("missing", table.span.clone(), "`jwt` does not say where the keys are", help),
        [_] => {}
        [first, second, ..] => {
            let message = format!("`{first}` and `{second}` exclude each other");
            context.error("conflict", table.span_of(second), message, help);
        }
    }
    let refresh = context.duration(table, "refresh", None).value;
    let url = said.first() == Some(&"jwks_url");
    for name in ["refresh", "ca_file"] {
        if table.has(name) && !url {
            let message = format!("`{name}` has no use without `jwks_url`: files are read when they change");
            context.error("conflict", table.span_of(name), message, "remove it");
        }
    }
    let (setting, value) = table.get(said.first()?)?;
    match *said.first()? {
        "key_file" => located_path(context, setting, value).map(JwtKeys::Pem),
        "jwks_file" => located_path(context, setting, value).map(JwtKeys::Set),
        _ => {
            let url = https_url(context, setting, value)?;
            let ca = table.get("ca_file").and_then(|(setting, value)| located_path(context, setting, value));
            Some(JwtKeys::Url(JwksUrl { url, ca_file: ca.map(|file| file.value), refresh }))
        }
    }
}

/// Keys decide who comes in: they are fetched from nobody who has not shown a certificate.
fn https_url(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Arc<str>> {
    let text = context.text(setting, value)?;
    let uri = http::Uri::try_from(text).ok();
    let good = uri.as_ref().is_some_and(|uri| {
        uri.scheme_str() == Some("https")
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            && !text.contains('#')
    });
    if !good {
        let message = format!("`{}`: `{}` is not an https:// address", setting.name, quoted(text));
        let help = "write an address like \"https://id.example/.well-known/jwks.json\"; for an authority of your own say `ca_file` too";
        context.error("invalid-value", value.span(), message, help);
        return None;
    }
    Some(text.into())
}

pub(super) fn print(said: &Jwt) -> String {
    let word = |algorithm: &JwtAlgorithm| {
        JwtAlgorithm::ALL.iter().find(|(_, known)| known == algorithm).map_or("", |(word, _)| *word)
    };
    let keys = match &said.keys {
        JwtKeys::Pem(file) => format!("key_file = {}", literal(&file.value.to_string_lossy())),
        JwtKeys::Set(file) => format!("jwks_file = {}", literal(&file.value.to_string_lossy())),
        JwtKeys::Url(from) => {
            let ca = from.ca_file.as_ref();
            let ca = ca
                .map(|file| format!(", ca_file = {}", literal(&file.to_string_lossy())))
                .unwrap_or_default();
            format!(
                "jwks_url = {}, refresh = {}{ca}",
                literal(&from.url),
                literal(&print_duration(from.refresh))
            )
        }
    };
    let require = said.require.iter().map(|(claim, text)| format!("{} = {}", literal(claim), literal(text)));
    let require: Vec<String> = require.collect();
    let require =
        if require.is_empty() { String::new() } else { format!(", require = {{ {} }}", require.join(", ")) };
    let cookie = said.cookie.as_ref().map(|name| format!(", cookie = {}", literal(name))).unwrap_or_default();
    format!(
        "{{ {keys}, algorithms = {}, issuer = {}, audience = {}, leeway = {}, user = {}{require}{cookie}, realm = {} }}",
        literals(said.algorithms.iter().map(word)),
        literals(&said.issuer),
        literals(&said.audience),
        literal(&print_duration(said.leeway)),
        literal(&said.user),
        literal(&said.realm)
    )
}
