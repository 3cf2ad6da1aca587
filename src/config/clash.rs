//! Two sites that claim one host: the older one keeps it, the younger one is wrong.

use std::collections::HashMap;
use std::sync::Arc;

use super::diagnostic::Diagnostic;
use super::model::{HostPattern, Located, Origin, Site};
use super::section::host;

/// The code of every diagnostic made here.
pub const CODE: &str = "host-clash";

/// Finds the sites that claim a host of an older one. Each comes with its age: the smaller number is the older site;
/// equal ages are decided by name. A site that loses claims nothing, so it takes no third site with it.
///
/// Gives one diagnostic for each losing site, with the site's name in it.
pub fn clashes(sites: &[(Arc<str>, &Site, u64)]) -> Vec<Diagnostic> {
    let mut order: Vec<_> = sites.iter().collect();
    order.sort_by(|a, b| (a.2, &a.0).cmp(&(b.2, &b.0)));
    let mut owners: HashMap<&HostPattern, (&Arc<str>, &Origin)> = HashMap::new();
    let mut losers = Vec::new();
    for (name, site, _) in order {
        let taken = site.hosts.iter().find_map(|host| owners.get(&host.value).map(|owner| (host, *owner)));
        match taken {
            Some((host, owner)) => losers.push(lost(name, host, owner)),
            None => owners.extend(site.hosts.iter().map(|host| (&host.value, (name, &host.origin)))),
        }
    }
    losers
}

fn lost(name: &Arc<str>, host: &Located<HostPattern>, (owner, at): (&Arc<str>, &Origin)) -> Diagnostic {
    let place = match at {
        Origin::File { path, line, .. } => {
            let file = path.file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
            format!(" ({file}, line {line})")
        }
        Origin::Default => String::new(),
    };
    let message =
        format!("the host `{}` already belongs to the site `{owner}`{place}", host::written(&host.value));
    Diagnostic::error(CODE, &host.origin, message)
        .help("a host belongs to one site: remove it here or there")
        .for_site(name)
}
