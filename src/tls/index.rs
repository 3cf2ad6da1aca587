//! Server name to certificate: exact names first, then `*.example.org` with exactly one more label.
//!
//! A lookup costs three hash lookups at most, whatever the number of sites, and allocates nothing. The maps keep the
//! standard library's seeded SipHash, because the names looked up come from clients.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::config::model::HostPattern;
use crate::tls::acme::demand::Names;

/// Longest name that can be asked for, in bytes: RFC 1035 section 2.3.4, 253 characters in text form.
const NAME_BYTES_MAX: usize = 253;

/// All certificates of one configuration, by the names they serve.
#[derive(Default)]
pub struct CertificateIndex {
    hosts: Arc<Hosts>,
    /// Those got on demand; none of them is a host of a site.
    names: Arc<Names>,
    default: Option<Arc<CertifiedKey>>,
}

/// The certificates of the sites' hosts.
#[derive(Default)]
struct Hosts {
    exact: HashMap<Box<str>, Arc<CertifiedKey>>,
    wildcard: HashMap<Box<str>, Arc<CertifiedKey>>,
}

impl CertificateIndex {
    /// Builds the index. `default` answers clients without SNI or with an unknown one; `None` refuses them. Of two
    /// pairs with the same pattern the later one wins; clashes are decided before, where they can be explained.
    pub fn new(
        pairs: impl IntoIterator<Item = (HostPattern, Arc<CertifiedKey>)>,
        default: Option<Arc<CertifiedKey>>,
    ) -> CertificateIndex {
        let mut hosts = Hosts::default();
        for (pattern, key) in pairs {
            match pattern {
                HostPattern::Exact(name) => hosts.exact.insert(Box::from(&*name), key),
                HostPattern::Wildcard(parent) => hosts.wildcard.insert(Box::from(&*parent), key),
            };
        }
        CertificateIndex { hosts: Arc::new(hosts), names: Arc::default(), default }
    }

    /// The same with other names on demand; costs nothing, whatever the number of sites.
    pub fn with_names(&self, names: Arc<Names>) -> CertificateIndex {
        CertificateIndex { hosts: self.hosts.clone(), names, default: self.default.clone() }
    }

    /// The certificate for a name: exact, else wildcard, else one got on demand (which is noted as asked for), else
    /// `None` (the default is not considered).
    ///
    /// Upper case letters and one trailing dot are forgiven (RFC 6066 section 3 wants neither, RFC 4343 makes case
    /// meaningless).
    pub fn find(&self, sni: &str) -> Option<&Arc<CertifiedKey>> {
        let sni = sni.strip_suffix('.').unwrap_or(sni);
        if sni.len() > NAME_BYTES_MAX {
            return None;
        }
        if !sni.bytes().any(|b| b.is_ascii_uppercase()) {
            return self.find_normal(sni);
        }
        let mut buffer = [0u8; NAME_BYTES_MAX];
        let lower = buffer.get_mut(..sni.len())?;
        lower.copy_from_slice(sni.as_bytes());
        lower.make_ascii_lowercase();
        self.find_normal(std::str::from_utf8(lower).ok()?)
    }

    /// What a client gets: by name, else the default.
    pub fn resolve_name(&self, sni: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        sni.and_then(|name| self.find(name)).or(self.default.as_ref())
    }

    /// Number of names held.
    pub fn len(&self) -> usize {
        self.hosts.exact.len() + self.hosts.wildcard.len() + self.names.len()
    }

    /// Whether no name is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn find_normal(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        if let Some(key) = self.hosts.exact.get(name) {
            return Some(key);
        }
        let (label, parent) = name.split_once('.')?;
        if label.is_empty() {
            return None;
        }
        self.hosts.wildcard.get(parent).or_else(|| {
            let named = self.names.get(name)?;
            named.touch();
            Some(&named.identity.key)
        })
    }
}

impl ResolvesServerCert for CertificateIndex {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.resolve_name(hello.server_name()).map(Arc::clone)
    }
}

impl fmt::Debug for CertificateIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateIndex")
            .field("exact", &self.hosts.exact.len())
            .field("wildcard", &self.hosts.wildcard.len())
            .field("names", &self.names.len())
            .field("default", &self.default.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::provider;

    fn key() -> Arc<CertifiedKey> {
        let pair = rcgen::generate_simple_self_signed(["x.test".to_owned()]).unwrap();
        let der = rustls_pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der()).unwrap();
        Arc::new(CertifiedKey::from_der(vec![pair.cert.der().clone()], der, &provider()).unwrap())
    }

    #[test]
    fn exact_beats_wildcard_and_a_wildcard_is_one_label() {
        let (exact, wild, ip) = (key(), key(), key());
        let index = CertificateIndex::new(
            [
                (HostPattern::Exact("www.example.org".into()), exact.clone()),
                (HostPattern::Wildcard("example.org".into()), wild.clone()),
                (HostPattern::Exact("2001:db8::1".into()), ip.clone()),
            ],
            None,
        );
        assert_eq!(index.len(), 3);
        let is = |name: &str, want: Option<&Arc<CertifiedKey>>| {
            let found = index.find(name);
            assert!(
                match (found, want) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (None, None) => true,
                    _ => false,
                },
                "{name}"
            );
        };
        // Bad first.
        let long = format!("{}.example.org", "a".repeat(250));
        for name in [
            "",
            ".",
            "..",
            "example.org",
            ".example.org",
            "a.b.example.org",
            "example.org..",
            "www.example.com",
            &long,
        ] {
            is(name, None);
        }
        for name in ["www.example.org", "WWW.Example.ORG", "www.example.org.", "wWw.example.org."] {
            is(name, Some(&exact));
        }
        for name in ["shop.example.org", "SHOP.example.org.", "*.example.org"] {
            is(name, Some(&wild));
        }
        is("2001:db8::1", Some(&ip));
    }

    #[test]
    fn the_default_answers_only_where_nothing_else_does() {
        let (own, default) = (key(), key());
        let pairs = [(HostPattern::Exact("a.test".into()), own.clone())];
        let strict = CertificateIndex::new(pairs.clone(), None);
        assert!(strict.resolve_name(None).is_none() && strict.resolve_name(Some("b.test")).is_none());
        let lenient = CertificateIndex::new(pairs, Some(default.clone()));
        assert!(Arc::ptr_eq(lenient.resolve_name(None).unwrap(), &default));
        assert!(Arc::ptr_eq(lenient.resolve_name(Some("b.test")).unwrap(), &default));
        assert!(Arc::ptr_eq(lenient.resolve_name(Some("A.test.")).unwrap(), &own));
        assert!(lenient.find("b.test").is_none());
    }
}
