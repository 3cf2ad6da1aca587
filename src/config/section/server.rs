//! The server's tables: `[server]`, its timeouts and limits, `[metrics]`, `[admin]`, `[log]`, `[demo]`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use toml::de::{DeTable, DeValue};

use super::{acme, address, ban, discovery, docker, host, mode, patch, share, tls};
use crate::base::address::CidrSet;
use crate::base::record::{AccessFormat, AccessTarget, Privacy};
use crate::base::trust;
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{ClientIpDoctor, Limits, Located, Log, NetworkList, Origin, Server, Timeouts};
use crate::config::parse::{Context, Table, Value, literal, literals, quoted};
use crate::config::setting::{Id, Setting};

/// What the server part says, besides the server itself.
pub struct Said {
    /// The server; wrong values are replaced by their defaults.
    pub server: Server,
    /// `include`, as written, with where each stands.
    pub include: Vec<Located<String>>,
}

/// Reads the top of `tidegate.toml`, except the sites.
pub fn read(context: &mut Context<'_>, root: &DeTable<'_>) -> Said {
    let file = context.open(Id::File, String::new(), Some(root), 0..0);
    let table = context.table(&file, "server", Id::Server);
    let metrics = context.table(&file, "metrics", Id::Metrics);
    let admin = context.table(&file, "admin", Id::Admin);
    let log = context.table(&file, "log", Id::Log);
    let demo = context.table(&file, "demo", Id::Demo);
    let mut taken = Taken::new();
    let networks = address::lists(context, &file);
    let server = Server {
        http: addresses(context, &table, "http", &mut taken),
        https: addresses(context, &table, "https", &mut taken),
        public_https_port: context
            .count_or(&table, "public_https_port")
            .and_then(|port| u16::try_from(port).ok()),
        workers: context.count_or(&table, "workers").and_then(|count| usize::try_from(count).ok()),
        state: path(context, &table, "state"),
        trusted_proxies: trusted(context, &table, &networks),
        addresses: address::addresses(context, &table, &networks),
        country_database: tls::file(context, &table, "country_database"),
        networks,
        client_ip_doctor: client_ip_doctor(context, &table),
        proxy_protocol: context.flag(&table, "proxy_protocol"),
        via: via(context, &table),
        drain: context.duration(&table, "drain", None).value,
        max_connections_per_client: narrow(context.count(&table, "max_connections_per_client")),
        max_requests_per_connection: narrow(context.count(&table, "max_requests_per_connection")),
        max_connections: context.count_or(&table, "max_connections").map(narrow),
        limit_entries: wide(context.count(&table, "limit_entries")),
        tls: tls::of_server(context, &table),
        require_encrypted_backends: context.flag(&table, "require_encrypted_backends"),
        shares: share::shares(context, &file, &table),
        overload: share::overload(context, &table),
        timeouts: timeouts(context, &table),
        limits: limits(context, &table),
        default_certificate: default_certificate(context, &table),
        metrics: metrics_address(context, &metrics, &mut taken),
        admin_socket: path(context, &admin, "socket"),
        log: access_log(context, &log),
        demo: addresses(context, &demo, "listen", &mut taken),
        docker: docker::read(context, &file),
        acme: acme::read(context, &file),
        patches: patch::read(context, &file),
        bans: ban::of_server(context, &file),
        resolution: discovery::resolution(context, &file),
    };
    let include = includes(context, &table);
    check(context, &file, &table, &server);
    Said { server, include }
}

fn client_ip_doctor(context: &mut Context<'_>, table: &Table<'_>) -> ClientIpDoctor {
    match context.word(table, "client_ip_doctor", None).value {
        "warn" => ClientIpDoctor::Warn,
        "off" => ClientIpDoctor::Off,
        _ => ClientIpDoctor::On,
    }
}

fn check(context: &mut Context<'_>, file: &Table<'_>, table: &Table<'_>, server: &Server) {
    acme::check(context, file, server);
    if server.http.is_empty() && server.https.is_empty() && context.errors == 0 {
        let message = "there is nothing to listen on: `http` and `https` are both empty";
        context.error("conflict", table.span_of("https"), message, "give at least one of them an address");
    }
    if server.proxy_protocol && server.trusted_proxies.is_empty() {
        context.error(
            "conflict",
            table.span_of("proxy_protocol"),
            "`proxy_protocol` is on, but no peer is trusted to send it",
            "list the load balancers in front in `trusted_proxies`, like [\"10.0.0.0/8\"]",
        );
    }
}

fn narrow(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

fn wide(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Reads an array of texts with one reader per text; a wrong one is reported and left out.
pub fn texts<T>(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
    mut read: impl FnMut(&mut Context<'_>, &Value<'_>, &str) -> Option<T>,
) -> Option<Vec<T>> {
    let mut found = Vec::new();
    for entry in context.array(setting, value)? {
        let Some(text) = entry.get_ref().as_str() else {
            context.wrong_type(&format!("an entry of `{}`", setting.name), "a text in quotes", entry);
            continue;
        };
        found.extend(read(context, entry, text));
    }
    Some(found)
}

/// The texts of a default that is an array.
pub(super) fn default_texts(table: &Table<'_>, name: &str) -> Vec<String> {
    let default = DeValue::parse(table.default_text(name));
    let array = default.as_ref().ok().and_then(|value| value.get_ref().as_array());
    array.into_iter().flatten().filter_map(|entry| entry.get_ref().as_str().map(str::to_owned)).collect()
}

/// Listeners. `taken` knows every address seen so far: two listeners cannot share one.
fn addresses(
    context: &mut Context<'_>,
    table: &Table<'_>,
    name: &'static str,
    taken: &mut Taken,
) -> Vec<SocketAddr> {
    let default: Vec<SocketAddr> =
        default_texts(table, name).iter().filter_map(|text| text.parse().ok()).collect();
    let fallback = Located { value: default, origin: Origin::Default };
    let label = if table.section.id == Id::Demo { "demo.listen" } else { name };
    if !table.has(name) {
        fallback.value.iter().for_each(|address| take_default(context, taken, *address, table, label));
    }
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        texts(context, setting, value, |context, entry, text| match host::listener(text) {
            Ok(address) => take(context, taken, address, label, entry).then_some(address),
            Err((message, help)) => {
                context.error("invalid-address", entry.span(), format!("`{name}`: {message}"), help);
                None
            }
        })
    };
    let print = |list: &Vec<SocketAddr>| literals(list.iter().map(SocketAddr::to_string));
    context.value(table, name, &fallback, read, print).value
}

/// Addresses that listeners have, and which ones.
type Taken = Vec<(SocketAddr, &'static str)>;

fn take(
    context: &mut Context<'_>,
    taken: &mut Taken,
    address: SocketAddr,
    name: &'static str,
    value: &Value<'_>,
) -> bool {
    let former = taken.iter().find(|(former, _)| overlap(*former, address)).copied();
    if let Some((former, by)) = former {
        let message = match former == address {
            true => format!("{address} is already taken by `{by}`"),
            false => format!("{address} is already taken by `{by}`, which listens on {former}"),
        };
        let help = "give each listener an address and port of its own; one on [::] takes IPv4 too";
        context.error("conflict", value.span(), message, help);
    }
    taken.push((address, name));
    former.is_none()
}

/// The same for addresses that nobody wrote.
fn take_default(
    context: &mut Context<'_>,
    taken: &mut Taken,
    address: SocketAddr,
    table: &Table<'_>,
    name: &'static str,
) {
    if let Some((_, by)) = taken.iter().find(|(former, _)| overlap(*former, address)) {
        let message = format!("{address}, the default of `{name}`, is already taken by `{by}`");
        let help = format!("write another address for `{name}` too");
        context.error("conflict", table.span.clone(), message, help);
    }
    taken.push((address, name));
}

/// Whether two sockets cannot listen on both. Port 0 means a free one: it can be asked for any number of times.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let covers =
        |all: SocketAddr, some: SocketAddr| all.ip().is_unspecified() && (all.is_ipv6() || some.is_ipv4());
    one.port() == other.port()
        && one.port() != 0
        && (one == other || covers(one, other) || covers(other, one))
}

fn metrics_address(context: &mut Context<'_>, table: &Table<'_>, taken: &mut Taken) -> Option<SocketAddr> {
    let default: Option<SocketAddr> = table.default_text("listen").parse().ok();
    let fallback = Located { value: default, origin: Origin::Default };
    if let Some(address) = default.filter(|_| !table.has("listen")) {
        take_default(context, taken, address, table, "metrics.listen");
    }
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        let text = context.text(setting, value)?;
        if text == "off" {
            return Some(None);
        }
        match host::listener(text) {
            Ok(address) => take(context, taken, address, "metrics.listen", value).then_some(Some(address)),
            Err((message, help)) => {
                context.error(
                    "invalid-address",
                    value.span(),
                    format!("`listen`: {message}"),
                    help + ", or \"off\"",
                );
                None
            }
        }
    };
    let print =
        |value: &Option<SocketAddr>| literal(&value.map_or_else(|| "off".into(), |at| at.to_string()));
    context.value(table, "listen", &fallback, read, print).value
}

fn path(context: &mut Context<'_>, table: &Table<'_>, name: &str) -> PathBuf {
    let fallback = Located { value: PathBuf::from(table.default_text(name)), origin: Origin::Default };
    let print = |path: &PathBuf| literal(&path.to_string_lossy());
    context
        .value(table, name, &fallback, |context, setting, value| context.read_path(setting, value), print)
        .value
}

fn trusted(context: &mut Context<'_>, table: &Table<'_>, lists: &[NetworkList]) -> CidrSet {
    let fallback = Located { value: Vec::<(String, Vec<IpNet>)>::new(), origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        texts(context, setting, value, |context, entry, text| {
            trusted_entry(context, entry, text, lists).map(|networks| (text.to_ascii_lowercase(), networks))
        })
    };
    let print = |list: &Vec<(String, Vec<IpNet>)>| literals(list.iter().map(|(text, _)| text.clone()));
    let said = context.value(table, "trusted_proxies", &fallback, read, print).value;
    CidrSet::new(said.into_iter().flat_map(|(_, networks)| networks))
}

fn trusted_entry(
    context: &mut Context<'_>,
    entry: &Value<'_>,
    text: &str,
    lists: &[NetworkList],
) -> Option<Vec<IpNet>> {
    if let Some(network) = address::network(text) {
        if network.prefix_len() == 0 {
            let message = format!("`{text}` trusts everybody: any client can then claim any address");
            let warning = Diagnostic::warning("trusts-everybody", &context.origin(entry.span()), message)
                .help("list only the networks of the load balancers in front");
            context.report(warning);
        }
        return Some(vec![network]);
    }
    let name = text.to_ascii_lowercase();
    if let Some(networks) = trust::find(&name) {
        return Some(networks.to_vec());
    }
    match lists.iter().find(|list| *list.name == *name) {
        Some(list) if list.file.is_none() => Some(list.networks.clone()),
        Some(_) => {
            let message =
                format!("the list `{name}` stands in a file, and who is trusted must be written here");
            let help = "write its networks in [networks]: who can change a file could make anybody a proxy";
            context.error("conflict", entry.span(), message, help);
            None
        }
        None => {
            address::unknown(context, entry, text, lists);
            None
        }
    }
}

/// Addresses are compared as IPv4 wherever they are IPv4: a network of mapped addresses is its IPv4 network.
pub(super) fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(net) = network else { return network };
    let mapped = net.prefix_len().checked_sub(96).zip(net.addr().to_ipv4_mapped());
    let v4 = mapped.and_then(|(length, address)| Ipv4Net::new(address, length).ok());
    v4.map_or(network, IpNet::V4)
}

fn includes(context: &mut Context<'_>, table: &Table<'_>) -> Vec<Located<String>> {
    let default = default_texts(table, "include");
    let default = default.into_iter().map(|value| Located { value, origin: Origin::Default }).collect();
    let fallback = Located { value: default, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        texts(context, setting, value, |context, entry, text| {
            if text.is_empty() || text.contains('\0') {
                context.error(
                    "invalid-value",
                    entry.span(),
                    "an entry of `include` is not a path",
                    "write a file, or files with `*`, like \"sites/*.toml\"",
                );
                return None;
            }
            Some(Located { value: text.to_owned(), origin: context.origin(entry.span()) })
        })
    };
    let print = |list: &Vec<Located<String>>| literals(list.iter().map(|entry| &entry.value));
    context.value(table, "include", &fallback, read, print).value
}

fn default_certificate(context: &mut Context<'_>, table: &Table<'_>) -> Option<Located<Arc<str>>> {
    let fallback = Located { value: None, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        context.text(setting, value).map(|text| Some(Arc::from(text.to_ascii_lowercase())))
    };
    let print = |value: &Option<Arc<str>>| value.as_ref().map_or_else(|| "none".into(), |name| literal(name));
    let given = context.value(table, "default_certificate", &fallback, read, print);
    given.value.map(|value| Located { value, origin: given.origin })
}

fn via(context: &mut Context<'_>, table: &Table<'_>) -> Option<Box<str>> {
    let fallback = Located { value: Some(table.default_text("via").into()), origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        let text = context.text(setting, value)?;
        if text == "off" {
            return Some(None);
        }
        // RFC 9110 section 5.6.2.
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if text.is_empty() || !text.bytes().all(legal) {
            let message = format!("`via`: `{}` is no name that can stand in the field", quoted(text));
            let help = "write one word of letters, digits, `-`, `.` and `_`, like \"edge-1\", or \"off\"";
            context.error("invalid-value", value.span(), message, help);
            return None;
        }
        Some(Some(text.into()))
    };
    let print = |value: &Option<Box<str>>| literal(value.as_deref().unwrap_or("off"));
    context.value(table, "via", &fallback, read, print).value
}

fn timeouts(context: &mut Context<'_>, server: &Table<'_>) -> Timeouts {
    let table = context.table(server, "timeouts", Id::Timeouts);
    let mut read = |name: &str| context.duration(&table, name, None).value;
    Timeouts {
        handshake: read("handshake"),
        head: read("head"),
        idle: read("idle"),
        body: read("body"),
        write: read("write"),
        tunnel: read("tunnel"),
        connect: read("connect"),
        first_byte: read("first_byte"),
        upstream_idle: read("upstream_idle"),
        age: read("age"),
        upstream_ping: read("upstream_ping"),
    }
}

fn limits(context: &mut Context<'_>, server: &Table<'_>) -> Limits {
    let table = context.table(server, "limits", Id::Limits);
    let limits = Limits {
        head: context.size(&table, "head"),
        fields: wide(context.count(&table, "fields")),
        uri: wide(context.size(&table, "uri")),
        h2_streams: narrow(context.count(&table, "h2_streams")),
        h2_resets: wide(context.count(&table, "h2_resets")),
        h2_reset_rate: narrow(context.count(&table, "h2_reset_rate")),
        flood_delay: context.duration(&table, "flood_delay", None).value,
        requests_per_client: narrow(context.count(&table, "requests_per_client")),
        requests_per_client_mode: mode::of(context, &table, "requests_per_client_mode"),
        body_rate: context.size(&table, "body_rate"),
        write_rate: context.size(&table, "write_rate"),
        handshakes: wide(context.count(&table, "handshakes")),
        upstream_idle: wide(context.count(&table, "upstream_idle")),
        upstream_h2_connections: wide(context.count(&table, "upstream_h2_connections")),
        upstream_head: wide(context.size(&table, "upstream_head")),
    };
    if u64::try_from(limits.uri).unwrap_or(u64::MAX) > limits.head {
        let help = "the target is part of the head: make `uri` smaller or `head` larger";
        context.error("conflict", table.span_of("uri"), "`uri` is larger than `head`", help);
    }
    limits
}

fn access_log(context: &mut Context<'_>, table: &Table<'_>) -> Log {
    let fallback = Located { value: AccessTarget::Stdout, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| match context
        .text(setting, value)?
    {
        "stdout" => Some(AccessTarget::Stdout),
        "off" => Some(AccessTarget::Off),
        _ => context.read_path(setting, value).map(AccessTarget::File),
    };
    let print = |target: &AccessTarget| match target {
        AccessTarget::Off => literal("off"),
        AccessTarget::Stdout => literal("stdout"),
        AccessTarget::File(path) => literal(&path.to_string_lossy()),
    };
    let access = context.value(table, "access", &fallback, read, print).value;
    let format = match context.word(table, "format", None).value {
        "combined" => AccessFormat::Combined,
        _ => AccessFormat::Json,
    };
    let privacy = match context.word(table, "privacy", None).value {
        "full" => Privacy::Full,
        _ => Privacy::Strict,
    };
    Log { access, format, privacy }
}
