//! `eject` and `panic`: what takes a backend out that fails requests, and when nobody is taken out any more.

use super::Located;
use crate::base::unit::print_duration;
use crate::config::model::{Eject, Origin, Statuses};
use crate::config::parse::{Context, Table, Value, literal};
use crate::config::setting::{Id, Kind, Setting};

/// Reads `eject`.
pub(super) fn read(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Option<Eject>>,
) -> Located<Option<Eject>> {
    context.value(
        table,
        "eject",
        inherited,
        |context, setting, value| context.silent(|context| read_eject(context, setting, value)),
        |eject: &Option<Eject>| eject.as_ref().map_or_else(|| literal("off"), print),
    )
}

/// Reads `panic`.
pub(super) fn read_panic(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Option<u8>>,
) -> Located<Option<u8>> {
    context.percent_or(table, "panic", inherited)
}

fn read_eject(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Option<Eject>> {
    if value.get_ref().as_str() == Some("off") {
        return Some(None);
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Eject, String::new(), Some(entries), value.span());
    let usual = Eject::default();
    let none = Located { value: None, origin: Origin::Default };
    let eject = Eject {
        consecutive: count_or_off(context, &table, "consecutive", usual.consecutive),
        error_rate: context.percent_or(&table, "error_rate", &none).value,
        latency: count_or_off(context, &table, "latency", usual.latency),
        status: statuses(context, &table, "status"),
        window: context.duration(&table, "window", None).value,
        min_requests: u32::try_from(context.count(&table, "min_requests")).unwrap_or(u32::MAX),
        time: context.duration(&table, "time", None).value,
        time_max: context.duration(&table, "time_max", None).value,
        max_share: context.percent(&table, "max_share"),
    };
    if eject.time_max < eject.time {
        // The default of `time_max` follows a long `time`; a short one that was written is a mistake.
        if table.has("time_max") {
            let (most, first) = (print_duration(eject.time_max), print_duration(eject.time));
            let message = format!("`time_max` is {most}, but the first time already is {first}");
            let help = "write a `time_max` that is at least `time`";
            context.error("conflict", table.span_of("time_max"), message, help);
        }
        return Some(Some(Eject { time_max: eject.time, ..eject }));
    }
    Some(Some(eject))
}

/// A number, or `"off"`; the fallback is the table's default.
fn count_or_off(
    context: &mut Context<'_>,
    table: &Table<'_>,
    name: &str,
    fallback: Option<u32>,
) -> Option<u32> {
    let Some((setting, value)) = table.get(name) else { return fallback };
    if value.get_ref().as_str() == Some("off") {
        return None;
    }
    match context.read_count(setting, value) {
        Some(count) => u32::try_from(count).ok(),
        None => fallback,
    }
}

/// Numbers and ranges, of the setting `name`.
pub(in crate::config::section) fn statuses(
    context: &mut Context<'_>,
    table: &Table<'_>,
    name: &str,
) -> Statuses {
    let default = || {
        let text = table.default_text(name).trim_matches(['[', ']']);
        Statuses(range(text.trim_matches('"')).into_iter().collect())
    };
    let Some((setting, value)) = table.get(name) else { return default() };
    let Some(entries) = context.array(setting, value) else { return default() };
    let Kind::Statuses(_, low, high) = setting.kind else { return default() };
    let mut found = Vec::with_capacity(entries.len());
    for entry in entries {
        let number = entry.get_ref().as_integer().map(|integer| {
            let number = u64::from_str_radix(integer.as_str(), integer.radix());
            number.map_or_else(|_| integer.to_string(), |number| number.to_string())
        });
        let text = number.or_else(|| entry.get_ref().as_str().map(str::to_owned));
        let Some(text) = text else {
            context.wrong_type(
                &format!("an entry of `{name}`"),
                "a status like 304, or a range like \"200-299\"",
                entry,
            );
            continue;
        };
        match range(&text).filter(|(first, last)| low <= *first && first <= last && *last <= high) {
            Some(range) => found.push(range),
            None => {
                let message = format!(
                    "`{name}`: `{}` is no status and no range of them",
                    crate::config::parse::quoted(&text)
                );
                let help =
                    format!("write a number from {low} to {high}, or a range like \"{low}-{}\"", low + 99);
                context.error("invalid-value", entry.span(), message, help);
            }
        }
    }
    if entries.is_empty() && !default().0.is_empty() {
        let help = format!("name at least one status, like {}", table.default_text(name));
        context.error("missing", value.span(), "`status` is empty: no answer would be a good one", help);
    }
    Statuses(found)
}

fn range(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
    match text.split_once('-') {
        Some((first, last)) => Some((number(first)?, number(last)?)),
        None => number(text).map(|one| (one, one)),
    }
}

/// Statuses as TOML writes them.
pub(in crate::config::section) fn print_statuses(statuses: &Statuses) -> String {
    let one = |(low, high): &(u16, u16)| match low == high {
        true => low.to_string(),
        false => format!("\"{low}-{high}\""),
    };
    format!("[{}]", statuses.0.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn print(eject: &Eject) -> String {
    let number = |count: Option<u32>| count.map_or_else(|| literal("off"), |count| count.to_string());
    let rate = eject.error_rate.map_or_else(|| literal("off"), |rate| format!("\"{rate}%\""));
    format!(
        "{{ consecutive = {}, error_rate = {rate}, latency = {}, status = {}, window = \"{}\", min_requests = {}, \
         time = \"{}\", time_max = \"{}\", max_share = \"{}%\" }}",
        number(eject.consecutive),
        number(eject.latency),
        print_statuses(&eject.status),
        print_duration(eject.window),
        eject.min_requests,
        print_duration(eject.time),
        print_duration(eject.time_max),
        eject.max_share,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::unit::{parse_duration, parse_percent};
    use crate::config::setting::{Fallback, section};

    #[test]
    fn the_default_is_the_one_of_the_settings_table() {
        let said = |name: &str| match section(Id::Eject).setting(name).map(|setting| setting.default) {
            Some(Fallback::Value(text)) => text.trim_matches('"').to_owned(),
            _ => panic!("{name}"),
        };
        let usual = Eject::default();
        let number = |count: Option<u32>| count.map_or("off".to_owned(), |count| count.to_string());
        assert_eq!(number(usual.consecutive), said("consecutive"));
        assert_eq!((usual.error_rate, said("error_rate").as_str()), (None, "off"));
        assert_eq!(number(usual.latency), said("latency"));
        assert_eq!(print_statuses(&usual.status), said("status"));
        for (time, name) in [(usual.window, "window"), (usual.time, "time"), (usual.time_max, "time_max")] {
            assert_eq!(Ok(time), parse_duration(&said(name)), "{name}");
        }
        assert_eq!(usual.min_requests.to_string(), said("min_requests"));
        assert_eq!(Ok(usual.max_share), parse_percent(&said("max_share")));
        assert_eq!(print(&usual).matches(" = ").count(), section(Id::Eject).settings.len());
    }

    #[test]
    fn ranges_are_read_strictly() {
        assert_eq!((range("304"), range("200-299")), (Some((304, 304)), Some((200, 299))));
        for text in ["", "-", "2xx", "200-", "-299", "+200", "200-+299", "70000", "200 - 299"] {
            assert_eq!(range(text), None, "{text}");
        }
    }
}
