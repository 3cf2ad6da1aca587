//! `backends`: addresses, with weights.

use std::collections::HashSet;

use super::target::Target;
use crate::config::model::{Backend, Located};
use crate::config::parse::{Context, Value, quoted};
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
