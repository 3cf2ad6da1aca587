//! Where requests go: backends, balancing, health checks, TLS to backends, redirects and fixed answers.
//!
//! A site and a route say these with the same keys. [`Shared`] is what one of them says, with what it inherits filled
//! in: a route from its site, a site from the server.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Uri};

use super::{header, host, protocol, tls};
use crate::base::unit::print_duration;
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{
    Action, Backend, Balance, HeaderEdits, Health, Located, Origin, Server, Service, Upstream,
};
use crate::config::parse::{Context, Table, Value, literal, literals, quoted};
use crate::config::setting::{self, Id, Setting};

/// What a site or a route says about where requests go.
#[derive(Debug, Clone)]
pub struct Shared {
    /// `backends`, `redirect` or `respond`.
    pub target: Option<Located<Target>>,
    /// Whether plaintext backends are refused.
    encrypted: bool,
    toward: Toward,
    /// `max_body`
    pub max_body: Located<Option<u64>>,
    /// `response_headers`
    pub response_headers: Located<HeaderEdits>,
}

/// What has a meaning only where requests go to backends.
#[derive(Debug, Clone)]
struct Toward {
    balance: Located<&'static str>,
    health: Located<Option<Health>>,
    connect_timeout: Located<Duration>,
    timeout: Located<Duration>,
    upstream: Located<Upstream>,
    upgrade: Located<Vec<String>>,
    request_headers: Located<HeaderEdits>,
}

/// Where requests go.
#[derive(Debug, Clone)]
pub enum Target {
    /// To backends; shared, because many routes may inherit them.
    Backends(Arc<[Located<Backend>]>),
    /// Elsewhere.
    Redirect { to: String, status: u16 },
    /// Nowhere: a fixed answer.
    Respond { status: u16, body: String, content_type: String },
}

/// What a site inherits. `encrypted`: its plaintext backends are refused.
pub fn of_server(server: &Server, encrypted: bool) -> Shared {
    fn default<T>(value: T) -> Located<T> {
        Located { value, origin: Origin::Default }
    }
    let toward = Toward {
        balance: default("p2c"),
        health: default(None),
        connect_timeout: default(server.timeouts.connect),
        timeout: default(server.timeouts.first_byte),
        upstream: default(Upstream::default()),
        upgrade: default(vec!["websocket".into()]),
        request_headers: default(HeaderEdits::default()),
    };
    let (max_body, response_headers) = (default(None), default(HeaderEdits::default()));
    Shared { target: None, encrypted, toward, max_body, response_headers }
}

/// Reads what a site or route says.
pub fn read(context: &mut Context<'_>, table: &Table<'_>, inherited: &Shared) -> Shared {
    let target = target(context, table).or_else(|| inherited.target.clone());
    let proxied = target.as_ref().is_none_or(|target| matches!(target.value, Target::Backends(_)));
    // The site's own values are defaults of its routes, and in force whatever the site itself does.
    let toward = if proxied || table.section.id == Id::Site {
        toward(context, table, &inherited.toward)
    } else {
        context.silent(|context| toward(context, table, &inherited.toward))
    };
    let shared = Shared {
        target,
        encrypted: inherited.encrypted,
        toward,
        max_body: context.size_or(table, "max_body", Some(&inherited.max_body)),
        response_headers: header::edits(
            context,
            table,
            "response_headers",
            Some(&inherited.response_headers),
        ),
    };
    warn_of_unused_upstream(context, table, &shared);
    if let Some(Target::Backends(backends)) = shared.target.as_ref().map(|target| &target.value)
        && shared.encrypted
        && table.has("backends")
    {
        tls::refuse_plaintext(context, backends);
    }
    shared
}

fn toward(context: &mut Context<'_>, table: &Table<'_>, inherited: &Toward) -> Toward {
    Toward {
        balance: context.word(table, "balance", Some(&inherited.balance)),
        health: health(context, table, &inherited.health),
        connect_timeout: context.duration(table, "connect_timeout", Some(&inherited.connect_timeout)),
        timeout: context.duration(table, "timeout", Some(&inherited.timeout)),
        upstream: upstream(context, table, &inherited.upstream),
        upgrade: protocol::upgrade(context, table, &inherited.upgrade),
        request_headers: header::edits(context, table, "request_headers", Some(&inherited.request_headers)),
    }
}

impl Shared {
    /// Edits of the request's fields; none where nothing is sent to a backend.
    pub fn request_headers(&self) -> HeaderEdits {
        match self.target.as_ref().map(|target| &target.value) {
            Some(Target::Backends(_)) => self.toward.request_headers.value.clone(),
            _ => HeaderEdits::default(),
        }
    }

    /// The action for a route; `None` where nothing says where to go.
    pub fn action(&self, service: impl FnOnce() -> Arc<str>) -> Option<Action> {
        Some(match &self.target.as_ref()?.value {
            Target::Redirect { to, status } => Action::Redirect { to: to.clone(), status: *status },
            Target::Respond { status, body, content_type } => {
                Action::Respond { status: *status, body: body.clone(), content_type: content_type.clone() }
            }
            Target::Backends(backends) => Action::Proxy(Box::new(Service {
                name: service(),
                backends: backends.to_vec(),
                balance: if self.toward.balance.value == "round_robin" {
                    Balance::RoundRobin
                } else {
                    Balance::P2c
                },
                health: self.toward.health.value.clone(),
                connect_timeout: self.toward.connect_timeout.value,
                timeout: self.toward.timeout.value,
                upstream: self.toward.upstream.value.clone(),
                upgrade: self.toward.upgrade.value.clone(),
            })),
        })
    }
}

/// Reads `backends`, `redirect` or `respond`: at most one of them.
fn target(context: &mut Context<'_>, table: &Table<'_>) -> Option<Located<Target>> {
    let said: Vec<&str> =
        ["backends", "redirect", "respond"].into_iter().filter(|name| table.has(name)).collect();
    for pair in said.windows(2) {
        if let [first, second] = pair {
            let message = format!("`{first}` and `{second}` exclude each other");
            context.error(
                "conflict",
                table.span_of(second),
                message,
                "a request goes to one place: keep one of them",
            );
        }
    }
    let mut found = None;
    for name in said {
        let (setting, value) = table.get(name)?;
        let target = match name {
            "backends" => backends(context, setting, value),
            "redirect" => redirect(context, setting, value),
            _ => respond(context, setting, value),
        };
        let Some(target) = target else { continue };
        let origin = context.origin(value.span());
        context.record(table, name, &origin, || print_target(&target));
        found = found.or(Some(Located { value: target, origin }));
    }
    found
}

fn print_target(target: &Target) -> String {
    match target {
        Target::Backends(backends) => literals(backends.iter().map(|backend| {
            let Backend { address, tls, weight } = &backend.value;
            let scheme = if *tls { "https://" } else { "" };
            if *weight == 1 {
                format!("{scheme}{address}")
            } else {
                format!("{scheme}{address} weight {weight}")
            }
        })),
        Target::Redirect { to, status } => format!("{{ to = {}, status = {status} }}", literal(to)),
        Target::Respond { status, body, content_type } => {
            format!(
                "{{ status = {status}, body = {}, content_type = {} }}",
                literal(&quoted(body)),
                literal(content_type)
            )
        }
    }
}

fn backends(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Target> {
    let entries = context.array(setting, value)?;
    if entries.is_empty() {
        context.error(
            "missing",
            value.span(),
            "`backends` is empty",
            "name at least one backend, like [\"10.0.0.1:8080\"]",
        );
        return None;
    }
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for entry in entries {
        let Some((backend, at)) = backend(context, entry) else { continue };
        let origin = context.origin(at.clone());
        if !seen.insert((backend.address.clone(), backend.tls)) {
            let message = format!("the backend {} is there twice", backend.address);
            context.error("duplicate", at, message, "keep one; give it a `weight` to send it more requests");
            continue;
        }
        found.push(Located { value: backend, origin });
    }
    (!found.is_empty()).then(|| Target::Backends(found.into()))
}

/// One backend and where its address stands.
fn backend(context: &mut Context<'_>, entry: &Value<'_>) -> Option<(Backend, std::ops::Range<usize>)> {
    if let Some(text) = entry.get_ref().as_str() {
        return Some((address(context, entry, text)?, entry.span()));
    }
    let Some(entries) = entry.get_ref().as_table() else {
        context.wrong_type(
            "an entry of `backends`",
            &format!(
                "an address like \"10.0.0.1:8080\", or a table: {}",
                setting::section(Id::Backend).title
            ),
            entry,
        );
        return None;
    };
    let table = context.open(Id::Backend, String::new(), Some(entries), entry.span());
    let weight = match table.get("weight") {
        Some((setting, value)) => context.read_count(setting, value),
        None => Some(1),
    };
    let Some((setting, value)) = table.get("address") else {
        context.missing(&table, "address");
        return None;
    };
    let text = context.text(setting, value)?;
    let mut backend = address(context, value, text)?;
    backend.weight = u32::try_from(weight?).unwrap_or(1);
    Some((backend, value.span()))
}

fn address(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<Backend> {
    if text.starts_with("unix:") {
        let help = "write host and port, like \"127.0.0.1:8080\"";
        context.error(
            "not-in-this-version",
            value.span(),
            "backends on Unix sockets are not in this version",
            help,
        );
        return None;
    }
    let (tls, rest) = match text.split_once("://") {
        None => (false, text),
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        Some((scheme, _)) => {
            let message = format!("the backend `{}` has the scheme `{}`", quoted(text), quoted(scheme));
            context.error(
                "invalid-address",
                value.span(),
                message,
                "legal are `http://`, `https://` or none",
            );
            return None;
        }
    };
    // A single slash after the port is how many people write an origin.
    match host::endpoint(rest.strip_suffix('/').filter(|_| text.contains("://")).unwrap_or(rest)) {
        Ok(address) => Some(Backend { address, tls, weight: 1 }),
        Err((message, help)) => {
            context.error("invalid-address", value.span(), format!("the backend {message}"), help);
            None
        }
    }
}

fn health(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Option<Health>>,
) -> Located<Option<Health>> {
    let print = |health: &Option<Health>| match health {
        None => literal("off"),
        Some(health) => format!(
            "{{ path = {}, interval = \"{}\", timeout = \"{}\", rise = {}, fall = {} }}",
            literal(&health.path),
            print_duration(health.interval),
            print_duration(health.timeout),
            health.rise,
            health.fall
        ),
    };
    context.value(
        table,
        "health",
        inherited,
        |context, setting, value| context.silent(|context| read_health(context, setting, value)),
        print,
    )
}

fn read_health(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Option<Health>> {
    let short = value.get_ref().as_str();
    if short == Some("off") {
        return Some(None);
    }
    let entries = value.get_ref().as_table();
    if short.is_none() && entries.is_none() {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    }
    let table = context.open(Id::Health, String::new(), entries, value.span());
    let path = match (short, table.get("path")) {
        (Some(text), _) => health_path(context, value, text),
        (None, Some((setting, value))) => {
            let text = context.text(setting, value)?;
            health_path(context, value, text)
        }
        (None, None) => {
            context.missing(&table, "path");
            None
        }
    };
    let interval = context.duration(&table, "interval", None).value;
    let timeout = context.duration(&table, "timeout", None).value;
    let rise = u32::try_from(context.count(&table, "rise")).unwrap_or(u32::MAX);
    let fall = u32::try_from(context.count(&table, "fall")).unwrap_or(u32::MAX);
    Some(Some(Health { path: path?, interval, timeout, rise, fall }))
}

fn health_path(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<String> {
    let legal = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if !legal {
        let message = format!("`health`: `{}` is not a path", quoted(text));
        context.error(
            "invalid-path",
            value.span(),
            message,
            "write a path that begins with `/`, like \"/up\", or \"off\"",
        );
    }
    legal.then(|| text.to_owned())
}

fn upstream(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Upstream>,
) -> Located<Upstream> {
    let print = |upstream: &Upstream| {
        let mut parts = Vec::new();
        if let Some(file) = &upstream.ca_file {
            parts.push(format!("ca_file = {}, ", literal(&file.value.to_string_lossy())));
        }
        if let Some(name) = &upstream.server_name {
            parts.push(format!("server_name = {}, ", literal(&name.value)));
        }
        if let Some((cert, key)) = &upstream.identity {
            let (cert, key) = (cert.value.to_string_lossy(), key.value.to_string_lossy());
            parts.push(format!("cert = {}, key = {}, ", literal(&cert), literal(&key)));
        }
        let protocols = protocol::print(upstream.http, upstream.proxy_protocol);
        format!("{{ {}{protocols} }}", parts.concat())
    };
    context.value(
        table,
        "upstream",
        inherited,
        |context, setting, value| context.silent(|context| read_upstream(context, setting, value)),
        print,
    )
}

fn read_upstream(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Upstream> {
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Upstream, String::new(), Some(entries), value.span());
    let (http, proxy_protocol) = protocol::of_upstream(context, &table);
    let ca_file = table.get("ca_file").and_then(|(setting, value)| located_path(context, setting, value));
    let server_name = table.get("server_name").and_then(|(setting, value)| {
        let text = context.text(setting, value)?;
        match host::pattern(text) {
            Ok(crate::config::model::HostPattern::Exact(name)) => {
                Some(Located { value: name.to_string(), origin: context.origin(value.span()) })
            }
            Ok(_) => {
                context.error("invalid-host", value.span(), "`server_name` has a `*`", "write one full name");
                None
            }
            Err((message, help)) => {
                context.error("invalid-host", value.span(), format!("`server_name`: {message}"), help);
                None
            }
        }
    });
    let identity = tls::upstream_identity(context, &table);
    Some(Upstream { ca_file, server_name, identity, http, proxy_protocol })
}

/// Reads a path to a file that is watched from now on.
pub fn located_path(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Located<PathBuf>> {
    let path = context.read_path(setting, value)?;
    context.files.push(path.clone());
    Some(Located { value: path, origin: context.origin(value.span()) })
}

/// TLS settings beside backends that are all plain do nothing: somebody believes in an encryption that is not there.
fn warn_of_unused_upstream(context: &mut Context<'_>, table: &Table<'_>, shared: &Shared) {
    let Some(Target::Backends(backends)) = shared.target.as_ref().map(|target| &target.value) else { return };
    let upstream = &shared.toward.upstream.value;
    let said = upstream.ca_file.is_some() || upstream.server_name.is_some() || upstream.identity.is_some();
    if said
        && table.has("upstream")
        && table.has("backends")
        && !backends.iter().any(|backend| backend.value.tls)
    {
        let origin = context.origin(table.span_of("upstream"));
        let warning = Diagnostic::warning(
            "unused",
            &origin,
            "`upstream` says how to speak TLS, but no backend here is reached by TLS",
        )
        .help("write the backends with `https://` to encrypt, or remove the TLS settings");
        context.report(warning);
    }
}

fn redirect(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Target> {
    if let Some(text) = value.get_ref().as_str() {
        return Some(Target::Redirect { to: redirect_target(context, value, text)?, status: 308 });
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Redirect, String::new(), Some(entries), value.span());
    let status = context.silent(|context| context.count(&table, "status"));
    let Some((setting, to)) = table.get("to") else {
        context.missing(&table, "to");
        return None;
    };
    let text = context.text(setting, to)?;
    let to = redirect_target(context, to, text)?;
    Some(Target::Redirect { to, status: u16::try_from(status).unwrap_or(308) })
}

fn redirect_target(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<String> {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    // `//host/` would leave the site without looking like it.
    let path = text.starts_with('/') && !text.starts_with("//") && !text.contains('\\');
    let url = (text.starts_with("http://") || text.starts_with("https://"))
        && text
            .parse::<Uri>()
            .is_ok_and(|uri| uri.authority().is_some_and(|authority| !authority.as_str().contains('@')));
    if visible && (path || url) && !text.contains(['?', '#']) {
        return Some(text.to_owned());
    }
    let message = format!("`{}` is not a place to redirect to", quoted(text));
    let help = "write a path like \"/new/\" or a URL like \"https://www.shop.example/\", in ASCII and without `?` and `#` (the client's query is kept)";
    context.error("invalid-value", value.span(), message, help);
    None
}

fn respond(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Target> {
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Respond, String::new(), Some(entries), value.span());
    let status = context.silent(|context| context.count(&table, "status"));
    let mut text = |name: &str| match table.get(name) {
        Some((setting, value)) => context.text(setting, value).map(str::to_owned),
        None => Some(table.default_text(name).to_owned()),
    };
    let (body, content_type) = (text("body"), text("content_type"));
    if content_type
        .as_ref()
        .is_some_and(|text| HeaderValue::from_str(text).is_err() || !text.is_ascii() || text.is_empty())
    {
        let help = "write it like \"text/html; charset=utf-8\"";
        context.error(
            "invalid-header",
            table.span_of("content_type"),
            "`content_type` is not legal in a header field",
            help,
        );
    }
    // RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5: these answers have no content.
    if matches!(status, 204 | 205 | 304) && body.as_ref().is_some_and(|body| !body.is_empty()) {
        let message = format!("an answer with status {status} has no body");
        context.error(
            "conflict",
            table.span_of("body"),
            message,
            "remove `body`, or answer with another status",
        );
    }
    Some(Target::Respond {
        status: u16::try_from(status).unwrap_or(200),
        body: body?,
        content_type: content_type?,
    })
}
