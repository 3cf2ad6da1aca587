//! `basic = { … }`: names and passwords.

use crate::base::secret::Secret;
use crate::base::unit::print_duration;
use crate::config::model::{Basic, Located, Origin};
use crate::config::parse::{Context, Table, Value, literal};
use crate::config::section::server::texts;
use crate::config::section::service::located_path;
use crate::config::setting::{Id, Setting};

pub(super) fn read(context: &mut Context<'_>, auth: &Table<'_>) -> Option<Basic> {
    let before = context.errors;
    let table = context.table(auth, "basic", Id::Basic);
    let file = table.get("file").and_then(|(setting, value)| located_path(context, setting, value));
    let users = table.get("users").and_then(|(setting, value)| {
        texts(context, setting, value, |context, entry, text| {
            Some(Located { value: Secret::new(text), origin: context.origin(entry.span()) })
        })
    });
    let users = users.unwrap_or_default();
    let realm = realm(context, &table);
    let remember = context.duration(&table, "remember", None).value;
    if context.errors == before && file.is_none() && users.is_empty() {
        let help = "write file = \"users\", or users = [\"ann:$2y$…\"]; `tidegate hash-password --user ann` makes such a line";
        context.error("missing", table.span.clone(), "`basic` names no user: nobody could come in", help);
    }
    (context.errors == before).then_some(Basic { realm, users, file, remember })
}

/// A text between quotation marks in a field (RFC 9110 section 5.6.4), and in a dialogue of every browser.
pub(super) fn realm(context: &mut Context<'_>, table: &Table<'_>) -> String {
    let name = context.site.as_deref().unwrap_or("tidegate").to_owned();
    let fallback = Located { value: name, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        let text = context.text(setting, value)?;
        let legal = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
        if text.is_empty() || !text.bytes().all(legal) {
            let message = "`realm` is empty, or has a character that a field cannot carry as it is";
            let help = "write letters, digits, spaces and signs other than `\"` and `\\`";
            context.error("invalid-value", value.span(), message, help);
            return None;
        }
        Some(text.to_owned())
    };
    context.value(table, "realm", &fallback, read, |realm| literal(realm)).value
}

pub(super) fn print(said: &Basic) -> String {
    let file = said.file.as_ref().map(|file| format!("file = {}, ", literal(&file.value.to_string_lossy())));
    // The hashes are shown to nobody.
    let users = if said.users.is_empty() { String::new() } else { format!("users = {}, ", said.users.len()) };
    format!(
        "{{ {}{users}realm = {}, remember = {} }}",
        file.unwrap_or_default(),
        literal(&said.realm),
        literal(&print_duration(said.remember))
    )
}
