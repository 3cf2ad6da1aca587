//! Public keys that tokens are checked with: from a PEM file, or a JWK set (RFC 7517).

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::model::JwtAlgorithm;

/// Bytes of a file or an answer with keys, and keys of one set.
pub const BYTES_MAX: usize = 256 * 1024;
const KEYS_MAX: usize = 64;
/// Keys tried for a token that does not name its key.
const TRIED_MAX: usize = 4;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// The keys of one source.
pub struct Keys {
    all: Vec<Key>,
    /// Names them where findings are remembered: with another set, nothing found before counts.
    pub print: [u8; 32],
}

/// One key.
pub struct Key {
    id: Option<String>,
    /// What it may be used with.
    algorithms: Vec<Algorithm>,
    /// The key.
    pub key: DecodingKey,
}

impl Keys {
    /// One public key in PEM.
    ///
    /// # Errors
    /// What is wrong, as half a sentence.
    pub fn pem(bytes: &[u8]) -> Result<Keys, String> {
        if bytes.windows(11).any(|window| window == b"PRIVATE KEY") {
            return Err("it holds a private key; only the public one is wanted here".to_owned());
        }
        let curve = |algorithm| vec![algorithm];
        let found = if let Ok(key) = DecodingKey::from_rsa_pem(bytes) {
            (key, RSA.to_vec())
        } else if let Ok(key) = DecodingKey::from_ed_pem(bytes) {
            (key, curve(Algorithm::EdDSA))
        } else if let Ok(key) = DecodingKey::from_ec_pem(bytes) {
            // An uncompressed point: one byte and two coordinates.
            let algorithm = match key.try_get_as_bytes().map(<[u8]>::len) {
                Ok(65) => Algorithm::ES256,
                Ok(97) => Algorithm::ES384,
                _ => return Err("it is a key on a curve other than P-256 and P-384".to_owned()),
            };
            (key, curve(algorithm))
        } else {
            return Err("it is no public key in PEM".to_owned());
        };
        let (key, algorithms) = found;
        Ok(Keys { all: vec![Key { id: None, algorithms, key }], print: Sha256::digest(bytes).into() })
    }

    /// A JWK set. Keys that are not understood are passed over (RFC 7517 section 5).
    ///
    /// # Errors
    /// What is wrong, as half a sentence.
    pub fn set(bytes: &[u8]) -> Result<Keys, String> {
        let set: Value = serde_json::from_slice(bytes).map_err(|error| format!("it is not JSON: {error}"))?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or("it has no list `keys`")?;
        if keys.len() > KEYS_MAX {
            return Err(format!("it has {} keys, more than {KEYS_MAX}", keys.len()));
        }
        let all: Vec<Key> = keys.iter().filter_map(one).collect();
        if all.is_empty() {
            return Err(
                "none of its keys can check a signature: RSA, P-256, P-384 and Ed25519 are taken".to_owned()
            );
        }
        Ok(Keys { all, print: Sha256::digest(bytes).into() })
    }

    /// Keys that may have signed a token.
    pub fn fitting(&self, id: Option<&str>, algorithm: Algorithm) -> impl Iterator<Item = &Key> {
        let named = move |key: &&Key| match (id, &key.id) {
            (Some(id), Some(own)) => id == own,
            // A single key from a file has no name, and takes tokens whatever they call it.
            (_, None) | (None, Some(_)) => true,
        };
        self.all.iter().filter(named).filter(move |key| key.algorithms.contains(&algorithm)).take(TRIED_MAX)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether there is none; there always is one.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

/// One key of a set, if it is a public key for signatures that is known here.
fn one(value: &Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let kind = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => RSA.to_vec(),
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => vec![Algorithm::ES256],
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => vec![Algorithm::ES384],
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            vec![Algorithm::EdDSA]
        }
        // Shared secrets above all.
        _ => return None,
    };
    // A key that names its algorithm takes no other (RFC 7517 section 4.4).
    let algorithms = match value.get("alg").and_then(Value::as_str) {
        Some(alg) => kind.into_iter().filter(|known| format!("{known:?}") == alg).collect(),
        None => kind,
    };
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    (!algorithms.is_empty()).then(|| Key { id: jwk.common.key_id.clone(), algorithms, key })
}

/// What the library calls an algorithm.
pub fn library(algorithm: JwtAlgorithm) -> Algorithm {
    match algorithm {
        JwtAlgorithm::Rs256 => Algorithm::RS256,
        JwtAlgorithm::Rs384 => Algorithm::RS384,
        JwtAlgorithm::Rs512 => Algorithm::RS512,
        JwtAlgorithm::Ps256 => Algorithm::PS256,
        JwtAlgorithm::Ps384 => Algorithm::PS384,
        JwtAlgorithm::Ps512 => Algorithm::PS512,
        JwtAlgorithm::Es256 => Algorithm::ES256,
        JwtAlgorithm::Es384 => Algorithm::ES384,
        JwtAlgorithm::EdDsa => Algorithm::EdDSA,
    }
}
