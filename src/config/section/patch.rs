//! `[patches]`, and `patches` of a site.

use super::server::texts;
use crate::config::model::{Located, Mode, Origin, Patches, Severity, SitePatches};
use crate::config::parse::{Context, Table, Value, literal, literals, quoted};
use crate::config::setting::{Id, Setting};

/// Bytes of a public key of minisign in base64, and how each begins.
const KEY_BYTES: usize = 56;
const KEY_BEGINS: &str = "RW";

/// Reads the section; `None` where it is absent.
pub fn read(context: &mut Context<'_>, file: &Table<'_>) -> Option<Patches> {
    if !file.has("patches") {
        return None;
    }
    let table = context.table(file, "patches", Id::Patches);
    let folder = context.absolute(table.default_text("folder"));
    let fallback = Located { value: folder, origin: Origin::Default };
    let print = |path: &std::path::PathBuf| literal(&path.to_string_lossy());
    let folder =
        context.value(&table, "folder", &fallback, |c, setting, value| c.read_path(setting, value), print);
    let fallback = Located { value: Vec::new(), origin: Origin::Default };
    let print = |keys: &Vec<Located<String>>| literals(keys.iter().map(|key| &key.value));
    let keys = context.value(&table, "keys", &fallback, keys, print).value;
    let severity = context.word(&table, "severity", None).value;
    let severity = Severity::ALL.into_iter().find(|known| known.as_str() == severity);
    Some(Patches {
        origin: context.origin(table.span.clone()),
        builtin: context.flag(&table, "builtin"),
        folder: folder.value,
        keys,
        allow_unsigned: context.flag(&table, "allow_unsigned"),
        mode: mode(context.word(&table, "mode", None).value),
        severity: severity.unwrap_or(Severity::Medium),
        body: usize::try_from(context.size(&table, "body")).unwrap_or(0),
    })
}

fn mode(word: &str) -> Mode {
    // What is not known yet is tried first.
    if word == Mode::Enforce.as_str() { Mode::Enforce } else { Mode::Shadow }
}

fn keys(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Vec<Located<String>>> {
    texts(context, setting, value, |context, entry, text| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=');
        if text.len() != KEY_BYTES || !text.starts_with(KEY_BEGINS) || !text.bytes().all(legal) {
            let message = format!("`{}` is no public key of minisign", quoted(text));
            let help = "take the second line of the .pub file: 56 characters that begin with `RW`";
            context.error("invalid-value", entry.span(), message, help);
            return None;
        }
        Some(Located { value: text.to_owned(), origin: context.origin(entry.span()) })
    })
}

/// Reads `patches` of a site.
pub fn of_site(context: &mut Context<'_>, table: &Table<'_>) -> SitePatches {
    let fallback = Located { value: SitePatches::default(), origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        context.silent(|context| read_site(context, setting, value))
    };
    context.value(table, "patches", &fallback, read, print).value
}

fn print(patches: &SitePatches) -> String {
    if patches.none {
        return literal("off");
    }
    let mode = patches.mode.map(|mode| format!("mode = {}", literal(mode.as_str())));
    let off = (!patches.off.is_empty())
        .then(|| format!("off = {}", literals(patches.off.iter().map(|name| &name.value))));
    let said: Vec<String> = mode.into_iter().chain(off).collect();
    if said.is_empty() { "as [patches] says".into() } else { format!("{{ {} }}", said.join(", ")) }
}

fn read_site(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<SitePatches> {
    if value.get_ref().as_str() == Some("off") {
        return Some(SitePatches { none: true, ..SitePatches::default() });
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::SitePatches, String::new(), Some(entries), value.span());
    let inherited = Located { value: "", origin: Origin::Default };
    let said = context.word(&table, "mode", Some(&inherited)).value;
    let fallback = Located { value: Vec::new(), origin: Origin::Default };
    let off = context.value(&table, "off", &fallback, names, |names| print_names(names)).value;
    Some(SitePatches { none: false, off, mode: (!said.is_empty()).then(|| mode(said)) })
}

fn print_names(names: &[Located<String>]) -> String {
    literals(names.iter().map(|name| &name.value))
}

/// Names that may be of packs to come are legal: only their shape is checked here. Whether any pack has them is looked at
/// where packs are loaded.
fn names(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Vec<Located<String>>> {
    texts(context, setting, value, |context, entry, text| {
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > 64 || !text.bytes().all(legal) {
            let message = format!("`{}` is no id of a rule, no CVE and no name of a pack", quoted(text));
            let help =
                "`tidegate patch list` shows them: like \"log4shell\", \"CVE-2021-44228\" or \"starter\"";
            context.error("invalid-value", entry.span(), message, help);
            return None;
        }
        Some(Located { value: text.to_owned(), origin: context.origin(entry.span()) })
    })
}
