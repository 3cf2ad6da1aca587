//! A new certificate is looked at before anybody else sees it: chain, key, names, clock, a handshake with ourselves.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::ServerName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::tls::pem::{self, Identity};

/// Flights of a handshake are four; more means that it does not end.
const FLIGHTS_MAX: usize = 16;

/// What was found good.
pub struct Checked {
    /// Ready to be served.
    pub identity: Identity,
    /// Beginning of validity, seconds since 1970.
    pub not_before: u64,
}

/// Checks a new certificate at the time `now` (seconds since 1970) for the names it was ordered for.
///
/// Errors say what is wrong with it.
pub fn check(chain: &str, key: &str, names: &[String], now: u64) -> Result<Checked, String> {
    let identity = pem::from_bytes(chain.as_bytes(), key.as_bytes()).map_err(|e| e.message)?;
    if let Some(missing) = names.iter().find(|name| !pem::names_cover(&identity, name)) {
        return Err(format!("The new certificate does not cover {missing}."));
    }
    let not_before = links(&identity)?;
    if now < not_before || now >= identity.not_after {
        return Err(format!(
            "The new certificate is valid from {not_before} to {}, and the clock here says {now} (seconds since 1970).",
            identity.not_after
        ));
    }
    shake(&identity, names)?;
    Ok(Checked { identity, not_before })
}

/// Each certificate must be issued by the next (RFC 8555 section 9.1); says when the first becomes valid.
fn links(identity: &Identity) -> Result<u64, String> {
    let mut wanted: Option<Vec<u8>> = None;
    let mut not_before = 0;
    for (position, der) in identity.key.cert.iter().enumerate() {
        let (_, parsed) =
            X509Certificate::from_der(der).map_err(|e| format!("The chain is damaged: {e}."))?;
        if wanted.is_some_and(|issuer| issuer != parsed.subject().as_raw()) {
            return Err(format!(
                "Certificate {} of the chain did not issue the one before it.",
                position + 1
            ));
        }
        if position == 0 {
            not_before = u64::try_from(parsed.validity().not_before.timestamp()).unwrap_or(0);
        }
        wanted = Some(parsed.issuer().as_raw().to_vec());
    }
    Ok(not_before)
}

#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A handshake in memory, by a client that trusts the end of the chain and checks all of it. A chain of one (a CA that
/// signs with its root) has nothing to be checked against; key and names were compared before.
fn shake(identity: &Identity, names: &[String]) -> Result<(), String> {
    let [_, .., anchor] = identity.key.cert.as_slice() else { return Ok(()) };
    let failed = |e: &dyn std::fmt::Display| format!("A handshake with the new certificate failed: {e}.");
    let mut roots = RootCertStore::empty();
    roots.add(anchor.clone()).map_err(|e| failed(&e))?;
    let mut client = ClientConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|e| failed(&e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = Resumption::disabled();
    let client = Arc::new(client);
    let server = ServerConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|e| failed(&e))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Only(Arc::clone(&identity.key))));
    let server = Arc::new(server);
    for name in names {
        // Any label stands for the star.
        let concrete = name.strip_prefix('*').map_or_else(|| name.clone(), |rest| format!("canary{rest}"));
        let concrete = ServerName::try_from(concrete).map_err(|e| failed(&e))?;
        let mut ours = ServerConnection::new(Arc::clone(&server)).map_err(|e| failed(&e))?;
        let mut theirs = ClientConnection::new(Arc::clone(&client), concrete).map_err(|e| failed(&e))?;
        converse(&mut theirs, &mut ours).map_err(|e| failed(&format!("{e} (as {name})")))?;
    }
    Ok(())
}

fn converse(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), String> {
    for _ in 0..FLIGHTS_MAX {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).map_err(|e| e.to_string())?;
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).map_err(|e| e.to_string())?;
            server.process_new_packets().map_err(|e| e.to_string())?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).map_err(|e| e.to_string())?;
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).map_err(|e| e.to_string())?;
            client.process_new_packets().map_err(|e| e.to_string())?;
        }
        if !client.is_handshaking() && !server.is_handshaking() {
            return Ok(());
        }
    }
    Err("it did not end".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    const DAY: i64 = 86_400;

    fn now() -> u64 {
        crate::base::clock::wall().as_secs()
    }

    fn authority(name: &str) -> (String, Issuer<'static, KeyPair>) {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        (pem, Issuer::new(params, key))
    }

    fn leaf(issuer: &Issuer<'_, KeyPair>, names: &[&str], days: (i64, i64)) -> (String, String) {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let base = rcgen::date_time_ymd(1970, 1, 1);
        let at = |days: i64| base + std::time::Duration::from_secs((now() as i64 + days * DAY) as u64);
        (params.not_before, params.not_after) = (at(days.0), at(days.1));
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn what_must_not_be_served_is_refused_with_the_reason() {
        let (ca, issuer) = authority("one");
        let (namesake, _) = authority("one");
        let (other, _) = authority("other");
        let (cert, key) = leaf(&issuer, &["a.test"], (-1, 90));
        let (past, past_key) = leaf(&issuer, &["a.test"], (-9, -1));
        let (future, future_key) = leaf(&issuer, &["a.test"], (1, 9));
        let stranger = KeyPair::generate().unwrap().serialize_pem();
        for (chain, key, said) in [
            (String::new(), &key, "is empty"),
            (format!("{cert}{ca}"), &stranger, "belongs to another"),
            (format!("{cert}{other}"), &key, "did not issue"),
            (format!("{cert}{namesake}"), &key, "handshake"),
            (format!("{past}{ca}"), &past_key, "the clock here says"),
            (format!("{future}{ca}"), &future_key, "the clock here says"),
        ] {
            let found = check(&chain, key, &["a.test".into()], now()).err().expect(said);
            assert!(found.contains(said), "{found}");
        }
        let found =
            check(&format!("{cert}{ca}"), &key, &["a.test".into(), "b.test".into()], now()).err().unwrap();
        assert!(found.contains("b.test"), "{found}");
    }

    #[test]
    fn a_good_one_passes_with_wildcards_and_addresses() {
        let (ca, issuer) = authority("one");
        let names = ["a.test", "*.b.test", "127.0.0.1"];
        let (cert, key) = leaf(&issuer, &names, (-1, 90));
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        let checked = check(&format!("{cert}{ca}"), &key, &names, now()).map_err(|e| panic!("{e}")).unwrap();
        assert!(checked.not_before < now() && checked.identity.not_after > now());
    }
}
