//! `split`: a share of the requests goes to other backends.

use std::sync::Arc;

use super::balance;
use super::{backend, target::Target};
use crate::config::model::{Backend, Discover, Key, Located};
use crate::config::parse::{Context, Table, Value, literal, quoted};
use crate::config::setting::{Id, Setting};

/// What `split` and `split_by` say.
#[derive(Debug)]
pub(super) struct Said {
    pub by: Option<Key>,
    pub branches: Vec<Branch>,
}

/// One entry.
#[derive(Debug)]
pub(super) struct Branch {
    pub name: Arc<str>,
    pub percent: u32,
    pub header: Option<String>,
    pub cookie: Option<String>,
    pub written: Arc<[Located<Backend>]>,
    pub sources: Arc<[Located<Discover>]>,
}

impl Branch {
    /// Whether any of its backends is reached by TLS.
    pub fn speaks_tls(&self) -> bool {
        self.written.iter().any(|backend| backend.value.tls)
            || self.sources.iter().any(|found| found.value.tls)
    }
}

/// What keeps a client on its side.
const BY: &str = "\"request\", \"client-ip\", \"header:NAME\" or \"cookie:NAME\"";

/// Characters of a branch's name.
const NAME_MAX: usize = 32;

/// Reads `split` and `split_by` of a table that says `backends`; of one that does not, the inherited ones.
pub(super) fn read(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: Option<&Arc<Said>>,
) -> Option<Arc<Said>> {
    let Some((setting, value)) = table.get("split").filter(|_| table.has("backends")) else {
        for name in ["split", "split_by"] {
            let without = if table.has("backends") { "split" } else { "backends" };
            if name != without && table.has(name) {
                let message = format!("`{name}` has no use here without `{without}` beside it");
                let help = "it belongs to the table that says `backends`: it divides their requests";
                context.error("conflict", table.span_of(name), message, help);
            }
        }
        return inherited.filter(|_| !table.has("backends")).cloned();
    };
    let by = table.get("split_by").and_then(|(setting, value)| {
        let text = context.text(setting, value)?;
        if text == "request" { None } else { balance::key(context, value, text, BY) }
    });
    let entries = context.array(setting, value)?;
    let mut branches: Vec<Branch> = Vec::new();
    for entry in entries {
        let Some(found) = context.silent(|context| branch(context, setting, entry)) else { continue };
        if branches.iter().any(|other| other.name == found.name) {
            let message = format!("two parts of `split` have the name `{}`", found.name);
            context.error("duplicate", entry.span(), message, "give each a name of its own");
        }
        branches.push(found);
    }
    let percent: u32 = branches.iter().map(|branch| branch.percent).sum();
    if percent > 100 {
        let message = format!("the parts of `split` make {percent} percent together");
        context.error(
            "out-of-range",
            value.span(),
            message,
            "100 are legal; what is left goes to `backends`",
        );
    }
    let said = Said { by, branches };
    let (origin, by_origin) = (context.origin(value.span()), context.origin(table.span_of("split_by")));
    context.record(table, "split", &origin, || print(&said.branches));
    if let Some(by) = &said.by {
        context.record(table, "split_by", &by_origin, || literal(&balance::print_key(by)));
    }
    (!said.branches.is_empty()).then(|| Arc::new(said))
}

fn print(branches: &[Branch]) -> String {
    let one = |branch: &Branch| {
        let word = |key: &str, name: &Option<String>| {
            name.as_ref().map(|name| format!(", {key} = {}", literal(name))).unwrap_or_default()
        };
        format!(
            "{{ name = {}, percent = {}{}{}, backends = {} }}",
            literal(&branch.name),
            branch.percent,
            word("header", &branch.header),
            word("cookie", &branch.cookie),
            backend::print(&branch.written, &branch.sources)
        )
    };
    format!("[{}]", branches.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn branch(context: &mut Context<'_>, setting: &'static Setting, entry: &Value<'_>) -> Option<Branch> {
    let Some(entries) = entry.get_ref().as_table() else {
        context.wrong_type("an entry of `split`", &setting.kind.expected(), entry);
        return None;
    };
    let table = context.open(Id::Split, String::new(), Some(entries), entry.span());
    let name = branch_name(context, &table);
    let percent = u32::try_from(context.count(&table, "percent")).unwrap_or(u32::MAX);
    let mut word = |key: &str, what: &str| {
        let (setting, value) = table.get(key)?;
        let text = context.text(setting, value)?;
        balance::name(context, value, text, what).map(str::to_owned)
    };
    let (header, cookie) = (word("header", "header field"), word("cookie", "cookie"));
    let Some((setting, value)) = table.get("backends") else {
        context.missing(&table, "backends");
        return None;
    };
    let Some(Target::Backends { written, sources }) = backend::read(context, setting, value) else {
        return None;
    };
    let header = header.map(|name| name.to_lowercase());
    Some(Branch { name: name?, percent, header, cookie, written, sources })
}

/// The name stands behind a route's label, so it must not be a number: `#2` is the second route of a path.
fn branch_name(context: &mut Context<'_>, table: &Table<'_>) -> Option<Arc<str>> {
    let Some((setting, value)) = table.get("name") else {
        context.missing(table, "name");
        return None;
    };
    let text = context.text(setting, value)?;
    let letters = text.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_'));
    if letters && text.len() <= NAME_MAX && text.starts_with(|first: char| first.is_ascii_alphabetic()) {
        return Some(text.into());
    }
    let message = format!("`{}` cannot be the name of a part of `split`", quoted(text));
    let help = "a name begins with a letter and has at most 32 letters, digits, `-` and `_`, like \"canary\"";
    context.error("invalid-name", value.span(), message, help);
    None
}
