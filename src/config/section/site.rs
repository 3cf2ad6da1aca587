//! A site: names, certificate, limits, routes.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use super::server::texts;
use super::service::{self, located_path};
use super::{acme, address, answer, auth, ban, bandwidth, demand, host, limit, patch, route, share, tls};
use crate::config::model::{Certificate, HostPattern, Located, Origin, Server, Site, UntilIssued};
use crate::config::parse::{Context, Table, Value, literal, literals, quoted};
use crate::config::setting::{ACME_NAMES_MAX, Id, Setting};

/// Reads one site; `None` when it has errors. The context is this site's own.
pub fn read(
    context: &mut Context<'_>,
    name: &Arc<str>,
    key: Range<usize>,
    value: &Value<'_>,
    server: &Server,
) -> Option<Site> {
    let entries = value.get_ref().as_table();
    if entries.is_none() {
        context.wrong_type(&format!("site.{name}"), "a table: [site.\"shop.example\"]", value);
        return None;
    }
    if !legal_name(name) {
        let message = format!("`{}` cannot be the name of a site", quoted(name));
        let help =
            "a name has 1 to 253 letters, digits, `.`, `-`, `_`, `*` or `:` and does not begin with a dot";
        context.error("invalid-host", key, message, help);
        return None;
    }
    let path = if context.recorded.is_some() { format!("site.{}", literal(name)) } else { String::new() };
    let table = context.open(Id::Site, path, entries, key.clone());
    // The name itself is underlined, not the whole header: that is what a person looks for.
    let origin = context.origin(key);
    let hosts = hosts(context, &table, name, &origin);
    let tenant = tenant(context, &table, name);
    let priority = share::priority(context, &table);
    let certificate = certificate(context, &table, &hosts, server);
    let on_demand = demand::read(context, &table, server);
    let tls = tls::of_site(context, &table, server);
    let max_connections = u32::try_from(context.count(&table, "max_connections")).unwrap_or(u32::MAX);
    let plain_http = context.flag(&table, "plain_http");
    let hsts = answer::hsts(context, &table);
    let ban = ban::of_site(context, &table);
    let bandwidth = bandwidth::read(context, &table);
    let limits = limit::read(context, &table);
    let addresses = address::addresses(context, &table, &server.networks);
    let countries = address::countries(context, &table, server);
    let patches = patch::of_site(context, &table);
    let encrypted = encrypted(context, &table, server);
    let shared = service::read(context, &table, &service::of_server(server, encrypted));
    let routes = route::read(context, &table, name, &shared, &origin, server);
    if let Some(tls) = &tls {
        auth::check_certificates(context, &routes, tls);
    }
    let (certificate, tls) = certificate.zip(tls).filter(|_| context.errors == 0)?;
    Some(Site {
        name: name.clone(),
        origin,
        hosts,
        on_demand,
        tenant,
        priority,
        certificate,
        tls,
        max_connections,
        plain_http,
        hsts,
        routes,
        ban,
        bandwidth,
        limits,
        addresses,
        countries,
        patches,
    })
}

/// Whether plaintext backends are refused: a site may be stricter than its server, never laxer.
fn encrypted(context: &mut Context<'_>, table: &Table<'_>, server: &Server) -> bool {
    const NAME: &str = "require_encrypted_backends";
    let of_server = server.require_encrypted_backends;
    let fallback = Located { value: of_server, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            context.wrong_type(setting.name, &setting.kind.expected(), value);
        }
        flag
    };
    let said = context.value(table, NAME, &fallback, read, bool::to_string).value;
    if of_server && !said {
        let message = format!("this site turns `{NAME}` off, which its server demands of every site");
        let help = "remove it here, and reach the backends by `https://`; or remove it in [server]";
        context.error("conflict", table.span_of(NAME), message, help);
    }
    of_server || said
}

/// Names go into file names, labels and logs: nothing there may be surprised by them.
fn legal_name(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'*' | b':');
    !name.is_empty() && name.len() <= 253 && !name.starts_with('.') && name.bytes().all(legal)
}

fn hosts(
    context: &mut Context<'_>,
    table: &Table<'_>,
    name: &Arc<str>,
    origin: &Origin,
) -> Vec<Located<HostPattern>> {
    let fallback = if table.has("hosts") {
        Vec::new()
    } else {
        match host::pattern(name) {
            Ok(pattern) => vec![Located { value: pattern, origin: origin.clone() }],
            Err((message, help)) => {
                let help = format!("{help}; or keep the name and say `hosts = [\"shop.example\"]`");
                context.error(
                    "invalid-host",
                    table.span.clone(),
                    format!("the site's name is its host: {message}"),
                    help,
                );
                Vec::new()
            }
        }
    };
    let may_be_empty = table.has("on_demand");
    let fallback = Located { value: fallback, origin: Origin::Default };
    let read_hosts = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        read_hosts(context, setting, value, may_be_empty)
    };
    let print =
        |list: &Vec<Located<HostPattern>>| literals(list.iter().map(|host| host::written(&host.value)));
    context.value(table, "hosts", &fallback, read_hosts, print).value
}

fn read_hosts(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
    may_be_empty: bool,
) -> Option<Vec<Located<HostPattern>>> {
    let mut seen = HashSet::new();
    let found = texts(context, setting, value, |context, entry, text| match host::pattern(text) {
        Ok(pattern) if seen.insert(pattern.clone()) => {
            Some(Located { value: pattern, origin: context.origin(entry.span()) })
        }
        Ok(pattern) => {
            let message = format!("the host `{}` is there twice", host::written(&pattern));
            context.error("duplicate", entry.span(), message, "keep one of them");
            None
        }
        Err((message, help)) => {
            context.error("invalid-host", entry.span(), format!("the host {message}"), help);
            None
        }
    })?;
    if !may_be_empty && value.get_ref().as_array().is_some_and(|array| array.is_empty()) {
        context.error(
            "missing",
            value.span(),
            "`hosts` is empty",
            "name at least one host, or remove `hosts`: the site's name then is its host",
        );
    }
    Some(found)
}

fn tenant(context: &mut Context<'_>, table: &Table<'_>, name: &Arc<str>) -> Arc<str> {
    let fallback = Located { value: name.clone(), origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        let text = context.text(setting, value)?;
        if text.is_empty() || text.chars().any(char::is_control) {
            let message = "`tenant` is empty or has control characters";
            context.error("invalid-value", value.span(), message, "write a name, like \"shop-gmbh\"");
            return None;
        }
        Some(Arc::from(text))
    };
    context.value(table, "tenant", &fallback, read, |tenant| literal(tenant)).value
}

fn certificate(
    context: &mut Context<'_>,
    table: &Table<'_>,
    hosts: &[Located<HostPattern>],
    server: &Server,
) -> Option<Certificate> {
    if table.has("certificate") && table.has("certificates") {
        let help = "keep `certificate` for files of your own, or `certificates = \"internal\"` for the built-in authority";
        context.error(
            "conflict",
            table.span_of("certificates"),
            "`certificate` and `certificates` exclude each other",
            help,
        );
    }
    let useless_wait = |context: &mut Context<'_>| {
        if table.has("until_issued") {
            let help = "remove it: it says what serves before the first automatic certificate is there";
            let span = table.span_of("until_issued");
            context.error("conflict", span, "`until_issued` has no use here", help);
        }
    };
    if let Some((setting, value)) = table.get("certificate") {
        useless_wait(context);
        let Some(entries) = value.get_ref().as_table() else {
            context.wrong_type(setting.name, &setting.kind.expected(), value);
            return None;
        };
        let inner =
            context.open(Id::Certificate, context.below(table, "certificate"), Some(entries), value.span());
        let cert = certificate_file(context, &inner, "cert");
        let key = certificate_file(context, &inner, "key");
        return Some(Certificate::Files { cert: cert?, key: key? });
    }
    let certificate = issued(context, table, hosts, server)?;
    if !matches!(certificate, Certificate::Acme { .. }) {
        useless_wait(context);
    }
    Some(certificate)
}

/// A certificate that is made for the site: by the internal CA, or by an ACME authority.
fn issued(
    context: &mut Context<'_>,
    table: &Table<'_>,
    hosts: &[Located<HostPattern>],
    server: &Server,
) -> Option<Certificate> {
    // Without hosts there is nothing to be covered: each name on demand has a certificate of its own.
    if hosts.is_empty() && table.has("on_demand") && !table.has("certificates") {
        return Some(Certificate::Acme { until_issued: until_issued(context, table) });
    }
    let public = hosts.iter().find(|host| host::public(&host.value));
    // Where nobody can shake hands, no certificate is wanted.
    let default = if public.is_some() && !server.https.is_empty() { "acme" } else { "internal" };
    let fallback = Located { value: default, origin: Origin::Default };
    let before = context.errors;
    let said = context.value(table, "certificates", &fallback, Context::read_word, |word| literal(word));
    if context.errors > before {
        return None;
    }
    if said.value == "internal" {
        return Some(Certificate::Internal);
    }
    let until_issued = until_issued(context, table);
    let Some(acme) = &server.acme else {
        let span = host_span(table, public);
        let (span, message) = match public {
            Some(public) if said.origin == Origin::Default => {
                (span, format!("no certificate is said for `{}`", host::written(&public.value)))
            }
            _ => (
                table.span_of("certificates"),
                "`certificates = \"acme\"` needs the section `[acme]`".to_owned(),
            ),
        };
        context.error("no-certificate", span, message, ways_out());
        return None;
    };
    let public_only = said.origin == Origin::Default || acme.directories.iter().any(acme::is_public);
    let mut good = true;
    for host in hosts {
        if let Some((message, help)) = cannot_sign(&host.value, public_only, acme.dns.is_some()) {
            context.error("cannot-be-signed", host_span(table, Some(host)), message, help);
            good = false;
        }
    }
    if hosts.len() > ACME_NAMES_MAX {
        let message = format!(
            "an automatic certificate has at most {ACME_NAMES_MAX} names, this site has {}",
            hosts.len()
        );
        context.error("too-many", table.span_of("hosts"), message, "spread the names over several sites");
        good = false;
    }
    good.then_some(Certificate::Acme { until_issued })
}

fn until_issued(context: &mut Context<'_>, table: &Table<'_>) -> UntilIssued {
    match context.word(table, "until_issued", None).value {
        "internal" => UntilIssued::Internal,
        "refuse" => UntilIssued::Refuse,
        _ => UntilIssued::Wait,
    }
}

/// Why no authority will sign this name, and what to do.
pub(super) fn cannot_sign(
    host: &HostPattern,
    public_only: bool,
    writes_txt: bool,
) -> Option<(String, String)> {
    let name = host::written(host);
    if matches!(host, HostPattern::Wildcard(_)) && !writes_txt {
        let help = "write [acme.dns] with provider = \"rfc2136\", \"cloudflare\", \"route53\" or \"exec\" into tidegate.toml; or name each host; or give this site `certificate = { cert = \"…\", key = \"…\" }` or `certificates = \"internal\"`";
        let why = "an automatic certificate for a wildcard needs the challenge `dns-01`, and so the section `[acme.dns]`";
        return Some((format!("`{name}`: {why}"), help.into()));
    }
    if name.parse::<std::net::IpAddr>().is_ok() {
        let help = "give it a site of its own with `certificates = \"internal\"`";
        return Some((
            format!("`{name}`: automatic certificates for IP addresses are not in this version"),
            help.into(),
        ));
    }
    if public_only && !host::public(host) {
        let help = "move it into a site of its own (its certificate then comes from the built-in authority), or say `certificates = \"internal\"` for all of this one";
        return Some((format!("no public authority signs `{name}`"), help.into()));
    }
    // RFC 5280 section 4.2.1.6 wants preferred name syntax, and the CA/Browser Forum forbids the underscore.
    if name.contains('_') {
        let help = "give it a site of its own with `certificates = \"internal\"`";
        return Some((format!("no authority signs `{name}`: it has an underscore"), help.into()));
    }
    None
}

fn ways_out() -> &'static str {
    "write [acme] with email = \"…\" into tidegate.toml to have certificates got and renewed; or give this site `certificate = { cert = \"shop.pem\", key = \"shop.key\" }`, or `certificates = \"internal\"` (browsers warn unless they trust the built-in authority)"
}

/// Where a host stands; the site's name where no host is said.
fn host_span(table: &Table<'_>, host: Option<&Located<HostPattern>>) -> Range<usize> {
    match host {
        Some(host) if table.has("hosts") => span_of(&host.origin),
        _ => table.span.clone(),
    }
}

fn span_of(origin: &Origin) -> Range<usize> {
    match origin {
        Origin::File(place) => place.range(),
        Origin::Default => 0..0,
    }
}

fn certificate_file(
    context: &mut Context<'_>,
    table: &Table<'_>,
    name: &str,
) -> Option<Located<std::path::PathBuf>> {
    let Some((setting, value)) = table.get(name) else {
        context.missing(table, name);
        return None;
    };
    let file = located_path(context, setting, value)?;
    context.record(table, name, &file.origin, || literal(&file.value.to_string_lossy()));
    Some(file)
}
