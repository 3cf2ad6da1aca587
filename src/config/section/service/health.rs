//! `health`: active health checks.

use crate::base::unit::print_duration;
use crate::config::model::{Health, Located};
use crate::config::parse::{Context, Table, Value, literal, quoted};
use crate::config::setting::{Id, Setting};

/// Reads `health`.
pub(super) fn read(
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
