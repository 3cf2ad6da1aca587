//! The built-in local CA: for development and for names no public CA would sign.
//!
//! The CA itself (P-256, ten years) lives in `<state>/internal-ca/`, so that clients who trust it once keep trusting
//! it. The certificates it issues live in memory only and are made anew by each process: making one takes less time
//! than reading it back safely would.
//!
//! Certificate and key appear together: both are written into a temporary folder that is then renamed to its final
//! name. Neither a crash nor a second process starting at the same moment can leave a half or mixed pair.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::file;
use super::pem::{self, Identity};
use crate::base::clock;
use crate::config::model::HostPattern;

const DAY: u64 = 24 * 60 * 60;
/// Validity of the CA, in seconds.
const CA_VALID: u64 = 3650 * DAY;
/// Validity of a leaf, in seconds.
const LEAF_VALID: u64 = 90 * DAY;
/// How far the beginning of validity lies in the past, for clients whose clocks are slow, in seconds.
const CLOCK_SLACK: u64 = 60 * 60;
/// Last moment we put into a certificate: the end of the year 9999 (RFC 5280 section 4.1.2.5) less all validities.
const WALL_MAX: u64 = 253_402_300_799 - CA_VALID;
/// Longest common name, in characters (RFC 5280 appendix A.1, `ub-common-name`).
const COMMON_NAME_MAX: usize = 64;

/// A local certificate authority.
#[derive(Debug)]
pub struct InternalCa {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    path: PathBuf,
    not_after: u64,
}

impl InternalCa {
    /// Loads the CA from `<state>/internal-ca/`, or makes it when that folder is absent or empty.
    ///
    /// Errors are sentences with their mend. A damaged or half pair is one of them: it is never replaced silently,
    /// because every client that trusts the old CA would then see warnings.
    pub fn open(state: &Path) -> Result<InternalCa, String> {
        let folder = state.join("internal-ca");
        if !exists(&folder.join("ca.pem"))? && !exists(&folder.join("ca.key"))? {
            create(state, &folder)?;
        }
        load(&folder)
    }

    /// A CA in memory only, for trying a configuration: nobody will ever trust it.
    ///
    /// Errors: a sentence.
    pub fn ephemeral() -> Result<InternalCa, String> {
        let (cert, key) = generate().map_err(|e| format!("The internal CA could not be made: {e}."))?;
        assemble(cert.as_bytes(), key.as_bytes(), PathBuf::new()).map_err(|what| what + ".")
    }

    /// Issues a certificate for a site: P-256, 90 days, at most as long as the CA. The chain is the leaf alone, since
    /// whoever trusts the CA has its certificate already (RFC 8446 section 4.4.2).
    ///
    /// Errors: a name that no certificate can hold.
    pub fn issue(&self, names: &[HostPattern]) -> Result<Identity, String> {
        self.leaf(names, LEAF_VALID, &[ExtendedKeyUsagePurpose::ServerAuth])?.identity()
    }

    /// Issues the certificate that this process shows to backends which ask for one: P-256, 90 days, for clients only.
    ///
    /// Errors: a sentence.
    pub fn issue_client(&self) -> Result<Identity, String> {
        self.leaf(&[], LEAF_VALID, &[ExtendedKeyUsagePurpose::ClientAuth])?.identity()
    }

    /// Issues a certificate for an endpoint inside: P-256, for servers and clients, valid for so many seconds but at most
    /// 90 days and no longer than the CA. Nothing of it is kept here.
    ///
    /// Errors: a name that no certificate can hold.
    pub fn issue_endpoint(&self, names: &[HostPattern], valid: u64) -> Result<Issued, String> {
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let leaf = self.leaf(names, valid.clamp(1, LEAF_VALID), &usages)?;
        Ok(Issued {
            certificate: leaf.certificate.pem(),
            key: Zeroizing::new(leaf.key.serialize_pem()),
            not_after: leaf.not_after,
        })
    }

    fn leaf(
        &self,
        names: &[HostPattern],
        valid: u64,
        usages: &[ExtendedKeyUsagePurpose],
    ) -> Result<Leaf, String> {
        let mut params = CertificateParams::default();
        let mut texts = Vec::with_capacity(names.len());
        for pattern in names {
            let (text, san) = subject_alt_name(pattern)?;
            texts.push(text);
            params.subject_alt_names.push(san);
        }
        let now = wall();
        let not_after = (now + valid).min(self.not_after);
        set_validity(&mut params, now, not_after);
        let common = texts.first().filter(|name| name.len() <= COMMON_NAME_MAX);
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common.map_or("Tidegate", String::as_str));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        let failed = |e: rcgen::Error| {
            format!("The internal CA could not issue a certificate for {}: {e}.", texts.join(", "))
        };
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Leaf { certificate, key, not_after, names: texts })
    }

    /// The CA's certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The CA's certificate, in PEM: what clients have to trust.
    pub fn ca_path(&self) -> &Path {
        &self.path
    }

    /// When the CA expires, in seconds since 1970.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }
}

/// A certificate for an endpoint, as it is handed out.
pub struct Issued {
    /// PEM.
    pub certificate: String,
    /// PEM, PKCS#8.
    pub key: Zeroizing<String>,
    /// When it expires, in seconds since 1970.
    pub not_after: u64,
}

/// A certificate just signed.
struct Leaf {
    certificate: rcgen::Certificate,
    key: KeyPair,
    not_after: u64,
    names: Vec<String>,
}

impl Leaf {
    fn identity(self) -> Result<Identity, String> {
        let failed = |e: &dyn std::fmt::Display| {
            format!("The certificate of the internal CA for {} cannot be used: {e}.", self.names.join(", "))
        };
        let der = PrivateKeyDer::try_from(self.key.serialize_der()).map_err(|e| failed(&e))?;
        let chain = vec![self.certificate.der().clone()];
        let key = CertifiedKey::from_der(chain, der, &super::provider()).map_err(|e| failed(&e))?;
        Ok(pem::identity_of(key, self.not_after, self.names))
    }
}

/// A pattern as certificates write it, and as text.
fn subject_alt_name(pattern: &HostPattern) -> Result<(String, SanType), String> {
    let text = match pattern {
        HostPattern::Exact(name) => name.to_string(),
        HostPattern::Wildcard(parent) => format!("*.{parent}"),
    };
    if let (HostPattern::Exact(_), Ok(address)) = (pattern, text.parse()) {
        return Ok((text, SanType::IpAddress(address)));
    }
    match text.as_str().try_into() {
        Ok(name) => Ok((text, SanType::DnsName(name))),
        Err(_) => Err(format!(
            "A certificate cannot hold the name {text:?}: letters outside ASCII must be written in punycode (xn--…)."
        )),
    }
}

fn load(folder: &Path) -> Result<InternalCa, String> {
    let (cert_path, key_path) = (folder.join("ca.pem"), folder.join("ca.key"));
    let mend = format!(
        "Restore both ca.pem and ca.key from a backup, or remove {} to get a new CA (clients then have to trust the \
         new one).",
        folder.display()
    );
    let broken = |what: &str| format!("The internal CA cannot be used: {what} {mend}");
    match (exists(&cert_path)?, exists(&key_path)?) {
        (true, true) => {}
        (false, true) => return Err(broken(&format!("{} is missing.", cert_path.display()))),
        (true, false) => return Err(broken(&format!("{} is missing.", key_path.display()))),
        (false, false) => {
            return Err(broken(&format!("{} holds other files but no CA.", folder.display())));
        }
    }
    let (cert_pem, key_pem) = (pem::read_text(&cert_path)?, pem::read_text(&key_path)?);
    assemble(&cert_pem, &key_pem, cert_path).map_err(|what| broken(&format!("{what}.")))
}

/// A CA from its two PEM texts; the error is a sentence without its full stop.
fn assemble(cert_pem: &[u8], key_pem: &[u8], path: PathBuf) -> Result<InternalCa, String> {
    let without_stop = |e: pem::PemError| e.message.trim_end_matches('.').to_owned();
    let identity = pem::from_bytes(cert_pem, key_pem).map_err(without_stop)?;
    let Some(der) = identity.key.cert.first() else { return Err("ca.pem is empty".into()) };
    let is_ca = X509Certificate::from_der(der).is_ok_and(|(_, parsed)| parsed.is_ca());
    if !is_ca {
        return Err(format!("{} is not the certificate of a CA", path.display()));
    }
    if identity.not_after <= clock::wall().as_secs() {
        return Err(format!("{} has expired", path.display()));
    }
    let signing = std::str::from_utf8(key_pem).ok().and_then(|text| KeyPair::from_pem(text).ok());
    let Some(signing) = signing else {
        return Err("ca.key holds a kind of key the CA cannot sign with".into());
    };
    let issuer = Issuer::from_ca_cert_der(der, signing).map_err(|e| e.to_string())?;
    let certificate = der.clone();
    Ok(InternalCa { issuer, certificate, path, not_after: identity.not_after })
}

/// Makes a CA and puts it into place in one step. A process that was quicker wins: its CA stays and ours is dropped.
fn create(state: &Path, folder: &Path) -> Result<(), String> {
    let failed = |e: &dyn std::fmt::Display| {
        format!(
            "The internal CA could not be written to {}: {e}. The user Tidegate runs as must be able to write to the \
             state folder; `[server] state` chooses another one.",
            folder.display()
        )
    };
    let (cert, key) = generate().map_err(|e| format!("The internal CA could not be made: {e}."))?;
    DirBuilder::new().recursive(true).mode(0o700).create(state).map_err(|e| failed(&e))?;
    let temporary = file::temporary_beside(folder).map_err(|e| failed(&e))?;
    let write = || -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(&temporary)?;
        file::write_new(&temporary.join("ca.key"), key.as_bytes(), 0o600)?;
        file::write_new(&temporary.join("ca.pem"), cert.as_bytes(), 0o644)?;
        file::sync_folder(&temporary)
    };
    // rename(2) replaces an absent or empty folder and refuses any other.
    let placed = write().and_then(|()| match fs::rename(&temporary, folder) {
        Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
            Ok(false)
        }
        other => other.map(|()| true),
    });
    if !matches!(placed, Ok(true)) {
        // Best effort: the error, if there is one, is what is worth telling.
        let _ = fs::remove_dir_all(&temporary);
    }
    placed.and_then(|_| file::sync_folder(state)).map_err(|e| failed(&e))
}

/// A new CA: certificate and key as PEM.
fn generate() -> Result<(String, Zeroizing<String>), rcgen::Error> {
    let key = KeyPair::generate()?;
    let id: String =
        Sha256::digest(key.public_key_raw()).iter().take(4).map(|b| format!("{b:02x}")).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    // No name of this machine: the certificate is handed around.
    params.distinguished_name.push(DnType::CommonName, format!("Tidegate internal CA {id}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = wall();
    set_validity(&mut params, now, now + CA_VALID);
    let cert = params.self_signed(&key)?;
    Ok((cert.pem(), Zeroizing::new(key.serialize_pem())))
}

/// Now, in seconds since 1970, bounded so that sums with a validity stay inside what certificates can say.
fn wall() -> u64 {
    clock::wall().as_secs().min(WALL_MAX)
}

/// Both in seconds since 1970, at most [`WALL_MAX`] and a validity.
fn set_validity(params: &mut CertificateParams, now: u64, not_after: u64) {
    let epoch = date_time_ymd(1970, 1, 1);
    params.not_before = epoch + Duration::from_secs(now.saturating_sub(CLOCK_SLACK));
    params.not_after = epoch + Duration::from_secs(not_after);
}

/// Whether a path exists; `Err` when that cannot be told, so that "no permission" is never taken for "absent".
fn exists(path: &Path) -> Result<bool, String> {
    path.try_exists().map_err(|e| {
        let (message, help) = pem::explain_io(&path.display().to_string(), &e);
        format!("{message} {help}")
    })
}

#[cfg(test)]
mod tests;
