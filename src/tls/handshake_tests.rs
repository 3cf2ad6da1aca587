//! Real handshakes over an in-memory stream: what a client and a backend see of the settings in this folder.

use std::io;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::ProducesTickets;
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{
    CipherSuite, ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, RootCertStore, ServerConfig,
    SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::index::CertificateIndex;
use super::internal_ca::InternalCa;
use super::policy::Policy;
use super::server::{for_client, server_config};
use super::{client, pem};
use crate::config::model::{HostPattern, Located, Origin, TlsVersion, Upstream};

/// A CA in a folder of its own, and what a test needs of it.
struct World {
    ca: InternalCa,
    _state: tempfile::TempDir,
}

/// What the server knew at the end of a handshake.
#[derive(Debug)]
struct Seen {
    version: ProtocolVersion,
    group: Option<NamedGroup>,
    suite: CipherSuite,
    kind: HandshakeKind,
    alpn: Option<Vec<u8>>,
}

impl World {
    fn new() -> World {
        let state = tempfile::tempdir().unwrap();
        World { ca: InternalCa::open(state.path()).unwrap(), _state: state }
    }

    fn pair(&self, pattern: HostPattern) -> (HostPattern, Arc<CertifiedKey>) {
        let key = self.ca.issue(std::slice::from_ref(&pattern)).unwrap().key;
        (pattern, key)
    }

    fn server(&self, names: &[&str], ticketer: &Arc<dyn ProducesTickets>) -> Arc<ServerConfig> {
        let pairs = names.iter().map(|name| self.pair(pattern(name)));
        server_config(Arc::new(CertificateIndex::new(pairs, None)), ticketer.clone(), &plain()).unwrap()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        for der in pem::certificates(&std::fs::read(self.ca.ca_path()).unwrap(), "ca").unwrap() {
            roots.add(der).unwrap();
        }
        roots
    }

    /// A browser that trusts our CA.
    fn browser(&self, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
        let mut config = ClientConfig::builder_with_provider(super::provider())
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
        config
    }
}

fn pattern(name: &str) -> HostPattern {
    match name.strip_prefix("*.") {
        Some(parent) => HostPattern::Wildcard(parent.into()),
        None => HostPattern::Exact(name.into()),
    }
}

fn plain() -> Policy {
    Policy::plain(TlsVersion::V12)
}

fn tickets() -> Arc<dyn ProducesTickets> {
    aws_lc_rs::Ticketer::new().unwrap()
}

/// One connection: handshake, one byte each way so that tickets arrive. Errors are those of either side.
async fn connect(
    server: &Arc<ServerConfig>,
    browser: &Arc<ClientConfig>,
    name: &str,
) -> Result<Seen, (Option<io::Error>, Option<io::Error>)> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let serve = async {
        let mut stream = TlsAcceptor::from(server.clone()).accept(far).await?;
        stream.write_all(b"s").await?;
        stream.flush().await?;
        stream.read_u8().await?;
        let state = stream.get_ref().1;
        Ok(Seen {
            version: state.protocol_version().unwrap(),
            group: state.negotiated_key_exchange_group().map(|g| g.name()),
            suite: state.negotiated_cipher_suite().unwrap().suite(),
            kind: state.handshake_kind().unwrap(),
            alpn: state.alpn_protocol().map(<[u8]>::to_vec),
        })
    };
    let browse = async {
        let mut stream = TlsConnector::from(browser.clone()).connect(name, near).await?;
        stream.read_u8().await?;
        stream.write_all(b"c").await?;
        stream.flush().await
    };
    match tokio::join!(serve, browse) {
        (Ok(seen), Ok(())) => Ok(seen),
        (server, browser) => Err((server.err(), browser.err())),
    }
}

#[tokio::test]
async fn unknown_names_and_no_name_are_refused() {
    let world = World::new();
    let server = world.server(&["a.test", "*.b.test"], &tickets());
    for versions in [[&TLS12], [&TLS13]] {
        let browser = Arc::new(world.browser(&versions));
        for name in ["c.test", "b.test", "x.y.b.test", "test", "127.0.0.1", "::1"] {
            let (at_server, at_browser) = connect(&server, &browser, name).await.unwrap_err();
            let said = at_server.unwrap().to_string();
            assert!(said.contains("no server certificate chain resolved"), "{name}: {said}");
            assert!(at_browser.unwrap().to_string().contains("received fatal alert"), "{name}");
        }
        for name in ["a.test", "x.b.test", "A.test"] {
            connect(&server, &browser, name).await.unwrap();
        }
        let mut silent = world.browser(&versions);
        silent.enable_sni = false;
        assert!(connect(&server, &Arc::new(silent), "a.test").await.is_err());
    }
}

#[tokio::test]
async fn a_default_certificate_answers_clients_without_a_name() {
    let world = World::new();
    let (_, default) = world.pair(pattern("127.0.0.1"));
    let index = CertificateIndex::new([world.pair(pattern("a.test"))], Some(default));
    let server = server_config(Arc::new(index), tickets(), &plain()).unwrap();
    let browser = Arc::new(world.browser(&[&TLS13, &TLS12]));
    connect(&server, &browser, "127.0.0.1").await.unwrap();
    connect(&server, &browser, "a.test").await.unwrap();
    // The handshake is answered, and the client finds that the certificate is for another name.
    let (_, at_browser) = connect(&server, &browser, "c.test").await.unwrap_err();
    assert!(at_browser.unwrap().to_string().contains("not valid for name"));
}

#[tokio::test]
async fn the_post_quantum_group_and_http_2_are_negotiated_by_default() {
    let world = World::new();
    let server = world.server(&["a.test"], &tickets());
    let seen = connect(&server, &Arc::new(world.browser(&[&TLS13, &TLS12])), "a.test").await.unwrap();
    assert_eq!(seen.version, ProtocolVersion::TLSv1_3);
    assert_eq!(seen.group, Some(NamedGroup::X25519MLKEM768));
    assert_eq!(seen.alpn.as_deref(), Some(&b"h2"[..]), "our order counts, not the client's");
}

#[tokio::test]
async fn old_clients_get_tls_1_2_a_classic_group_and_http_1_1() {
    let world = World::new();
    let server = world.server(&["a.test"], &tickets());
    let mut old = world.browser(&[&TLS12]);
    old.alpn_protocols.clear();
    let seen = connect(&server, &Arc::new(old), "a.test").await.unwrap();
    assert_eq!(seen.version, ProtocolVersion::TLSv1_2);
    assert_eq!(seen.alpn, None);

    let mut classic = super::provider().as_ref().clone();
    classic.kx_groups = vec![kx_group::SECP256R1];
    let mut config = ClientConfig::builder_with_provider(Arc::new(classic))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"spdy/1".to_vec()];
    let (at_server, _) = connect(&server, &Arc::new(config.clone()), "a.test").await.unwrap_err();
    // RFC 7301 section 3.2: no common protocol ends the handshake.
    assert!(at_server.unwrap().to_string().contains("known protocol"));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (at_server, at_browser) = connect(&server, &Arc::new(config), "a.test").await.unwrap_err();
    assert!(at_browser.unwrap().to_string().contains("UnknownIssuer"));
    assert!(at_server.unwrap().to_string().contains("UnknownCA"));
}

#[tokio::test]
async fn aes_with_128_bits_goes_first_unless_the_client_prefers_chacha20_or_has_no_other() {
    use CipherSuite::*;
    let world = World::new();
    let server = world.server(&["a.test"], &tickets());
    let (a128, a256, chacha) =
        (TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256);
    let (old_128, old_256, old_chacha) = (
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    );
    let cases: [(&[CipherSuite], CipherSuite); 9] = [
        (&[a256, chacha, a128], a128),
        (&[a128, chacha, a256], a128),
        (&[a256, chacha], a256),
        (&[a256], a256),
        (&[chacha, a256, a128], chacha),
        (&[chacha], chacha),
        (&[old_256, old_chacha, old_128], old_128),
        (&[old_256], old_256),
        (&[old_chacha, old_256, old_128], old_chacha),
    ];
    for (offered, agreed) in cases {
        let mut provider = super::provider().as_ref().clone();
        let of =
            |wanted: &CipherSuite| provider.cipher_suites.iter().find(|one| one.suite() == *wanted).copied();
        provider.cipher_suites = offered.iter().map(|wanted| of(wanted).unwrap()).collect();
        let versions = if offered.contains(&old_256) { [&TLS12] } else { [&TLS13] };
        let mut browser = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&versions)
            .unwrap()
            .with_root_certificates(world.roots())
            .with_no_client_auth();
        browser.alpn_protocols = vec![b"h2".to_vec()];
        // What devices send to find servers that choke on what they do not know (RFC 8701).
        let grease = [&[CipherSuite::Unknown(0x1a1a)], offered].concat();
        let seen = connect(&for_client(&server, &grease), &Arc::new(browser), "a.test").await.unwrap();
        assert_eq!(seen.suite, agreed, "{offered:?}");
    }
}

#[tokio::test]
async fn sessions_resume_across_a_reload_and_not_with_other_keys() {
    let world = World::new();
    let ticketer = tickets();
    for versions in [[&TLS12], [&TLS13]] {
        let before = world.server(&["a.test", "b.test"], &ticketer);
        let browser = Arc::new(world.browser(&versions));
        let kind = async |server: &Arc<ServerConfig>| connect(server, &browser, "a.test").await.unwrap().kind;
        assert_eq!(kind(&before).await, HandshakeKind::Full);
        assert_eq!(kind(&before).await, HandshakeKind::Resumed);
        // A reload: new certificates, new index, the same keys for tickets.
        let after = world.server(&["a.test"], &ticketer);
        assert_eq!(kind(&after).await, HandshakeKind::Resumed);
        let stranger = world.server(&["a.test"], &tickets());
        assert_eq!(kind(&stranger).await, HandshakeKind::Full);
    }
}

#[tokio::test]
async fn a_ticket_does_not_outlive_its_site_nor_open_another() {
    let world = World::new();
    let ticketer = tickets();
    let both = world.server(&["a.test", "b.test"], &ticketer);
    for versions in [[&TLS12], [&TLS13]] {
        let store = OneDrawer::default();
        let mut browser = world.browser(&versions);
        browser.resumption = Resumption::store(Arc::new(store));
        let browser = Arc::new(browser);
        let kind = async |name: &str| connect(&both, &browser, name).await.unwrap().kind;
        assert_eq!(kind("a.test").await, HandshakeKind::Full);
        assert_eq!(kind("a.test").await, HandshakeKind::Resumed, "the client does keep its tickets");
        // A ticket for a.test is offered for b.test.
        assert_eq!(kind("b.test").await, HandshakeKind::Full);
        // The site is gone, and the client comes back with a ticket for it.
        kind("a.test").await;
        let without = world.server(&["b.test"], &ticketer);
        assert!(connect(&without, &browser, "a.test").await.is_err());
    }
}

/// A client's session store that confuses all servers, as an attacker's would.
#[derive(Debug)]
struct OneDrawer(rustls::client::ClientSessionMemoryCache);

impl Default for OneDrawer {
    fn default() -> Self {
        OneDrawer(rustls::client::ClientSessionMemoryCache::new(64))
    }
}

fn drawer() -> ServerName<'static> {
    ServerName::try_from("drawer").unwrap()
}

impl rustls::client::ClientSessionStore for OneDrawer {
    fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
        self.0.set_kx_hint(drawer(), group);
    }
    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        self.0.kx_hint(&drawer())
    }
    fn set_tls12_session(&self, _: ServerName<'static>, value: rustls::client::Tls12ClientSessionValue) {
        self.0.set_tls12_session(drawer(), value);
    }
    fn tls12_session(&self, _: &ServerName<'_>) -> Option<rustls::client::Tls12ClientSessionValue> {
        self.0.tls12_session(&drawer())
    }
    fn remove_tls12_session(&self, _: &ServerName<'static>) {
        self.0.remove_tls12_session(&drawer());
    }
    fn insert_tls13_ticket(&self, _: ServerName<'static>, value: rustls::client::Tls13ClientSessionValue) {
        self.0.insert_tls13_ticket(drawer(), value);
    }
    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<rustls::client::Tls13ClientSessionValue> {
        self.0.take_tls13_ticket(&drawer())
    }
}

#[tokio::test]
async fn backends_are_verified_against_their_ca_and_name() {
    let (world, stranger) = (World::new(), World::new());
    let backend = world.server(&["app.internal"], &tickets());
    let upstream = |ca: &World, name: Option<&str>| Upstream {
        ca_file: Some(Located { value: ca.ca.ca_path().to_owned(), origin: Origin::Default }),
        server_name: name.map(|n| Located { value: n.to_owned(), origin: Origin::Default }),
        ..Upstream::default()
    };
    let name = |u: &Upstream| client::server_name(u, "other.internal").unwrap().to_str().into_owned();

    let wrong_ca = upstream(&stranger, Some("app.internal"));
    let config = client::client_config(&wrong_ca, None, &CertificateDer::from(Vec::new())).unwrap();
    let (_, error) = connect(&backend, &config, &name(&wrong_ca)).await.unwrap_err();
    assert!(error.unwrap().to_string().contains("UnknownIssuer"));

    let (_, default) = world.pair(pattern("app.internal"));
    let any = server_config(Arc::new(CertificateIndex::new([], Some(default))), tickets(), &plain()).unwrap();
    let wrong_name = upstream(&world, None);
    let config = client::client_config(&wrong_name, None, &CertificateDer::from(Vec::new())).unwrap();
    let (_, error) = connect(&any, &config, &name(&wrong_name)).await.unwrap_err();
    assert!(error.unwrap().to_string().contains("not valid for name"));

    let right = upstream(&world, Some("app.internal"));
    let config = client::client_config(&right, None, &CertificateDer::from(Vec::new())).unwrap();
    let first = connect(&backend, &config, &name(&right)).await.unwrap();
    assert_eq!(first.alpn.as_deref(), Some(&b"http/1.1"[..]));
    assert_eq!(connect(&backend, &config, &name(&right)).await.unwrap().kind, HandshakeKind::Resumed);
}
