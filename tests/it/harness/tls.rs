//! Certificates and TLS settings for both ends of the tests.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
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

    /// A leaf certificate for these names.
    pub fn leaf(&self, names: &[&str]) -> Pair {
        let params =
            rcgen::CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem() }
    }
}

impl Pair {
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

/// Client settings that trust these roots.
pub fn client_config(
    roots_pem: &str,
    alpn: &[&str],
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(roots_pem.as_bytes()) {
        roots.add(cert.unwrap()).unwrap();
    }
    let builder = ClientConfig::builder_with_provider(provider());
    let mut config =
        builder.with_protocol_versions(versions).unwrap().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config)
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
