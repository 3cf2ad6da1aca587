//! Certificates and keys from PEM files (RFC 7468), with errors a person can act on.
//!
//! What is checked here: that both files can be read, that each certificate of the chain parses, and that the key
//! belongs to the first of them. What is not: who signed it, and whether it is expired; that is for the caller to
//! warn about ([`Identity::not_after`]), since an expired certificate still beats none.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::file::read_bounded;

/// Most bytes a certificate or key file may have. A chain has a few kilobytes; a bundle of all roots 300.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Most certificates in one chain. Clients give up well before.
const CHAIN_MAX: usize = 16;

/// A certificate chain with its private key, ready to be served.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Chain and key.
    pub key: Arc<CertifiedKey>,
    /// SHA-256 over the bytes it was made from: changes exactly when a file does.
    pub fingerprint: [u8; 32],
    /// When the leaf expires, in seconds since 1970.
    pub not_after: u64,
    /// Names of the leaf (subjectAltName): DNS names in lower case, wildcards as `*.example.org`; IP addresses in
    /// canonical text, v6 without brackets.
    pub names: Vec<String>,
}

/// Which of the two files is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The certificate chain.
    Cert,
    /// The private key.
    Key,
}

/// What is wrong with a pair of files, for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PemError {
    /// The file to point at.
    pub which: Which,
    /// What was found.
    pub message: String,
    /// What to do about it.
    pub help: String,
}

impl PemError {
    fn new(which: Which, message: impl Into<String>, help: impl Into<String>) -> PemError {
        PemError { which, message: message.into(), help: help.into() }
    }
}

impl std::fmt::Display for PemError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.message, self.help)
    }
}

impl std::error::Error for PemError {}

/// Reads a chain and its key, each at most [`FILE_BYTES_MAX`] bytes.
pub fn load(cert: &Path, key: &Path) -> Result<Identity, PemError> {
    let read = |which, path: &Path| {
        read_bounded(path, FILE_BYTES_MAX).map_err(|e| {
            let (message, help) = explain_io(&path.display().to_string(), &e);
            PemError::new(which, message, help)
        })
    };
    let (cert_pem, key_pem) = (read(Which::Cert, cert)?, read(Which::Key, key)?);
    parse(&cert_pem, &key_pem, &cert.display().to_string(), &key.display().to_string())
}

/// The same from bytes: for copies kept of what worked last.
pub fn from_bytes(cert_pem: &[u8], key_pem: &[u8]) -> Result<Identity, PemError> {
    parse(cert_pem, key_pem, "The certificate", "The private key")
}

/// Whether a certificate is valid for a host: a name, an IP address, or a pattern `*.example.org`. Case and one
/// trailing dot of the host do not matter.
pub fn names_cover(identity: &Identity, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    if identity.names.contains(&host) {
        return true;
    }
    // RFC 9525 section 6.3: `*` stands for exactly one whole label, and never matches an address.
    if host.parse::<IpAddr>().is_ok() {
        return false;
    }
    let Some((label, parent)) = host.split_once('.') else { return false };
    let covers = |name: &String| name.strip_prefix("*.") == Some(parent);
    !label.is_empty() && label != "*" && identity.names.iter().any(covers)
}

fn parse(cert_pem: &[u8], key_pem: &[u8], cert_label: &str, key_label: &str) -> Result<Identity, PemError> {
    let chain = certificates(cert_pem, cert_label).map_err(|(m, h)| PemError::new(Which::Cert, m, h))?;
    if chain.len() > CHAIN_MAX {
        let message =
            format!("{cert_label} holds {} certificates; a chain has at most {CHAIN_MAX}.", chain.len());
        return Err(PemError::new(
            Which::Cert,
            message,
            "Keep the site's certificate and its intermediate ones.",
        ));
    }
    let not_a_leaf = || {
        let message = format!("{cert_label} begins with something that is no X.509 certificate.");
        PemError::new(Which::Cert, message, "Get the file again from whoever issued the certificate.")
    };
    let facts = chain.first().and_then(|leaf| facts(leaf)).ok_or_else(not_a_leaf)?;
    for (position, der) in chain.iter().enumerate() {
        if X509Certificate::from_der(der).is_err() {
            let message = format!("Certificate {} in {cert_label} is damaged.", position + 1);
            return Err(PemError::new(Which::Cert, message, "Get the file again from whoever issued it."));
        }
    }
    let key = private_key(key_pem, key_label)?;
    let key = match CertifiedKey::from_der(chain.clone(), key.clone_key(), &super::provider()) {
        Ok(key) => Arc::new(key),
        Err(error) => return Err(explain_pair(error, chain, key, cert_label, key_label)),
    };
    let fingerprint = digest(cert_pem, key_pem);
    Ok(Identity { key, fingerprint, not_after: facts.not_after, names: facts.names })
}

/// The fingerprint of two files as they are now, without parsing them; `None` if one cannot be read.
pub fn fingerprint(cert: &Path, key: &Path) -> Option<[u8; 32]> {
    let read = |path: &Path| read_bounded(path, FILE_BYTES_MAX).ok();
    Some(digest(&read(cert)?, &read(key)?))
}

fn digest(cert_pem: &[u8], key_pem: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    // The length keeps apart pairs whose concatenation is the same.
    hash.update(u64::try_from(cert_pem.len()).unwrap_or(u64::MAX).to_be_bytes());
    hash.update(cert_pem);
    hash.update(key_pem);
    hash.finalize().into()
}

/// What we want to know about a certificate.
struct Facts {
    not_after: u64,
    names: Vec<String>,
}

fn facts(der: &CertificateDer<'_>) -> Option<Facts> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    let not_after = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
    let mut names = Vec::new();
    if let Ok(Some(extension)) = parsed.subject_alternative_name() {
        for name in &extension.value.general_names {
            match name {
                GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
                GeneralName::IPAddress(octets) => names.extend(address_text(octets)),
                _ => {}
            }
        }
    }
    Some(Facts { not_after, names })
}

fn address_text(octets: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(octets).ok().map(|v6| Ipv6Addr::from(v6).to_string())
}

/// All certificates of a PEM text, at least one; the error is a message and a help. `label` begins the message.
pub(super) fn certificates(
    pem: &[u8],
    label: &str,
) -> Result<Vec<CertificateDer<'static>>, (String, &'static str)> {
    let mut chain = Vec::new();
    for section in CertificateDer::pem_slice_iter(pem) {
        let damaged = "Get the file again from whoever issued it; copying from a terminal often loses lines.";
        chain.push(section.map_err(|e| (format!("{label} is damaged: {e}."), damaged))?);
    }
    if !chain.is_empty() {
        return Ok(chain);
    }
    Err(match pem {
        [] => (format!("{label} is empty."), "Write the certificate there, in PEM format."),
        // A DER certificate is an ASN.1 SEQUENCE with a two-byte length.
        [0x30, 0x82, ..] => (
            format!("{label} seems to be in DER format; PEM is needed."),
            "Convert it: `openssl x509 -inform der -in FILE -out FILE.pem`.",
        ),
        _ if contains(pem, b"PRIVATE KEY-----") => (
            format!("{label} holds a private key but no certificate."),
            "Are the two files swapped? `cert` is the certificate chain, `key` the private key.",
        ),
        _ => (
            format!("{label} holds no certificate."),
            "It must have a block that begins with `-----BEGIN CERTIFICATE-----`: the site's certificate first, \
             then the intermediate ones.",
        ),
    })
}

fn private_key(pem: &[u8], label: &str) -> Result<PrivateKeyDer<'static>, PemError> {
    let error = |message: String, help: &str| Err(PemError::new(Which::Key, message, help));
    // Both ways to encrypt a PEM key: PKCS #8 (RFC 7468 section 11) and the old header of RFC 1421.
    if contains(pem, b"BEGIN ENCRYPTED PRIVATE KEY") || contains(pem, b"Proc-Type: 4,ENCRYPTED") {
        return error(
            format!("{label} is encrypted with a passphrase."),
            "Nobody is there to type it when Tidegate starts. Write it without one: \
             `openssl pkey -in KEY -out NEW`, mode 0600.",
        );
    }
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(key) => Ok(key),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => match pem {
            [] => error(format!("{label} is empty."), "Write the private key there, in PEM format."),
            [0x30, ..] => error(
                format!("{label} seems to be in DER format; PEM is needed."),
                "Convert it: `openssl pkey -inform der -in FILE -out FILE.pem`.",
            ),
            _ if contains(pem, b"BEGIN CERTIFICATE-----") => error(
                format!("{label} holds a certificate but no private key."),
                "Are the two files swapped? `cert` is the certificate chain, `key` the private key.",
            ),
            _ => error(
                format!("{label} holds no private key."),
                "It must have a block that begins with `-----BEGIN PRIVATE KEY-----` (or `EC PRIVATE KEY`, \
                 `RSA PRIVATE KEY`).",
            ),
        },
        Err(damage) => error(
            format!("{label} is damaged: {damage}."),
            "Restore it from a copy; copying from a terminal often loses lines.",
        ),
    }
}

fn explain_pair(
    error: rustls::Error,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    cert_label: &str,
    key_label: &str,
) -> PemError {
    let provider = super::provider();
    let matches = |der: &CertificateDer<'static>| {
        CertifiedKey::from_der(vec![der.clone()], key.clone_key(), &provider).is_ok()
    };
    match error {
        rustls::Error::InconsistentKeys(_) => {
            let other = chain.iter().position(matches);
            match other {
                Some(position) => PemError::new(
                    Which::Cert,
                    format!(
                        "{key_label} belongs to certificate {} in {cert_label}, not to the first.",
                        position + 1
                    ),
                    "Move the site's own certificate to the top; the intermediate ones follow it.",
                ),
                None => PemError::new(
                    Which::Key,
                    format!("{key_label} belongs to another certificate than {cert_label}."),
                    "Use the key the certificate was requested with, or request a new certificate.",
                ),
            }
        }
        rustls::Error::InvalidCertificate(reason) => PemError::new(
            Which::Cert,
            format!("{cert_label} cannot be used: {reason:?}."),
            "It must be an X.509 version 3 certificate; request a new one.",
        ),
        other => PemError::new(
            Which::Key,
            format!("{key_label} cannot be used: {other}."),
            "ECDSA (P-256, P-384, P-521), Ed25519 and RSA keys from 2048 bits on are supported.",
        ),
    }
}

/// A file system error as a sentence that begins with `what`, and what to do.
pub(super) fn explain_io(what: &str, error: &io::Error) -> (String, String) {
    match error.kind() {
        ErrorKind::NotFound => (
            format!("{what} does not exist."),
            "Check the path; relative ones count from the folder of the configuration file.".into(),
        ),
        ErrorKind::PermissionDenied => (
            format!("{what} may not be read by the user Tidegate runs as."),
            "Let that user read the file and enter the folders above it.".into(),
        ),
        ErrorKind::IsADirectory => (format!("{what} is a folder."), "Name the file in it.".into()),
        ErrorKind::InvalidInput => (
            format!("{what} is not a regular file."),
            "Name a regular file; pipes and devices are not read.".into(),
        ),
        ErrorKind::FileTooLarge => (
            format!("{what} is larger than {} KiB, which no certificate or key is.", FILE_BYTES_MAX / 1024),
            "Check the path.".into(),
        ),
        _ => (format!("{what} could not be read: {error}."), "Check the disk and the path.".into()),
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// What [`Identity`] needs when the certificate was made here and not read: no files, so the chain is hashed.
pub(super) fn identity_of(key: CertifiedKey, not_after: u64, names: Vec<String>) -> Identity {
    let mut hash = Sha256::new();
    for der in &key.cert {
        hash.update(der);
    }
    Identity { key: Arc::new(key), fingerprint: hash.finalize().into(), not_after, names }
}

/// Reads a file whose content is wiped from memory when dropped; the error is a sentence with its mend.
pub(super) fn read_text(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    read_bounded(path, FILE_BYTES_MAX).map_err(|e| {
        let (message, help) = explain_io(&path.display().to_string(), &e);
        format!("{message} {help}")
    })
}

#[cfg(test)]
mod tests;
