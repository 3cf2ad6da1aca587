//! What the operator meant about TLS with clients.

use std::path::PathBuf;

use super::Located;

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsVersion {
    /// TLS 1.2, RFC 5246.
    V12,
    /// TLS 1.3, RFC 8446.
    V13,
}

/// `[server.tls]`: what sites inherit. The words are kept, because a site may say one of them and inherit the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsDefaults {
    /// `modern` or `intermediate`.
    pub profile: &'static str,
    /// `1.2` or `1.3`.
    pub min_version: &'static str,
}

/// `tls = { … }` of a site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The lowest version spoken.
    pub min: TlsVersion,
    /// Whether clients show certificates, and whose.
    pub client_auth: Option<ClientAuth>,
}

/// `client_auth = { … }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientAuth {
    /// PEM file of the authorities that sign clients; absolute.
    pub ca_file: Located<PathBuf>,
    /// File of their revocation lists; absolute. `None`: nothing is ever revoked.
    pub crl_file: Option<Located<PathBuf>>,
    /// A client without a certificate is refused.
    pub required: bool,
    /// Whether a list past its date still counts; else every client it speaks about is refused.
    pub accept_expired_crl: bool,
    /// What the backend is told about the client.
    pub forward: Forward,
}

/// What the backend is told about a verified client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Forward {
    /// `X-Client-Cert-*`: subject, issuer, serial number, fingerprint, names.
    pub identity: bool,
    /// `Client-Cert` and `Client-Cert-Chain` (RFC 9440).
    pub certificate: bool,
}
