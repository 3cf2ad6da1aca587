//! Every value in force and where it came from: what `tidegate config show --effective --origin` prints.

use std::sync::Arc;

use super::model::{Origin, Server};
use super::parse::Context;
use super::section;
use super::source::{Source, Sources};
use super::{Loaded, document, each_site};

/// One value in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effective {
    /// Where it belongs, like `server.drain` or `site."shop.example".route[0].timeout`.
    pub key: String,
    /// As TOML writes it; short forms are shown in full.
    pub value: String,
    /// Who said it; inherited values name the place they are inherited from.
    pub origin: Origin,
}

impl Effective {
    /// `default`, or `file:line`.
    pub fn origin_text(&self, sources: &Sources) -> String {
        match &self.origin {
            Origin::Default => "default".into(),
            Origin::File(place) => format!("{}:{}", sources.show(place.path()), place.line()),
        }
    }

    /// `{key, value, origin}`
    pub fn to_json(&self, sources: &Sources) -> serde_json::Value {
        serde_json::json!({ "key": self.key, "value": self.value, "origin": self.origin_text(sources) })
    }
}

impl Loaded {
    /// Every value in force: the server's, then each good site's by name. Reads the texts again, so that loading does
    /// not pay for it.
    pub fn effective(&self) -> Vec<Effective> {
        let Some(server) = &self.server else { return Vec::new() };
        let mut all = Vec::new();
        let mut by_site: Vec<(Arc<str>, Vec<Effective>)> = Vec::new();
        for (index, path) in self.order.iter().enumerate() {
            let Some(source) = self.sources.get(path) else { continue };
            let Ok(root) = document::parse(source) else { continue };
            if index == 0 {
                let mut context = Context::new(source, None, true);
                section::server::read(&mut context, &root);
                all.extend(context.recorded.take().unwrap_or_default());
            }
            each_site(&root, |name, key, value| {
                let wanted = self.sites.binary_search_by(|entry| entry.name.cmp(&name)).ok();
                let wanted = wanted.and_then(|at| self.sites.get(at)).filter(|entry| entry.site.is_some());
                if wanted.is_some_and(|entry| entry.file == *path) {
                    let mut context = Context::new(source, Some(name.clone()), true);
                    section::site::read(&mut context, &name, key, value, server);
                    by_site.push((name, context.recorded.take().unwrap_or_default()));
                }
            });
        }
        by_site.sort_by(|a, b| a.0.cmp(&b.0));
        all.extend(by_site.into_iter().flat_map(|(_, values)| values));
        all
    }
}

/// Every value in force of one site read from its canonical text, for a site that keeps its last good version.
pub fn effective_site(name: &Arc<str>, source: &Source, server: &Server) -> Vec<Effective> {
    let mut found = Vec::new();
    if let Ok(root) = document::parse(source) {
        each_site(&root, |each, key, value| {
            if each == *name {
                let mut context = Context::new(source, Some(each.clone()), true);
                section::site::read(&mut context, &each, key, value, server);
                found = context.recorded.take().unwrap_or_default();
            }
        });
    }
    found
}
