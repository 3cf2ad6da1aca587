//! `client_cert = { … }`: the user by a client certificate.

use crate::config::model::{CertField, CertUser};
use crate::config::parse::{Context, Table, literal, quoted};
use crate::config::setting::{Id, Kind};

/// Bytes of a user's name; what says who somebody is must fit into a field and a line of the log.
const USER_BYTES_MAX: usize = 256;

pub(super) fn read(context: &mut Context<'_>, auth: &Table<'_>) -> Option<CertUser> {
    let before = context.errors;
    let table = context.table(auth, "client_cert", Id::CertUser);
    if !table.has("from") {
        context.missing(&table, "from");
    }
    let word = context.word(&table, "from", None).value;
    let from = CertField::ALL.iter().find(|(known, _)| *known == word).map(|(_, field)| *field);
    let users = pairs(context, &table, "users");
    for (_, user) in &users {
        if user.is_empty() || user.len() > USER_BYTES_MAX || user.chars().any(char::is_control) {
            let message = format!("`users`: `{}` cannot name a user", quoted(user));
            let help = "write a name of 1 to 256 bytes without control characters";
            context.error("invalid-value", table.span_of("users"), message, help);
        }
    }
    (context.errors == before).then_some(CertUser { from: from?, users })
}

/// A table of texts.
pub(super) fn pairs(context: &mut Context<'_>, table: &Table<'_>, name: &str) -> Vec<(String, String)> {
    let Some((setting, value)) = table.get(name) else { return Vec::new() };
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(name, &setting.kind.expected(), value);
        return Vec::new();
    };
    if let Kind::Pairs(max) = setting.kind
        && entries.len() > max
    {
        let message = format!("`{name}` has {} entries, legal are {max}", entries.len());
        context.error("too-many", value.span(), message, "");
        return Vec::new();
    }
    if entries.is_empty() {
        let help = format!("remove `{name}`, or name at least one");
        context.error("missing", value.span(), format!("`{name}` is empty"), help);
    }
    let mut found = Vec::new();
    for (key, value) in entries {
        match value.get_ref().as_str() {
            Some(text) => found.push((key.get_ref().to_string(), text.to_owned())),
            None => context.wrong_type(&quoted(key.get_ref()), "a text in quotes", value),
        }
    }
    found
}

pub(super) fn print(said: &CertUser) -> String {
    let word = CertField::ALL.iter().find(|(_, field)| *field == said.from).map_or("", |(word, _)| word);
    let pairs = said.users.iter().map(|(key, user)| format!("{} = {}", literal(key), literal(user)));
    let pairs: Vec<String> = pairs.collect();
    let users =
        if pairs.is_empty() { String::new() } else { format!(", users = {{ {} }}", pairs.join(", ")) };
    format!("{{ from = {}{users} }}", literal(word))
}
