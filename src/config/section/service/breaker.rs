//! `breaker`: when a service that fails as a whole is left alone.

use crate::base::unit::print_duration;
use crate::config::model::{Breaker, Located};
use crate::config::parse::{Context, Table, Value, literal};
use crate::config::setting::{Id, Setting};

/// Reads `breaker`.
pub(super) fn read(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Option<Breaker>>,
) -> Located<Option<Breaker>> {
    let print = |breaker: &Option<Breaker>| match breaker {
        None => literal("off"),
        Some(breaker) => format!(
            "{{ failures = \"{}%\", requests = {}, window = \"{}\", open = \"{}\" }}",
            breaker.failures,
            breaker.requests,
            print_duration(breaker.window),
            print_duration(breaker.open)
        ),
    };
    context.value(
        table,
        "breaker",
        inherited,
        |context, setting, value| context.silent(|context| read_breaker(context, setting, value)),
        print,
    )
}

fn read_breaker(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Option<Breaker>> {
    if value.get_ref().as_str() == Some("off") {
        return Some(None);
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Breaker, String::new(), Some(entries), value.span());
    let failures = context.percent(&table, "failures").into();
    let requests = u32::try_from(context.count(&table, "requests")).unwrap_or(u32::MAX);
    let window = context.duration(&table, "window", None).value;
    let open = context.duration(&table, "open", None).value;
    Some(Some(Breaker { failures, requests, window, open }))
}
