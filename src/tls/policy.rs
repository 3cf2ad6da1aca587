//! How a site speaks TLS with its clients, compiled. Sites with equal policies share one value, so that ten thousand
//! sites need as many handshake settings as there are different policies.

use std::fmt;

use rustls::SupportedProtocolVersion;
use rustls::version::{TLS12, TLS13};
use sha2::{Digest, Sha256};

use super::client_auth::ClientAuth;
use crate::config::model::{self, Origin, TlsVersion};

/// A TLS policy.
pub struct Policy {
    /// Equal for policies that decide alike: what is said, and the content of the files.
    pub key: [u8; 32],
    /// Equal for policies that were said alike, whatever the files held.
    pub said: [u8; 32],
    /// The lowest version spoken.
    pub min: TlsVersion,
    /// How clients' certificates are checked, where they are asked for.
    pub auth: Option<ClientAuth>,
}

/// The content of the files that a policy names.
#[derive(Debug, Default)]
pub struct Files {
    /// `ca_file`
    pub ca: Vec<u8>,
    /// `crl_file`
    pub crl: Option<Vec<u8>>,
}

impl Policy {
    /// A policy that asks clients for nothing.
    pub fn plain(min: TlsVersion) -> Policy {
        let said = model::Tls { min, client_auth: None };
        let key = key(&said, None);
        Policy { key, said: key, min, auth: None }
    }

    /// Compiles what a site says. `files` is there where it says `client_auth`.
    ///
    /// # Errors
    /// Where the blame lies, what is wrong, what to do.
    pub fn compile(said: &model::Tls, files: Option<&Files>) -> Result<Policy, (Origin, String, String)> {
        let auth = match (&said.client_auth, files) {
            (Some(auth), Some(files)) => Some(ClientAuth::compile(auth, &files.ca, files.crl.as_deref())?),
            _ => None,
        };
        Ok(Policy { key: key(said, files), said: key(said, None), min: said.min, auth })
    }

    /// The versions spoken.
    pub fn versions(&self) -> &'static [&'static SupportedProtocolVersion] {
        static MODERN: &[&SupportedProtocolVersion] = &[&TLS13];
        static INTERMEDIATE: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
        match self.min {
            TlsVersion::V13 => MODERN,
            TlsVersion::V12 => INTERMEDIATE,
        }
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("min", &self.min).field("auth", &self.auth.is_some()).finish()
    }
}

/// What makes policies equal; without `files`, what makes them said alike.
pub fn key(said: &model::Tls, files: Option<&Files>) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        // The length keeps apart what would be the same when put together.
        hash.update(u64::try_from(bytes.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(bytes);
    };
    part(if said.min == TlsVersion::V13 { b"1.3" } else { b"1.2" });
    if let Some(auth) = &said.client_auth {
        part(if auth.required { b"require" } else { b"optional" });
        part(if auth.accept_expired_crl { b"accept" } else { b"refuse" });
        match files {
            Some(files) => {
                part(&files.ca);
                part(if files.crl.is_some() { b"crl" } else { b"" });
                part(files.crl.as_deref().unwrap_or_default());
            }
            None => {
                part(auth.ca_file.value.as_os_str().as_encoded_bytes());
                let crl = auth.crl_file.as_ref().map(|file| file.value.as_os_str().as_encoded_bytes());
                part(crl.unwrap_or_default());
            }
        }
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::{Forward, Located};

    fn said(min: TlsVersion, mode: Option<bool>) -> model::Tls {
        let here = |name: &str| Located { value: name.into(), origin: Origin::Default };
        let client_auth = mode.map(|required| model::ClientAuth {
            ca_file: here("/ca.pem"),
            crl_file: None,
            required,
            accept_expired_crl: false,
            forward: Forward { identity: true, certificate: false },
        });
        model::Tls { min, client_auth }
    }

    #[test]
    fn policies_are_equal_only_where_they_decide_alike() {
        let files = |ca: &[u8], crl: Option<&[u8]>| Files { ca: ca.to_vec(), crl: crl.map(<[u8]>::to_vec) };
        let auth = said(TlsVersion::V12, Some(true));
        let keys = [
            key(&said(TlsVersion::V12, None), None),
            key(&said(TlsVersion::V13, None), None),
            key(&auth, Some(&files(b"a", None))),
            key(&auth, Some(&files(b"b", None))),
            key(&auth, Some(&files(b"a", Some(b"")))),
            key(&auth, Some(&files(b"", Some(b"a")))),
            key(&said(TlsVersion::V12, Some(false)), Some(&files(b"a", None))),
            key(&said(TlsVersion::V13, Some(true)), Some(&files(b"a", None))),
        ];
        for (at, one) in keys.iter().enumerate() {
            assert!(!keys.iter().skip(at + 1).any(|other| other == one), "{at}");
        }
        assert_eq!(key(&auth, Some(&files(b"a", None))), keys[2]);
        assert_eq!(Policy::plain(TlsVersion::V13).key, keys[1]);
        assert_eq!(Policy::plain(TlsVersion::V13).versions().len(), 1);
    }
}
