//! Answers to a CA's challenges, readable by every worker without a lock.
//!
//! Only what an engine published is answered, and only until it takes it back. Both tables are small maps behind an
//! `ArcSwap`, copied on change: orders are few, reads come from anybody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use rcgen::{CertificateParams, CustomExtension, DistinguishedName, KeyPair};
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::PrivateKeyDer;

/// Most challenges of one kind answered at once; orders in flight are far fewer.
const CHALLENGES_MAX: usize = 512;
/// Longest token we look up: RFC 8555 section 8.1 wants at least 128 bits in base64url; CAs use 43 characters.
const TOKEN_BYTES_MAX: usize = 256;
/// The protocol name of RFC 8737 section 6.2.
pub const ACME_TLS: &[u8] = b"acme-tls/1";

type Table<V> = ArcSwap<HashMap<Box<str>, V>>;

/// Says the body for a token, for an engine that does not tell its tokens beforehand; asked by any worker.
pub type Source = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// What is answered now.
pub struct Challenges {
    http: Table<Bytes>,
    tls: Table<Arc<ServerConfig>>,
    sources: ArcSwap<Vec<Source>>,
    /// Held while a table is copied and replaced; readers never take it.
    writing: Mutex<()>,
}

/// An answer that stands as long as this lives.
pub struct Published {
    challenges: Arc<Challenges>,
    what: What,
}

enum What {
    Http(Box<str>),
    Tls(Box<str>, Arc<ServerConfig>),
    Source(Source),
}

impl Challenges {
    /// Answers nothing yet.
    pub fn new() -> Arc<Challenges> {
        Arc::new(Challenges {
            http: ArcSwap::default(),
            tls: ArcSwap::default(),
            sources: ArcSwap::default(),
            writing: Mutex::new(()),
        })
    }

    /// The body of `/.well-known/acme-challenge/<token>` (RFC 8555 section 8.3), only for tokens we were given.
    pub fn http01(&self, token: &str) -> Option<Bytes> {
        if token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        if let Some(found) = self.http.load().get(token) {
            return Some(found.clone());
        }
        self.sources.load().iter().find_map(|source| source(token)).map(Bytes::from)
    }

    /// The settings for a handshake that offers `acme-tls/1` alone, for a name with an open challenge (RFC 8737
    /// section 3). Upper case and one trailing dot are forgiven.
    pub fn tls_alpn01(&self, name: &str) -> Option<Arc<ServerConfig>> {
        let table = self.tls.load();
        if table.is_empty() {
            return None;
        }
        table.get(normal(name).as_str()).cloned()
    }

    /// Answers an HTTP-01 challenge until the result is dropped. Errors: too many open challenges.
    pub fn publish_http01(
        self: &Arc<Self>,
        token: &str,
        key_authorization: &str,
    ) -> Result<Published, String> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(format!("The CA sent a challenge token of {} bytes; ignored.", token.len()));
        }
        insert(
            &self.writing,
            &self.http,
            token.into(),
            Bytes::copy_from_slice(key_authorization.as_bytes()),
        )?;
        Ok(Published { challenges: Arc::clone(self), what: What::Http(token.into()) })
    }

    /// Asks a source for tokens that nobody published, until the result is dropped. Errors: too many are asked.
    pub fn publish_source(self: &Arc<Self>, source: Source) -> Result<Published, String> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut copy = Vec::clone(&self.sources.load());
        if copy.len() >= CHALLENGES_MAX {
            return Err(too_many());
        }
        copy.push(Arc::clone(&source));
        self.sources.store(Arc::new(copy));
        Ok(Published { challenges: Arc::clone(self), what: What::Source(source) })
    }

    /// Lets a resolver answer the TLS-ALPN-01 challenges of a name until the result is dropped.
    pub fn publish_resolver(
        self: &Arc<Self>,
        name: &str,
        resolver: Arc<dyn ResolvesServerCert>,
    ) -> Result<Published, String> {
        self.publish_config(name, challenge_settings(resolver)?)
    }

    fn publish_config(self: &Arc<Self>, name: &str, config: Arc<ServerConfig>) -> Result<Published, String> {
        let name: Box<str> = normal(name).into();
        insert(&self.writing, &self.tls, name.clone(), Arc::clone(&config))?;
        Ok(Published { challenges: Arc::clone(self), what: What::Tls(name, config) })
    }

    /// Answers a TLS-ALPN-01 challenge until the result is dropped; `digest` is SHA-256 of the key authorization.
    pub fn publish_tls_alpn01(self: &Arc<Self>, name: &str, digest: &[u8]) -> Result<Published, String> {
        self.publish_config(name, challenge_config(&normal(name), digest)?)
    }

    /// How many challenges are answered now; a source counts as one.
    pub fn len(&self) -> usize {
        self.http.load().len() + self.tls.load().len() + self.sources.load().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Drop for Published {
    fn drop(&mut self) {
        let _writing = self.challenges.writing.lock().unwrap_or_else(PoisonError::into_inner);
        match &self.what {
            What::Http(token) => {
                let mut copy = HashMap::clone(&self.challenges.http.load());
                copy.remove(token);
                self.challenges.http.store(Arc::new(copy));
            }
            What::Tls(name, config) => {
                let mut copy = HashMap::clone(&self.challenges.tls.load());
                // A later challenge for the same name stays.
                if copy.get(name).is_some_and(|held| Arc::ptr_eq(held, config)) {
                    copy.remove(name);
                    self.challenges.tls.store(Arc::new(copy));
                }
            }
            What::Source(source) => {
                let mut copy = Vec::clone(&self.challenges.sources.load());
                copy.retain(|held| !Arc::ptr_eq(held, source));
                self.challenges.sources.store(Arc::new(copy));
            }
        }
    }
}

fn insert<V: Clone>(writing: &Mutex<()>, table: &Table<V>, key: Box<str>, value: V) -> Result<(), String> {
    let _writing = writing.lock().unwrap_or_else(PoisonError::into_inner);
    let mut copy = HashMap::clone(&table.load());
    if copy.len() >= CHALLENGES_MAX {
        return Err(too_many());
    }
    copy.insert(key, value);
    table.store(Arc::new(copy));
    Ok(())
}

fn too_many() -> String {
    format!("{CHALLENGES_MAX} challenges are open; no more are answered.")
}

fn normal(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Shows one certificate, whoever asks: the config is chosen by name before.
#[derive(Debug)]
struct Always(Arc<CertifiedKey>);

impl ResolvesServerCert for Always {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// A self-signed certificate with the acmeIdentifier extension (RFC 8737 section 3) in the settings to show it with.
fn challenge_config(name: &str, digest: &[u8]) -> Result<Arc<ServerConfig>, String> {
    let failed =
        |e: &dyn std::fmt::Display| format!("The challenge certificate for {name} could not be made: {e}.");
    // rcgen insists on 32 bytes by a panic.
    if digest.len() != 32 {
        return Err(failed(&"the digest is not SHA-256"));
    }
    let mut params = CertificateParams::new(vec![name.to_owned()]).map_err(|e| failed(&e))?;
    params.distinguished_name = DistinguishedName::new();
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate().map_err(|e| failed(&e))?;
    let certificate = params.self_signed(&key).map_err(|e| failed(&e))?;
    let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| failed(&e))?;
    let provider = crate::tls::provider();
    let signer = provider.key_provider.load_private_key(der).map_err(|e| failed(&e))?;
    // Not `from_der`: its check of the pair refuses the critical extension the challenge is about.
    let certified = CertifiedKey::new(vec![certificate.into()], signer);
    challenge_settings(Arc::new(Always(Arc::new(certified))))
}

/// Settings that speak nothing but `acme-tls/1` (RFC 8737 section 6.2) and remember nobody.
fn challenge_settings(resolver: Arc<dyn ResolvesServerCert>) -> Result<Arc<ServerConfig>, String> {
    let mut config = ServerConfig::builder_with_provider(crate::tls::provider())
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(|e| format!("The challenge could not be prepared: {e}."))?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = vec![ACME_TLS.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_published_is_answered_and_only_so_long() {
        let challenges = Challenges::new();
        for token in ["", "..", "../../etc/passwd", "token", &"t".repeat(10_000)] {
            assert!(challenges.http01(token).is_none());
        }
        let published = challenges.publish_http01("token", "token.print").unwrap();
        assert_eq!(challenges.http01("token").unwrap(), "token.print");
        assert!(challenges.http01("Token").is_none() && challenges.http01("token ").is_none());
        drop(published);
        assert!(challenges.http01("token").is_none() && challenges.is_empty());
        assert!(challenges.publish_http01(&"t".repeat(257), "x").is_err());
    }

    #[test]
    fn a_source_is_asked_for_what_nobody_published_and_only_so_long() {
        let challenges = Challenges::new();
        let own = challenges.publish_http01("own", "own.print").unwrap();
        let say = |token: &str| (token != "unknown").then(|| format!("{token}.source"));
        let source = challenges.publish_source(Arc::new(say)).unwrap();
        let other = challenges.publish_source(Arc::new(|_| None)).unwrap();
        assert_eq!(challenges.http01("own").unwrap(), "own.print");
        assert_eq!(challenges.http01("theirs").unwrap(), "theirs.source");
        assert!(challenges.http01("unknown").is_none());
        drop(source);
        assert!(challenges.http01("theirs").is_none());
        drop((own, other));
        assert!(challenges.is_empty());
    }

    #[test]
    fn the_later_of_two_challenges_for_a_name_stays() {
        let challenges = Challenges::new();
        assert!(challenges.publish_tls_alpn01("a.test", &[1; 31]).is_err());
        let first = challenges.publish_tls_alpn01("a.test", &[1; 32]).unwrap();
        let second = challenges.publish_tls_alpn01("A.test.", &[2; 32]).unwrap();
        drop(first);
        let config = challenges.tls_alpn01("a.TEST").unwrap();
        assert_eq!(config.alpn_protocols, [ACME_TLS.to_vec()]);
        assert!(challenges.tls_alpn01("b.test").is_none());
        drop(second);
        assert!(challenges.tls_alpn01("a.test").is_none());
    }

    #[test]
    fn the_table_is_bounded() {
        let challenges = Challenges::new();
        let open: Vec<_> =
            (0..CHALLENGES_MAX).map(|n| challenges.publish_http01(&format!("t{n}"), "x").unwrap()).collect();
        assert!(challenges.publish_http01("more", "x").err().unwrap().contains("512"));
        drop(open);
        assert!(challenges.publish_http01("more", "x").is_ok());
    }
}
