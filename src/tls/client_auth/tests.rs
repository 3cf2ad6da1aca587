//! Files of authorities and of revocation lists: what is wrong with them, and what they decide.

use std::time::Duration;

use super::*;
use crate::config::model::{Forward, Located, Part, Place};

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pem: String,
}

fn authority(name: &str) -> Authority {
    let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign, rcgen::KeyUsagePurpose::CrlSign];
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    let key = rcgen::KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    Authority { issuer: rcgen::Issuer::new(params, key), pem }
}

impl Authority {
    fn client(&self, serial: u64, days: i64) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "client");
        params.serial_number = Some(serial.into());
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + since(days);
        let key = rcgen::KeyPair::generate().unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().clone()
    }

    fn list(&self, revoked: &[u64], days: i64) -> String {
        self.list_of(revoked, -3, days)
    }

    /// The same, made so many days from now.
    fn list_of(&self, revoked: &[u64], made: i64, days: i64) -> String {
        let entry = |serial: &u64| rcgen::RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: rcgen::date_time_ymd(1970, 1, 1) + since(-2),
            reason_code: None,
            invalidity_date: None,
        };
        let params = rcgen::CertificateRevocationListParams {
            this_update: rcgen::date_time_ymd(1970, 1, 1) + since(made),
            next_update: rcgen::date_time_ymd(1970, 1, 1) + since(days),
            crl_number: 1u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(entry).collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

/// So many days from now, counted from 1970.
fn since(days: i64) -> Duration {
    let days_in_seconds = Duration::from_secs(days.unsigned_abs() * 24 * 3600);
    if days < 0 { clock::wall() - days_in_seconds } else { clock::wall() + days_in_seconds }
}

fn at(start: usize) -> Origin {
    let part = Arc::new(Part::new(std::path::Path::new("t.toml").into(), 0, 0));
    Origin::File(Place::new(&part, start..2, 3, 4))
}

fn said(required: bool, accept_expired_crl: bool) -> model::ClientAuth {
    let here = |name: &str, start| Located { value: name.into(), origin: at(start) };
    model::ClientAuth {
        ca_file: here("ca.pem", 1),
        crl_file: Some(here("crl.pem", 2)),
        required,
        accept_expired_crl,
        forward: Forward { identity: true, certificate: true },
    }
}

fn compiled(ca: &str, crl: Option<&str>, accept_expired: bool) -> ClientAuth {
    ClientAuth::compile(&said(true, accept_expired), ca.as_bytes(), crl.map(str::as_bytes)).unwrap()
}

#[test]
fn what_is_wrong_with_a_file_is_said_where_it_was_named() {
    let ca = authority("ca");
    let leaf = rcgen::generate_simple_self_signed(["leaf.test".to_owned()]).unwrap();
    let many = ca.pem.repeat(AUTHORITIES_MAX + 1);
    let damaged = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let mut no_ca = rcgen::CertificateParams::new(vec!["leaf.test".to_owned()]).unwrap();
    no_ca.is_ca = rcgen::IsCa::ExplicitNoCa;
    let no_ca = no_ca.self_signed(&leaf.signing_key).unwrap().pem();
    for (text, part) in [
        ("", "is empty"),
        ("hello", "holds no certificate"),
        (damaged, "certificate 1 in ca.pem cannot be used"),
        (&no_ca, "is no authority"),
        (&many, "holds 257 certificates"),
    ] {
        let (origin, message, help) =
            ClientAuth::compile(&said(true, false), text.as_bytes(), None).unwrap_err();
        assert!(message.contains(part) && !help.is_empty(), "{message} {help}");
        assert_eq!(origin, at(1));
    }
    let damaged = "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    for (text, part) in [
        ("", "holds no revocation list"),
        (ca.pem.as_str(), "holds no revocation list"),
        (damaged, "revocation list 1 in crl.pem is damaged"),
        ("0 der", "revocation list 1 in crl.pem is damaged"),
    ] {
        let failed = ClientAuth::compile(&said(true, false), ca.pem.as_bytes(), Some(text.as_bytes()));
        let (origin, message, help) = failed.unwrap_err();
        assert!(message.contains(part) && !help.is_empty(), "{message} {help}");
        assert_eq!(origin, at(2));
    }
}

#[test]
fn a_chain_is_checked_against_authorities_dates_and_lists() {
    let (ca, other) = (authority("ca"), authority("other"));
    let list = ca.list(&[7], 10);
    let auth = compiled(&ca.pem, Some(&list), false);
    assert_eq!(auth.check_again(&[ca.client(1, 10)]), Ok(()));
    assert_eq!(auth.check_again(&[ca.client(7, 10)]), Err(Refusal::Revoked));
    assert_eq!(auth.check_again(&[ca.client(1, -1)]), Err(Refusal::Expired));
    assert_eq!(auth.check_again(&[other.client(1, 10)]), Err(Refusal::Untrusted));
    assert_eq!(auth.check_again(&[]), Err(Refusal::Missing));
    assert_eq!(auth.check_again(&[CertificateDer::from(vec![1, 2, 3])]), Err(Refusal::Invalid));
    // For the other way round: a certificate of a server.
    let mut params = rcgen::CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let key = rcgen::KeyPair::generate().unwrap();
    let server = params.signed_by(&key, &ca.issuer).unwrap().der().clone();
    assert_eq!(auth.check_again(&[server]), Err(Refusal::Invalid));
    let optional = ClientAuth::compile(&said(false, false), ca.pem.as_bytes(), None).unwrap();
    assert_eq!(optional.check_again(&[]), Ok(()));
    assert_eq!(optional.check_again(&[ca.client(7, 10)]), Ok(()), "without lists nothing is revoked");
}

#[test]
fn a_list_past_its_date_refuses_unless_told_otherwise_and_always_revokes() {
    let ca = authority("ca");
    let list = ca.list(&[7], -1);
    let strict = compiled(&ca.pem, Some(&list), false);
    assert_eq!(strict.check_again(&[ca.client(1, 10)]), Err(Refusal::Unchecked));
    let lenient = compiled(&ca.pem, Some(&list), true);
    assert_eq!(lenient.check_again(&[ca.client(1, 10)]), Ok(()));
    assert_eq!(lenient.check_again(&[ca.client(7, 10)]), Err(Refusal::Revoked));
    assert!(lenient.next_update().unwrap() < clock::wall().as_secs());
}

#[test]
fn regression_of_two_lists_of_one_issuer_the_newer_one_counts_wherever_it_stands() {
    let ca = authority("ca");
    let (old, new) = (ca.list_of(&[], -5, 10), ca.list_of(&[7], -1, 10));
    for both in [format!("{old}{new}"), format!("{new}{old}")] {
        let auth = compiled(&ca.pem, Some(&both), false);
        assert_eq!(auth.check_again(&[ca.client(7, 10)]), Err(Refusal::Revoked));
        assert_eq!(auth.check_again(&[ca.client(1, 10)]), Ok(()));
    }
}

#[test]
fn an_authority_without_a_list_is_named_and_its_clients_are_refused() {
    let (ca, other) = (authority("ca"), authority("other"));
    let both = format!("{}{}", ca.pem, other.pem);
    let auth = compiled(&both, Some(&ca.list(&[], 10)), false);
    assert_eq!(auth.without_list, ["CN=other"]);
    assert_eq!(auth.check_again(&[other.client(1, 10)]), Err(Refusal::Unchecked));
    assert_eq!(auth.check_again(&[ca.client(1, 10)]), Ok(()));
    assert!(compiled(&both, None, false).without_list.is_empty());
    let two = format!("{}{}", ca.list(&[], 10), other.list(&[3], 20));
    let auth = compiled(&both, Some(&two), false);
    assert!(auth.without_list.is_empty());
    assert_eq!(auth.check_again(&[other.client(3, 10)]), Err(Refusal::Revoked));
    let soon = clock::wall() + Duration::from_secs(11 * 24 * 3600);
    assert!(auth.next_update().unwrap() < soon.as_secs());
}

#[test]
fn a_list_that_another_authority_signed_does_not_count() {
    let (ca, forger) = (authority("ca"), authority("ca"));
    let auth = compiled(&ca.pem, Some(&forger.list(&[], 10)), false);
    assert!(auth.check_again(&[ca.client(1, 10)]).is_err());
}
