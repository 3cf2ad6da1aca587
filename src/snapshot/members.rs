//! Endpoints that were found take their place among those that are written.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};

use crate::config::model::{Action, Backend, Located, Service, Site, Source};
use crate::discovery::Sets;

/// Where endpoints of a site's services are found; each source once.
pub(super) fn sources(site: &Site) -> Vec<Source> {
    let services = site.routes.iter().filter_map(|route| match &route.action {
        Action::Proxy(service) => Some(service),
        _ => None,
    });
    let all = services.flat_map(|service| service.all()).flat_map(|service| &service.sources);
    let all: BTreeSet<_> = all.map(|found| &found.value.source).collect();
    all.into_iter().cloned().collect()
}

/// What was found at each of these sources. To be asked before the endpoints are: what comes in between is then found
/// again, not missed.
pub(super) fn prints(sources: &[Source], sets: &Sets) -> Vec<u64> {
    sources.iter().map(|source| sets.print(source)).collect()
}

/// A service with what its sources found last among its backends. An address that is there twice counts once, as
/// written before found.
pub(super) fn expanded<'a>(said: &'a Service, sets: &Sets) -> Cow<'a, Service> {
    if said.sources.is_empty() {
        return Cow::Borrowed(said);
    }
    let mut service = said.clone();
    let mut seen: HashSet<_> =
        said.backends.iter().map(|backend| (backend.value.address.clone(), backend.value.tls)).collect();
    for Located { value: found, origin } in &said.sources {
        for member in sets.of(&found.source).members.iter() {
            if !seen.insert((member.address.clone(), found.tls)) {
                continue;
            }
            let backend = Backend {
                address: member.address.clone(),
                tls: found.tls,
                weight: member.weight.unwrap_or(found.weight),
                name: member.name.clone(),
                backup: found.backup,
            };
            service.backends.push(Located { value: backend, origin: origin.clone() });
        }
    }
    Cow::Owned(service)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::discovery::Member;

    #[test]
    fn what_is_found_joins_what_is_written_and_twins_count_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tidegate.toml");
        let text = r#"
            [site."a.test"]
            backends = ["10.0.0.1:80", { address = "file:web", weight = 3 }, "file:more"]
            split = [{ name = "next", percent = 5, backends = ["file:next"] }]
            [[site."a.test".route]]
            path = "/api/"
            backends = [{ address = "file:web", tls = true }]
        "#;
        std::fs::write(&file, text).unwrap();
        let loaded = config::load(&file);
        assert!(!loaded.has_errors(), "{:?}", loaded.diagnostics);
        let site = loaded.sites[0].site.as_ref().unwrap();
        let named = sources(site);
        let place = |name: &str| Source::File(folder.path().join(name).to_string_lossy().into());
        assert_eq!(named, [place("more"), place("next"), place("web")]);
        // The canonical text says the same from anywhere.
        let server = loaded.server.as_ref().unwrap();
        let (again, _) = config::parse_site("a.test", "/elsewhere".as_ref(), &loaded.sites[0].text, server);
        assert_eq!(sources(&again.unwrap()), named);
        let sets = Sets::default();
        let at = |text: &str| Member::at(config::section::host::endpoint(text).unwrap());
        sets.learn(&place("web"), vec![at("10.0.0.1:80"), Member { weight: Some(9), ..at("10.0.0.2:80") }]);
        sets.learn(&place("more"), vec![at("10.0.0.2:80"), at("10.0.0.3:80")]);
        let listed = |at: usize| -> Vec<String> {
            let Action::Proxy(service) = &site.routes[at].action else { panic!("no backends") };
            let all = expanded(service, &sets).into_owned().backends;
            all.iter().map(|b| format!("{} {} {}", b.value.address, b.value.tls, b.value.weight)).collect()
        };
        assert_eq!(listed(1), ["10.0.0.1:80 false 1", "10.0.0.2:80 false 9", "10.0.0.3:80 false 1"]);
        assert_eq!(listed(0), ["10.0.0.1:80 true 1", "10.0.0.2:80 true 9"]);
    }
}
