//! How we greet backends: verified always, the protocols offered that were said, sessions resumed.
//!
//! There is no switch that turns verification off: a backend with a private certificate gets its CA in `ca_file`.

use std::sync::{Arc, OnceLock};

use rustls::client::Resumption;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName};

use super::pem::{self, Identity};
use crate::config::model::{Http, InternalTrust, Origin, Upstream};

/// Sessions remembered by the configuration shared by all services that trust the system's roots.
const SESSIONS_SHARED: usize = 2048;
/// Sessions remembered by the configuration of one `ca_file`. rustls sets the memory aside at once, about a
/// kilobyte for eight sessions.
const SESSIONS_OWN: usize = 64;

/// ALPN name of HTTP/2 (RFC 9113 section 3.1).
pub const ALPN_H2: &[u8] = b"h2";

/// The settings for connections to the backends of a service; `identity` is shown to backends that ask for a certificate,
/// `internal` is the certificate of the internal CA.
///
/// Services without a `ca_file` and an identity share one configuration, made when first asked for: the system's roots
/// are read once per process. Errors name the setting that is to blame; [`Origin::Default`] when it is the system.
pub fn client_config(
    upstream: &Upstream,
    identity: Option<&Identity>,
    internal: &CertificateDer<'static>,
) -> Result<Arc<ClientConfig>, (Origin, String)> {
    if upstream.internal_ca != InternalTrust::Off {
        let mut roots = RootCertStore::empty();
        let added = roots.add(internal.clone()).map_err(|e| e.to_string());
        let made = added.and_then(|()| build(Arc::new(roots), SESSIONS_OWN, identity, upstream.http));
        return made.map_err(|why| (Origin::Default, format!("The internal CA cannot be trusted: {why}")));
    }
    let Some(file) = &upstream.ca_file else {
        let system = |message| (Origin::Default, message);
        return match identity {
            None => system_config(upstream.http).map_err(system),
            Some(_) => {
                let roots = system_roots().map_err(system)?;
                build(roots, SESSIONS_OWN, identity, upstream.http).map_err(system)
            }
        };
    };
    let failed = |message: String| (file.origin.clone(), message);
    let label = file.value.display().to_string();
    let text = pem::read_text(&file.value).map_err(failed)?;
    let certificates = pem::certificates(&text, &label).map_err(|(m, h)| failed(format!("{m} {h}")))?;
    let mut roots = RootCertStore::empty();
    for (position, der) in certificates.into_iter().enumerate() {
        roots.add(der).map_err(|e| {
            failed(format!(
                "Certificate {} in {label} cannot be trusted: {e}. The file must hold the certificate of the CA that \
                 signed the backends.",
                position + 1
            ))
        })?;
    }
    build(Arc::new(roots), SESSIONS_OWN, identity, upstream.http).map_err(failed)
}

/// The name a backend must prove, also sent as SNI: `upstream.server_name`, else the backend's host (a name or an IP
/// address without brackets). Errors name the setting to blame.
pub fn server_name(upstream: &Upstream, host: &str) -> Result<ServerName<'static>, (Origin, String)> {
    let (name, origin) = match &upstream.server_name {
        Some(located) => (located.value.as_str(), located.origin.clone()),
        None => (host, Origin::Default),
    };
    ServerName::try_from(name.to_owned()).map_err(|_| {
        let message = format!(
            "{name:?} is no host name, so no certificate can be checked against it. Write the name the backend's \
             certificate is for: upstream = {{ server_name = \"app.internal\" }}."
        );
        (origin, message)
    })
}

/// The configuration with the system's roots. A failure is not remembered: roots may be installed before a reload.
fn system_config(http: Http) -> Result<Arc<ClientConfig>, String> {
    static H1: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    static H2: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    static AUTO: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    let known = match http {
        Http::H1 => &H1,
        Http::H2 => &H2,
        Http::Auto => &AUTO,
    };
    if let Some(made) = known.get() {
        return Ok(Arc::clone(made));
    }
    let made = build(system_roots()?, SESSIONS_SHARED, None, http)?;
    Ok(Arc::clone(known.get_or_init(|| made)))
}

fn system_roots() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(read) = ROOTS.get() {
        return Ok(Arc::clone(read));
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Systems carry the odd root that does not parse; the others still count.
    let (added, _ignored) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let reason = found.errors.first().map_or_else(String::new, |e| format!(" ({e})"));
        return Err(format!(
            "This system has no CA certificates to check https backends against{reason}. Install the package \
             `ca-certificates`, or name the CA of the backends: upstream = {{ ca_file = \"ca.pem\" }}."
        ));
    }
    Ok(Arc::clone(ROOTS.get_or_init(|| Arc::new(roots))))
}

fn build(
    roots: Arc<RootCertStore>,
    sessions: usize,
    identity: Option<&Identity>,
    http: Http,
) -> Result<Arc<ClientConfig>, String> {
    let builder = ClientConfig::builder_with_provider(super::provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|e| format!("The TLS library refused its own settings: {e}. This is a bug in Tidegate."))?;
    let builder = builder.with_root_certificates(roots);
    let mut config = match identity {
        Some(identity) => {
            let pair = SingleCertAndKey::from(CertifiedKey::clone(&identity.key));
            builder.with_client_cert_resolver(Arc::new(pair))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = match http {
        Http::H1 => vec![b"http/1.1".to_vec()],
        Http::H2 => vec![ALPN_H2.to_vec()],
        Http::Auto => vec![ALPN_H2.to_vec(), b"http/1.1".to_vec()],
    };
    config.resumption = Resumption::in_memory_sessions(sessions);
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{Located, Part, Place};

    fn here() -> Origin {
        let part = Arc::new(Part::new(std::path::Path::new("t.toml").into(), 0, 0));
        Origin::File(Place::new(&part, 1..2, 3, 4))
    }

    fn with_ca(content: Option<&str>, http: Http) -> Result<Arc<ClientConfig>, (Origin, String)> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let ca_file = Some(Located { value: path, origin: here() });
        client_config(
            &Upstream { ca_file, http, ..Upstream::default() },
            None,
            &CertificateDer::from(Vec::new()),
        )
    }

    #[test]
    fn a_bad_ca_file_is_blamed_where_it_was_written() {
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (content, said) in [
            (None, "does not exist"),
            (Some(""), "is empty"),
            (Some("hello"), "holds no certificate"),
            (Some(garbage), "cannot be trusted"),
        ] {
            let (origin, message) = with_ca(content, Http::H1).unwrap_err();
            assert_eq!(origin, here());
            assert!(message.contains(said), "{message}");
        }
    }

    #[test]
    fn only_the_protocol_that_was_said_is_offered() {
        let ca = rcgen::generate_simple_self_signed(["ca.test".to_owned()]).unwrap();
        let (old, new) = (b"http/1.1".to_vec(), b"h2".to_vec());
        for (http, offered) in [
            (Http::H1, vec![old.clone()]),
            (Http::H2, vec![new.clone()]),
            (Http::Auto, vec![new.clone(), old.clone()]),
        ] {
            assert_eq!(with_ca(Some(&ca.cert.pem()), http).unwrap().alpn_protocols, offered);
        }
    }

    #[test]
    fn the_name_to_prove_is_the_setting_else_the_host() {
        let plain = Upstream::default();
        let named = |name: &str| Upstream {
            server_name: Some(Located { value: name.into(), origin: here() }),
            ..Upstream::default()
        };
        assert_eq!(server_name(&plain, "not a name").unwrap_err().0, Origin::Default);
        let (origin, message) = server_name(&named("a b"), "fine.test").unwrap_err();
        assert_eq!(origin, here());
        assert!(message.contains("\"a b\""), "{message}");
        assert_eq!(server_name(&plain, "my_app.internal").unwrap().to_str(), "my_app.internal");
        assert_eq!(server_name(&plain, "2001:db8::1").unwrap().to_str(), "2001:db8::1");
        assert_eq!(server_name(&named("app.internal"), "10.0.0.1").unwrap().to_str(), "app.internal");
    }
}
