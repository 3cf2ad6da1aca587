//! Other versions of a site in force that differ from it in one thing. All else stays as it is, whatever its text, its files
//! and the server's settings say by now: that is a matter of reloads.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::config::Diagnostic;
use crate::config::model;
use crate::snapshot::compile::{self, Input};
use crate::snapshot::files;
use crate::snapshot::members;
use crate::snapshot::resident::Residents;
use crate::snapshot::{Action, Branch, Service, Site, Split};
use crate::upstream;

/// The site with the endpoints that its sources have now; `None` where those are the ones it has. `model` is what it was
/// compiled from.
///
/// # Errors
/// An endpoint by a name that no certificate can have.
pub fn with_endpoints(
    site: &Site,
    model: &model::Site,
    generation: u64,
    residents: &Residents,
) -> Result<Option<Arc<Site>>, Box<Diagnostic>> {
    let found = members::prints(&site.sources, &residents.sets);
    if found == site.found {
        return Ok(None);
    }
    let mut site = Site { generation, found, ..site.clone() };
    for (route, said) in site.routes.iter_mut().zip(&model.routes) {
        if let (Action::Proxy(service), model::Action::Proxy(said)) = (&mut route.action, &said.action)
            && said.all().any(|service| !service.sources.is_empty())
        {
            *service = Arc::new(with_members(service, said, residents)?);
        }
    }
    Ok(Some(Arc::new(site)))
}

fn with_members(
    service: &Service,
    said: &model::Service,
    residents: &Residents,
) -> Result<Service, Box<Diagnostic>> {
    let (tls, tls_alone) = (service.tls.clone(), service.tls_alone.clone());
    let mut new = Service {
        tls,
        tls_alone,
        ..compile::with_members(said, &service.owner, residents, &residents.sets)?
    };
    if let (Some(split), Some(said)) = (&service.split, &said.split) {
        let branch = |(branch, said): (&Branch, &model::Branch)| {
            let service = with_members(&branch.service, &said.service, residents)?;
            Ok(Branch { service, series: branch.series })
        };
        let branches = split.branches.iter().zip(&said.branches).map(branch);
        let branches = branches.collect::<Result<_, Box<Diagnostic>>>()?;
        let rules = upstream::Split::compile(said, &new.core.name);
        new.split = Some(Box::new(Split { rules, branches }));
    }
    Ok(new)
}

/// The site with the certificate that is there for it now, and with what the files about those of clients say now; `None`
/// where that is what it has, or cannot be had. `input` is what it was compiled from.
pub fn with_certificates(site: &Site, input: &Input<'_>, residents: &Residents) -> Option<Arc<Site>> {
    let identity = compile::identity(input, residents).ok().filter(|(identity, _)| identity.is_some());
    let (identity, source) = identity.unwrap_or_else(|| (site.identity.clone(), site.source));
    let policy = files::policy(input.site, residents).unwrap_or_else(|_| site.policy.clone());
    let print = identity.as_ref().map(|identity| identity.fingerprint);
    let before = site.identity.as_ref().map(|identity| identity.fingerprint);
    if (print, source, policy.key) == (before, site.source, site.policy.key) {
        return None;
    }
    // Unlike any that files give: as soon as all of them are good again, the site is compiled anew.
    let mut hash = Sha256::new();
    hash.update(site.fingerprint);
    hash.update(print.unwrap_or_default());
    hash.update(policy.key);
    let fingerprint = hash.finalize().into();
    Some(Arc::new(Site {
        generation: input.generation,
        fingerprint,
        identity,
        source,
        policy,
        ..site.clone()
    }))
}
