//! Where requests go: backends, balancing, health checks, how to speak to them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Breaker, Capacity, Eject, Health, Located, Retry};
use crate::base::address::EndpointAddress;

/// A named set of endpoints.
#[derive(Debug, Clone)]
pub struct Service {
    /// `site/route-label`: unique in the config.
    pub name: Arc<str>,
    /// Endpoints that are written. At least one, or one source.
    pub backends: Vec<Located<Backend>>,
    /// Where more endpoints are found.
    pub sources: Vec<Located<Discover>>,
    /// How one is chosen.
    pub balance: Balance,
    /// How long an endpoint that is new or back takes to get its whole share.
    pub slow_start: Option<Duration>,
    /// Where a share of the requests goes instead.
    pub split: Option<Box<Split>>,
    /// Active health check, if any.
    pub health: Option<Health>,
    /// What takes a backend out that fails requests, if anything beside failing to connect does.
    pub eject: Option<Eject>,
    /// Share of backends in good standing, in percent, below which all are used; `None`: never.
    pub panic: Option<u8>,
    /// Deadline for connecting.
    pub connect_timeout: Duration,
    /// Deadline for the first byte of the answer.
    pub timeout: Duration,
    /// How to speak to the backends.
    pub upstream: Upstream,
    /// What is sent again when it fails.
    pub retry: Retry,
    /// How much may be in flight, if that is bounded.
    pub capacity: Option<Capacity>,
    /// When nothing is sent for a while, if ever.
    pub breaker: Option<Breaker>,
    /// Protocols a client may change to, lower case.
    pub upgrade: Vec<String>,
}

impl Service {
    /// The service and the parts of its split.
    pub fn all(&self) -> impl Iterator<Item = &Service> {
        let branches = self.split.iter().flat_map(|split| &split.branches);
        std::iter::once(self).chain(branches.map(|branch| &branch.service))
    }
}

/// One backend as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Address and port.
    pub address: EndpointAddress,
    /// Whether it was written `https://…`.
    pub tls: bool,
    /// Share of the requests; 0 to 1000; default 1. 0: it drains.
    pub weight: u32,
    /// What a source calls it; empty for one that is written.
    pub name: Arc<str>,
    /// It gets requests only while no other is up.
    pub backup: bool,
}

/// An entry of `backends` that says where endpoints are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discover {
    /// The question.
    pub source: Source,
    /// Whether TLS is spoken to what is found.
    pub tls: bool,
    /// Share of each endpoint found, where the source says none; 1 to 1000; default 1.
    pub weight: u32,
    /// They get requests only while no other is up.
    pub backup: bool,
}

/// A question to the world outside: where are endpoints? Equal questions are asked once.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// `file:/run/web`: a file with one address a line; absolute.
    File(Arc<str>),
    /// `dns://api.internal:8080`: every A and AAAA record of a name, and a port.
    Dns(Arc<str>, u16),
    /// `deploy://web`: what `tidegate deploy` put in place.
    Deployed(Arc<str>),
    /// `srv://_http._tcp.api.internal`: the SRV records of a name.
    Srv(Arc<str>),
    /// `docker://web:8080`: containers of a service, by the label `tidegate.service`, or by Compose's labels where a
    /// project is named (`docker://shop/web`). The port is the one in the container.
    Docker { project: Option<Arc<str>>, service: Arc<str>, port: Option<u16> },
    /// `docker-labels:shop.example|/api/`: containers whose labels say that they belong to this route of the site.
    Labels { site: Arc<str>, route: Arc<str> },
}

impl Source {
    /// Whether the container engine answers it.
    pub fn is_of_engine(&self) -> bool {
        matches!(self, Source::Docker { .. } | Source::Labels { .. })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::File(path) => write!(f, "file:{path}"),
            Source::Dns(host, port) => write!(f, "dns://{host}:{port}"),
            Source::Deployed(name) => write!(f, "deploy://{name}"),
            Source::Srv(name) => write!(f, "srv://{name}"),
            Source::Docker { project, service, port } => {
                let project = project.iter().flat_map(|project| [&**project, "/"]).collect::<String>();
                write!(f, "docker://{project}{service}")?;
                port.map_or(Ok(()), |port| write!(f, ":{port}"))
            }
            Source::Labels { site, route } => write!(f, "docker-labels:{site}|{route}"),
        }
    }
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Balance {
    /// Two random endpoints, the less loaded wins.
    P2c,
    /// Weighted, in turn.
    RoundRobin,
    /// The one with the fewest requests in flight.
    LeastRequest,
    /// The same endpoint for the same key.
    Hash {
        /// What is the same.
        key: Key,
        /// Percent of the mean load that an endpoint may carry, 101 to 1000; `None`: any.
        load: Option<u32>,
    },
    /// The same endpoint for the same client, by a cookie of ours.
    Sticky(Sticky),
}

/// What requests are told apart by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// The client's address; of IPv6, its /64.
    ClientIp,
    /// A header field, lower case.
    Header(String),
    /// A cookie.
    Cookie(String),
    /// The path, without query.
    Path,
}

/// The cookie of `balance = "sticky"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sticky {
    /// Its name.
    pub cookie: String,
    /// How long a client keeps it; `None`: until it is closed.
    pub ttl: Option<Duration>,
    /// With which requests from other sites it is sent.
    pub same_site: SameSite,
}

/// With which requests from other sites a cookie is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SameSite {
    /// Links from elsewhere.
    Lax,
    /// None.
    Strict,
    /// All; over TLS only.
    None,
}

/// Where a share of a service's requests goes instead.
#[derive(Debug, Clone)]
pub struct Split {
    /// What keeps a client on its side; `None`: each request is drawn anew.
    pub by: Option<Key>,
    /// At least one.
    pub branches: Vec<Branch>,
}

/// One entry of `split`.
#[derive(Debug, Clone)]
pub struct Branch {
    /// What logs and metrics call it, after the route's label and `#`.
    pub name: Arc<str>,
    /// Its share of the requests.
    pub percent: u32,
    /// A field, lower case, that says `always` or `never`.
    pub header: Option<String>,
    /// A cookie that says so.
    pub cookie: Option<String>,
    /// Where they go; it has no split of its own.
    pub service: Service,
}

/// `upstream = { … }`
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upstream {
    /// PEM file of the CA that signed the backends; absolute. `None`: the system's roots.
    pub ca_file: Option<Located<PathBuf>>,
    /// Name expected in the backend's certificate and sent as SNI; default: the backend's host.
    pub server_name: Option<Located<String>>,
    /// PEM files of the certificate shown to backends that ask for one, and of its key; absolute.
    pub identity: Option<(Located<PathBuf>, Located<PathBuf>)>,
    /// What the internal CA has to do with it.
    pub internal_ca: InternalTrust,
    /// Which protocol.
    pub http: Http,
    /// Which PROXY protocol header begins each connection, if any.
    pub proxy_protocol: Option<ProxyHeader>,
}

/// What the internal CA has to do with backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum InternalTrust {
    /// Nothing.
    #[default]
    Off,
    /// It signed the backends' certificates.
    Trust,
    /// It also signs the one shown to backends that ask.
    Mutual,
}

/// The protocol spoken to backends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Http {
    /// HTTP/1.1.
    #[default]
    H1,
    /// HTTP/2: by ALPN under TLS, else with prior knowledge (RFC 9113 section 3.3).
    H2,
    /// Under TLS what the backend chooses of both by ALPN, else HTTP/1.1.
    Auto,
}

/// A version of the PROXY protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyHeader {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}
