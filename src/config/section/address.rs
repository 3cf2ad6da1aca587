//! Who may come by where they come from: `[networks]`, `addresses`, `countries`.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use toml::de::DeValue;

use super::server::{texts, unmapped};
use super::{mode, tls};
use crate::base::trust;
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{
    Addresses, Countries, Country, Located, Mode, NetworkList, Networks, Origin, Server,
};
use crate::config::parse::{Context, Table, Value, literals, nearest, quoted};
use crate::config::setting::{Id, Setting};

/// Reads `[networks]`.
pub fn lists(context: &mut Context<'_>, file: &Table<'_>) -> Vec<NetworkList> {
    let Some((setting, value)) = file.get("networks") else { return Vec::new() };
    let DeValue::Table(entries) = value.get_ref() else {
        context.wrong_type("networks", &setting.kind.expected(), value);
        return Vec::new();
    };
    let mut lists = Vec::new();
    for (key, value) in entries {
        let name = key.get_ref().to_ascii_lowercase();
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(legal) || name.parse::<IpAddr>().is_ok() {
            let message = format!("`{}` cannot be the name of a list of networks", quoted(&name));
            context.error("invalid-value", key.span(), message, "a name has letters, digits, `-` and `_`");
            continue;
        }
        if trust::find(&name).is_some() {
            let message = format!("the list `{name}` is known already");
            context.error(
                "duplicate",
                key.span(),
                message,
                format!("give yours another name, like \"our-{name}\""),
            );
            continue;
        }
        if lists.iter().any(|list: &NetworkList| *list.name == *name) {
            let message = format!("the list `{name}` is defined twice: capitals make no difference");
            context.error("duplicate", key.span(), message, "merge both, or give one another name");
            continue;
        }
        let Some(entries) = value.get_ref().as_table() else {
            context.wrong_type(&name, "a table: [networks.\"office\"]", value);
            continue;
        };
        let path = if context.recorded.is_some() { format!("networks.{name}") } else { String::new() };
        let table = context.open(Id::Networks, path, Some(entries), value.span());
        lists.extend(list(context, &table, name.into()));
    }
    lists
}

fn list(context: &mut Context<'_>, table: &Table<'_>, name: Arc<str>) -> Option<NetworkList> {
    let fallback = Located { value: Vec::new(), origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        texts(context, setting, value, |context, entry, text| match network(text) {
            Some(network) => Some(network),
            None => {
                let message = format!("`{}` is not a network", quoted(text));
                context.error("invalid-network", entry.span(), message, "write one like \"192.0.2.0/24\"");
                None
            }
        })
    };
    let print = |list: &Vec<IpNet>| literals(list.iter().map(IpNet::to_string));
    let networks = context.value(table, "networks", &fallback, read, print).value;
    let file = tls::file(context, table, "file");
    let proxy = context.flag(table, "proxy");
    if !table.has("networks") && !table.has("file") {
        let help = "write `networks = [\"192.0.2.0/24\"]`, or `file = \"list.txt\"`";
        context.error("missing", table.span.clone(), format!("the list `{name}` has no networks"), help);
        return None;
    }
    Some(NetworkList { name, networks, file, proxy })
}

/// A network or a single address.
pub fn network(text: &str) -> Option<IpNet> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    network.map(unmapped)
}

/// Reads `addresses` of the server, a site or a route.
pub fn addresses(context: &mut Context<'_>, table: &Table<'_>, lists: &[NetworkList]) -> Option<Addresses> {
    let fallback = Located { value: None, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        context.silent(|context| read_addresses(context, setting, value, lists)).map(Some)
    };
    let print = |said: &Option<Addresses>| {
        let Some(said) = said else { return "all".into() };
        let list = |list: &[Networks]| literals(list.iter().map(Networks::to_string));
        written(said.allow.as_deref().map(list), list(&said.deny), "", said.mode)
    };
    context.value(table, "addresses", &fallback, read, print).value
}

fn written(allow: Option<String>, deny: String, more: &str, mode: Mode) -> String {
    let allow = allow.map(|allow| format!("allow = {allow}, ")).unwrap_or_default();
    format!("{{ {allow}deny = {deny}{more}, mode = \"{}\" }}", mode.as_str())
}

fn read_addresses(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
    lists: &[NetworkList],
) -> Option<Addresses> {
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Addresses, String::new(), Some(entries), value.span());
    let entries = |context: &mut Context<'_>, name: &str| {
        let (setting, value) = table.get(name)?;
        texts(context, setting, value, |context, entry, text| entry_of(context, entry, text, lists))
    };
    let allow = entries(context, "allow");
    let deny = entries(context, "deny").unwrap_or_default();
    nothing_said(context, &table);
    let mode = mode::read(context, &table);
    Some(Addresses { allow, deny, mode, origin: context.origin(value.span()) })
}

/// A table that neither allows nor denies is a mistake: whoever wrote it believes that something is guarded.
fn nothing_said(context: &mut Context<'_>, table: &Table<'_>) {
    if !table.has("allow") && !table.has("deny") {
        let help = "name whom to let in (`allow`), or whom not (`deny`)";
        context.error("missing", table.span.clone(), "neither `allow` nor `deny` is said", help);
    }
}

fn entry_of(
    context: &mut Context<'_>,
    entry: &Value<'_>,
    text: &str,
    lists: &[NetworkList],
) -> Option<Networks> {
    if let Some(network) = network(text) {
        return Some(Networks::One(network));
    }
    let name = text.to_ascii_lowercase();
    if trust::find(&name).is_some() || lists.iter().any(|list| *list.name == *name) {
        return Some(Networks::Named(name.into()));
    }
    unknown(context, entry, text, lists);
    None
}

/// Says that something is neither a network nor the name of a list.
pub fn unknown(context: &mut Context<'_>, entry: &Value<'_>, text: &str, lists: &[NetworkList]) {
    let message = format!("`{}` is neither a network nor a list", quoted(text));
    let known: Vec<&str> =
        trust::lists().iter().map(|list| list.name).chain(lists.iter().map(|list| &*list.name)).collect();
    let help = format!("write one like \"192.0.2.0/24\", or a list: {}", known.join(", "));
    let mut diagnostic =
        Diagnostic::error("invalid-network", &context.origin(entry.span()), message).help(help);
    if let Some(near) = nearest(&text.to_ascii_lowercase(), &known) {
        diagnostic = diagnostic.label(format!("did you mean \"{near}\"?"));
    }
    context.report(diagnostic);
}

/// Reads `countries` of a site or a route.
pub fn countries(context: &mut Context<'_>, table: &Table<'_>, server: &Server) -> Option<Countries> {
    let fallback = Located { value: None, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        context.silent(|context| read_countries(context, setting, value, server)).map(Some)
    };
    let print = |said: &Option<Countries>| {
        let Some(said) = said else { return "all".into() };
        let list = |list: &[Country]| literals(list.iter().map(|country| country.as_str().to_owned()));
        let unknown = format!(", unknown = \"{}\"", if said.unknown { "allow" } else { "deny" });
        written(said.allow.as_deref().map(list), list(&said.deny), &unknown, said.mode)
    };
    context.value(table, "countries", &fallback, read, print).value
}

fn read_countries(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
    server: &Server,
) -> Option<Countries> {
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Countries, String::new(), Some(entries), value.span());
    if server.country_database.is_none() {
        let help = "say `country_database = \"GeoLite2-Country.mmdb\"` in [server]";
        let message = "`countries` needs a database, and none is named";
        context.error("conflict", value.span(), message, help);
    }
    let entries = |context: &mut Context<'_>, name: &str| {
        let (setting, value) = table.get(name)?;
        texts(context, setting, value, |context, entry, text| {
            let country = Country::parse(text);
            if country.is_none() {
                let message = format!("`{}` is not a country", quoted(text));
                let help = "write the two letters of ISO 3166-1, like \"DE\"";
                context.error("invalid-value", entry.span(), message, help);
            }
            if let Some(country) = country.filter(|country| !country.is_assigned()) {
                let message = format!("no country has the letters `{}`", country.as_str());
                let help = match country.as_str() {
                    "UK" => "databases say `GB` of the United Kingdom",
                    "EL" => "databases say `GR` of Greece",
                    _ => "this matches only if your database has it; see ISO 3166-1 alpha-2",
                };
                let warning = Diagnostic::warning("unknown-country", &context.origin(entry.span()), message);
                context.report(warning.help(help));
            }
            country
        })
    };
    let allow = entries(context, "allow");
    let deny = entries(context, "deny").unwrap_or_default();
    nothing_said(context, &table);
    let unknown = context.word(&table, "unknown", None).value == "allow";
    let mode = mode::read(context, &table);
    Some(Countries { allow, deny, unknown, mode, origin: context.origin(value.span()) })
}
