//! `backends`: addresses with weights, and sources of addresses.

use std::collections::HashSet;
use std::sync::Arc;

use super::target::Target;
use crate::base::address::EndpointAddress;
use crate::config::model::{Backend, Discover, Located, Source};
use crate::config::parse::{Context, Value, literals, quoted};
use crate::config::section::host;
use crate::config::setting::{self, Id, Setting};

/// Reads `backends`.
pub(super) fn read(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Target> {
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
    let (mut written, mut sources) = (Vec::new(), Vec::new());
    for entry in entries {
        let Some((backend, at)) = backend(context, entry) else { continue };
        let origin = context.origin(at.clone());
        let name = match &backend {
            Entry::Written(backend) => (backend.address.to_string(), backend.tls),
            Entry::Found(found) => (found.source.to_string(), found.tls),
        };
        if seen.contains(&name) {
            let message = format!("the backend {} is there twice", name.0);
            context.error("duplicate", at, message, "keep one; give it a `weight` to send it more requests");
            continue;
        }
        seen.insert(name);
        match backend {
            Entry::Written(value) => written.push(Located { value, origin }),
            Entry::Found(value) => sources.push(Located { value, origin }),
        }
    }
    refuse_idle(context, value, &written, &sources);
    let any = !written.is_empty() || !sources.is_empty();
    any.then(|| Target::Backends { written: written.into(), sources: sources.into() })
}

/// An entry of `backends`.
enum Entry {
    Written(Backend),
    Found(Discover),
}

/// Backends of which none would ever be the first choice.
fn refuse_idle(
    context: &mut Context<'_>,
    value: &Value<'_>,
    written: &[Located<Backend>],
    sources: &[Located<Discover>],
) {
    let written = written.iter().map(|backend| (backend.value.weight, backend.value.backup));
    let found = sources.iter().map(|found| (found.value.weight, found.value.backup));
    let mut all = written.chain(found);
    let (message, help) = if all.clone().count() == 0 {
        return;
    } else if all.clone().all(|(weight, _)| weight == 0) {
        ("all backends have weight 0", "one that drains needs others to drain to: give at least one a weight")
    } else if all.all(|(_, backup)| backup) {
        (
            "all backends are backups",
            "a backup waits until the others are down: leave at least one without `backup`",
        )
    } else {
        return;
    };
    context.error("conflict", value.span(), message, help);
}

/// As the effective configuration shows them.
pub(super) fn print(written: &[Located<Backend>], sources: &[Located<Discover>]) -> String {
    let one = |place: String, weight: u32, backup: bool| {
        let weight = if weight == 1 { String::new() } else { format!(" weight {weight}") };
        format!("{place}{weight}{}", if backup { " backup" } else { "" })
    };
    let written = written.iter().map(|backend| {
        let Backend { address, tls, weight, backup, .. } = &backend.value;
        one(format!("{}{address}", if *tls { "https://" } else { "" }), *weight, *backup)
    });
    let found = sources.iter().map(|found| {
        let Discover { source, tls, weight, backup } = &found.value;
        one(format!("{source}{}", if *tls { " tls" } else { "" }), *weight, *backup)
    });
    literals(written.chain(found))
}

/// One backend and where its address stands.
fn backend(context: &mut Context<'_>, entry: &Value<'_>) -> Option<(Entry, std::ops::Range<usize>)> {
    if let Some(text) = entry.get_ref().as_str() {
        return Some((place(context, entry, text)?, entry.span()));
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
    let backup = context.silent(|context| context.flag(&table, "backup"));
    let Some((setting, value)) = table.get("address") else {
        context.missing(&table, "address");
        return None;
    };
    let text = context.text(setting, value)?;
    let tls = match table.get("tls") {
        Some((setting, value)) => Some((context.read_flag(setting, value)?, value.span())),
        None => None,
    };
    let said = u32::try_from(weight?).unwrap_or(1);
    let place = match place(context, value, text)? {
        Entry::Found(found) => {
            Entry::Found(Discover { tls: tls.is_some_and(|(tls, _)| tls), weight: said, backup, ..found })
        }
        Entry::Written(backend) => {
            if let Some((_, span)) = tls {
                let help = "an address says it itself: write `https://` before it, or nothing";
                context.error("conflict", span, "`tls` is for endpoints that are found", help);
            }
            Entry::Written(Backend { weight: said, backup, ..backend })
        }
    };
    Some((place, value.span()))
}

/// The path in a source like `file:web.backends`; `None` for what is no such source.
pub fn source_file(text: &str) -> Option<&str> {
    // `file:8080` is a host of that name.
    let path = text.strip_prefix("file:").filter(|rest| rest.parse::<u16>().is_err())?;
    Some(path.strip_prefix("//").unwrap_or(path))
}

/// What a source of containers like `docker://shop/web:8080` or `docker-labels:shop.example|/` asks for; `None` for what
/// is no such source.
///
/// # Errors
/// What is wrong with one, behind its name.
pub fn containers(text: &str) -> Option<Result<Source, &'static str>> {
    if let Some(rest) = text.strip_prefix("docker-labels:") {
        let split = rest.split_once('|').filter(|(site, route)| !site.is_empty() && !route.is_empty());
        let source = split.map(|(site, route)| Source::Labels { site: site.into(), route: route.into() });
        return Some(source.ok_or("names no site and route"));
    }
    let rest = text.strip_prefix("docker://")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (names, port) = match rest.split_once(':') {
        None => (rest, None),
        Some((names, port)) => match port.parse::<u16>() {
            Ok(port) if port > 0 => (names, Some(port)),
            _ => return Some(Err("has a wrong port")),
        },
    };
    let (project, service) = match names.split_once('/') {
        None => (None, names),
        Some((project, service)) => (Some(project), service),
    };
    let legal = |name: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        !name.is_empty() && name.bytes().all(legal)
    };
    if !legal(service) || !project.is_none_or(legal) {
        return Some(Err("has no legal name of a service: letters, digits, `.`, `-` and `_`"));
    }
    Some(Ok(Source::Docker { project: project.map(Arc::from), service: service.into(), port }))
}

/// An address, or a source of addresses.
fn place(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<Entry> {
    let source = if let Some(path) = source_file(text) {
        file(context, value, path)?
    } else if let Some(rest) = text.strip_prefix("dns://") {
        dns(context, value, rest)?
    } else if let Some(name) = text.strip_prefix("deploy://") {
        deployed(context, value, name)?
    } else if let Some(rest) = text.strip_prefix("srv://") {
        srv(context, value, rest)?
    } else if let Some(found) = containers(text) {
        match found {
            Ok(source) => source,
            Err(what) => {
                let message = format!("the source `{}` {what}", quoted(text));
                let help = "write \"docker://web\", \"docker://web:8080\", or with a Compose project \"docker://shop/web\"";
                context.error("invalid-address", value.span(), message, help);
                return None;
            }
        }
    } else {
        return address(context, value, text).map(Entry::Written);
    };
    Some(Entry::Found(Discover { source, tls: false, weight: 1, backup: false }))
}

fn file(context: &mut Context<'_>, value: &Value<'_>, path: &str) -> Option<Source> {
    if path.is_empty() {
        let help = "write a path, like \"file:/run/web.backends\"";
        context.error("invalid-address", value.span(), "the source `file:` names no file", help);
        return None;
    }
    Some(Source::File(context.absolute(path).to_string_lossy().into()))
}

fn dns(context: &mut Context<'_>, value: &Value<'_>, rest: &str) -> Option<Source> {
    let (message, help) = match host::endpoint(rest.strip_suffix('/').unwrap_or(rest)) {
        Ok(EndpointAddress::Name(host, port)) => return Some(Source::Dns(host, port)),
        Ok(EndpointAddress::Socket(address)) => {
            let message = format!("`{address}` is an address, and needs no name server");
            (message, format!("write \"{address}\""))
        }
        Err(wrong) => wrong,
    };
    context.error("invalid-address", value.span(), format!("the source `dns://`: {message}"), help);
    None
}

fn deployed(context: &mut Context<'_>, value: &Value<'_>, name: &str) -> Option<Source> {
    // It is also the name of a file, and stands in queries.
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if !name.is_empty() && name.len() <= 63 && name.bytes().all(legal) {
        return Some(Source::Deployed(Arc::from(name)));
    }
    let message = format!("the source `deploy://`: `{}` is not a legal name", quoted(name));
    let help = "write a name of your own in small letters, digits and `-`: \"deploy://shop\"";
    context.error("invalid-address", value.span(), message, help);
    None
}

fn srv(context: &mut Context<'_>, value: &Value<'_>, rest: &str) -> Option<Source> {
    let lower = rest.to_ascii_lowercase();
    let name = lower.strip_suffix('.').unwrap_or(&lower);
    let label = |label: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty() && label.len() <= 63 && label.bytes().all(legal)
    };
    if name.len() <= 253 && name.contains('.') && name.split('.').all(label) {
        return Some(Source::Srv(Arc::from(name)));
    }
    let message = format!("the source `srv://`: `{}` is not the name of a service", quoted(rest));
    let help = "write the name of its SRV records, without a port: \"srv://_http._tcp.api.internal\"";
    context.error("invalid-address", value.span(), message, help);
    None
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
                "legal are `http://`, `https://`, `dns://`, `srv://`, `docker://`, `deploy://`, `file:` or none",
            );
            return None;
        }
    };
    // A single slash after the port is how many people write an origin.
    match host::endpoint(rest.strip_suffix('/').filter(|_| text.contains("://")).unwrap_or(rest)) {
        Ok(address) => Some(Backend { address, tls, weight: 1, name: "".into(), backup: false }),
        Err((message, help)) => {
            context.error("invalid-address", value.span(), format!("the backend {message}"), help);
            None
        }
    }
}
