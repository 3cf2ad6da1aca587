//! Certificates and TLS settings for both ends of the tests.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::wire::{TlsFacts, Wire};
use super::within;

/// A private CA that signs what a test needs.
pub struct Ca {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
}

/// A certificate chain and key in PEM.
pub struct Pair {
    pub cert: String,
    pub key: String,
}

impl Ca {
    pub fn new(name: &str) -> Ca {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Ca { issuer: rcgen::Issuer::new(params, key), pem }
    }

    /// A client's certificate: its common name, its serial number, days until it expires (negative: since).
    pub fn client(&self, name: &str, serial: u64, days: i64) -> Pair {
        let mut params = rcgen::CertificateParams::new(vec![format!("{name}.clients.test")]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.serial_number = Some(serial.into());
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since_1970(days);
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }

    /// A revocation list with these serial numbers, past its date in so many days (negative: since).
    pub fn list(&self, revoked: &[u64], days: i64) -> String {
        let epoch = || rcgen::date_time_ymd(1970, 1, 1);
        let entry = |serial: &u64| rcgen::RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: epoch() + since_1970(-2),
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: epoch() + since_1970(-30),
            next_update: epoch() + since_1970(days),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// A leaf certificate for these names.
    pub fn leaf(&self, names: &[&str]) -> Pair {
        let params =
            rcgen::CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }
}

/// So many days from now, counted from 1970.
fn since_1970(days: i64) -> std::time::Duration {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let shift = std::time::Duration::from_secs(days.unsigned_abs() * 24 * 3600);
    if days < 0 { now - shift } else { now + shift }
}

impl Pair {
    /// The chain and its key, parsed.
    pub fn parsed(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let chain = CertificateDer::pem_slice_iter(self.cert.as_bytes()).collect::<Result<_, _>>().unwrap();
        (chain, PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap())
    }

    /// Settings of a TLS origin with this certificate that asks for one of these authorities' clients.
    pub fn server_config_asking(&self, clients_pem: &str) -> Arc<ServerConfig> {
        let (chain, key) = self.parsed();
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots(clients_pem)),
            provider(),
        );
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }

    /// Settings of a TLS origin with this certificate.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        self.server_config_with(rustls::crypto::aws_lc_rs::default_provider())
    }

    /// The same with other algorithms.
    pub fn server_config_with(&self, provider: rustls::crypto::CryptoProvider) -> Arc<ServerConfig> {
        let chain: Vec<_> =
            CertificateDer::pem_slice_iter(self.cert.as_bytes()).collect::<Result<_, _>>().unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        Arc::new(config)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn roots(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(cert.unwrap()).unwrap();
    }
    roots
}

/// Client settings that trust these roots and show this certificate.
pub fn client_config_as(
    roots_pem: &str,
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
    pair: &Pair,
) -> Arc<ClientConfig> {
    let (chain, key) = pair.parsed();
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots(roots_pem))
        .with_client_auth_cert(chain, key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// Client settings that trust these roots.
pub fn client_config(
    roots_pem: &str,
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(versions).unwrap();
    let mut config = builder.with_root_certificates(roots(roots_pem)).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
}

/// The bytes of a real client's hello.
pub fn hello(config: &Arc<ClientConfig>, name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_string()).unwrap();
    let mut bytes = Vec::new();
    ClientConnection::new(config.clone(), name).unwrap().write_tls(&mut bytes).unwrap();
    bytes
}

/// Connects with TLS; the error is the handshake's.
pub async fn connect(config: Arc<ClientConfig>, address: SocketAddr, name: &str) -> std::io::Result<Wire> {
    let tcp = within("connect", TcpStream::connect(address)).await?;
    tcp.set_nodelay(true)?;
    connect_over(config, tcp, name).await
}

/// The same over a connection that exists already (PROXY protocol tests write on it first).
pub async fn connect_over(config: Arc<ClientConfig>, tcp: TcpStream, name: &str) -> std::io::Result<Wire> {
    let name = ServerName::try_from(name.to_string()).expect("a server name");
    let stream = within("TLS handshake", TlsConnector::from(config).connect(name, tcp)).await?;
    let tls = facts(stream.get_ref().1);
    let mut wire = Wire::over(stream);
    wire.tls = tls;
    Ok(wire)
}

fn facts(connection: &rustls::ClientConnection) -> TlsFacts {
    TlsFacts {
        version: format!("{:?}", connection.protocol_version().expect("a version")),
        alpn: String::from_utf8_lossy(connection.alpn_protocol().unwrap_or_default()).into_owned(),
        group: format!("{:?}", connection.negotiated_key_exchange_group().map(|g| g.name())),
        resumed: connection.handshake_kind() == Some(rustls::HandshakeKind::Resumed),
        leaf: connection
            .peer_certificates()
            .and_then(|c| c.first())
            .map(|c| c.as_ref().to_vec())
            .unwrap_or_default(),
    }
}
