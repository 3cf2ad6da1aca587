//! `[server.shares]`, `[server.overload]`, `[tenant."…"]`, and the `priority` of a site.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::mode;
use crate::config::model::{Overload, Priority, Shares, Weights};
use crate::config::parse::{Context, Table, literal, quoted};
use crate::config::setting::{Id, Kind};

/// Reads `[server.shares]` and `[tenant."…"]`.
pub fn shares(context: &mut Context<'_>, file: &Table<'_>, server: &Table<'_>) -> Shares {
    let table = context.table(server, "shares", Id::Shares);
    Shares {
        mode: mode::read(context, &table),
        lend: u32::from(context.percent(&table, "lend")),
        wait: context.duration(&table, "wait", None).value,
        in_flight: context
            .count_or(&table, "in_flight")
            .map(|count| u32::try_from(count).unwrap_or(u32::MAX)),
        weights: tenants(context, file),
    }
}

/// Reads `[server.overload]`.
pub fn overload(context: &mut Context<'_>, server: &Table<'_>) -> Overload {
    let table = context.table(server, "overload", Id::Overload);
    Overload {
        mode: mode::read(context, &table),
        memory: context.size_or(&table, "memory", None).value,
        lag: context.duration(&table, "lag", None).value,
        hold: context.duration(&table, "hold", None).value,
    }
}

/// Reads `priority` of a site.
pub fn priority(context: &mut Context<'_>, site: &Table<'_>) -> Priority {
    match context.word(site, "priority", None).value {
        "low" => Priority::Low,
        "high" => Priority::High,
        _ => Priority::Normal,
    }
}

fn tenants(context: &mut Context<'_>, file: &Table<'_>) -> Weights {
    let Some((_, value)) = file.get("tenant") else { return Weights::default() };
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type("tenant", &Kind::Named(Id::Tenant).expected(), value);
        return Weights::default();
    };
    let mut weights = BTreeMap::new();
    for (key, value) in entries.iter() {
        let name = key.get_ref().as_ref();
        if name.is_empty() || name.chars().any(char::is_control) {
            let help = "write the name that its sites have in `tenant`, like [tenant.\"shop-gmbh\"]";
            context.error("invalid-value", key.span(), "a tenant has no name", help);
            continue;
        }
        let Some(entries) = value.get_ref().as_table() else {
            let expected = Kind::Table(Id::Tenant).expected();
            context.wrong_type(&format!("tenant {}", quoted(name)), &expected, value);
            continue;
        };
        let path =
            if context.recorded.is_some() { format!("tenant.{}", literal(name)) } else { String::new() };
        let table = context.open(Id::Tenant, path, Some(entries), key.span());
        let weight = u32::try_from(context.count(&table, "weight")).unwrap_or(u32::MAX);
        weights.insert(Arc::from(name), weight);
    }
    Weights(Arc::new(weights))
}
