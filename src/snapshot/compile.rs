//! Config and residents in, one snapshot out. No logic of its own: each craft compiles its part, this calls them in
//! order and collects what they refuse.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

use crate::base::gentle;
use crate::config::look::Look;
use crate::config::model::{
    self, Certificate, HostPattern, Http, LimitKey, Located, Origin, TlsVersion, UntilIssued, Upstream,
};
use crate::config::section::host;
use crate::config::{self, Diagnostic};
use crate::discovery::Sets;
use crate::policy::ban;
use crate::policy::cors::Cors;
use crate::policy::header::HeaderEdits;
use crate::policy::redirect::Redirect;
use crate::policy::respond::Respond;
use crate::policy::rewrite::Rewrite;
use crate::policy::security::Security;
use crate::policy::share::Tenant;
use crate::policy::via::Via;
use crate::route::{HostIndex, Table};
use crate::snapshot::auth;
use crate::snapshot::files::{self, Toward};
use crate::snapshot::members;
use crate::snapshot::policies;
use crate::snapshot::resident::Residents;
use crate::snapshot::{Action, Branch, Guard, Route, Service, Site, Snapshot, Source, Split};
use crate::tls;
use crate::tls::acme::demand::{Rules, Terms};
use crate::tls::index::CertificateIndex;
use crate::tls::pem::{Identity, Which};
use crate::tls::policy::Policy;
use crate::upstream;

/// A site and what it is known by.
pub struct Input<'a> {
    /// What the operator meant.
    pub site: &'a model::Site,
    /// The text it was read from; with the certificate it decides whether a site changed.
    pub text: &'a str,
    /// The version in force, if there is one.
    pub current: Option<&'a Arc<Site>>,
    /// A copy of the certificate that worked last, for when the files cannot be used.
    pub kept: Option<Arc<Identity>>,
    /// How the files looked that it names, as far as they were looked at before they are read.
    pub seen: Option<&'a Look>,
    /// The server's settings.
    pub server: &'a model::Server,
    /// The generation being made.
    pub generation: u64,
}

/// Compiles a site, or carries the version in force over when nothing about it changed.
///
/// # Errors
/// Everything that is wrong with it.
pub fn site(input: &Input<'_>, residents: &Residents) -> Result<Arc<Site>, Vec<Diagnostic>> {
    let model = input.site;
    let fail = |diagnostic: Box<Diagnostic>| vec![diagnostic.for_site(&model.name)];
    let (identity, source) = match &input.kept {
        Some(kept) => (Some(kept.clone()), Source::Files),
        None => identity(input, residents).map_err(fail)?,
    };
    let policy = files::policy(model, residents).map_err(fail)?;
    let toward = files::toward_all(model, residents).map_err(fail)?;
    let addresses = policies::of_site(model, input.server, residents).map_err(fail)?;
    let sources = members::sources(model);
    let auths = auth::read(model).map_err(fail)?;
    let found = members::prints(&sources, &residents.sets);
    let fingerprint = fingerprint(input, identity.as_deref(), source, &policy, &toward, residents);
    let fingerprint = auths.mixed_into(fingerprint);
    let unchanged = |current: &&Arc<Site>| current.fingerprint == fingerprint && current.found == found;
    if let Some(current) = input.current.filter(unchanged) {
        return Ok(current.clone());
    }
    let auths = auths.compile(model, residents).map_err(fail)?;
    let (table, routes) = self::routes(model, &toward, auths, residents)?;
    let none = Arc::from("");
    Ok(Arc::new(Site {
        name: model.name.clone(),
        fingerprint,
        generation: input.generation,
        hosts: model.hosts.iter().map(|host| host.value.clone()).collect(),
        on_demand: model.on_demand.clone().map(Arc::new),
        claims: model.claims().map(|(claim, _)| claim).collect(),
        waits: model.certificate == Certificate::Acme { until_issued: UntilIssued::Wait },
        tenant: model.tenant.clone(),
        owner: residents.tenants.get(&model.tenant),
        priority: model.priority,
        identity,
        source,
        told_waiting: Arc::default(),
        policy,
        forward: model.tls.client_auth.as_ref().map(|auth| auth.forward).unwrap_or_default(),
        places: residents.places(&model.name),
        max_connections: model.max_connections,
        plain_http: model.plain_http,
        hsts: residents.hsts(model),
        cookies: cookies(model),
        addresses,
        countries: policies::countries(model.countries.as_ref(), residents).map_err(fail)?,
        would_block: residents.would_block(&model.name),
        patches: model.patches.clone(),
        ban: model.ban.as_ref().map(|rule| Arc::new(residents.ban_rule(rule, Some(&model.name)))),
        limits: model.limits.iter().map(|l| residents.limit(model, &none, l)).collect(),
        table,
        routes,
        sources,
        found,
    }))
}

/// A site's routes, and what finds them.
fn routes(
    model: &model::Site,
    toward: &[Toward],
    auths: Vec<Option<Arc<Guard>>>,
    residents: &Residents,
) -> Result<(Table, Vec<Route>), Vec<Diagnostic>> {
    let (mut problems, mut routes) = (Vec::new(), Vec::with_capacity(model.routes.len()));
    for ((said, toward), auth) in model.routes.iter().zip(toward).zip(auths) {
        match route(model, said, toward, residents) {
            Ok(route) => routes.push(Route { auth, ..route }),
            Err(diagnostic) => problems.push(diagnostic.for_site(&model.name)),
        }
    }
    match Table::compile(&model.routes) {
        Ok(table) if problems.is_empty() => return Ok((table, routes)),
        Ok(_) => {}
        Err((index, why)) => {
            let origin = model.routes.get(index).map_or(&model.origin, |route| &route.origin);
            problems.push(Diagnostic::error("bad-regex", origin, why).for_site(&model.name));
        }
    }
    Err(problems)
}

/// A site's certificate, and where it comes from.
type Found = (Option<Arc<Identity>>, Source);

pub(super) fn identity(input: &Input<'_>, residents: &Residents) -> Result<Found, Box<Diagnostic>> {
    let site = input.site;
    if site.hosts.is_empty() {
        // Each name on demand has a certificate of its own.
        return Ok((None, Source::Acme));
    }
    let hosts: Vec<HostPattern> = site.hosts.iter().map(|host| host.value.clone()).collect();
    let internal = || {
        residents
            .internal_identity(&hosts)
            .map_err(|why| Box::new(Diagnostic::error("internal-ca", &site.origin, why)))
    };
    match &site.certificate {
        Certificate::Internal => Ok((Some(internal()?), Source::Internal)),
        Certificate::Files { cert, key } => {
            let found = residents.file_identity(cert.value.clone(), key.value.clone(), input.seen);
            let found = found.map_err(|error| {
                let origin = if error.which == Which::Key { &key.origin } else { &cert.origin };
                Box::new(Diagnostic::error("bad-certificate", origin, error.message).help(error.help))
            })?;
            Ok((Some(found), Source::Files))
        }
        Certificate::Acme { until_issued } => {
            let manager = residents.acme.manager();
            let issued = manager.as_ref().and_then(|manager| manager.identity(&site.name, &hosts));
            // Hosts were added: the certificate for those before serves until the one for all is there. A process that
            // starts meanwhile finds it in the store.
            let former = || {
                let former = input.current.filter(|current| current.source == Source::Acme);
                let stored =
                    || manager.as_ref().and_then(|manager| manager.partial_identity(&site.name, &hosts));
                let former = former.and_then(|current| current.identity.clone());
                // For hosts that are all others it is no use.
                let serves = |identity: &Arc<Identity>| {
                    hosts.iter().any(|host| tls::pem::names_cover(identity, &host::written(host)))
                };
                former.filter(serves).or_else(stored)
            };
            match (issued.or_else(former), until_issued) {
                (Some(issued), _) => Ok((Some(issued), Source::Acme)),
                (None, UntilIssued::Internal) => Ok((Some(internal()?), Source::StandIn)),
                (None, UntilIssued::Wait | UntilIssued::Refuse) => Ok((None, Source::Acme)),
            }
        }
    }
}

fn fingerprint(
    input: &Input<'_>,
    identity: Option<&Identity>,
    source: Source,
    policy: &Policy,
    toward: &[Toward],
    residents: &Residents,
) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(input.text.as_bytes());
    hash.update(identity.map(|identity| identity.fingerprint).unwrap_or_default());
    hash.update(source.as_str());
    // What a site inherits from the server where it says nothing itself.
    hash.update(format!("{:?}", input.server.timeouts).as_bytes());
    hash.update(policy.key);
    for toward in toward {
        hash.update(toward.ca.as_ref().map(|(_, content)| *content).unwrap_or_default());
        hash.update(toward.identity.as_ref().map(|identity| identity.fingerprint).unwrap_or_default());
    }
    policies::print(input.site, input.server, residents, &mut hash);
    hash.finalize().into()
}

fn route(
    site: &model::Site,
    said: &model::Route,
    toward: &Toward,
    residents: &Residents,
) -> Result<Route, Box<Diagnostic>> {
    let refuse = |why: String| Box::new(Diagnostic::error("bad-route", &said.origin, why));
    let action = match &said.action {
        model::Action::Proxy(service) => {
            let owner = residents.tenants.get(&site.tenant);
            let mut main = self::service(service, &owner, toward, residents, &residents.sets)?;
            let split = service
                .split
                .as_ref()
                .map(|split| self::split(site, said, service, split, toward, residents));
            main.split = split.transpose()?;
            Action::Proxy(Arc::new(main))
        }
        model::Action::Redirect { to, status } => {
            Action::Redirect(Redirect::compile(to, *status, &said.path).map_err(refuse)?)
        }
        model::Action::Respond { status, body, content_type } => {
            Action::Respond(Respond::compile(*status, body, content_type).map_err(refuse)?)
        }
    };
    let rewrite = said.rewrite.as_ref().map(|rewrite| Rewrite::compile(rewrite, &said.path));
    Ok(Route {
        label: said.label.clone(),
        series: residents.hub.series(&site.name, &said.label),
        addresses: policies::of_route(said, residents)?,
        countries: policies::countries(said.countries.as_ref(), residents)?,
        limits: said.limits.iter().map(|l| residents.limit(site, &said.label, l)).collect(),
        limits_by_user: site
            .limits
            .iter()
            .chain(&said.limits)
            .any(|limit| limit.keys.contains(&LimitKey::User)),
        bandwidth: residents.lanes(site, said),
        max_body: said.max_body,
        rewrite: rewrite.transpose().map_err(refuse)?,
        security: said.security.as_ref().map(Security::compile),
        cors: said.cors.as_ref().map(Cors::compile),
        auth: None,
        request_headers: HeaderEdits::compile(&said.request_headers).map_err(refuse)?.of_requests(),
        response_headers: HeaderEdits::compile(&said.response_headers).map_err(refuse)?,
        action,
    })
}

fn split(
    site: &model::Site,
    route: &model::Route,
    service: &model::Service,
    said: &model::Split,
    toward: &Toward,
    residents: &Residents,
) -> Result<Box<Split>, Box<Diagnostic>> {
    let branch = |branch: &model::Branch| {
        let label = format!("{}#{}", route.label, branch.name);
        let series = residents.hub.series(&site.name, &label);
        let owner = residents.tenants.get(&site.tenant);
        let service = self::service(&branch.service, &owner, toward, residents, &residents.sets)?;
        Ok(Branch { service, series })
    };
    let branches = said.branches.iter().map(branch).collect::<Result<_, Box<Diagnostic>>>()?;
    Ok(Box::new(Split { rules: upstream::Split::compile(said, &service.name), branches }))
}

/// Names of the cookies that a site's services set.
fn cookies(site: &model::Site) -> Box<[Box<[u8]>]> {
    let mut names: Vec<Box<[u8]>> = Vec::new();
    for route in &site.routes {
        if let model::Action::Proxy(service) = &route.action
            && let model::Balance::Sticky(sticky) = &service.balance
            && !names.iter().any(|name| **name == *sticky.cookie.as_bytes())
        {
            names.push(sticky.cookie.as_bytes().into());
        }
    }
    names.into()
}

/// The services of a site that go to a source, with the endpoints that these answers would give them. They are compiled
/// beside those in force, around the same residents, and serve nobody.
///
/// # Errors
/// What is wrong with one of them.
pub fn trial(
    site: &model::Site,
    source: &model::Source,
    sets: &Sets,
    residents: &Residents,
) -> Result<Vec<Service>, Box<Diagnostic>> {
    let mut services = Vec::new();
    let owner = residents.tenants.get(&site.tenant);
    for route in &site.routes {
        let model::Action::Proxy(said) = &route.action else { continue };
        let branches = said.split.iter().flat_map(|split| &split.branches).map(|branch| &branch.service);
        for said in std::iter::once(&**said).chain(branches) {
            if said.sources.iter().any(|found| found.value.source == *source) {
                services.push(service(said, &owner, &files::toward(route, residents)?, residents, sets)?);
            }
        }
    }
    Ok(services)
}

fn service(
    said: &model::Service,
    owner: &Arc<Tenant>,
    toward: &Toward,
    residents: &Residents,
    sets: &Sets,
) -> Result<Service, Box<Diagnostic>> {
    let refuse = |(origin, why): (Origin, String)| Box::new(Diagnostic::error("bad-upstream", &origin, why));
    let mut service = with_members(said, owner, residents, sets)?;
    // Also where nothing was found yet: what is found later comes without a look at any file.
    let encrypted = said.backends.iter().any(|backend| backend.value.tls)
        || said.sources.iter().any(|source| source.value.tls);
    let identity = toward.identity.as_deref();
    let config = |upstream: &Upstream| residents.client_config(upstream, toward.ca.clone(), identity);
    service.tls = encrypted.then(|| config(&said.upstream)).transpose().map_err(refuse)?;
    let alone = Upstream { http: Http::H1, ..said.upstream.clone() };
    service.tls_alone =
        (service.core.http == Http::Auto).then(|| config(&alone)).transpose().map_err(refuse)?;
    Ok(service)
}

/// A service with the endpoints that its sources have now, and no means to speak TLS.
pub(super) fn with_members(
    said: &model::Service,
    owner: &Arc<Tenant>,
    residents: &Residents,
    sets: &Sets,
) -> Result<Service, Box<Diagnostic>> {
    let said = &*members::expanded(said, sets);
    let mut server_names = Vec::with_capacity(said.backends.len());
    for Located { value: backend, origin } in &said.backends {
        let name = backend.tls.then(|| tls::client::server_name(&said.upstream, &backend.address.host()));
        server_names.push(name.transpose().map_err(|(at, why)| {
            let at = if at == Origin::Default { origin } else { &at };
            Box::new(Diagnostic::error("bad-upstream", at, why))
        })?);
    }
    let core = upstream::Service::compile(said, &residents.endpoints, residents.ledger(&said.name));
    Ok(Service { core, owner: owner.clone(), server_names, tls: None, tls_alone: None, split: None })
}

/// Puts compiled sites together. Hosts are known not to clash.
///
/// # Errors
/// A sentence when the handshake settings cannot be made.
pub fn assemble(
    generation: u64,
    server: Arc<model::Server>,
    sites: Vec<Arc<Site>>,
    unavailable: HashSet<Arc<str>>,
    https_port: Option<u16>,
    residents: &Residents,
) -> Result<Snapshot, String> {
    let hosts = HostIndex::build(
        gentle::each(&sites)
            .enumerate()
            .flat_map(|(index, site)| site.hosts.iter().map(move |host| (host.clone(), index))),
    );
    let certificates = gentle::each(&sites).filter_map(|site| Some((site, key(site)?)));
    let certificates =
        certificates.flat_map(|(site, key)| site.hosts.iter().map(move |host| (host.clone(), key.clone())));
    let default = server.default_certificate.as_ref();
    let default = default.and_then(|name| sites.iter().position(|site| site.name == name.value));
    let fallback = default.and_then(|index| sites.get(index)).and_then(|site| self::key(site));
    let certificates = Arc::new(CertificateIndex::new(certificates, fallback));
    let rules = rules(&server, &sites);
    let patches = residents.guard(&server, &sites);
    let waiting = sites.iter().any(|site| site.identity.is_none() && !site.hosts.is_empty());
    let strips = auth::strips(&sites);
    let plain = Policy::plain(TlsVersion::V12);
    let refusing = (waiting || !rules.is_empty())
        .then(|| tls::server::server_config(Arc::default(), residents.ticketer.clone(), &plain));
    let snapshot = Snapshot {
        generation,
        server: server.clone(),
        sites,
        hosts: Arc::new(hosts),
        names: Arc::default(),
        rules: Arc::new(rules),
        demand: None,
        unavailable: Arc::new(unavailable),
        https_port,
        tls: tls::server::server_config(certificates.clone(), residents.ticketer.clone(), &plain)?,
        handshakes: Vec::new(),
        default_site: default,
        database: residents.lists.countries(),
        proxies: residents.lists.proxies(&server),
        addresses: policies::of_server(&server, residents).ok().flatten(),
        bans: ban::Watch {
            bans: residents.bans.clone(),
            rule: server.bans.rule.as_ref().map(|rule| Arc::new(residents.ban_rule(rule, None))),
        },
        via: server.via.as_deref().and_then(Via::compile),
        strips,
        certificates,
        refusing: refusing.transpose()?,
        patches,
    };
    named(&snapshot, generation, residents)
}

fn rules(server: &model::Server, sites: &[Arc<Site>]) -> Rules {
    let terms = gentle::often(sites).enumerate().filter_map(|(position, site)| {
        let said = site.on_demand.clone()?;
        Some(Terms { site: site.name.clone(), tenant: site.tenant.clone(), position, said })
    });
    let directories = server.acme.iter().flat_map(|acme| &acme.directories);
    Rules::new(terms.collect(), directories.into_iter().any(config::section::acme::is_public))
}

/// The same snapshot with the certificates for names on demand that are there now. Its cost grows with those names
/// alone.
///
/// # Errors
/// A sentence when the handshake settings cannot be made.
pub fn named(old: &Snapshot, generation: u64, residents: &Residents) -> Result<Snapshot, String> {
    let manager = residents.acme.manager();
    let names =
        manager.as_ref().map(|manager| manager.named(&old.rules, |name| old.hosts.find(name).is_some()));
    let names = Arc::new(names.unwrap_or_default());
    let certificates = Arc::new(old.certificates.with_names(names.clone()));
    let plain = Policy::plain(TlsVersion::V12);
    let tls = tls::server::server_config(certificates.clone(), residents.ticketer.clone(), &plain)?;
    let handshakes = handshakes(&old.sites, &certificates, &tls, &plain, residents)?;
    Ok(Snapshot {
        generation,
        names,
        demand: manager.map(|manager| manager.demand()),
        tls,
        handshakes,
        certificates,
        ..old.clone()
    })
}

/// The same snapshot with other versions of some sites, which differ in their endpoints alone. `others`: position and
/// version.
pub fn with_sites(old: &Snapshot, generation: u64, others: Vec<(usize, Arc<Site>)>) -> Snapshot {
    let mut sites = old.sites.clone();
    for (position, site) in others {
        if let Some(place) = sites.get_mut(position) {
            *place = site;
        }
    }
    Snapshot { generation, sites, ..old.clone() }
}

fn key(site: &Site) -> Option<Arc<CertifiedKey>> {
    site.identity.as_ref().map(|identity| identity.key.clone())
}

/// The handshake settings of each site: one value for each policy, however many sites have it.
fn handshakes(
    sites: &[Arc<Site>],
    index: &Arc<CertificateIndex>,
    tls: &Arc<ServerConfig>,
    plain: &Policy,
    residents: &Residents,
) -> Result<Vec<Arc<ServerConfig>>, String> {
    let mut made = HashMap::from([(plain.key, tls.clone())]);
    let mut all = Vec::with_capacity(sites.len());
    for site in sites {
        let config = match made.get(&site.policy.key) {
            Some(config) => config.clone(),
            None => {
                let config =
                    tls::server::server_config(index.clone(), residents.ticketer.clone(), &site.policy)?;
                made.insert(site.policy.key, config.clone());
                config
            }
        };
        all.push(config);
    }
    Ok(all)
}
