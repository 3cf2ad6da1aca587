//! Routes: which requests, and what happens to them.

use std::collections::HashMap;
use std::sync::Arc;

use http::Method;
use toml::de::DeTable;

use super::server::texts;
use super::service::{self, Shared, Target};
use super::{address, bandwidth, header, limit};
use crate::base::escape;
use crate::config::diagnostic::Diagnostic;
use crate::config::model::{Action, Bandwidth, Located, Origin, PathPattern, Rewrite, Route, Server};
use crate::config::parse::{Context, Table, Value, literal, literals, quoted};
use crate::config::setting::{Id, Setting};

/// Redirects of a site that are searched for loops.
const LOOPS_SEARCHED_MAX: usize = 64;

/// The routes of one site while they are read.
pub struct Routes<'s> {
    site: &'s Arc<str>,
    shared: &'s Shared,
    server: &'s Server,
    /// Whether the site itself says where to go, rightly or wrongly.
    site_says: bool,
    labels: HashMap<String, usize>,
    /// Paths that an earlier route takes without any condition, and the line it stands on.
    taken: HashMap<String, Origin>,
    found: Vec<Route>,
}

/// Reads all routes of a site, its own target last.
pub fn read(
    context: &mut Context<'_>,
    table: &Table<'_>,
    name: &Arc<str>,
    shared: &Shared,
    origin: &Origin,
    server: &Server,
) -> Vec<Route> {
    let (labels, taken) = (HashMap::new(), HashMap::new());
    let (site_says, found) = (says(table), Vec::new());
    let mut routes = Routes { site: name, shared, server, site_says, labels, taken, found };
    if let Some((setting, value)) = table.get("route") {
        let entries = context.array(setting, value).unwrap_or_default();
        for (index, entry) in entries.iter().enumerate() {
            let Some(fields) = entry.get_ref().as_table() else {
                context.wrong_type("route", &setting.kind.expected(), entry);
                continue;
            };
            let key = context.below(table, &format!("route[{index}]"));
            routes.one(context, fields, key, entry);
        }
    }
    routes.last(context, origin);
    warn_of_loops(context, &routes.found);
    service::warn_of_shared_cookies(context, &routes.found);
    routes.found
}

/// A redirect to a path that only itself takes sends clients round for ever.
fn warn_of_loops(context: &mut Context<'_>, routes: &[Route]) {
    let into_itself = routes.iter().enumerate().filter_map(|(index, route)| match &route.action {
        Action::Redirect { to, .. } if to.starts_with('/') && may_take(&route.path, to) => {
            Some((index, route, to))
        }
        _ => None,
    });
    // Each costs a walk over all routes; the first ones are enough of a hint.
    for (index, route, to) in into_itself.take(LOOPS_SEARCHED_MAX) {
        // A route that goes first for the target breaks the loop.
        let goes_first =
            |at: usize, other: &Route| at < index || written_length(other) > written_length(route);
        let mut others = routes.iter().enumerate().filter(|(at, _)| *at != index);
        let broken = others.any(|(at, other)| may_take(&other.path, to) && goes_first(at, other));
        if !broken && !matches!(route.path, PathPattern::Regex(_)) {
            let message =
                format!("this redirect leads to itself: `{}` takes `{}` again", route.label, quoted(to));
            let warning = Diagnostic::warning("redirect-loop", &route.origin, message)
                .help("redirect to a path outside, or to a whole URL like \"https://www.shop.example/\"");
            context.report(warning);
        }
    }
}

/// Longer prefixes are more exact; exact paths and regular expressions count as longest.
fn written_length(route: &Route) -> usize {
    match &route.path {
        PathPattern::Prefix(prefix) => prefix.trim_end_matches('/').len(),
        _ => usize::MAX,
    }
}

/// Whether a pattern may take a path; conditions are not looked at, and a regular expression may take anything.
fn may_take(pattern: &PathPattern, path: &str) -> bool {
    match pattern {
        PathPattern::Regex(_) => true,
        PathPattern::Exact(exact) => exact == path,
        PathPattern::Prefix(prefix) => {
            let rest = path.strip_prefix(prefix.trim_end_matches('/'));
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    }
}

impl Routes<'_> {
    fn one(&mut self, context: &mut Context<'_>, fields: &DeTable<'_>, key: String, entry: &Value<'_>) {
        let table = context.open(Id::Route, key, Some(fields), entry.span());
        let before = context.errors;
        let written = context.value(&table, "path", &slash(), read_path, |path| literal(&path.0)).value;
        let (text, path) = written;
        let path_is_good = context.errors == before;
        let methods = methods(context, &table);
        let headers = header::conditions(context, &table, "headers");
        let query = header::conditions(context, &table, "query");
        let shared = service::read(context, &table, self.shared);
        let bandwidth = bandwidth::read(context, &table);
        let limits = limit::read(context, &table);
        let addresses = address::addresses(context, &table, &self.server.networks);
        let countries = address::countries(context, &table, self.server);
        let rewrite = rewrite(context, &table, &path);
        refuse_settings_without_backends(context, &table, &shared);
        let origin = context.origin(entry.span());
        if path_is_good {
            self.note_path(
                context,
                &text,
                &origin,
                methods.is_empty() && headers.is_empty() && query.is_empty(),
            );
        }
        let label = self.label(&text);
        let site = self.site;
        let Some(action) = shared.action(|| format!("{site}/{label}").into()) else {
            // A wrong target has been reported already.
            if !says(&table) && !self.site_says {
                let help = "add `backends`, `redirect` or `respond`, here or to the site";
                context.error("missing", entry.span(), "this route leads nowhere", help);
            }
            return;
        };
        let request_headers = shared.request_headers();
        self.found.push(Route {
            label,
            origin,
            path,
            methods,
            headers,
            query,
            action,
            bandwidth,
            limits,
            addresses,
            countries,
            rewrite,
            request_headers,
            response_headers: shared.response_headers.value,
            security: shared.security.value,
            cors: shared.cors.value,
            auth: shared.auth.value,
            max_body: shared.max_body.value,
        });
    }

    /// The site's own target: takes whatever no route took.
    fn last(&mut self, context: &mut Context<'_>, site: &Origin) {
        let Some(target) = &self.shared.target else {
            if self.found.is_empty() && context.errors == 0 {
                let warning = Diagnostic::warning(
                    "nothing-served",
                    site,
                    "this site has neither routes nor backends: every request is answered with 404",
                )
                .help("add `backends = [\"10.0.0.1:8080\"]`");
                context.report(warning);
            }
            return;
        };
        let label = self.label("/");
        let name = self.site;
        let Some(action) = self.shared.action(|| format!("{name}/{label}").into()) else { return };
        let request_headers = self.shared.request_headers();
        self.found.push(Route {
            label,
            origin: target.origin.clone(),
            path: PathPattern::Prefix("/".into()),
            methods: Vec::new(),
            headers: Vec::new(),
            query: Vec::new(),
            action,
            bandwidth: Bandwidth::default(),
            limits: Vec::new(),
            addresses: None,
            countries: None,
            rewrite: None,
            request_headers,
            response_headers: self.shared.response_headers.value.clone(),
            security: self.shared.security.value.clone(),
            cors: self.shared.cors.value.clone(),
            auth: self.shared.auth.value.clone(),
            max_body: self.shared.max_body.value,
        });
    }

    /// The path as written, or with `#2`, `#3` … where it repeats.
    fn label(&mut self, path: &str) -> Arc<str> {
        let count = self.labels.entry(path.to_owned()).or_insert(0);
        *count += 1;
        if *count == 1 { path.into() } else { format!("{path}#{count}").into() }
    }

    /// Warns of a route that can never be reached.
    fn note_path(&mut self, context: &mut Context<'_>, text: &str, origin: &Origin, unconditional: bool) {
        let same = if text.starts_with('/') { text.trim_end_matches('/') } else { text };
        if let Some(Origin::File(place)) = self.taken.get(same) {
            let message = format!(
                "this route is never reached: the one in line {} takes every request for `{}`",
                place.line(),
                quoted(text)
            );
            let warning = Diagnostic::warning("unreachable-route", origin, message)
                .help("put the route with conditions first, or remove one of them");
            context.report(warning);
        } else if unconditional {
            self.taken.insert(same.to_owned(), origin.clone());
        }
    }
}

fn says(table: &Table<'_>) -> bool {
    ["backends", "redirect", "respond"].into_iter().any(|name| table.has(name))
}

fn slash() -> Located<(String, PathPattern)> {
    Located { value: ("/".into(), PathPattern::Prefix("/".into())), origin: Origin::Default }
}

fn read_path(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
) -> Option<(String, PathPattern)> {
    let text = context.text(setting, value)?;
    if let Some(pattern) = text.strip_prefix('~') {
        let pattern =
            header::regex(context, "path", value, pattern).map(|_| PathPattern::Regex(pattern.to_owned()));
        return Some((text.to_owned(), pattern?));
    }
    let (exact, path) = text.strip_prefix('=').map_or((false, text), |path| (true, path));
    if let Some((what, help)) = wrong_path(path) {
        context.error("invalid-path", value.span(), format!("the path `{}` {what}", quoted(text)), help);
        return None;
    }
    let normal = escape::normal(path);
    if normal.as_deref() != Some(path) {
        let (what, help) = match normal {
            Some(normal) => {
                let told = literal(&text.replace(path, &normal));
                ("never matches", format!("paths are compared in their normal form: write {told}"))
            }
            None => ("has an escape that no path has", "write a `%` itself as `%25`".to_owned()),
        };
        context.error("invalid-path", value.span(), format!("the path `{}` {what}", quoted(text)), help);
        return None;
    }
    let pattern =
        if exact { PathPattern::Exact(path.to_owned()) } else { PathPattern::Prefix(path.to_owned()) };
    Some((text.to_owned(), pattern))
}

/// What would keep a path from ever matching a normalised one.
fn wrong_path(path: &str) -> Option<(&'static str, &'static str)> {
    if !path.starts_with('/') {
        return Some((
            "does not begin with `/`",
            "write \"/api/\" (it and all below), \"=/exact\" or \"~^/v[0-9]+/\" (regular expression)",
        ));
    }
    if path.contains(['?', '#']) {
        return Some(("has a query or fragment", "match the query with `query = { name = \"value\" }`"));
    }
    if !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Some((
            "has a character that no request path has",
            "write it percent-encoded, like \"/caf%C3%A9\"",
        ));
    }
    if path.contains(['*', '{', '}']) {
        return Some((
            "has a wildcard",
            "\"/api/\" takes everything below it already; for more write a regular expression like \"~^/[^/]+/edit$\"",
        ));
    }
    if path.contains('\\') || path.split('/').any(|segment| segment == "." || segment == "..") {
        return Some((
            "never matches",
            "paths are compared after `.`, `..` and `\\` are resolved: write the resolved path",
        ));
    }
    None
}

fn methods(context: &mut Context<'_>, table: &Table<'_>) -> Vec<String> {
    let fallback = Located { value: Vec::new(), origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        texts(context, setting, value, |context, entry, text| {
            if Method::from_bytes(text.as_bytes()).is_ok()
                && text.len() <= 32
                && !text.bytes().any(|byte| byte.is_ascii_lowercase())
            {
                return Some(text.to_owned());
            }
            // RFC 9110 section 9.1: methods are case-sensitive.
            let message = format!("`{}` is not a method", quoted(text));
            context.error(
                "invalid-value",
                entry.span(),
                message,
                "write methods in capitals, like [\"GET\", \"POST\"]",
            );
            None
        })
    };
    context.value(table, "methods", &fallback, read, |list: &Vec<String>| literals(list)).value
}

fn rewrite(context: &mut Context<'_>, table: &Table<'_>, path: &PathPattern) -> Option<Rewrite> {
    let strip = context.flag(table, "strip");
    let fallback = Located { value: None, origin: Origin::Default };
    let read = |context: &mut Context<'_>, setting: &'static Setting, value: &Value<'_>| {
        read_rewrite(context, setting, value, path).map(Some)
    };
    let print = |value: &Option<String>| value.as_ref().map_or_else(|| "none".into(), |text| literal(text));
    let replace = context.value(table, "rewrite", &fallback, read, print).value;
    if strip && table.has("rewrite") {
        let help = "`rewrite = \"/\"` removes the prefix too: keep one of them";
        context.error("conflict", table.span_of("strip"), "`strip` and `rewrite` exclude each other", help);
    }
    let prefix = matches!(path, PathPattern::Prefix(prefix) if prefix != "/");
    if strip && !prefix {
        let message = "`strip` has nothing to remove: the route has no path prefix";
        context.error(
            "conflict",
            table.span_of("strip"),
            message,
            "give the route a prefix like path = \"/api/\", or use `rewrite`",
        );
    }
    replace.map(Rewrite::Replace).or(strip.then_some(Rewrite::StripPrefix))
}

fn read_rewrite(
    context: &mut Context<'_>,
    setting: &'static Setting,
    value: &Value<'_>,
    path: &PathPattern,
) -> Option<String> {
    let text = context.text(setting, value)?;
    let regex = match path {
        PathPattern::Regex(pattern) => {
            regex::RegexBuilder::new(pattern).size_limit(header::REGEX_BYTES_MAX).build().ok()
        }
        _ => None,
    };
    // `$` is a legal character of a path; only a regular expression gives it a meaning.
    let plain: String = if regex.is_some() { text.replace(['{', '}'], "") } else { text.to_owned() };
    if let Some((what, help)) = wrong_path(&plain) {
        let help = if what.starts_with("does not") { "write a path like \"/new/\"" } else { help };
        context.error("invalid-path", value.span(), format!("`rewrite`: `{}` {what}", quoted(text)), help);
        return None;
    }
    if let Some(regex) = regex
        && let Some(group) = unknown_group(&regex, text)
    {
        let message = format!(
            "`rewrite` names the group `{}`, which the path's regular expression does not have",
            quoted(&group)
        );
        let help = format!(
            "its groups are $0 to ${}; write `${{1}}x` where a letter or digit follows",
            regex.captures_len() - 1
        );
        context.error("invalid-value", value.span(), message, help);
        return None;
    }
    Some(text.to_owned())
}

/// The first `$name` or `${name}` that the expression has no group for.
fn unknown_group(regex: &regex::Regex, text: &str) -> Option<String> {
    text.split('$').skip(1).find_map(|rest| {
        let braced = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map(|(name, _)| name);
        let plain =
            || rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        let name = braced.unwrap_or_else(plain);
        let known = match name.parse::<usize>() {
            Ok(number) => number < regex.captures_len(),
            Err(_) => name.is_empty() || regex.capture_names().flatten().any(|known| known == name),
        };
        (!known).then(|| name.to_owned())
    })
}

/// Settings that only a backend gives a meaning to, beside a redirect or a fixed answer said in the same route.
fn refuse_settings_without_backends(context: &mut Context<'_>, table: &Table<'_>, shared: &Shared) {
    let word = match shared.target.as_ref().map(|target| &target.value) {
        Some(Target::Redirect { .. }) => "redirect",
        Some(Target::Respond { .. }) => "respond",
        _ => return,
    };
    for name in [
        "balance",
        "slow_start",
        "health",
        "eject",
        "panic",
        "timeout",
        "connect_timeout",
        "retry",
        "capacity",
        "breaker",
        "upstream",
        "upgrade",
        "strip",
        "rewrite",
        "request_headers",
    ] {
        if table.has(name) && table.has(word) {
            let message = format!("`{name}` has no meaning beside `{word}`: nothing is sent to a backend");
            context.error(
                "conflict",
                table.span_of(name),
                message,
                format!("remove `{name}`, or replace `{word}` by `backends`"),
            );
        }
    }
}
