//! Who a client is, by the certificate it proved to hold: texts that can go into a header field.
//!
//! Nothing is verified here: that was done in the handshake. But a certificate is text of strangers even when an
//! authority signed it, so every text is printed in one way only, in printable ASCII: a comma, a line break or a NUL
//! in a name never looks like the end of it.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr};

use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// Bytes of a printed text; what is longer is left out rather than cut, because a cut name is another name.
const TEXT_BYTES_MAX: usize = 4 * 1024;

/// A verified client certificate.
#[derive(Debug, Clone)]
pub struct ClientIdentity {
    /// The certificate, then what the client sent to link it to an authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// SHA-256 of the certificate, in hexadecimal.
    pub fingerprint: String,
    /// Subject, as RFC 4514 prints it; empty where it is longer than a field may be.
    pub subject: String,
    /// Issuer, likewise.
    pub issuer: String,
    /// Serial number in hexadecimal.
    pub serial: String,
    /// Alternative names: `DNS:a.example, URI:spiffe://a/b, IP:192.0.2.1, email:a@b.example`.
    pub names: String,
    /// When it expires, in seconds since 1970.
    pub not_after: u64,
}

impl ClientIdentity {
    /// What a chain says about its first certificate; `None` where there is none that can be read.
    pub fn of(chain: &[CertificateDer<'_>]) -> Option<ClientIdentity> {
        let leaf = chain.first()?;
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        Some(ClientIdentity {
            fingerprint: hex(&Sha256::digest(leaf)),
            subject: bounded(distinguished(parsed.subject())),
            issuer: bounded(distinguished(parsed.issuer())),
            serial: hex(parsed.raw_serial()),
            names: bounded(names(&parsed)),
            not_after: u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0),
            chain: chain.iter().map(|der| der.clone().into_owned()).collect(),
        })
    }
}

fn bounded(text: String) -> String {
    if text.len() <= TEXT_BYTES_MAX { text } else { String::new() }
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// A name as RFC 4514 prints it: the last part first, which is the most specific one.
pub fn distinguished(name: &X509Name<'_>) -> String {
    let parts: Vec<_> = name.iter_rdn().collect();
    let part = |rdn: &x509_parser::x509::RelativeDistinguishedName<'_>| {
        rdn.iter().map(attribute).collect::<Vec<_>>().join("+")
    };
    parts.into_iter().rev().map(part).collect::<Vec<_>>().join(",")
}

/// Short names of RFC 4514 section 3 and RFC 4519, and what everybody calls an e-mail address.
const SHORT: &[(&str, &str)] = &[
    ("2.5.4.3", "CN"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.6", "C"),
    ("2.5.4.9", "STREET"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
    ("2.5.4.5", "serialNumber"),
    ("1.2.840.113549.1.9.1", "emailAddress"),
];

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    match SHORT.iter().find(|(known, _)| *known == oid) {
        Some((_, short)) => match attribute.as_str() {
            Ok(text) => format!("{short}={}", escaped(text)),
            Err(_) => format!("{short}={}", encoded(attribute)),
        },
        // RFC 4514 section 2.4: a type without a short name has its value in hexadecimal.
        None => format!("{oid}={}", encoded(attribute)),
    }
}

/// `#` and the value's encoding in hexadecimal (RFC 4514 section 2.4).
fn encoded(attribute: &AttributeTypeAndValue<'_>) -> String {
    let value = attribute.as_slice();
    let mut der = vec![u8::try_from(attribute.attr_value().header.tag().0).unwrap_or(0)];
    // X.690 section 8.1.3: a length below 128 is one byte, a longer one says first how many bytes it takes.
    if value.len() < 128 {
        der.extend(u8::try_from(value.len()));
    } else {
        let length = value.len().to_be_bytes();
        let significant: Vec<u8> = length.iter().copied().skip_while(|byte| *byte == 0).collect();
        der.push(0x80 | u8::try_from(significant.len()).unwrap_or(0));
        der.extend(significant);
    }
    der.extend_from_slice(value);
    format!("#{}", hex(&der))
}

/// A value with everything escaped that RFC 4514 section 2.4 wants escaped, and whatever is not printable ASCII.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let last = text.len().saturating_sub(1);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'"' | b'+' | b',' | b';' | b'<' | b'>' | b'\\' => out.extend(['\\', char::from(byte)]),
            b' ' if at == 0 || at == last => out.push_str("\\ "),
            b'#' if at == 0 => out.push_str("\\#"),
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\{byte:02X}");
            }
        }
    }
    out
}

fn names(certificate: &X509Certificate<'_>) -> String {
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return String::new() };
    let print = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some(format!("DNS:{}", escaped(name))),
        GeneralName::RFC822Name(name) => Some(format!("email:{}", escaped(name))),
        GeneralName::URI(name) => Some(format!("URI:{}", escaped(name))),
        GeneralName::IPAddress(octets) => address(octets).map(|address| format!("IP:{address}")),
        _ => None,
    };
    extension.value.general_names.iter().filter_map(print).collect::<Vec<_>>().join(", ")
}

fn address(octets: &[u8]) -> Option<String> {
    if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        return Some(Ipv4Addr::from(v4).to_string());
    }
    <[u8; 16]>::try_from(octets).ok().map(|v6| Ipv6Addr::from(v6).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(set: impl FnOnce(&mut rcgen::CertificateParams)) -> ClientIdentity {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        set(&mut params);
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().clone();
        ClientIdentity::of(&[der]).unwrap()
    }

    #[test]
    fn what_is_no_certificate_is_nobody() {
        assert!(ClientIdentity::of(&[]).is_none());
        assert!(ClientIdentity::of(&[CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])]).is_none());
    }

    #[test]
    fn a_name_cannot_pretend_to_be_two() {
        let client = identity(|params| {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, "Shop GmbH");
            params.distinguished_name.push(rcgen::DnType::CommonName, "eve,O=Admin+OU=\"root\"\r\nX: y\0 ");
        });
        assert_eq!(client.subject, "CN=eve\\,O=Admin\\+OU=\\\"root\\\"\\0D\\0AX: y\\00\\ ,O=Shop GmbH");
        assert_eq!(client.issuer, client.subject);
        let umlaut = identity(|params| params.distinguished_name.push(rcgen::DnType::CommonName, "#Jürgen"));
        assert_eq!(umlaut.subject, "CN=\\#J\\C3\\BCrgen");
    }

    #[test]
    fn a_type_without_a_short_name_is_printed_in_hexadecimal() {
        let client = identity(|params| {
            let custom = rcgen::DnType::CustomDnType(vec![1, 3, 6, 1, 4, 1, 99999, 1]);
            params.distinguished_name.push(custom, "ab");
        });
        assert_eq!(client.subject, "1.3.6.1.4.1.99999.1=#0c026162");
    }

    #[test]
    fn alternative_names_are_listed_with_their_kind() {
        let client = identity(|params| {
            params.subject_alt_names = vec![
                rcgen::SanType::DnsName("a.example".try_into().unwrap()),
                rcgen::SanType::URI("spiffe://a/b,c".try_into().unwrap()),
                rcgen::SanType::IpAddress("192.0.2.1".parse().unwrap()),
                rcgen::SanType::IpAddress("2001:db8::1".parse().unwrap()),
                rcgen::SanType::Rfc822Name("a@b.example".try_into().unwrap()),
            ];
        });
        assert_eq!(
            client.names,
            "DNS:a.example, URI:spiffe://a/b\\,c, IP:192.0.2.1, IP:2001:db8::1, email:a@b.example"
        );
        assert_eq!((client.fingerprint.len(), client.subject.as_str()), (64, ""));
        assert!(client.not_after > 1_700_000_000 && !client.serial.is_empty());
    }

    #[test]
    fn a_text_longer_than_a_field_is_left_out_whole() {
        let client =
            identity(|params| params.distinguished_name.push(rcgen::DnType::CommonName, "x".repeat(5_000)));
        assert_eq!(client.subject, "");
        assert_eq!(client.fingerprint.len(), 64);
    }
}
