//! Labels of one container → what it wants to be part of. Pure.
//!
//! `tidegate.site=shop.example` makes a container part of a site; `tidegate.path=/api/` of a route of it. Every other
//! `tidegate.<setting>` is the setting of that name. A word between (`tidegate.admin.site`, `tidegate.admin.port`) says a
//! second thing about the same container.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::config::parse::quoted;
use crate::config::setting::{self, Id};

/// What all labels of ours begin with.
pub const PREFIX: &str = "tidegate.";
/// Labels by which Compose says whose container it is.
pub const COMPOSE: (&str, &str) = ("com.docker.compose.project", "com.docker.compose.service");
/// The label by which Swarm says of which service a container is a task.
pub const SWARM: &str = "com.docker.swarm.service.id";
/// Labels that say something about the container itself, not about its site.
const OWN: &[&str] = &["site", "service", "path", "port", "network", "weight"];
/// The route of labels without a path.
pub const WHOLE_SITE: &str = "/";
/// Things that one container may be part of.
const PARTS_MAX: usize = 32;
/// Names between the dots of a label, behind the part it is of. No setting lies as deep, but a field name may have dots.
const NAMES_MAX: usize = 64;

/// One thing a container wants to be part of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// Its site and route, where it has one.
    pub site: Option<(Arc<str>, Arc<str>)>,
    /// What file sites call it by, in `docker://…`.
    pub service: Option<Arc<str>>,
    /// The port in the container.
    pub port: Option<u16>,
    /// The network by which it is reached.
    pub network: Option<Arc<str>>,
    /// Its share of the requests.
    pub weight: Option<u32>,
    /// Whether it is spoken to by TLS.
    pub tls: bool,
    /// The settings of site and route: their path of names, the label, the value.
    pub settings: Vec<(Vec<String>, String, String)>,
    /// A label about the endpoint is wrong: it takes no part.
    pub wrong: Option<String>,
}

/// What labels say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Read {
    /// In the order of their names; the one without a name first.
    pub parts: Vec<Part>,
    /// What cannot be understood, in sentences.
    pub problems: Vec<String>,
}

/// Whether an engine need be asked about a container with these labels.
pub fn concern_us(labels: &BTreeMap<String, String>) -> bool {
    [COMPOSE.1, SWARM].iter().any(|label| labels.contains_key(*label))
        || labels.keys().any(|label| label.starts_with(PREFIX))
}

/// Reads the labels of a container.
pub fn read(labels: &BTreeMap<String, String>) -> Read {
    let ours: Vec<(&str, &str)> = labels
        .iter()
        .filter_map(|(label, value)| Some((label.strip_prefix(PREFIX)?, value.as_str())))
        .collect();
    let mut found = Read::default();
    let mut groups: BTreeSet<&str> = BTreeSet::from([""]);
    for (key, _) in &ours {
        let Some((group, "site" | "service")) = key.split_once('.') else { continue };
        if OWN.contains(&group) || known(group) {
            let message = format!(
                "label `{PREFIX}{key}`: `{group}` is the name of a setting; give what it says another word"
            );
            found.problems.push(message);
        } else if groups.len() < PARTS_MAX {
            groups.insert(group);
        }
    }
    for group in groups.iter().copied() {
        let mine = ours.iter().filter_map(|(key, value)| match key.split_once('.') {
            Some((first, rest)) if !first.is_empty() && groups.contains(first) => {
                (first == group).then_some((rest, *value))
            }
            _ => group.is_empty().then_some((*key, *value)),
        });
        part(group, mine.collect(), &ours, &mut found);
    }
    found
}

fn known(name: &str) -> bool {
    [Id::Site, Id::Route].iter().any(|id| setting::section(*id).setting(name).is_some())
}

fn part(group: &str, labels: Vec<(&str, &str)>, all: &[(&str, &str)], found: &mut Read) {
    if labels.is_empty() {
        return;
    }
    let label = |key: &str| match group {
        "" => format!("{PREFIX}{key}"),
        group => format!("{PREFIX}{group}.{key}"),
    };
    let mut part = Part::default();
    let (mut site, mut route) = (None, Arc::from(WHOLE_SITE));
    for (key, value) in labels {
        let value = value.trim();
        let mut wrong = |what: &str| {
            let message = format!("label `{}`: `{}` is {what}", label(key), quoted(value));
            part.wrong.get_or_insert(message);
        };
        match key {
            "site" if value.is_empty() => wrong("no name of a site"),
            "site" => site = Some(Arc::from(value.to_ascii_lowercase())),
            "service" if value.is_empty() => wrong("no name of a service"),
            "service" => part.service = Some(value.into()),
            "path" => route = value.into(),
            "network" => part.network = Some(value.into()),
            "port" => match value.parse().ok().filter(|port| *port > 0) {
                Some(port) => part.port = Some(port),
                None => wrong("no port; write a number from 1 to 65535"),
            },
            "weight" => match value.parse().ok().filter(|weight| (1..=1_000).contains(weight)) {
                Some(weight) => part.weight = Some(weight),
                None => wrong("no weight; write a number from 1 to 1000"),
            },
            "tls" => match value {
                "true" => part.tls = true,
                "false" => {}
                _ => wrong("neither `true` nor `false`"),
            },
            // Tables within tables are written by recursion: what a customer's image says must not be able to end the process.
            _ if key.split('.').nth(NAMES_MAX).is_some() => {
                let message = format!(
                    "label `{}` has more than {NAMES_MAX} names between its dots: no setting lies so deep; remove it",
                    quoted(&label(key))
                );
                part.wrong.get_or_insert(message);
            }
            _ => {
                let path = key.split('.').map(str::to_owned).collect();
                part.settings.push((path, label(key), value.to_owned()));
            }
        }
    }
    let of_all = || all.iter().find(|(key, _)| *key == "network").map(|(_, value)| Arc::from(value.trim()));
    part.network = part.network.take().or_else(of_all);
    part.site = site.map(|site| (site, route));
    if part.site.is_some() || part.service.is_some() {
        found.parts.push(part);
    } else if part.wrong.is_some() || !part.settings.is_empty() || part.port.is_some() {
        // The network alone may stand there for those with a name.
        let why = part.wrong.unwrap_or_else(|| {
            format!(
                "its labels name no site: add `{}=shop.example`, or `{}=web`",
                label("site"),
                label("service")
            )
        });
        found.problems.push(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(all: &[(&str, &str)]) -> BTreeMap<String, String> {
        all.iter().map(|(label, value)| (format!("tidegate.{label}"), (*value).to_owned())).collect()
    }

    #[test]
    fn one_container_can_be_part_of_several_sites_and_routes() {
        let found = read(&labels(&[
            ("site", "Shop.example"),
            ("health", "/up"),
            ("health.interval", "2s"),
            ("tls.versions", "1.3"),
            ("network", "front"),
            ("admin.site", "admin.shop.example"),
            ("admin.port", "9000"),
            ("admin.tls", "true"),
            ("api.site", "shop.example"),
            ("api.path", "/api/"),
            ("api.strip", "true"),
            ("api.weight", "3"),
        ]));
        assert_eq!(found.problems, [""; 0]);
        let [site, admin, api] = &found.parts[..] else { panic!("{found:?}") };
        assert_eq!(site.site, Some(("shop.example".into(), "/".into())));
        let names: Vec<_> = site.settings.iter().map(|(path, ..)| path.join(" ")).collect();
        assert_eq!(
            (names, site.tls),
            (vec!["health".to_owned(), "health interval".into(), "tls versions".into()], false)
        );
        assert_eq!((admin.port, admin.tls, admin.network.as_deref()), (Some(9000), true, Some("front")));
        assert_eq!(api.site, Some(("shop.example".into(), "/api/".into())));
        let strip = (vec!["strip".to_owned()], "tidegate.api.strip".to_owned(), "true".to_owned());
        assert_eq!((api.weight, api.settings.clone()), (Some(3), vec![strip]));
    }

    #[test]
    fn regression_a_label_with_tens_of_thousands_of_dots_is_wrong_and_nothing_worse() {
        let deep = format!("tidegate.{}b", "a.".repeat(60_000));
        let (site, value) = (("tidegate.site".to_owned(), "a.test".to_owned()), "1".to_owned());
        let found = read(&BTreeMap::from([site, (deep, value)]));
        let [part] = &found.parts[..] else { panic!("{found:?}") };
        let why = part.wrong.as_deref().unwrap_or_default();
        assert!(why.contains("more than 64 names") && why.len() < 300, "{why}");
        assert!(part.settings.is_empty());
    }

    #[test]
    fn what_cannot_be_understood_is_said_with_the_label() {
        for (given, what) in [
            (&[("port", "80")][..], "name no site"),
            (&[("port", "x")], "label `tidegate.port`: `x` is no port"),
            (&[("health", "/up")], "name no site"),
            (&[("health.site", "a.test")], "is the name of a setting"),
        ] {
            let found = read(&labels(given));
            assert!(found.problems.iter().any(|problem| problem.contains(what)), "{given:?}: {found:?}");
        }
        for (label, value, what) in [
            ("port", "0", "no port"),
            ("port", "65536", "no port"),
            ("weight", "1001", "no weight"),
            ("tls", "yes", "neither"),
        ] {
            let found = read(&labels(&[("site", "a.test"), (label, value)]));
            let wrong = found.parts[0].wrong.as_deref().unwrap_or_default();
            assert!(
                wrong.starts_with(&format!("label `tidegate.{label}`")) && wrong.contains(what),
                "{wrong}"
            );
        }
        assert_eq!(read(&labels(&[("network", "front")])), Read::default());
        assert_eq!(read(&BTreeMap::from([("other".to_owned(), "x".to_owned())])), Read::default());
    }
}
