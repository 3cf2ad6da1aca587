//! Header fields: conditions of a route on fields and query parameters, and edits.

use std::collections::HashSet;

use http::{HeaderName, HeaderValue};
use regex::RegexBuilder;
use toml::de::DeValue;

use super::server::texts;
use crate::base::template::{self, Variable};
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{FieldCondition, FieldTest, HeaderEdits, Located, Origin};
use crate::config::parse::{Context, Table, Value, literal, literals, nearest, quoted};
use crate::config::setting::{Id, Kind, Setting};

/// Bytes of memory a compiled regular expression may take.
pub const REGEX_BYTES_MAX: usize = 1 << 20;
/// Bytes of a regular expression's text, and expressions of one site: together they bound the time that checking a
/// hostile site takes.
const REGEX_TEXT_MAX: usize = 4_096;
const REGEXES_MAX: usize = 256;
/// Bytes of a header field's value.
const FIELD_VALUE_MAX: usize = 8_192;

/// Fields that frame the message or belong to one connection (RFC 9110 section 7.6.1, RFC 9112 section 6): Tidegate
/// writes them itself, and an edit would make two readers disagree about where a message ends.
const FRAMING: &[&str] = &[
    "connection",
    "content-length",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Whether a field frames the message or belongs to one connection.
pub(super) fn frames(name: &str) -> bool {
    FRAMING.contains(&name)
}

/// Compiles a regular expression only to learn whether it is one.
pub fn regex(context: &mut Context<'_>, name: &str, value: &Value<'_>, text: &str) -> Option<regex::Regex> {
    context.regexes += 1;
    if text.len() > REGEX_TEXT_MAX || context.regexes > REGEXES_MAX {
        let message = format!("`{name}`: this regular expression is one too many, or too long");
        let help =
            format!("a site has at most {REGEXES_MAX} of them, each of at most {REGEX_TEXT_MAX} bytes");
        context.error("too-many", value.span(), message, help);
        return None;
    }
    match RegexBuilder::new(text).size_limit(REGEX_BYTES_MAX).build() {
        Ok(regex) => Some(regex),
        Err(error) => {
            let help = match &error {
                regex::Error::CompiledTooBig(_) => {
                    "it is too large: simplify it, above all counted repetitions".to_owned()
                }
                other => {
                    // The last line says what is wrong; those before draw a picture that the underline replaces.
                    let sentence = other.to_string();
                    let last = sentence.lines().last().unwrap_or_default();
                    last.trim().trim_start_matches("error: ").to_owned()
                }
            };
            let message = format!("`{name}`: `{}` is not a regular expression", quoted(text));
            context.error("invalid-regex", value.span(), message, help);
            None
        }
    }
}

/// Reads `headers` or `query` of a route.
pub fn conditions(context: &mut Context<'_>, table: &Table<'_>, name: &'static str) -> Vec<FieldCondition> {
    let fallback = Located { value: Vec::new(), origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        let Some(entries) = value.get_ref().as_table() else {
            context.wrong_type(name, &setting.kind.expected(), value);
            return None;
        };
        if let Kind::Conditions(max) = setting.kind
            && entries.len() > max
        {
            let message = format!("`{name}` has {} entries, legal are {max}", entries.len());
            context.error("too-many", value.span(), message, "");
            return None;
        }
        let mut found = Vec::new();
        for (key, value) in entries {
            let field = match name {
                "headers" => field_name(context, key.span(), key.get_ref()),
                _ => Some(key.get_ref().to_string()),
            };
            let test = test(context, setting, key.get_ref(), value);
            found.extend(field.zip(test).map(|(name, test)| FieldCondition { name, test }));
        }
        Some(found)
    };
    context.value(table, name, &fallback, read, |list: &Vec<FieldCondition>| print_conditions(list)).value
}

fn test(context: &mut Context<'_>, setting: &Setting, name: &str, value: &Value<'_>) -> Option<FieldTest> {
    match value.get_ref() {
        DeValue::Boolean(true) => Some(FieldTest::Present),
        DeValue::Boolean(false) => Some(FieldTest::Absent),
        DeValue::String(text) => match text.strip_prefix('~') {
            Some(pattern) => {
                regex(context, name, value, pattern).map(|_| FieldTest::Regex(pattern.to_owned()))
            }
            None => Some(FieldTest::Equals(text.to_string())),
        },
        _ => {
            context.wrong_type(&quoted(name), &setting.kind.expected(), value);
            None
        }
    }
}

fn print_conditions(conditions: &[FieldCondition]) -> String {
    if conditions.is_empty() {
        return "{}".into();
    }
    let one = |condition: &FieldCondition| {
        let test = match &condition.test {
            FieldTest::Present => "true".into(),
            FieldTest::Absent => "false".into(),
            FieldTest::Equals(text) => literal(text),
            FieldTest::Regex(text) => literal(&format!("~{text}")),
        };
        format!("{} = {test}", literal(&condition.name))
    };
    format!("{{ {} }}", conditions.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn field_name(context: &mut Context<'_>, span: std::ops::Range<usize>, text: &str) -> Option<String> {
    match HeaderName::from_bytes(text.as_bytes()) {
        Ok(name) => Some(name.as_str().to_owned()),
        Err(_) => {
            let message = format!("`{}` is not a header field name", quoted(text));
            context.error(
                "invalid-header",
                span,
                message,
                "a name has letters, digits and `-` only, like \"x-request-source\"",
            );
            None
        }
    }
}

/// Reads `request_headers` or `response_headers`; `inherited` stands in for none.
pub fn edits(
    context: &mut Context<'_>,
    table: &Table<'_>,
    name: &'static str,
    inherited: Option<&Located<HeaderEdits>>,
) -> Located<HeaderEdits> {
    let fallback =
        inherited.cloned().unwrap_or(Located { value: HeaderEdits::default(), origin: Origin::Default });
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        let Some(entries) = value.get_ref().as_table() else {
            context.wrong_type(name, &setting.kind.expected(), value);
            return None;
        };
        let table = context.open(Id::Edits, String::new(), Some(entries), value.span());
        let remove = table.get("remove").and_then(|(setting, value)| {
            texts(context, setting, value, |context, entry, text| {
                editable(context, name, "remove", entry.span(), text)
            })
        });
        Some(HeaderEdits {
            remove: remove.unwrap_or_default(),
            set: pairs(context, &table, name, "set"),
            add: pairs(context, &table, name, "add"),
        })
    };
    context.value(table, name, &fallback, read, print_edits)
}

fn pairs(
    context: &mut Context<'_>,
    table: &Table<'_>,
    place: &str,
    action: &'static str,
) -> Vec<(String, String)> {
    let Some((setting, value)) = table.get(action) else { return Vec::new() };
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(action, &setting.kind.expected(), value);
        return Vec::new();
    };
    if let Kind::Pairs(max) = setting.kind
        && entries.len() > max
    {
        context.error(
            "too-many",
            value.span(),
            format!("`{action}` has {} entries, legal are {max}", entries.len()),
            "",
        );
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut seen = HashSet::new();
    for (key, value) in entries {
        let name = editable(context, place, action, key.span(), key.get_ref());
        let Some(text) = value.get_ref().as_str() else {
            context.wrong_type(&quoted(key.get_ref()), "a text in quotes", value);
            continue;
        };
        if HeaderValue::from_str(text).is_err() || !text.is_ascii() || text.len() > FIELD_VALUE_MAX {
            let message = format!("the value of `{}` is not legal in a header field", quoted(key.get_ref()));
            context.error(
                "invalid-header",
                value.span(),
                message,
                "write visible ASCII characters, spaces and tabs only, no line break, at most 8192 bytes",
            );
            continue;
        }
        if let Err(word) = template::parse(text) {
            unknown_variable(context, value, key.get_ref(), &word);
            continue;
        }
        let Some(name) = name else { continue };
        if !seen.insert(name.clone()) {
            let message = format!("`{name}` is there twice; header field names are the same in capitals");
            context.error("duplicate", key.span(), message, "keep one of them");
            continue;
        }
        found.push((name, text.to_owned()));
    }
    found
}

fn unknown_variable(context: &mut Context<'_>, value: &Value<'_>, field: &str, word: &str) {
    let words: Vec<&str> = Variable::ALL.iter().map(|(word, ..)| *word).collect();
    let message =
        format!("the value of `{}` has `{{{}}}`, which is no variable", quoted(field), quoted(word));
    let help = format!("variables are {}; `{{{{{}}}}}` is the text itself", words.join(", "), quoted(word));
    let mut diagnostic =
        Diagnostic::error("invalid-header", &context.origin(value.span()), message).help(help);
    if let Some(near) = nearest(word, &words) {
        diagnostic = diagnostic.label(format!("did you mean `{{{near}}}`?"));
    }
    context.report(diagnostic);
}

/// A field name that may be edited.
fn editable(
    context: &mut Context<'_>,
    place: &str,
    action: &str,
    span: std::ops::Range<usize>,
    text: &str,
) -> Option<String> {
    let name = field_name(context, span.clone(), text)?;
    let framing = FRAMING.contains(&name.as_str());
    // A request has exactly one Host (RFC 9112 section 3.2): it may be replaced, not removed or doubled.
    let host = name == "host" && (place == "response_headers" || action != "set");
    if framing || host {
        let help = if host && place == "request_headers" {
            "a request has exactly one `host`: use `set` to replace it"
        } else if host {
            "`host` belongs to requests: remove this edit"
        } else {
            "Tidegate writes this field itself, because it frames the message or belongs to one connection"
        };
        context.error("invalid-header", span, format!("`{name}` cannot be edited in {place}"), help);
        return None;
    }
    Some(name)
}

fn print_edits(edits: &HeaderEdits) -> String {
    let pairs = |list: &[(String, String)]| {
        let all: Vec<String> =
            list.iter().map(|(name, value)| format!("{} = {}", literal(name), literal(value))).collect();
        format!("{{ {} }}", all.join(", "))
    };
    let mut parts = Vec::new();
    if !edits.remove.is_empty() {
        parts.push(format!("remove = {}", literals(&edits.remove)));
    }
    if !edits.set.is_empty() {
        parts.push(format!("set = {}", pairs(&edits.set)));
    }
    if !edits.add.is_empty() {
        parts.push(format!("add = {}", pairs(&edits.add)));
    }
    if parts.is_empty() { "{}".into() } else { format!("{{ {} }}", parts.join(", ")) }
}
