//! Layer 3: the configuration compiled into one immutable value that requests read, and the one swap.
//!
//! Everything a request may need was parsed, resolved and looked up when the snapshot was made: a request follows
//! references and indices. This folder stays thin: each craft compiles its own part, `compile` calls them.

pub mod amend;
mod auth;
pub mod cell;
pub mod compile;
mod files;
pub mod hsts_since;
pub mod lists;
mod members;
mod policies;
pub mod resident;
mod sticky_key;

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;

use crate::base::address::CidrSet;
use crate::base::clock::Millis;
use crate::base::gentle;
use crate::config::model;
use crate::policy::address::AddressList;
use crate::policy::auth::Auth;
use crate::policy::auth::strip::Strip;
use crate::policy::ban;
use crate::policy::bandwidth::Lanes;
use crate::policy::cors::Cors;
use crate::policy::country::{CountryList, Database};
use crate::policy::header::HeaderEdits;
use crate::policy::hsts::Hsts;
use crate::policy::patch;
use crate::policy::rate_limit::Rule;
use crate::policy::redirect::Redirect;
use crate::policy::respond::Respond;
use crate::policy::rewrite::Rewrite;
use crate::policy::security::Security;
use crate::policy::shadow::WouldBlock;
use crate::policy::share::Tenant;
use crate::policy::site_limit::Places;
use crate::policy::via::Via;
use crate::route::{HostIndex, Table};
use crate::telemetry::hub::SeriesId;
use crate::tls::acme::demand::{self, Demand, Names, Rules};
use crate::tls::index::CertificateIndex;
use crate::tls::pem::Identity;
use crate::tls::policy::Policy;
use crate::upstream;
use crate::upstream::endpoint::Endpoint;

pub use cell::Cell;

/// Everything a request may read. A clone shares what it is made of.
#[derive(Clone)]
pub struct Snapshot {
    /// Counts up with every swap, from 1.
    pub generation: u64,
    /// The server's own settings.
    pub server: Arc<model::Server>,
    /// The sites, by name.
    pub sites: Vec<Arc<Site>>,
    /// From a host to its position in `sites`.
    pub hosts: Arc<HostIndex<usize>>,
    /// Names on demand that have a certificate; none of them is a host of a site.
    pub names: Arc<Names>,
    /// Which site takes which other names on demand.
    pub rules: Arc<Rules>,
    /// Where handshakes wait for a certificate; `None` without `[acme]`.
    pub demand: Option<Arc<Demand>>,
    /// Names of sites that are configured but have no version that works.
    pub unavailable: Arc<HashSet<Arc<str>>>,
    /// Port of the first HTTPS listener as bound, for redirects; `None` where there is none.
    pub https_port: Option<u16>,
    /// Certificates by the names they serve.
    pub certificates: Arc<CertificateIndex>,
    /// The handshake where no site is known; it finds no certificate and refuses.
    pub tls: Arc<ServerConfig>,
    /// The handshake of each site, by its position in `sites`: one for each policy, with the certificates of all sites.
    pub handshakes: Vec<Arc<ServerConfig>>,
    /// Position of the site that answers clients without a name, or with an unknown one.
    pub default_site: Option<usize>,
    /// Knows the countries of addresses.
    pub database: Option<Arc<Database>>,
    /// Networks of proxies that are not trusted, with the names of their lists.
    pub proxies: Vec<(Arc<str>, Arc<CidrSet>)>,
    /// The server's own list of addresses, for connections.
    pub addresses: Option<Arc<AddressList>>,
    /// Who is banned from all sites.
    pub bans: ban::Watch,
    /// What requests to backends say of the way they took; `None`: nothing.
    pub via: Option<Via>,
    /// Fields that clients may not write, for each site by its position in `sites`: those of all sites of its tenant.
    pub strips: Arc<[Arc<Strip>]>,
    /// Refuses handshakes for names whose certificate is not there yet; `None` where every site has one and none takes
    /// names on demand, so that a handshake then costs no look.
    pub refusing: Option<Arc<ServerConfig>>,
    /// Virtual patches; `None` where nothing is looked for.
    pub patches: Option<Arc<patch::Guard>>,
}

impl Snapshot {
    /// Takes over what its services say about their endpoints, when it comes into force. Sites that `old` has too are
    /// passed over.
    pub fn adopt(&self, old: Option<&Snapshot>, now: Millis) {
        let known = |site: &Arc<Site>| {
            // They stand in the order of their names.
            let sites = old.map(|old| &old.sites)?;
            sites.get(sites.binary_search_by(|other| other.name.cmp(&site.name)).ok()?)
        };
        let changed = gentle::each(&self.sites)
            .filter(|site| known(site).is_none_or(|known| !Arc::ptr_eq(known, site)));
        changed.flat_map(|site| site.services()).for_each(|service| service.core.adopt(now));
    }

    /// The position of the site that serves this host: one of its hosts, or a name on demand that has a certificate.
    pub fn find(&self, host: &str) -> Option<usize> {
        let on_demand = || self.names.get(host).map(|named| named.position);
        self.hosts.find(host).copied().or_else(on_demand)
    }

    /// The country of an address, as far as there is a database that knows it.
    pub fn country(&self, address: IpAddr) -> Option<model::Country> {
        self.database.as_ref()?.country(address)
    }

    /// Whether a certificate is in force for what [`crate::tls::acme::demand`] knows by this id.
    pub fn serves(&self, id: &str) -> bool {
        match demand::name(id) {
            Some(name) => self.names.contains_key(name),
            // They stand in the order of their names.
            None => {
                let found = self.sites.binary_search_by(|site| (*site.name).cmp(id));
                found.is_ok_and(|at| self.sites.get(at).is_some_and(|site| site.identity.is_some()))
            }
        }
    }
}

/// A site, compiled.
#[derive(Clone)]
pub struct Site {
    /// Its name.
    pub name: Arc<str>,
    /// What it was compiled from besides `found`; unchanged sites are carried over from one snapshot to the next.
    pub fingerprint: [u8; 32],
    /// The generation in which this version came.
    pub generation: u64,
    /// Names served.
    pub hosts: Vec<model::HostPattern>,
    /// Names it takes on demand.
    pub on_demand: Option<Arc<model::OnDemand>>,
    /// What no other site may claim beside it.
    pub claims: Vec<model::Claim>,
    /// Who owns it.
    pub tenant: Arc<str>,
    /// What the owner's sites have together.
    pub owner: Arc<Tenant>,
    /// In which order its requests are given up in an overload.
    pub priority: model::Priority,
    /// Certificate and key; `None`: an automatic one that is not there yet, or no hosts.
    pub identity: Option<Arc<Identity>>,
    /// Handshakes wait for an automatic certificate that is not there yet.
    pub waits: bool,
    /// Where the certificate comes from.
    pub source: Source,
    /// When a refused handshake was last told in the log, in seconds of process time plus one; 0 is never.
    pub told_waiting: Arc<AtomicU64>,
    /// How it speaks TLS with clients.
    pub policy: Arc<Policy>,
    /// What its backends hear about a client's certificate.
    pub forward: model::Forward,
    /// Its open connections, and how many there may be (0 = no cap).
    pub places: Arc<Places>,
    /// See `places`.
    pub max_connections: u32,
    /// Plain HTTP is served, not redirected.
    pub plain_http: bool,
    /// Browsers are told to keep to HTTPS.
    pub hsts: Option<Hsts>,
    /// Names of cookies of ours that backends never see.
    pub cookies: Box<[Box<[u8]>]>,
    /// What its policies would have refused.
    pub would_block: Arc<WouldBlock>,
    /// Addresses that are let in: the server's list, then the site's.
    pub addresses: Vec<Arc<AddressList>>,
    /// Countries that are let in.
    pub countries: Option<CountryList>,
    /// What it says about virtual patches.
    pub patches: model::SitePatches,
    /// What bans clients from it.
    pub ban: Option<Arc<ban::Rule>>,
    /// Limits over all routes.
    pub limits: Vec<Rule>,
    /// Finds a route.
    pub table: Table,
    /// The routes; the table's answers are positions in it.
    pub routes: Vec<Route>,
    /// Where endpoints of its services are found; each once.
    pub sources: Vec<model::Source>,
    /// What was found at each of them; see [`Sets::print`](crate::discovery::Sets::print).
    pub found: Vec<u64>,
}

/// Where a site's certificate comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The internal CA.
    Internal,
    /// PEM files.
    Files,
    /// An ACME authority.
    Acme,
    /// The internal CA, until the first certificate of an ACME authority is there.
    StandIn,
}

impl Source {
    /// What `status` calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Internal => "internal",
            Source::Files => "files",
            Source::Acme => "acme",
            Source::StandIn => "internal until issued",
        }
    }

    /// Whether a client must know the internal CA to trust it.
    pub fn is_internal(self) -> bool {
        matches!(self, Source::Internal | Source::StandIn)
    }

    /// Whether the certificate is to come from an ACME authority.
    pub fn is_automatic(self) -> bool {
        matches!(self, Source::Acme | Source::StandIn)
    }
}

/// Seconds between two lines of the log about one site that has no certificate yet.
const TELL_WAITING_EVERY: u64 = 60;

impl Site {
    /// Where its routes lead.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        let proxied = self.routes.iter().filter_map(|route| match &route.action {
            Action::Proxy(service) => Some(service),
            Action::Redirect(_) | Action::Respond(_) => None,
        });
        proxied.flat_map(|service| service.all())
    }

    /// Whether it is time to tell again that handshakes are refused; `now` in seconds of process time.
    pub fn tell_waiting(&self, now: u64) -> bool {
        let last = self.told_waiting.load(Ordering::Relaxed);
        let due = last == 0 || now + 1 >= last + TELL_WAITING_EVERY;
        // Of several workers that see it due at once, one tells.
        due && self.told_waiting.compare_exchange(last, now + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// A route, compiled.
#[derive(Clone)]
pub struct Route {
    /// What logs and metrics call it.
    pub label: Arc<str>,
    /// Where its requests are counted.
    pub series: SeriesId,
    /// Addresses that are let in, of those that the site lets in.
    pub addresses: Option<Arc<AddressList>>,
    /// Countries that are let in, of those that the site lets in.
    pub countries: Option<CountryList>,
    /// Limits besides the site's.
    pub limits: Vec<Rule>,
    /// Whether one of them, or of the site's, counts users.
    pub limits_by_user: bool,
    /// Bytes in a second, the site's limits among them; `None`: any.
    pub bandwidth: Option<Box<Lanes>>,
    /// Bytes a request body may have.
    pub max_body: Option<u64>,
    /// Change of the path.
    pub rewrite: Option<Rewrite>,
    /// Fields that make browsers more careful.
    pub security: Option<Security>,
    /// Whose pages may use it from another origin.
    pub cors: Option<Cors>,
    /// Who may come in; `None`: everybody.
    pub auth: Option<Arc<Guard>>,
    /// Edits of the request.
    pub request_headers: HeaderEdits,
    /// Edits of the answer.
    pub response_headers: HeaderEdits,
    /// Where it leads.
    pub action: Action,
}

/// Who may come in, and who is asked about it.
pub struct Guard {
    /// The decision.
    pub auth: Auth,
    /// The service that is asked, where one is.
    pub service: Option<AuthService>,
}

/// How a service is reached that says who may come in.
pub struct AuthService {
    /// Where it is.
    pub endpoint: Arc<Endpoint>,
    /// The name expected in its certificate, where it speaks TLS.
    pub name: Option<ServerName<'static>>,
    /// How TLS is spoken to it.
    pub config: Option<Arc<ClientConfig>>,
}

impl AuthService {
    /// How TLS is spoken to it; `None`: not at all.
    pub fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.config.as_ref()
    }
}

/// Where a route leads.
#[derive(Clone)]
pub enum Action {
    /// To backends.
    Proxy(Arc<Service>),
    /// To another address.
    Redirect(Redirect),
    /// A fixed answer.
    Respond(Respond),
}

/// A named set of endpoints, and how to speak TLS with them.
pub struct Service {
    /// Endpoints, balancing, deadlines.
    pub core: upstream::Service,
    /// Who owns its site.
    pub owner: Arc<Tenant>,
    /// For each endpoint the name expected in its certificate, where it speaks TLS.
    pub server_names: Vec<Option<ServerName<'static>>>,
    /// How to speak TLS, where any endpoint does.
    pub tls: Option<Arc<ClientConfig>>,
    /// The same with HTTP/1.1 alone offered, where endpoints choose: for tunnels, and for those that chose it before.
    pub tls_alone: Option<Arc<ClientConfig>>,
    /// Where a share of its requests goes instead.
    pub split: Option<Box<Split>>,
}

/// Where shares of a service's requests go.
pub struct Split {
    /// Which requests go to which branch.
    pub rules: upstream::Split,
    /// In the order of the rules.
    pub branches: Box<[Branch]>,
}

/// Other endpoints of a split service.
pub struct Branch {
    /// Has no split of its own.
    pub service: Service,
    /// Where its requests are counted.
    pub series: SeriesId,
}

impl Service {
    /// The service and its branches.
    pub fn all(&self) -> impl Iterator<Item = &Service> {
        let branches = self.split.iter().flat_map(|split| &split.branches);
        std::iter::once(self).chain(branches.map(|branch| &branch.service))
    }
}
