//! Labels → the text of a site, as a file would say it, so that parser, messages and quarantine are the same. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::PLACE;
use super::labels::{Part, WHOLE_SITE};
use crate::config::Fragment;
use crate::config::model::Source;
use crate::config::parse::{literal, literals};
use crate::config::setting::{self, Fallback, Id, Kind, Section};

/// Whose labels say something: the container's name and the part.
pub type Said = (Arc<str>, Part);

/// A value and what stands below its name.
#[derive(Debug, Default)]
struct Node {
    own: Option<String>,
    below: BTreeMap<String, Node>,
}

/// Settings of one table by their first name: the value, and the labels it stems from.
#[derive(Default)]
struct Settings(BTreeMap<String, (Node, Vec<String>, Arc<str>)>);

impl Settings {
    fn add(&mut self, container: &Arc<str>, path: &[String], label: &str, value: &str) {
        let Some((first, rest)) = path.split_first() else { return };
        let fresh = || (Node::default(), Vec::new(), container.clone());
        let (first, labels, _) = self.0.entry(first.clone()).or_insert_with(fresh);
        labels.push(label.to_owned());
        let mut node = first;
        for name in rest {
            node = node.below.entry(name.clone()).or_default();
        }
        node.own = Some(value.to_owned());
    }

    /// What another part says counts only where this one says nothing of that name.
    fn inherit(&mut self, other: Settings) {
        for (name, said) in other.0 {
            self.0.entry(name).or_insert(said);
        }
    }
}

/// The lines of a text, with what each stems from.
#[derive(Default)]
struct Lines {
    text: String,
    from: Vec<Arc<str>>,
}

impl Lines {
    fn line(&mut self, line: &str, from: &str) {
        self.text.push_str(line);
        self.text.push('\n');
        self.from.push(from.into());
    }

    fn settings(&mut self, section: &'static Section, settings: &Settings) {
        for (name, (node, labels, container)) in &settings.0 {
            let value = value(section.setting(name).map(|setting| &setting.kind), node);
            let word = if labels.len() == 1 { "label" } else { "labels" };
            let labels = labels.join("`, `");
            self.line(
                &format!("{} = {value}", key(name)),
                &format!("{word} `{labels}` of the container {container}"),
            );
        }
    }

    fn backends(&mut self, site: &str, route: &str, (container, part): &Said) {
        let source = Source::Labels { site: site.into(), route: route.into() };
        let tls = if part.tls { ", tls = true" } else { "" };
        let line = format!("backends = [{{ address = {}{tls} }}]", literal(&source.to_string()));
        self.line(&line, &format!("labels of the container {container}"));
    }
}

/// The text of a site, from the labels that count for each of its routes.
pub fn fragment(site: &str, routes: &BTreeMap<Arc<str>, &Said>) -> Fragment {
    let (site_section, route_section) = (setting::section(Id::Site), setting::section(Id::Route));
    let mut whole = Settings::default();
    let mut own: Vec<(&Arc<str>, &Said, Settings)> = Vec::new();
    // The part of the whole site stands first: its path is the smallest there is.
    for (route, said) in routes {
        let (mut of_site, mut of_route) = (Settings::default(), Settings::default());
        for (path, label, value) in &said.1.settings {
            let name = path.first().map(String::as_str).unwrap_or_default();
            let routes = **route != *WHOLE_SITE && route_section.setting(name).is_some();
            let settings = if routes { &mut of_route } else { &mut of_site };
            settings.add(&said.0, path, label, value);
        }
        whole.inherit(of_site);
        own.push((route, said, of_route));
    }
    let mut lines = Lines::default();
    lines.line(&format!("[site.{}]", literal(site)), "");
    lines.settings(site_section, &whole);
    if let Some(said) = routes.get(WHOLE_SITE) {
        lines.backends(site, WHOLE_SITE, said);
    }
    for (route, said, settings) in own.iter().filter(|(route, ..)| ***route != *WHOLE_SITE) {
        lines.line(&format!("[[site.{}.route]]", literal(site)), "");
        let from = format!("label `path` of the container {}", said.0);
        lines.line(&format!("path = {}", literal(route)), &from);
        lines.settings(route_section, settings);
        lines.backends(site, route, said);
    }
    Fragment { place: format!("{PLACE}{site}").into(), text: lines.text, lines: lines.from }
}

/// A name as TOML writes it.
fn key(name: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if !name.is_empty() && name.bytes().all(bare) { name.to_owned() } else { literal(name) }
}

/// A value as TOML writes it. What does not fit the type is written as text: the parser says what is wrong with it.
fn value(kind: Option<&Kind>, node: &Node) -> String {
    if node.below.is_empty() {
        return scalar(kind, node.own.as_deref().unwrap_or_default());
    }
    let section = match kind {
        Some(Kind::Table(id) | Kind::ShortOr(_, id) | Kind::ShortOrTables(_, id, ..)) => {
            Some(setting::section(*id))
        }
        _ => None,
    };
    // `tidegate.health=/up` beside `tidegate.health.interval=2s`: the short form says what must be said.
    let short = node.own.as_deref().map(|text| {
        let required = section.into_iter().flat_map(|section| section.settings);
        let required = required.clone().find(|setting| setting.default == Fallback::Required);
        let name = match section.map(|section| section.id) {
            Some(Id::Health) if matches!(text, "tcp" | "grpc") => "type",
            Some(Id::Health) => "path",
            _ => required.map_or("value", |setting| setting.name),
        };
        format!("{name} = {}", scalar(None, text))
    });
    let below = node.below.iter().map(|(name, node)| {
        let kind = match kind {
            Some(Kind::Conditions(_)) => Some(&Kind::Flag),
            _ => section.and_then(|section| section.setting(name)).map(|setting| &setting.kind),
        };
        format!("{} = {}", key(name), value(kind, node))
    });
    let all: Vec<String> = short.into_iter().chain(below).collect();
    format!("{{ {} }}", all.join(", "))
}

fn scalar(kind: Option<&Kind>, text: &str) -> String {
    let number =
        |text: &str| text.len() < 19 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match kind {
        Some(Kind::Flag) if matches!(text, "true" | "false") => text.to_owned(),
        Some(Kind::Count(..) | Kind::OneOf(_) | Kind::CountOr(..)) if number(text) => {
            text.parse::<u64>().map_or_else(|_| literal(text), |number| number.to_string())
        }
        Some(
            Kind::Texts(_)
            | Kind::Statuses(..)
            | Kind::Addresses(_)
            | Kind::Networks(_)
            | Kind::ShortOrTables(..),
        ) => literals(text.split(',').map(str::trim).filter(|entry| !entry.is_empty())),
        _ => literal(text),
    }
}

#[cfg(test)]
mod tests {
    use super::super::labels;
    use super::*;
    use crate::config;

    fn said(container: &str, all: &[(&str, &str)]) -> Vec<Said> {
        let all =
            all.iter().map(|(label, value)| (format!("tidegate.{label}"), (*value).to_owned())).collect();
        labels::read(&all).parts.into_iter().map(|part| (Arc::from(container), part)).collect()
    }

    fn text_of(site: &str, said: &[Said]) -> Fragment {
        let routes = said.iter().map(|said| (said.1.site.clone().unwrap().1, said)).collect();
        fragment(site, &routes)
    }

    fn load(fragment: &Fragment) -> config::Loaded {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tidegate.toml");
        std::fs::write(&file, "[docker]\n").unwrap();
        config::load_with(&file, &|_, _| false, std::slice::from_ref(fragment), config::Former::default())
    }

    #[test]
    fn every_setting_can_be_a_label() {
        let mut parts = said(
            "web-1",
            &[
                ("site", "shop.example"),
                ("hosts", "shop.example, www.shop.example"),
                ("certificates", "internal"),
                ("health", "/up"),
                ("health.interval", "2s"),
                ("health.fall", "5"),
                ("limit", "100 per 10s by client-ip"),
                ("plain_http", "true"),
                ("max_connections", "0100"),
                ("max_body", "64MiB"),
                ("tls", "true"),
                ("tls.min_version", "1.3"),
                ("upstream.server_name", "inner.example"),
                ("response_headers.set.X-Frame-Options", "DENY \"quoted\""),
                ("response_headers.remove", "Server,X-Powered-By"),
            ],
        );
        parts.extend(said(
            "api-1",
            &[
                ("site", "shop.example"),
                ("path", "/api/"),
                ("strip", "true"),
                ("methods", "GET,POST"),
                ("headers.X-Beta", "true"),
                ("limit.rate", "1 per 1s"),
                ("limit.by", "site"),
                ("hosts", "api-says-so.example"),
                ("tenant", "shop-gmbh"),
            ],
        ));
        let fragment = text_of("shop.example", &parts);
        let loaded = load(&fragment);
        assert!(!loaded.has_errors(), "{}\n{:#?}", fragment.text, loaded.diagnostics);
        let site = loaded.sites[0].site.as_ref().unwrap();
        assert_eq!((site.hosts.len(), &*site.tenant, site.max_connections), (2, "shop-gmbh", 100));
        assert_eq!(site.routes.len(), 2);
        assert!(
            fragment.text.contains("health = { path = \"/up\", fall = 5, interval = \"2s\" }"),
            "{}",
            fragment.text
        );
        assert!(fragment.text.contains("{ address = \"docker-labels:shop.example|/\", tls = true }"));
        assert!(fragment.text.contains("[{ address = \"docker-labels:shop.example|/api/\" }]"));
        assert_eq!(fragment.text.lines().count(), fragment.lines.len());
    }

    #[test]
    fn a_wrong_label_is_named_and_no_label_gets_out_of_its_value() {
        for (label, value, what) in [
            ("limit", "many", "label `tidegate.limit` of the container web-1"),
            ("prot", "80", "unknown key `prot`"),
            ("health.interval", "fast", "label `tidegate.health.interval` of the container web-1"),
            ("health", "/up\"\n[server]\nhttp = []", "`tidegate.health`"),
            ("a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r", "x", "unknown key `a`"),
            ("x y\"]", "z", "unknown key"),
            ("plain_http", "yes", "`tidegate.plain_http`"),
        ] {
            let fragment =
                text_of("shop.example", &said("web-1", &[("site", "shop.example"), (label, value)]));
            let loaded = load(&fragment);
            let told: Vec<_> = loaded.diagnostics.iter().map(|d| d.message.as_str()).collect();
            assert!(
                told.iter().any(|message| message.contains(what)),
                "{label}: {told:?}\n{}",
                fragment.text
            );
            assert!(loaded.server.is_some() && loaded.sites.len() == 1, "{label}");
        }
    }
}
