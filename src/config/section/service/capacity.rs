//! `capacity`: how much may be in flight, and who waits.

use crate::base::unit::print_duration;
use crate::config::model::{Adaptive, Capacity, Located};
use crate::config::parse::{Context, Table, Value, literal};
use crate::config::setting::{Id, Setting};

/// Reads `capacity`.
pub(super) fn read(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Option<Capacity>>,
) -> Located<Option<Capacity>> {
    context.value(
        table,
        "capacity",
        inherited,
        |context, setting, value| context.silent(|context| read_capacity(context, setting, value)),
        print,
    )
}

fn print(capacity: &Option<Capacity>) -> String {
    let Some(capacity) = capacity else { return literal("off") };
    let mut parts = Vec::new();
    if let Some(cap) = capacity.per_endpoint {
        parts.push(format!("per_endpoint = {cap}"));
    }
    if let Some(cap) = capacity.service {
        parts.push(format!("service = {cap}"));
    }
    parts.push(format!("queue = {}", capacity.queue));
    parts.push(format!("queue_time = \"{}\"", print_duration(capacity.queue_time)));
    if let Some(Adaptive { min, max }) = capacity.adaptive {
        parts.push(format!("adaptive = true, adaptive_min = {min}, adaptive_max = {max}"));
    }
    format!("{{ {} }}", parts.join(", "))
}

fn read_capacity(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Option<Capacity>> {
    if value.get_ref().as_str() == Some("off") {
        return Some(None);
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let before = context.errors;
    let table = context.open(Id::Capacity, String::new(), Some(entries), value.span());
    let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let per_endpoint = context.count_or(&table, "per_endpoint").map(number);
    let service = context.count_or(&table, "service").map(number);
    let queue = number(context.count(&table, "queue"));
    let queue_time = context.duration(&table, "queue_time", None).value;
    let adaptive = context.flag(&table, "adaptive");
    let min = number(context.count(&table, "adaptive_min"));
    let max = number(context.count(&table, "adaptive_max"));
    let bounds = ["adaptive_min", "adaptive_max"].into_iter().find(|name| table.has(name));
    if let (Some(name), false) = (bounds, adaptive) {
        let message = format!("`{name}` does nothing without `adaptive = true`");
        context.error("conflict", table.span_of(name), message, "add `adaptive = true`, or remove it");
    }
    if min > max {
        let message = "`adaptive_min` is larger than `adaptive_max`";
        context.error("conflict", table.span_of("adaptive_min"), message, "make one of them fit the other");
    }
    if context.errors > before {
        return None;
    }
    if per_endpoint.is_none() && service.is_none() && !adaptive {
        let message = "`capacity` bounds nothing";
        let help = "say `per_endpoint`, `service` or `adaptive = true`, or capacity = \"off\"";
        context.error("missing", value.span(), message, help);
        return None;
    }
    let adaptive = adaptive.then_some(Adaptive { min, max });
    Some(Some(Capacity { per_endpoint, service, queue, queue_time, adaptive }))
}
