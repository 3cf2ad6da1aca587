//! Bans: `[bans]` of the server and `ban` of a site.

use std::time::Duration;

use super::{mode, service};
use crate::base::unit::{parse_rate, print_duration};
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{BanRule, Bans, Located, Mode, Offence, Origin};
use crate::config::parse::{Context, Table, Value, literal, literals, nearest, quoted};
use crate::config::setting::{Id, Setting};

/// The largest count and time of `after`.
const COUNT_MAX: u32 = 1_000_000;
const PER_MAX: Duration = Duration::from_secs(86_400);

/// Reads `[bans]`.
pub fn of_server(context: &mut Context<'_>, file: &Table<'_>) -> Bans {
    let table = context.table(file, "bans", Id::Bans);
    let list = table.get("file").and_then(|(setting, value)| service::located_path(context, setting, value));
    if let Some(list) = &list {
        context.record(&table, "file", &list.origin, || literal(&list.value.to_string_lossy()));
    }
    let entries = usize::try_from(context.count(&table, "entries")).unwrap_or(usize::MAX);
    let mode = mode::read(context, &table);
    let said = table.has("after");
    for name in ["for", "offences"] {
        if !said && table.has(name) {
            let message = format!("`{name}` does nothing: nobody is banned by offences");
            let help = "add `after = \"20 per 1m\"`, or remove it";
            context.error("conflict", table.span_of(name), message, help);
        }
    }
    let rule = if said { rule(context, &table, mode) } else { None };
    Bans { file: list, mode, entries, rule }
}

/// Reads `ban` of a site.
pub fn of_site(context: &mut Context<'_>, table: &Table<'_>) -> Option<BanRule> {
    if !table.has("ban") {
        return None;
    }
    let fallback = Located { value: None, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        context.silent(|context| {
            let Some(entries) = value.get_ref().as_table() else {
                context.wrong_type(setting.name, &setting.kind.expected(), value);
                return None;
            };
            let table = context.open(Id::Ban, String::new(), Some(entries), value.span());
            if !table.has("after") {
                context.missing(&table, "after");
                return None;
            }
            let mode = mode::read(context, &table);
            rule(context, &table, mode).map(Some)
        })
    };
    context.value(table, "ban", &fallback, read, |rule| rule.as_ref().map_or(String::new(), print)).value
}

fn print(rule: &BanRule) -> String {
    format!(
        "{{ after = \"{} per {}\", for = \"{}\", offences = {}, mode = \"{}\" }}",
        rule.after.count,
        print_duration(rule.after.per),
        print_duration(rule.time),
        literals(rule.offences.iter().map(|offence| offence.as_str())),
        rule.mode.as_str(),
    )
}

fn rule(context: &mut Context<'_>, table: &Table<'_>, mode: Mode) -> Option<BanRule> {
    let (setting, value) = table.get("after")?;
    let text = context.text(setting, value)?;
    let help = "write it like \"20 per 1m\"; at most 1000000 per \"1d\"";
    // A person may say what is counted: `20 offences per 1m`.
    let after = match parse_rate(&text.replacen(" offences ", " ", 1)) {
        Ok(rate) if rate.count <= COUNT_MAX && rate.per <= PER_MAX => Some(rate),
        Ok(_) => {
            let message = format!("`after` is out of range: found {}", quoted(text));
            context.error("out-of-range", value.span(), message, help);
            None
        }
        Err(sentence) => {
            let found = sentence.split(": write").next().unwrap_or_default();
            context.error("invalid-value", value.span(), format!("`after`: {}", quoted(found)), help);
            None
        }
    };
    if let Some(after) = after {
        context.record(table, "after", &context.origin(value.span()), || {
            literal(&format!("{} per {}", after.count, print_duration(after.per)))
        });
    }
    let time = context.duration(table, "for", None).value;
    let fallback =
        Located { value: vec![Offence::RateLimit, Offence::Auth, Offence::Patch], origin: Origin::Default };
    let print = |found: &Vec<Offence>| literals(found.iter().map(|offence| offence.as_str()));
    let offences = context.value(table, "offences", &fallback, offences, print).value;
    Some(BanRule { after: after?, time, offences, mode })
}

fn offences(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Vec<Offence>> {
    let words: Vec<&str> = Offence::ALL.iter().map(|offence| offence.as_str()).collect();
    let mut found = Vec::new();
    for entry in context.array(setting, value)? {
        let Some(text) = entry.get_ref().as_str() else {
            context.wrong_type("an entry of `offences`", &format!("some of {}", literals(&words)), entry);
            continue;
        };
        match Offence::ALL.iter().find(|offence| offence.as_str() == text) {
            Some(offence) if found.contains(offence) => {}
            Some(offence) => found.push(*offence),
            None => {
                let message = format!("`offences`: `{}` is none", quoted(text));
                let at = context.origin(entry.span());
                let help = format!("legal are {}", literals(&words));
                let mut diagnostic = Diagnostic::error("invalid-value", &at, message).help(help);
                if let Some(near) = nearest(text, &words) {
                    diagnostic = diagnostic.label(format!("did you mean \"{near}\"?"));
                }
                context.report(diagnostic);
            }
        }
    }
    if value.get_ref().as_array().is_some_and(|array| array.is_empty()) {
        let help = format!("name some of {}, or remove `offences`", literals(&words));
        context.error("missing", value.span(), "`offences` is empty: nobody would ever be banned", help);
    }
    Some(found)
}
