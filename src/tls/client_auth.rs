//! Whose certificates clients may show: authorities and revocation lists from files, checked in the handshake.
//!
//! * Every certificate of a chain is looked up in the lists, except the authority in the file itself. One whose issuer
//!   has no list is refused: silence is no clean record. Where no file of lists is named, nothing is revoked.
//! * A list past its date (`nextUpdate`) refuses the clients it speaks about, unless `expired_crl = "accept"`: then it
//!   goes on revoking what it names.
//! * A file without a list is an error. An empty one must not switch revocation off.

use std::cmp::Reverse;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::client_identity::distinguished;
use super::pem;
use crate::base::clock;
use crate::config::model::{self, Origin};

/// Authorities of one file.
const AUTHORITIES_MAX: usize = 256;
/// Revocation lists of one file.
const LISTS_MAX: usize = 256;
/// Bytes of the file of authorities.
pub const CA_BYTES_MAX: usize = 1 << 20;
/// Bytes of the file of revocation lists: half a million entries.
pub const CRL_BYTES_MAX: usize = 16 << 20;
/// A list that nobody renewed is warned about this long before its date, in seconds: a day.
const WARN_BEFORE: u64 = 24 * 3600;
/// Bytes of authorities' names told to clients. Beyond, none is told: the message that carries them has an end, and
/// clients then offer what they have.
const HINT_BYTES_MAX: usize = 8 * 1024;

/// How the certificates of clients are checked.
#[derive(Debug)]
pub struct ClientAuth {
    pub(super) verifier: Arc<dyn ClientCertVerifier>,
    /// A client without one is refused.
    pub required: bool,
    /// The revocation lists.
    pub lists: Vec<List>,
    /// Lists past their date refuse nobody.
    pub accept_expired: bool,
    /// Names of authorities for which there is no list although there is a file of lists: their clients are refused.
    pub without_list: Vec<String>,
}

/// One revocation list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    /// Whose it is.
    pub issuer: String,
    /// When the next one is due, in seconds since 1970.
    pub next_update: Option<u64>,
    /// When to warn that no newer one has come: a day before, or when a quarter of a short life is left.
    pub warn_from: Option<u64>,
}

/// Why a client was refused, as far as its certificate goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It showed none.
    Missing,
    /// No authority of the file signed it.
    Untrusted,
    /// It was revoked.
    Revoked,
    /// No list says whether it was revoked, or only one past its date.
    Unchecked,
    /// It has expired, or is not valid yet.
    Expired,
    /// It is damaged, for another purpose, or its key was not proven.
    Invalid,
}

impl Refusal {
    /// What an error of the TLS library about a certificate means.
    pub fn of(error: &CertificateError) -> Refusal {
        use CertificateError as E;
        match error {
            E::Expired | E::ExpiredContext { .. } | E::NotValidYet | E::NotValidYetContext { .. } => {
                Refusal::Expired
            }
            E::Revoked => Refusal::Revoked,
            E::UnknownRevocationStatus
            | E::ExpiredRevocationList
            | E::ExpiredRevocationListContext { .. } => Refusal::Unchecked,
            E::UnknownIssuer => Refusal::Untrusted,
            _ => Refusal::Invalid,
        }
    }
}

impl ClientAuth {
    /// Compiles what is said and the content of the files.
    ///
    /// # Errors
    /// Where the blame lies, what is wrong, what to do.
    pub fn compile(
        said: &model::ClientAuth,
        ca: &[u8],
        crl: Option<&[u8]>,
    ) -> Result<ClientAuth, (Origin, String, String)> {
        let ca_label = said.ca_file.value.display().to_string();
        let blame = |(message, help): (String, String)| (said.ca_file.origin.clone(), message, help);
        let (roots, authorities) = authorities(ca, &ca_label).map_err(blame)?;
        let hints: usize = roots.subjects().iter().map(|subject| subject.as_ref().len()).sum();
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), super::provider());
        if hints > HINT_BYTES_MAX {
            builder = builder.clear_root_hint_subjects();
        }
        let mut lists = Vec::new();
        let mut origin = &said.ca_file.origin;
        if let (Some(file), Some(bytes)) = (&said.crl_file, crl) {
            origin = &file.origin;
            let label = file.value.display().to_string();
            let (ders, found) =
                self::lists(bytes, &label).map_err(|(message, help)| (origin.clone(), message, help))?;
            builder = builder.with_crls(ders);
            lists = found;
        }
        if !said.accept_expired_crl {
            builder = builder.enforce_revocation_expiration();
        }
        if !said.required {
            builder = builder.allow_unauthenticated();
        }
        let verifier = builder.build().map_err(|error| {
            let help = "Get the revocation lists again from whoever publishes them.".to_owned();
            (origin.clone(), format!("the revocation lists cannot be used: {error}."), help)
        })?;
        let uncovered = |name: &&String| !lists.is_empty() && lists.iter().all(|list| list.issuer != **name);
        let without_list = authorities.iter().filter(uncovered).cloned().collect();
        Ok(ClientAuth {
            verifier,
            required: said.required,
            accept_expired: said.accept_expired_crl,
            without_list,
            lists,
        })
    }

    /// Checks a chain again that was good when its connection began: files have changed since, or time has passed.
    ///
    /// # Errors
    /// Why it is not good any more.
    pub fn check_again(&self, chain: &[CertificateDer<'_>]) -> Result<(), Refusal> {
        let Some((leaf, rest)) = chain.split_first() else {
            return if self.required { Err(Refusal::Missing) } else { Ok(()) };
        };
        let now = UnixTime::since_unix_epoch(clock::wall());
        match self.verifier.verify_client_cert(leaf, rest, now) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(error)) => Err(Refusal::of(&error)),
            Err(_) => Err(Refusal::Invalid),
        }
    }

    /// When the first list is past its date; `None` where none has one.
    pub fn next_update(&self) -> Option<u64> {
        self.lists.iter().filter_map(|list| list.next_update).min()
    }
}

type Said = (String, String);

fn authorities(pem: &[u8], label: &str) -> Result<(RootCertStore, Vec<String>), Said> {
    let certificates = pem::certificates(pem, label).map_err(|(message, help)| (message, help.to_owned()))?;
    if certificates.len() > AUTHORITIES_MAX {
        let message =
            format!("{label} holds {} certificates; at most {AUTHORITIES_MAX}.", certificates.len());
        return Err((message, "Keep the authorities that sign your clients.".to_owned()));
    }
    let mut roots = RootCertStore::empty();
    let mut names = Vec::new();
    for (position, der) in certificates.into_iter().enumerate() {
        let at = position + 1;
        let damaged = |why: String| {
            let help = "The file must hold certificates of authorities, as whoever runs them gave them out.";
            (format!("certificate {at} in {label} cannot be used: {why}."), help.to_owned())
        };
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| damaged(error.to_string()))?;
        // Version 1 has no extensions, and old roots are of that kind.
        let leaf = parsed.basic_constraints().ok().flatten().is_some_and(|constraints| !constraints.value.ca);
        if leaf {
            let message = format!("certificate {at} in {label} is no authority: it may not sign others.");
            let help = "Name the certificate of the authority that signed your clients, not one of theirs.";
            return Err((message, help.to_owned()));
        }
        names.push(distinguished(parsed.subject()));
        roots.add(der.clone()).map_err(|error| damaged(error.to_string()))?;
    }
    Ok((roots, names))
}

type Lists = (Vec<CertificateRevocationListDer<'static>>, Vec<List>);

fn lists(bytes: &[u8], label: &str) -> Result<Lists, Said> {
    let help = || "Get it again from whoever publishes it; PEM and DER are read.".to_owned();
    let ders: Vec<CertificateRevocationListDer<'static>> = if bytes.first() == Some(&0x30) {
        // DER, as authorities publish it: an ASN.1 SEQUENCE.
        vec![CertificateRevocationListDer::from(bytes.to_vec())]
    } else {
        let sections: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
        sections.map_err(|error| (format!("{label} is damaged: {error}."), help()))?
    };
    if ders.is_empty() {
        let message = format!("{label} holds no revocation list (`-----BEGIN X509 CRL-----`).");
        let help = "Write one there, an empty one if nothing is revoked (`openssl ca -gencrl`); or remove `crl_file`: no client is then ever taken for revoked.";
        return Err((message, help.to_owned()));
    }
    if ders.len() > LISTS_MAX {
        let message = format!("{label} holds {} revocation lists; at most {LISTS_MAX}.", ders.len());
        return Err((message, "Keep those of the authorities in `ca_file`.".to_owned()));
    }
    let mut found = Vec::new();
    for (position, der) in ders.into_iter().enumerate() {
        let (_, parsed) = CertificateRevocationList::from_der(&der).map_err(|error| {
            (format!("revocation list {} in {label} is damaged: {error}.", position + 1), help())
        })?;
        let next_update = parsed.next_update().and_then(|time| u64::try_from(time.timestamp()).ok());
        let warn_from = next_update.map(|end| {
            let begin = u64::try_from(parsed.last_update().timestamp()).unwrap_or(0);
            end - (end.saturating_sub(begin) / 4).min(WARN_BEFORE)
        });
        let made = parsed.last_update().timestamp();
        let list = List { issuer: distinguished(parsed.issuer()), next_update, warn_from };
        found.push((made, der, list));
    }
    // Of two lists of one issuer the first counts (rustls-webpki takes it), so it must be the newer one.
    found.sort_by_key(|(made, ..)| Reverse(*made));
    Ok(found.into_iter().map(|(_, der, list)| (der, list)).unzip())
}

#[cfg(test)]
mod tests;
