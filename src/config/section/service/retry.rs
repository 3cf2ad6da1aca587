//! `retry`: what is sent again when a backend fails.

use crate::config::diagnostic::Diagnostic;
use crate::config::model::{Cause, Located, Retry};
use crate::config::parse::print_duration_or;
use crate::config::parse::{Context, Table, Value, literal, literals, nearest, quoted};
use crate::config::setting::{Id, Setting};

/// Reads `retry`.
pub(super) fn read(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Retry>,
) -> Located<Retry> {
    context.value(
        table,
        "retry",
        inherited,
        |context, setting, value| context.silent(|context| read_retry(context, setting, value)),
        print,
    )
}

fn print(retry: &Retry) -> String {
    if retry.tries == 1 {
        return literal("off");
    }
    let words = Cause::ALL.iter().filter(|(_, cause)| retry.on.contains(cause)).map(|(word, _)| word);
    format!(
        "{{ tries = {}, budget = \"{}%\", floor = {}, per_try = \"{}\", total = \"{}\", on = {} }}",
        retry.tries,
        retry.budget,
        retry.floor,
        print_duration_or(retry.per_try, "off"),
        print_duration_or(retry.total, "off"),
        literals(words)
    )
}

fn read_retry(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Retry> {
    if value.get_ref().as_str() == Some("off") {
        return Some(Retry::off());
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Retry, String::new(), Some(entries), value.span());
    let number = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
    let tries = number(context.count(&table, "tries"));
    let budget = context.percent(&table, "budget").into();
    let floor = number(context.count(&table, "floor"));
    let per_try = context.duration_or(&table, "per_try");
    let total = context.duration_or(&table, "total");
    let on = match table.get("on") {
        Some((setting, value)) => causes(context, setting, value),
        None => Retry::default().on,
    };
    if per_try.is_some() && !on.contains(&Cause::Timeout) {
        let message = "`per_try` does nothing: `on` does not say \"timeout\"";
        let help = "add \"timeout\" to `on`, or remove `per_try`";
        context.error("conflict", table.span_of("per_try"), message, help);
    }
    if let (Some(one), Some(all)) = (per_try, total)
        && one >= all
    {
        let message = "`per_try` is not shorter than `total`: there would be no time for another try";
        context.error(
            "conflict",
            table.span_of("per_try"),
            message,
            "make `per_try` shorter, or `total` longer",
        );
    }
    if budget == 0 && floor == 0 && tries > 1 {
        let origin = context.origin(table.span_of("budget"));
        let message = "`budget` and `floor` are both 0: nothing is ever tried again";
        let warning = Diagnostic::warning("unused", &origin, message);
        context.report(warning.help("say retry = \"off\" if that is meant"));
    }
    Some(Retry { tries, budget, floor, per_try, total, on })
}

fn causes(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Vec<Cause> {
    let mut found = Vec::new();
    let words: Vec<&str> = Cause::ALL.iter().map(|(word, _)| *word).collect();
    for entry in context.array(setting, value).unwrap_or_default() {
        let Some(text) = entry.get_ref().as_str() else {
            context.wrong_type("an entry of `on`", &format!("one of {}", literals(&words)), entry);
            continue;
        };
        match Cause::ALL.iter().find(|(word, _)| *word == text) {
            Some((_, cause)) if found.contains(cause) => {}
            Some((_, cause)) => found.push(*cause),
            None => {
                let message = format!("`on`: nothing is tried again after `{}`", quoted(text));
                let mut diagnostic =
                    Diagnostic::error("invalid-value", &context.origin(entry.span()), message)
                        .help(format!("legal are {}", literals(&words)));
                if let Some(near) = nearest(text, &words) {
                    diagnostic = diagnostic.label(format!("did you mean \"{near}\"?"));
                }
                context.report(diagnostic);
            }
        }
    }
    found
}
