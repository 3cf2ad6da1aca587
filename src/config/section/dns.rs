//! `[acme.dns]`: who writes TXT records, and each provider's own keys.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::host;
use super::server::texts;
use crate::base::address::EndpointAddress;
use crate::base::secret::Secret;
use crate::config::model::{
    Cloudflare, Dns, DnsProvider, Exec, HostPattern, Located, Origin, Rfc2136, Route53, SecretSource,
    TsigAlgorithm,
};
use crate::config::parse::{Context, Table, Value, literal, literals, quoted};
use crate::config::setting::{Id, Setting};

/// The port of name servers.
const DNS_PORT: u16 = 53;
/// Where the APIs are.
const CLOUDFLARE_API: &str = "https://api.cloudflare.com/client/v4";
const ROUTE53_API: &str = "https://route53.amazonaws.com";

/// Keys that belong to providers, each to those named.
const OWNED: &[(&str, &[&str])] = &[
    ("server", &["rfc2136"]),
    ("zone", &["rfc2136"]),
    ("key_name", &["rfc2136"]),
    ("key_algorithm", &["rfc2136"]),
    ("key_secret_file", &["rfc2136"]),
    ("key_secret", &["rfc2136"]),
    ("token_file", &["cloudflare"]),
    ("api_url", &["cloudflare", "route53"]),
    ("access_key_id", &["route53"]),
    ("secret_key_file", &["route53"]),
    ("zone_id", &["route53"]),
    ("region", &["route53"]),
    ("command", &["exec"]),
    ("timeout", &["exec"]),
];

/// Reads the section; `None` where it is absent. One with mistakes gives a stand-in, so that sites with wildcards do not
/// complain of it as well.
pub fn read(context: &mut Context<'_>, acme: &Table<'_>) -> Option<Dns> {
    if !acme.has("dns") {
        return None;
    }
    let table = context.table(acme, "dns", Id::Dns);
    let provider = provider(context, &table);
    let propagation = context.duration(&table, "propagation", None).value;
    let resolvers = servers(context, &table, "resolvers");
    let propagation_servers = servers(context, &table, "propagation_servers");
    let provider = match provider {
        Some("rfc2136") => rfc2136(context, &table).map(DnsProvider::Rfc2136),
        Some("cloudflare") => cloudflare(context, &table).map(DnsProvider::Cloudflare),
        Some("route53") => route53(context, &table).map(DnsProvider::Route53),
        Some("exec") => exec(context, &table).map(DnsProvider::Exec),
        _ => None,
    };
    let stand_in = || DnsProvider::Exec(Exec { command: PathBuf::new(), timeout: Duration::ZERO });
    let provider = provider.unwrap_or_else(stand_in);
    Some(Dns { provider, propagation, resolvers, propagation_servers })
}

fn provider(context: &mut Context<'_>, table: &Table<'_>) -> Option<&'static str> {
    let Some((setting, value)) = table.get("provider") else {
        context.missing(table, "provider");
        return None;
    };
    let word = context.read_word(setting, value)?;
    let origin = context.origin(value.span());
    context.record(table, "provider", &origin, || literal(word));
    for (key, owners) in OWNED.iter().filter(|(_, owners)| !owners.contains(&word)) {
        if table.has(key) {
            let message = format!("`{key}` has no use with the provider \"{word}\"");
            let own = OWNED.iter().filter(|(_, owners)| owners.contains(&word));
            let own: Vec<_> = own.map(|(key, _)| format!("`{key}`")).collect();
            let help =
                format!("it belongs to \"{}\"; \"{word}\" has {}", owners.join("\" and \""), own.join(", "));
            context.error("conflict", table.span_of(key), message, help);
        }
    }
    Some(word)
}

fn rfc2136(context: &mut Context<'_>, table: &Table<'_>) -> Option<Rfc2136> {
    let server = update_server(context, table);
    let zone = domain(context, table, "zone");
    let key_name = domain(context, table, "key_name");
    if !table.has("key_name") {
        context.missing(table, "key_name");
    }
    let algorithm = match context.word(table, "key_algorithm", None).value {
        "hmac-sha384" => TsigAlgorithm::HmacSha384,
        "hmac-sha512" => TsigAlgorithm::HmacSha512,
        _ => TsigAlgorithm::HmacSha256,
    };
    let secret = key_secret(context, table);
    Some(Rfc2136 { server: server?, zone, key_name: key_name?, algorithm, secret: secret? })
}

fn update_server(context: &mut Context<'_>, table: &Table<'_>) -> Option<EndpointAddress> {
    let Some((setting, value)) = table.get("server") else {
        context.missing(table, "server");
        return None;
    };
    let text = context.text(setting, value)?;
    let read = match text.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(address) => Ok(EndpointAddress::Socket(SocketAddr::new(address, DNS_PORT))),
        Err(_) if !text.contains(':') => host::endpoint(&format!("{text}:{DNS_PORT}")),
        Err(_) => host::endpoint(text),
    };
    let Ok(server) = read else {
        let message = format!("`server`: `{}` is not a host", quoted(text));
        let help = "write a name or an IP address, with a port where it is not 53, like \"ns1.shop.de\" or \"192.0.2.53:5353\"";
        context.error("invalid-address", value.span(), message, help);
        return None;
    };
    let origin = context.origin(value.span());
    context.record(table, "server", &origin, || literal(&server.to_string()));
    Some(server)
}

/// A domain name: of a zone, or of a key.
fn domain(context: &mut Context<'_>, table: &Table<'_>, name: &str) -> Option<Arc<str>> {
    let (setting, value) = table.get(name)?;
    let text = context.text(setting, value)?;
    let Ok(HostPattern::Exact(found)) = host::pattern(text) else {
        let message = format!("`{name}`: `{}` is not a domain name", quoted(text));
        context.error("invalid-value", value.span(), message, "write a name like \"shop.de\"");
        return None;
    };
    let origin = context.origin(value.span());
    context.record(table, name, &origin, || literal(&found));
    Some(found)
}

fn key_secret(context: &mut Context<'_>, table: &Table<'_>) -> Option<SecretSource> {
    match (table.get("key_secret_file"), table.get("key_secret")) {
        (None, None) => {
            context.missing(table, "key_secret_file");
            None
        }
        (Some(_), Some((_, value))) => {
            let message = "`key_secret_file` and `key_secret` exclude each other";
            context.error("conflict", value.span(), message, "keep the file");
            None
        }
        (Some(_), None) => path(context, table, "key_secret_file").map(SecretSource::File),
        (None, Some((setting, value))) => {
            let text = context.text(setting, value)?;
            if text.is_empty() || BASE64_STANDARD.decode(text).is_err() {
                let help = "write it as `tsig-keygen` prints it, like \"c2VjcmV0LXNlY3JldA==\"";
                context.error("invalid-value", value.span(), "`key_secret` is not base64", help);
                return None;
            }
            let origin = context.origin(value.span());
            context.record(table, "key_secret", &origin, || literal("…"));
            Some(SecretSource::Inline(Secret::new(text)))
        }
    }
}

fn cloudflare(context: &mut Context<'_>, table: &Table<'_>) -> Option<Cloudflare> {
    let token = secret_file(context, table, "token_file", "CLOUDFLARE_API_TOKEN");
    let api_url = api_url(context, table, CLOUDFLARE_API);
    Some(Cloudflare { token: token?, api_url: api_url? })
}

fn route53(context: &mut Context<'_>, table: &Table<'_>) -> Option<Route53> {
    let access_key_id =
        word_of(context, table, "access_key_id", "write it as AWS shows it: letters and digits");
    let secret = secret_file(context, table, "secret_key_file", "AWS_SECRET_ACCESS_KEY");
    let zone_id = word_of(context, table, "zone_id", "write it as AWS shows it, like \"Z0123456789ABC\"");
    let region = region(context, table);
    let api_url = api_url(context, table, ROUTE53_API);
    Some(Route53 {
        access_key_id: access_key_id?,
        secret: secret?,
        zone_id: zone_id?,
        region,
        api_url: api_url?,
    })
}

fn exec(context: &mut Context<'_>, table: &Table<'_>) -> Option<Exec> {
    let timeout = context.duration(table, "timeout", None).value;
    if !table.has("command") {
        context.missing(table, "command");
    }
    Some(Exec { command: path(context, table, "command")?, timeout })
}

fn path(context: &mut Context<'_>, table: &Table<'_>, name: &str) -> Option<PathBuf> {
    let (setting, value) = table.get(name)?;
    let path = context.read_path(setting, value)?;
    let origin = context.origin(value.span());
    context.record(table, name, &origin, || literal(&path.to_string_lossy()));
    Some(path)
}

/// A secret from a file, else from an environment variable.
fn secret_file(
    context: &mut Context<'_>,
    table: &Table<'_>,
    name: &str,
    variable: &'static str,
) -> Option<SecretSource> {
    if table.has(name) {
        return path(context, table, name).map(SecretSource::File);
    }
    context.record(table, name, &Origin::Default, || format!("environment variable {variable}"));
    Some(SecretSource::Environment(variable))
}

/// Letters and digits; the inner `None`: it is not said.
fn word_of(context: &mut Context<'_>, table: &Table<'_>, name: &str, help: &str) -> Option<Option<Arc<str>>> {
    let Some((setting, value)) = table.get(name) else { return Some(None) };
    let text = context.text(setting, value)?;
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        let message = format!("`{name}` cannot be `{}`", quoted(text));
        context.error("invalid-value", value.span(), message, help);
        return None;
    }
    let origin = context.origin(value.span());
    context.record(table, name, &origin, || literal(text));
    Some(Some(Arc::from(text)))
}

fn region(context: &mut Context<'_>, table: &Table<'_>) -> Arc<str> {
    let fallback = Located { value: Arc::from(table.default_text("region")), origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        let text = context.text(setting, value)?;
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            let message = format!("`region` cannot be `{}`", quoted(text));
            context.error("invalid-value", value.span(), message, "write one like \"us-east-1\"");
            return None;
        }
        Some(Arc::from(text))
    };
    context.value(table, "region", &fallback, read, |region: &Arc<str>| literal(region)).value
}

fn api_url(context: &mut Context<'_>, table: &Table<'_>, own: &str) -> Option<Arc<str>> {
    let Some((setting, value)) = table.get("api_url") else {
        context.record(table, "api_url", &Origin::Default, || literal(own));
        return Some(Arc::from(own));
    };
    let text = context.text(setting, value)?;
    let url = http::Uri::try_from(text).ok();
    let https = url.is_some_and(|url| {
        url.scheme_str() == Some("https")
            && url.host().is_some_and(|h| !h.is_empty())
            && url.query().is_none()
    });
    if !https || text.contains(['@', '#']) {
        let message = format!("`api_url`: `{}` is not an https:// address", quoted(text));
        context.error(
            "invalid-value",
            value.span(),
            message,
            format!("write one like \"{own}\", or remove it"),
        );
        return None;
    }
    let origin = context.origin(value.span());
    context.record(table, "api_url", &origin, || literal(text));
    Some(Arc::from(text.trim_end_matches('/')))
}

/// Name servers by their addresses.
pub(super) fn servers(context: &mut Context<'_>, table: &Table<'_>, name: &'static str) -> Vec<SocketAddr> {
    let fallback = Located { value: Vec::new(), origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        texts(context, setting, value, |context, entry, text| {
            let bare = text.trim_matches(['[', ']']).parse::<IpAddr>();
            let address = bare.map(|address| SocketAddr::new(address, DNS_PORT)).or_else(|_| text.parse());
            match address {
                Ok(address) if address.port() != 0 => Some(address),
                _ => {
                    let message = format!("`{name}`: `{}` is not the address of a name server", quoted(text));
                    let help = "write an IP address, with a port where it is not 53, like \"192.0.2.53\" or \"127.0.0.1:5353\"";
                    context.error("invalid-address", entry.span(), message, help);
                    None
                }
            }
        })
    };
    let print = |list: &Vec<SocketAddr>| literals(list.iter().map(SocketAddr::to_string));
    context.value(table, name, &fallback, read, print).value
}
