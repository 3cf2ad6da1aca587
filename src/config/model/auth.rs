//! `auth = { … }`: who may come in, and how they show it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::{Located, Mode, Origin};
use crate::base::address::EndpointAddress;
use crate::base::secret::Secret;

/// Who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// Where it stands.
    pub origin: Origin,
    /// Whether those who may not are refused, or only counted.
    pub mode: Mode,
    /// How they show it: any of these will do. At least one, each kind once, in the order in which they are asked.
    pub ways: Vec<Scheme>,
    /// Field in which the backend hears who it is, lower case.
    pub identity_header: Option<String>,
    /// `Authorization` is passed on to the backend.
    pub pass_authorization: bool,
}

/// How a client shows who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// With a name and a password (RFC 7617).
    Basic(Basic),
    /// Another service says.
    Forward(ForwardAuth),
    /// With a signed token (RFC 7519).
    Jwt(Jwt),
    /// With the certificate that it proved to hold in the TLS handshake.
    ClientCert(CertUser),
}

/// `basic = { … }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Basic {
    /// What the browser's dialogue says.
    pub realm: String,
    /// Lines of the form `name:hash`.
    pub users: Vec<Located<Secret>>,
    /// A file of such lines; absolute.
    pub file: Option<Located<PathBuf>>,
    /// How long a password that was right is not checked again; zero: it always is.
    pub remember: Duration,
}

/// `client_cert = { … }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertUser {
    /// What of the certificate names the user.
    pub from: CertField,
    /// Only these may come in, under these names; empty: everybody whose certificate is good, under what it says.
    pub users: Vec<(String, String)>,
}

/// What of a certificate names the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertField {
    /// The common name of the subject.
    CommonName,
    /// The whole subject, as RFC 4514 prints it.
    Subject,
    /// The first alternative name that is a DNS name.
    Dns,
    /// The first alternative name that is an e-mail address.
    Email,
    /// The first alternative name that is a URI.
    Uri,
    /// SHA-256 of the certificate, in hexadecimal.
    Fingerprint,
}

impl CertField {
    /// Every one, with its word.
    pub const ALL: &'static [(&'static str, CertField)] = &[
        ("cn", CertField::CommonName),
        ("subject", CertField::Subject),
        ("dns", CertField::Dns),
        ("email", CertField::Email),
        ("uri", CertField::Uri),
        ("fingerprint", CertField::Fingerprint),
    ];
}

/// `jwt = { … }`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jwt {
    /// Those that are taken; at least one.
    pub algorithms: Vec<JwtAlgorithm>,
    /// Who may have issued it; at least one.
    pub issuer: Vec<String>,
    /// Whom it must be for, one of these; empty: anybody.
    pub audience: Vec<String>,
    /// How far the clocks of both may be apart.
    pub leeway: Duration,
    /// The claim that names the user.
    pub user: String,
    /// Claims, and what each must say.
    pub require: Vec<(String, String)>,
    /// A cookie that may hold the token.
    pub cookie: Option<String>,
    /// Where the keys are.
    pub keys: JwtKeys,
    /// What the challenge says.
    pub realm: String,
}

impl Jwt {
    /// Names what a finding about a token depends on, keys excepted.
    pub fn print(&self) -> [u8; 32] {
        let Jwt { algorithms, issuer, audience, leeway, user, require, .. } = self;
        Sha256::digest(format!("{algorithms:?} {issuer:?} {audience:?} {leeway:?} {user:?} {require:?}"))
            .into()
    }
}

/// Where the keys for tokens are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwtKeys {
    /// A public key in PEM; absolute.
    Pem(Located<PathBuf>),
    /// A JWK set in a file; absolute.
    Set(Located<PathBuf>),
    /// A JWK set at an address.
    Url(JwksUrl),
}

/// A JWK set at an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct JwksUrl {
    /// An `https://` address.
    pub url: Arc<str>,
    /// PEM file with a root beside the system's; absolute.
    pub ca_file: Option<PathBuf>,
    /// Time between two questions.
    pub refresh: Duration,
}

/// A way to sign a token; those with a shared secret are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the words of RFC 7518 section 3.1")]
pub enum JwtAlgorithm {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    EdDsa,
}

impl JwtAlgorithm {
    /// Every one, with its word.
    pub const ALL: &'static [(&'static str, JwtAlgorithm)] = &[
        ("RS256", JwtAlgorithm::Rs256),
        ("RS384", JwtAlgorithm::Rs384),
        ("RS512", JwtAlgorithm::Rs512),
        ("PS256", JwtAlgorithm::Ps256),
        ("PS384", JwtAlgorithm::Ps384),
        ("PS512", JwtAlgorithm::Ps512),
        ("ES256", JwtAlgorithm::Es256),
        ("ES384", JwtAlgorithm::Es384),
        ("EdDSA", JwtAlgorithm::EdDsa),
    ];
}

/// `forward = { … }`: another service that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardAuth {
    /// Who is asked.
    pub url: ForwardUrl,
    /// Where that stands.
    pub origin: Origin,
    /// PEM file of the authority that signed it; absolute. `None`: the system's.
    pub ca_file: Option<Located<PathBuf>>,
    /// Field of its answer that names the user, lower case.
    pub user: Option<String>,
    /// Fields of its answer that the backend gets, lower case.
    pub copy: Vec<String>,
    /// From connecting to the end of its answer.
    pub timeout: Duration,
    /// Questions at once.
    pub in_flight: u32,
    /// How long an answer that lets in is used again; zero: never.
    pub cache: Duration,
    /// What an answer depends on; at least one.
    pub cache_by: Vec<CacheBy>,
    /// Cookies of an answer that lets in which the client gets; a name that ends in `*` is the beginning of one.
    pub set_cookies: Vec<String>,
}

/// What an answer of a service that is asked depends on, beside the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheBy {
    /// The client's address.
    ClientIp,
    /// The method.
    Method,
    /// Path and query.
    Path,
    /// A field of the request, by its name in lower case.
    Field(String),
}

impl CacheBy {
    /// What it is where nobody says it: everything that services look at.
    pub fn usual() -> Vec<CacheBy> {
        let field = |name: &str| CacheBy::Field(name.to_owned());
        vec![field("authorization"), field("cookie"), CacheBy::ClientIp, CacheBy::Method, CacheBy::Path]
    }

    /// The word for it.
    pub fn as_str(&self) -> &str {
        match self {
            CacheBy::ClientIp => "client-ip",
            CacheBy::Method => "method",
            CacheBy::Path => "path",
            CacheBy::Field(name) => name,
        }
    }
}

/// Who is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardUrl {
    /// As written.
    pub text: Arc<str>,
    /// `https://`
    pub tls: bool,
    /// Where to connect.
    pub address: EndpointAddress,
    /// Host and port as the `Host` field carries them.
    pub authority: Arc<str>,
    /// Path and query.
    pub target: Arc<str>,
}
