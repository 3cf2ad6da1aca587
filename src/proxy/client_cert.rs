//! The certificate that a client proved to hold, on its way to the backend.
//!
//! It belongs to the connection, not to a request: every request on the connection carries it. Fields of these names
//! are removed from whatever a client sends, trusted proxies included, because nobody but us has seen the proof.

use std::cell::OnceCell;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::base::clock;
use crate::base::outcome::Outcome;
use crate::config::model::Forward;
use crate::policy::auth::cert_user::Shown;
use crate::telemetry::metric::Counter;
use crate::tls::client_auth::Refusal;
use crate::tls::client_identity::ClientIdentity;

const SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
const ISSUER: HeaderName = HeaderName::from_static("x-client-cert-issuer");
const SERIAL: HeaderName = HeaderName::from_static("x-client-cert-serial");
const FINGERPRINT: HeaderName = HeaderName::from_static("x-client-cert-fingerprint");
const NAMES: HeaderName = HeaderName::from_static("x-client-cert-san");
/// RFC 9440 section 2.2.
const CERTIFICATE: HeaderName = HeaderName::from_static("client-cert");
/// RFC 9440 section 2.3.
const CHAIN: HeaderName = HeaderName::from_static("client-cert-chain");

/// Bytes of `Client-Cert-Chain`; a longer one is left out (RFC 9440 section 3.3 warns of large fields).
const CHAIN_BYTES_MAX: usize = 16 * 1024;

/// A client's certificate, with the fields that tell of it; made when first needed.
pub struct ClientCert {
    /// What it says.
    pub identity: ClientIdentity,
    texts: OnceCell<Vec<(HeaderName, HeaderValue)>>,
    encoded: OnceCell<Vec<(HeaderName, HeaderValue)>>,
}

impl ClientCert {
    /// A verified certificate.
    pub fn new(identity: ClientIdentity) -> ClientCert {
        ClientCert { identity, texts: OnceCell::new(), encoded: OnceCell::new() }
    }

    /// What may name a user.
    pub fn shown(&self) -> Shown<'_> {
        let ClientIdentity { subject, names, fingerprint, .. } = &self.identity;
        Shown { subject, names, fingerprint }
    }

    /// Whether its time has passed while its connection lives on.
    pub fn has_expired(&self) -> bool {
        self.identity.not_after < clock::wall().as_secs()
    }

    /// Tells a backend about it. The map was cleaned of such fields before.
    pub fn tell(&self, headers: &mut HeaderMap, forward: Forward) {
        let texts = forward.identity.then(|| self.texts.get_or_init(|| self.make_texts()));
        let encoded = forward.certificate.then(|| self.encoded.get_or_init(|| self.make_encoded()));
        for (name, value) in texts.into_iter().chain(encoded).flatten() {
            headers.insert(name, value.clone());
        }
    }

    fn make_texts(&self) -> Vec<(HeaderName, HeaderValue)> {
        let ClientIdentity { subject, issuer, serial, fingerprint, names, .. } = &self.identity;
        let fields = [
            (SUBJECT, subject),
            (ISSUER, issuer),
            (SERIAL, serial),
            (FINGERPRINT, fingerprint),
            (NAMES, names),
        ];
        let field = |(name, text): (HeaderName, &String)| {
            (!text.is_empty()).then(|| HeaderValue::from_str(text).ok().map(|value| (name, value)))?
        };
        fields.into_iter().filter_map(field).collect()
    }

    fn make_encoded(&self) -> Vec<(HeaderName, HeaderValue)> {
        // A byte sequence of RFC 9651 section 3.3.5: base64 between colons.
        let encoded = |der: &[u8]| format!(":{}:", STANDARD.encode(der));
        let mut chain = self.identity.chain.iter();
        let leaf = chain.next().map(|der| encoded(der));
        let rest = chain.map(|der| encoded(der)).collect::<Vec<_>>().join(", ");
        let rest = Some(rest).filter(|text| !text.is_empty() && text.len() <= CHAIN_BYTES_MAX);
        let field = |(name, text): (HeaderName, Option<String>)| {
            HeaderValue::from_str(&text?).ok().map(|value| (name, value))
        };
        [(CERTIFICATE, leaf), (CHAIN, rest)].into_iter().filter_map(field).collect()
    }
}

/// Whether a field claims to know a client's certificate. Ours are never believed; those that other proxies write, only
/// from trusted ones. Names with `_` (or another odd character) count as with `-`, because some backends take them for
/// the same.
pub fn claims_identity(name: &str, trusted: bool) -> bool {
    let begins = |prefix: &str| {
        let folded = name.bytes().map(|byte| if byte.is_ascii_alphanumeric() { byte } else { b'-' });
        name.len() >= prefix.len() && folded.zip(prefix.bytes()).all(|(a, b)| a == b)
    };
    match name.as_bytes().first() {
        Some(b'x') => {
            begins("x-client-cert")
                || !trusted && (begins("x-forwarded-client-cert") || begins("x-ssl-client"))
        }
        Some(b'c') => begins("client-cert"),
        Some(b's') => !trusted && begins("ssl-client"),
        _ => false,
    }
}

/// How a refused certificate is told and counted.
pub fn refused(why: Refusal) -> (Outcome, Counter) {
    match why {
        Refusal::Missing => (Outcome::ClientCertMissing, Counter::ClientCertMissing),
        Refusal::Untrusted => (Outcome::ClientCertUntrusted, Counter::ClientCertUntrusted),
        Refusal::Revoked => (Outcome::ClientCertRevoked, Counter::ClientCertRevoked),
        Refusal::Unchecked => (Outcome::ClientCertUnchecked, Counter::ClientCertUnchecked),
        Refusal::Expired => (Outcome::ClientCertExpired, Counter::ClientCertExpired),
        Refusal::Invalid => (Outcome::ClientCertInvalid, Counter::ClientCertInvalid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cert(chain: usize) -> ClientCert {
        let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, "ann, \"x\"");
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        ClientCert::new(ClientIdentity::of(&vec![der; chain]).unwrap())
    }

    fn told(cert: &ClientCert, identity: bool, certificate: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        cert.tell(&mut headers, Forward { identity, certificate });
        headers
    }

    #[test]
    fn only_what_is_asked_for_is_told() {
        let cert = cert(3);
        assert!(told(&cert, false, false).is_empty());
        let texts = told(&cert, true, false);
        assert_eq!(texts[SUBJECT], "CN=ann\\, \\\"x\\\"");
        assert_eq!(texts[NAMES], "DNS:a.test");
        assert_eq!(texts[FINGERPRINT], *cert.identity.fingerprint);
        assert!(texts.contains_key(ISSUER) && texts.contains_key(SERIAL) && texts.len() == 5);
        let encoded = told(&cert, false, true);
        let leaf = encoded[CERTIFICATE].to_str().unwrap().trim_matches(':').to_owned();
        assert_eq!(STANDARD.decode(leaf).unwrap(), cert.identity.chain[0].as_ref());
        assert_eq!(encoded[CHAIN].to_str().unwrap().split(", ").count(), 2);
        assert_eq!(told(&cert, true, true).len(), 7);
    }

    #[test]
    fn a_chain_that_makes_too_large_a_field_is_left_out() {
        let encoded = told(&cert(100), false, true);
        assert!(encoded.contains_key(CERTIFICATE) && !encoded.contains_key(CHAIN));
        assert!(!told(&cert(1), false, true).contains_key(CHAIN));
    }

    #[test]
    fn no_spelling_of_our_fields_is_believed_from_anybody() {
        for name in [
            "client-cert",
            "client_cert",
            "client-cert-chain",
            "client_cert-chain",
            "x-client-cert-subject",
            "x_client_cert_subject",
            "x-client_cert-fingerprint",
            "x.client.cert.subject",
            "x-client-cert",
            "x-client-cert-anything",
        ] {
            assert!(claims_identity(name, true) && claims_identity(name, false), "{name}");
        }
        for name in ["x-forwarded-client-cert", "x-ssl-client-verify", "ssl-client-cert", "ssl_client_s_dn"] {
            assert!(!claims_identity(name, true) && claims_identity(name, false), "{name}");
        }
        for name in
            ["", "x", "client", "x-client", "x-client-id", "content-type", "x-forwarded-for", "x-client-ip"]
        {
            assert!(!claims_identity(name, false), "{name}");
        }
    }
}
