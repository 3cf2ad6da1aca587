//! `forward = { … }`: another service says who a client is.

use std::time::Duration;

use http::HeaderName;

use super::own_field;
use crate::base::address::{EndpointAddress, is_inner};
use crate::base::unit::print_duration;
use crate::config::model::{CacheBy, ForwardAuth, ForwardUrl};
use crate::config::parse::{Context, Table, Value, literal, literals, quoted};
use crate::config::section::host::{self, Wrong};
use crate::config::section::server::texts;
use crate::config::section::service::located_path;
use crate::config::setting::Id;

pub(super) fn read(context: &mut Context<'_>, auth: &Table<'_>) -> Option<ForwardAuth> {
    let before = context.errors;
    let table = context.table(auth, "forward", Id::Forward);
    let Some((setting, value)) = table.get("url") else {
        context.missing(&table, "url");
        return None;
    };
    let origin = context.origin(value.span());
    let url = context.text(setting, value).map(forward_url);
    let url = match url? {
        Ok(url) => Some(url),
        Err((message, help)) => {
            context.error("invalid-value", value.span(), message, help);
            None
        }
    };
    let ca_file = table.get("ca_file").and_then(|(setting, value)| located_path(context, setting, value));
    if let (Some(file), Some(false)) = (&ca_file, url.as_ref().map(|url| url.tls)) {
        let message = format!("`ca_file` {} has no use: `url` is not https://", file.value.display());
        context.error(
            "conflict",
            table.span_of("ca_file"),
            message,
            "write https:// in `url`, or remove `ca_file`",
        );
    }
    let user = table.get("user").and_then(|(setting, value)| {
        let text = context.text(setting, value)?;
        own_field(context, "user", value, text)
    });
    let copy = table.get("copy").and_then(|(setting, value)| {
        texts(context, setting, value, |context, entry, text| own_field(context, "copy", entry, text))
    });
    let timeout = context.duration(&table, "timeout", None).value;
    let in_flight = u32::try_from(context.count(&table, "in_flight")).unwrap_or(u32::MAX);
    let copy = copy.unwrap_or_default();
    let cache = context.duration(&table, "cache", None).value;
    let cache_by = what_it_depends_on(context, &table, cache);
    let cookies =
        table.get("set_cookies").and_then(|(setting, value)| texts(context, setting, value, cookie));
    let set_cookies = cookies.unwrap_or_default();
    let forward = ForwardAuth {
        url: url?,
        origin,
        ca_file,
        user,
        copy,
        timeout,
        in_flight,
        cache,
        cache_by,
        set_cookies,
    };
    (context.errors == before).then_some(forward)
}

/// `cache_by`, where answers are used again.
fn what_it_depends_on(context: &mut Context<'_>, table: &Table<'_>, cache: Duration) -> Vec<CacheBy> {
    let Some((setting, value)) = table.get("cache_by") else { return CacheBy::usual() };
    let before = context.errors;
    let said = texts(context, setting, value, cache_by).unwrap_or_default();
    let wrong = if cache.is_zero() {
        Some((
            "`cache_by` has no use: answers are not used again",
            "say how long: cache = \"10s\"; or remove it",
        ))
    } else if said.is_empty() && context.errors == before {
        Some((
            "`cache_by` is empty: everybody would be who came first",
            "name what tells clients apart, like [\"cookie\"]",
        ))
    } else {
        None
    };
    if let Some((message, help)) = wrong {
        context.error("conflict", table.span_of("cache_by"), message, help);
    }
    said
}

fn cache_by(context: &mut Context<'_>, entry: &Value<'_>, text: &str) -> Option<CacheBy> {
    let words = [CacheBy::ClientIp, CacheBy::Method, CacheBy::Path];
    if let Some(word) = words.into_iter().find(|word| word.as_str() == text) {
        return Some(word);
    }
    match HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) => Some(CacheBy::Field(name.as_str().to_owned())),
        Err(_) => {
            let message = format!("`cache_by`: `{}` is no name of a field", quoted(text));
            let help = "name fields of the request, like \"cookie\", or \"client-ip\", \"method\", \"path\"";
            context.error("invalid-value", entry.span(), message, help);
            None
        }
    }
}

fn cookie(context: &mut Context<'_>, entry: &Value<'_>, text: &str) -> Option<String> {
    let name = text.strip_suffix('*').unwrap_or(text);
    // RFC 6265 section 4.1.1: a name is a token, like that of a field; upper and lower case are two names.
    if HeaderName::from_bytes(name.as_bytes()).is_ok() && !name.contains('*') {
        return Some(text.to_owned());
    }
    let message = format!("`set_cookies`: `{}` is no name of a cookie", quoted(text));
    context.error("invalid-value", entry.span(), message, "write its name, or the beginning of it and `*`");
    None
}

/// Reads the address of who is asked.
///
/// # Errors
/// What is wrong, and what to do.
pub fn forward_url(text: &str) -> Result<ForwardUrl, Wrong> {
    let help = "write an address like \"http://127.0.0.1:9091/api/verify\" or \"https://id.example/verify\"";
    let wrong = |what: &str| Err((format!("`url`: `{}` {what}", quoted(text)), help.to_owned()));
    let Ok(uri) = http::Uri::try_from(text) else { return wrong("is not an address") };
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return wrong("begins with neither http:// nor https://"),
    };
    let Some(authority) = uri.authority() else { return wrong("names nobody") };
    if authority.as_str().contains('@') || text.contains('#') {
        return wrong("has a user name or a fragment, which is not sent");
    }
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let address = host::endpoint(&format!("{}:{port}", authority.host()))?;
    // The question carries what clients show of themselves.
    if let EndpointAddress::Socket(socket) = &address
        && !tls
        && !is_inner(socket.ip())
    {
        return wrong("is reached over the public network, unencrypted");
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    Ok(ForwardUrl {
        text: text.into(),
        tls,
        address,
        authority: authority.as_str().into(),
        target: target.into(),
    })
}

pub(super) fn print(said: &ForwardAuth) -> String {
    let ca = said.ca_file.as_ref();
    let ca =
        ca.map(|file| format!(", ca_file = {}", literal(&file.value.to_string_lossy()))).unwrap_or_default();
    let user = said.user.as_ref().map(|name| format!(", user = {}", literal(name))).unwrap_or_default();
    let mut more = String::new();
    if !said.cache.is_zero() {
        let by = literals(said.cache_by.iter().map(CacheBy::as_str));
        more += &format!(", cache = {}, cache_by = {by}", literal(&print_duration(said.cache)));
    }
    if !said.set_cookies.is_empty() {
        more += &format!(", set_cookies = {}", literals(&said.set_cookies));
    }
    format!(
        "{{ url = {}{ca}{user}, copy = {}, timeout = {}, in_flight = {}{more} }}",
        literal(&said.url.text),
        literals(&said.copy),
        literal(&print_duration(said.timeout)),
        said.in_flight
    )
}
