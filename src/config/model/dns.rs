//! `[acme.dns]`: who writes TXT records for `dns-01`, and how it is seen that they are there.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::base::address::EndpointAddress;
use crate::base::secret::Secret;

/// The section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dns {
    /// Who writes.
    pub provider: DnsProvider,
    /// How long a record may take until the name servers show it; zero: nobody is asked. 120 s.
    pub propagation: Duration,
    /// Resolvers asked instead of those of the system; empty: the system's.
    pub resolvers: Vec<SocketAddr>,
    /// Servers asked for the record instead of the zone's own; empty: the zone's own.
    pub propagation_servers: Vec<SocketAddr>,
}

/// Where TXT records for `dns-01` are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsProvider {
    /// Dynamic updates signed with TSIG (RFC 2136, RFC 8945).
    Rfc2136(Rfc2136),
    /// Cloudflare's API.
    Cloudflare(Cloudflare),
    /// Amazon Route 53.
    Route53(Route53),
    /// A program of the operator.
    Exec(Exec),
}

/// A name server that takes signed updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rfc2136 {
    /// The server.
    pub server: EndpointAddress,
    /// The zone; `None`: the server is asked.
    pub zone: Option<Arc<str>>,
    /// Name of the TSIG key.
    pub key_name: Arc<str>,
    /// Its algorithm.
    pub algorithm: TsigAlgorithm,
    /// Its secret, base64.
    pub secret: SecretSource,
}

/// Algorithms of RFC 8945 section 6 that are not deprecated and not truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TsigAlgorithm {
    /// `hmac-sha256`
    HmacSha256,
    /// `hmac-sha384`
    HmacSha384,
    /// `hmac-sha512`
    HmacSha512,
}

/// Cloudflare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cloudflare {
    /// The API token.
    pub token: SecretSource,
    /// Address of the API, without a slash at its end.
    pub api_url: Arc<str>,
}

/// Amazon Route 53.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route53 {
    /// The access key's identifier; `None`: from the environment.
    pub access_key_id: Option<Arc<str>>,
    /// The secret access key.
    pub secret: SecretSource,
    /// The hosted zone; `None`: it is looked for.
    pub zone_id: Option<Arc<str>>,
    /// Region that requests are signed for.
    pub region: Arc<str>,
    /// Address of the API, without a slash at its end.
    pub api_url: Arc<str>,
}

/// A program called as `COMMAND present|cleanup NAME VALUE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// The program; absolute.
    pub command: PathBuf,
    /// How long one call may take.
    pub timeout: Duration,
}

/// Where a secret is read, each time it is used: a renewed one is taken over by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// It stands in the configuration.
    Inline(Secret),
    /// A file; absolute.
    File(PathBuf),
    /// An environment variable of the process.
    Environment(&'static str),
}
