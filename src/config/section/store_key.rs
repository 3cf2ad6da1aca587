//! `store_key` in `[acme]`: where the keys of the certificate store are. They are read by whoever opens the store.

use std::collections::HashSet;

use crate::config::model::{KeySource, StoreKey};
use crate::config::parse::{Context, Table, Value, literal, quoted};
use crate::config::setting::Id;

/// Reads the table; `None` where it is absent or wrong.
pub fn read(context: &mut Context<'_>, acme: &Table<'_>) -> Option<StoreKey> {
    let (setting, value) = acme.get("store_key")?;
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let origin = context.origin(value.span());
    let found = context.silent(|context| {
        let table = context.open(Id::StoreKey, String::new(), Some(entries), value.span());
        let current = source(context, &table);
        let previous = previous(context, &table)?;
        Some(StoreKey { current: current?, previous })
    })?;
    let mut seen = HashSet::new();
    let all = std::iter::once(&found.current).chain(&found.previous);
    if let Some(twice) = all.clone().find(|source| !seen.insert(*source)) {
        let message = format!("{} is named twice in `store_key`", lower_first(&twice.to_string()));
        context.error("duplicate", value.span(), message, "keep it where it belongs");
    }
    // Watched: a key that is put in its place, or replaced, is taken over.
    let files = all.filter_map(|source| match source {
        KeySource::File(path) => Some(path.clone()),
        KeySource::Env(_) => None,
    });
    context.files.extend(files);
    context.record(acme, "store_key", &origin, || print(&found));
    Some(found)
}

fn previous(context: &mut Context<'_>, table: &Table<'_>) -> Option<Vec<KeySource>> {
    let Some((setting, value)) = table.get("previous") else { return Some(Vec::new()) };
    let mut found = Vec::new();
    for entry in context.array(setting, value)? {
        let Some(entries) = entry.get_ref().as_table() else {
            context.wrong_type("an entry of `previous`", "{ file = \"…\" } or { env = \"…\" }", entry);
            return None;
        };
        let table = context.open(Id::FormerKey, String::new(), Some(entries), entry.span());
        found.push(source(context, &table)?);
    }
    Some(found)
}

/// `file` or `env`: exactly one of them.
fn source(context: &mut Context<'_>, table: &Table<'_>) -> Option<KeySource> {
    let legal = "write { file = \"store.key\" } or { env = \"TIDEGATE_STORE_KEY\" }";
    match (table.get("file"), table.get("env")) {
        (Some((setting, value)), None) => context.read_path(setting, value).map(KeySource::File),
        (None, Some((setting, value))) => {
            let name = context.text(setting, value)?.to_owned();
            variable(context, value, name)
        }
        (Some(_), Some(_)) => {
            let message = "a key is in a file or in the environment, not in both";
            context.error("conflict", table.span_of("env"), message, legal);
            None
        }
        (None, None) => {
            context.error("missing", table.span.clone(), "it is not said where the key is", legal);
            None
        }
    }
}

fn variable(context: &mut Context<'_>, value: &Value<'_>, name: String) -> Option<KeySource> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if name.is_empty() || !name.bytes().all(legal) || name.starts_with(|c: char| c.is_ascii_digit()) {
        let message = format!("`{}` is not the name of an environment variable", quoted(&name));
        // Whoever writes the key itself here must not find it in a log.
        let message = if name.len() >= 32 {
            "`env` is not the name of an environment variable".to_owned()
        } else {
            message
        };
        let help = "write its name, like \"TIDEGATE_STORE_KEY\"; the key itself does not belong in this file";
        context.error("invalid-value", value.span(), message, help);
        return None;
    }
    Some(KeySource::Env(name))
}

fn lower_first(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

fn print(key: &StoreKey) -> String {
    let source = |source: &KeySource| match source {
        KeySource::File(path) => format!("file = {}", literal(&path.to_string_lossy())),
        KeySource::Env(name) => format!("env = {}", literal(name)),
    };
    if key.previous.is_empty() {
        return format!("{{ {} }}", source(&key.current));
    }
    let previous: Vec<_> = key.previous.iter().map(|former| format!("{{ {} }}", source(former))).collect();
    format!("{{ {}, previous = [{}] }}", source(&key.current), previous.join(", "))
}
