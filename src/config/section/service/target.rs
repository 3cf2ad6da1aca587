//! Where a site or a route leads: backends, a redirect or a fixed answer.

use std::sync::Arc;

use http::{HeaderValue, Uri};

use super::backend;
use crate::config::model::{Backend, Discover, Located};
use crate::config::parse::{Context, Table, Value, literal, quoted};
use crate::config::setting::{Id, Setting};

/// Where requests go.
#[derive(Debug, Clone)]
pub enum Target {
    /// To backends; shared, because many routes may inherit them.
    Backends { written: Arc<[Located<Backend>]>, sources: Arc<[Located<Discover>]> },
    /// Elsewhere.
    Redirect { to: String, status: u16 },
    /// Nowhere: a fixed answer.
    Respond { status: u16, body: String, content_type: String },
}

/// Reads `backends`, `redirect` or `respond`: at most one of them.
pub(super) fn read(context: &mut Context<'_>, table: &Table<'_>) -> Option<Located<Target>> {
    let said: Vec<&str> =
        ["backends", "redirect", "respond"].into_iter().filter(|name| table.has(name)).collect();
    for pair in said.windows(2) {
        if let [first, second] = pair {
            let message = format!("`{first}` and `{second}` exclude each other");
            context.error(
                "conflict",
                table.span_of(second),
                message,
                "a request goes to one place: keep one of them",
            );
        }
    }
    let mut found = None;
    for name in said {
        let (setting, value) = table.get(name)?;
        let target = match name {
            "backends" => backend::read(context, setting, value),
            "redirect" => redirect(context, setting, value),
            _ => respond(context, setting, value),
        };
        let Some(target) = target else { continue };
        let origin = context.origin(value.span());
        context.record(table, name, &origin, || print_target(&target));
        found = found.or(Some(Located { value: target, origin }));
    }
    found
}

fn print_target(target: &Target) -> String {
    match target {
        Target::Backends { written, sources } => backend::print(written, sources),
        Target::Redirect { to, status } => format!("{{ to = {}, status = {status} }}", literal(to)),
        Target::Respond { status, body, content_type } => {
            format!(
                "{{ status = {status}, body = {}, content_type = {} }}",
                literal(&quoted(body)),
                literal(content_type)
            )
        }
    }
}

fn redirect(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Target> {
    if let Some(text) = value.get_ref().as_str() {
        return Some(Target::Redirect { to: redirect_target(context, value, text)?, status: 308 });
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Redirect, String::new(), Some(entries), value.span());
    let status = context.silent(|context| context.count(&table, "status"));
    let Some((setting, to)) = table.get("to") else {
        context.missing(&table, "to");
        return None;
    };
    let text = context.text(setting, to)?;
    let to = redirect_target(context, to, text)?;
    Some(Target::Redirect { to, status: u16::try_from(status).unwrap_or(308) })
}

fn redirect_target(context: &mut Context<'_>, value: &Value<'_>, text: &str) -> Option<String> {
    let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    // `//host/` would leave the site without looking like it.
    let path = text.starts_with('/') && !text.starts_with("//") && !text.contains('\\');
    let url = (text.starts_with("http://") || text.starts_with("https://"))
        && text
            .parse::<Uri>()
            .is_ok_and(|uri| uri.authority().is_some_and(|authority| !authority.as_str().contains('@')));
    if visible && (path || url) && !text.contains(['?', '#']) {
        return Some(text.to_owned());
    }
    let message = format!("`{}` is not a place to redirect to", quoted(text));
    let help = "write a path like \"/new/\" or a URL like \"https://www.shop.example/\", in ASCII and without `?` and `#` (the client's query is kept)";
    context.error("invalid-value", value.span(), message, help);
    None
}

fn respond(context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>) -> Option<Target> {
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Respond, String::new(), Some(entries), value.span());
    let status = context.silent(|context| context.count(&table, "status"));
    let mut text = |name: &str| match table.get(name) {
        Some((setting, value)) => context.text(setting, value).map(str::to_owned),
        None => Some(table.default_text(name).to_owned()),
    };
    let (body, content_type) = (text("body"), text("content_type"));
    if content_type
        .as_ref()
        .is_some_and(|text| HeaderValue::from_str(text).is_err() || !text.is_ascii() || text.is_empty())
    {
        let help = "write it like \"text/html; charset=utf-8\"";
        context.error(
            "invalid-header",
            table.span_of("content_type"),
            "`content_type` is not legal in a header field",
            help,
        );
    }
    // RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5: these answers have no content.
    if matches!(status, 204 | 205 | 304) && body.as_ref().is_some_and(|body| !body.is_empty()) {
        let message = format!("an answer with status {status} has no body");
        context.error(
            "conflict",
            table.span_of("body"),
            message,
            "remove `body`, or answer with another status",
        );
    }
    Some(Target::Respond {
        status: u16::try_from(status).unwrap_or(200),
        body: body?,
        content_type: content_type?,
    })
}
