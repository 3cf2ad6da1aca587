//! `auth = { … }`: who may come in.

mod basic;
mod cert_user;
mod forward;
mod jwt;

use std::sync::Arc;

use http::HeaderName;

use super::{header, mode};
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{Auth, Located, Origin, Route, Scheme, Tls};
use crate::config::parse::{Context, Table, Value, literal, quoted};
use crate::config::setting::{Id, Setting};

pub use forward::forward_url;

/// Ways to show who one is, as they are written, in the order in which they are asked: what costs least comes first.
const SCHEMES: [&str; 4] = ["client_cert", "jwt", "basic", "forward"];

/// Paths in `auth`, by their tables: what a site's canonical text makes absolute.
pub const FILES: [(&str, &str); 5] = [
    ("basic", "file"),
    ("forward", "ca_file"),
    ("jwt", "key_file"),
    ("jwt", "jwks_file"),
    ("jwt", "ca_file"),
];

/// Reads `auth` of a site or route; `inherited` stands in for none.
pub(super) fn read(
    context: &mut Context<'_>,
    table: &Table<'_>,
    inherited: &Located<Option<Arc<Auth>>>,
) -> Located<Option<Arc<Auth>>> {
    context.value(
        table,
        "auth",
        inherited,
        |context, setting, value| context.silent(|context| read_auth(context, setting, value)),
        print,
    )
}

fn read_auth(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<Option<Arc<Auth>>> {
    if value.get_ref().as_str() == Some("off") {
        return Some(None);
    }
    let Some(entries) = value.get_ref().as_table() else {
        context.wrong_type(setting.name, &setting.kind.expected(), value);
        return None;
    };
    let table = context.open(Id::Auth, String::new(), Some(entries), value.span());
    let said: Vec<&str> = SCHEMES.into_iter().filter(|name| table.has(name)).collect();
    let any = context.flag(&table, "any");
    match said.as_slice() {
        [] => {
            let message = "`auth` does not say how clients show who they are";
            let help = "say one of: basic = { file = \"users\" }, forward = { url = \"http://…\" }, jwt = { … }, client_cert = { from = \"cn\" }; auth = \"off\" lets everybody in";
            context.error("conflict", value.span(), message, help);
        }
        [first, second, ..] if !any => {
            let message =
                format!("`auth` has both `{first}` and `{second}`, and does not say that either will do");
            let help =
                "say any = true beside them: then a client comes in by any of them; or remove all but one";
            context.error("conflict", value.span(), message, help);
        }
        _ => {}
    }
    let mode = mode::read(context, &table);
    let identity_header = identity_header(context, &table);
    let mut read = |name: &&str| match *name {
        "basic" => basic::read(context, &table).map(Scheme::Basic),
        "forward" => forward::read(context, &table).map(Scheme::Forward),
        "jwt" => jwt::read(context, &table).map(Scheme::Jwt),
        _ => cert_user::read(context, &table).map(Scheme::ClientCert),
    };
    // All of them, so that what is wrong is told at once.
    let ways: Vec<Option<Scheme>> = said.iter().map(&mut read).collect();
    let ways = ways.into_iter().collect::<Option<Vec<Scheme>>>().filter(|ways| !ways.is_empty())?;
    let pass_authorization = pass_authorization(context, &table, &ways);
    let origin = context.origin(value.span());
    Some(Some(Arc::new(Auth { origin, mode, ways, identity_header, pass_authorization })))
}

/// A password has done its work here; whoever else reads it could use it.
fn pass_authorization(context: &mut Context<'_>, table: &Table<'_>, ways: &[Scheme]) -> bool {
    let password = ways.iter().any(|way| matches!(way, Scheme::Basic(_)));
    let fallback = Located { value: !password, origin: Origin::Default };
    context.value(table, "pass_authorization", &fallback, Context::read_flag, bool::to_string).value
}

/// Fields that mean something else: a client must be able to send them.
const TAKEN: &[&str] = &[
    "accept",
    "accept-encoding",
    "accept-language",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-type",
    "cookie",
    "date",
    "expect",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "origin",
    "range",
    "referer",
    "user-agent",
    "via",
];

fn identity_header(context: &mut Context<'_>, table: &Table<'_>) -> Option<String> {
    let (setting, value) = table.get("identity_header")?;
    let text = context.text(setting, value)?;
    own_field(context, "identity_header", value, text)
}

/// Fields that Tidegate writes for another purpose.
fn is_ours(field: &str) -> bool {
    field.starts_with("x-forwarded-")
        || field.starts_with("x-client-cert")
        || matches!(field, "forwarded" | "x-request-id" | "x-real-ip" | "traceparent" | "tracestate")
}

/// The name of a field that only we may write.
fn own_field(context: &mut Context<'_>, name: &str, value: &Value<'_>, text: &str) -> Option<String> {
    let field = HeaderName::from_bytes(text.as_bytes()).ok().map(|field| field.as_str().to_owned());
    let odd = |field: &str| field.bytes().any(|byte| !byte.is_ascii_alphanumeric() && byte != b'-');
    let help = "write a name of letters, digits and `-`, like \"X-Auth-User\"";
    match field {
        Some(field)
            if !odd(&field) && !TAKEN.contains(&&*field) && !header::frames(&field) && !is_ours(&field) =>
        {
            Some(field)
        }
        Some(field) if !odd(&field) => {
            let message =
                format!("`{name}`: `{field}` has another meaning, and clients must be able to send it");
            context.error("invalid-header", value.span(), message, help);
            None
        }
        _ => {
            let message = format!(
                "`{name}`: `{}` is not a header field name that every backend reads alike",
                quoted(text)
            );
            context.error("invalid-header", value.span(), message, help);
            None
        }
    }
}

/// A certificate can name a user only where the handshake asks for one.
pub(super) fn check_certificates(context: &mut Context<'_>, routes: &[Route], tls: &Tls) {
    let by_certificate = routes.iter().filter_map(|route| route.auth.as_ref());
    let is_certificate = |way: &Scheme| matches!(way, Scheme::ClientCert(_));
    let by_certificate = by_certificate.filter(|auth| auth.ways.iter().any(is_certificate));
    let mut told: Option<&Origin> = None;
    for auth in by_certificate.filter(|_| tls.client_auth.is_none()) {
        // Routes that inherit it say nothing of their own.
        if told != Some(&auth.origin) {
            let message = "`client_cert` knows nobody: this site does not ask for client certificates";
            let diagnostic = Diagnostic::error("conflict", &auth.origin, message)
                .help("say whom it trusts: tls = { client_auth = { ca_file = \"clients.pem\" } }");
            context.report(diagnostic);
        }
        told = Some(&auth.origin);
    }
}

fn print(auth: &Option<Arc<Auth>>) -> String {
    let Some(auth) = auth else { return literal("off") };
    let way = |way: &Scheme| match way {
        Scheme::Basic(said) => format!("basic = {}", basic::print(said)),
        Scheme::Forward(said) => format!("forward = {}", forward::print(said)),
        Scheme::Jwt(said) => format!("jwt = {}", jwt::print(said)),
        Scheme::ClientCert(said) => format!("client_cert = {}", cert_user::print(said)),
    };
    let mut ways: Vec<String> = auth.ways.iter().map(way).collect();
    if ways.len() > 1 {
        ways.push("any = true".to_owned());
    }
    let ways = ways.join(", ");
    let header = auth.identity_header.as_ref();
    let header = header.map(|name| format!(", identity_header = {}", literal(name))).unwrap_or_default();
    format!(
        "{{ {ways}, mode = {}{header}, pass_authorization = {} }}",
        literal(auth.mode.as_str()),
        auth.pass_authorization
    )
}
