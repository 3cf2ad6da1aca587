//! What the operator meant: the typed settings, every default filled in, every unit converted.
//!
//! Nothing here is a runtime type: no socket, certificate or compiled regex. The parser (`parse`) makes these, each
//! craft's `compile` reads them. Values that can still fail later (files, backends, hosts) carry their [`Origin`].

mod address;
mod answer;
mod auth;
mod ban;
mod bandwidth;
mod discovery;
mod dns;
mod docker;
mod health;
mod origin;
mod patch;
mod policy;
mod server;
mod service;
mod share;
mod tls;
mod traffic;

pub use address::{Addresses, Countries, Country, NetworkList, Networks};
pub use answer::{Cors, CorsOrigin, Hsts, SecurityHeaders, SecurityPreset};
pub use auth::{
    Auth, Basic, CacheBy, CertField, CertUser, ForwardAuth, ForwardUrl, JwksUrl, Jwt, JwtAlgorithm, JwtKeys,
    Scheme,
};
pub use ban::{BanRule, Bans, Offence};
pub use bandwidth::{Bandwidth, Flow};
pub use discovery::Resolution;
pub use dns::{Cloudflare, Dns, DnsProvider, Exec, Rfc2136, Route53, SecretSource, TsigAlgorithm};
pub use docker::{Docker, DockerSocket};
pub use health::{BodyCheck, Check, Eject, Health, HttpCheck, PANIC_DEFAULT, Statuses};
pub use origin::{Origin, Part, Place};
pub use patch::{Patches, Severity, SitePatches};
pub use policy::{Limit, LimitKey, Mode};
pub use server::{ClientIpDoctor, Limits, Log, Timeouts};
pub use service::{
    Backend, Balance, Branch, Discover, Http, InternalTrust, Key, ProxyHeader, SameSite, Service, Source,
    Split, Sticky, Upstream,
};
pub use share::{Overload, Priority, Shares, Weights};
pub use traffic::{Adaptive, Breaker, Capacity, Cause, Retry};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::base::address::{CidrSet, EndpointAddress};
use crate::base::unit::Rate;

pub use tls::{ClientAuth, Forward, Tls, TlsDefaults, TlsVersion};

/// A value and where it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Where it stands.
    pub origin: Origin,
}

/// Everything that belongs to the server, not to one site.
#[derive(Debug, Clone)]
pub struct Server {
    /// Plain HTTP listeners.
    pub http: Vec<SocketAddr>,
    /// HTTPS listeners.
    pub https: Vec<SocketAddr>,
    /// Where clients of plain HTTP are redirected to; `None` = the port of the first HTTPS listener.
    pub public_https_port: Option<u16>,
    /// Number of workers; `None` = one per core.
    pub workers: Option<usize>,
    /// State folder, absolute.
    pub state: PathBuf,
    /// Peers whose forwarded headers and PROXY protocol are believed.
    pub trusted_proxies: CidrSet,
    /// `[networks]`: networks with names.
    pub networks: Vec<NetworkList>,
    /// Addresses that are let in, whatever site they want.
    pub addresses: Option<Addresses>,
    /// `country_database`, absolute.
    pub country_database: Option<Located<PathBuf>>,
    /// Whether it is looked for signs that client addresses are not those of clients.
    pub client_ip_doctor: ClientIpDoctor,
    /// Whether connections from trusted proxies begin with a PROXY protocol header.
    pub proxy_protocol: bool,
    /// What this node calls itself in `Via` to backends; `None`: it sends none.
    pub via: Option<Box<str>>,
    /// How long a graceful stop waits for what is in flight.
    pub drain: Duration,
    /// Open connections per client address (v6: per /64); 0 = no cap.
    pub max_connections_per_client: u32,
    /// Requests on one connection before it is closed gracefully; 0 = no cap.
    pub max_requests_per_connection: u32,
    /// Open client connections of the whole process; `None` = from the file-descriptor limit.
    pub max_connections: Option<u32>,
    /// Entries of the rate limiters' shared table; bounds its memory at 16 bytes each.
    pub limit_entries: usize,
    /// `tls`: what sites that say nothing about TLS versions get.
    pub tls: TlsDefaults,
    /// Plaintext backends that are not on this machine are refused.
    pub require_encrypted_backends: bool,
    /// What tenants may take of the node.
    pub shares: Shares,
    /// What is given up when the node has too much to do.
    pub overload: Overload,
    /// Deadlines of the data plane.
    pub timeouts: Timeouts,
    /// Sizes of the data plane.
    pub limits: Limits,
    /// The site whose certificate answers clients that send no SNI or an unknown one; `None` refuses them.
    pub default_certificate: Option<Located<Arc<str>>>,
    /// `[metrics] listen`; `None` when `"off"`.
    pub metrics: Option<SocketAddr>,
    /// `[admin] socket`, absolute.
    pub admin_socket: PathBuf,
    /// The access log.
    pub log: Log,
    /// `[dns]`: how names in `backends` are resolved.
    pub resolution: Resolution,
    /// `[demo] listen`: addresses on which built-in demo backends answer.
    pub demo: Vec<SocketAddr>,
    /// `[docker]`: the engine asked for containers; `None` where the section is absent.
    pub docker: Option<Docker>,
    /// `[acme]`: certificates from a public authority; `None` where the section is absent.
    pub acme: Option<Acme>,
    /// `[patches]`: virtual patches; `None` where the section is absent.
    pub patches: Option<Patches>,
    /// `[bans]`: who is turned away from all sites.
    pub bans: Bans,
}

/// One customer's web presence.
#[derive(Debug, Clone)]
pub struct Site {
    /// The key in `[site."…"]`, lower case.
    pub name: Arc<str>,
    /// Where the site's table begins.
    pub origin: Origin,
    /// Names served; at least one, unless `on_demand` is said.
    pub hosts: Vec<Located<HostPattern>>,
    /// Names that no site has among its hosts, taken at their first handshake.
    pub on_demand: Option<OnDemand>,
    /// Who owns the site; default: its name.
    pub tenant: Arc<str>,
    /// In which order its requests are given up in an overload.
    pub priority: Priority,
    /// Where its certificate comes from.
    pub certificate: Certificate,
    /// How it speaks TLS with clients.
    pub tls: Tls,
    /// Connections whose SNI names it, open at once; 0 = no cap.
    pub max_connections: u32,
    /// Serve plain HTTP instead of redirecting to HTTPS.
    pub plain_http: bool,
    /// Browsers are told to keep to HTTPS.
    pub hsts: Option<Hsts>,
    /// Routes in the order written; the site's own `backends` (or `redirect`, `respond`) stand last as the
    /// catch-all `/`. May be empty: every request is then `NO-ROUTE`.
    pub routes: Vec<Route>,
    /// What bans clients from the site.
    pub ban: Option<BanRule>,
    /// Bytes in a second over all its routes.
    pub bandwidth: Bandwidth,
    /// `limit` of the site: one bucket per key over all its routes.
    pub limits: Vec<Limit>,
    /// Addresses that are let in.
    pub addresses: Option<Addresses>,
    /// Countries that are let in.
    pub countries: Option<Countries>,
    /// What it says about virtual patches.
    pub patches: SitePatches,
}

/// A name a site answers to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// A full name, lower case, no trailing dot, no port; IP literals in canonical form (v6 without brackets).
    Exact(Arc<str>),
    /// `*.example.org` is stored as `example.org`; matches exactly one more label.
    Wildcard(Arc<str>),
}

/// Where a site's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Certificate {
    /// The built-in local CA.
    Internal,
    /// PEM files, absolute paths.
    Files { cert: Located<PathBuf>, key: Located<PathBuf> },
    /// From an ACME authority, got and kept by ourselves.
    Acme {
        /// What serves before the first one is there.
        until_issued: UntilIssued,
    },
}

/// What serves a site whose first automatic certificate is not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UntilIssued {
    /// Handshakes wait for a while if its turn is now; otherwise they are refused.
    Wait,
    /// Nothing: handshakes are refused.
    Refuse,
    /// A certificate of the internal CA, which browsers warn about.
    Internal,
}

/// `on_demand = { … }`: names whose certificate is ordered at their first handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnDemand {
    /// Where it stands.
    pub origin: Origin,
    /// Names allowed without a question.
    pub allow: Vec<Located<Allowed>>,
    /// Who is asked about every other name.
    pub ask: Option<Located<AskUrl>>,
    /// First orders in how long; renewals are not counted here.
    pub orders: Rate,
}

/// Names allowed on demand.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Allowed {
    /// One name, or those with exactly one more label.
    Host(HostPattern),
    /// `.example.org` is stored as `example.org`: every name below it, at any depth.
    Below(Arc<str>),
}

/// Who is asked whether a name is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskUrl {
    /// As written.
    pub text: Arc<str>,
    /// `https://`
    pub tls: bool,
    /// Where to connect.
    pub address: EndpointAddress,
    /// Host and port as the `Host` field carries them.
    pub authority: Arc<str>,
    /// Path and query, up to where the name follows.
    pub target: Arc<str>,
}

/// What only one site may have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Claim {
    /// A host.
    Host(HostPattern),
    /// Names on demand.
    OnDemand(Allowed),
    /// Every name that nobody else has: `ask`.
    Ask,
}

impl Site {
    /// What this site claims for itself, and where.
    pub fn claims(&self) -> impl Iterator<Item = (Claim, &Origin)> {
        let hosts = self.hosts.iter().map(|host| (Claim::Host(host.value.clone()), &host.origin));
        let demand = self.on_demand.iter().flat_map(|demand| {
            let allow = demand.allow.iter().map(|a| (Claim::OnDemand(a.value.clone()), &a.origin));
            allow.chain(demand.ask.iter().map(|ask| (Claim::Ask, &ask.origin)))
        });
        hosts.chain(demand)
    }
}

/// A matcher inside a site and where it leads.
#[derive(Debug, Clone)]
pub struct Route {
    /// Unique inside the site; what metrics and logs call it: the `path` as written, `#2` added when it repeats.
    pub label: Arc<str>,
    /// Where it stands.
    pub origin: Origin,
    /// Which paths.
    pub path: PathPattern,
    /// Which methods, upper case; empty = all.
    pub methods: Vec<String>,
    /// All must hold.
    pub headers: Vec<FieldCondition>,
    /// All must hold.
    pub query: Vec<FieldCondition>,
    /// Where it leads.
    pub action: Action,
    /// Bytes in a second of this route, besides the site's.
    pub bandwidth: Bandwidth,
    /// Limits of this route, besides the site's.
    pub limits: Vec<Limit>,
    /// Addresses that are let in, of those that the site lets in.
    pub addresses: Option<Addresses>,
    /// Countries that are let in, of those that the site lets in.
    pub countries: Option<Countries>,
    /// Change of the path before it is sent on.
    pub rewrite: Option<Rewrite>,
    /// Edits of the request's fields.
    pub request_headers: HeaderEdits,
    /// Edits of the answer's fields.
    pub response_headers: HeaderEdits,
    /// Fields that make browsers more careful.
    pub security: Option<SecurityHeaders>,
    /// Whose pages may use it from another origin.
    pub cors: Option<Cors>,
    /// Who may come in; `None`: everybody.
    pub auth: Option<Arc<Auth>>,
    /// Bytes of a request body; `None` = unlimited. Site value where the route has none.
    pub max_body: Option<u64>,
}

/// Which paths a route takes. All are compared with the normalised path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathPattern {
    /// `"=/exact"`
    Exact(String),
    /// `"/api/"` or `"/api"`: at a segment border. `/api/` matches `/api/…` and `/api`; `/api` likewise.
    Prefix(String),
    /// `"~^/v[0-9]+/"`; already known to compile, with its origin for later messages.
    Regex(String),
}

/// A condition on a header field or a query parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldCondition {
    /// Field name, lower case; parameter name as is.
    pub name: String,
    /// What its value must be.
    pub test: FieldTest,
}

/// What a field's value must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldTest {
    /// `true`: present.
    Present,
    /// `false`: absent.
    Absent,
    /// `"value"`: equal to.
    Equals(String),
    /// `"~regex"`: matching.
    Regex(String),
}

/// Where a route leads.
#[derive(Debug, Clone)]
pub enum Action {
    /// To backends.
    Proxy(Box<Service>),
    /// To another address. `to` is a path (`/new/`) or a whole URL; a prefix route appends what followed its
    /// prefix when `to` ends with `/`; the query is kept.
    Redirect { to: String, status: u16 },
    /// A fixed answer.
    Respond { status: u16, body: String, content_type: String },
}

/// Change of the path before it is sent on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rewrite {
    /// `strip = true`: remove the route's prefix.
    StripPrefix,
    /// `rewrite = "/new/"`: the route's prefix is replaced (prefix and exact routes); a regex route may use `$1`.
    Replace(String),
}

/// `{ set = { name = "value" }, add = { … }, remove = ["name"] }`; applied as remove, set, add.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HeaderEdits {
    /// Names to remove, lower case.
    pub remove: Vec<String>,
    /// Fields to replace.
    pub set: Vec<(String, String)>,
    /// Fields to add.
    pub add: Vec<(String, String)>,
}

impl Server {
    /// Whether both mean the same, and were said at the same places.
    pub fn says_the_same(&self, other: &Server) -> bool {
        // Secrets are not in the debug output.
        format!("{self:?}") == format!("{other:?}") && self.acme == other.acme
    }
}

/// `[acme]`: certificates from public CAs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acme {
    /// The CAs in order of preference; at least one. The second is asked after the first failed twice in a row.
    pub directories: Vec<Directory>,
    /// Where the CA may write to; without `mailto:`.
    pub email: Option<String>,
    /// PEM file with one more root for talking to the CA itself, beside the system's; absolute.
    pub ca_file: Option<PathBuf>,
    /// Ways to prove control over a name, in order of preference; at least one.
    pub challenges: Vec<ChallengeKind>,
    /// Orders per account in three hours. 300.
    pub orders_per_3h: u32,
    /// Orders in flight at once. 4.
    pub concurrent: usize,
    /// Profile asked for where the CA offers it, such as `shortlived`.
    pub profile: Option<String>,
    /// Which engine orders.
    pub engine: AcmeEngine,
    /// Where it is tried first after failures.
    pub staging: Staging,
    /// Who writes TXT records; needed for `dns-01`, and so for wildcards.
    pub dns: Option<Dns>,
    /// Keys for what is stored; `None`: it is stored as it is.
    pub store_key: Option<StoreKey>,
}

/// Keys that records of the store are encrypted with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreKey {
    /// For writing and reading.
    pub current: KeySource,
    /// For reading what was written before.
    pub previous: Vec<KeySource>,
}

/// Where a key is read from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum KeySource {
    /// A file; absolute.
    File(PathBuf),
    /// An environment variable.
    Env(String),
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KeySource::File(path) => write!(f, "The key file {}", path.display()),
            KeySource::Env(name) => write!(f, "The environment variable {name}"),
        }
    }
}

impl Acme {
    /// What is beyond the simple engine: the setting, and why, as half a sentence after "because".
    pub fn needs_managed(&self) -> Option<(&'static str, &'static str)> {
        if self.directories.len() > 1 {
            return Some(("directory", "there is a second authority to fall back to"));
        }
        if self.directories.iter().any(|directory| directory.eab.is_some()) {
            return Some(("directory", "the authority wants an external account binding"));
        }
        if self.profile.is_some() {
            return Some(("profile", "a profile is asked for"));
        }
        if self.dns.is_some() {
            return Some(("dns", "it can write TXT records for the challenge dns-01"));
        }
        if self.challenges.contains(&ChallengeKind::Dns01) {
            return Some(("challenges", "the challenge dns-01 is allowed"));
        }
        None
    }

    /// Where a certificate is tried first after failures at this CA.
    pub fn staging_of(&self, directory: &Directory) -> Option<Directory> {
        let found = match &self.staging {
            Staging::Off => None,
            Staging::At(twin) => Some(twin.clone()),
            Staging::Auto => {
                let (_, name, url) = TWINS.iter().find(|(real, ..)| **real == *directory.url)?;
                Some(Directory { name: Arc::from(*name), url: Arc::from(*url), eab: None })
            }
        };
        found.filter(|twin| twin.url != directory.url)
    }
}

/// CAs with a staging twin: the address of the real one, the name and the address of the twin.
const TWINS: [(&str, &str, &str); 1] = [(
    "https://acme-v02.api.letsencrypt.org/directory",
    "letsencrypt-staging",
    "https://acme-staging-v02.api.letsencrypt.org/directory",
)];

/// Where a certificate that failed twice is tried before the real CA is asked again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Staging {
    /// At the CA's own staging twin, where it is known to have one.
    Auto,
    /// Nowhere.
    Off,
    /// There.
    At(Directory),
}

/// One CA.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Directory {
    /// What `certs` calls it.
    pub name: Arc<str>,
    /// Its ACME directory, an `https://` URL.
    pub url: Arc<str>,
    /// External account binding (RFC 8555 section 7.3.4), if the CA wants it.
    pub eab: Option<Eab>,
}

/// The identity a CA gave out beforehand.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Eab {
    /// Key identifier.
    pub id: String,
    /// MAC key as the CA shows it: base64url.
    pub hmac: String,
}

impl std::fmt::Debug for Eab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The MAC key is a secret and never printed.
        f.debug_struct("Eab").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Which engine orders certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcmeEngine {
    /// Follows from the rest of the settings.
    #[default]
    Auto,
    /// rustls-acme: one node, TLS-ALPN-01 and HTTP-01.
    Simple,
    /// instant-acme: everything.
    Managed,
}

/// How control over a name is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChallengeKind {
    /// RFC 8737: a certificate shown on port 443.
    TlsAlpn01,
    /// RFC 8555 section 8.3: a file fetched over port 80.
    Http01,
    /// RFC 8555 section 8.4: a TXT record; the only one for wildcards.
    Dns01,
}
