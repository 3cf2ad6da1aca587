//! Two sites that claim one host: the older one keeps it, the younger one is wrong.

use std::collections::HashMap;
use std::sync::Arc;

use super::diagnostic::Diagnostic;
use super::model::{Claim, Origin, Site};
use super::section::host;
use crate::base::gentle;

/// The code of every diagnostic made here.
pub const CODE: &str = "host-clash";

/// Finds the sites that claim a host (or names on demand) of an older one. Each comes with its age: the smaller number
/// is the older site; equal ages are decided by name. A site that loses claims nothing, so it takes no third site with
/// it.
///
/// Gives one diagnostic for each losing site, with the site's name in it.
pub fn clashes(sites: &[(Arc<str>, &Site, u64)]) -> Vec<Diagnostic> {
    let mut order: Vec<_> = sites.iter().collect();
    gentle::sort_by(&mut order, |a, b| (a.2, &a.0).cmp(&(b.2, &b.0)));
    let mut owners: HashMap<Claim, (&Arc<str>, &Origin)> = HashMap::with_capacity(order.len());
    let mut losers = Vec::new();
    for (name, site, _) in gentle::each(order) {
        let taken = site.claims().find_map(|(claim, at)| {
            let owner = *owners.get(&claim)?;
            Some((claim, at, owner))
        });
        match taken {
            Some((claim, at, owner)) => losers.push(lost(name, &claim, at, owner)),
            None => owners.extend(site.claims().map(|(claim, at)| (claim, (name, at)))),
        }
    }
    losers
}

fn lost(name: &Arc<str>, claim: &Claim, here: &Origin, (owner, at): (&Arc<str>, &Origin)) -> Diagnostic {
    let place = match at {
        Origin::File(place) => {
            let file = place.path().file_name().map(|file| file.to_string_lossy().into_owned());
            format!(" ({}, line {})", file.unwrap_or_default(), place.line())
        }
        Origin::Default => String::new(),
    };
    let message = format!("{} already belongs to the site `{owner}`{place}", host::claimed(claim));
    let help = match claim {
        Claim::Host(_) => "a host belongs to one site: remove it here or there",
        Claim::OnDemand(_) => "these names belong to one site: remove them here or there",
        Claim::Ask => {
            "one site alone takes what no other names: let its `ask` know the names of both, or list them in `allow`"
        }
    };
    Diagnostic::error(CODE, here, message).help(help).for_site(name)
}
